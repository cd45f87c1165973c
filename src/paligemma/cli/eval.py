"""`paligemma eval`: what a model scores, and how sure that is."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass

import click
from click.shell_completion import CompletionItem

from paligemma.cli.sections import NamingGroup, benchmarks_beginning


@dataclass(frozen=True)
class Tool:
    """Where a command lives, and its line in the help of the group."""

    module: str
    function: str
    summary: str


_TOOLS_MODULE = "paligemma.cli.eval_tools"
TOOLS: dict[str, Tool] = {
    "scenes": Tool(
        "paligemma.cli.eval_scenes",
        "scenes_command",
        "Pictures drawn from a seed; needs no download.",
    ),
    "vidore": Tool(
        "paligemma.cli.eval_vidore",
        "vidore_command",
        "Pages found for queries: nDCG@5 on ViDoRe sets.",
    ),
    "list": Tool("paligemma.cli.eval_list", "list_command", "List the benchmarks, or tell of one."),
    "score": Tool(_TOOLS_MODULE, "score_command", "Score predictions that any program made."),
    "report": Tool(_TOOLS_MODULE, "report_command", "Score a run again, and write its page."),
    "compare": Tool(_TOOLS_MODULE, "compare_command", "Say which of two runs is better."),
    "calibrate": Tool(_TOOLS_MODULE, "calibrate_command", "Make a model's confidences honest."),
    "submission": Tool(_TOOLS_MODULE, "submission_command", "Write what a test server takes."),
    "vectors": Tool(_TOOLS_MODULE, "vectors_command", "Check the metrics on expected values."),
}


class EvalGroup(NamingGroup):
    """Tools, and every benchmark as a command; nothing is imported before it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*TOOLS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in TOOLS:
            entry = TOOLS[cmd_name]
            return getattr(importlib.import_module(entry.module), entry.function)
        return _benchmark(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0].lower(), TOOLS, n=1)
        if not near and not args[0].startswith("-") and not ctx.resilient_parsing:
            from paligemma.tasks.catalog import find_task

            find_task(args[0])  # raises, and offers what is near
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Tools and benchmarks."""
        return [*super().shell_complete(ctx, incomplete), *benchmarks_beginning(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [("NAME", "A benchmark of `paligemma eval list`, on files of --data DIR.")]
        rows += [(name, entry.summary) for name, entry in TOOLS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _benchmark(name: str) -> click.Command | None:
    from paligemma.cli.eval_run import task_command
    from paligemma.tasks.catalog import tasks

    task = tasks().get(name)
    return None if task is None else task_command(task)


@click.group("eval", cls=EvalGroup)
def eval_group() -> None:
    """Measure a model on a benchmark, and read what was measured.

    \b
    paligemma eval list
    paligemma eval docvqa --data docvqa/ --model google/paligemma-3b-ft-docvqa-448
    paligemma eval docvqa --help
    """
