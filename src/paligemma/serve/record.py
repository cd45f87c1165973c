"""What is known of one request beside its answer: for its line in the log, and for the metrics."""

from __future__ import annotations

import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_SANE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(kw_only=True)
class Record:
    """One request; never with its prompt, its pictures or its key.

    Attributes:
        request_id: as the client named it, where that is harmless, or made here.
        client: name of its key, else its address.
        arrived: by the monotonic clock, as all times here.
        route: template of the path, as "/v1/models/{name}"; "other" where no route is there.
        code: status of the answer; 499 where the client went away before there was one.
        queued_s: time that its questions waited for their place.
        decoded_s: time that reading its pictures took.
        first_token, last_token: when they were written.
    """

    request_id: str
    client: str = "unknown"
    arrived: float = field(default_factory=time.monotonic)
    method: str = ""
    route: str = "other"
    code: int = 499
    model: str | None = None
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    queued_s: float | None = None
    decoded_s: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    @classmethod
    def of(cls, given_id: str | None, method: str) -> Record:
        """The record of a request that arrives now."""
        is_sane = given_id is not None and _SANE_ID.fullmatch(given_id)
        name = given_id if given_id is not None and is_sane else f"req-{uuid.uuid4().hex}"
        return cls(request_id=name, method=method)

    @property
    def took_s(self) -> float:
        """Time since it arrived."""
        return time.monotonic() - self.arrived

    def line(self) -> dict[str, Any]:
        """What the log says."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": self.request_id,
            "client": self.client,
            "method": self.method,
            "route": self.route,
            "code": self.code,
            "ms": round(self.took_s * 1000, 1),
        }
        if self.model is not None:
            line |= {
                "model": self.model,
                "queue_ms": None if self.queued_s is None else round(self.queued_s * 1000, 1),
                "prompt_tokens": self.num_prompt_tokens,
                "completion_tokens": self.num_tokens,
            }
        return line


# Of the request that the running task answers.
current: ContextVar[Record | None] = ContextVar("current", default=None)
