"""What keeps the vectors of pages: the interface of the places behind an index.

Vectors are kept and compared as float16 and summed in float32, queries too, so that every store
gives a page the same score.
Axes: N vectors of a page, Q of a query, C centres of a page, D width of a vector.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paligemma.errors import DataError

Payload = Mapping[str, Any]
Half = NDArray[np.float16]

FORMAT = 1
PAGE, CENTRES = "page", "centres"  # names of the two kinds of vectors in Qdrant
GRID = "grid"  # of a payload: rows and columns of the patches
THUMBNAIL = "thumbnail"  # of a payload: a JPEG in base64
MAX_DIM = 4096
MAX_VECTORS = 20_000  # of one page
# Faults that are told, and pages whose vectors are read at once.
MAX_FAULTS, _AT_ONCE = 20, 16
_MAX_OFF = 1e-2  # of the length of a vector in float16
_BLOCKS, _RUN, _ROUNDS = 8, 16, 3
_SMALLEST = 1e-12
_MAX_TIES = 10_000  # pages of one score that are put in order
_NAMESPACE = uuid.UUID("5f0ff2a5-5a3a-4d0c-9a52-6f0d6a1e4c11")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an index was made with, written once and compared whenever it is opened.

    Attributes:
        identity: weights and preset that made the vectors, as `ColPali.identity` has it.
        model: name by which that model is loaded again; "" if it was given as an object.
        preset: name of its preset, or "" for the one its files ask for.
        dim: width of a vector, D.
        format: version of the layout.
    """

    identity: str
    model: str
    preset: str
    dim: int
    format: int = FORMAT

    def as_json(self) -> dict[str, Any]:
        """The card as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Any, place: str) -> Card:
        """The card of an index.

        Raises:
            DataError: it is none, or of a later version of this program.
        """
        texts = ("identity", "model", "preset")
        if not isinstance(body, dict) or not all(isinstance(body.get(one), str) for one in texts):
            raise DataError(f"an index has a card with identity, model and preset, {place} has not")
        version, dim = body.get("format"), body.get("dim")
        if version != FORMAT:
            raise DataError(
                f"an index of format {FORMAT} is read, {place} has {version!r:.40}; make it again "
                "with this version of the program"
            )
        if type(dim) is not int or not 1 <= dim <= MAX_DIM:
            raise DataError(f"dim of an index is in 1..{MAX_DIM}, {place} has {dim!r:.40}")
        return cls(dim=dim, **{one: body[one] for one in texts})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A page as a store keeps it.

    Attributes:
        id: sha256 of the file and number of the page, "sha256:page".
        values: float16[N, D].
        centres: float16[C, D], `centres_of` the values.
        payload: what is shown of the page; JSON.
    """

    id: str
    values: Half
    centres: Half
    payload: Payload


@dataclass(frozen=True, kw_only=True)
class Found:
    """A page and its score."""

    id: str
    score: float
    payload: Payload


class Store(Protocol):
    """Keeps entries. What `put` or `drop` returned from survives the end of the process."""

    @property
    def card(self) -> Card | None:
        """What the index was made with; None before `bind`."""

    def bind(self, card: Card) -> None:
        """Make the store with this card."""

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep these pages; one with the same id is replaced."""

    def drop(self, ids: Sequence[str]) -> None:
        """Forget these pages; ids that are not kept count for nothing."""

    def nearest(self, query: Half, k: int, rerank: int | None) -> list[Found]:
        """The k pages of the highest MaxSim, best first; ties in the order of their ids.

        Args:
            query: float16[Q, D].
            rerank: compute it only for so many pages whose centres are nearest; None for all. Of
                pages whose centres are equally near, which are taken is the store's affair.
        """

    def get(self, ids: Sequence[str]) -> list[Entry]:
        """Kept pages of these ids, in their order."""

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """Id and payload of every page; a payload without its thumbnail."""

    def count(self) -> int:
        """Number of pages."""

    def faults(self) -> list[str]:
        """What is wrong with the files, a sentence each."""

    def snapshot(self, target: str) -> None:
        """Write a copy that can be opened as an index of its own."""

    def close(self) -> None:
        """Let go of files and locks."""


def point_id(page_id: str) -> str:
    """The UUID by which Qdrant keeps a page: the same for the same id, so nothing is kept twice."""
    return str(uuid.uuid5(_NAMESPACE, page_id))


def centres_of(values: NDArray[np.float32], grid: tuple[int, int] | None) -> NDArray[np.float32]:
    """A page in few vectors, for the first choice among many: centres of groups that are alike.

    Groups begin as the blocks of the grid, some 8 x 8 of them, and as each vector of the prompt;
    three times each vector then joins the centre that it is nearest to (k-means on directions). The
    result depends on the page alone.

    Args:
        values: float32[N, D], unit length, those of the grid first.
        grid: rows and columns; None for a page without, whose blocks are runs of 16 vectors.

    Returns:
        float32[C, D], unit length.
    """
    rows, columns = grid or (1, len(values))
    high, wide = (-(-rows // _BLOCKS), -(-columns // _BLOCKS)) if grid else (1, _RUN)
    row, column = np.divmod(np.arange(rows * columns), columns)
    block = (row // high) * -(-columns // wide) + column // wide
    rest = np.arange(len(values) - len(block)) + (block.max(initial=-1) + 1)
    group = np.concatenate([block, rest])
    centres = _centres(values, group)
    for _ in range(_ROUNDS):
        centres = _centres(values, (values @ centres.T).argmax(1))
    return centres


def _centres(values: NDArray[np.float32], group: NDArray[np.intp]) -> NDArray[np.float32]:
    """The direction of each group that has members.

    Args:
        values: float32[N, D].
        group: of each vector, its group.
    """
    members = (group[:, None] == np.unique(group)).astype(np.float32)
    sums = members.T @ values
    return sums / np.linalg.norm(sums, axis=-1, keepdims=True).clip(_SMALLEST)


def best(found: Iterable[Found], k: int) -> list[Found]:
    """The k best, ties in the order of their ids; pages without a score are damaged: left out."""
    scored = (one for one in found if math.isfinite(one.score))
    return sorted(scored, key=lambda one: (-one.score, one.id))[:k]


def best_with_ties(ask: Callable[[int], list[Found]], k: int) -> list[Found]:
    """The k best of a store that orders pages of equal score in its own way.

    Args:
        ask: gives so many pages of the highest scores, in any order of ties.
    """
    limit = k + 1
    while True:
        found = ask(limit)
        scores = sorted((one.score for one in found), reverse=True)
        if len(found) < limit or scores[-1] < scores[k - 1] or limit >= _MAX_TIES:
            return best(found, k)
        limit *= 8  # the last one is a tie, so others may be


def without_thumbnail(payload: Payload) -> Payload:
    """What is listed of a page."""
    return {name: value for name, value in payload.items() if name != THUMBNAIL}


def page_id_of(payload: Any) -> tuple[str, Payload]:
    """The id of a page that Qdrant keeps, and the payload without it.

    Raises:
        DataError: the point was not written by this program.
    """
    body = dict(payload or {})
    page_id = body.pop("id", None)
    if not isinstance(page_id, str):
        raise DataError(
            "every point of an index has the id of its page, one has none; this collection was "
            "not written by this program"
        )
    return page_id, body


def found_of(point: Any) -> Found:
    """A page as Qdrant finds it.

    Raises:
        DataError: the point was not written by this program.
    """
    page_id, payload = page_id_of(point.payload)
    return Found(id=page_id, score=float(point.score), payload=payload)


def half_of(vectors: Any) -> Half:
    """Vectors as Qdrant gives them, float16[N, D]; [0, 0] if it has none."""
    return np.asarray(vectors, np.float16) if vectors else np.zeros((0, 0), np.float16)


def each_few(store: Store) -> Iterator[list[Entry]]:
    """Every page of a store with its vectors, some 16 at a time; a quarter of a megabyte each."""
    ids = [page_id for page_id, _ in store.payloads()]
    for start in range(0, len(ids), _AT_ONCE):
        yield store.get(ids[start : start + _AT_ONCE])


def faults_of(store: Store, card: Card | None) -> list[str]:
    """What is wrong with the vectors of a store, a sentence each, the first `MAX_FAULTS`."""
    dim = 0 if card is None else card.dim
    found = [one for few in each_few(store) for entry in few for one in entry_faults(entry, dim)]
    return found[:MAX_FAULTS]


def grid_of(entry: Entry) -> tuple[int, int] | None:
    """Rows and columns of a page's first vectors; None if there are none, or none that can be."""
    grid = entry.payload.get(GRID)
    if not isinstance(grid, Sequence) or len(grid) != 2 or any(type(n) is not int for n in grid):
        return None
    rows, columns = grid
    fits = min(rows, columns) > 0 and rows * columns <= len(entry.values)
    return (rows, columns) if fits else None


def entry_faults(entry: Entry, dim: int) -> list[str]:
    """What is wrong with the vectors of a page and their grid, a sentence each."""
    found = []
    for name, vectors in (("vectors", entry.values), ("centres", entry.centres)):
        if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != dim:
            found.append(f"{entry.id}: its {name} are {list(vectors.shape)}, not of width {dim}")
        elif not (np.abs(np.linalg.norm(vectors.astype(np.float32), axis=1) - 1) < _MAX_OFF).all():
            found.append(f"{entry.id}: its {name} are not of length 1; remove and add it again")
    if entry.payload.get(GRID) and grid_of(entry) is None:
        found.append(f"{entry.id}: its grid has other places than its vectors; add it again")
    return found
