"""The embedded model learns to search: an adapter and ColPali's head, taught on drawn pages.

The model itself stays as it is. Pages are new in every update; those that it is measured on show
handwriting, places and words that no update has shown.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paligemma.adapt.lora import Adapter, LoraConfig, attach
from paligemma.errors import CheckpointError
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.processor import Processor
from paligemma.retrieval.colpali import embed
from paligemma.retrieval.inputs import page_batch, query_batch
from paligemma.retrieval.keeping import save_retriever
from paligemma.retrieval.losses import PairLossConfig
from paligemma.retrieval.objective import PairBatch, PairObjective
from paligemma.retrieval.presets import PRESETS, Preset
from paligemma.retrieval.scores import score_matrix
from paligemma.scenes.pages import DrawnPage, draw_page, draw_query
from paligemma.train.loop import METRICS_FILE, LoopOptions, train
from paligemma.train.optim_config import ADAPTED, OptimConfig
from paligemma.train.schedule import ScheduleConfig
from paligemma.weights.catalog import embedded_folder
from paligemma.weights.hashes import sha256

DIM = 128
NUM_HELD_OUT = 200
# Seeds of training pages; every training has its own.
_FIRST_PAGE, _PAGES_A_SEED = 20_000_000, 10_000_000
_RECORD = "training.json"


@dataclass(frozen=True, kw_only=True)
class RetrievalTraining:
    """How adapter and head are trained.

    Attributes:
        steps: number of updates of the schedule.
        stop_at: last update; None runs the whole schedule.
        num_pages: pages of an update, each of which is compared with all queries.
        queries_a_page: queries of each page.
        rank: of the adapter.
        parts: what it changes. The tower's share learns to read smaller letters than those of
            signs.
        lr: peak learning rate; it falls to zero along a cosine.
        warmup_steps: updates over which it rises.
        compute: dtype of the products; vectors are measured in float32.
        seed: of the first weights, of the pages and of their queries.
    """

    steps: int = 350
    stop_at: int | None = None
    num_pages: int = 64
    queries_a_page: int = 2
    rank: int = 8
    parts: tuple[str, ...] = ("decoder", "vision")
    lr: float = 1.5e-3
    warmup_steps: int = 100
    compute: str = "bfloat16"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PageSource:
    """Drawn pages with their queries, by step number."""

    training: RetrievalTraining
    preset: Preset
    processor: Processor

    def batch(self, step: int) -> PairBatch:
        """The batch of a step, counted from 0; equal steps give equal batches."""
        options = self.training
        first = _FIRST_PAGE + options.seed * _PAGES_A_SEED + step * options.num_pages
        size_px = self.processor.image_size_px
        pages = [draw_page(first + k, size_px=size_px) for k in range(options.num_pages)]
        rng = np.random.default_rng((options.seed, step))
        visits = [k for k in range(options.num_pages) for _ in range(options.queries_a_page)]
        return PairBatch(
            queries=query_batch(
                self.preset, self.processor, [draw_query(pages[k], rng) for k in visits]
            ),
            pages=page_batch(self.preset, self.processor, [page.image for page in pages]),
            page_of=tuple(visits),
        )


def train_retrieval(
    output: Path,
    training: RetrievalTraining | None = None,
    *,
    num_held_out: int = NUM_HELD_OUT,
    device: str | None = None,
    num_workers: int = 1,
    progress: bool = True,
) -> tuple[Path, float]:
    """Train adapter and head, or go on with their training, and write them as a folder.

    Args:
        output: folder of checkpoints and metrics; the result is written to `output/retrieval`.
        num_held_out: pages that it is measured on, see `first_share`.
        device: as in `LoadOptions`; None computes on the CPU.
        num_workers: processes that draw pages.

    Returns:
        The folder, and the share of the held-out pages that rank first.

    Raises:
        CheckpointError: the result exists, or the folder holds a training with other numbers or of
            another version of the model. Nothing is trained then.
    """
    training = training or RetrievalTraining()
    result = output / "retrieval"
    if os.path.lexists(result):
        raise CheckpointError(
            f"the adapter is written to {result}, which exists; move that away or use another "
            "output folder"
        )
    asked = PaliGemma.from_pretrained("tiny", mode="exact", device=device or "cpu")
    preset = PRESETS["tiny"]
    as_drawn = replace(preset, plain_words=())  # half of the queries are in small letters
    model = asked.model
    adapter = Adapter.new(
        model, LoraConfig(rank=training.rank, parts=training.parts), seed=training.seed
    )
    attach(model, adapter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        head = nn.Linear(model.config.text.width, DIM).to(model.device)
    train(
        model,
        PairObjective(
            head,
            PairLossConfig(kind="contrastive"),
            compute_dtype=getattr(torch, training.compute),
        ),
        PageSource(training=training, preset=as_drawn, processor=asked.processor),
        OptimConfig(
            lr=training.lr,
            b2=0.98,
            schedule=(
                (
                    f"{ADAPTED}.*",
                    ScheduleConfig(decay_type="cosine", warmup_steps=training.warmup_steps),
                ),
                (".*", None),
            ),
        ),
        LoopOptions(
            total_steps=training.steps,
            stop_at=training.stop_at,
            log_every=max(1, min(50, training.steps // 20)),
            save_every=250,
            num_workers=num_workers,
            progress=progress,
            keeps_frozen=False,
        ),
        output / "train",
        # A run may end earlier or later than it was begun to.
        settings={
            **asdict(replace(training, stop_at=None)),
            "preset": as_drawn.to_json(),
            "base": sha256(embedded_folder() / "model.safetensors"),
        },
    )
    # Measured before anything is kept: where it is killed here, the same command goes on.
    pages = [draw_page(seed, split="heldout") for seed in range(num_held_out)]
    found = first_share(model, head, asked.processor, preset, pages)
    record = {
        **_record(output, training, model.device),
        "held_out": {"pages": num_held_out, "first": found},
    }
    folder = save_retriever(
        adapter,
        model,
        head,
        result,
        base="tiny",
        preset=preset,
        dtype=torch.float16,
        beside={_RECORD: record},
    )
    return folder, found


@torch.inference_mode()
def first_share(
    model: PaliGemmaModel,
    head: nn.Module,
    processor: Processor,
    preset: Preset,
    pages: Sequence[DrawnPage],
) -> float:
    """Share of pages that rank first for their own query among all of them; ties are failures."""
    read, asked = [], []
    for page in pages:
        (values,), _ = embed(model, head, page_batch(preset, processor, [page.image]))
        read.append(values.cpu())
        (values,), _ = embed(model, head, query_batch(preset, processor, [page.query]))
        asked.append(values.cpu())
    scores = score_matrix(asked, read)
    own = scores.diagonal().clone()
    others = scores.fill_diagonal_(-torch.inf).amax(dim=1)
    return float((own > others).float().mean())


def _record(output: Path, training: RetrievalTraining, device: torch.device) -> dict[str, Any]:
    """What was run, its curve, and the machine."""
    lines = [json.loads(x) for x in (output / "train" / METRICS_FILE).read_text().splitlines()]
    return {
        "command": "paligemma train retrieval",
        **asdict(training),
        "wall_minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        "curve": [{key: line[key] for key in ("step", "loss", "first")} for line in lines],
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
    }
