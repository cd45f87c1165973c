"""Objects of segment prompts that came as boxes alone, counted over one answer or many."""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class MissingMasks:
    """A count that ends in one sentence, which is a warning at the end of a `with` block.

    Attributes:
        num_objects: objects of segment prompts.
        num_missing: those without a mask.
        is_of_several: whether a prompt with such an object names several labels.
    """

    num_objects: int = 0
    num_missing: int = 0
    is_of_several: bool = False

    def __enter__(self) -> MissingMasks:
        return self

    def __exit__(self, *raised: object) -> None:
        self.warn()

    def add(self, num_objects: int, num_missing: int, *, num_labels: int) -> None:
        """Count the objects of one answer.

        Args:
            num_labels: that its prompt names.
        """
        self.num_objects += num_objects
        self.num_missing += num_missing
        self.is_of_several |= num_missing > 0 and num_labels > 1

    def include(self, other: MissingMasks) -> None:
        """Add the count of other answers."""
        self.num_objects += other.num_objects
        self.num_missing += other.num_missing
        self.is_of_several |= other.is_of_several

    @property
    def sentence(self) -> str:
        """How many there are, and what helps."""
        advice = "--constrain (constrain=True) makes the model write one with each"
        if self.is_of_several:
            advice = f"ask for one label at a time; {advice}"
        return f"{self.num_missing:,} of {self.num_objects:,} objects came without a mask; {advice}"

    def warn(self) -> None:
        """Warn of them, where there are some."""
        if self.num_missing:
            logger.warning("%s", self.sentence)
