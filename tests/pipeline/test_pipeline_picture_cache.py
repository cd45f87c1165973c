"""A picture that was encoded before is not encoded again, and answers are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_folder import DESK

from paligemma import Frames, PaliGemma
from paligemma.errors import ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.picture_cache import PictureCache


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of pictures in each pass of the tower."""
    passes: list[int] = []
    encode = PaliGemmaModel.encode_image

    def counted(self: PaliGemmaModel, images: torch.Tensor) -> torch.Tensor:
        passes.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(PaliGemmaModel, "encode_image", counted)
    return passes


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture
def make(tiny_dir: Any) -> Callable[..., PaliGemma]:
    return lambda **options: PaliGemma.from_pretrained(tiny_dir, **options)


def test_several_questions_about_one_picture_encode_it_once(
    make: Callable[..., PaliGemma], encoded: list[int]
) -> None:
    pg, without = make(), make(picture_cache_bytes=0)
    prompts = ["caption en", "answer en what is it?", "detect star"]
    ours = [pg.generate(DESK, prompt, max_new_tokens=6).token_logprobs for prompt in prompts]
    # The same content by another way.
    ours.append(pg.read(DESK.read_bytes(), max_new_tokens=6).token_logprobs)
    assert encoded == [1]
    theirs = [without.generate(DESK, prompt, max_new_tokens=6).token_logprobs for prompt in prompts]
    theirs.append(without.read(DESK, max_new_tokens=6).token_logprobs)
    assert encoded == [1] * 5
    assert ours == theirs


def test_writing_to_what_was_handed_out_changes_no_later_answer(
    make: Callable[..., PaliGemma],
) -> None:
    pg = make()
    first = pg.encode_image(DESK)
    wanted = first.soft_tokens.clone()
    for handed in (first, pg.encode_image(DESK)):
        handed.soft_tokens.numpy()[:] = 7
    assert torch.equal(pg.encode_image(DESK).soft_tokens, wanted)


def test_a_batch_encodes_only_what_is_new_and_each_picture_once(
    make: Callable[..., PaliGemma], encoded: list[int]
) -> None:
    pg, without = make(), make(picture_cache_bytes=0)
    pg.encode_image(picture(1))
    pictures = [picture(k) for k in (2, 1, 3, 2, 3)]
    ours = pg.encode_images(pictures)
    assert encoded == [1, 2]
    for one, other in zip(ours, without.encode_images(pictures), strict=True):
        assert torch.equal(one.soft_tokens, other.soft_tokens)
    assert encoded == [1, 2, 5]


def test_frames_of_one_example_are_a_picture_of_their_own(
    make: Callable[..., PaliGemma], encoded: list[int]
) -> None:
    pg = make()
    pg.encode_image(picture(1))
    both, swapped = (Frames(*map(picture, order)) for order in ((1, 2), (2, 1)))
    first, again, other = (pg.encode_image(one) for one in (both, both, swapped))
    assert torch.equal(first.soft_tokens, again.soft_tokens)
    assert not torch.equal(first.soft_tokens, other.soft_tokens)
    assert encoded == [1, 1, 1]


def test_the_least_recently_asked_gives_way_where_the_bound_is_reached(
    make: Callable[..., PaliGemma], encoded: list[int]
) -> None:
    size = make().encode_image(picture(0)).soft_tokens.nbytes
    encoded.clear()
    pg = make(picture_cache_bytes=2 * size + 1)
    for seed, is_new in ((1, True), (2, True), (1, False), (3, True), (1, False), (2, True)):
        before = len(encoded)
        pg.encode_image(picture(seed))
        assert (len(encoded) > before) == is_new, seed
        assert pg.engine.pictures.num_bytes <= 2 * size
    smaller = make(picture_cache_bytes=size - 1)
    encoded.clear()
    for _ in range(2):
        smaller.encode_image(picture(1))
    assert encoded == [1, 1]


def test_what_is_kept_of_a_batch_does_not_hold_the_others(make: Callable[..., PaliGemma]) -> None:
    pg = make()
    pg.encode_images([picture(k) for k in range(3)])
    kept = list(pg.engine.pictures._kept.values())
    assert len(kept) == 3
    assert all(one.untyped_storage().nbytes() == one.nbytes for one in kept)


def written(pg: PaliGemma) -> None:
    with torch.no_grad():
        pg.model.projector.bias.add_(1.0)


def replaced(pg: PaliGemma) -> None:
    bias = pg.model.projector.bias + 1.0
    pg.model.projector.bias = torch.nn.Parameter(bias.detach())


def refilled(pg: PaliGemma) -> None:
    pg.model.projector.bias.data = pg.model.projector.bias.data + 1.0


@pytest.mark.parametrize("change", [written, replaced, refilled])
def test_a_tower_that_changed_encodes_again(
    make: Callable[..., PaliGemma], change: Callable[[PaliGemma], None]
) -> None:
    pg = make()
    before = pg.encode_image(DESK).soft_tokens
    change(pg)
    after = pg.encode_image(DESK).soft_tokens
    torch.testing.assert_close(after, before + 1.0)


def test_parameters_that_count_no_writes_are_never_trusted(encoded: list[int]) -> None:
    with torch.inference_mode():
        layer = torch.nn.Linear(2, 2)
    model: Any = torch.nn.Module()
    model.vision, model.projector = layer, torch.nn.Identity()
    assert not PictureCache(1000).opens(model, None)


@pytest.mark.parametrize("size", [-1, 1.5, "much", None])
def test_a_bound_without_sense_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="picture_cache_bytes must be"):
        PaliGemma.from_pretrained("tiny", picture_cache_bytes=size)
