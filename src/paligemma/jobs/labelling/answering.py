"""A model that labels rows, with the façade's questions and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from paligemma.errors import RunError
from paligemma.example import Example
from paligemma.jobs.labelling.labeller import Refused
from paligemma.jobs.labelling.records import Record
from paligemma.jobs.model_answerer import fingerprint
from paligemma.jobs.plan import picture_key
from paligemma.outputs.calibration import load_calibration
from paligemma.outputs.types import TextAnswer
from paligemma.outputs.words import detections_json
from paligemma.pipeline.mapping import MappedAnswer, RowAnswerer
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.frames import Frames

_DIGITS = 5
# A setting that changes no answer.
_CACHE = "picture_cache_bytes"


class ModelLabeller:
    """Labels of a model, with the façade's options.

    Args:
        asked: the model.
        options: of `PaliGemma.ask`.
        in_words: answers are texts whatever the model writes.
        batch_size: rows that are decoded together.
        masks: whether prompts may ask for masks, so that their codec is a part of the settings.
        calibration: see `outputs.calibration.load_calibration`; a threshold is of its confidences.
    """

    def __init__(
        self,
        asked: PaliGemma,
        *,
        options: Mapping[str, Any] | None = None,
        in_words: bool = False,
        batch_size: int | None = None,
        masks: bool = False,
        calibration: Path | None = None,
    ) -> None:
        self._masks = masks
        self._asked, self._options, self._in_words = asked, dict(options or {}), in_words
        self._calibration = None if calibration is None else load_calibration(calibration)
        stated = dict(self._options)
        self._threshold = stated.pop("threshold", None) if calibration is not None else None
        self._rows = RowAnswerer(asked, stated, in_words=in_words, max_rows=batch_size)

    def settings(self) -> dict[str, Any]:
        """Everything about the model and its options that changes an answer."""
        asked = self._asked
        codec = asked.mask_codec if self._masks and not self._in_words else None
        return {
            "model": fingerprint(asked.model),
            "mask_codec": None if codec is None else fingerprint(codec),
            **{name: value for name, value in asdict(asked.settings).items() if name != _CACHE},
            "image_size_px": asked.processor.image_size_px,
            "in_words": self._in_words,
            "calibration": repr(self._calibration),
            "options": {name: _plain(value) for name, value in sorted(self._options.items())},
        }

    def read(self, examples: Sequence[Example]) -> Any:
        """The pictures of a batch, each once."""
        max_pixels = self._asked.processor.reader.max_pixels

        def opened(example: Example) -> Any:
            frames = [picture.read(max_pixels) for picture in example.pictures]
            return frames[0] if len(frames) == 1 else Frames(frames)

        by_key = {picture_key(one): one for one in examples}
        return self._rows.read({key: partial(opened, one) for key, one in by_key.items()})

    def answer(self, examples: Sequence[Example], prepared: Any) -> list[Record | Refused]:
        """A record for each example, in order, or why there is none.

        Raises:
            RunError: the device has too little memory for the batch.
            PaliGemmaError: see `RowAnswerer.answer`.
        """
        rows = [(picture_key(one), one.prefix) for one in examples]
        try:
            answers = self._rows.answer(rows, prepared)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"a batch of {len(examples)} rows needs more memory than the device has "
                f"({str(error)[:200]}); ask fewer with --batch-size, into a new folder"
            ) from error
        return [
            record_of(self._calibrated(one))
            if isinstance(one, MappedAnswer)
            else Refused(reason=str(one))
            for one in answers
        ]

    def _calibrated(self, found: MappedAnswer) -> MappedAnswer:
        if self._calibration is None or isinstance(found.answer, TextAnswer):
            return found
        answer = self._calibration.detections(found.answer)
        if self._threshold is not None:
            answer = answer.above(self._threshold)
        return replace(found, answer=answer)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None | list) else repr(value)


def record_of(found: MappedAnswer) -> Record:
    """The fields of an answer as every file of labels has them."""
    answer, (width, height) = found.answer, found.image_wh
    record: Record = {
        "text": answer.text,
        "logprob": round(found.logprob, _DIGITS),
        "num_tokens": found.num_tokens,
        "width": width,
        "height": height,
    }
    if not isinstance(answer, TextAnswer):
        shown = detections_json(answer.items, text="", rest="")
        record["detections"] = shown["detections"]
    if found.is_cut:
        record["note"] = "the bound of --max-new-tokens cut the answer"
    return record


def load_labeller(model: str, loading: Mapping[str, Any], **labelling: Any) -> ModelLabeller:
    """Load a model by its name and make it label; a worker process calls this.

    Args:
        model, loading: as of `PaliGemma.from_pretrained`.
        labelling: other arguments of `ModelLabeller`.
    """
    return ModelLabeller(PaliGemma.from_pretrained(model, **loading), **labelling)
