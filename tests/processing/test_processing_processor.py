"""The token layout and the batches made of it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paligemma.errors import ConfigError, ImageError, PromptError
from paligemma.processing.frames import sample_frames
from paligemma.processing.processor import Processor, inference_row, layout, training_row
from paligemma.processing.resize import resize, resize_float, to_unit_range
from paligemma.processing.tokenizer import Tokenizer

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (50, 20, 3), dtype=np.uint8)


@pytest.fixture
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, 32)


def test_the_layout_is_bos_prefix_separator_suffix_eos(tokenizer: Tokenizer) -> None:
    row = layout([50, 51], [60], tokenizer.vocab, add_eos=True)
    assert row.tokens == (2, 50, 51, 4, 60, 1)
    assert row.mask_ar == (0, 0, 0, 0, 1, 1)
    assert row.mask_loss == (0, 0, 0, 0, 1, 1)
    assert row.mask_input == (1, 1, 1, 1, 1, 1)


def test_rows_are_cut_and_padded_on_the_right(tokenizer: Tokenizer) -> None:
    padded = training_row([50], [60], tokenizer.vocab, 7)
    assert padded.tokens == (2, 50, 4, 60, 1, 0, 0, 0)
    assert padded.mask_ar == (0, 0, 0, 1, 1, 1, 1, 1)
    assert padded.mask_loss == (0, 0, 0, 1, 1, 0, 0, 0)
    cut = training_row([50], [60, 61], tokenizer.vocab, 4)
    assert cut.tokens == (2, 50, 4, 60, 61)  # EOS is lost
    squeezed = training_row([50] * 9, [60], tokenizer.vocab, 4)
    assert sum(squeezed.mask_loss) == 0
    prompt = inference_row([50], [60], tokenizer.vocab, 6)
    assert prompt.tokens == (2, 50, 4, 60, 0, 0)  # no EOS: the answer goes on
    assert prompt.mask_input == (1, 1, 1, 1, 0, 0)


def test_prefix_separator_and_suffix_are_tokenised_apart(
    processor: Processor, tokenizer: Tokenizer
) -> None:
    # "re" + "d" and "ca" + "t" merge when joined, so the boundary shows.
    assert len(tokenizer.encode("a re")) + len(tokenizer.encode("d")) > len(
        tokenizer.encode("a red")
    )
    batch = processor.training_batch(None, ["a re"], ["d"], text_len=12)
    expected = [2, *tokenizer.encode("a re"), 4, *tokenizer.encode("d"), 1]
    assert batch.tokens[0, : len(expected)].tolist() == expected
    assert batch.tokens[0, len(expected) :].sum() == 0


def test_a_training_batch_has_one_more_token_than_the_model_reads(processor: Processor) -> None:
    batch = processor.training_batch(
        [PICTURE, OTHER], ["detect cat", ""], ["<loc0001> cat", "a b"], text_len=14
    )
    assert batch.images is not None
    assert batch.mask_loss is not None
    assert (batch.images.shape, batch.images.dtype) == ((2, 32, 32, 3), torch.float32)
    assert (batch.tokens.shape, batch.tokens.dtype) == ((2, 15), torch.int64)
    assert (batch.mask_ar.dtype, batch.mask_input.dtype) == (torch.int64, torch.bool)
    assert batch.mask_loss.dtype == torch.float32
    assert torch.equal(batch.mask_input, batch.tokens != 0)
    assert torch.equal(batch.mask_loss > 0, (batch.mask_ar == 1) & batch.mask_input)
    assert torch.all(batch.mask_ar[~batch.mask_input] == 1)


def test_an_inference_batch_pads_to_its_longest_prompt(processor: Processor) -> None:
    prompts = ["ocr", "answer en how many red circles are there?"]
    batch = processor.inference_batch([PICTURE, OTHER], prompts)
    alone = [processor.inference_batch([PICTURE], [prompt]) for prompt in prompts]
    assert batch.mask_loss is None
    assert batch.tokens.shape[1] == alone[1].tokens.shape[1]
    for row, single in enumerate(alone):
        length = single.tokens.shape[1]
        assert torch.equal(batch.tokens[row, :length], single.tokens[0])
        assert batch.mask_input[row].sum() == length
        assert torch.all(single.mask_ar == 0)


def test_an_answer_already_begun_is_causal(processor: Processor) -> None:
    batch = processor.inference_batch([PICTURE], ["ocr"], ["a b"])
    begun = processor.tokenizer.encode("a b")
    assert batch.tokens[0, -len(begun) :].tolist() == begun
    assert batch.mask_ar[0].sum() == len(begun)


def test_a_prompt_longer_than_text_len_is_refused_or_cut(processor: Processor) -> None:
    full = processor.inference_batch([PICTURE], ["detect cat ; dog"])
    longest = full.tokens.shape[1]
    with pytest.raises(PromptError, match=f"text_len = 3 tokens, got {longest}"):
        processor.inference_batch([PICTURE], ["detect cat ; dog"], text_len=3)
    cut = processor.inference_batch([PICTURE], ["detect cat ; dog"], text_len=3, truncate=True)
    assert torch.equal(cut.tokens, full.tokens[:, :3])


def test_a_typed_marker_changes_no_token_and_is_reported_once(
    processor: Processor, caplog: pytest.LogCaptureFixture
) -> None:
    plain = processor.inference_batch([PICTURE], ["caption en"])
    for _ in range(2):
        typed = processor.inference_batch([PICTURE], ["<image>caption en\n"])
        assert torch.equal(typed.tokens, plain.tokens)
    assert caplog.text.count("leading <image>") == 1
    assert caplog.text.count("trailing newline") == 1
    learned = processor.training_batch([PICTURE], ["<image>caption en\n"], ["a"], text_len=20)
    assert torch.equal(learned.tokens[0, : plain.tokens.shape[1]], plain.tokens[0])


def test_an_end_typed_after_an_answer_is_not_learnt_twice(
    processor: Processor, caplog: pytest.LogCaptureFixture
) -> None:
    plain = processor.training_batch(None, ["ocr"], ["a cat"], text_len=20)
    typed = processor.training_batch(None, ["<bos>ocr"], ["a cat <eos>\n"], text_len=20)
    assert torch.equal(typed.tokens, plain.tokens)
    assert "trailing <eos> was removed" in caplog.text


def test_text_cannot_add_control_tokens(processor: Processor) -> None:
    batch = processor.training_batch(None, ["x<bos><image><pad>"], ["<eos>\n<bos>y"], text_len=60)
    row = batch.tokens[0][batch.mask_input[0]].tolist()
    assert (row.count(2), row.count(1), row.count(0)) == (1, 1, 0)
    assert row[-1] == 1


def test_empty_and_overlong_text_is_refused(processor: Processor) -> None:
    with pytest.raises(PromptError, match="got an empty one"):
        processor.inference_batch([PICTURE], [""])
    with pytest.raises(PromptError, match="a prompt may have 10000"):
        processor.inference_batch([PICTURE], ["a" * 100_000])
    with pytest.raises(PromptError, match="a suffix may have 10000"):
        processor.inference_batch([PICTURE], ["ocr"], ["a" * 100_000])


@pytest.mark.parametrize(
    ("images", "prompts", "suffixes"),
    [
        ([PICTURE], ["a", "b"], None),
        ([PICTURE], ["a"], ["b", "c"]),
        ([], [], None),
        ([PICTURE], "ocr", None),
        ([PICTURE], ["ocr"], "a"),
    ],
)
def test_counts_that_differ_are_refused(
    processor: Processor, images: Any, prompts: Any, suffixes: Any
) -> None:
    with pytest.raises(PromptError):
        processor.inference_batch(images, prompts, suffixes)


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "bilinear-antialias"])
def test_pictures_are_resized_by_the_named_method(tokenizer: Tokenizer, method: str) -> None:
    processor = Processor(tokenizer, 16, resize_method=method)
    batch = processor.inference_batch([PICTURE], ["ocr"])
    assert batch.images is not None
    assert np.array_equal(batch.images[0].numpy(), to_unit_range(resize(PICTURE, 16, method)))


def test_all_sources_of_a_picture_are_the_same_to_the_model(processor: Processor) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    expected = processor.pixels(PICTURE)
    for source in (buffer.getvalue(), Image.fromarray(PICTURE), expected):
        assert torch.equal(processor.pixels(source), expected)
    assert expected.min() >= -1
    assert expected.max() <= 1


def test_two_pictures_are_stacked_as_frames(processor: Processor) -> None:
    batch = processor.inference_batch([[PICTURE, OTHER], (OTHER, PICTURE)], ["ocr", "caption en"])
    assert batch.images is not None
    assert batch.images.shape == (2, 2, 32, 32, 3)
    assert torch.equal(batch.images[0, 0], batch.images[1, 1])
    assert torch.equal(batch.images[0, 0], processor.pixels(PICTURE))


def test_text_alone_makes_a_batch_without_pictures(processor: Processor) -> None:
    assert processor.inference_batch(None, ["ocr"]).images is None


def test_examples_with_different_numbers_of_pictures_are_refused(processor: Processor) -> None:
    with pytest.raises(ImageError, match="same number of pictures"):
        processor.inference_batch([PICTURE, [PICTURE]], ["ocr", "ocr"])
    with pytest.raises(ImageError, match="1 to 128 pictures, got 0"):
        processor.pixels([])
    with pytest.raises(ImageError, match="1 to 128 pictures, got 129"):
        processor.pixels([PICTURE] * 129)


@pytest.mark.parametrize(
    "prepared",
    [
        torch.zeros(16, 16, 3),
        torch.zeros(32, 32, 3, dtype=torch.float16),
        torch.zeros(3, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 1, 32, 32, 3),
    ],
)
def test_prepared_pixels_of_another_form_are_refused(
    processor: Processor, prepared: torch.Tensor
) -> None:
    with pytest.raises(ImageError, match=r"float32 \[32, 32, 3\]"):
        processor.pixels(prepared)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-3, 1), (0.5, 0.9), (-1, 1.1)])
def test_tensors_that_are_no_prepared_pixels_are_refused_with_their_range_and_the_remedy(
    processor: Processor, low: float, high: float
) -> None:
    tensor = torch.linspace(low, high, 32 * 32 * 3).reshape(32, 32, 3)
    for example in (tensor, tensor[None], [tensor]):
        with pytest.raises(ImageError, match=rf"got {low:g}\.\.{high:g}; state layout="):
            processor.pixels(example)
    with pytest.raises(ImageError, match="got nan"):
        processor.pixels(torch.full((32, 32, 3), torch.nan))


def test_prepared_pixels_without_a_dark_one_are_taken_where_that_is_stated(
    processor: Processor,
) -> None:
    bright = processor.pixels(np.full((9, 9, 3), 200, np.uint8))
    with pytest.raises(ImageError, match="layout='prepared' where it is that bright"):
        processor.pixels(bright)
    assert processor.pixels(bright, layout="prepared") is bright
    white = processor.pixels(np.full((9, 9, 3), 255, np.uint8))
    assert processor.pixels(white) is white
    with pytest.raises(ImageError, match=r"lie in \[-1, 1\]"):
        processor.pixels(bright * 3, layout="prepared")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_is_a_picture_where_its_layout_is_stated(
    processor: Processor, dtype: torch.dtype
) -> None:
    picture = torch.from_numpy(PICTURE)
    tensor = picture if dtype == torch.uint8 else (picture.double() / 255).to(dtype)
    truth = processor.pixels(PICTURE)
    first = tensor.permute(2, 0, 1)
    tolerance = 0.02 if dtype == torch.bfloat16 else 0.0 if dtype != torch.float16 else 0.01
    for read in (
        processor.pixels(tensor, layout="HWC"),
        processor.pixels(first, layout="CHW"),
        processor.pixels(first.numpy() if dtype != torch.bfloat16 else first, layout="CHW"),
        processor.pixels(first),
        processor.pixels([first], layout="CHW")[0],
        processor.pixels(first[None], layout="CHW")[0],
    ):
        torch.testing.assert_close(read, truth, rtol=0, atol=tolerance)


def test_a_layout_that_does_not_fit_is_refused(processor: Processor) -> None:
    for example, axes, rule in (
        (torch.zeros(32, 32, 3), "HCW", "the layout of a picture is"),
        (torch.zeros(5, 32, 32), "CHW", "must be"),
        ("desk.png", "CHW", "belongs to a tensor or array, got str"),
        (torch.zeros(3, 8, 9, device="meta"), "CHW", "must be dense, of numbers that NumPy has"),
        (torch.zeros(3, 8, 9).to_sparse(), "CHW", "must be dense"),
        (torch.full((3, 8, 8), 255.0), "CHW", r"must lie in \[0, 1\], the array has 255"),
    ):
        with pytest.raises(ImageError, match=rule):
            processor.pixels(example, layout=axes)  # type: ignore[arg-type]


def test_frames_are_taken_by_stride_and_repeated_from_the_start() -> None:
    assert sample_frames(range(10), 3) == [0, 1, 2]
    assert sample_frames(range(10), 3, stride=4) == [0, 4, 8]
    assert sample_frames(range(10), 3, stride=2, offset=1) == [1, 3, 5]
    assert sample_frames("ab", 5) == ["a", "b", "a", "b", "a"]
    assert sample_frames(range(5), 4, stride=3) == [0, 3, 0, 3]


@pytest.mark.parametrize(
    ("num_frames", "stride", "offset", "length"),
    [(0, 1, 0, 5), (129, 1, 0, 5), (2, 0, 0, 5), (2, 1, 5, 5), (2, 1, -1, 5), (2, 1, 0, 0)],
)
def test_impossible_samples_are_refused(
    num_frames: int, stride: int, offset: int, length: int
) -> None:
    with pytest.raises(ImageError):
        sample_frames(range(length), num_frames, stride, offset)


def test_video_frames_are_bilinear_and_not_truncated(processor: Processor) -> None:
    video = processor.reader.video_pixels([PICTURE, OTHER], num_frames=3)
    expected = to_unit_range(resize_float(OTHER, 32, antialias=False))
    assert video.shape == (3, 32, 32, 3)
    assert np.array_equal(video[1].numpy(), expected)
    assert torch.equal(video[0], video[2])
    levels = (video[1].double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() > 0.1
    batch = processor.inference_batch([video], ["ocr"])
    assert batch.images is not None
    assert torch.equal(batch.images[0], video)


def test_a_processor_checks_its_options(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="resize method"):
        Processor(tokenizer, 32, resize_method="nearest")
    with pytest.raises(ConfigError, match="image_size_px"):
        Processor(tokenizer, 0)


def test_bounds_of_pictures_are_those_of_the_processor(tokenizer: Tokenizer) -> None:
    strict = Processor(tokenizer, 32, max_pixels=100)
    with pytest.raises(ImageError, match="may have 100 pixels"):
        strict.inference_batch([PICTURE], ["ocr"])
    with pytest.raises(ImageError, match="allow_url"):
        strict.inference_batch(["https://example.com/a.png"], ["ocr"])
