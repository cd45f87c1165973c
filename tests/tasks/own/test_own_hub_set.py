"""Rows of the hub: parquet files of a data set, pinned to a commit; read again without the hub."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_hub import COMMIT, FakeHub, hub_of
from huggingface_hub import constants
from PIL import Image

from paligemma.errors import AccessError, DataError, ModelNotFoundError
from paligemma.tasks.mixture import read_mixture
from paligemma.tasks.own.files import recognise, splits_of
from paligemma.tasks.own.hub_set import pinned
from paligemma.tasks.own.labels import OwnExample
from paligemma.tasks.own.rows import TASKS

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
(OWN,) = TASKS


def write_set(folder: Path, **columns: list[object]) -> Path:
    folder.mkdir()
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), 80, np.uint8)).save(file, "PNG")
    table = {"image": [{"bytes": file.getvalue(), "path": "0.png"}], **columns}
    parquet.write_table(arrow.table(table), folder / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("a card")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    folder = write_set(tmp_path / "set", question=["what?"], answer=["a wall"])
    with hub_of(folder, tmp_path, monkeypatch) as running:
        yield running


def test_rows_of_the_hub_are_downloaded_once_and_pinned_to_their_commit(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pinned("hub:owner/cards")
    assert str(name) == f"hub:owner/cards@{COMMIT}"
    assert not list(recognise(name, "train").path.parent.glob("*.md"))
    monkeypatch.setattr(hub, "fault", lambda kind, name: 503)
    (row,) = OWN.rows(name, "train")
    assert isinstance(row, OwnExample)
    assert (row.prefix, row.targets) == ("answer en what?", ("a wall",))
    assert row.pictures[0].read(10**6).shape == (9, 12, 3)
    assert splits_of(name) == ("train",)


def test_a_mixture_names_sets_of_the_hub_and_keeps_their_commit(hub: FakeHub) -> None:
    mixed = read_mixture({"sources": {"cards": {"data": "hub:owner/cards"}}})
    assert mixed.sources[0].to_json()["data"] == f"hub:owner/cards@{COMMIT}"


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (404, ModelNotFoundError, r"https://huggingface.co/datasets/owner/cards does not"),
        (401, AccessError, "datasets/owner/cards only to those who accepted"),
        (503, AccessError, "answered 503 to the download of datasets/owner/cards"),
    ],
)
def test_a_hub_that_refuses_is_named(
    hub: FakeHub, status: int, error: type[Exception], said: str
) -> None:
    hub.fault = lambda kind, name: status
    with pytest.raises(error, match=said):
        pinned("hub:owner/cards")


def test_without_a_network_and_an_earlier_copy_the_remedy_is_said(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AccessError, match=r"datasets/owner/cards is not on this machine .* once"):
        pinned("hub:owner/cards")


def test_a_set_without_parquet_or_answers_says_what_to_choose(hub: FakeHub, tmp_path: Path) -> None:
    hub.files, hub.names = {"data.csv": b"a,b"}, ["data.csv"]
    with pytest.raises(DataError, match="refs/convert/parquet"):
        pinned("hub:owner/table")
    folder = write_set(tmp_path / "other", label=[3])
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.names = list(hub.files)
    with pytest.raises(DataError, match=r"one column must be the answer, .* image, label"):
        list(OWN.rows(Path("hub:owner/other"), "train"))


@pytest.mark.parametrize("name", ["hub:", "hub:cards", "hub:a/b/c", "hub:../x", "hub:a/b@"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="hub:owner/name"):
        pinned(name)


def test_the_command_checks_a_set_of_the_hub(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    from paligemma.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", "hub:owner/cards", "--json"])
    assert stopped.value.code == 0
    (split,) = json.loads(capsys.readouterr().out)["splits"]
    assert (split["format"], split["good"]) == ("parquet", 1)
