"""Holds our metrics to other people's numbers: files of predictions, references and scores.

A file is JSON, {"vectors": [{"id", "metric", "predictions", "references", "params"?, "expected",
"tolerance"?, "obtained"?, "note"?}]}; `CHECKS` of the modules here maps each metric to the function
that computes it.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from paligemma.errors import DataError, PaliGemmaError
from paligemma.json_file import read_json
from paligemma.metrics.measure import Measure

logger = logging.getLogger(__name__)

Vector = Mapping[str, Any]
Params = Mapping[str, Any]
# Predictions, references and params of a vector -> a result in the shape of its `expected`.
Check = Callable[[Any, Any, Params], Any]

FAMILIES = ("captions", "texts", "structure", "prompts")
MAX_BYTES = 256 * 2**20
DEFAULT_TOLERANCE = 1e-6
_FIELDS = (
    *("id", "metric", "predictions", "references", "params", "expected", "tolerance"),
    *("obtained", "note"),  # for people
)


@dataclass(frozen=True, kw_only=True)
class VectorResult:
    """How one vector came out.

    Attributes:
        passed: every expected value is met within the vector's tolerance.
        largest_difference: between numbers; NaN where none could be compared.
        message: what differs or went wrong; empty where it passed.
    """

    id: str
    metric: str
    passed: bool
    largest_difference: float
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """All vectors of one metric.

    Attributes:
        largest_difference: between numbers, over all; NaN where none could be compared.
    """

    metric: str
    num_passed: int
    num: int
    largest_difference: float
    failures: tuple[VectorResult, ...] = ()


def checks() -> dict[str, Check]:
    """What can be checked: metric -> the function that computes a vector with our metrics."""
    found: dict[str, Check] = {}
    for family in FAMILIES:
        found.update(import_module(f"{__name__}.{family}").CHECKS)
    return found


def by_name(measures: Sequence[Measure]) -> dict[str, float]:
    """Name -> value."""
    return {one.name: one.value for one in measures}


def per_example(measure: Measure) -> list[float]:
    """What each example adds."""
    return [] if measure.per_example is None else measure.per_example.tolist()


def check_vectors(path: Path | str) -> list[VectorResult]:
    """Compute every vector of a file and compare.

    A metric without a check and a vector that cannot be computed are reported as failed, so
    that one of them does not hide the others.

    Args:
        path: JSON file, at most 256 MiB.

    Returns:
        One result a vector, in the order of the file.

    Raises:
        DataError: the file is missing, too large, no JSON, or not of this form.
    """
    known = checks()
    return [check_vector(vector, known) for vector in read_vectors(path)]


def read_vectors(path: Path | str) -> list[Vector]:
    """The vectors of a file, checked for form."""
    path = Path(path)
    try:
        data = read_json(path, max_bytes=MAX_BYTES)
    except OSError as error:
        raise DataError(f"cannot read vectors from {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} must hold JSON in UTF-8, but {error}") from error
    vectors = data.get("vectors") if isinstance(data, dict) else None
    if not isinstance(vectors, list):
        raise DataError(f'{path} must be an object with a list "vectors"; see the evaluation page')
    if not vectors:
        raise DataError(f"{path} must hold at least one vector, got none; name another file")
    for index, vector in enumerate(vectors):
        _require_form(vector, f"{path}, vector {index}")
    return vectors


def check_vector(vector: Vector, known: Mapping[str, Check] | None = None) -> VectorResult:
    """Compute one vector and compare; see `check_vectors`."""
    check = (checks() if known is None else known).get(vector["metric"])
    found: Any = None
    difference, problem = math.nan, f"no metric here is named {vector['metric']!r}"
    if check is not None:
        try:
            found = check(
                vector["predictions"], vector.get("references"), vector.get("params") or {}
            )
            tolerance = float(vector.get("tolerance", DEFAULT_TOLERANCE))
            difference, problem = _compare(vector["expected"], found, tolerance, "expected")
        except PaliGemmaError as error:
            problem = str(error)
        # What a stranger's file holds can break a metric anywhere.
        except Exception as error:
            logger.debug("vector %s", vector["id"], exc_info=True)
            problem = f"cannot be computed: {type(error).__name__}: {error}"
    return VectorResult(
        id=vector["id"],
        metric=vector["metric"],
        passed=not problem,
        largest_difference=difference,
        message=problem,
    )


def summarize(results: Sequence[VectorResult]) -> list[MetricSummary]:
    """Results a metric, in order of first appearance."""
    groups: dict[str, list[VectorResult]] = {}
    for result in results:
        groups.setdefault(result.metric, []).append(result)
    summaries = []
    for metric, rows in groups.items():
        known = [r.largest_difference for r in rows if not math.isnan(r.largest_difference)]
        summaries.append(
            MetricSummary(
                metric=metric,
                num_passed=sum(row.passed for row in rows),
                num=len(rows),
                largest_difference=max(known, default=math.nan),
                failures=tuple(row for row in rows if not row.passed),
            )
        )
    return summaries


def _compare(expected: Any, found: Any, tolerance: float, where: str) -> tuple[float, str]:
    """Largest difference between numbers, and the first thing that is wrong or ""."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return math.nan, f"{where} is an object, but got {_short(found)}"
        if missing := [key for key in expected if key not in found]:
            return math.nan, f"{where} has {missing[0]!r}, which is not computed here"
        keys = [(key, expected[key], found[key]) for key in expected]
    elif isinstance(expected, list):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return math.nan, f"{where} is a list of {len(expected)}, but got {_short(found)}"
        keys = [(n, a, b) for n, (a, b) in enumerate(zip(expected, found, strict=True))]
    elif _is_number(expected) and _is_number(found):
        difference = abs(expected - found)
        if difference <= tolerance:
            return difference, ""
        return difference, f"{where} is {expected!r}, but got {found!r}"
    else:
        same = type(expected) is type(found) and expected == found
        return math.nan, "" if same else f"{where} is {expected!r}, but got {_short(found)}"
    largest, problem = math.nan, ""
    for key, one, other in keys:
        difference, wrong = _compare(one, other, tolerance, f"{where}[{key!r}]")
        problem = problem or wrong
        if not difference <= largest:  # one of them may be NaN
            largest = largest if math.isnan(difference) else difference
    return largest, problem


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _require_form(vector: Any, where: str) -> None:
    if not isinstance(vector, dict):
        raise DataError(f"{where} must be an object, got {_short(vector)}")
    for name in ("id", "metric"):
        if not isinstance(vector.get(name), str):
            raise DataError(f"{where} needs a string {name!r}, got {_short(vector.get(name))}")
    if unknown := [name for name in vector if name not in _FIELDS]:
        raise DataError(
            f"{where} ({vector['id']}) may have the fields {', '.join(_FIELDS)}, got "
            f"{_short(unknown[0])}; correct it or leave it out"
        )
    for name in ("predictions", "expected"):
        if name not in vector:
            raise DataError(f"{where} ({vector['id']}) lacks {name!r}; add it")
    tolerance = vector.get("tolerance", DEFAULT_TOLERANCE)
    if not _is_number(tolerance) or not 0 <= tolerance < math.inf:
        raise DataError(f"{where} ({vector['id']}) needs a tolerance of 0 or more, got {tolerance}")
    if not isinstance(vector.get("params") or {}, dict):
        raise DataError(f"{where} ({vector['id']}) needs an object 'params', or none")
