"""Losses of retrieval against their definition in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.retrieval.losses import (
    PairLossConfig,
    VectorRows,
    in_parts,
    late_interaction,
    pair_loss,
)

WIDTH = 8


def unit_rows(lengths: Sequence[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((length, WIDTH)) for length in lengths]
    return [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]


def padded(rows: Sequence[np.ndarray], *, filler: float = 0.0) -> VectorRows:
    longest = max(map(len, rows))
    values = torch.full((len(rows), longest, WIDTH), filler)
    valid = torch.zeros(len(rows), longest, dtype=torch.bool)
    for k, row in enumerate(rows):
        values[k, : len(row)] = torch.from_numpy(row).float()
        valid[k, : len(row)] = True
    return VectorRows(values=values, valid=valid)


QUERIES = unit_rows((3, 5, 2, 4), seed=1)
PAGES = unit_rows((6, 9, 4, 7), seed=2)
HARD = unit_rows((5, 3, 8), seed=3)
NUM_HARD = (2, 0, 1, 0)
HARD_OF = [HARD[:2], [], HARD[2:], []]


@pytest.mark.parametrize("smooth_max", [None, 0.1])
def test_scores_are_those_of_the_definition_whatever_the_padding_holds(
    smooth_max: float | None,
) -> None:
    expected = [
        [reference.late_interaction_score(q, page, smooth_max) for page in PAGES] for q in QUERIES
    ]
    for filler in (0.0, 7.0):
        found = late_interaction(
            padded(QUERIES, filler=filler), padded(PAGES, filler=filler), smooth_max=smooth_max
        )
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


def test_a_page_that_is_unlike_the_query_keeps_its_negative_score_beside_a_longer_page() -> None:
    query = [np.eye(1, WIDTH)]
    short, long = -np.eye(1, WIDTH), unit_rows((9,), seed=5)[0]
    alone = late_interaction(padded(query), padded([short]))
    beside = late_interaction(padded(query), padded([short, long]))
    assert alone[0, 0] == beside[0, 0] == -1.0


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "contrastive"},
        {"kind": "contrastive", "normalisation": "none", "temperature": 0.5},
        {"kind": "pairwise"},
        {"kind": "pairwise", "normalisation": "none", "temperature": 0.3},
        {"kind": "pairwise", "smooth_max": 0.1, "negatives_weight": 0.2},
        {"kind": "contrastive", "suspect_above": 0.7, "temperature": 0.1},
        {"kind": "pairwise", "suspect_above": 0.7},
    ],
)
def test_losses_are_those_of_the_definition(options: dict[str, object], hard: bool) -> None:
    config = PairLossConfig(**options)  # type: ignore[arg-type]
    expected = reference.late_interaction_loss(
        QUERIES,
        PAGES,
        HARD_OF if hard else [[], [], [], []],
        kind=config.kind,
        temperature=config.divisor,
        by_length=config.normalisation == "length",
        negatives_weight=config.negatives_weight,
        smooth_max=config.smooth_max,
        suspect_above=config.suspect_above,
    )
    found, first = pair_loss(
        padded(QUERIES),
        padded(PAGES),
        config,
        negatives=padded(HARD) if hard else None,
        num_negatives=NUM_HARD if hard else (),
    )
    assert found.item() == pytest.approx(expected, rel=2e-5)
    scores = late_interaction(padded(QUERIES), padded(PAGES), smooth_max=config.smooth_max)
    assert first.item() == (scores.argmax(dim=1) == torch.arange(4)).float().mean().item()


def test_queries_that_share_a_page_do_not_count_it_as_wrong() -> None:
    queries, pages = [QUERIES[0], QUERIES[1], QUERIES[2]], [PAGES[0], PAGES[1]]
    config = PairLossConfig(kind="contrastive", temperature=0.2)
    found, _ = pair_loss(padded(queries), padded(pages), config, page_of=(1, 0, 1))
    alone = [
        pair_loss(padded([q]), padded(pages), config, page_of=(own,))[0].item()
        for q, own in zip(queries, (1, 0, 1), strict=True)
    ]
    assert found.item() == pytest.approx(sum(alone) / 3, rel=1e-5)
    scores = [[reference.late_interaction_score(q, p) / len(q) for p in pages] for q in queries]
    margins = [row[1 - own] - row[own] for row, own in zip(scores, (1, 0, 1), strict=True)]
    expected = np.mean([np.log1p(np.exp(margin / 0.2)) for margin in margins])
    assert found.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="needs one of 2 pages"):
        pair_loss(padded(queries), padded(pages), config)


def test_equal_pages_are_no_success_and_still_teach() -> None:
    query, page = unit_rows((3,), seed=1)[0], unit_rows((5,), seed=2)[0]
    rows = padded([query, query])
    rows.values.requires_grad_()
    loss, first = pair_loss(rows, padded([page, page]), PairLossConfig())
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert first.item() == 0.0
    assert rows.values.grad is not None
    assert bool(rows.values.grad.isfinite().all())


def test_a_real_vector_whose_first_number_is_zero_counts() -> None:
    query = np.array([[0.0, 1.0, *[0.0] * 6], [1.0, *[0.0] * 7]])
    score = late_interaction(padded([query]), padded([np.eye(2, WIDTH)]))
    loss, _ = pair_loss(
        padded([query]), padded([np.eye(2, WIDTH), -np.eye(2, WIDTH)]), PairLossConfig()
    )
    assert score.item() == 2.0
    # Both vectors are counted: (0 - 2) / 2, for the wrong page has a vector at right angles.
    assert loss.item() == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-5)


class TestInParts:
    """Rows that are embedded a few at a time, and once more for their gradients."""

    def test_gradients_are_those_of_one_pass_and_fewer_activations_are_kept(self) -> None:
        torch.manual_seed(0)
        tower = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 64), torch.nn.GELU(), torch.nn.Linear(64, WIDTH)
        )
        pages, queries = padded(PAGES * 4), padded(QUERIES * 4)

        def run(size: int | None) -> tuple[float, list[Tensor], int]:
            kept = 0

            def pack(tensor: Tensor) -> Tensor:
                nonlocal kept
                kept += tensor.numel()
                return tensor

            def embed(start: int, end: int) -> tuple[Tensor, Tensor]:
                return tower(pages.values[start:end]), pages.valid[start:end]

            tower.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                found = in_parts(embed, len(pages), size)
                forward = kept
            loss, _ = pair_loss(queries, found, PairLossConfig(kind="contrastive"))
            loss.backward()
            return loss.item(), [p.grad.clone() for p in tower.parameters()], forward  # type: ignore[union-attr]

        whole, of_whole, kept_whole = run(None)
        parts, of_parts, kept_parts = run(3)
        assert parts == pytest.approx(whole, rel=1e-6)
        for one, other in zip(of_parts, of_whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert kept_parts < kept_whole / 10

    def test_parts_of_unequal_length_are_padded(self) -> None:
        pages = padded(PAGES)

        def embed(start: int, end: int) -> tuple[Tensor, Tensor]:
            length = int(pages.valid[start:end].sum(dim=1).max())
            return pages.values[start:end, :length], pages.valid[start:end, :length]

        found = in_parts(embed, 4, 1)
        torch.testing.assert_close(found.values, pages.values)
        assert torch.equal(found.valid, pages.valid)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "triplet"}, "kind of a loss is one of contrastive, pairwise"),
        ({"normalisation": "sqrt"}, "normalisation of a loss is one of length, none"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"smooth_max": float("inf")}, "smooth_max must be positive and finite"),
        ({"negatives_weight": 1.5}, "negatives_weight must lie in"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PairLossConfig(**options)  # type: ignore[arg-type]


def test_one_page_alone_needs_a_hard_negative() -> None:
    one = padded(QUERIES[:1])
    with pytest.raises(ConfigError, match="raise the batch size"):
        pair_loss(one, padded(PAGES[:1]), PairLossConfig())
    loss, _ = pair_loss(
        one, padded(PAGES[:1]), PairLossConfig(), negatives=padded(HARD[:1]), num_negatives=(1,)
    )
    assert loss.item() > 0
