"""Many pictures: a list is a batch, a folder is a stream, and frames are said by name."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import DESK

from paligemma import Detections, Frames, PaliGemma
from paligemma.errors import ConfigError, ImageError
from paligemma.pipeline.options import AskKeywords

Scripted = Callable[..., PaliGemma]
HOW: AskKeywords = {"constrain": True, "max_new_tokens": 24, "max_objects": 2}


def scene(seed: int, size_wh: tuple[int, int] = (40, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size_wh[::-1], 3), np.uint8)


@pytest.mark.parametrize(
    "ask",
    [
        lambda pg, image: pg.detect(image, ["circle", "digit"], **HOW, threshold=0.0),
        lambda pg, image: pg.segment(image, "circle", constrain=True, max_new_tokens=40),
        lambda pg, image: pg.ask(image, "detect circle ; segment digit", **HOW),
        lambda pg, image: pg.ask(image, "caption en", max_new_tokens=5),
        lambda pg, image: pg.caption(image, lang="de", max_new_tokens=5),
        lambda pg, image: pg.answer(image, "how many?", choices=range(30)),
        lambda pg, image: pg.read(image, temperature=1.0, seed=4, max_new_tokens=5),
        lambda pg, image: pg.generate(image, "detect circle", max_new_tokens=5),
    ],
)
def test_a_list_of_pictures_gives_a_list_of_what_each_gives_alone(
    random_tiny: PaliGemma, ask: Callable[..., Any]
) -> None:
    pictures = [DESK, scene(1), Image.fromarray(scene(2, (20, 50)))]
    together = ask(random_tiny, pictures)
    assert isinstance(together, list)
    assert len(together) == 3
    for picture, found in zip(pictures, together, strict=True):
        alone = ask(random_tiny, picture)
        assert (type(found), found.text) == (type(alone), alone.text)
        if isinstance(found, Detections):
            assert found.image_wh == alone.image_wh
            assert found.asked_labels == alone.asked_labels
            np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
            assert found.draw().tobytes() == alone.draw().tobytes()
    assert ask(random_tiny, []) == []
    assert len(ask(random_tiny, (DESK,))) == 1


def test_a_stack_of_pictures_is_a_batch_too(random_tiny: PaliGemma) -> None:
    stack = np.stack([scene(1), scene(2)])
    prepared = torch.stack([random_tiny.processor.pixels(one) for one in stack])
    texts = [random_tiny.read(one, max_new_tokens=5).text for one in stack]
    for several in (stack, prepared, list(stack)):
        found = random_tiny.read(several, max_new_tokens=5)  # type: ignore[arg-type]
        assert [one.text for one in found] == texts  # type: ignore[attr-defined]


def test_only_named_frames_are_one_example(random_tiny: PaliGemma) -> None:
    first, second = scene(1), scene(2)
    both = random_tiny.read(Frames([first, second]), max_new_tokens=5)
    for same in (
        Frames(first, second),
        Frames(np.stack([first, second])),
        random_tiny.encode_image(Frames(first, second)),
    ):
        assert random_tiny.read(same, max_new_tokens=5).token_logprobs == both.token_logprobs
    pair = random_tiny.read([Frames(first, second), first], max_new_tokens=5)
    assert pair[0].text == both.text
    for refused in (
        lambda: random_tiny.encode_image([first, second]),  # type: ignore[arg-type]
        lambda: random_tiny.encode_image(np.stack([first, second])),
        lambda: random_tiny.read([[first, second], first]),  # type: ignore[list-item]
        lambda: next(random_tiny.stream([first, second], "ocr")),  # type: ignore[arg-type]
    ):
        with pytest.raises(ImageError, match=r"got 2; the frames of one example are named"):
            refused()
    for wrong in ((), ([first, [second]],), (scene(1) for _ in range(200))):
        with pytest.raises(ImageError, match="frame"):
            Frames(*wrong)


def test_a_bad_picture_of_a_list_is_named_by_its_place(random_tiny: PaliGemma) -> None:
    with pytest.raises(ImageError, match=r"picture 2 of 3: .* there is no file none\.png"):
        random_tiny.read([DESK, "none.png", DESK], max_new_tokens=2)
    with pytest.raises(ConfigError, match="there is no option 'threshold' here"):
        random_tiny.read([DESK], threshold=0.5)  # type: ignore[call-arg]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one of them in a folder of its own, a damaged one, and what is none."""
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.png", "a.JPG", "more/c.png", ".hidden/d.png"):
        Image.fromarray(scene(len(name))).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_is_answered_as_it_comes_without_its_bad_pictures(
    random_tiny: PaliGemma, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = dict(random_tiny.detect_many(folder, "circle", **HOW))
    assert list(found) == [str(folder / name) for name in ("a.JPG", "b.png", "more/c.png")]
    (record,) = [one for one in caplog.records if "left out" in one.getMessage()]
    assert "bad.png" in record.getMessage()
    assert record.levelno == logging.WARNING
    for path, one in found.items():
        assert one.text == random_tiny.detect(path, "circle", **HOW).text
        assert one.draw().width >= 40
    patterns = str(folder / "*.png"), str(folder / "**/*.png")
    texts = [[*random_tiny.ask_many(one, "caption en", max_new_tokens=2)] for one in patterns]
    assert [len(one) for one in texts] == [1, 2]
    assert len([*random_tiny.segment_many(folder, "circle", max_new_tokens=2)]) == 3


@pytest.mark.parametrize("source", ["bad.png", "empty", "*.gif", "bad*"])
def test_many_pictures_of_which_none_can_be_read_are_an_error(
    random_tiny: PaliGemma, folder: Path, source: str
) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ImageError):
        list(random_tiny.ask_many(str(folder / source), "ocr", max_new_tokens=2))


@pytest.mark.parametrize("source", [3, b"bytes", None, Image.new("RGB", (3, 3))])
def test_many_pictures_are_no_single_picture(random_tiny: PaliGemma, source: Any) -> None:
    with pytest.raises(ImageError, match="many pictures are a folder, a pattern or a list"):
        next(random_tiny.ask_many(source, "ocr"))


def test_a_stream_of_pictures_is_taken_by_the_batch_and_none_is_kept(
    random_tiny: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.pipeline.paligemma.MAX_ROWS", 4)
    taken: list[weakref.ref[np.ndarray]] = []

    def pictures() -> Iterator[np.ndarray]:
        for seed in range(12):
            picture = scene(seed)
            taken.append(weakref.ref(picture))
            yield picture

    kept: list[Detections] = []
    for _, found in random_tiny.detect_many(pictures(), "circle", max_new_tokens=2):
        kept.append(found)
        assert len(taken) <= len(kept) + 4
    del _
    gc.collect()
    assert len(kept) == 12
    assert [one() for one in taken] == [None] * 12


def test_detections_of_a_picture_just_opened_find_it_again_in_its_file(
    random_tiny: PaliGemma, tmp_path: Path
) -> None:
    path = tmp_path / "scene.png"
    Image.fromarray(scene(3)).save(path)
    opened = Image.open(path)
    found = random_tiny.detect(opened, "circle", max_new_tokens=2)
    assert (
        found.draw().tobytes()
        == random_tiny.detect(path, "circle", max_new_tokens=2).draw().tobytes()
    )
    path.unlink()
    with pytest.raises(ImageError, match="changed or removed"):
        found.draw()
    # One that was changed in memory is not what its file holds.
    Image.fromarray(scene(3)).save(path)
    changed = Image.open(path)
    changed.paste((255, 0, 0), (0, 0, 40, 30))
    again = random_tiny.detect(changed, "circle", max_new_tokens=2)
    path.unlink()
    assert again.picture is not None
    assert again.picture[0, 0].tolist() == [255, 0, 0]
