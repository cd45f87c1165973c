"""Pictures and text to a `Batch`; sole owner of the token layout.

    [image x I] [BOS] prefix [sep] | suffix [EOS] | [PAD ...]
    mask_ar      0     0      0    |   1      1   |   1
    mask_input   1     1      1    |   1      1   |   0
    mask_loss    0     0      0    |   1      1   |   0

Image tokens have no ids: the model puts them in front of the rows built here. Prefix, separator
and suffix are tokenised apart, so that no merge crosses a boundary.
Source: big_vision configs/proj/paligemma/transfers/common.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from paligemma.batch import Batch, TokenRow
from paligemma.errors import PromptError
from paligemma.processing.colours import WHITE
from paligemma.processing.image import MAX_PIXELS
from paligemma.processing.pixels import (
    ExampleImages,
    PixelLayout,
    PixelReader,
    looks_photographed,
    stack_pixels,
)
from paligemma.processing.prompts import (
    clean_prompt,
    require_bounded,
    single_prompts,
    strip_eos,
    strip_markers,
)
from paligemma.processing.resize import BICUBIC
from paligemma.processing.tokenizer import Tokenizer
from paligemma.vocab import Vocab

logger = logging.getLogger(__name__)

Cleaned = TypeVar("Cleaned")


def layout(
    prefix_ids: Sequence[int], suffix_ids: Sequence[int], vocab: Vocab, *, add_eos: bool
) -> TokenRow:
    """One row without padding.

    Args:
        prefix_ids: the prompt, without BOS and separator.
        suffix_ids: the answer, without EOS; at inference an answer already begun, or empty.
        vocab: source of the BOS, separator and EOS ids.
        add_eos: True in training.
    """
    prompt = (vocab.bos, *prefix_ids, vocab.sep)
    answer = (*suffix_ids, vocab.eos) if add_eos else tuple(suffix_ids)
    in_answer = (0,) * len(prompt) + (1,) * len(answer)
    return TokenRow(
        tokens=prompt + answer,
        mask_ar=in_answer,
        mask_input=(1,) * len(in_answer),
        mask_loss=in_answer,
    )


def training_row(
    prefix_ids: Sequence[int], suffix_ids: Sequence[int], vocab: Vocab, text_len: int
) -> TokenRow:
    """`text_len + 1` tokens: all but the last are read, all but the first are scored."""
    return layout(prefix_ids, suffix_ids, vocab, add_eos=True).fit(text_len + 1, vocab.pad)


def inference_row(
    prefix_ids: Sequence[int], suffix_ids: Sequence[int], vocab: Vocab, text_len: int
) -> TokenRow:
    """`text_len` tokens: the prompt and, if the answer has begun, its first tokens."""
    return layout(prefix_ids, suffix_ids, vocab, add_eos=False).fit(text_len, vocab.pad)


class Processor:
    """Turns pictures and text into batches for one model.

    Args:
        tokenizer: the model's tokenizer.
        image_size_px: side of the square input.
        resize_method: `bicubic` (what the hub does), `bilinear` or `bilinear-antialias`.
        allow_url: whether pictures may be fetched from URLs.
        max_pixels: largest picture that is decoded.
        background: colour under transparent parts; "none" drops transparency, as the original.
        knows_scenes_only: whether the model was taught drawn scenes and nothing else, which is
            reported once where a picture looks like a photograph.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_size_px: int,
        *,
        resize_method: str = BICUBIC,
        allow_url: bool = False,
        max_pixels: int = MAX_PIXELS,
        background: str = WHITE,
        knows_scenes_only: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self._knows_scenes_only = knows_scenes_only
        self.reader = PixelReader(
            image_size_px=image_size_px,
            resize_method=resize_method,
            allow_url=allow_url,
            max_pixels=max_pixels,
            background=background,
        )
        self._reported: set[str] = set()

    @property
    def vocab(self) -> Vocab:
        return self.tokenizer.vocab

    @property
    def image_size_px(self) -> int:
        return self.reader.image_size_px

    def prefixes(self, prompt: str) -> tuple[str, ...]:
        """The prefixes that a typed prompt asks for, mostly one; see `single_prompts`."""
        return self._reporting(single_prompts, self._reporting(clean_prompt, prompt))

    def prompt_row(self, prompt: str, suffix: str = "") -> TokenRow:
        """The tokens of one prompt to be continued.

        Args:
            prompt: prefix as typed; see `clean_prompt`.
            suffix: answer already begun, continued without EOS.

        Raises:
            PromptError: a bad prompt.
        """
        prefix = self._reporting(clean_prompt, prompt)
        suffix = self._reporting(strip_eos, suffix)
        return layout(
            self.tokenizer.encode(prefix), self.tokenizer.encode(suffix), self.vocab, add_eos=False
        )

    def inference_batch(
        self,
        images: Sequence[ExampleImages] | None,
        prompts: Sequence[str],
        suffixes: Sequence[str] | None = None,
        *,
        text_len: int | None = None,
        truncate: bool = False,
    ) -> Batch:
        """Prompts to be continued.

        Args:
            images: one entry for each prompt, or None for text alone. An entry is a picture or a
                list of pictures (two images, video frames); see `pixels`.
            prompts: prefixes as typed; see `clean_prompt`.
            suffixes: answers already begun, continued without EOS.
            text_len: length of the rows; the longest row by default.
            truncate: cut rows longer than `text_len` on the right, as the original does.

        Returns:
            Batch without mask_loss.

        Raises:
            PromptError: a bad prompt, counts that differ, or a row longer than `text_len`.
            ImageError: a bad picture, or different numbers of frames.
        """
        suffixes = [""] * len(prompts) if suffixes is None else suffixes
        _require_same_count(images, prompts, suffixes)
        for suffix in suffixes:
            require_bounded("suffix", suffix)
        rows = [
            self.prompt_row(prompt, suffix)
            for prompt, suffix in zip(prompts, suffixes, strict=True)
        ]
        longest = max(map(len, rows))
        text_len = longest if text_len is None else text_len
        if longest > text_len and not truncate:
            raise PromptError(
                f"a prompt must fit text_len = {text_len} tokens, got {longest}; "
                "shorten it, raise text_len or allow truncation"
            )
        return self._batch(images, rows, text_len, with_loss=False)

    def training_batch(
        self,
        images: Sequence[ExampleImages] | None,
        prefixes: Sequence[str],
        suffixes: Sequence[str],
        *,
        text_len: int,
    ) -> Batch:
        """Examples to learn from; rows are `text_len + 1` long and overlong ones lose their tail.

        Args:
            images: as for `inference_batch`.
            prefixes: prompts; an empty one is allowed.
            suffixes: answers; EOS is added.
            text_len: tokens that the model reads.

        Returns:
            Batch with mask_loss, 1 on the suffix and its EOS.

        Raises:
            PromptError: counts that differ.
            ImageError: a bad picture, or different numbers of frames.
        """
        _require_same_count(images, prefixes, suffixes)
        rows = [
            layout(
                self.tokenizer.encode(self._reporting(strip_markers, prefix)),
                self.tokenizer.encode(self._reporting(strip_eos, suffix)),
                self.vocab,
                add_eos=True,
            )
            for prefix, suffix in zip(prefixes, suffixes, strict=True)
        ]
        return self._batch(images, rows, text_len + 1, with_loss=True)

    def pixels(self, example: ExampleImages, *, layout: PixelLayout | None = None) -> torch.Tensor:
        """Pictures of one example as the model reads them, see `PixelReader.pixels`."""
        pixels = self.reader.pixels(example, layout=layout)
        if self._knows_scenes_only and looks_photographed(pixels):
            self._report(
                "tiny knows drawn scenes only, and this looks like a photograph; for "
                "photographs name a released model"
            )
        return pixels

    def _reporting(
        self, clean: Callable[[str], tuple[Cleaned, tuple[str, ...]]], typed: str
    ) -> Cleaned:
        """Applies a cleaning function and logs each kind of notice once."""
        cleaned, notices = clean(typed)
        for notice in notices:
            self._report(notice)
        return cleaned

    def _report(self, notice: str) -> None:
        if notice not in self._reported:
            self._reported.add(notice)
            logger.warning("%s", notice)

    def _batch(
        self,
        images: Sequence[ExampleImages] | None,
        rows: Sequence[TokenRow],
        length: int,
        *,
        with_loss: bool,
    ) -> Batch:
        return Batch.from_rows(
            [row.fit(length, self.vocab.pad) for row in rows],
            pad=self.vocab.pad,
            images=None if images is None else stack_pixels(list(map(self.pixels, images))),
            with_loss=with_loss,
        )


def _require_same_count(
    images: Sequence[ExampleImages] | None, prompts: Sequence[str], suffixes: Sequence[str]
) -> None:
    for what, values in (("prompts", prompts), ("suffixes", suffixes)):
        if isinstance(values, str):
            raise PromptError(f"{what} must be a list of strings, got one string; put it in a list")
    num_images = len(prompts) if images is None else len(images)
    if not prompts or not num_images == len(prompts) == len(suffixes):
        raise PromptError(
            f"a batch needs one picture, one prompt and one suffix for each example, got "
            f"{num_images}, {len(prompts)} and {len(suffixes)}"
        )
