"""The edge objective: a normal distribution over location bins around each edge."""

from __future__ import annotations

import math

import pytest
import torch

from paligemma.tiny.edges import EdgeHead, edge_loss, patch_centres


def test_a_head_compares_each_edge_with_every_location_embedding() -> None:
    head = EdgeHead(8)
    soft, table = torch.randn(3, 8), torch.randn(1024, 8)
    with torch.no_grad():
        edges, places = head(soft, table), head.places(soft, table)
        assert edges.shape == (3, 4, 1024)
        assert places.shape == (3, 2, 1024)
        slow = head.proj.weight.view(4, 8, 8)[2] @ soft[1]
        assert edges[1, 2, 700].item() == pytest.approx(float(slow @ table[700]), rel=1e-4)
        slow = head.place.weight.view(2, 8, 8)[1] @ soft[1]
        assert places[1, 1, 700].item() == pytest.approx(float(slow @ table[700]), rel=1e-4)


def test_places_are_the_centres_of_patches_in_raster_order() -> None:
    centres = patch_centres(2, 2).tolist()
    assert centres == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]


@pytest.mark.parametrize("sigma_bins", [1.0, 6.0])
def test_the_loss_is_least_where_the_bins_around_the_edge_are_likely(sigma_bins: float) -> None:
    edges = torch.tensor([[0.25, 0.5, 0.6, 0.75]])
    bins = torch.arange(1024.0)
    best = -0.5 * ((bins - edges[..., None] * 1023) / sigma_bins) ** 2
    least = edge_loss(best, edges, sigma_bins).item()
    # The entropy of that distribution: log(sigma * sqrt(2 * pi * e)).
    assert least == pytest.approx(math.log(sigma_bins * math.sqrt(2 * math.pi * math.e)), abs=0.01)
    for moved in (best.roll(3, dims=-1), best * 0.5, best * 2, torch.zeros_like(best)):
        assert edge_loss(moved, edges, sigma_bins).item() > least + 0.05


def test_knowing_nothing_costs_the_logarithm_of_the_number_of_bins() -> None:
    loss = edge_loss(torch.zeros(5, 4, 1024), torch.full((5, 4), 0.4), 4.0)
    assert loss.item() == pytest.approx(math.log(1024), rel=1e-4)


def test_the_loss_is_the_mean_over_edges_and_patches() -> None:
    logits, edges = torch.randn(6, 4, 1024), torch.rand(6, 4) * 0.8 + 0.1
    each = [
        edge_loss(logits[k, e][None, None], edges[k, e][None, None], 4.0)
        for k in range(6)
        for e in range(4)
    ]
    whole = edge_loss(logits, edges, 4.0)
    assert whole.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_patches_of_a_window_lie_where_the_window_lies() -> None:
    whole = patch_centres(14, 14).view(14, 14, 2)
    window = patch_centres(7, 14, corner=(2, 5)).view(7, 7, 2)
    assert torch.equal(window, whole[2:9, 5:12])
    assert whole[0, 0].tolist() == pytest.approx([0.5 / 14, 0.5 / 14])
