"""Every bound and switch of the server, in one place."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_type_hints

from paligemma.errors import ConfigError

MIB = 1 << 20
_BYTES = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)b?\s*", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How much a server takes at once, how long it waits, and what it may reach.

    Attributes:
        max_rows: answers that are written side by side.
        max_waiting: requests that may wait for a place; more are refused with 429.
        max_waiting_of_client: of these, of one key or address.
        max_connections: of clients, whether they ask or not.
        max_requests: requests that are inside at once, from their first byte.
        max_requests_of_client: of these, of one key or address.
        requests_per_minute: of one key or address; None is without a bound.
        max_answers: answers of one request, `n` of a chat.
        max_new_tokens: bound that a request may ask for.
        max_prompt_tokens: of one prompt, whose reading holds up all others.
        max_pictures: pictures of one request.
        max_pixels: largest picture, by its header, before it is decoded.
        max_body_bytes: largest body of a request, counted while it arrives.
        max_bodies_bytes: of all bodies that are held at once.
        body_s: time in which a body must have arrived.
        send_s: time in which a client must take 64 KiB of an answer that waits for it.
        queue_s: time that a request may wait for its place; 503 afterwards.
        answer_s: time of a request from its arrival; 504 afterwards.
        drain_s: time that running requests get after SIGTERM.
        allowed_hosts: names in a request's Host and Origin; None takes any.
        remote_hosts: from which pictures are fetched, see `Remote`.
        fetch_s: time in which one must be there.
        media_roots: folders below which files may be named.
        kept_picture_bytes: pictures as they were sent, kept to be asked again by their `image_id`.
        max_model_bytes: weights of models that are kept at once; those not asked for last go first.
        num_readers: threads that decode pictures.
    """

    max_rows: int = 16
    max_waiting: int = 64
    max_waiting_of_client: int = 32
    max_connections: int = 512
    max_requests: int = 128
    max_requests_of_client: int = 64
    requests_per_minute: int | None = None
    max_answers: int = 8
    max_new_tokens: int = 1024
    max_prompt_tokens: int = 1024
    max_pictures: int = 8
    max_pixels: int = 50_000_000
    max_body_bytes: int = 20 * MIB
    max_bodies_bytes: int = 512 * MIB
    body_s: float = 10.0
    send_s: float = 30.0
    queue_s: float = 60.0
    answer_s: float = 300.0
    drain_s: float = 30.0
    allowed_hosts: tuple[str, ...] | None = None
    remote_hosts: tuple[str, ...] = ()
    fetch_s: float = 10.0
    media_roots: tuple[Path, ...] = ()
    kept_picture_bytes: int = 256 * MIB
    max_model_bytes: int = 64 << 30
    num_readers: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"{field.name} must be above 0, got {value}")


@functools.cache
def numbers() -> dict[str, tuple[Callable[[Any], float], float | None]]:
    """The bounds that are numbers, by name: how their text is read, and their defaults."""
    defaults = {field.name: field.default for field in fields(ServerOptions)}
    return {
        name: (_reader(name, kind), cast(Any, defaults[name]))
        for name, kind in get_type_hints(ServerOptions).items()
        if kind in (int, float, int | None)
    }


def _reader(name: str, kind: Any) -> Callable[[Any], float]:
    if name.endswith("_bytes"):
        return num_bytes
    return float if kind is float else int


def read_number(name: str, value: str | float) -> float:
    """The number of a bound.

    Raises:
        ConfigError: there is no such bound, or it is no number above 0.
    """
    known = numbers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"there is no bound {name[:50]!r}; {hint}")
    try:
        found = known[name][0](value)
    except (ValueError, TypeError):
        found = -1
    if not 0 < found < 1 << 62:
        raise ConfigError(f"{name} is a number above 0, as NAME=NUMBER, got {value!r:.100}")
    return found


def num_bytes(text: str | int, *, lowest: int = 1) -> int:
    """The number of bytes of "12GB", "500M" or "1000000".

    Raises:
        ConfigError: none, or one below the lowest.
    """
    found = _BYTES.fullmatch(str(text))
    number = int(float(found[1]) * _UNITS[found[2].lower()]) if found else -1
    if not lowest <= number < 1 << 62:
        raise ConfigError(f"a number of bytes is written as 12GB or 500MB, got {text!r:.50}")
    return number
