"""MaxSim against its definition, pooling against SciPy, and vectors in fewer bits."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from paligemma.errors import ConfigError
from paligemma.retrieval import compression
from paligemma.retrieval.compression import binary, hamming_sim, quantise_int8, widen
from paligemma.retrieval.pooling import pool
from paligemma.retrieval.scores import max_sim, score_matrix


def vectors(count: int, dim: int = 32, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def like_a_page(count: int, seed: int = 0) -> Tensor:
    """Vectors that are alike in groups, as those of neighbouring patches are."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(7, (count,), generator=generator)
    noise = 0.3 * torch.randn(count, 32, generator=generator)
    return torch.nn.functional.normalize(vectors(7, seed=seed + 1)[kind] + noise, dim=-1)


PAGES = [vectors(count, seed=count) for count in (7, 1, 30, 12)]


def test_a_score_is_the_sum_over_query_tokens_of_their_best_match() -> None:
    query, page = vectors(3), PAGES[0]
    wanted = sum(max(float(q @ p) for p in page) for q in query)
    torch.testing.assert_close(max_sim(query, [page]), torch.tensor([wanted]))


def test_a_score_depends_neither_on_the_batch_nor_on_the_order() -> None:
    query = vectors(3)
    together = max_sim(query, PAGES)
    assert together.dtype == torch.float32
    for number, page in enumerate(PAGES):
        assert torch.equal(max_sim(query, [page])[0], together[number])
    assert torch.equal(max_sim(query, PAGES[::-1]), together.flip(0))
    assert torch.equal(score_matrix([vectors(5, seed=9), query], PAGES)[1], together)


def test_a_page_without_a_good_match_keeps_its_negative_score_beside_a_longer_one() -> None:
    # The reference pads pages with zeros, and zero beats a negative similarity.
    query = torch.tensor([[1.0, 0.0]])
    short, longer = torch.tensor([[-0.6, 0.8]]), torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    padded = torch.nn.utils.rnn.pad_sequence([short, longer], batch_first=True)
    theirs = torch.einsum("qd,pnd->pqn", query, padded).amax(dim=2).sum(dim=1)
    assert theirs.tolist() == [0.0, 0.5]
    torch.testing.assert_close(max_sim(query, [short, longer]), torch.tensor([-0.6, 0.5]))


def test_scores_are_computed_in_float32_whatever_the_vectors_are_stored_in() -> None:
    query, page = vectors(20, 128), vectors(200, 128, seed=1)
    exact = max_sim(query.double().float(), [page])
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.08)):
        narrow = max_sim(query, [page.to(dtype)])
        assert narrow.dtype == torch.float32
        assert torch.equal(narrow, max_sim(query, [page.to(dtype).float()]))
        torch.testing.assert_close(narrow, exact, atol=tolerance, rtol=0)


def test_what_cannot_be_scored_is_named() -> None:
    assert max_sim(vectors(2), []).shape == (0,)
    assert score_matrix([], PAGES).shape == (0, 4)
    for pages in ([vectors(2, 16)], [torch.zeros(0, 32)], [torch.zeros(32)]):
        with pytest.raises(ConfigError, match="vectors of one length"):
            max_sim(vectors(2), pages)


@pytest.mark.parametrize("factor", [2, 3, 9])
@pytest.mark.parametrize("count", [2, 40, 201])
@pytest.mark.parametrize("how", ["ward", "colpali"])
def test_pooling_finds_the_clusters_of_scipy(how: str, count: int, factor: int) -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    page = like_a_page(count)
    points = page.numpy() if how == "ward" else 1 - (page @ page.T).numpy()
    linked = hierarchy.linkage(points.astype(np.float64), method="ward", metric="euclidean")
    num_clusters = max(count // factor, 1)
    labels = hierarchy.fcluster(linked, t=num_clusters, criterion="maxclust")
    means = [page[torch.from_numpy(labels == one)].mean(0) for one in dict.fromkeys(labels)]
    wanted = torch.nn.functional.normalize(torch.stack(means), dim=-1)
    pooled = pool(page, factor, how)
    assert pooled.shape == (num_clusters, 32)
    torch.testing.assert_close(pooled, wanted, atol=1e-6, rtol=0)


def test_both_ways_of_pooling_differ_and_keep_most_of_a_score() -> None:
    page, query = like_a_page(200), like_a_page(10, seed=0)
    pools = {how: pool(page, 3, how) for how in ("ward", "colpali")}
    assert not torch.equal(pools["ward"], pools["colpali"])
    exact = float(max_sim(query, [page]))
    for pooled in pools.values():
        torch.testing.assert_close(pooled.norm(dim=1), torch.ones(66))
        assert float(max_sim(query, [pooled])) > 0.9 * exact


def test_pooling_a_page_of_a_thousand_vectors_takes_well_under_a_second() -> None:
    page = like_a_page(1030)
    start = time.perf_counter()
    assert pool(page, 3).shape == (343, 32)
    assert time.perf_counter() - start < 5  # 0.1 s alone; others may use the machine


def test_equal_vectors_are_pooled_first_and_one_alone_stays() -> None:
    page = torch.eye(3)[[0, 1, 2, 0, 0, 0]]
    torch.testing.assert_close(pool(page, 2), torch.eye(3))
    assert torch.equal(pool(page[:1], 4), page[:1])
    assert torch.equal(pool(page, 1), page)


def test_pooling_names_what_it_cannot_do() -> None:
    for bad in ({"factor": 0}, {"factor": True}, {"factor": 2, "how": "mean"}):
        with pytest.raises(ConfigError, match="must"):
            pool(PAGES[0], **bad)  # type: ignore[arg-type]
    for shape in ((0, 4), (9000, 4), (4,)):
        with pytest.raises(ConfigError, match="vectors of one page"):
            pool(torch.zeros(shape), 2)


def test_eight_bits_are_within_half_a_step() -> None:
    page = torch.cat((vectors(50), torch.zeros(1, 32)))
    codes, scales = quantise_int8(page)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) == 127
    error = (widen(codes, scales) - page).abs()
    assert bool((error <= scales[:, None] / 2 + 1e-7).all())


@pytest.mark.parametrize("dim", [8, 64, 128])
def test_the_hamming_score_is_max_sim_of_signs(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, pages = vectors(5, dim), [vectors(count, dim, seed=count) for count in (1, 9)]
    signs = [torch.where(one > 0, 1.0, -1.0) for one in (query, *pages)]
    wanted = max_sim(signs[0], signs[1:])
    packed = [binary(one) for one in (query, *pages)]
    assert packed[0].shape == (5, dim // 8)
    assert torch.equal(hamming_sim(packed[0], packed[1:]), wanted)
    monkeypatch.delattr(compression.np, "bitwise_count")  # as NumPy 1 has none
    assert torch.equal(hamming_sim(packed[0], packed[1:]), wanted)


def test_signs_of_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        binary(vectors(2, 12))
    with pytest.raises(ConfigError, match="take all from binary"):
        hamming_sim(binary(vectors(2, 16)), [binary(vectors(2, 32))])
    with pytest.raises(ConfigError, match="at least one vector"):
        hamming_sim(binary(vectors(2, 16)), [torch.zeros(0, 2, dtype=torch.uint8)])
