"""Published figures of a benchmark in one unit, each with its source.

Figures of a test server are marked, since no split on disk compares with them.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from paligemma.errors import ConfigError
from paligemma.example import Asking
from paligemma.processing.resize import BILINEAR, BILINEAR_ANTIALIAS
from paligemma.tasks.task import PublishedKey, Task

# Kinds of records that hold figures of released or releasable models; the others are studies of
# training and of number formats, and systems by other people.
MODEL_KINDS = ("transfer", "zero_shot", "mix")
# The model card prints BLEU-4 as a fraction, the reports times 100.
_FRACTIONS = {("readme", "BLEU-4")}
# Order of the sources: figures with a spread over runs first, then the report that measured them.
_SOURCES = ("pg2_t13", "pg1_t1", "pg1_misc", "readme", "pg2_t15")
# Fields of a record that a score has under the same name.
_COPIED = ("model", "family", "size", "resolution", "split", "kind")
# Records with this note name another split than the one that was scored.
_SERVER_NOTE = "equal to the test-server value"
# Splits of our readers that make up the final training set of a transfer, where that is more than
# "train"; the split that the benchmark reports is never among them.
_TRAINED_ON: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("scicap", "gqa", "ocrvqa", "chartqa", "science_qa", "rsvqa_lr", "rsvqa_hr", "msrvtt_cap",
         "msrvtt_qa", "msvd_qa", "activitynet_cap", "activitynet_qa", "vatex_cap"),
        ("train", "val"),
    ),
    **dict.fromkeys(("screen2words", "widgetcap", "nlvr2"), ("train", "dev")),
    "vqav2": ("train", "maxival"),
    "refcoco_seg": ("train-combined",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """One published figure.

    Attributes:
        value: figure in the unit of published tables: shares and CIDEr times 100.
        std: standard deviation over fine-tuning runs; None where not given.
        family: "PaliGemma" or "PaliGemma 2".
        size: "3B", "10B", "28B"; None for other systems.
        resolution: side of the input in pixels; None for other systems.
        source: publication that holds the figure.
        is_test_server: whether only a test server can compute it.
    """

    measure: str
    value: float
    std: float | None
    model: str
    family: str
    size: str | None
    resolution: int | None
    source: str
    split: str
    is_test_server: bool
    kind: str
    note: str = ""


def published(task: Task, *, our_split: str | None = None) -> list[PublishedScore]:
    """Collect the published figures of a task, those with a spread over runs first.

    Args:
        our_split: split on disk with which the figures must be comparable; all figures by
            default, those of test servers among them.
    """
    found = []
    for key in task.published:
        for record in records_of(key):
            score = _score(key, record)
            if record["kind"] not in MODEL_KINDS:
                continue
            if our_split is not None and (score.is_test_server or key.our_split != our_split):
                continue
            found.append((_rank(record), score))
    # Two of our splits may be comparable with one figure.
    return list(dict.fromkeys(score for _, score in sorted(found, key=lambda one: one[0])))


def records_of(key: PublishedKey) -> list[dict[str, Any]]:
    """Look up the records that a key names, of every kind."""
    wanted = {"task": key.task, "split": key.split, "metric": key.metric}
    return [one for one in _table()["records"] if wanted.items() <= one.items()]


def caveats() -> tuple[str, ...]:
    """Return what a reader must know before comparing with published figures."""
    return tuple(_table()["caveats"])


def transfer_recipe(name: str) -> dict[str, Any]:
    """Look up a published fine-tuning recipe.

    Raises:
        ConfigError: no recipe has this id; the error offers near ones.
    """
    recipes = {one["id"]: one for one in _read("transfers.json")["transfers"]}
    if name not in recipes:
        near = difflib.get_close_matches(name.lower(), recipes, n=3, cutoff=0.6)
        offered = f"did you mean {' or '.join(near)}?" if near else f"it is of {', '.join(recipes)}"
        raise ConfigError(f"no published transfer is named {name[:80]!r}; {offered}")
    return recipes[name]


def training_splits(task: Task, transfer: str | None) -> tuple[str, ...]:
    """Name the splits of a task that the published recipe of a transfer learns from."""
    own = None if task.is_zero_shot or task.transfer != transfer else transfer
    return _TRAINED_ON.get(own or "", ("train",))


def learning_rate_sweep(transfer: str, size: str) -> tuple[list[float], dict[str, list[float]]]:
    """Look up the figures of PaliGemma 2 on a transfer's own sets for every learning rate.

    Args:
        size: "3B", "10B" or "28B".

    Returns:
        The learning rates, and figures at each by set and split; none where it was not swept.
    """
    table = _read("transfers.json")["paligemma2"]
    return table["lr_grid"], {
        one["task"]: one["scores_by_lr"][size]
        for one in table["lr_sweep"]
        if one["config"] == transfer and not one["zero_shot"] and size in one["scores_by_lr"]
    }


def asking_of(transfer: str) -> Asking:
    """Build the asking of a published transfer in evaluation; see `transfer_recipe`."""
    recipe = transfer_recipe(transfer)
    image = recipe["image"]
    # Frames of a clip are resized without antialiasing and without rounding.
    resize = image.get("resize", {"antialias_eval": False, "antialias_train": False})
    evaluated, trained = (
        BILINEAR_ANTIALIAS if resize[f"antialias_{use}"] else BILINEAR for use in ("eval", "train")
    )
    return Asking(
        text_len=recipe["text_len"],
        max_new_tokens=recipe["max_decode_len"],
        num_beams=recipe["decode"].get("beam_size", 1),
        resize_method=evaluated,
        train_resize_method=None if trained == evaluated else trained,
        num_pictures=image.get("num_frames", image.get("num_images", 1)),
        keep_fractions=image["kind"] == "video",
    )


def transferred(name: str) -> dict[str, Any]:
    """Build the fields of a `Task` that a published transfer decides."""
    chosen = str(transfer_recipe(name)["prompt"].get("suffix_selection"))
    drawn = chosen.startswith(("choice: uniform", "video_choice"))
    return {"asking": asking_of(name), "transfer": name, "draws_targets": drawn}


def _score(key: PublishedKey, record: dict[str, Any]) -> PublishedScore:
    scale = 100.0 if (record["source"], record["metric"]) in _FRACTIONS else 1.0
    std, note = record.get("std"), record.get("note", "")
    return PublishedScore(
        measure=key.measure,
        value=record["value"] * scale,
        std=None if std is None else std * scale,
        **{name: record[name] for name in _COPIED},
        source=_table()["sources"][record["source"]],
        is_test_server=key.our_split is None or _SERVER_NOTE in note,
        note=note,
    )


def _rank(record: dict[str, Any]) -> tuple[int, bool, int]:
    source = record["source"]
    place = _SOURCES.index(source) if source in _SOURCES else len(_SOURCES)
    return MODEL_KINDS.index(record["kind"]), "std" not in record, place


def _table() -> dict[str, Any]:
    return _read("published_scores.json")


@cache
def _read(name: str) -> dict[str, Any]:
    return json.loads((files("paligemma.tasks") / "data" / name).read_text(encoding="utf-8"))
