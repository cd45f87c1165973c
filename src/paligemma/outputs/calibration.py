"""Calibration of a model's confidences: a temperature, and a threshold for every label.

`paligemma.eval.calibration` fits it on a run whose truth is known; it stays beside the model as
`calibration.json` and applies to every later answer.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from paligemma.errors import DataError
from paligemma.json_file import read_json
from paligemma.outputs.detections import Detections
from paligemma.outputs.types import TextAnswer
from paligemma.whole_file import whole_file

FILE_NAME = "calibration.json"
FORMAT = 1
# A confidence of exactly 0 or 1 has no log-odds; float32 cannot tell it from these.
EPSILON = 1e-7
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_MAX_LABELS = 100_000
_MAX_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class ObjectCalibration:
    """Calibration of boxes.

    Attributes:
        thresholds: lowest calibrated confidence of each label; above 1 drops the label.
        fitted_on: task, split, model, goal and figures of the fit, for the record.
    """

    temperature: float
    thresholds: Mapping[str, float] = field(default_factory=dict)
    default_threshold: float = 0.0
    fitted_on: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TextCalibration:
    """Calibration of answers in words."""

    temperature: float
    fitted_on: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A model's calibration; a part that was not fitted is None."""

    objects: ObjectCalibration | None = None
    text: TextCalibration | None = None

    def apply(self, found: TextAnswer | Detections) -> TextAnswer | Detections:
        """The answer calibrated by `detections` or by `answer`."""
        return self.answer(found) if isinstance(found, TextAnswer) else self.detections(found)

    def detections(self, found: Detections) -> Detections:
        """The objects with calibrated confidences, without those below their label's threshold.

        Objects without a confidence and empty boxes stay as they are. The confidences of an
        object's parts stay those of the model.

        Raises:
            DataError: boxes were not calibrated.
        """
        if self.objects is None:
            raise DataError(
                "this calibration holds nothing about boxes; fit one on a run of a detection task"
            )
        kept = []
        for one in found:
            if one.score is None:
                kept.append(one)
                continue
            score = float(tempered(one.score, self.objects.temperature))
            least = self.objects.thresholds.get(one.label or "", self.objects.default_threshold)
            if score >= least or not one.is_valid:
                kept.append(replace(one, score=score))
        return replace(found, items=tuple(kept))

    def answer(self, answer: TextAnswer) -> TextAnswer:
        """The answer with a calibrated confidence.

        Raises:
            DataError: answers in words were not calibrated.
        """
        if self.text is None:
            raise DataError(
                "this calibration holds nothing about answers in words; fit one on a run of a "
                "task with such answers"
            )
        if answer.score is None:
            return answer
        return replace(answer, score=float(tempered(answer.score, self.text.temperature)))


def tempered(confidence: ArrayLike, temperature: float) -> np.ndarray:
    """Confidences float[...] in [0, 1] with their log-odds divided by the temperature."""
    p = np.clip(np.asarray(confidence, np.float64), EPSILON, 1 - EPSILON)
    return 1 / (1 + np.exp(-(np.log(p) - np.log1p(-p)) / temperature))


def save_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> Path:
    """Write a calibration, whole or not at all.

    Args:
        path: a file, or a model's folder, where the file is calibration.json.

    Raises:
        DataError: the place cannot be written.
    """
    path = _file(path)
    body: dict[str, Any] = {"format": FORMAT}
    if (objects := calibration.objects) is not None:
        body["objects"] = {
            "temperature": objects.temperature,
            "default_threshold": objects.default_threshold,
            "thresholds": dict(sorted(objects.thresholds.items())),
            "fitted_on": dict(objects.fitted_on),
        }
    if (words := calibration.text) is not None:
        body["text"] = {"temperature": words.temperature, "fitted_on": dict(words.fitted_on)}
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        with whole_file(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"a calibration needs a place that can be written, {path} is not one "
            f"({error.strerror}); name another"
        ) from error
    return path


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration.

    Raises:
        DataError: no such file, or a field is missing, unknown or out of bounds; it is named.
    """
    path = _file(path)
    try:
        body = read_json(path, max_bytes=_MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path!s:.200} must be a readable JSON file "
            f"({getattr(error, 'strerror', None) or error}); `paligemma eval calibrate` writes it"
        ) from error
    body = _fields(body, str(path), {"format"}, {"objects", "text"})
    if body["format"] != FORMAT:
        raise DataError(f"{path} must have format {FORMAT}, got {body['format']!r}; fit it anew")
    objects, words = body.get("objects"), body.get("text")
    return Calibration(
        objects=None if objects is None else _objects(objects, f"{path}, objects"),
        text=None if words is None else _text(words, f"{path}, text"),
    )


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path / FILE_NAME if os.path.isdir(path) else path


def _objects(body: Any, where: str) -> ObjectCalibration:
    names = {"temperature", "default_threshold", "thresholds"}
    body = _fields(body, where, names, {"fitted_on"})
    thresholds = _table(body["thresholds"], f"{where}.thresholds")
    if len(thresholds) > _MAX_LABELS:
        raise DataError(f"{where}.thresholds may name {_MAX_LABELS} labels, got {len(thresholds)}")
    return ObjectCalibration(
        temperature=_temperature(body, where),
        default_threshold=_number(body["default_threshold"], f"{where}.default_threshold", 0, 2),
        thresholds={
            label: _number(value, f"{where}.thresholds[{label!r}]", 0, 2)
            for label, value in thresholds.items()
        },
        fitted_on=_table(body.get("fitted_on", {}), f"{where}.fitted_on"),
    )


def _text(body: Any, where: str) -> TextCalibration:
    body = _fields(body, where, {"temperature"}, {"fitted_on"})
    return TextCalibration(
        temperature=_temperature(body, where),
        fitted_on=_table(body.get("fitted_on", {}), f"{where}.fitted_on"),
    )


def _temperature(body: Mapping[str, Any], where: str) -> float:
    bounds = MIN_TEMPERATURE, MAX_TEMPERATURE
    return _number(body["temperature"], f"{where}.temperature", *bounds)


def _fields(body: Any, where: str, needed: set[str], allowed: set[str]) -> dict[str, Any]:
    table = _table(body, where)
    missing, unknown = sorted(needed - set(table)), sorted(set(table) - needed - allowed)
    if missing or unknown:
        raise DataError(
            f"{where} must hold {', '.join(sorted(needed))}, misses {missing}, has besides "
            f"{unknown[:5]}; fit it anew"
        )
    return table


def _table(body: Any, where: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise DataError(f"{where} must be a JSON object, got {type(body).__name__}; fit it anew")
    return body


def _number(value: Any, where: str, low: float, high: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise DataError(f"{where} must be a number in [{low:g}, {high:g}], got {value!r:.60}")
    return float(value)
