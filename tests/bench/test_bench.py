"""How fast a model answers: what is counted, and the command."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from paligemma.adapt.quant import Quant
from paligemma.bench import machine
from paligemma.bench.costs import (
    Costs,
    costs_of,
    head_bytes,
    prefill_operations,
    vision_operations,
    weight_bytes,
)
from paligemma.bench.machine import Limits
from paligemma.bench.measure import BenchOptions, Figures, Timing
from paligemma.bench.memory import estimate, require_room
from paligemma.bench.plot import write_plot
from paligemma.bench.random_model import random_config, random_model
from paligemma.cli import main
from paligemma.errors import ConfigError, ModelNotFoundError
from paligemma.generate.options import KV_CACHE_DTYPES
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
    wide, narrow = (costs_of(model, 5, torch.bfloat16).step_bytes for model in (plain, packed))
    assert 0.25 * wide < narrow < 0.3 * wide


DOCS = Path(__file__).parents[2] / "docs"
_TABLE = re.findall(
    r"^\| `(google/[\w-]+)` \| (.+) \|$", (DOCS / "speed.md").read_text(), re.MULTILINE
)


def test_the_page_states_the_memory_of_the_whole_family() -> None:
    families = ("paligemma-3b", "paligemma2-3b", "paligemma2-10b", "paligemma2-28b")
    assert [name for name, _ in _TABLE] == [
        f"google/{family}-pt-{side}" for family in families for side in (224, 448, 896)
    ]


@pytest.mark.parametrize(
    "name", [name for name, _ in _TABLE if name.endswith(("896", "28b-pt-224"))]
)
def test_the_memory_on_the_page_is_what_the_program_says(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for quant, cell in zip(("bf16", "int4"), dict(_TABLE)[name].split(" | ")[::2], strict=True):
        words = ["bench", name, "--random", "--quant", quant, "--estimate", "--json"]
        main(words, standalone_mode=False)
        told = json.loads(capsys.readouterr().out)["memory_gb"]
        assert cell == f"{told['weights']:.2f}, {told['together with Python']:.2f}"
        side = int(name.rpartition("-")[2])
        assert random_config(name).num_image_tokens == (side // 14) ** 2


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
    arguments = ["bench", "--quant", "int8", "--batch", "1,3,4", "--tokens", "2"]
    assert main([*arguments, "--repetitions", "1", "--json"], standalone_mode=False) is None
    body = json.loads(capsys.readouterr().out)
    assert body["first_token_s"] == pytest.approx(body["vision_s"] + body["prefill_s"])
    assert body["tokens_per_s"].keys() == {"1", "3", "4"}
    assert body["peak_memory_gb"] > 0.1
    assert body["decoding"]
    assert main([*arguments, "--repetitions", "2"], standalone_mode=False) is None
    told = capsys.readouterr().out
    assert "first token" in told
    assert "decode, batch 3" in told
    assert "answers of 3 tokens, over rows: " in told
    assert "2 repetitions" in told


@pytest.mark.parametrize(
    "wrong",
    [
        ["--batch", "0"],
        ["--batch", "1,x"],
        ["--batch", "1,,2"],
        ["--batch", "257"],
        ["--batch", "\N{ARABIC-INDIC DIGIT TWO}"],
        ["--prompt-tokens", "8193"],
        ["--prompt-tokens", "9" * 5000],
        ["--prompt-tokens", ",".join(map(str, range(1, 34)))],
        ["--tokens", "0"],
        ["--plot", "speed.png"],
        ["--plot", "speed.svg", "--estimate"],
        ["--plot", ""],
        ["--plot", "s" * 300 + ".svg"],
    ],
)
def test_sizes_and_plots_without_sense_are_refused(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", *wrong])
    assert left.value.code == 2
    assert len(capsys.readouterr().err) < 1000


def test_a_plot_takes_the_place_of_nothing_unless_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, folder = tmp_path / "kept.svg", tmp_path / "folder.svg"
    kept.write_text("mine")
    folder.mkdir()
    words = ["bench", "--tokens", "2", "--repetitions", "1", "--plot"]
    with monkeypatch.context() as patch:
        patch.setattr("paligemma.bench.subject.Subject.load", None)  # refused before the work
        for place, rule in ((kept, "allow it with --overwrite"), (folder, "is a folder")):
            with pytest.raises(SystemExit) as left:
                main([*words, str(place)])
            assert left.value.code == 2
            assert rule in capsys.readouterr().err
    main([*words, str(kept), "--overwrite"], standalone_mode=False)
    assert kept.read_text().startswith("<svg")


def test_growth_is_measured_at_every_size_and_drawn_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = tmp_path / "new" / "speed.svg"
    words = ["--quant", "int8", "--batch", "1,2,3", "--prompt-tokens", "4,9", "--tokens", "1"]
    words += ["--repetitions", "1", "--plot", str(drawing)]
    main(["bench", *words, "--json"], standalone_mode=False)
    body = json.loads(capsys.readouterr().out)
    first, total = body["growth_s"].values()
    assert (list(first), list(total)) == (["4", "9"], ["1", "2", "3"])
    # Two points are always on a line.
    ((name, line),) = body["lines"].items()
    assert name == "all answers of 2 tokens, over rows"
    xs, ys = (1.0, 2.0, 3.0), list(total.values())
    slope, start = numpy.polyfit(xs, ys, 1)
    assert (line["slope"], line["start"]) == (pytest.approx(slope), pytest.approx(start))
    fitted = [start + slope * x for x in xs]
    farthest = max(abs(y - f) / f for y, f in zip(ys, fitted, strict=True))
    assert line["departure"] == pytest.approx(farthest)
    root = ElementTree.parse(drawing).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{svg}text") == "tiny, int8"
    assert [len(one.findall(f"{svg}polyline")) for one in root.findall(f"{svg}svg")] == [1, 1, 2]
    drawing.write_text(drawing.read_text().replace("metadata", "user-data"))
    with pytest.raises(ConfigError, match="not written by this program"):
        main(["bench", "--plot", str(drawing)], standalone_mode=False)


def test_a_single_size_is_not_drawn_as_growth(tmp_path: Path) -> None:
    limits = Limits(bytes_per_s=None, operations_per_s=None)
    seconds = {1: 0.2, 2: 0.3}
    timing = Timing(
        vision_s=1.0, prefills_s={10: 0.2}, rows_s=seconds, steps_s=seconds, limits=limits
    )
    costs = Costs(vision_operations=0, prefill_operations=0, step_bytes=0, row_bytes=0)
    figures = Figures(
        options=BenchOptions(batches=(1, 2)), costs=costs, timings=(timing,), peak_memory_bytes=None
    )
    write_plot(figures, tmp_path / "speed.svg", heading="a <model>")
    root = ElementTree.parse(tmp_path / "speed.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{svg}text") == "a <model>"
    names = [one.get("aria-label") for one in root.findall(f"{svg}svg")]
    assert names == ["tokens a second, over rows", "seconds to all answers of 17 tokens, over rows"]


ESTIMATE = ["bench", "google/paligemma2-28b-pt-224", "--random", "--quant", "int4"]


def test_the_memory_of_a_model_is_told_without_loading_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*ESTIMATE, "--estimate", "--json"], standalone_mode=False) is None
    body = json.loads(capsys.readouterr().out)
    assert body["kind"] == "int4"
    assert 16 < body["memory_gb"]["weights"] < body["memory_gb"]["together with Python"] < 17
    assert main(["bench", "--estimate"], standalone_mode=False) is None
    assert "free here" in capsys.readouterr().out


@pytest.mark.parametrize("quant", [None, "bf16", "int8", "int4", "nf4", "int8:decoder,head=int4"])
def test_the_estimate_counts_the_bytes_that_a_model_then_has(quant: str | None) -> None:
    parsed, config = quant and Quant.parse(quant), PaliGemma.from_pretrained("tiny").model.config
    packed = parsed and parsed.is_packed
    dtype = torch.float32 if packed else torch.bfloat16
    model = random_model(config, quant=parsed or None, dtype=dtype)
    memory = estimate(
        config,
        quant=parsed or None,
        dtype=dtype,
        num_tokens=9,
        num_rows=1,
        cache_dtype=torch.bfloat16,
    )
    assert memory.weights == weight_bytes(model)


def test_an_int8_cache_is_counted_with_a_scale_a_head_and_as_the_cache_then_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = PaliGemma.from_pretrained("tiny").model
    config, bytes_of = model.config, {}
    for name, dtype in KV_CACHE_DTYPES.items():
        cache = model.new_cache(3, config.num_image_tokens + 9, dtype)
        held = sum(one.nbytes for one in cache.keys + cache.values)
        assert costs_of(model, 9, dtype).row_bytes == held // 3
        memory = estimate(
            config, quant=None, dtype=torch.float32, num_tokens=9, num_rows=3, cache_dtype=dtype
        )
        bytes_of[name] = memory.answering - held
    assert len(set(bytes_of.values())) == 1
    found = []
    for name in ("int8", "bfloat16", "float32"):
        words = [*ESTIMATE, "--estimate", "--json", "--kv-cache", name, "--batch", "200"]
        assert main(words, standalone_mode=False) is None
        found.append(json.loads(capsys.readouterr().out)["memory_gb"]["together with Python"])
    assert found == sorted(set(found))


def test_a_model_that_does_not_fit_is_refused_before_it_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paligemma.bench.memory.free_memory_bytes", lambda: 15 * 10**9)
    monkeypatch.setattr("paligemma.bench.subject.random_model", None)
    with pytest.raises(SystemExit) as left:
        main(ESTIMATE)
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert "GB are needed" in told
    assert "15.0 GB are free" in told
    assert "--quant" in told


def test_a_system_that_tells_nothing_of_its_memory_still_has_a_description(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_from_proc", lambda *_: None)
    monkeypatch.setattr(machine, "Path", lambda _: Path("/nowhere"))
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.describe("no-such-package")["memory_gb"] is None
    assert machine.peak_memory_bytes() is None
    assert machine.free_memory_bytes() is None
    config = PaliGemma.from_pretrained("tiny").model.config
    require_room(
        estimate(
            config,
            quant=None,
            dtype=torch.float32,
            num_tokens=9,
            num_rows=1,
            cache_dtype=torch.bfloat16,
        )
    )
