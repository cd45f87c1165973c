"""The index that `paligemma serve` and `paligemma mcp` search, as it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")

from paligemma.cli import main
from paligemma.cli.serve_library import LibraryChoice
from paligemma.errors import ConfigError
from paligemma.retrieval.index import PageIndex
from paligemma.scenes import draw_scene
from paligemma.serve.options import ServerOptions
from tests.retrieval.random_colpali import random_colpali


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of a model, and one of an index that it made."""
    folder = tmp_path_factory.mktemp("made")
    model = random_colpali(seed=5, dim=32)
    model.save(folder / "model")
    picture = folder / "page.png"
    Image.fromarray(draw_scene(0).image).save(picture)
    with PageIndex.open(f"memory://{folder / 'library'}", str(folder / "model")) as index:
        index.add([picture])
    return folder / "model", folder / "library"


def test_an_index_opens_with_the_model_that_made_it_and_keeps_the_bounds_of_the_server(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    choice = LibraryChoice(index=f"memory://{made[1]}", model=None, uploads=tmp_path, limit=7)
    library = choice.open(ServerOptions(max_pixels=5_000))
    assert library is not None
    shelf = library.shelf
    assert (shelf.name, shelf.index.count(), shelf.uploads) == ("library", 1, tmp_path)
    assert shelf.max_pages == 7
    reader = shelf.model.pg.processor.reader
    assert (reader.max_pixels, reader.allow_video) == (5_000, False)
    library.close()


def test_another_model_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    other = random_colpali(seed=6, dim=32).save(tmp_path / "other")
    choice = LibraryChoice(index=f"memory://{made[1]}", model=str(other or tmp_path / "other"))
    with pytest.raises(ConfigError, match="open it with that one"):
        choice.open(ServerOptions())


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("mcp", "--http", "18765")])
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--index", "nowhere"], "no index is at"),
        (["--retriever", "tiny"], "need an index; name it with --index"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anyone_is_served(
    command: tuple[str, ...],
    words: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mcp", reason="needs the extra mcp")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*command, "--model", "tiny", *words])
    assert done.exit_code == 2
    assert complaint in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_limit_without_uploads_is_refused(tmp_path: Path) -> None:
    words = ["serve", "--port", "0", "--model", "tiny", "--index-limit", "5"]
    done = CliRunner().invoke(main, [*words, "--index", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "let them with --index-uploads" in done.stderr
