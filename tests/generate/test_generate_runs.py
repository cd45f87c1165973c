"""Tokens that must follow enter the model together; whatever is read, answers are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_models import OBJECT_VOCAB, FakeModel, prompt_row, text_batch

from paligemma.generate import (
    ClosedSet,
    Constraint,
    DecodeOptions,
    DecodeQueue,
    ObjectGrammar,
    QueueOptions,
    generate,
)
from paligemma.generate.runs import MAX_TOKENS

LOC = OBJECT_VOCAB.loc0
# Two boxes with a label of three tokens and a separator of two, then EOS.
BOXES = [LOC + 1, LOC + 2, LOC + 9, LOC + 9, 5, 6, 7, 3, 4] * 2
BOXES = [*BOXES[:-2], OBJECT_VOCAB.eos]


class Following(FakeModel):
    """Wishes for a script, and counts the tokens of every pass."""

    def __init__(self, script: list[int], prompt: tuple[int, ...] = (2, 5)) -> None:
        super().__init__(OBJECT_VOCAB, runs=True)
        self.script, self.prompt = script, prompt
        self.passes: list[int] = []

    def logits_after(self, seen: tuple[int, ...]) -> torch.Tensor:
        logits = super().logits_after(seen)
        place = len(seen) - len(self.prompt)
        if place < len(self.script):
            logits[self.script[place]] = 50.0
        return logits

    def decode_runs(self, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.passes.append(len(tokens))
        return super().decode_runs(tokens, *rest)


def objects(**options: Any) -> ObjectGrammar:
    return ObjectGrammar(vocab=OBJECT_VOCAB, labels=((5, 6, 7),), separator=(3, 4), **options)


@pytest.mark.parametrize(
    ("probabilities", "passes"),
    [
        # ymin | xmin | ymax | xmax and the label | separator | the next box; the end is read ahead
        # of, or where its probability is known, not at all.
        ("vocabulary", [1, 1, 1, 4, 2, 1, 1, 1, 4]),
        ("allowed", [1, 1, 1, 4, 2, 1, 1, 1]),
    ],
)
def test_labels_and_separators_are_read_in_one_pass_with_the_token_before_them(
    probabilities: str, passes: list[int]
) -> None:
    model = Following(BOXES)
    options = DecodeOptions(max_new_tokens=40, probabilities=probabilities)
    answer = generate(model, text_batch((2, 5)), options, constraint=objects(max_objects=2))
    assert answer.ids[0].tolist() == BOXES
    assert model.passes == passes


def test_what_must_follow_has_probability_one_among_the_allowed() -> None:
    options = DecodeOptions(max_new_tokens=40, probabilities="allowed", record_loc_probs=True)
    # Only the last row and column lie beyond the first corner.
    corner = [LOC + 1022, LOC + 1022, LOC + 1023, LOC + 1023, 5, 6, 7, OBJECT_VOCAB.eos]
    model = Following(corner)
    answer = generate(model, text_batch((2, 5)), options, constraint=objects(max_objects=1))
    assert answer.ids[0].tolist() == corner
    assert answer.logprobs[0, 2:].tolist() == [0.0] * 6
    assert answer.loc_probs is not None
    assert answer.loc_probs[0][2:, 1023].tolist() == [1.0, 1.0]
    assert model.passes == [1]


@pytest.mark.parametrize("probabilities", ["vocabulary", "allowed"])
@pytest.mark.parametrize("num_rows", [1, 5, 20])
def test_a_pass_is_bounded_however_long_the_run(probabilities: str, num_rows: int) -> None:
    tail = tuple(range(3, 15)) * 2
    closed = ClosedSet(vocab=OBJECT_VOCAB, answers=((5, *tail), (6, *tail), (7, *tail, 3, 4)))
    model = Following([7])
    options = DecodeOptions(max_new_tokens=100, probabilities=probabilities)
    batch = text_batch(*[(2, 5)] * num_rows)
    answer = generate(model, batch, options, constraint=closed)
    assert (answer.lengths == 28).all()
    assert max(model.passes) <= max(MAX_TOKENS, num_rows)
    passes = -(-27 // max(1, MAX_TOKENS // num_rows))
    assert len(model.passes) in (passes, passes - 1)


def test_rows_of_a_queue_read_runs_side_by_side() -> None:
    grammars: list[Constraint | None] = [objects(max_objects=2), objects(max_objects=2), None]
    model = Following(BOXES)
    queue = DecodeQueue(model, QueueOptions())
    handles = [
        queue.submit(prompt_row((2, 5)), DecodeOptions(max_new_tokens=18), constraint=grammar)
        for grammar in grammars
    ]
    found: dict[int, list[int]] = {handle: [] for handle in handles}
    while len(queue):
        for event in queue.step():
            found[event.handle].append(event.token)
    assert all(tokens == BOXES for tokens in found.values())
    # The row without a grammar reads one token a pass, the others as in the test above.
    rows = [[1, 1, 1, 4, 0, 0, 0, 2, 0, 1, 1, 1, 4, 0, 0, 0], [1] * 16]
    assert model.passes[:16] == [2 * runs + one for runs, one in zip(*rows, strict=True)]
