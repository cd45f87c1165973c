"""What a fast route for decoding was made from, to notice a decoder that has changed since."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import is_
from typing import Any


class Unfit(Exception):
    """The decoder has a part that the route cannot compute; the text says which."""


@dataclass(frozen=True)
class Seen:
    """Every place that was looked at: mappings, a name in each, and what was there."""

    places: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    found: list[object] = field(default_factory=list)

    def look(self, place: dict[str, Any], name: str) -> Any:
        """What a mapping holds under a name, noted; None for nothing."""
        found = place.get(name)
        self.places.append(place)
        self.names.append(name)
        self.found.append(found)
        return found

    def is_there(self) -> bool:
        """Whether every place still holds the same object."""
        # Hundreds of places a step; a loop in Python takes four times as long.
        return all(map(is_, map(dict.get, self.places, self.names), self.found))
