"""Recipes that are not of one benchmark: the stages of pre-training, and one for any task.

Values that were never published are marked as ours; every value can be replaced by an option.
Source: `stage3_simple_recipe` and `paligemma2` of `tasks/data/transfers.json`; arXiv:2407.07726,
sections 3.2 and 5.4; arXiv:2412.03555, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from paligemma.config import PaliGemmaConfig, release_of
from paligemma.errors import ConfigError
from paligemma.tasks.published import learning_rate_sweep

OURS = "ours"
PUBLISHED_LR = "published"
_P1, _P2 = "PaliGemma", "PaliGemma 2"
_PAPERS = f"{_P1}, {_P2}"
# Peak learning rate of pre-training, and PaliGemma 2's factors on it by size.
PEAK_LR = 2e-5
LR_FACTORS = {"3b": 0.5, "10b": 0.25, "28b": 0.25}
# Unpublished; one batch size for all stages makes their updates one clock.
_BATCH, _TIMESCALE, _WARMUP, _VISION_WARMUP = 2048, 10_000.0, 0.01, 0.1


@dataclass(frozen=True)
class Chosen:
    """One value of a recipe, and where it comes from: a publication, or `OURS`."""

    value: Any
    source: str


def _stage(size_px: int, examples: int, text_len: int, start: int = 0) -> Mapping[str, Chosen]:
    # In a later stage both warm-ups lie behind: they are updates of the first one.
    first = 1_000_000_000 // _BATCH
    warmup, tower = (_WARMUP, _VISION_WARMUP)
    if start:
        warmup, tower = round(_WARMUP * first), round(_VISION_WARMUP * first)
    return MappingProxyType(
        {
            "size_px": Chosen(size_px, _P1),
            "examples": Chosen(examples, _PAPERS),
            "text_len": Chosen(text_len, _P1),
            "lora": Chosen(None, _P1),
            "lr": Chosen(PEAK_LR, _P2),
            "schedule": Chosen("rsqrt", _P1),
            "timescale": Chosen(_TIMESCALE, OURS),
            "schedule_start": Chosen(start, OURS if start else _P1),
            "warmup_percent": Chosen(warmup, OURS),
            "warmups": Chosen((("vision", tower),), OURS),
            "batch_size": Chosen(_BATCH, OURS),
            "wd": Chosen(0.0, OURS),
            "label_smoothing": Chosen(0.0, OURS),
            "dropout": Chosen(0.0, OURS),
        }
    )


RECIPES: Mapping[str, Mapping[str, Chosen]] = MappingProxyType(
    {
        "stage1": _stage(224, 1_000_000_000, 128),
        "stage2a": _stage(448, 50_000_000, 512, start=1_000_000_000 // _BATCH),
        "stage2b": _stage(896, 10_000_000, 512, start=1_050_000_000 // _BATCH),
        "simple": MappingProxyType(
            {
                "lora": Chosen(None, _P1),
                "lr": Chosen(1e-5, _P1),
                "batch_size": Chosen(256, _P1),
                "epochs": Chosen(10.0, f"{_P1}: at most 10, tuned"),
                "schedule": Chosen("cosine", _P1),
                "warmup_percent": Chosen(0.05, f"{_P1}: as the transfers"),
                "wd": Chosen(0.0, _P1),
                "label_smoothing": Chosen(0.0, _P1),
                "dropout": Chosen(0.0, _P1),
            }
        ),
    }
)


def find_recipe(name: str) -> Mapping[str, Chosen]:
    """A recipe by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"a recipe is one of {', '.join(RECIPES)}, got {name!r:.80}")
    return RECIPES[name]


def recipe_values(
    name: str,
    config: PaliGemmaConfig | None = None,
    *,
    batch_size: int | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The values of a recipe as fields of `Recipe`, for a model and a batch size.

    Args:
        config: of the model, whose size decides the learning rate of a stage.
        batch_size: rows an update, in the place of the table's; a stage keeps its examples.
        before: recipe of the run that made the model. A later stage goes on with its schedule, if
            it has one without end, where the table assumes the earlier stages as published.
    """
    values = {key: one.value for key, one in find_recipe(name).items()}
    examples = values.pop("examples", None)
    if examples is not None:
        values["steps"] = max(1, examples // (batch_size or values["batch_size"]))
        values["lr"] *= _lr_factor(config)
        if values["schedule_start"] and before is not None:
            values |= _continued(before)
    return values


def recipe_lines(name: str) -> list[str]:
    """The table of a recipe in lines for people."""
    table = find_recipe(name)
    shown = {key: _shown(one.value) for key, one in table.items()}
    a, b = max(map(len, shown)), max(map(len, shown.values()))
    lines = [f"{key:{a}}  {shown[key]:{b}}  {one.source}" for key, one in table.items()]
    if "examples" in table:
        factors = ", ".join(f"{size.upper()} x{factor}" for size, factor in LR_FACTORS.items())
        lines.append(f"{_P2} multiplies lr: {factors}")
    return lines


def swept_lr(transfer: str, config: PaliGemmaConfig) -> tuple[float, list[str]]:
    """The learning rate of PaliGemma 2's sweep for a transfer and the size of a model.

    Where a transfer is measured on several sets, the highest mean of their figures decides; of
    equal rates the smallest is taken.

    Returns:
        The learning rate, and the figures by which it was chosen in lines for people.

    Raises:
        ConfigError: the model is no PaliGemma 2, or the sweep has no such transfer or size.
    """
    release = release_of(config)
    if release is None or release.family != _P2:
        raise ConfigError(
            f"the published sweep is of {_P2} in 3B, 10B and 28B, this model is none of them; "
            "give lr as a number"
        )
    size = release.size.upper()
    rates, rows = learning_rate_sweep(transfer, size)
    if not rows:
        raise ConfigError(
            f"the published sweep has no figures of {transfer} for {size}; give lr as a number"
        )
    means = [sum(column) / len(rows) for column in zip(*rows.values(), strict=True)]
    best = max(means)
    tied = [rate for rate, mean in zip(rates, means, strict=True) if best - mean < 1e-9]
    width = max(map(len, rows))
    lines = [f"{'lr':{width}}  " + "  ".join(f"{rate:>5g}" for rate in rates)]
    lines += [
        f"{name:{width}}  " + "  ".join(f"{score:5.1f}" for score in scores)
        for name, scores in rows.items()
    ]
    words = f"chosen for {size}: {tied[0]:g}"
    if len(tied) > 1:
        words += f", the smallest of equal ones ({', '.join(f'{rate:g}' for rate in tied)})"
    return tied[0], [*lines, words]


def _continued(before: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule after a run, with warm-ups as the updates that they were."""
    if before.get("schedule") != "rsqrt" or not before.get("steps"):
        return {}
    start = before["schedule_start"] + before["steps"]

    def updates(span: float) -> float:
        return span if span >= 1 else round(span * start)

    return {
        "schedule_start": start,
        "timescale": before["timescale"],
        "warmup_percent": updates(before["warmup_percent"]),
        "warmups": tuple((part, updates(span)) for part, span in before["warmups"]),
    }


def _lr_factor(config: PaliGemmaConfig | None) -> float:
    release = None if config is None else release_of(config)
    if release is None or release.family != _P2:
        return 1.0
    return LR_FACTORS[release.size]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"{part}={number:g}" for part, number in value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
