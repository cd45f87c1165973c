"""Batches are made of rows, cut into rows, and trimmed, without a change to any token."""

from __future__ import annotations

import pytest
import torch

from paligemma.batch import Batch, TokenRow

PAD = 9


def row(tokens: tuple[int, ...], num_answer: int) -> TokenRow:
    """A training row whose last `num_answer` tokens are the answer."""
    in_answer = (0,) * (len(tokens) - num_answer) + (1,) * num_answer
    return TokenRow(
        tokens=tokens, mask_ar=in_answer, mask_input=(1,) * len(tokens), mask_loss=in_answer
    )


ROWS = [row((2, 50, 4, 60, 1), 2), row((2, 51, 52, 4, 61, 62, 1), 3), row((2, 4), 0)]


@pytest.fixture
def batch() -> Batch:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 2, 3)
    return Batch.from_rows(ROWS, pad=PAD, images=images, with_loss=True)


def assert_same(first: Batch, second: Batch) -> None:
    assert (first.images is None) == (second.images is None)
    assert (first.mask_loss is None) == (second.mask_loss is None)
    for name in ("images", "tokens", "mask_ar", "mask_input", "mask_loss"):
        one, other = getattr(first, name), getattr(second, name)
        if one is not None:
            assert one.dtype == other.dtype, name
            assert torch.equal(one, other), name


def test_rows_of_unequal_length_are_padded_on_the_right(batch: Batch) -> None:
    assert batch.num_examples == 3
    assert batch.tokens.tolist() == [
        [2, 50, 4, 60, 1, PAD, PAD],
        [2, 51, 52, 4, 61, 62, 1],
        [2, 4, PAD, PAD, PAD, PAD, PAD],
    ]
    # Padding opens steps of its own, so that no real token attends to it.
    assert batch.mask_ar.tolist() == [
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1],
    ]
    assert batch.mask_input.sum(dim=1).tolist() == [5, 7, 2]
    assert batch.mask_loss is not None
    assert batch.mask_loss.tolist() == [
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    dtypes = [x.dtype for x in (batch.tokens, batch.mask_ar, batch.mask_input, batch.mask_loss)]
    assert dtypes == [torch.int64, torch.int64, torch.bool, torch.float32]


def test_a_batch_for_inference_has_no_targets() -> None:
    assert Batch.from_rows(ROWS, pad=PAD).mask_loss is None


def test_no_rows_make_an_empty_batch_that_keeps_its_images() -> None:
    images = torch.zeros(2, 4, 4, 3)
    batch = Batch.from_rows([], pad=PAD, images=images)
    assert batch.images is images
    assert batch.tokens.shape == batch.mask_input.shape == (0, 0)
    assert batch.tokens.dtype == torch.int64
    assert batch.trim().tokens.shape == (0, 0)


@pytest.mark.parametrize(
    "index", [[2, 0, 0], torch.tensor([2, 0, 0]), slice(1, 3), torch.tensor([True, False, True])]
)
def test_chosen_rows_are_those_of_every_tensor(
    batch: Batch, index: list[int] | slice | torch.Tensor
) -> None:
    numbers = torch.arange(3)[index].tolist()
    chosen = batch.rows(index)
    assert batch.images is not None
    assert chosen.images is not None
    assert chosen.images[:, 0, 0, 0].tolist() == numbers
    whole = Batch.from_rows(
        [ROWS[k].fit(7, PAD) for k in numbers],
        pad=PAD,
        images=batch.images[torch.tensor(numbers)],
        with_loss=True,
    )
    assert_same(chosen, whole)


def test_chosen_and_trimmed_rows_are_a_batch_of_these_rows_alone(batch: Batch) -> None:
    assert batch.images is not None
    alone = Batch.from_rows([ROWS[0], ROWS[2]], pad=PAD, images=batch.images[::2], with_loss=True)
    assert alone.tokens.shape == (2, 5)
    assert_same(batch.rows([0, 2]).trim(), alone)


def test_trimming_keeps_the_columns_before_the_last_valid_token(batch: Batch) -> None:
    # Valid tokens need not be contiguous: here the first column and the third hold some.
    valid = torch.zeros(3, 7, dtype=torch.bool)
    valid[0, 0] = valid[1, 2] = True
    gap = Batch(images=None, tokens=batch.tokens, mask_ar=batch.mask_ar, mask_input=valid)
    assert torch.equal(gap.trim().tokens, batch.tokens[:, :3])
    assert torch.equal(gap.trim().mask_input, valid[:, :3])


def test_a_batch_moves_to_a_device_whole(batch: Batch) -> None:
    moved = batch.to("meta")
    assert moved.images is not None
    assert moved.mask_loss is not None
    for tensor in (moved.images, moved.tokens, moved.mask_ar, moved.mask_input, moved.mask_loss):
        assert tensor.device.type == "meta"
    assert Batch.from_rows(ROWS, pad=PAD).to("meta").images is None
