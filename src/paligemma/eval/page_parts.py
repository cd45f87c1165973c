"""Parts that the page of a run and the page of a comparison share."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from paligemma.errors import PaliGemmaError
from paligemma.eval.example_scores import ExampleScores
from paligemma.eval.outcomes import true_objects
from paligemma.eval.page_pictures import no_picture, object_tiles, picture_tile
from paligemma.eval.scored import Scored, reference_words
from paligemma.example import Example, FoundObject, Prediction
from paligemma.outputs.boxes import decode_boxes
from paligemma.outputs.html import Child, Html, el, joined
from paligemma.tasks.structure.words import WordFormat, parse_words

_MAX_CHARS = 1500

# Example id -> the pictures of the example, uint8[H, W, 3] each.
Pictures = Callable[[str], Sequence[np.ndarray]]
# Ids of the examples that a page shows -> a reader of their pictures, None where there is none.
OpenPictures = Callable[[Sequence[str]], Pictures | None]


def section(title: str, *children: Child) -> Html:
    """A heading with what follows it."""
    return joined(el("h2", title), *children)


def card(label: Html, number: Child, *more: Child) -> Html:
    """One figure, large."""
    return el("div", label, el("div", number, class_="big"), *more, class_="card head")


def table(head: Html, rows: Sequence[Html]) -> Html:
    """A table, whole; one that is wider than the screen scrolls sideways by itself."""
    return el("div", el("table", head, *rows), class_="card scroll")


def table_row(*cells: str, name: str = "td") -> Html:
    """A row; texts become cells of the named kind, cells stay as they are."""
    return el("tr", *(one if isinstance(one, Html) else el(name, one) for one in cells))


def notes_list(lines: Sequence[str]) -> Html | None:
    """Sentences, one below the other."""
    return el("ul", *(el("li", line) for line in lines), class_="quiet notes") if lines else None


def commands(title: str, *lines: str) -> Html:
    """The commands that run it again."""
    words = "\n".join(line or "(no command was noted)" for line in lines)
    return section(title, el("div", el("pre", words), class_="card"))


def name_words(name: str) -> Html:
    """The name of a measure, which a narrow screen may break after its underscores and slashes."""
    pieces = re.findall(r"[^_/]*[_/]|[^_/]+", name)
    return joined(*pieces[:1], *(joined(el("wbr"), part) for part in pieces[1:]))


def figure_words(
    value: float, low: float = math.nan, high: float = math.nan, sign: str = ""
) -> str:
    """A figure with as many decimals as its interval makes sense of."""
    return "-" if math.isnan(value) else f"{value:{sign}.{decimals(low, high)}f}"


def interval_words(low: float, high: float, sign: str = "") -> str:
    """Bounds as tables print them; nothing where there are none."""
    if math.isnan(low):
        return ""
    return " to ".join(figure_words(one, low, high, sign) for one in (low, high))


def decimals(low: float, high: float) -> int:
    """One to three decimals: two digits of the interval's half; two where there is none."""
    half = (high - low) / 2
    if not math.isfinite(half) or half < 1e-9:  # no wider than its arithmetic rounds
        return 2
    return min(max(1 - math.floor(math.log10(half)), 1), 3)


def tile(
    example: Example,
    tag: str,
    pictures: Sequence[Html | None],
    answers: Mapping[str, str],
    *,
    said: str,
    class_: str = "card tile",
) -> Html:
    """One example with its pictures, prompt, reference and answers.

    Args:
        pictures: what `example_picture` made.
        said: title of the answer that stands out.
    """
    words = {"prompt": example.prefix, "reference": truth_words(example), **answers}
    pairs = []
    for name, text in words.items():
        shown = text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + " ..."
        style = "said" if name == said else None
        pairs.append(joined(el("dt", name), el("dd", shown, class_=style)))
    return el(
        "article",
        *pictures,
        el("div", el("span", tag, class_="tag"), example.id, class_="id quiet"),
        el("dl", *pairs),
        class_=class_,
    )


def shown_answer(scored: Scored, position: int, scores: ExampleScores | None) -> Prediction:
    """The answer as it is shown: boxes that count, and the words that a text holds with boxes."""
    example, answer = scored.examples[position], scored.predictions[position]
    if answer.objects:
        least = 0.0 if scores is None else scores.threshold
        kept = [one for one in answer.objects if one.score is None or one.score >= least]
        return replace(answer, objects=tuple(kept))
    known = example.references if isinstance(example.references, dict) else {}
    if not {"words", "style"} <= set(known):
        return answer
    words = parse_words(answer.text, WordFormat(**known["style"]))
    found = [
        FoundObject(label=word, box_yxyx=tuple(decode_boxes(bins).tolist())) for word, bins in words
    ]
    return replace(answer, objects=tuple(found))


def example_picture(
    example: Example, answer: Prediction, pictures: Pictures | None, *, whose: str = "answer"
) -> Html | None:
    """An example's pictures with what was found; None where pictures are not wanted.

    Args:
        whose: name below the picture of what was found.
    """
    if pictures is None:
        return None
    try:
        shown = pictures(example.id)
        if not shown:
            return no_picture("no picture")
        truth = true_objects(example.references)
        if len(shown) == 1 and (answer.objects or truth):
            return object_tiles(shown[0], truth or [], answer.objects, whose)
        return picture_tile(shown, example.mark_box_yxyx)
    except (PaliGemmaError, OSError) as error:
        return no_picture(f"the picture cannot be shown: {str(error)[:200]}")


def truth_words(example: Example) -> str:
    """References for people; of objects their labels with how many there are."""
    truth = true_objects(example.references)
    if truth is None:
        return reference_words(example.references)
    return _labels([one.label for one in truth])


def answer_words(answer: Prediction) -> str:
    """An answer for people; of objects their labels with how many were found."""
    if answer.objects:
        return _labels([one.label for one in answer.objects])
    return answer.text or "(empty)"


def _labels(labels: Sequence[str]) -> str:
    times = Counter(one or "object" for one in labels)
    return ", ".join(f"{n} {name}" for name, n in times.most_common()) or "nothing"
