"""A model whose parameters, gradients and moments are divided among processes (FSDP2).

Each process keeps a part of the rows of every parameter in float32. A block's parameters are
gathered while it computes; gradients are summed as they are divided. Everything is applied from
outside, after blocks that are computed again and before the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def shard(model: Any) -> None:
    """Divide a model among the processes that were joined: block by block, then the rest.

    Args:
        model: a `PaliGemmaModel`, ready to be trained. It is then called with work to do on it,
            by way of `computed`, so that what belongs to no block is gathered too.
    """
    from torch.distributed.fsdp import fully_shard

    own = model.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        if isinstance(inputs[0], Tensor):
            return own(*inputs, **options)
        (work,) = inputs
        return work(model)

    model.forward = forward
    for block in (*model.vision.blocks, *model.text.blocks):
        fully_shard(block)
    fully_shard(model)
    for module in _sharded_modules(model):
        # Parts of a batch have shares of the whole batch, so their gradients are added up.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no sum with a factor


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is divided among processes."""
    return hasattr(model, "unshard")


def computed(objective: nn.Module, model: nn.Module, batch: Any) -> Any:
    """What an objective makes of a model and a batch, wherever the model's parameters lie."""
    if not is_sharded(model):
        return objective(model, batch)
    work: Callable[[nn.Module], Any] = lambda whole: objective(whole, batch)  # noqa: E731
    return model(work)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Every process has the whole model inside, to look at it; it must fit."""
    if not is_sharded(model):
        yield
        return
    modules = list(_sharded_modules(model))
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def is_divided(tensor: Tensor) -> bool:
    """Whether this process has some rows of a tensor alone (a DTensor)."""
    return hasattr(tensor, "to_local")


def own_rows(tensor: Tensor) -> Tensor:
    """What this process has of a tensor; all of one that is not divided."""
    return tensor.to_local() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def rows_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """The first row that a process keeps of `count`, and the one after its last."""
    step = -(-count // size)
    return min(count, rank * step), min(count, (rank + 1) * step)


def divided_like(template: Tensor, read: Callable[[int, int], Tensor]) -> Tensor:
    """A tensor that is divided as another one is, from those of its rows that are read.

    Args:
        template: DTensor[N, ...].
        read: the rows from one to before another.
    """
    from torch.distributed.tensor import DTensor

    assert isinstance(template, DTensor)
    mesh = template.device_mesh
    own = read(*rows_of(template.shape[0], mesh.get_local_rank(), mesh.size()))
    return DTensor.from_local(
        own.to(template.device),
        mesh,
        template.placements,
        run_check=False,
        shape=template.shape,
        stride=template.stride(),
    )


def _sharded_modules(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if is_sharded(module))
