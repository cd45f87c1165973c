"""What labels rows: a model, or a stand-in; nothing here needs one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paligemma.example import Example
from paligemma.jobs.labelling.records import Record


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row that got no answer.

    Attributes:
        reason: a sentence.
    """

    reason: str


class Labeller(Protocol):
    """Something that labels examples; the same protocol as `jobs.answerer.Answerer`, with records
    in the place of predictions."""

    def settings(self) -> Mapping[str, Any]: ...

    def read(self, examples: Sequence[Example]) -> Any: ...

    def answer(self, examples: Sequence[Example], prepared: Any) -> list[Record | Refused]: ...
