"""A run with its figures: what reports, comparisons and calibrations start from."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from paligemma.errors import DataError, bounded
from paligemma.eval.options import chosen_rules
from paligemma.example import ALL_CLASSES, MASK, OBJECTS, Example, Prediction
from paligemma.jobs.run_folder import Run, RunConfig
from paligemma.metrics.measure import Measure
from paligemma.tasks.task import Task

_MAX_CHARS = 400
_NUM_NAMED = 5
_MAX_ID_CHARS = 100
_TEXT_FIELDS = ("answers", "answer", "references", "captions", "texts", "text", "label")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Examples with their answers and the figures over them.

    Attributes:
        examples, predictions: questions and their answers, in one order.
        num_asked: number of examples that were to be answered, the unanswered ones too.
        notices: one sentence for everything that was amiss with the predictions.
    """

    task: Task
    config: RunConfig
    examples: Sequence[Example] = field(repr=False)
    predictions: Sequence[Prediction] = field(repr=False)
    measures: Sequence[Measure]
    num_asked: int
    notices: tuple[str, ...] = ()

    @property
    def headline(self) -> Measure:
        """The measure that tables print."""
        for one in self.measures:
            if one.name == self.task.headline:
                return one
        return self.measures[0]

    @property
    def per_example(self) -> np.ndarray | None:
        """float64[N], what each example adds to the headline; None for figures over pairs."""
        parts = self.headline.per_example
        return parts if parts is not None and len(parts) == len(self.examples) else None


def score_run(
    run: Run, task: Task | None = None, *, rules: Mapping[str, str] | None = None
) -> Scored:
    """Score what a run has answered so far.

    Args:
        rules: rules of scoring from `options.chosen_rules`; those of the run by default.

    Raises:
        DataError: nothing was answered yet.
        ConfigError: the benchmark does not offer a rule.
    """
    config = run.config if rules is None else replace(run.config, rules=rules)
    if task is None:
        from paligemma.tasks.catalog import find_task

        task = find_task(run.config.task)
    examples, predictions = run.answered()
    if not examples:
        raise DataError(
            f"{run.path} holds no answer to any of its {len(run.examples):,} examples yet; "
            "go on with the run first"
        )
    notices = []
    if missing := run.missing:
        notices.append(
            f"{len(missing):,} of {len(run.examples):,} examples have no answer yet and are left "
            "out; go on with the run"
        )
    if run.num_duplicates:
        notices.append(f"{run.num_duplicates:,} answers came twice; the first counts")
    return score_matched(
        task, config, examples, predictions, num_asked=len(run.examples), notices=notices
    )


def score_matched(
    task: Task,
    config: RunConfig,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    num_asked: int | None = None,
    notices: Sequence[str] = (),
) -> Scored:
    """Score one prediction an example, in one order."""
    rules = chosen_rules(task, [f"{name}={chosen}" for name, chosen in config.rules.items()])
    more = [
        f"scored by the rule {name}={chosen} instead of {name}={task.rules[name][0]}"
        for name, chosen in rules.items()
    ]
    unread = [one for one in predictions if one.error not in (None, "no prediction")]
    if unread:
        more.append(
            f"{len(unread):,} of {len(examples):,} examples could not be asked and count as empty "
            f"answers ({some_ids([one.id for one in unread])}), such as {unread[0].id}: "
            f"{unread[0].error}"
        )
    if noted := [one for one in predictions if one.note is not None]:
        more.append(
            f"{len(noted):,} pictures are not those that were annotated, such as that of "
            f"{noted[0].id}: {noted[0].note}; take the official files"
        )
    settings = config.settings
    if task.asking.answer == ALL_CLASSES and settings.get("noise_id", 0) is None:
        more.append(
            f"the noise piece {settings.get('noise_piece')!r} is no single token of this model, so "
            "only the end token was barred; name the model's own with --noise-piece"
        )
    if task.asking.answer == MASK:
        bare = [
            one.id
            for one in predictions
            if one.objects and "<loc" not in one.text and one.objects[0].mask is None
        ]
        if bare:
            more.append(
                f"{len(bare):,} answers are a box without a mask ({some_ids(bare)}): they count "
                "for the boxes alone; without any mask the figures of masks are left out"
            )
    if task.asking.answer in (OBJECTS, ALL_CLASSES) and not any(one.objects for one in predictions):
        spelt = [one.id for one in predictions if "<loc" in one.text]
        if spelt:
            more.append(
                f"{len(spelt):,} answers spell boxes in their text, such as {spelt[0]}, but none "
                "holds objects, and only these count; write objects with confidences"
            )
    measures = _measures(task, examples, predictions, rules)
    if any(one.name.split("/")[0] == "cider" and one.num == 1 for one in measures):
        more.append(
            "CIDEr of a single picture is 0 by construction: a word counts by how few of the "
            "pictures have it in their captions; score more pictures"
        )
    more += _unshown(examples, predictions)
    return Scored(
        task=task,
        config=config,
        examples=examples,
        predictions=predictions,
        measures=measures,
        num_asked=len(examples) if num_asked is None else num_asked,
        notices=tuple(map(bounded, (*notices, *more))),
    )


def _unshown(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[str]:
    """A sentence on detections of classes that exist but that no picture shows."""
    references = [one.references for one in examples if isinstance(one.references, Mapping)]
    if not references or not {"classes", "objects"} <= references[0].keys():
        return []
    shown = {row["label"] for one in references for row in one["objects"]}
    absent = set(references[0]["classes"]) - shown
    times = Counter(
        one.label for said in predictions for one in said.objects if one.label in absent
    )
    if not times:
        return []
    some = ", ".join(f"{label[:40]!r}" for label, _ in times.most_common(_NUM_NAMED))
    return [
        f"{times.total():,} detections are of classes that no picture shows, such as {some}; "
        "average precision leaves such classes out"
    ]


def _measures(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    rules: Mapping[str, str],
) -> list[Measure]:
    """The task's figures; references that it cannot read are the file's fault."""
    try:
        return task.score(examples, predictions, **rules)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DataError(
            f"references must be as {task.name} wrote them, but its scorer cannot read them "
            f"({type(error).__name__}: {error}); run the benchmark again in a new folder"
        ) from error


def some_ids(ids: Sequence[str]) -> str:
    """The first ids, for a sentence."""
    some = [
        one if len(one) <= _MAX_ID_CHARS else f"{one[:_MAX_ID_CHARS]}..."
        for one in ids[:_NUM_NAMED]
    ]
    return ", ".join(some) + (", ..." if len(ids) > _NUM_NAMED else "")


def only(scored: Scored, ids: Sequence[str]) -> Scored:
    """The same answers scored on these examples alone, in this order."""
    place = {one.id: k for k, one in enumerate(scored.examples)}
    examples = [scored.examples[place[name]] for name in ids]
    answers = [scored.predictions[place[name]] for name in ids]
    measures = _measures(scored.task, examples, answers, scored.config.rules)
    return replace(scored, examples=examples, predictions=answers, measures=measures)


def reference_words(references: Any) -> str:
    """References for people: the text, the texts with how often each occurs, or short JSON."""
    if isinstance(references, Mapping):
        texts = [references[name] for name in _TEXT_FIELDS if name in references]
        if len(texts) == 1:
            references = texts[0]
    if isinstance(references, list | tuple) and all(isinstance(one, str) for one in references):
        times = Counter(references)
        references = " | ".join(f"{t} (x{n})" if n > 1 else t for t, n in times.items())
    text = references
    if not isinstance(text, str):
        text = json.dumps(references, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 3] + "..."
