"""Plans: what they foresee is what a training takes, and cards, rows and processes follow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from measured_training import NUM_ANSWER, NUM_TEXT, config, recipe

from paligemma.adapt.lora import LoraConfig
from paligemma.cli import main
from paligemma.config import PaliGemmaConfig, named_release, release_config
from paligemma.errors import ConfigError
from paligemma.tuning.footprint import Rows, footprint
from paligemma.tuning.plan import Card, Plan, plan, rows_that_fit
from paligemma.tuning.recipe import Recipe

PROGRAM = Path(__file__).with_name("measured_training.py")


def planned(sizes: PaliGemmaConfig, how: Recipe, **options: object) -> Plan:
    values = {"num_text": NUM_TEXT, "num_answer": NUM_ANSWER, "compute_dtype": torch.float32}
    return plan(sizes, how, **{**values, "base_dtype": torch.float32, **options})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("way", ["full", "lora"])
def test_a_plan_is_within_a_tenth_of_what_a_training_takes(way: str) -> None:
    # Freed memory goes back to the system at once, as a GPU's allocator reuses it.
    kept = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), way],
        env={**os.environ, **kept}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = json.loads(done.stdout)["bytes"]
    assert planned(config(), recipe(way)).total == pytest.approx(measured, rel=0.1)


def test_parts_add_up_and_moments_follow_the_rule() -> None:
    full = planned(config(), recipe("full"))
    count = sum(row["parameters"] for row in full.footprint.parts)
    assert (full.weights, full.gradients, full.state) == (4 * count, 4 * count, 8 * count)
    small = planned(config(), replace(recipe("full"), rule="adam8bit"))
    assert 0.25 < small.state / full.state < 0.27
    averaged = planned(config(), replace(recipe("full"), average=0.9))
    assert averaged.state == 12 * count
    # What a save copies: all that a whole model is, and of an adapter what is trained.
    assert full.saved == full.weights + full.state
    adapter = planned(config(), recipe("lora"))
    assert adapter.saved == 3 * adapter.gradients


def test_recomputing_blocks_takes_less_memory_and_more_work() -> None:
    sizes, how = config(), recipe("lora")
    plain, again = (planned(sizes, replace(how, checkpointing=on)) for on in (False, True))
    assert again.working < 0.7 * plain.working
    # Forward, gradients of the inputs, and the forward again.
    assert 1.4 < again.flops_a_step / plain.flops_a_step < 1.5


def test_sharded_processes_divide_what_they_keep_and_gather_what_they_compute() -> None:
    one, eight = (
        planned(config(), replace(recipe("full"), batch_size=2 * count), processes=count)
        for count in (1, 8)
    )
    assert eight.sharded
    assert not one.sharded
    assert eight.weights == one.weights // 8
    assert eight.working > one.working
    copies = planned(config(), recipe("lora"), processes=2)
    assert not copies.sharded
    assert copies.rows.count == 1


def test_rows_that_fit_fit_and_one_more_does_not() -> None:
    sizes, how, card = config(), recipe("full"), Card(memory=10**9, flops=1e12)
    first, second = (
        planned(sizes, replace(how, batch_size=count, micro_size=count)) for count in (2, 16)
    )
    most = rows_that_fit(first, second, card)
    fitting, beyond = (
        planned(sizes, replace(how, batch_size=count, micro_size=count))
        for count in (most, most + max(2, most // 10))
    )
    assert fitting.fits(card)
    assert not beyond.fits(card)


def test_a_frozen_decoder_in_four_bits_takes_half_a_byte_a_weight() -> None:
    sizes = config()
    how = replace(recipe("lora"), quant="nf4")
    rows = Rows(count=1, num_text=8, num_answer=2)
    dtypes = {"base_dtype": torch.bfloat16, "compute_dtype": torch.bfloat16}
    plain = footprint(sizes, recipe("lora"), rows, **dtypes)
    found = footprint(sizes, how, rows, **dtypes)
    layers = sum(row["parameters"] for row in found.parts if row["state"] == "quantised")
    assert layers > 15e6
    assert plain.weights - found.weights == pytest.approx((2 - 0.516) * layers, rel=0.01)


def test_the_command_plans_a_release_that_is_not_on_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real sizes take half a minute; the way through the command is the same.
    name = "google/paligemma2-28b-pt-896"
    assert named_release(name) is not None
    monkeypatch.setattr("paligemma.tuning.plan.release_config", lambda text, side: config())
    options = "--full --processes 8 --rows 1000 --epochs 2 --batch-size 16 --card h100-80"
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--model", name, *options.split()])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert "memory of each of 8 processes, sharded" in shown
    assert re.search(r"copy in the host's memory, for --save +\d+\.\d\d GB", shown)
    assert "125 updates" in shown
    assert re.search(r"h100-80 +yes +\d+ +\d+\.\d\d", shown)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--card", "h100"], "h100-80"),
        (["--parallel", "both"], "replicate, shard"),
        (["--answer-len", "200"], "no longer than their rows"),
        (["--full", "--rank", "4"], "leave --full out"),
    ],
)
def test_a_plan_without_sense_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_published_28b_has_a_plan_for_eight_large_cards() -> None:
    """Without running it: parameters, gradients and moments alone."""
    text = named_release("google/paligemma2-28b-pt-224")
    assert text is not None
    sizes = release_config(text[0].text, 224)
    shallow = replace(
        sizes, text=replace(sizes.text, depth=1), vision=replace(sizes.vision, depth=1)
    )
    how = Recipe(lora=None, checkpointing=True, batch_size=8)
    found = plan(shallow, how, processes=8)
    block = found.footprint.block
    assert block == pytest.approx(2.265e9, rel=0.01)
    with pytest.raises(ConfigError, match="one process or more"):
        plan(shallow, Recipe(lora=LoraConfig()), processes=0)


def test_attention_is_counted_in_tower_and_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, rows = config(), Rows(count=2, num_text=NUM_TEXT, num_answer=NUM_ANSWER)
    dtypes = {"base_dtype": torch.float32, "compute_dtype": torch.float32}
    whole = footprint(sizes, recipe("full"), rows, **dtypes).flops
    monkeypatch.setattr("paligemma.tuning.footprint._SAME_WORK", {})
    missing = whole - footprint(sizes, recipe("full"), rows, **dtypes).flops
    vision, text = sizes.vision, sizes.text
    in_tower = vision.depth * vision.num_tokens**2 * vision.width
    # The last block computes the positions of the text alone.
    length = vision.num_tokens + NUM_TEXT
    pairs = (text.depth - 1) * length**2 + NUM_TEXT * length
    in_decoder = pairs * text.num_heads * text.head_dim
    # Two products of this size forward and five backward, two operations each.
    assert missing == 7 * 2 * rows.count * (in_tower + in_decoder)
