"""Arguments of a wrong kind, and pictures that change after they were asked about."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paligemma import PaliGemma, PaliGemmaError
from paligemma.errors import ConfigError, ImageError

# One of each kind that reached Python's own errors, or counted as something it is not.
CLUMSY: tuple[Any, ...] = (
    *(1.5, "", "not a word", b"x", [], [[]], ["a"], {}, {"a": 1}, object(), print, 3 + 4j),
    *(np.array(3), np.array([]), np.zeros((3, 3)), np.float32(0.5), torch.zeros(2, 2)),
    *(torch.zeros(0), torch.zeros(3, 3).to_sparse(), Image.new("1", (3, 3)), "a" * 300_000),
)
CALLS: dict[str, Callable[[PaliGemma, Any], Any]] = {
    "frames": lambda pg, value: pg.encode_image(_picture(), frames=value),
    "frame": lambda pg, value: pg.open_picture(_picture(), frame=value),
    "style": lambda pg, value: pg.caption(_picture(), style=value),
    "language": lambda pg, value: pg.caption(_picture(), lang=value),
    "constrain": lambda pg, value: pg.detect(_picture(), "star", constrain=value),
    "no repeats": lambda pg, value: pg.detect(_picture(), "star", constrain=True, no_repeats=value),
    "most objects": lambda pg, value: pg.detect(
        _picture(), "star", constrain=True, max_objects=value
    ),
    "choices": lambda pg, value: pg.read(_picture(), choices=value),
    "threshold": lambda pg, value: pg.detect(_picture(), "star", threshold=value),
    "weighing": lambda pg, value: pg.read(_picture(), weigh_locations=value),
    **{
        name: lambda pg, value, name=name: PaliGemma.from_pretrained("tiny", **{name: value})
        for name in (
            *("mode", "revision", "conventions", "resize_method", "kv_cache_dtype", "background"),
            *("tokenizer", "mask_codec", "adapter", "allow_url", "attn_softcap", "sliding_window"),
        )
    },
    "name": lambda pg, value: PaliGemma.from_pretrained(value),
}
_ALLOWED = {"attn_softcap": (1.5, 0.5), "threshold": (0.5,), "choices": (["a"],)}


def _picture() -> np.ndarray:
    return np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize("argument", CALLS)
def test_an_argument_of_a_wrong_kind_is_refused_in_a_short_sentence(
    random_tiny: PaliGemma, argument: str
) -> None:
    refused = 0
    for value in CLUMSY:
        if isinstance(value, float | np.floating | list) and value in _ALLOWED.get(argument, ()):
            continue
        with pytest.raises(PaliGemmaError) as error:
            CALLS[argument](random_tiny, value)
        assert len(str(error.value)) < 1000, f"{argument} of {type(value)}"
        refused += 1
    assert refused > len(CLUMSY) - 4


@pytest.mark.parametrize("value", [None, 3, "desk.png", b"desk", Path("desk.png"), np.array(3)])
def test_several_examples_are_a_list(random_tiny: PaliGemma, value: Any) -> None:
    with pytest.raises(ImageError, match="several examples are a list"):
        random_tiny.encode_images(value)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(0, 224, 224, 3), torch.zeros(224, 224, 3).to_sparse()],
)
def test_prepared_pixels_without_values_are_refused(random_tiny: PaliGemma, value: Any) -> None:
    with pytest.raises(ImageError):
        random_tiny.encode_image(value)


@pytest.mark.parametrize("value", ["no", "false", 0, None])
def test_only_true_and_false_allow_the_network(value: Any) -> None:
    with pytest.raises(ConfigError, match="allow_url must be True or False"):
        PaliGemma.from_pretrained("tiny", allow_url=value)


@pytest.mark.parametrize("value", [True, "0", 0.0])
def test_a_frame_is_a_whole_number(random_tiny: PaliGemma, value: Any) -> None:
    with pytest.raises(ImageError, match="frame"):
        random_tiny.encode_image(_picture(), frames=value)
    random_tiny.encode_image(_picture(), frames=np.int64(0))  # type: ignore[arg-type]


def test_boxes_are_never_drawn_on_a_picture_that_replaced_the_one_asked_about(
    random_tiny: PaliGemma, tmp_path: Path
) -> None:
    path = tmp_path / "desk.png"
    Image.new("RGB", (32, 32), "red").save(path)
    found = random_tiny.detect(path, "star", max_new_tokens=2)
    assert found.picture is not None
    replacement = tmp_path / "new.png"
    Image.new("RGB", (32, 32), "blue").save(replacement)
    os.replace(replacement, path)
    with pytest.raises(ImageError, match=r"desk\.png was changed or removed since"):
        found.save_png(tmp_path / "drawn.png")
    path.unlink()
    with pytest.raises(ImageError, match="changed or removed since"):
        found.save_png(tmp_path / "drawn.png")
    found.save_png(tmp_path / "drawn.png", np.zeros((32, 32, 3), np.uint8))


def test_a_picture_of_a_pipe_is_kept_because_it_is_read_once(
    random_tiny: PaliGemma, tmp_path: Path
) -> None:
    pipe, picture = tmp_path / "pipe", tmp_path / "red.png"
    os.mkfifo(pipe)
    Image.new("RGB", (32, 32), "red").save(picture)
    writer = threading.Thread(target=lambda: pipe.write_bytes(picture.read_bytes()))
    writer.start()
    found = random_tiny.detect(pipe, "star", max_new_tokens=2)
    writer.join()
    assert found.picture is not None
    assert found.picture.shape == (32, 32, 3)


def test_a_picture_is_found_again_from_another_folder(
    random_tiny: PaliGemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    found = random_tiny.detect("red.png", "star", max_new_tokens=2)
    monkeypatch.chdir("/")
    found.save_png(tmp_path / "drawn.png")
