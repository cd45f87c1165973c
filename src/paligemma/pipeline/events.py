"""What is told of an answer while it is written, by a model in this process or on a server.

Nothing here needs torch: a client has it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from paligemma.outputs.types import Detection, TextAnswer
from paligemma.outputs.words import object_json

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections


@dataclass(frozen=True, kw_only=True)
class WrittenToken:
    """One token of an answer.

    Attributes:
        text: what it adds to the text of the answer, "" where nothing or no whole character yet.
        logprob: its log-probability in the unmodified logits.
    """

    id: int
    text: str
    logprob: float

    def to_json(self) -> dict[str, Any]:
        """`{"event": "token", "id", "text", "logprob"}`."""
        return {"event": "token", "id": self.id, "text": self.text, "logprob": self.logprob}


@dataclass(frozen=True)
class CompleteObject:
    """An object whose tokens are all written."""

    detection: Detection

    def to_json(self) -> dict[str, Any]:
        """`{"event": "object"}` with the fields of a detection, see `detections_json`."""
        return {"event": "object", **object_json(self.detection)}


@dataclass(frozen=True)
class Ended:
    """The whole answer, with its scores."""

    answer: TextAnswer | Detections

    def to_json(self) -> dict[str, Any]:
        """`{"event": "end"}` with the fields of the answer's own `to_json`."""
        return {"event": "end", **self.answer.to_json()}


AnswerEvent: TypeAlias = WrittenToken | CompleteObject | Ended
