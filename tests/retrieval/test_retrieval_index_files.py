"""What befalls the files of an index: killed beginnings, full disks, damage, odd names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from colour_encoder import ColourEncoder, picture_of
from killed_adding import item, page_id
from safetensors import safe_open
from safetensors.numpy import save_file

from paligemma.errors import ConfigError, DataError, RunError
from paligemma.retrieval import edge_store
from paligemma.retrieval.index import PageIndex
from paligemma.retrieval.items import Item

pytest.importorskip("qdrant_edge")
KINDS = ["", "memory://"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "left", [(".open",), (".writer",), (".writer", ".index.0123456789abcdef0123456789abcdef.json")]
)
def test_what_a_killed_beginning_left_is_no_other_file(
    kind: str, left: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "library"
    folder.mkdir()
    for name in left:
        (folder / name).touch()
    with PageIndex.open(f"{kind}{folder}", ColourEncoder()) as index:
        index.upsert([item(1)])
    with PageIndex.open(folder, ColourEncoder()) as index:
        assert [hit.id for hit in index.pages()] == [page_id(1)]
    assert not list(folder.glob(".index.*"))


def test_edge_files_without_a_card_begin_anew_unless_pages_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "library"

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(edge_store, "write_card", killed)
        with PageIndex.open(folder, ColourEncoder()) as index, pytest.raises(KeyboardInterrupt):
            index.upsert([item(1)])
    assert sorted(path.name for path in folder.iterdir()) == [".open", "shard"]
    with PageIndex.open(folder, ColourEncoder()) as index:
        index.upsert([item(1)])
        assert index.verify() == []
    (folder / "index.json").unlink()
    index = PageIndex.open(folder, ColourEncoder())
    with index, pytest.raises(DataError, match="has 1 pages and no card"):
        index.upsert([item(2)])
    assert (folder / "shard").is_dir()


def test_a_writer_removes_what_killed_writers_left(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    with PageIndex.open(f"memory://{folder}", ColourEncoder()) as index:
        index.upsert([item(1)])
    left = folder / f".pages-00000002.{'a' * 32}.safetensors"
    left.touch()
    (folder / ".notes").touch()
    with PageIndex.open(folder, ColourEncoder()) as index:
        index.upsert([item(2)])
    assert not left.exists()
    assert (folder / ".notes").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_no_text_in_utf8_is_a_file_as_any_other(kind: str, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")))
    try:
        picture_of("red").save(path)
    except OSError:
        pytest.skip("names are Unicode on this file system")
    picture_of("blue").save(tmp_path / "plain.png")
    with PageIndex.open(f"{kind}{tmp_path / 'library'}", ColourEncoder()) as index:
        assert index.add([path, tmp_path / "plain.png"]).added == 2
        (hit, _) = index.search("red")
        assert Path(hit.path).read_bytes() == path.read_bytes()
        moved = path.rename(Path(os.fsdecode(os.fsencode(path) + b"\xe8.png")))
        assert index.add([moved]).moved == 1
        assert index.search("red")[0].path == str(moved)
        assert index.remove([str(moved)]) == 1
        assert index.count() == 1


@pytest.mark.parametrize("payload", [{"a": "\ud800"}, {"a": float("nan")}, {"a": {1, 2}}])
def test_a_payload_that_no_store_keeps_is_refused(payload: dict[str, object]) -> None:
    one = item(1)
    index = PageIndex.open("memory://", ColourEncoder())
    with pytest.raises(ConfigError, match="a payload is JSON"):
        index.upsert([Item(id=one.id, vectors=one.vectors, payload=payload)])


@pytest.mark.parametrize(("name", "when"), [("status.dat", "opened"), ("chunk_0.mmap", "read")])
def test_damage_that_makes_edge_panic_is_a_sentence(name: str, when: str, tmp_path: Path) -> None:
    folder = tmp_path / "library"
    with PageIndex.open(folder, ColourEncoder()) as index:
        index.upsert([item(1)])
    part = "vectors" if when == "opened" else "offsets"
    for path in folder.glob(f"shard/segments/*/vector_storage-*/{part}/{name}"):
        path.write_bytes(b"")
    whole = pytest.raises(DataError, match="files of an index must be whole")
    with whole, PageIndex.open(folder, ColourEncoder()) as index:
        index.verify()


def test_tampered_vectors_and_payloads_are_named_and_the_rest_is_found(tmp_path: Path) -> None:
    folder, sea = tmp_path / "library", tmp_path / "sea.png"
    for name, colour in {"sea": "blue", "fire": "red"}.items():
        picture_of(colour).save(tmp_path / f"{name}.png")
    with PageIndex.open(f"memory://{folder}", ColourEncoder()) as index:
        index.add([tmp_path / "fire.png", sea])
    (shard,) = folder.glob("pages-*")
    with safe_open(shard, "numpy") as file:
        pages = json.loads(file.metadata()["pages"])
        tensors = {name: file.get_tensor(name) for name in ("values", "centres")}
    pages[1]["payload"] |= {"text": 5, "grid": [-1, "a"], "page": None}
    pages[1]["id"] = "no id"
    tensors["values"][0] = float("nan")
    save_file(tensors, shard, {"pages": json.dumps(pages)})
    with PageIndex.open(folder, ColourEncoder()) as index:
        words = " ".join(index.verify())
        assert "not of length 1" in words
        assert "its grid has other places" in words
        (hit,) = index.search("blue")  # the other page has no score
        assert (hit.path, hit.page, hit.payload.get("text")) == (str(sea), 0, None)
        assert index.vectors(hit.id).grid is None


@contextmanager
def short_of_room(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of a kilobyte at most, or a disk that says how little is left of it."""
    if not kind:
        full = SimpleNamespace(total=1 << 40, free=1 << 20)
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "disk_usage", lambda folder: full)
            yield
        return
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_without_room_is_said_and_what_was_kept_stays(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "library"
    with PageIndex.open(f"{kind}{folder}", ColourEncoder()) as index:
        index.upsert([item(1), item(2)])
        with short_of_room(kind, monkeypatch):
            with pytest.raises(RunError, match="make room, and run it again"):
                index.upsert([item(3)])
            with pytest.raises(RunError, match="make room, and run it again"):
                index.remove([page_id(1)])
            assert len(index.search(item(1).vectors)) == 2
        assert index.upsert([item(3)]) == 1
    with PageIndex.open(folder, ColourEncoder()) as index:
        assert (index.count(), index.verify()) == (3, [])
