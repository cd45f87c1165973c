"""How a model is divided over several devices, and what its parameters take."""

from __future__ import annotations

import pytest
import torch

from paligemma.adapt.quant import Quant
from paligemma.config import find_release, release_config
from paligemma.weights.sizes import ParameterBytes, divide, parameter_bytes

BF16 = torch.bfloat16


def sizes_of(name: str, quant: str | None = None) -> dict[str, ParameterBytes]:
    row, size_px = find_release(name)
    parsed = None if quant is None else Quant.parse(quant)
    return parameter_bytes(release_config(row.text, size_px), parsed, BF16, packs=False)


@pytest.mark.parametrize("quant", [None, "int8", "int4:decoder", "fp8,head=bf16", "nf4"])
@pytest.mark.parametrize("num_cards", [1, 2, 3, 4])
def test_every_card_of_a_28b_model_has_blocks_in_order_and_its_share(
    quant: str | None, num_cards: int
) -> None:
    sizes = sizes_of("google/paligemma2-28b-pt-896", quant)
    total = sum(one.stays for one in sizes.values())
    cards = divide(sizes, [None] * num_cards)
    assert [number for card in cards for number in card.blocks] == list(range(46))
    assert sum(card.weights for card in cards) == total
    block = sum(one.stays for name, one in sizes.items() if name.startswith("text.blocks.7."))
    for card in cards:
        assert abs(card.weights - total / num_cards) <= block


def test_cards_of_different_sizes_are_filled_alike() -> None:
    sizes = sizes_of("google/paligemma2-28b-pt-224")
    large, small = divide(sizes, [80 * 10**9, 24 * 10**9])
    assert large.weights / 80 == pytest.approx(small.weights / 24, rel=0.06)
    assert len(large.blocks) > 2 * len(small.blocks) > 0


def test_a_first_card_that_is_filled_by_table_and_tower_has_no_blocks() -> None:
    first, second = divide(sizes_of("google/paligemma2-28b-pt-224"), [10**9, 79 * 10**9])
    assert str(first) == "no blocks"
    assert str(second) == "blocks 0 to 45"
