"""Batches by step number.

The batch of any step can be made again, so a killed run resumes on the data it would have seen.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Made = TypeVar("Made")
MadeOnly = TypeVar("MadeOnly", covariant=True)


@dataclass(frozen=True)
class MicroBatches(Generic[Made]):
    """A batch in parts that fit into memory; their gradients are added before the update.

    Attributes:
        parts: what the objective is called with, one after the other.
        shares: factor on the loss of each part; together 1, over all processes, where the loss
            is a mean.
        places: of each part's first row in the whole batch, by which dropout is drawn.
    """

    parts: tuple[Made, ...]
    shares: tuple[float, ...]
    places: tuple[int, ...] = ()


class BatchSource(Protocol[MadeOnly]):
    """Something that makes the batch of any step, independently of all other steps."""

    def batch(self, step: int) -> MadeOnly: ...


class _Steps(Dataset[Made]):
    def __init__(self, source: BatchSource[Made], first: int, total: int) -> None:
        self.source, self.first, self.total = source, first, total

    def __len__(self) -> int:
        return self.total - self.first

    def __getitem__(self, index: int) -> Made:
        return self.source.batch(self.first + index)


def _prepare_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # A terminal and a supervisor send these to all processes; the loop still needs its batch, to
    # end on a checkpoint. A worker ends when the loop does.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def batches(source: BatchSource[Made], first: int, total: int, num_workers: int) -> Iterator[Made]:
    """Yield the batches of the steps `first`..`total - 1` in order.

    Args:
        first: first step, counted from 0.
        total: step before which the batches end.
        num_workers: processes that make batches ahead of need; 0 makes them in this process.
    """
    loader = DataLoader(
        _Steps(source, first, total),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_prepare_worker,
        prefetch_factor=4 if num_workers else None,
    )
    return iter(loader)
