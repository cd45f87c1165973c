"""What labelling costs: seconds and bytes a row, from a pilot run or from a card's figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paligemma.adapt.quant import Quant
from paligemma.bench.costs import prefill_operations, vision_operations
from paligemma.config import PaliGemmaConfig
from paligemma.errors import ConfigError, DataError
from paligemma.jobs.labelling.folder import BATCH, LabelFolder
from paligemma.jobs.run_folder import read_json_object
from paligemma.model.kv_cache import stored_bytes
from paligemma.weights.sizes import parameter_bytes

# Bytes a second that a card reads from its memory, by its maker.
BANDWIDTH: Mapping[str, float] = {
    "t4-16": 0.32e12,
    "4090-24": 1.01e12,
    "l4-24": 0.30e12,
    "l40s-48": 0.86e12,
    "a100-40": 1.56e12,
    "a100-80": 2.04e12,
    "h100-80": 3.35e12,
    "h200-141": 4.80e12,
    "b200-180": 8.0e12,
}
# Share of the peak that image tower and prompt reach in batches; assumed.
_UTILISATION = 0.4
# Share of the bandwidth that a step reaches; assumed.
_READ_SHARE = 0.6
# Seconds that the host takes for a layer of a step, and for each row of it: PaliGemma 3B and
# PaliGemma 2 3B on an H100, bfloat16, batches of 1 and 32 (benchmarks/README.md).
_HOST: Mapping[bool, tuple[float, float]] = {False: (0.99e-3, 5e-6), True: (1.47e-3, 17e-6)}
# Seconds that a thread takes to read a megapixel of JPEG and resize it, and a process to start.
_READ_MEGAPIXEL = 0.012
_START = 60.0
# A row of parquet without objects, and each token of its answer, in bytes; of tiny's labels.
_ROW_BYTES, _TOKEN_BYTES = 60.0, 6.0


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """What one row costs a worker.

    Attributes:
        seconds: of a worker, all rows of a batch together divided by their number.
        spread: standard deviation of the logarithm of a part's seconds a row.
        start: seconds until a worker can begin.
        label_bytes: written, compressed as the files are.
        picture_bytes: read; None where unknown.
        quarantined: share of rows without an answer; None where unknown.
        parts: names of the steps with their seconds, for a reader.
        source: where the figures come from.
    """

    seconds: float
    spread: float
    start: float
    label_bytes: float
    picture_bytes: float | None
    quarantined: float | None
    parts: Mapping[str, float]
    source: str


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """A small run that was measured.

    Attributes:
        path: its folder.
        cost: of a row.
        num_rows: rows that were measured.
        num_workers: processes that answered at once.
        batch_size: rows asked together.
        image_size_px: side of the model's input.
        model: as the user named it, with its loading options.
    """

    path: Path
    cost: RowCost
    num_rows: int
    num_workers: int
    batch_size: int
    image_size_px: int
    model: str


def read_pilot(path: Path) -> Pilot:
    """Figures of a run of `paligemma batch`, by its log; the longest run in it counts.

    The rate is that of the time in which every worker was busy: from the first part that was done
    to the last, without the rows of the first. It is no faster than the workers computed: each has
    two parts under way, so the first ends late, and of a short run little time is left behind it.

    Raises:
        DataError: no such run, one that is damaged, or too short a one.
    """
    if not (path / BATCH).is_file():
        raise DataError(
            f"a pilot is the folder of a labelling, which holds {BATCH}, {str(path)[:200]!r} does "
            "not; name the --output of `paligemma batch`"
        )
    try:
        return _pilot(path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the record of the pilot {path} is damaged ({error!r:.200}); label its rows again"
        ) from error


def _pilot(path: Path) -> Pilot:
    record = read_json_object(path / BATCH)
    runs: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for line in LabelFolder(path).log():
        if "processes" in line:
            runs.append((line, []))
        elif runs:
            runs[-1][1].append(line)
    run, lines = max(runs, key=lambda one: len(one[1]), default=({}, []))
    num_workers = int(run.get("processes", 1))
    num_rows = sum(one["rows"] for one in lines)
    needed = 2 * num_workers + 1
    if len(lines) < needed:
        raise DataError(
            f"a pilot needs {needed} parts or more of one run, {path} has {len(lines)}; label more "
            "rows, or in smaller parts with --part-rows"
        )
    settings = record["settings"]
    # Each worker's first part has the start of its model in it.
    first, last = lines[num_workers - 1]["at"], lines[-1]["at"]
    rows = sum(one["rows"] for one in lines[num_workers:])
    seconds = (last - first) * num_workers / max(1, rows)
    answering = sum(one["seconds"] for one in lines) / max(1, num_rows)
    if not seconds > 0:
        raise DataError(
            f"a pilot needs parts that take time, {path} has its {len(lines)} parts at one moment; "
            "label more rows"
        )
    seconds = max(seconds, answering)
    each = [one["seconds"] / max(1, one["rows"]) for one in lines if one["rows"]]
    logs = [math.log(max(one, 1e-9)) for one in each]
    # Options that were left out are written as "None" and "False".
    stated = {k: v for k, v in record.get("loading", {}).items() if v not in ("None", "False")}
    loading = " ".join(f"{k}={v}" for k, v in stated.items())
    cost = RowCost(
        seconds=seconds,
        spread=min(1.0, statistics.stdev(logs)) if len(logs) > 2 else 0.0,
        start=max(0.0, first - lines[num_workers - 1]["rows"] * seconds),
        label_bytes=sum(one["bytes"] for one in lines) / num_rows,
        picture_bytes=None,
        quarantined=sum(one["quarantined"] for one in lines) / num_rows,
        parts={"mean over parts": statistics.fmean(each)},
        source=f"measured in {path}: {num_rows:,} rows, workers: {num_workers}",
    )
    return Pilot(
        path=path,
        cost=cost,
        num_rows=num_rows,
        num_workers=num_workers,
        batch_size=settings["batch_size"],
        image_size_px=settings["labeller"].get("image_size_px", 0),
        model=" ".join(filter(None, [record.get("model", ""), loading])),
    )


def card_cost(
    config: PaliGemmaConfig,
    *,
    card: str,
    flops: float,
    quant: Quant | None = None,
    batch_size: int = 32,
    num_prompt: int = 16,
    num_answer: int = 24,
    megapixels: float = 1.0,
    num_threads: int = 2,
) -> RowCost:
    """Estimate a row on a card; nothing is run.

    Args:
        config: sizes of the model.
        card: name in `BANDWIDTH`.
        flops: dense bfloat16 operations a second of the card.
        num_prompt, num_answer: tokens of a prompt and of an answer.
        megapixels: of a picture as it is stored.
        num_threads: threads of a worker that read pictures.

    Raises:
        ConfigError: no such card.
    """
    if card not in BANDWIDTH:
        raise ConfigError(f"a card must be one of {', '.join(BANDWIDTH)}, got {card!r:.80}")
    sizes = parameter_bytes(config, quant, torch.bfloat16, packs=False)
    weights = sum(one.stays for name, one in sizes.items() if name.startswith("text."))
    text = config.text
    slots = config.num_image_tokens + num_prompt + num_answer / 2
    kv_bytes = 2 * text.depth * slots * text.num_kv_heads * stored_bytes(
        text.head_dim, torch.bfloat16
    )  # fmt: skip
    fixed, a_row = _HOST[text.attn_softcap is not None]
    host = text.depth * (fixed + a_row * batch_size)
    reading = (weights + batch_size * kv_bytes) / (BANDWIDTH[card] * _READ_SHARE)
    parts = {
        "reading pictures": megapixels * _READ_MEGAPIXEL / num_threads,
        "image tower": vision_operations(config) / (flops * _UTILISATION),
        "prompt": prefill_operations(config, num_prompt) / (flops * _UTILISATION),
        "answer": num_answer * max(host, reading) / batch_size,
    }
    computing = sum(value for name, value in parts.items() if name != "reading pictures")
    return RowCost(
        seconds=max(parts["reading pictures"], computing),
        spread=0.1,
        start=_START,
        label_bytes=_ROW_BYTES + _TOKEN_BYTES * num_answer,
        picture_bytes=None,
        quarantined=None,
        parts=parts,
        source=f"estimated for {card}, not measured: a pilot run is surer",
    )
