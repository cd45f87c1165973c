"""Indexes of pages: what is added is found, kept, and never mixed up."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_encoder import DIM, ColourEncoder, picture_of, write_pictures
from index_places import KINDS, url_of
from killed_adding import item, page_id

from paligemma.errors import ConfigError
from paligemma.retrieval import adding
from paligemma.retrieval import index as index_module
from paligemma.retrieval.index import PageIndex
from paligemma.retrieval.items import Item
from paligemma.retrieval.page_files import Page, PageFault
from paligemma.retrieval.store import centres_of
from paligemma.retrieval.vectors import Vectors

Opened = Callable[..., PageIndex]


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """opened(model) -> the index of this test in one kind of store."""
    made: list[PageIndex] = []
    server = None

    def open_it(model: object = None) -> PageIndex:
        nonlocal server
        if request.param == "memory":
            if not made:
                made.append(PageIndex.open("memory://", model))
            return made[0]
        if request.param == "qdrant":
            client = pytest.importorskip("qdrant_client")
            from paligemma.retrieval.qdrant_store import QdrantStore

            server = server or client.QdrantClient(":memory:")
            made.append(PageIndex(QdrantStore(server, "pages"), model))
        else:
            made.append(PageIndex.open(url_of(request.param, tmp_path / "library"), model))
        return made[-1]

    yield open_it
    for one in made:
        one.close()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "pictures")


def oracle(query: np.ndarray, page: np.ndarray) -> float:
    """MaxSim of what is kept as float16, in float64."""
    q, d = (one.astype(np.float16).astype(np.float64) for one in (query, page))
    return float(sum(max(row @ other for other in d) for row in q))


def test_the_page_of_a_colour_is_found_by_it(opened: Opened, pictures: list[Path]) -> None:
    index = opened(ColourEncoder())
    done = index.add(pictures)
    assert (done.added, done.kept, done.faults) == (3, 0, [])
    for word, name in {"red": "fire.png", "navy": "sea.png", "green": "leaf.png"}.items():
        best, second = index.search(word, k=2)
        assert Path(best.path).name == name
        assert best.score > second.score
        assert (best.page, best.thumbnail[:2]) == (1, b"\xff\xd8")
    assert index.search("red")[0].size == (16, 8)
    assert index.count() == 3
    assert index.verify() == []


def test_scores_and_order_are_exact(opened: Opened) -> None:
    index = opened(ColourEncoder())
    items = [item(number) for number in range(30)]
    assert index.upsert(items) == 30
    for seed in range(5):
        values = torch.randn(6, DIM, generator=torch.Generator().manual_seed(1000 + seed))
        query = Vectors(values=torch.nn.functional.normalize(values, dim=-1), pieces=("",) * 6)
        truth = {one.id: oracle(query.values.numpy(), one.vectors.values.numpy()) for one in items}
        hits = index.search(query, k=30)
        assert [hit.id for hit in hits] == sorted(truth, key=lambda one: -truth[one])
        assert max(abs(hit.score - truth[hit.id]) for hit in hits) < 1e-4


def test_pages_of_equal_score_stand_in_the_order_of_their_ids(opened: Opened) -> None:
    index = opened(ColourEncoder())
    numbers = list(range(40))
    random.Random(1).shuffle(numbers)
    blank = item(1).vectors
    index.upsert([Item(id=page_id(number), vectors=blank) for number in numbers])
    index.upsert([item(100)])
    for k in (1, 5, 40):
        found = [hit.id for hit in index.search(blank, k=k, rerank=None)]
        assert found == [page_id(number) for number in range(k)]


def test_pages_chosen_by_their_centres_are_scored_exactly(opened: Opened) -> None:
    index = opened(ColourEncoder())
    index.upsert([item(number) for number in range(30)])
    query = item(7).vectors
    exact = {hit.id: hit.score for hit in index.search(query, k=30, rerank=None)}
    hits = index.search(query, k=5, rerank=10)
    assert [hit.score for hit in hits] == pytest.approx([exact[hit.id] for hit in hits], abs=1e-5)
    assert hits[0].id == page_id(7)
    assert len(index.search(query, k=10, rerank=10)) == 10


def test_many_pages_are_chosen_by_their_centres_first(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = opened(ColourEncoder())
    index.upsert([item(number) for number in range(8)])
    asked = []
    nearest = index._store.nearest
    monkeypatch.setattr(
        index._store, "nearest", lambda q, k, rerank: asked.append(rerank) or nearest(q, k, rerank)
    )
    index.search(item(1).vectors, k=2)
    monkeypatch.setattr(index_module, "EXACT_UP_TO", 7)
    index.search(item(1).vectors, k=2)
    assert asked == [None, 500]


def test_nothing_is_added_twice_and_an_upsert_replaces(
    opened: Opened, pictures: list[Path]
) -> None:
    encoder = ColourEncoder()
    index = opened(encoder)
    index.add(pictures[:2])
    done = index.add([*pictures, pictures[0]])
    assert (done.added, done.kept, encoder.num_encoded) == (1, 3, 3)
    (red,) = [hit for hit in index.pages() if hit.path.endswith("fire.png")]
    (blue,) = encoder.encode_pages([picture_of("blue")])
    index.upsert([Item(id=red.id, vectors=blue, payload={"path": "/now blue"})])
    assert index.count() == 3
    assert index.search("blue", k=3)[0].path == "/now blue"
    assert torch.allclose(index.vectors(red.id).values, blue.values, atol=1e-3)


def test_pages_are_removed_by_id_and_by_file(opened: Opened, pictures: list[Path]) -> None:
    index = opened(ColourEncoder())
    index.add(pictures)
    by_name = {Path(hit.path).name: hit.id for hit in index.pages()}
    assert index.remove([by_name["sea.png"]]) == 1
    assert index.remove([str(pictures[0]), "0" * 64 + ":1"]) == 1
    assert [Path(hit.path).name for hit in index.search("red")] == ["leaf.png"]
    assert index.count() == 1
    assert index.verify() == []


def test_a_moved_file_is_found_under_its_new_path(opened: Opened, pictures: list[Path]) -> None:
    encoder = ColourEncoder()
    index = opened(encoder)
    index.add(pictures)
    folder = pictures[0].parent
    (folder / "fire.png").rename(folder / "sunset.png")
    done = index.add(folder)
    assert (done.added, done.kept, done.moved, done.outdated) == (0, 3, 1, 0)
    assert Path(index.search("red")[0].path) == folder / "sunset.png"
    assert index.search("red")[0].thumbnail[:2] == b"\xff\xd8"
    assert encoder.num_encoded == 3
    # A copy is no move.
    (folder / "again.png").write_bytes((folder / "sea.png").read_bytes())
    done = index.add(folder)
    assert (done.added, done.kept, done.moved) == (0, 4, 0)


def test_what_a_file_held_before_stays_until_it_is_to_be_replaced(
    opened: Opened, pictures: list[Path]
) -> None:
    index = opened(ColourEncoder())
    index.add(pictures)
    (fire,) = [path for path in pictures if path.name == "fire.png"]
    first = index.search("red")[0].id
    picture_of("gray", "silver").save(fire)
    done = index.add(pictures)
    assert (done.added, done.outdated, done.removed, index.count()) == (1, 1, False, 4)
    assert index.search("red")[0].id == first
    fire.write_bytes(b"no picture")
    broken = index.add(pictures, replace_changed=True)
    assert (broken.outdated, broken.removed, index.count()) == (0, False, 4)
    picture_of("gray", "black").save(fire)
    done = index.add(pictures, replace_changed=True)
    assert (done.added, done.outdated, done.removed, index.count()) == (1, 2, True, 3)
    assert first not in {hit.id for hit in index.pages()}
    assert index.verify() == []


def test_a_file_that_took_the_place_of_a_moved_one_replaces_nothing(
    opened: Opened, pictures: list[Path]
) -> None:
    index = opened(ColourEncoder())
    index.add(pictures)
    folder = pictures[0].parent
    (folder / "fire.png").rename(folder / "old fire.png")
    picture_of("gray").save(folder / "fire.png")
    done = index.add(folder, replace_changed=True)
    assert (done.added, done.kept, done.moved, done.outdated) == (1, 3, 1, 0)
    assert Path(index.search("red")[0].path).name == "old fire.png"


def test_the_pages_below_a_folder_are_removed(opened: Opened, pictures: list[Path]) -> None:
    index = opened(ColourEncoder())
    other = pictures[0].parent.parent / "pictures of others"
    other.mkdir()
    picture_of("white").save(other / "white.png")
    index.add([*pictures, other])
    assert index.remove([str(pictures[0].parent)]) == 3
    assert [Path(hit.path).parent for hit in index.pages()] == [other]


def test_the_vectors_of_a_page_come_back_with_their_grid(opened: Opened) -> None:
    index = opened(ColourEncoder())
    index.upsert([item(3)])
    found = index.vectors(page_id(3))
    assert (found.grid, found.pieces) == ((6, 6), ())
    assert torch.equal(found.values, item(3).vectors.values.half().float())
    with pytest.raises(ConfigError, match="has no page"):
        index.vectors("nothing")


def test_another_model_is_refused(opened: Opened, pictures: list[Path]) -> None:
    index = opened(ColourEncoder())
    index.add(pictures)
    with pytest.raises(ConfigError, match="vectors of another model"):
        PageIndex(index._store, ColourEncoder("colours 2"))
    with pytest.raises(ConfigError, match="is of width 8"):
        index.search(Vectors(values=torch.ones(2, 9), pieces=("a", "b")))
    with pytest.raises(ConfigError, match="width 8"):
        index.upsert([Item(id=page_id(1), vectors=Vectors(values=torch.ones(2, 9)))])


def test_questions_out_of_range_are_refused() -> None:
    with PageIndex.open("memory://", ColourEncoder()) as index:
        assert index.search("red") == []
        index.upsert([item(1)])
        for wrong, why in (
            ({"k": 0}, "k lies in"),
            ({"k": 5, "rerank": 4}, "rerank is"),
            ({"rerank": "fast"}, "rerank is"),
        ):
            with pytest.raises(ConfigError, match=why):
                index.search("red", **wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="at least one word"):
            index.search("  ")
        with pytest.raises(ConfigError, match="sha256:page"):
            index.upsert([Item(id="a", vectors=item(1).vectors)])
        nan = Vectors(values=torch.full((3, DIM), torch.nan))
        with pytest.raises(ConfigError, match="finite"):
            index.upsert([Item(id=page_id(1), vectors=nan)])


def test_progress_names_each_page_once_it_is_kept(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "KEPT_AT_ONCE", 2)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"x")
    seen: list[object] = []
    with PageIndex.open("memory://", ColourEncoder()) as index:

        def note(one: Page | PageFault) -> None:
            seen.append(index.count() if isinstance(one, Page) else "fault")

        done = index.add(tmp_path / "pictures", batch_size=2, on_page=note)
    assert (done.added, len(done.faults)) == (3, 1)
    assert seen == ["fault", 2, 2, 3]


def test_what_was_encoded_before_an_error_is_kept(pictures: list[Path]) -> None:
    class Fails(ColourEncoder):
        def encode_pages(self, *args: Any, **options: Any) -> list[Vectors]:
            if self.num_encoded == 2:
                raise KeyboardInterrupt
            return super().encode_pages(*args, **options)

    with PageIndex.open("memory://", Fails()) as index:
        with pytest.raises(KeyboardInterrupt):
            index.add(pictures)
        assert index.count() == 2


def test_centres_are_directions_of_groups_that_are_alike() -> None:
    draw = np.random.default_rng(0)
    kinds = np.eye(4, dtype=np.float32)
    places = draw.integers(4, size=16 * 16)
    values = kinds[places] + draw.normal(0, 0.05, (256, 4)).astype(np.float32)
    values = np.concatenate([values, -np.ones((1, 4), np.float32)])
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    centres = centres_of(values, (16, 16))
    assert len(centres) <= 8 * 8 + 1
    assert np.linalg.norm(centres, axis=1) == pytest.approx(1)
    # Each kind has a centre near it, though no block is of one kind.
    assert ((kinds @ centres.T).max(1) > 0.99).all()
    assert centres_of(values, (16, 16)) == pytest.approx(centres)
    assert len(centres_of(values[:40], None)) <= 3
    assert centres_of(values[:1], None) == pytest.approx(values[:1])


def test_nearly_all_best_pages_are_among_those_chosen_by_their_centres() -> None:
    draw = np.random.default_rng(1)
    kinds = draw.standard_normal((40, DIM)).astype(np.float32)

    def page(number: int) -> Item:
        own = kinds[draw.choice(40, 5, replace=False)]
        values = own[draw.integers(5, size=100)] + draw.normal(0, 0.3, (100, DIM))
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        return Item(
            id=page_id(number),
            vectors=Vectors(values=torch.from_numpy(unit).float(), grid=(10, 10)),
        )

    with PageIndex.open("memory://", ColourEncoder()) as index:
        index.upsert([page(number) for number in range(200)])
        found = 0
        for _ in range(20):
            words = kinds[draw.choice(40, 3, replace=False)] + draw.normal(0, 0.3, (3, DIM))
            unit = words / np.linalg.norm(words, axis=1, keepdims=True)
            query = Vectors(values=torch.from_numpy(unit).float(), pieces=("",) * 3)
            exact = {hit.id for hit in index.search(query, 5, rerank=None)}
            found += len(exact & {hit.id for hit in index.search(query, 5, rerank=20)})
    assert found >= 98
