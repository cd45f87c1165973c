"""Many examples in few objects: a row is read anew each time it is asked for.

A hundred thousand examples are millions of Python objects; worker processes that were forked would
copy the memory of all of them as soon as they count references. Here they are one run of bytes.
"""

from __future__ import annotations

import pickle
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

from paligemma.example import Example

_LEVEL, _WINDOW_BYTES = 1, 32 << 10


class PackedExamples(Sequence[Example]):
    """A sequence of examples; rows are compressed with the first of them as a dictionary.

    Args:
        examples: what it holds at first.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._ends, self._bytes, self._first = array("Q"), bytearray(), b""
        for one in examples:
            self.append(one)

    def append(self, example: Example) -> None:
        """Add a row at the end."""
        stored = pickle.dumps(example, pickle.HIGHEST_PROTOCOL)
        self._first = self._first or stored[-_WINDOW_BYTES:]
        packer = zlib.compressobj(_LEVEL, zdict=self._first)
        self._bytes += packer.compress(stored) + packer.flush()
        self._ends.append(len(self._bytes))

    def keep(self, wanted: Callable[[Example], bool]) -> PackedExamples:
        """The rows for which `wanted` holds."""
        return PackedExamples(filter(wanted, self))

    @property
    def num_bytes(self) -> int:
        """Memory of the rows."""
        return len(self._bytes) + self._ends.itemsize * len(self._ends)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Example]:
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...

    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        start = self._ends[place - 1] if place else 0
        reader = zlib.decompressobj(zdict=self._first)
        stored = reader.decompress(memoryview(self._bytes)[start : self._ends[place]])
        return pickle.loads(stored)  # packed above, in this process
