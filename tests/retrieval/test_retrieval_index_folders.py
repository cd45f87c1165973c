"""Indexes in folders: opened again, killed, shared, copied, damaged."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from colour_encoder import DIM, ColourEncoder, write_pictures
from index_places import KEPT, url_of
from killed_adding import item, page_id

from paligemma.errors import ConfigError, DataError, RunError
from paligemma.retrieval import folder_lock
from paligemma.retrieval.index import PageIndex
from paligemma.retrieval.items import Item


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "pictures")


def test_a_model_in_a_folder_is_found_from_every_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(name: str, **options: object) -> ColourEncoder:
        loaded.append(name)
        return ColourEncoder()

    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with PageIndex.open("memory://library", "run/adapter", load=load) as index:
        index.upsert([item(1)])
    monkeypatch.chdir(tmp_path / "elsewhere")
    with PageIndex.open(f"memory://{tmp_path / 'library'}", load=load) as index:
        assert index.model.dim == DIM
    assert loaded == ["run/adapter", str(tmp_path / "run" / "adapter")]


def test_a_snapshot_holds_nothing_of_removed_pages(tmp_path: Path) -> None:
    url = url_of("edge", tmp_path / "library")
    with PageIndex.open(url, ColourEncoder()) as index:
        for number, text in enumerate(("GRANITEROCK", "COBALTBLUES")):
            vectors = item(number).vectors
            index.upsert([Item(id=page_id(number), vectors=vectors, payload={"text": text})])
        index.remove([page_id(0)])
        index.snapshot(tmp_path / "copy")
    held = b"".join(path.read_bytes() for path in (tmp_path / "copy").rglob("*.dat"))
    assert b"COBALTBLUES" in held
    assert b"GRANITEROCK" not in held


@pytest.mark.parametrize("kind", KEPT)
def test_an_index_is_opened_again_with_the_model_that_made_it(
    kind: str, tmp_path: Path, pictures: list[Path]
) -> None:
    url = url_of(kind, tmp_path / "library")
    loaded = []

    def load(name: str, **options: object) -> ColourEncoder:
        loaded.append((name, options))
        return ColourEncoder("colours 1" if name == "tiny" else "other")

    with PageIndex.open(url, load=load) as index:
        index.add(pictures)
    with PageIndex.open(url, load=load) as index:
        assert index.card is not None
        assert index.card.model == "tiny"
        assert Path(index.search("red")[0].path).name == "fire.png"
    assert loaded == [("tiny", {}), ("tiny", {})]
    with (
        PageIndex.open(url, "another", load=load) as index,
        pytest.raises(ConfigError, match="made with tiny"),
    ):
        index.search("red")


def test_an_index_in_a_folder_is_opened_as_what_it_is(tmp_path: Path) -> None:
    with PageIndex.open(f"memory://{tmp_path / 'a'}", ColourEncoder()) as index:
        index.upsert([item(1)])
    with PageIndex.open(tmp_path / "a") as index:
        assert index.count() == 1
    edge = url_of("edge", tmp_path / "b")
    with PageIndex.open(edge, ColourEncoder()) as index:
        index.upsert([item(1)])
    with pytest.raises(DataError, match="layout 'edge'"):
        PageIndex.open(f"memory://{edge}")


@pytest.mark.parametrize("kind", KEPT)
def test_a_kill_at_any_moment_loses_nothing_that_was_kept(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path / "library")
    draw = random.Random(5)
    for _ in range(3):
        command = [sys.executable, str(Path(__file__).with_name("killed_adding.py")), url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline()) for _ in range(draw.randint(1, 4))]
            process.kill()
            said += [int(line) for line in process.stdout.read().split()]
        with PageIndex.open(url, ColourEncoder()) as index:
            number = index.count()
            assert said[-1] <= number <= said[-1] + 2
            assert index.verify() == []
            ids = {hit.id for hit in index.pages()}
            assert ids == {page_id(one) for one in range(number)}
            last = item(said[-1] - 1)
            assert torch.equal(index.vectors(last.id).values, last.vectors.values.half().float())


def test_files_are_read_while_another_process_writes_more(tmp_path: Path) -> None:
    url = f"memory://{tmp_path / 'library'}"
    with PageIndex.open(url, ColourEncoder()) as writer:
        writer.upsert([item(1)])
        with PageIndex.open(url, ColourEncoder()) as other:
            assert other.search(item(1).vectors, k=1)[0].id == page_id(1)
            with pytest.raises(ConfigError, match="another process is writing"):
                other.upsert([item(2)])
        writer.upsert([item(3)])
    with PageIndex.open(url, ColourEncoder()) as index:
        assert {hit.id for hit in index.pages()} == {page_id(1), page_id(3)}


def test_edge_is_read_by_several_or_written_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock.FolderLock.alone, "__defaults__", (0.1,))
    monkeypatch.setattr(folder_lock.FolderLock.together, "__defaults__", (0.1,))
    url = url_of("edge", tmp_path / "library")
    with PageIndex.open(url, ColourEncoder()) as writer:
        writer.upsert([item(1)])
        with pytest.raises(ConfigError, match="is writing to"):
            PageIndex.open(url, ColourEncoder())
        writer.upsert([item(2)])
    with PageIndex.open(url, ColourEncoder()) as first:
        with PageIndex.open(url, ColourEncoder()) as second:
            with pytest.raises(ConfigError, match="another process has opened"):
                second.upsert([item(3)])
            assert first.search(item(2).vectors, k=1)[0].id == page_id(2)
            assert second.search(item(1).vectors, k=1)[0].id == page_id(1)
        first.upsert([item(3)])
        assert first.count() == 3
    with PageIndex.open(url, ColourEncoder()) as index:
        assert {hit.id for hit in index.pages()} == {page_id(number) for number in (1, 2, 3)}
        assert index.verify() == []


@pytest.mark.parametrize("kind", KEPT)
def test_a_snapshot_is_an_index(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path / "library")
    with PageIndex.open(url, ColourEncoder()) as index:
        with pytest.raises(ConfigError, match="nothing to copy"):
            index.snapshot(tmp_path / "copy")
        index.upsert([item(number) for number in range(5)])
        index.remove([page_id(2)])
        index.snapshot(tmp_path / "copy")
        with pytest.raises(ConfigError, match="is there"):
            index.snapshot(tmp_path / "copy")
    with PageIndex.open(tmp_path / "copy", ColourEncoder()) as copy:
        assert {hit.id for hit in copy.pages()} == {page_id(number) for number in (0, 1, 3, 4)}
        assert copy.verify() == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    with PageIndex.open(f"memory://{folder}", ColourEncoder()) as index:
        index.upsert([item(1)])
        index.upsert([item(2)])
        (shard, _) = sorted(folder.glob("pages-*"))
        shard.write_bytes(shard.read_bytes()[:-10])
        assert [str(shard) in fault for fault in index.verify()] == [True]
    with pytest.raises(DataError, match="must be whole"):
        PageIndex.open(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(DataError, match="card of an index"):
        PageIndex.open(folder)
    (folder / "index.json").write_text(json.dumps({"kind": "edge", "format": 99}))
    with pytest.raises(DataError, match="card with identity"):
        PageIndex.open(folder)


def test_edge_files_that_are_gone_are_named(tmp_path: Path) -> None:
    url = url_of("edge", tmp_path / "library")
    with PageIndex.open(url, ColourEncoder()) as index:
        index.upsert([item(1)])
    (tmp_path / "library" / "shard" / "edge_config.json").unlink()
    for path in (tmp_path / "library" / "shard" / "segments").rglob("*.json"):
        path.write_text("{")
    with pytest.raises(DataError, match="must be whole"):
        PageIndex.open(url)


def test_names_that_are_no_index_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("x")
    for name, why in {
        "http://host/x": "memory:// or qdrant://",
        "": "not empty",
        str(tmp_path / "file"): "is a file",
        str(tmp_path / "photos"): "holds other files",
        "qdrant://host": "HOST:PORT/COLLECTION",
    }.items():
        with pytest.raises(ConfigError, match=why):
            PageIndex.open(name)
    with pytest.raises(ConfigError, match="no index is at"):
        PageIndex.open(f"memory://{tmp_path / 'new'}", create=False)
    assert not (tmp_path / "new").exists()


def test_a_server_that_does_not_answer_is_said() -> None:
    pytest.importorskip("qdrant_client")
    with pytest.raises(RunError, match="does not answer"):
        PageIndex.open("qdrant://127.0.0.1:9/pages")
