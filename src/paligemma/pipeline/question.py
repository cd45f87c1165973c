"""One prompt as the requests that answer it, and the answer that becomes of what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paligemma.outputs.assemble import to_detections
from paligemma.outputs.detections import Detections, join_detections
from paligemma.outputs.missing_masks import MissingMasks
from paligemma.outputs.parse import Decode, parse_tokens, text_answer
from paligemma.outputs.types import Detection, ParsedOutput, TextAnswer
from paligemma.pipeline.engine import Request, Written
from paligemma.pipeline.options import ObjectOptions
from paligemma.pipeline.pictures import EncodedImage
from paligemma.processing.prompts import ObjectPrompt
from paligemma.vocab import Vocab

if TYPE_CHECKING:
    from torch import Tensor

    from paligemma.outputs.vqvae import MaskCodec


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What one prompt asks.

    Attributes:
        prefixes: the texts that the model reads, one a request.
        requests: without a picture; see `pictures.about`.
        asked: what each prefix wants found, or None where it wants words.
        objects: which objects are kept; None where the answer is text whatever the model writes.
    """

    prefixes: tuple[str, ...]
    requests: tuple[Request, ...]
    asked: tuple[ObjectPrompt | None, ...]
    objects: ObjectOptions | None

    @property
    def wants_masks(self) -> bool:
        """Whether a mask codec is needed."""
        return any(asks is not None and asks.task == "segment" for asks in self.asked)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """Reads what the engine wrote.

    Attributes:
        decode: text of ids, up to the end token.
        mask_codec: gives the codec, or None with a warning.
    """

    vocab: Vocab
    decode: Decode
    mask_codec: Callable[[], MaskCodec | None]

    def codebook(self) -> Tensor | None:
        """The codewords of mask tokens, float32[K, D]; None where there is no codec."""
        codec = self.mask_codec()
        return None if codec is None else codec.codewords()

    def text(self, written: Written) -> TextAnswer:
        """The answer as text."""
        return text_answer(written.record, self.vocab, self.decode)

    def answer(
        self,
        question: Question,
        written: Sequence[Written],
        encoded: EncodedImage | None,
        *,
        missing: MissingMasks | None = None,
    ) -> TextAnswer | Detections:
        """What the prompt asked for, from one `Written` for each of its requests.

        Args:
            missing: counts the objects that came without a mask; by default a warning does.
        """
        if question.objects is None or encoded is None:
            return self.text(written[0])
        parsed = [parse_tokens(one.record, self.vocab, self.decode) for one in written]
        if not (question.asked[0] or parsed[0].objects):
            return self.text(written[0])
        counted = MissingMasks() if missing is None else missing
        found = [
            self._detections(one, encoded, asks, question.objects, counted)
            for one, asks in zip(parsed, question.asked, strict=True)
        ]
        if missing is None:
            counted.warn()
        return found[0] if len(found) == 1 else join_detections(found)

    def objects(
        self,
        question: Question,
        number: int,
        written: Written,
        encoded: EncodedImage,
        *,
        start: int,
    ) -> tuple[tuple[Detection, ...], int]:
        """Objects from the number `start` on of an answer that is being written, and how many there
        are in all; only those of the threshold, overlapping ones too.

        Args:
            number: of the request that is answered.
        """
        parsed = parse_tokens(written.record, self.vocab, self.decode)
        new = replace(parsed, objects=parsed.objects[start:])
        codec = self.mask_codec() if any(item.seg is not None for item in new.objects) else None
        found = to_detections(new, encoded.image_wh, codec=codec)
        options = question.objects or ObjectOptions()
        return found.selected(options.threshold, None).items, len(parsed.objects)

    def _detections(
        self,
        parsed: ParsedOutput,
        encoded: EncodedImage,
        asks: ObjectPrompt | None,
        options: ObjectOptions,
        missing: MissingMasks,
    ) -> Detections:
        has_masks = any(item.seg is not None for item in parsed.objects)
        codec = self.mask_codec() if has_masks else None
        found = to_detections(parsed, encoded.image_wh, codec=codec)
        labels = () if asks is None else asks.labels
        found = replace(found, asked_labels=labels, open_picture=encoded.open_picture)
        found = found.selected(options.threshold, options.max_overlap)
        if asks is not None and asks.task == "segment":
            # A missing codec, without which codewords stay as they are, has its own warning.
            has_codec = self.mask_codec() is not None
            maskless = sum(
                (one.region if has_codec else one.codes) is None and not _is_below_a_pixel(one)
                for one in found
            )
            missing.add(len(found), maskless, num_labels=len(labels))
        return found


def _is_below_a_pixel(one: Detection) -> bool:
    """Whether an upright box covers no whole pixel, so that no mask can; see `paste_mask`."""
    x0, y0, x1, y1 = one.box_xyxy_px
    return x0 < x1 and y0 < y1 and (int(x0) == int(x1) or int(y0) == int(y1))
