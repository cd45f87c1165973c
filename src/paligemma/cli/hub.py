"""`paligemma push` and `paligemma pull`: folders to and from the hub."""

from __future__ import annotations

from pathlib import Path

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.stopping import when_stopped


@click.command("push")
@click.argument("folder", type=NamedPath(file_okay=False), metavar="DIR")
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--eval",
    "runs",
    type=NamedPath(),
    multiple=True,
    metavar="RUN",
    help="A run of paligemma eval whose figures the card shows; may be named several times.",
)
@click.option("--public", is_flag=True, help="Let all see a repository that is made by this.")
@click.option("--revision", metavar="BRANCH", help="A branch that is there.")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="Send nothing; show the files and the card.")
@when_stopped("goes on: what arrived is not sent again")
def push_command(
    folder: Path,
    repository: str,
    runs: tuple[Path, ...],
    public: bool,
    revision: str | None,
    message: str | None,
    dry_run: bool,
) -> None:
    """Send the model in DIR to the repository OWNER/NAME of the hub, in one commit.

    \b
    paligemma push runs/cards/merged me/cards --eval runs/cards-eval

    HF_TOKEN is a token with the right to write. A repository that is not there is made, private
    unless --public is named. Hidden files stay here; pickled and compiled files are refused.
    Weights of an earlier push that DIR does not have are removed. The card is DIR's README.md, or
    one that is written, with a table of the runs' figures.
    """
    from paligemma.export.push import plan_push, push

    plan = plan_push(folder, repository, runs=runs)
    if dry_run:
        for path in plan.files:
            click.echo(f"{path.stat().st_size:>14,}  {path.relative_to(folder)}", err=True)
        click.echo(plan.card)
        return
    click.echo(f"paligemma: {len(plan.files)} files, {plan.num_bytes / 1e6:,.1f} MB", err=True)
    done = push(plan, public=public, revision=revision, message=message)
    for name in done.removed:
        click.echo(f"paligemma: removed {name}, weights of an earlier push", err=True)
    click.echo(done.commit_url)


@click.command("pull")
@click.argument("repository", metavar="OWNER/NAME")
@click.argument("folder", type=NamedPath(file_okay=False), metavar="DIR")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit.")
@when_stopped("goes on where it stopped")
def pull_command(repository: str, folder: Path, revision: str | None) -> None:
    """Download the repository OWNER/NAME of the hub into the new folder DIR.

    \b
    paligemma pull google/paligemma2-3b-mix-224 mix-224

    Files arrive in DIR.part, are compared with the sizes and hashes that the hub states, and the
    folder is renamed when all are there. Files that run code when they are
    opened, pickled or compiled, are left on the hub.
    """
    from paligemma.export.pull import pull

    done = pull(repository, folder, revision=revision)
    for name in done.left[:10]:
        click.echo(f"paligemma: {name} stays on the hub: opening it runs code", err=True)
    click.echo(
        f"paligemma: wrote {click.format_filename(folder)}: {done.num_files} files, "
        f"{done.num_bytes / 1e6:,.1f} MB, commit {done.commit[:12]}",
        err=True,
    )
