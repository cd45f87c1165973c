"""How fast a model answers: what is counted, and the command."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from paligemma.adapt.quant import Quant
from paligemma.bench.costs import costs_of, head_bytes, prefill_operations, vision_operations
from paligemma.bench.random_model import random_config, random_model
from paligemma.cli import main
from paligemma.errors import ModelNotFoundError
from paligemma.pipeline.paligemma import PaliGemma


@torch.inference_mode()
def test_the_operations_that_are_counted_are_those_that_torch_computes() -> None:
    model = PaliGemma.from_pretrained("tiny").model
    side = model.config.vision.image_size_px
    images, tokens = torch.zeros(1, side, side, 3), torch.full((1, 9), 5)
    # The fused attention of a CPU is not counted; its definition is.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        soft_tokens = model.encode_image(images)
    assert counter.get_total_flops() == pytest.approx(vision_operations(model.config), rel=0.01)
    capacity = model.config.num_image_tokens + 9
    cache = model.new_cache(1, capacity, torch.float32)
    valid = torch.ones_like(tokens, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.prefill(soft_tokens, tokens, torch.zeros_like(tokens), valid, cache)
    counted = prefill_operations(model.config, 9)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.02)


def test_a_step_reads_the_weights_of_the_decoder_once_in_the_bytes_of_their_kind() -> None:
    plain = PaliGemma.from_pretrained("tiny").model
    packed = PaliGemma.from_pretrained("tiny", quant="int8").model
    assert head_bytes(plain) == plain.config.vocab.size * plain.config.text.width * 4
    wide, narrow = (costs_of(model, 5, 2).step_bytes for model in (plain, packed))
    assert 0.25 * wide < narrow < 0.3 * wide


def test_random_models_have_the_shapes_of_a_release_and_values_of_their_own() -> None:
    config = random_config("google/paligemma2-3b-pt-448")
    assert (config.vision.image_size_px, config.text.depth) == (448, 26)
    small = PaliGemma.from_pretrained("tiny").model.config
    for quant in (None, Quant.parse("int4")):
        model = random_model(small, quant=quant, dtype=torch.float32)
        blocks = model.text.blocks
        assert not torch.equal(blocks[0].mlp.down.dense(), blocks[1].mlp.down.dense())
    with pytest.raises(ModelNotFoundError, match="published names"):
        random_config("tiny")


def test_the_command_tells_times_memory_and_shares(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--quant", "int8", "--batch", "1,3", "--tokens", "2"]
    assert main([*arguments, "--repetitions", "1", "--json"], standalone_mode=False) is None
    body = json.loads(capsys.readouterr().out)
    assert body["first_token_s"] == pytest.approx(body["vision_s"] + body["prefill_s"])
    assert body["tokens_per_s"].keys() == {"1", "3"}
    assert body["peak_memory_gb"] > 0.1
    assert body["decoding"]
    assert main([*arguments, "--repetitions", "2"], standalone_mode=False) is None
    told = capsys.readouterr().out
    assert "first token" in told
    assert "3 rows" in told
    assert "2 repetitions" in told


@pytest.mark.parametrize("wrong", [["--batch", "0"], ["--batch", "1,x"], ["--tokens", "0"]])
def test_sizes_without_sense_are_refused(wrong: list[str]) -> None:
    from paligemma.cli.bench import bench

    result = CliRunner().invoke(bench, wrong)
    assert result.exit_code == 2
