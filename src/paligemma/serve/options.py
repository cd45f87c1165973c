"""Every bound and switch of the server, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paligemma.errors import ConfigError

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How much a server takes at once, how long it waits, and what it may reach.

    Attributes:
        max_rows: answers that are written side by side.
        max_waiting: requests that may wait for a place; more are refused with 429.
        max_waiting_of_client: of these, of one key or address.
        max_answers: answers of one request, `n` of a chat.
        max_new_tokens: bound that a request may ask for.
        max_pictures: pictures of one request.
        max_pixels: largest picture, by its header, before it is decoded.
        max_body_bytes: largest body of a request, counted while it arrives.
        body_s: time in which a body must have arrived.
        queue_s: time that a request may wait for its place; 503 afterwards.
        answer_s: time of a request from its arrival; 504 afterwards.
        drain_s: time that running requests get after SIGTERM.
        kept_picture_bytes: pictures as they were sent, kept to be asked again by their `image_id`.
        max_model_bytes: weights of models that are kept at once; those not asked for last go first.
        num_readers: threads that decode pictures.
    """

    max_rows: int = 16
    max_waiting: int = 64
    max_waiting_of_client: int = 32
    max_answers: int = 8
    max_new_tokens: int = 1024
    max_pictures: int = 8
    max_pixels: int = 50_000_000
    max_body_bytes: int = 20 * MIB
    body_s: float = 10.0
    queue_s: float = 60.0
    answer_s: float = 300.0
    drain_s: float = 30.0
    kept_picture_bytes: int = 256 * MIB
    max_model_bytes: int = 64 << 30
    num_readers: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"{field.name} must be above 0, got {value}")
