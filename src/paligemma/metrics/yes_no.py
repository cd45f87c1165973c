"""POPE's yes and no, and MMVP's pairs of questions about look-alike pictures.

Source: big_vision `evaluators/proj/paligemma/transfers/pope.py`; RUCAIBox/POPE evaluate.py; the
pairing of tsb0601/MMVP, rows 1 and 2, 3 and 4, and so on.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure, average_of, mean_measure, ratio_measure
from paligemma.metrics.pairs import require_choice, require_same_length

# "text": the answer is the right option's text; "letter": its letter, brackets and full stop
# allowed; "either": one of them. How the reports matched them is not published.
OptionRule = Literal["text", "letter", "either"]

# Rows of Questions.csv, counted from 1, that the corrected copies of MMVP change.
MMVP_CORRECTED_ROWS = (99, 100, 279, 280)

YES, NO = "yes", "no"
_DENIALS = {"No", "no", "not"}
_MARKER = re.compile(r"\(([A-Za-z])\)")


def pope_official_answer(text: str) -> str:
    """Read an answer as the script does: "no" if the first sentence holds No, no or not."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return NO if _DENIALS & set(words) else YES


def pope_measures(
    predictions: Sequence[str], references: Sequence[str], files: Sequence[str] | None = None
) -> list[Measure]:
    """Compute POPE by the reference evaluator, and by the official script as "official_...".

    Args:
        files: "random", "popular" or "adversarial" for each question; None for a single file.

    Returns:
        "accuracy", the mean of the files' accuracies; "valid", the share that is yes or no;
        "precision", "recall", "f1" with yes positive; "yes_ratio"; the same but "valid" with
        official_ before the name; then "accuracy/FILE" and "f1/FILE". A precision without answers
        of yes, a recall without questions of yes and an F1 without either are left out.

    Raises:
        DataError: lengths differ, nothing to score, or a reference that is neither.
    """
    require_same_length("POPE", predictions=predictions, references=references)
    if unknown := sorted(set(references) - {YES, NO}):
        raise DataError(f"a POPE label must be yes or no, got {unknown[0]!r}; read `label`")
    names = ["all"] * len(references) if files is None else list(files)
    require_same_length("POPE", predictions=predictions, files=names)
    lowered = [one.lower() for one in predictions]
    ours = [one if one in (YES, NO) else None for one in lowered]
    (accuracy, *rest), per_file = _rates("", ours, references, names)
    valid = mean_measure("valid", np.array([one is not None for one in ours]))
    official, _ = _rates(
        "official_", list(map(pope_official_answer, predictions)), references, names
    )
    return [accuracy, valid, *rest, *official, *([] if files is None else per_file)]


def mmvp_options(options: str) -> dict[str, str]:
    """Read options "(a) Open (b) Closed" as texts by their letters in lower case.

    Raises:
        DataError: fewer than two options, or letters that are not a, b, c and so on.
    """
    markers: list[re.Match[str]] = []
    for found in _MARKER.finditer(options):
        # A bracketed letter out of turn belongs to a text, such as f(x).
        if ord(found.group(1).lower()) == ord("a") + len(markers):
            markers.append(found)
    if len(markers) < 2 or options[: markers[0].start()].strip():
        raise DataError(
            f"options must be written '(a) ... (b) ...', got {options!r}; read the column Options"
        )
    ends = [one.start() for one in markers[1:]] + [len(options)]
    return {
        one.group(1).lower(): options[one.end() : end].strip()
        for one, end in zip(markers, ends, strict=True)
    }


def mmvp_is_right(
    prediction: str, options: str, correct: str, *, rule: OptionRule = "text"
) -> bool:
    """Whether an answer names the right option, case and outer spaces aside.

    Raises:
        DataError: the options are ill-formed, or none has that letter.
    """
    require_choice("the rule for options", rule, OptionRule)
    texts = mmvp_options(options)
    letter = correct.strip().strip("()").casefold()
    if letter not in texts:
        raise DataError(f"the right option {correct!r} is none of {options!r}; correct the row")
    answer = prediction.strip().casefold()
    has_text = answer == texts[letter].strip().casefold()
    has_letter = answer in {letter, f"({letter})", f"{letter}.", f"({letter})."}
    return {"text": has_text, "letter": has_letter, "either": has_text or has_letter}[rule]


def mmvp_measures(is_right: Sequence[bool], pairs: Sequence[str]) -> list[Measure]:
    """Compute MMVP's figures: a pair counts where both of its questions are right.

    Args:
        pairs: name of each question's pair; a pair has two questions.

    Returns:
        "paired_accuracy" and "accuracy".

    Raises:
        DataError: lengths differ, nothing to score, or a pair without exactly two questions.
    """
    require_same_length("MMVP", is_right=is_right, pairs=pairs)
    for name, num in Counter(pairs).items():
        if num != 2:
            raise DataError(f"an MMVP pair has 2 questions, got {num} in pair {name!r}; add both")
    right = Counter(name for name, one in zip(pairs, is_right, strict=True) if one)
    # Each question is half a pair, so that resamples which keep pairs together keep the figure.
    both = np.array([right[name] == 2 for name in pairs])
    return [
        ratio_measure("paired_accuracy", both / 2, np.full(len(both), 0.5)),
        mean_measure("accuracy", np.asarray(is_right, bool)),
    ]


def _rates(
    prefix: str, ours: Sequence[str | None], references: Sequence[str], files: Sequence[str]
) -> tuple[list[Measure], list[Measure]]:
    """Compute the figures over all files, and accuracy and F1 of each file."""
    says_yes = np.array([one == YES for one in ours])
    is_yes = np.array([one == YES for one in references])
    is_right = np.array([a == b for a, b in zip(ours, references, strict=True)])
    of = np.array(list(files), dtype=object)
    accuracies, per_file = [], []
    for name in sorted(set(files)):
        where = of == name
        accuracies.append(mean_measure(f"{prefix}accuracy/{name}", is_right, where))
        per_file += [accuracies[-1], *_f1(f"{prefix}f1/{name}", says_yes & where, is_yes & where)]
    both = says_yes & is_yes
    overall = [average_of(f"{prefix}accuracy", accuracies)]
    if len(accuracies) == 1:
        overall = [mean_measure(f"{prefix}accuracy", is_right)]
    if says_yes.any():
        overall.append(ratio_measure(f"{prefix}precision", both, says_yes))
    if is_yes.any():
        overall.append(ratio_measure(f"{prefix}recall", both, is_yes))
    overall += _f1(f"{prefix}f1", says_yes, is_yes)
    return [*overall, mean_measure(f"{prefix}yes_ratio", says_yes)], per_file


def _f1(name: str, says_yes: np.ndarray, is_yes: np.ndarray) -> list[Measure]:
    if not (says_yes | is_yes).any():
        return []
    # 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall.
    return [ratio_measure(name, 2.0 * (says_yes & is_yes), says_yes * 1.0 + is_yes)]
