"""The devices that a user names."""

from __future__ import annotations

import reprlib

import torch

from paligemma.errors import ConfigError


def find_devices(device: str | torch.device | None) -> list[torch.device]:
    """The devices that a name stands for, as "cuda:0,cuda:1" for two.

    Raises:
        ConfigError: torch does not find one, or they do not go together.
    """
    if device is None:
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    names = [part.strip() for part in device.split(",")] if isinstance(device, str) else [device]
    found = [_device(name) for name in names]
    if len(set(found)) < len(found) or len({one.type for one in found}) > 1:
        raise ConfigError(
            f"a model is divided over different devices of one kind, got {device!s:.100}; name "
            "each once, as in cuda:0,cuda:1"
        )
    return found


def _device(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
    except Exception as error:  # torch has many ways to say that a device is not there
        said = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise ConfigError(
            "the device must be one that torch finds here, such as cpu, got "
            f"{reprlib.repr(str(device))} ({said})"
        ) from error
    found = torch.device(device)
    if found.type == "meta":
        raise ConfigError("the device must be one that computes, such as cpu, got 'meta'")
    return found
