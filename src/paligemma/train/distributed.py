"""Several processes that train one model, as torchrun starts them.

Each computes its share of every batch; gradients are summed, so a run of any number of processes is
the run of one. Without torchrun there is one process, and nothing here communicates.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paligemma.errors import ConfigError, PaliGemmaError, RunError
from paligemma.train.packing import share

Result = TypeVar("Result")

# How the backends say that they have lost another process.
_GONE = re.compile(r"connect|reset by peer|closed|timed? ?out|aborted", re.IGNORECASE)

# Longest wait for another process outside of a step, such as for one that measures.
_MAX_WAIT = timedelta(hours=2)
# Longest wait for all processes to start.
_MAX_JOIN = timedelta(minutes=10)
# Elements of gradients that are summed at once: 64 MB of float32.
_BUCKET = 1 << 24


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: number of this one; the first alone writes, logs and shows bars.
        size: how many there are.
        device: where what they exchange lies.
        group: what they exchange it over; None is what `joined` made.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    group: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def apart(self) -> World:
        """The same processes on the CPU, for a second thread of each: both may exchange at once."""
        if self.size == 1:
            return self
        with _together():
            group = dist.new_group(backend="gloo", timeout=_MAX_WAIT)
        return World(self.rank, self.size, group=group)

    def share(self, number: int) -> range:
        """The places of this process's contiguous share of some rows."""
        return share(number, self.rank, self.size)

    def on_first(self, work: Callable[[], Result]) -> Result:
        """What the first process gets from some work that it alone does; all wait for it.

        Raises:
            Exception: in every process, what the work raised.
        """
        if self.size == 1:
            return work()
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told[0] = work()
            except Exception as error:
                with _together():
                    dist.broadcast_object_list(
                        [None, _plain(error)], device=torch.device(self.device), group=self.group
                    )
                raise
        with _together():
            dist.broadcast_object_list(told, device=torch.device(self.device), group=self.group)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def gathered(self, own: list[Result]) -> list[Result]:
        """The lists of all processes, one after the other, in every process."""
        if self.size == 1:
            return own
        lists: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(lists, own, group=self.group)
        return [one for some in lists for one in some]

    def summed(self, values: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        """Scalars, equally named in every process, added up over all."""
        held = {name: torch.as_tensor(value) for name, value in values.items()}
        if self.size == 1:
            return held
        flat = torch.stack([x.detach().to(self.device, torch.float64) for x in held.values()])
        with _together():
            dist.all_reduce(flat, group=self.group)
        return dict(zip(held, flat, strict=True))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of whole parameters over all processes; a missing one is zero."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (
                bucket[0].dtype != parameter.grad.dtype
                or sum(x.numel() for x in bucket) + parameter.grad.numel() > _BUCKET
            ):
                self._sum(bucket)
                bucket = []
            bucket.append(parameter.grad)
        self._sum(bucket)

    @torch.no_grad()
    def _sum(self, bucket: list[Tensor]) -> None:
        if not bucket:
            return
        flat = torch.cat([x.reshape(-1) for x in bucket])
        with _together():
            dist.all_reduce(flat, group=self.group)
        pieces = flat.split([x.numel() for x in bucket])
        for own, piece in zip(bucket, pieces, strict=True):
            own.copy_(piece.view_as(own))


def world() -> World:
    """The processes that this one works with; itself alone outside of `joined`."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    on_gpu = dist.get_backend() == "nccl"
    device = f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu"
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def joined(device: str | None = None) -> Iterator[str | None]:
    """Work with the processes that torchrun started beside this one, until the block ends.

    Args:
        device: as in `LoadOptions`; "cuda" is the GPU of this process.

    Yields:
        The device of this process, named as `device` is.

    Raises:
        ConfigError: the environment names no process, or there are fewer GPUs than processes.
        RunError: another process ended.
    """
    number, rank = _stated("WORLD_SIZE", 1), _stated("RANK", 0)
    if number < 1 or not 0 <= rank < number:
        raise ConfigError(
            "torchrun states how many processes there are and which one this is, got WORLD_SIZE "
            f"{number} and RANK {rank}; remove both from the environment, or start with torchrun"
        )
    if number == 1 or dist.is_initialized():
        yield device
        return
    on_gpu = device == "cuda" or (device is None and torch.cuda.is_available())
    if on_gpu:
        local = _stated("LOCAL_RANK", 0)
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"every process needs a GPU of its own, got process {local} and "
                f"{torch.cuda.device_count()} GPUs; start fewer, or name --device cpu"
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    with _together():
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=_MAX_JOIN)))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store, rank=rank, world_size=number, timeout=_MAX_WAIT,
        )  # fmt: skip
    if not world().is_first:
        logging.getLogger("paligemma").setLevel(logging.ERROR)
    try:
        with _together():
            yield device
    except BaseException:
        if not on_gpu:  # NCCL would wait for the others.
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _stated(name: str, otherwise: int) -> int:
    """A whole number of the environment."""
    text = os.environ.get(name) or str(otherwise)
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be a whole number, got {text!r:.40}") from error


@contextmanager
def _together() -> Iterator[None]:
    """Say in words that another process is gone."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, dist.DistError) or _GONE.search(str(error)):
            raise RunError(
                "all processes of a run end together, and another one ended or does not answer; "
                "its own message says why, and the same command goes on from the last checkpoint"
            ) from error
        if "environment variable" in str(error):
            raise ConfigError(f"several processes are started by torchrun: {error}") from error
        raise


def _plain(error: Exception) -> Exception:
    """An error that every process can be told."""
    return error if isinstance(error, PaliGemmaError) else RunError(str(error))
