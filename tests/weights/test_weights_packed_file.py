"""Packed models on disk: the same bits as packing while loading, and what is refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from opened_models import logits, opened

from paligemma.adapt.quant import Quant
from paligemma.errors import CheckpointError, ConfigError, PaliGemmaError
from paligemma.kernels import native
from paligemma.kernels.packed_layers import packed_weights
from paligemma.model import PaliGemmaModel
from paligemma.weights.load import load_model
from paligemma.weights.model_files import PACKED_NAME
from paligemma.weights.save import convert, save_model

Make = Callable[..., Any]
KINDS = ["bf16", "int8", "int4", "fp8"]


@pytest.fixture(params=[1, 2])
def folder(
    request: pytest.FixtureRequest, make_config: Make, make_model: Make, tmp_path: Path
) -> Path:
    """A plain checkpoint of either generation; the second has a head of its own."""
    config = make_config(request.param)
    config = replace(config, text=replace(config.text, tied_head=request.param == 1))
    return save_model(make_model(config), tmp_path / "plain", dtype="bfloat16")


@pytest.fixture
def packed(make_config: Make, make_model: Make, tmp_path: Path) -> Path:
    """A packed checkpoint in int8, whose scales lie beside the panels."""
    plain = save_model(make_model(make_config(1)), tmp_path / "plain")
    return convert(plain, tmp_path / "packed", quant="int8")


@pytest.mark.parametrize(
    "quant", [*KINDS, "int4,head=bf16", "fp8,head=int4", "int4:decoder.mlp,vision,head=int8"]
)
@pytest.mark.parametrize("conventions", ["big_vision", "transformers"])
def test_a_saved_model_has_the_bits_of_one_that_is_packed_while_it_is_read(
    folder: Path, tmp_path: Path, quant: str, conventions: Any
) -> None:
    saved = convert(folder, tmp_path / "packed", quant=quant)
    again = opened(saved, conventions=conventions)
    wanted = opened(folder, quant, conventions=conventions)
    assert again.config == wanted.config
    assert again.text.embed_scale == wanted.text.embed_scale
    state, wanted_state = again.state_dict(), wanted.state_dict()
    assert state.keys() == wanted_state.keys()
    assert all(torch.equal(state[name], wanted_state[name]) for name in state)
    assert torch.equal(logits(again), logits(wanted))


def test_panels_are_mapped_at_addresses_that_vectors_like(packed: Path) -> None:
    model = opened(packed)
    assert all(w.matrix.data.data_ptr() % 64 == 0 for w in packed_weights(model).values())
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(packed / PACKED_NAME) in maps.read_text()


def test_an_npz_is_packed_as_safetensors_are(folder: Path, tmp_path: Path) -> None:
    if opened(folder).config.text.tied_head:
        npz = convert(folder, tmp_path / "npz", layout="npz")
        for source in (folder, npz):
            convert(source, tmp_path / source.name / "packed", quant="int4")
        one, other = (tmp_path / s.name / "packed" / PACKED_NAME for s in (folder, npz))
        assert one.read_bytes() == other.read_bytes()


def test_another_resolution_is_interpolated_as_of_the_plain_file(
    folder: Path, tmp_path: Path
) -> None:
    saved = convert(folder, tmp_path / "packed", quant="int8")
    models = [
        opened(saved, image_size_px=42),
        opened(folder, "int8", image_size_px=42),
        load_model(folder, image_size_px=42, dtype="float32"),
    ]
    first, *others = (model.vision.pos_embedding for model in models)
    assert all(torch.equal(first, other) for other in others)
    assert torch.equal(logits(models[0]), logits(models[1]))


def test_torch_reads_the_bytes_that_the_kernels_wrote(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(packed)
    found = logits(model)
    dense = {name: w.matrix.unpack() for name, w in packed_weights(model).items()}
    monkeypatch.setattr(native, "library", lambda: None)
    by_torch = opened(packed)
    for name, weight in packed_weights(by_torch).items():
        assert torch.equal(weight.matrix.unpack(), dense[name])
    assert (logits(by_torch) - found).norm() < 0.01 * found.norm()


@pytest.mark.parametrize("text", ["int8", "int4:vision,decoder.mlp,head=fp8", "nf4", "bf16"])
def test_a_quantisation_is_written_as_it_is_read(text: str) -> None:
    quant = Quant.parse(text)
    assert Quant.parse(str(quant)) == quant


def test_a_packed_model_keeps_its_kinds_dtype_and_device(packed: Path) -> None:
    assert torch.equal(logits(opened(packed, "int8")), logits(opened(packed)))
    with pytest.raises(ConfigError, match="holds int8,head=int8, got quant int4,head=int8"):
        opened(packed, "int4")
    with pytest.raises(ConfigError, match="got quant nf4"):
        opened(packed, "nf4")
    with pytest.raises(ConfigError, match="computed in float32, got bfloat16"):
        load_model(packed, dtype="bfloat16")
    with pytest.raises(ConfigError, match="packed for a CPU, the device is meta"):
        load_model(packed, device="meta")
    with pytest.raises(ConfigError, match="a conversion needs a model whose weights are not"):
        convert(packed, packed.with_name("again"))


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a safetensors file; the data stay as they are."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    path.write_bytes(struct.pack("<Q", length) + text + raw[8 + length :])


def swap(header: dict[str, Any], *keys: str) -> None:
    header[keys[0]], header[keys[1]] = header[keys[1]], header[keys[0]]


Q = "text.blocks.0.attn.q.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda h: h["__metadata__"].update(layout="9"), "must be of layout 1, .* of '9'"),
        (lambda h: h.pop("__metadata__"), "must be of layout 1, .* of 'none'"),
        (lambda h: h["__metadata__"].update(quant="nf4"), "must state their kinds"),
        (lambda h: h["__metadata__"].update(quant="int3"), "must state their kinds"),
        (lambda h: h["__metadata__"].update(quant="fp8,head=fp8"), "must be that of"),
        (lambda h: h[Q].update(dtype="I8"), "should be U8, is I8"),
        (lambda h: h[Q].update(shape=[1, *h[Q]["shape"]]), f"shape: {Q} should be"),
        (lambda h: h.update({Q[:-1]: h.pop(Q)}), f"missing: {Q}"),
        (lambda h: swap(h, Q, "text.embed.weight"), f"shape: {Q} should be"),
        (lambda h: h[Q]["data_offsets"].reverse(), "not readable"),
        (lambda h: h[Q].update(data_offsets=[0, 1 << 60]), "not readable"),
        (lambda h: h[Q].update(dtype="U9"), "not readable"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_in_a_sentence(
    packed: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    rewritten(packed / PACKED_NAME, change)
    with pytest.raises(CheckpointError, match=sentence):
        opened(packed)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1])
def test_a_file_that_is_cut_short_is_refused(packed: Path, keep: float) -> None:
    path = packed / PACKED_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match="must be complete"):
        opened(packed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_scales_that_are_no_positive_numbers_are_refused(packed: Path, value: float) -> None:
    path = packed / PACKED_NAME
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    place = json.loads(raw[8 : 8 + length])[f"{Q}.scale"]["data_offsets"][0]
    struct.pack_into("<f", raw, 8 + length + place, value)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="scales must be positive numbers"):
        opened(packed)


def test_panels_at_odd_addresses_are_refused(packed: Path) -> None:
    path = packed / PACKED_NAME
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    path.write_bytes(
        struct.pack("<Q", length + 4) + raw[8 : 8 + length] + b"    " + raw[8 + length :]
    )
    with pytest.raises(CheckpointError, match="multiples of 64"):
        opened(packed)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("quantization_config"), "must be that of"),
        (lambda c: c["quantization_config"].update(quant="fp8,head=int8"), "must be that of"),
        (lambda c: c["quantization_config"].update(layout=2), "must be that of"),
        (lambda c: c.update(quantization_config=["int8"]), "must be that of"),
        (lambda c: c["text_config"].update(num_hidden_layers=4), "missing: text.blocks.3"),
        (lambda c: c["text_config"].update(intermediate_size=64), "shape: "),
        (lambda c: c.update(tie_word_embeddings=False), "missing: text.embed.head"),
    ],
)
def test_a_config_of_another_model_is_refused(
    packed: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    path = packed / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(PaliGemmaError, match=sentence):
        opened(packed)


def test_a_folder_holds_one_model_and_a_packed_one_needs_its_config(
    packed: Path, tmp_path: Path
) -> None:
    (packed / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"the config\.json"):
        opened(packed)
    (packed / "model.safetensors").write_bytes((tmp_path / "plain/model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"holds model-packed\.safetensors beside model\.saf"):
        opened(packed)


def test_a_plain_model_takes_the_place_of_a_packed_one_and_back(
    packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"holds model-packed\.safetensors"):
        convert(tmp_path / "plain", packed, quant="int4")
    convert(tmp_path / "plain", packed, overwrite=True)
    assert not (packed / PACKED_NAME).exists()
    assert opened(packed).dtype == torch.float32
    convert(tmp_path / "plain", packed, quant="int4", overwrite=True)
    assert not (packed / "model.safetensors").exists()
    assert packed_weights(opened(packed))[Q].kind == "int4"


def test_weights_that_are_no_numbers_are_not_packed_and_leave_no_folder(
    make_config: Make, make_model: Make, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    model.text.blocks[1].mlp.down.weight.data[3, 5] = float("nan")
    save_model(model, tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.down\.weight has NaN"):
        convert(tmp_path / "plain", tmp_path / "packed", quant="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


_PEAKS = """
import sys
from pathlib import Path

import torch

from paligemma.adapt.quant import Quant
from paligemma.kernels.packed_layers import packed_weights
from paligemma.weights.load import OpenCheckpoint
from paligemma.weights.save import convert

torch.set_num_threads(1)
plain, packed = map(Path, sys.argv[1:])


def resident(field):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def peak(work):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    done = work()
    return resident("VmHWM") - before, done


def load(folder, quant):
    with OpenCheckpoint(folder) as opened:
        return opened.load(quant=quant)


load(packed, None)  # imports
first, model = peak(lambda: load(plain, Quant.parse("int8")))
held = sum(weight.matrix.nbytes for weight in packed_weights(model).values())
second, mapped = peak(lambda: load(packed, None))
third, _ = peak(lambda: convert(plain, packed, quant="int8", overwrite=True))
print(held, first, second, third)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_loading_needs_the_packed_weights_and_one_tensor_and_mapping_none(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config(1, width=512, depth=8, mlp_dim=4096, num_heads=4, head_dim=64)
    model = PaliGemmaModel(config).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05)
    size = sum(parameter.nbytes for parameter in model.parameters())
    largest = max(parameter.nbytes for parameter in model.parameters())
    plain = save_model(model, tmp_path / "plain")
    packed = convert(plain, tmp_path / "packed", quant="int8")
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS, plain, packed], capture_output=True, text=True, check=True
    )
    held, loading, mapping, converting = map(int, done.stdout.split())
    slack = 12e6
    assert 90e6 < size < 120e6 > 2 * held - slack
    assert loading < held + largest + slack
    assert mapping < slack
    assert converting < 2 * largest + slack
