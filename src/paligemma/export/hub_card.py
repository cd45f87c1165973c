"""The evaluation table of a model card: figures of runs, for people and for the hub.

A block between two comments, and a line `model-index` of the metadata (hub documentation, Model
Cards, "Evaluation results").
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma import json_file
from paligemma.errors import DataError
from paligemma.eval.report import SCORES

BEGIN, END = "<!-- evaluation -->", "<!-- /evaluation -->"
_INDEX = "model-index: "
# As huggingface_hub finds them (repocard.py).
_METADATA = re.compile(r"\s*---\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_MAX_FIGURES = 200
_MAX_WORDS = 300


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a run of `paligemma eval` scored.

    Attributes:
        figures: rows of measure, value, low, high and num, as `Figure.to_json` writes them.
        command: what computed it.
        versions: of the packages that did.
    """

    task: str
    split: str
    model: str
    num_scored: int
    num_asked: int
    figures: tuple[dict[str, Any], ...]
    command: str
    versions: str


def read_scores(run: Path) -> Scores:
    """The scores of a run.

    Args:
        run: its folder, or the file itself.

    Raises:
        DataError: there is none, or it is not what `paligemma eval` writes.
    """
    path = run / SCORES if run.is_dir() else run
    try:
        body = json_file.read_json(path)
        figures = body["figures"]
        if not isinstance(figures, list) or not 0 < len(figures) <= _MAX_FIGURES:
            raise ValueError(f"it has 1 to {_MAX_FIGURES} figures")
        environment = body["run"].get("environment") or {}
        known = [name for name in ("paligemma", "torch") if name in environment]
        return Scores(
            task=_words(body["task"]),
            split=_words(body["split"]),
            model=_words(body["model"]),
            num_scored=int(body["num_scored"]),
            num_asked=int(body["num_asked"]),
            figures=tuple(_figure(one) for one in figures),
            command=_words(body["run"].get("command") or ""),
            versions=", ".join(f"{name} {_words(environment[name])}" for name in known),
        )
    except OSError as error:
        raise DataError(
            f"a run of paligemma eval has {SCORES}, {path} cannot be read ({error.strerror}); name "
            "the folder of a finished run"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{SCORES} must be what paligemma eval writes, {path} is not ({error!s:.200}); "
            "score the run again with paligemma eval score"
        ) from error


def with_scores(card: str, scores: Sequence[Scores], *, name: str) -> str:
    """A card with the table of some runs, in the place of an earlier one.

    Args:
        card: Markdown, with metadata in front or without.
        name: of the model, for the metadata.
    """
    block = "\n".join([BEGIN, *_table(scores), END])
    begin, end = card.find(BEGIN), card.find(END)
    if 0 <= begin < end:
        card = card[:begin] + block + card[end + len(END) :]
    else:
        card = card.rstrip("\n") + "\n\n" + block + "\n"
    return _with_index(card, _INDEX + json.dumps([_index(scores, name)], ensure_ascii=False))


def _words(value: object) -> str:
    """Printable text on one line."""
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, got {value!r:.50}")
    printable = "".join(one if one.isprintable() else " " for one in value)
    # Without what begins a comment, which could end the block.
    return re.sub(r"<+(?=!)", "", " ".join(printable.split())[:_MAX_WORDS])


def _figure(row: Any) -> dict[str, Any]:
    numbers = {key: row[key] for key in ("value", "low", "high", "num")}
    if not all(
        one is None or (isinstance(one, int | float) and not isinstance(one, bool))
        for one in numbers.values()
    ):
        raise TypeError(f"a figure has numbers, got {numbers!r:.100}")
    return {"measure": _words(row["measure"]), **numbers}


def _table(scores: Sequence[Scores]) -> list[str]:
    lines = [
        "## Evaluation",
        "",
        "| benchmark | split | measure | score [95 % interval] | examples |",
        "|---|---|---|---|---|",
    ]
    for one in scores:
        for row in one.figures:
            value = "-" if row["value"] is None else f"{row['value']:.2f}"
            if row["low"] is not None and row["high"] is not None:
                value += f" [{row['low']:.2f}, {row['high']:.2f}]"
            cells = (one.task, one.split, f"`{row['measure']}`", value, f"{row['num'] or 0:,}")
            escaped = (cell.replace("|", "\\|") for cell in cells)
            lines.append(f"| {' | '.join(escaped)} |")
    lines.append("")
    for one in scores:
        extent = f"{one.num_scored:,} of {one.num_asked:,} examples"
        lines.append(
            f"{one.task} ({one.split}): `{one.model}`, {extent}"
            + (f"; {one.versions}" if one.versions else "")
            + (f"; `{one.command}`" if one.command else "")
            + "."
        )
        lines.append("")
    return lines[:-1]


def _index(scores: Sequence[Scores], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "results": [
            {
                "task": {"type": "image-text-to-text"},
                "dataset": {"name": one.task, "type": one.task, "split": one.split},
                "metrics": [
                    {"type": row["measure"], "name": row["measure"], "value": row["value"]}
                    for row in one.figures
                    if row["value"] is not None
                ],
            }
            for one in scores
        ],
    }


def _with_index(card: str, line: str) -> str:
    """The card with a line of metadata, in the place of one that was written here before."""
    found = _METADATA.match(card)
    if found is None:
        return f"---\n{line}\n---\n\n{card}"
    lines = [one for one in found[1].split("\n") if not one.startswith(_INDEX + "[{")]
    if any(one.startswith("model-index") for one in lines):
        return card  # the owner's own, of several lines
    return "\n".join(["---", *lines, line, "---", ""]) + card[found.end() :]
