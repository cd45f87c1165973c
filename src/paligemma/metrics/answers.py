"""Short answers against one right answer: equality, counts, question types, letters.

Source: big_vision `evaluators/proj/paligemma/transfers/` (vqa, tallyqa, rsvqa, science_qa) and
`datasets/rsvqa_lr`, `datasets/rsvqa_hr`.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure, average_of, mean_measure
from paligemma.metrics.pairs import require_choice, require_same_length
from paligemma.metrics.vqa_words import NUMBER_WORDS

_TEENS = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen")
_LATE_TEENS = ("eighteen", "nineteen", "twenty")
COUNT_WORDS: dict[str, str] = NUMBER_WORDS | {
    word: str(number) for number, word in enumerate(_TEENS + _LATE_TEENS, start=11)
}

Resolution = Literal["lr", "hr"]

# RSVQA's questions whose answers are no numbers; low resolution adds rural_urban.
NON_NUMERIC_TYPES = ("comp", "presence", "rural_urban")

_LETTER = re.compile(r"the answer is ([a-z])\.")
_BIN_EDGES = ((10, "1", "10"), (100, "11", "100"), (1000, "101", "1000"))


def exact_match_measures(
    predictions: Sequence[str | None],
    references: Sequence[str],
    *,
    lower: bool = False,
    groups: Sequence[str] | None = None,
) -> list[Measure]:
    """Compute the share of answers equal to their reference (GQA, NLVR2, OCR-VQA with `lower`).

    Args:
        groups: name of each question's group, to report each group as well.

    Returns:
        "accuracy", then "accuracy/GROUP" of every group in alphabetical order.
    """
    require_same_length("exact match", predictions=predictions, references=references)
    if lower:
        predictions = [one and one.lower() for one in predictions]
        references = [one.lower() for one in references]
    # None equals nothing, and nothing is stripped.
    is_right = np.array([a == b for a, b in zip(predictions, references, strict=True)])
    measures = [mean_measure("accuracy", is_right)]
    if groups is not None:
        require_same_length("exact match", predictions=predictions, groups=groups)
        measures += by_group("accuracy", is_right, groups)
    return measures


def by_group(name: str, values: np.ndarray, groups: Sequence[str]) -> list[Measure]:
    """Compute the mean of each group, "NAME/GROUP", in alphabetical order."""
    of = np.array(list(groups), dtype=object)
    return [mean_measure(f"{name}/{group}", values, of == group) for group in sorted(set(groups))]


def truth_word(label: int | bool) -> str:
    """Return the answer that stands for a label: "True" for 1, "False" for 0."""
    return "True" if label else "False"


def count_digits(text: str) -> str:
    """Turn a number word up to twenty, or "none", into digits; return other text unchanged."""
    return COUNT_WORDS.get(text.lower(), text)


def tallyqa_measures(
    predictions: Sequence[str],
    references: Sequence[str],
    is_simple: Sequence[bool | int | None] | None = None,
) -> list[Measure]:
    """Compute counting accuracy: strings must be equal after number words became digits.

    Args:
        is_simple: TallyQA's `issimple` of each question; None where it is unknown, or for all.

    Returns:
        "accuracy"; "accuracy/simple" and "accuracy/complex" where such questions exist; then
        "accuracy/count_N" of every count that occurs.
    """
    require_same_length("counting accuracy", predictions=predictions, references=references)
    ours, counts = list(map(count_digits, predictions)), list(map(count_digits, references))
    is_right = np.array([a == b for a, b in zip(ours, counts, strict=True)])
    measures = [mean_measure("accuracy", is_right)]
    if is_simple is not None:
        require_same_length("counting accuracy", predictions=predictions, is_simple=is_simple)
        for name, flag in (("simple", 1), ("complex", 0)):
            where = np.array([one is not None and int(one) == flag for one in is_simple])
            if where.any():
                measures.append(mean_measure(f"accuracy/{name}", is_right, where))
    # NumPy's comparison of strings ignores trailing NULs.
    return measures + [
        mean_measure(f"accuracy/count_{count}", is_right, [one == count for one in counts])
        for count in sorted(set(counts), key=lambda text: (len(text), text))
    ]


def rsvqa_bin_answer(answer: str, question_type: str, *, resolution: Resolution = "lr") -> str:
    """Turn a numeric answer of RSVQA into the range that PaliGemma learns.

    Args:
        answer: answer in the file, "12" or "12m2".
        question_type: type of the question; "count" is binned at low resolution, "area" at high.

    Raises:
        DataError: the answer is not the number it should be.
    """
    require_choice("the resolution of RSVQA", resolution, Resolution)
    is_area = resolution == "hr" and question_type == "area"
    if not is_area and not (resolution == "lr" and question_type == "count"):
        return answer
    unit = " m2" if is_area else ""
    digits = answer.removesuffix("m2") if is_area else answer
    if not re.fullmatch(r"[0-9]{1,18}", digits) or (is_area and digits == answer):
        raise DataError(
            f"an RSVQA {question_type} answer must be {'a number and m2' if is_area else 'digits'},"
            f" got {answer!r}; read the official answers file"
        )
    number = int(digits)
    if number == 0:
        return f"0{unit}"
    for largest, low, high in _BIN_EDGES:
        if number <= largest:
            return f"between {low}{unit} and {high}{unit}"
    return f"more than 1000{unit}"


def rsvqa_measures(
    predictions: Sequence[str], references: Sequence[str], types: Sequence[str]
) -> list[Measure]:
    """Compute RSVQA's lower-cased equality by question type, and the unweighted mean over types.

    Args:
        references: right answers, binned where the task bins.
        types: type of each question: "comp", "presence", "rural_urban", "count" or "area".

    Returns:
        "mean_accuracy" over the types present (PaliGemma's figure on the non-numeric splits);
        "accuracy" over questions; "accuracy/TYPE"; "mean_accuracy/nonum" over comp, presence and
        rural_urban, and "mean_accuracy/comp+presence", each where all of its types are present.
    """
    require_same_length("RSVQA", predictions=predictions, references=references, types=types)
    overall, *each = exact_match_measures(predictions, references, lower=True, groups=types)
    of = dict(zip(sorted(set(types)), each, strict=True))
    measures = [average_of("mean_accuracy", each), overall, *each]
    for name, wanted in (("nonum", NON_NUMERIC_TYPES), ("comp+presence", NON_NUMERIC_TYPES[:2])):
        if set(wanted) <= set(of):
            measures.append(average_of(f"mean_accuracy/{name}", [of[one] for one in wanted]))
    return measures


def scienceqa_letter(text: str) -> str | None:
    """Return the letter of "The answer is X." at the start of an answer; None without it."""
    found = _LETTER.match(text.lower())
    return found.group(1) if found else None


def scienceqa_measures(predictions: Sequence[str], references: Sequence[str]) -> list[Measure]:
    """Compute ScienceQA's accuracy of letters; an answer of another form is wrong.

    Args:
        references: right answers, such as "The answer is B."

    Returns:
        "accuracy" and "unparsed", the share of answers without a letter.

    Raises:
        DataError: lengths differ, nothing to score, or a reference of another form.
    """
    require_same_length("ScienceQA", predictions=predictions, references=references)
    right = list(map(scienceqa_letter, references))
    if None in right:
        raise DataError(
            f"a ScienceQA reference must read 'The answer is B.', got "
            f"{references[right.index(None)]!r}; write the letter and a full stop"
        )
    ours = list(map(scienceqa_letter, predictions))
    is_right = np.array([a == b for a, b in zip(ours, right, strict=True)])
    is_unparsed = np.array([one is None for one in ours])
    return [
        mean_measure("accuracy", is_right),
        mean_measure("unparsed", is_unparsed, is_error=True),
    ]
