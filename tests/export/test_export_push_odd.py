"""`paligemma push` beside a hub that misbehaves and a folder that does not stand still."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_small
from stand_in_hub import WRITES, StandInHub

# Of httpx about huggingface_hub, in threads of the latter.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Run = Callable[..., tuple[int, str, str]]
NAME = "me/cards"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a file that is large enough for the hub's storage."""
    folder = write_small(tmp_path_factory.mktemp("push") / "cards", 2)
    (folder / "graph.onnx").write_bytes(bytes(range(256)) * 500)
    return folder


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_storage_that_takes_no_file_is_not_taken_for_the_hub(
    status: int, hub: StandInHub, model: Path, program: Run
) -> None:
    hub.fault = lambda method, path: status if method == "PUT" else None
    ended, out, err = program("push", model, NAME)
    assert (ended, out) == (2, "")
    assert f"the hub's storage did not take a file of me/cards ({status}); run the same" in err
    assert hub.repositories[NAME] == {}


@pytest.mark.parametrize("where", ["/commit/", "/preupload/", "/api/repos/create"])
def test_a_token_that_the_hub_repeats_is_not_shown(
    where: str, hub: StandInHub, model: Path, program: Run
) -> None:
    hub.said = f"bad token {WRITES} for https://storage.example/file?X-Signature=0123abcd&a=b"
    hub.fault = lambda method, path: 400 if where in path else None
    ended, out, err = program("push", model, NAME)
    assert (ended, out) == (2, "")
    assert "the hub refuses what was sent to me/cards" in err
    assert "bad token *** for https://storage.example/file?..." in err
    assert WRITES not in err
    assert "0123abcd" not in err


@pytest.mark.parametrize("is_gone", [False, True])
@pytest.mark.parametrize(("name", "where"), [("config.json", "/commit/"), ("extra.txt", "/create")])
def test_a_file_that_changes_while_it_is_pushed_is_named(
    name: str, where: str, is_gone: bool, hub: StandInHub, tmp_path: Path, program: Run
) -> None:
    folder = write_small(tmp_path / "own", 1)
    (folder / "extra.txt").write_text("mine")

    def change(method: str, path: str) -> None:
        if where in path:
            (folder / name).unlink() if is_gone else (folder / name).write_text("{}")

    hub.fault = change
    status, out, err = program("push", folder, NAME)
    assert (status, out) == (2, "")
    assert f"{name} was changed while its folder was pushed" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", [b"a\nb.txt", b"a\\b.txt", b"\xff.txt", b"\x1b[2J"])
def test_a_name_that_no_pull_takes_is_not_pushed(
    name: bytes, hub: StandInHub, tmp_path: Path, program: Run
) -> None:
    folder = write_small(tmp_path / "own", 1)
    (folder / os.fsdecode(name)).write_text("mine")
    status, _, err = program("push", folder, NAME)
    assert status == 2
    assert "names of files on the hub are printable, without backslashes" in err
    assert "rename it" in err
    assert hub.repositories == {}
