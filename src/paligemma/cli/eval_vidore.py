"""`paligemma eval vidore`: how well a retriever finds pages."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from paligemma.cli.options import NamedPath
from paligemma.cli.show import echo_json
from paligemma.cli.stopping import when_stopped


@click.command("vidore")
@click.option(
    "--data",
    type=NamedPath(file_okay=False),
    required=True,
    metavar="DIR",
    help="Copy of a set of the hub, or a folder of several.",
)
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    metavar="MODEL",
    help="ColPali: a name or a folder.",
)
@click.option("--preset", metavar="NAME", help="Prompts of the model; its own by default.")
@click.option("--device", metavar="NAME", help="cpu or cuda; the fastest by default.")
@click.option(
    "--split", default="test", show_default=True, metavar="NAME", help="Of sets that have several."
)
@click.option(
    "-k", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N", help="Of nDCG@k."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    metavar="N",
    help="Pages encoded at once.",
)
@click.option(
    "--output",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    help="Keep scores there as they come, and go on with those of a stopped run.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@when_stopped("goes on if --output keeps its scores, and else begins anew")
def vidore_command(
    data: Path,
    model: str,
    preset: str | None,
    device: str | None,
    split: str,
    k: int,
    batch_size: int,
    output: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Rank the pages of ViDoRe sets for their queries: nDCG@5 beside published figures.

    \b
    hf download vidore/docvqa_test_subsampled_beir --repo-type dataset --local-dir vidore/docvqa
    paligemma eval vidore --data vidore/ --model vidore/colpali-v1.3 --output runs/vidore
    """
    from tqdm.auto import tqdm

    from paligemma.eval.vidore import score_lines, score_set
    from paligemma.eval.vidore_kept import KeptScores
    from paligemma.eval.vidore_sets import read_sets
    from paligemma.one_writer import one_writer
    from paligemma.retrieval.colpali import ColPali

    sets = read_sets(data, split=split)
    loaded = ColPali.from_pretrained(model, preset=preset, device=device)
    found = []
    total = sum(len(one.page_ids) for one in sets)
    with (
        one_writer(output) if output is not None else nullcontext(),
        tqdm(total=total, unit="page", disable=quiet or None) as bar,
    ):
        for one in sets:
            bar.set_postfix_str(one.name)
            kept = None if output is None else KeptScores(output, loaded.identity, one)
            scored = score_set(
                loaded, one, k=k, batch_size=batch_size, kept=kept, on_pages=bar.update
            )
            found.append(scored)
    if not as_json:
        for line in score_lines(model, found):
            click.echo(line)
        return
    shown = [
        {
            "set": one.name,
            one.measure.name: one.measure.value,
            "interval": one.measure.interval(),
            "queries": one.measure.num,
            "pages": one.num_pages,
            "notes": one.notes,
        }
        for one in found
    ]
    mean = sum(one.measure.value for one in found) / len(found)
    echo_json({"model": model, "sets": shown, f"mean {found[0].measure.name}": mean})
