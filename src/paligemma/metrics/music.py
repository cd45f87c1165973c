"""Scores of transcribed music in `**kern`: error rates of characters, symbols and lines.

Source: antoniorv6/SMT eval_functions.py (compute_poliphony_metrics) and data.py (prepare_data).
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from paligemma.metrics.measure import Measure, ratio_measure
from paligemma.metrics.pairs import levenshtein, require_choice, require_same_length

# "current" counts every character; "publication_era" leaves spaces out, as the scorer did when the
# figures of the paper on GrandStaff were computed.
CerVariant = Literal["current", "publication_era"]

_BAR_NUMBER = re.compile(r"(?<==)\d+")
_LINE, _TAB = "<b>", "<t>"


def prepare_kern(text: str) -> str:
    """Strip outer newlines and spaces, bar numbers and the separators of extended kern.

    Whether PaliGemma 2 did the same is not published.
    """
    return _BAR_NUMBER.sub("", text.strip("\n ")).replace("·", "")


def kern_symbols(text: str) -> list[str]:
    """Split at single spaces, tabs and newlines; tabs and newlines are symbols themselves.

    Two spaces in a row enclose an empty symbol, and an empty text is one.
    """
    return text.replace("\n", f" {_LINE} ").replace("\t", f" {_TAB} ").split(" ")


def omr_measures(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    cer: CerVariant = "current",
) -> list[Measure]:
    """Compute error rates of the corpus: all edits over all reference units; they may exceed 1.

    Returns:
        "cer", "ser" and "ler"; "cer" is left out where the references hold no character.
    """
    require_same_length("music error rates", predictions=predictions, references=references)
    require_choice("the variant of CER", cer, CerVariant)
    units: dict[str, Callable[[str], list[str]]] = {
        "cer": lambda text: list(text.replace(" ", "") if cer == "publication_era" else text),
        "ser": kern_symbols,
        "ler": lambda text: text.split("\n"),
    }
    measures = []
    for name, split in units.items():
        pairs = [
            (split(ours), split(truth)) for ours, truth in zip(predictions, references, strict=True)
        ]
        edits = [levenshtein(ours, truth) for ours, truth in pairs]
        totals = [len(truth) for _, truth in pairs]
        if sum(totals):
            measures.append(ratio_measure(name, edits, totals, is_error=True))
    return measures
