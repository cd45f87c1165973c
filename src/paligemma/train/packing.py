"""Which rows of a batch are computed together, and by which process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RowSize:
    """What a row takes.

    Attributes:
        pictures: number of its pictures.
        tokens: of its text and its pictures.
    """

    pictures: int
    tokens: int = 0


@dataclass(frozen=True)
class Part:
    """Rows of a batch, by their places in it, that are computed together.

    Attributes:
        places: of rows with equally many pictures.
        counts: whether it is part of the update; one that is not keeps this process in step.
    """

    places: tuple[int, ...]
    counts: bool = True


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a batch is split; rows keep their order within those of as many pictures.

    Attributes:
        micro_size: most rows a part; None sets no bound.
        max_tokens: most tokens a part, padding included; a longer row is a part of its own.
        rank: number of this process.
        world_size: number of processes, each of which takes a contiguous share.
        aligned: whether all processes need as many parts with pictures, and without, as each
            other: what is split over processes is only computed by all at once.
    """

    micro_size: int | None = None
    max_tokens: int | None = None
    rank: int = 0
    world_size: int = 1
    aligned: bool = False

    def parts(self, rows: Sequence[RowSize]) -> list[Part]:
        """The parts of a batch that this process computes, at least one."""
        own = self._parts_of(self.rank, rows)
        if self.aligned:
            of_all = [self._parts_of(rank, rows) for rank in range(self.world_size)]
            counts = [[len(one) for one in _by_kind(parts, rows)] for parts in of_all]
            filled: list[Part] = []
            for kind, some in enumerate(_by_kind(own, rows)):
                missing = max(count[kind] for count in counts) - len(some)
                filler = next((k for k, row in enumerate(rows) if bool(row.pictures) == kind), 0)
                filled += [*some, *[Part((filler,), counts=False)] * missing]
            own = filled
        return own or [Part((0,), counts=False)]

    def _parts_of(self, rank: int, rows: Sequence[RowSize]) -> list[Part]:
        own = share(len(rows), rank, self.world_size)
        parts: list[Part] = []
        for pictures in sorted({rows[place].pictures for place in own}):
            part: list[int] = []
            for place in own:
                if rows[place].pictures == pictures:
                    if part and not self._fits([*part, place], rows):
                        parts.append(Part(tuple(part)))
                        part = []
                    part.append(place)
            parts.append(Part(tuple(part)))
        return parts

    def _fits(self, part: Sequence[int], rows: Sequence[RowSize]) -> bool:
        if self.micro_size is not None and len(part) > self.micro_size:
            return False
        longest = max(rows[place].tokens for place in part)
        return self.max_tokens is None or len(part) * longest <= self.max_tokens


def share(number: int, rank: int, size: int) -> range:
    """The places of a process's contiguous share of some rows."""
    return range(number * rank // size, number * (rank + 1) // size)


def _by_kind(parts: Sequence[Part], rows: Sequence[RowSize]) -> list[list[Part]]:
    """Parts of text alone, and parts with pictures."""
    return [
        [one for one in parts if bool(rows[one.places[0]].pictures) == kind]
        for kind in (False, True)
    ]
