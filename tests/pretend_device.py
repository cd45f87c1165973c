"""A CUDA device that only pretends to be one: the CPU's numbers, and a GPU's errors of placement.

Tensors of the device are CPU tensors of another class. Within `PretendDevice` every call of torch
is looked at first: it keeps track of which tensors lie on the device, and it refuses a call that a
GPU would refuse, or that would silently copy a tensor from the host at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda", 0)
_PROPERTIES: dict[Any, Any] = {
    torch.Tensor.device.__get__: DEVICE,
    torch.Tensor.is_cuda.__get__: True,
    torch.Tensor.is_cpu.__get__: False,
    torch.Tensor.get_device: DEVICE.index,
}
# Calls whose purpose is to move data between host and device.
_MOVES = {torch.Tensor.to, torch.Tensor.copy_, torch.Tensor.cpu, torch.Tensor.cuda}
_HOST_ONLY = {torch.Tensor.numpy, torch.Tensor.__array__}


class PlacementError(RuntimeError):
    """A call with tensors of the host and of the device."""


class OnDevice(torch.Tensor):
    """A tensor of the pretended device."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Generator(torch.Generator):
    """A generator that may belong to the pretended device; it draws the CPU's numbers."""

    is_on_device: bool

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        wanted = torch.device(device)
        generator = super().__new__(cls, device=_host_of(wanted))
        generator.is_on_device = wanted.type == DEVICE.type
        return generator

    @property
    def device(self) -> torch.device:
        return DEVICE if self.is_on_device else super().device


class _Event:
    """An event of the pretended device, where everything is done at once."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class PretendDevice(TorchFunctionMode):
    """Calls of torch within it may name the device "cuda".

    Attributes:
        num_calls: calls whose result lies on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = list(_tensors_in((args, kwargs)))
        on_device = [one for one in tensors if isinstance(one, OnDevice)]
        if on_device and func in _PROPERTIES:
            return _PROPERTIES[func]
        if func not in _MOVES:
            _require_one_place(func, tensors, on_device, kwargs.get("generator"))
        args, kwargs, named = _without_device(func, args, kwargs)
        result = func(*args, **kwargs)
        if func is torch.Tensor.cpu:
            named = torch.device("cpu")
        if func is torch.Tensor.cuda:
            named = DEVICE
        place = named or (DEVICE if _is_led_by_device(func, args, on_device) else None)
        if place is not None and place.type == DEVICE.type:
            self.num_calls += 1
            return _as(OnDevice, result)
        return _as(torch.Tensor, result) if place is not None and place.type == "cpu" else result


@contextmanager
def pretend_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendDevice]:
    """The mode, with generators, events and autocast that accept the pretended device."""
    real_autocast, real_enabled = torch.autocast, torch.is_autocast_enabled

    def host(device_type: str) -> str:
        return "cpu" if device_type == DEVICE.type else device_type

    with monkeypatch.context() as patch, PretendDevice() as mode:
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch, "autocast", lambda kind, **more: real_autocast(host(kind), **more))
        patch.setattr(torch, "is_autocast_enabled", lambda kind: real_enabled(host(kind)))
        yield mode


def _require_one_place(
    func: Callable[..., Any],
    tensors: list[Tensor],
    on_device: list[Tensor],
    generator: torch.Generator | None,
) -> None:
    name = getattr(func, "__name__", str(func))
    if on_device and func in _HOST_ONLY:
        raise PlacementError(f"{name} reads a tensor of the device; move it to the CPU first")
    # A number may come from the host, as on a GPU.
    of_host = [one for one in tensors if not isinstance(one, OnDevice) and one.ndim]
    if on_device and of_host:
        raise PlacementError(
            f"{name} got tensors of the device {[tuple(one.shape) for one in on_device]} and of "
            f"the host {[tuple(one.shape) for one in of_host]}"
        )
    is_ours = isinstance(generator, _Generator) and generator.is_on_device
    if generator is not None and is_ours != bool(on_device):
        raise PlacementError(f"{name} got a generator of {generator.device} for the other device")


def _is_led_by_device(func: Callable[..., Any], args: Any, on_device: list[Tensor]) -> bool:
    """Whether the result lies on the device where no device is named."""
    if func in _MOVES:  # The place of the tensor itself, or of the other one in `x.to(other)`.
        to_other = func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], Tensor)
        return isinstance(args[1 if to_other else 0], OnDevice)
    return bool(on_device)


def _without_device(
    func: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> tuple[Any, Any, torch.device | None]:
    """The call as the CPU can run it, and the device that it named."""
    named = kwargs.get("device")
    if named is not None:
        named = torch.device(named)
        kwargs["device"] = _host_of(named)
    changed = list(args)
    for position, one in enumerate(args[1:], start=1):
        if isinstance(one, torch.device) or (isinstance(one, str) and func in _MOVES):
            named = torch.device(one)
            changed[position] = _host_of(named)
    return tuple(changed), kwargs, named


def _host_of(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == DEVICE.type else device


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors_in(one)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _as(kind: type[Tensor], value: Any) -> Any:
    """The value with every tensor in it of that class."""
    if isinstance(value, Tensor):
        is_ours = isinstance(value, OnDevice)
        return value if is_ours == (kind is OnDevice) else value.as_subclass(kind)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)([_as(kind, one) for one in value])
    return value
