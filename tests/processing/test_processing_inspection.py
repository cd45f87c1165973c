"""What `inspect` shows is what the model gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paligemma.errors import ConfigError, PromptError
from paligemma.processing.attention_picture import attention_picture
from paligemma.processing.inspection import ExampleView, inspect_example
from paligemma.processing.processor import Processor
from paligemma.processing.resize import resize
from paligemma.processing.tokenizer import Tokenizer

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
BLUE, GREEN, RED = (0, 114, 178), (0, 158, 115), (213, 94, 0)
BLOCKED = (236, 236, 236)


@pytest.fixture
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, 32)


def allowed(view: ExampleView) -> torch.Tensor:
    """The rule of the mask, written out: [query, key]."""
    mask_ar, mask_input = view.masks()
    step, valid = mask_ar[0].cumsum(0), mask_input[0]
    return (step[None, :] <= step[:, None]) & valid[None, :] & valid[:, None]


def test_a_training_example_shows_the_batch_and_its_labels(processor: Processor) -> None:
    view = inspect_example(
        processor, PICTURE, "detect cat", "<loc0001> cat", tokens_per_image=4, text_len=16
    )
    batch = processor.training_batch([PICTURE], ["detect cat"], ["<loc0001> cat"], text_len=16)
    assert batch.mask_loss is not None
    assert [token.token for token in view.tokens] == batch.tokens[0].tolist()
    assert [token.mask_ar for token in view.tokens] == batch.mask_ar[0].tolist()
    assert [token.mask_input for token in view.tokens] == batch.mask_input[0].int().tolist()
    assert [token.mask_loss for token in view.tokens] == batch.mask_loss[0].int().tolist()
    labels = [token.label for token in view.tokens if token.label is not None]
    assert labels == batch.tokens[0][batch.mask_loss[0] > 0].tolist()
    first = next(token for token in view.tokens if token.label is not None)
    assert (first.role, first.piece) == ("sep", "\n")  # the separator predicts the first token
    assert view.num_image_tokens == 4
    assert view.roles[:5] == ("image", "image", "image", "image", "prefix")
    assert view.roles[-1] == "pad"


def test_a_prompt_shows_no_labels_and_its_notices(processor: Processor) -> None:
    view = inspect_example(processor, PICTURE, "<image>caption en", tokens_per_image=4)
    assert view.tokens[0].piece == "<bos>"
    assert {token.role for token in view.tokens} == {"prefix", "sep"}
    assert {token.label for token in view.tokens} == {None}
    assert {token.mask_loss for token in view.tokens} == {0}
    assert len(view.notices) == 1
    with pytest.raises(PromptError, match="empty"):
        inspect_example(processor, PICTURE, "", tokens_per_image=4)


def test_the_resized_pictures_are_shown_as_grey_levels(processor: Processor) -> None:
    single = inspect_example(processor, PICTURE, "ocr", tokens_per_image=4)
    assert np.array_equal(single.pictures, resize(PICTURE, 32)[None])
    pair = inspect_example(processor, [PICTURE, PICTURE], "ocr", tokens_per_image=4)
    assert pair.pictures.shape == (2, 32, 32, 3)
    assert pair.num_image_tokens == 8
    text = inspect_example(processor, None, "ocr", tokens_per_image=4)
    assert (text.num_image_tokens, len(text.pictures)) == (0, 0)


def test_the_attention_picture_colours_what_may_be_attended(processor: Processor) -> None:
    view = inspect_example(processor, PICTURE, "ocr", "a b", tokens_per_image=256, text_len=20)
    picture = np.asarray(attention_picture(allowed(view), view))
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {BLUE, GREEN, RED, BLOCKED} <= colours
    # The grid begins at 144 px, a cell has 20; cell 0 is the image, the last shown is padding.
    num_text = sum(role != "pad" for role in view.roles[256:])
    middle = [154 + 20 * cell for cell in range(num_text + 2)]
    assert tuple(picture[middle[0], middle[0]]) == BLUE
    assert tuple(picture[middle[0], middle[num_text]]) == BLOCKED  # the image sees no answer
    assert tuple(picture[middle[num_text], middle[num_text]]) == RED
    assert tuple(picture[middle[num_text - 1], middle[num_text]]) == BLOCKED  # causal
    assert tuple(picture[middle[1], middle[2]]) == GREEN  # the prefix sees ahead
    assert tuple(picture[middle[num_text], middle[num_text + 1]]) == BLOCKED  # nothing sees padding


def test_a_partly_allowed_cell_is_paler(processor: Processor) -> None:
    view = inspect_example(processor, PICTURE, "ocr", tokens_per_image=2)
    mask = allowed(view)
    mask[0, 1] = mask[1, 0] = False
    picture = np.asarray(attention_picture(mask, view))
    assert tuple(picture[154, 154]) == (118, 175, 207)  # half way from pale to blue


def test_a_long_prompt_still_gives_a_picture_of_bounded_size(processor: Processor) -> None:
    view = inspect_example(
        processor, PICTURE, "answer en " + "why? " * 200, "no " * 100, tokens_per_image=1024
    )
    picture = attention_picture(allowed(view), view)
    assert len(view.roles) > 1500
    assert max(picture.size) < 2200


def test_a_mask_of_another_size_is_refused(processor: Processor) -> None:
    view = inspect_example(processor, PICTURE, "ocr", tokens_per_image=2)
    with pytest.raises(ConfigError, match="the mask must be"):
        attention_picture(torch.ones(3, 3, dtype=torch.bool), view)
