"""Confidences of constrained answers among the allowed tokens, and steps that compute no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_folder import DESK

from paligemma import PaliGemma
from paligemma.errors import ConfigError
from paligemma.kernels import native
from paligemma.model import PaliGemmaModel


@pytest.mark.parametrize("quant", [None, "int8"])
def test_the_same_objects_are_found_in_fewer_passes_with_fewer_logits(
    quant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quant and native.library() is None:
        pytest.skip(native.describe())
    pg = PaliGemma.from_pretrained("tiny", **({"quant": quant} if quant else {}))
    passes: list[tuple[int, Sequence[range] | None]] = []
    runs = PaliGemmaModel.decode_runs

    def counted(self: PaliGemmaModel, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append((len(tokens), rest[3]))
        return runs(self, tokens, *rest)

    monkeypatch.setattr(PaliGemmaModel, "decode_runs", counted)
    labels, how = "pink star", {"constrain": True, "max_new_tokens": 60}
    every = pg.detect(DESK, labels, **how)
    num_every, num_tokens = len(passes), sum(size for size, _ in passes)
    passes.clear()
    allowed = pg.detect(DESK, labels, probabilities="allowed", **how)
    if quant:
        assert num_every < num_tokens - 2
        # The end is not read where it must follow.
        assert len(passes) <= num_every
        sizes = [None if ids is None else sum(map(len, ids)) for _, ids in passes]
        assert None not in sizes
        assert max(sizes) < 0.9 * pg.vocab.size  # type: ignore[type-var]
    else:
        assert passes == []
    assert len(every)
    assert list(allowed.labels) == list(every.labels)
    assert np.array_equal(allowed.xyxy, every.xyxy)
    # Among fewer tokens each has at least the probability that it had among all.
    assert (allowed.scores >= every.scores - 1e-6).all()


def test_without_a_grammar_the_two_are_the_same() -> None:
    pg = PaliGemma.from_pretrained("tiny")
    plain = pg.detect(DESK, "star", max_new_tokens=20)
    allowed = pg.detect(DESK, "star", max_new_tokens=20, probabilities="allowed")
    assert np.array_equal(plain.scores, allowed.scores)


def test_other_words_are_refused() -> None:
    pg = PaliGemma.from_pretrained("tiny")
    with pytest.raises(ConfigError, match="vocabulary or allowed"):
        pg.detect("x.png", "star", probabilities="grammar")
