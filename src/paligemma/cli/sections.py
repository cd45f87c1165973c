"""Help in sections, what a beginner needs first; the word that was meant; words to complete."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

Sections = Mapping[str, Sequence[str]]

# Options by the names of their values, in the order of the help.
ASKING: Sections = {
    "Model": ("model_name", "model", "adapter", "quant", "device", "revision"),
    "Objects": (
        "threshold",
        "max_overlap",
        "constrain",
        "max_objects",
        "no_repeats",
        "calibration",
        "tile",
        "tile_overlap",
    ),
    "Output": ("overlay", "as_json", "coco", "yolo", "csv", "output", "with_page", "overwrite"),
    "Pictures": ("frame", "frames", "allow_url", "background", "image_size_px", "resize_method"),
    "Answer": (
        "max_new_tokens",
        "choices",
        "json_schema",
        "num_beams",
        "length_penalty",
        "probabilities",
        "weigh_locations",
    ),
    "Sampling": ("temperature", "top_k", "top_p", "best_of", "seed"),
    "Model, in detail": (
        "mode",
        "conventions",
        "kv_cache_dtype",
        "attn_softcap",
        "final_softcap",
        "sliding_window",
        "tokenizer",
        "mask_codec",
    ),
}


class SectionedCommand(click.Command):
    """A command whose help has its options in sections; those of no section come first."""

    def __init__(self, *args: Any, sections: Sections = ASKING, **more: Any) -> None:
        super().__init__(*args, **more)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options into the help, `--help` last."""
        asks_help = self.get_help_option(ctx)
        rows = {
            parameter.name: row
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option) and parameter is not asks_help
            if (row := parameter.get_help_record(ctx)) is not None
        }
        last = asks_help and asks_help.get_help_record(ctx)
        parts = {
            title: [rows.pop(name) for name in names if name in rows]
            for title, names in self.sections.items()
        }
        named = {"Options": list(rows.values()), **parts, "Help": [last] if last else []}
        for title, lines in named.items():
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)


class NamingGroup(click.Group):
    """A group that names the command that was meant, where one is near to what was typed."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names."""
        name = args[0]
        if (
            not ctx.resilient_parsing
            and not name.startswith("-")
            and self.get_command(ctx, name) is None
        ):
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(name.lower(), known, n=3)
            offered = f"did you mean {' or '.join(near)}?" if near else f"use {', '.join(known)}"
            ctx.fail(f"No command is named {name!r:.100}; {offered}")
        return super().resolve_command(ctx, args)


class SectionedGroup(NamingGroup, SectionedCommand):
    """A group that is also a command with options in sections."""


class ModelName(click.ParamType):
    """The name of a model, which a shell completes from the published ones, or as a file."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that begin so; else files."""
        from paligemma.config import published_ids

        near = _beginning(["tiny", *published_ids()], incomplete)
        return near or [CompletionItem(incomplete, type="file")]


class BenchmarkName(click.ParamType):
    """The name of a benchmark, which a shell completes."""

    name = "benchmark"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that begin so."""
        return benchmarks_beginning(incomplete)


def benchmarks_beginning(incomplete: str) -> list[CompletionItem]:
    """Benchmarks whose names begin so, each with its title."""
    from paligemma.tasks.catalog import tasks

    return _beginning({name: task.title for name, task in tasks().items()}, incomplete)


class RowName(click.ParamType):
    """The name of a row of the papers, which a shell completes."""

    name = "row"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that begin so, each with the title of its benchmark."""
        from paligemma.tuning.row_figures import rows_by_name

        return _beginning(
            {name: one.task.title for name, one in rows_by_name().items()}, incomplete
        )


def _beginning(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Names that begin so; a mapping has a line of help for each."""
    helps = names if isinstance(names, Mapping) else {}
    return [
        CompletionItem(name, help=helps.get(name)) for name in names if name.startswith(incomplete)
    ]
