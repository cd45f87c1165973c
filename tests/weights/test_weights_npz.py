"""big_vision's npz: bit-exact both ways, every published variant, hostile files."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from paligemma.config import PaliGemmaConfig, release_config
from paligemma.errors import CheckpointError
from paligemma.model import PaliGemmaModel
from paligemma.weights.big_vision import BigVisionReader, infer_config, rows, write_npz
from paligemma.weights.catalog import resolve
from paligemma.weights.load import load_model
from paligemma.weights.npz import NpzReader, NpzWriter

generations = pytest.mark.parametrize("generation", [1, 2])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def write(path: Path, model: PaliGemmaModel, dtype: torch.dtype = torch.float32) -> Path:
    with NpzWriter(path) as npz:
        write_npz(npz, model.config, dict(model.named_parameters()).__getitem__, dtype=dtype)
    return path


def read(path: Path, config: PaliGemmaConfig) -> dict[str, Tensor]:
    with BigVisionReader(NpzReader([path])) as reader:
        assert reader.problems(config) == []
        return dict(reader.tensors(config))


@generations
@dtypes
def test_a_model_survives_npz_bit_by_bit(
    make_config, make_model, tmp_path: Path, generation: int, dtype: torch.dtype
) -> None:
    model = make_model(make_config(generation)).to(dtype)
    tensors = read(write(tmp_path / "m.npz", model, dtype), model.config)
    expected = dict(model.named_parameters())
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].dtype == dtype for name in expected)
    assert all(bits(tensors[name]) == bits(expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["g1_params", "g1_params_bf16", "g2_params"])
def test_an_original_file_survives_torch_bit_by_bit(
    golden_dir: Path, tmp_path: Path, make_config, name: str
) -> None:
    with BigVisionReader(NpzReader([golden_dir / f"{name}.npz"])) as reader:
        shape = {key: info.shape for key, info in reader.arrays.items()}
        config = make_config(2 if name.startswith("g2") else 1)
        text_shape = shape["llm/layers/attn/q_einsum/w"]
        config = replace(
            config,
            vision=replace(
                config.vision,
                image_size_px=56,
                width=shape["img/embedding/bias"][0],
                depth=shape["img/Transformer/encoderblock/LayerNorm_0/scale"][0],
                mlp_dim=shape["img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias"][1],
                num_heads=shape[
                    "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/bias"
                ][1],
            ),
            text=replace(
                config.text,
                depth=text_shape[0],
                num_heads=text_shape[1],
                width=text_shape[2],
                head_dim=text_shape[3],
                num_kv_heads=shape["llm/layers/attn/kv_einsum/w"][2],
                mlp_dim=shape["llm/layers/mlp/linear"][1],
            ),
            vocab=replace(config.vocab, size=shape["llm/embedder/input_embedding"][0]),
        )
        assert reader.problems(config) == []
        tensors = dict(reader.tensors(config))
        dtype = reader.table_dtype()
    with NpzWriter(tmp_path / "again.npz") as npz:
        write_npz(npz, config, tensors.__getitem__, dtype=dtype)
    with np.load(golden_dir / f"{name}.npz") as before, np.load(tmp_path / "again.npz") as after:
        assert sorted(before.files) == sorted(after.files)
        for key in before.files:
            assert before[key].dtype == after[key].dtype
            assert before[key].tobytes() == after[key].tobytes()


def test_numpy_reads_what_we_write(make_config, make_model, tmp_path: Path) -> None:
    model = make_model(make_config(2))
    with np.load(write(tmp_path / "m.npz", model), allow_pickle=False) as file:
        w = file["params/llm/layers/mlp/gating_einsum"]
        assert w.shape == (3, 2, 32, 48)
        up = dict(model.named_parameters())["text.blocks.1.mlp.up.weight"].detach().numpy()
        assert np.array_equal(w[1, 1], up.T)


@pytest.mark.parametrize("prefix", ["params/", "opt/target/", ""])
def test_all_three_key_prefixes_are_read(
    make_config, make_model, tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(make_config(1))
    with np.load(write(tmp_path / "m.npz", model)) as file:
        arrays = {prefix + key.removeprefix("params/"): file[key] for key in file.files}
    if prefix == "opt/target/":
        arrays["opt/state/step"] = np.zeros(1, np.float32)
    np.savez(tmp_path / "other.npz", **arrays)
    tensors = read(tmp_path / "other.npz", model.config)
    assert torch.equal(tensors["text.norm.scale"], model.text.norm.scale)
    # Arrays of an optimiser are passed over, and said to be.
    assert ("1 arrays outside" in caplog.text) == (prefix == "opt/target/")


def test_compressed_and_fortran_ordered_arrays_are_read(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(2))
    with np.load(write(tmp_path / "m.npz", model)) as file:
        arrays = {key: np.asfortranarray(file[key]) for key in file.files}
    np.savez_compressed(tmp_path / "f.npz", **arrays)
    tensors = read(tmp_path / "f.npz", model.config)
    assert all(torch.equal(tensors[n], p) for n, p in model.named_parameters())


def test_pieces_are_read_as_one_file(make_config, make_model, tmp_path: Path) -> None:
    model = make_model(make_config(2))
    whole = write(tmp_path / "m.npz", model).read_bytes()
    (tmp_path / "m.npz").unlink()
    size = len(whole) // 11
    for number in range(12):
        piece = whole[number * size : (number + 1) * size]
        (tmp_path / f"m.npz.part{number}").write_bytes(piece)
    for source in (tmp_path, tmp_path / "m.npz.part3"):
        loaded = load_model(source, config=model.config)
        assert torch.equal(loaded.text.embed.weight, model.text.embed.weight)


@pytest.mark.parametrize(
    ("tails", "gone", "missing"),
    [
        ("0 1 2 3", "1", r"m\.npz\.part1;"),
        ("1 2 3 4", "2", r"m\.npz\.part2;"),
        ("00 01 02 03", "01", r"m\.npz\.part01;"),
        ("aa ab ac ad", "ac", r"m\.npz\.partac;"),
        ("aa ab ac ad", "aa", r"m\.npz\.partaa;"),
    ],
)
def test_a_piece_that_is_missing_is_named(
    tmp_path: Path, tails: str, gone: str, missing: str
) -> None:
    for tail in tails.split():
        if tail != gone:
            (tmp_path / f"m.npz.part{tail}").write_bytes(b"")
    last = tmp_path / f"m.npz.part{tails.split()[-1]}"
    for source in (tmp_path, last):
        with pytest.raises(CheckpointError, match=rf"every piece .* missing: {missing} finish"):
            resolve(source)


def test_a_first_or_last_piece_that_is_missing_is_spoken_of(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    whole = write(tmp_path / "m.npz", model).read_bytes()
    for kept in (slice(0, -9000), slice(9000, None)):
        path = tmp_path / "n.npz.part1"
        path.write_bytes(whole[kept])
        with pytest.raises(CheckpointError, match=r"\.part pieces"):
            load_model(path, config=model.config)


def test_equal_key_and_query_heads_share_one_array(make_config, make_model, tmp_path: Path) -> None:
    config = make_config(1, num_kv_heads=4)
    model = make_model(config)
    path = write(tmp_path / "m.npz", model)
    with np.load(path) as file:
        assert file["params/llm/layers/attn/qkv_einsum/w"].shape == (3, 3, 4, 32, 12)
    tensors = read(path, config)
    assert all(torch.equal(tensors[n], p) for n, p in model.named_parameters())
    # Files that keep them apart are read too.
    with NpzWriter(tmp_path / "apart.npz") as npz:
        write_npz(npz, config, tensors.__getitem__, dtype=torch.float32, fused=False)
    apart = read(tmp_path / "apart.npz", config)
    assert all(torch.equal(apart[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("text", ["gemma_2b", "gemma2_2b", "gemma2_9b", "gemma2_27b"])
@pytest.mark.parametrize("size_px", [224, 896])
def test_released_models_are_recognised_by_their_shapes(text: str, size_px: int) -> None:
    config = release_config(text, size_px)
    shapes = {row.key: row.shape(config) for row in rows(config)}
    assert infer_config(shapes, "x.npz") == config


def test_a_decoder_of_no_released_size_needs_its_config(
    make_config, make_model, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.npz", make_model(make_config(2)))
    with pytest.raises(CheckpointError, match=r"released size .* put a config\.json beside"):
        load_model(path)


def test_only_one_layer_of_one_array_is_in_memory_at_a_time(
    make_config, make_model, tmp_path: Path
) -> None:
    config = make_config(2)
    path = write(tmp_path / "m.npz", make_model(config))
    largest = 0
    with BigVisionReader(NpzReader([path])) as reader:
        for name, tensor in reader.tensors(config):
            if name.startswith("text.blocks"):
                largest = max(largest, tensor.untyped_storage().nbytes())
    # gate and up of one layer, not of three
    assert largest <= 2 * 48 * 32 * 4


def test_arrays_of_objects_are_refused_without_being_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(CheckpointError, match=r"a\.npy.*Python objects.*float arrays"):
        NpzReader([tmp_path / "m.npz"])


def test_arrays_of_integers_or_doubles_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"float32, float16 or bfloat16.*float64; cast it"):
        NpzReader([tmp_path / "m.npz"])


def test_a_truncated_npz_is_refused(make_config, make_model, tmp_path: Path) -> None:
    path = write(tmp_path / "m.npz", make_model(make_config(1)))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="complete zip file"):
        NpzReader([path])


def test_a_flipped_byte_is_noticed(make_config, make_model, tmp_path: Path) -> None:
    model = make_model(make_config(1))
    path = write(tmp_path / "m.npz", model)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read(path, model.config)


def test_damage_anywhere_is_one_kind_of_error(make_config, make_model, tmp_path: Path) -> None:
    config = make_config(1, depth=1)
    with np.load(write(tmp_path / "m.npz", make_model(config))) as file:
        np.savez_compressed(tmp_path / "z.npz", **file)
    whole = (tmp_path / "z.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(100):
        data = bytearray(whole)
        places = (rng.integers(len(data)), rng.integers(300), len(data) - 1 - rng.integers(3000))
        data[places[number % 3]] = rng.integers(256)
        path = tmp_path / f"{number}.npz"
        path.write_bytes(
            bytes(data[: rng.integers(len(data))]) if number % 10 == 0 else bytes(data)
        )
        try:
            read(path, config)
        except (CheckpointError, AssertionError):
            refused += 1
    assert refused > 70


def test_members_without_the_suffix_are_read_as_numpy_does(
    make_config, make_model, tmp_path: Path
) -> None:
    model = make_model(make_config(1))
    whole = write(tmp_path / "m.npz", model)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "bare.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name.removesuffix(".npy"), old.read(name))
    tensors = read(tmp_path / "bare.npz", model.config)
    assert all(torch.equal(tensors[n], p) for n, p in model.named_parameters())


def test_an_array_that_appears_twice_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.zeros(3, np.float32))
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as file:
        file.writestr("a", content.getvalue())
        file.writestr("a.npy", content.getvalue())
    with pytest.raises(CheckpointError, match=r"once in .*m\.npz, it holds 2 under 1 names"):
        NpzReader([tmp_path / "m.npz"])


def test_a_member_without_a_name_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", b"no array")
    # A name that begins with a null byte is read as an empty one.
    path.write_bytes(path.read_bytes().replace(b"a", b"\0"))
    with pytest.raises(CheckpointError, match=r"must be a \.npy array, '' is not"):
        NpzReader([path])


def test_damage_within_lzma_is_the_same_error(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.random.default_rng(0).normal(size=999).astype(np.float32))
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.npy", content.getvalue())
    whole = path.read_bytes()
    for place in range(200, 3000, 100):
        data = bytearray(whole)
        data[place] ^= 0xFF
        path.write_bytes(bytes(data))
        with pytest.raises(CheckpointError), NpzReader([path]) as reader:
            reader.read("a")


@pytest.mark.parametrize(
    "header",
    [
        b"{1: 2, 'a': 3}",
        b"{[]: 1}",
        b"{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,)}",
        b"-" * 9000,
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes) -> None:
    length = len(header).to_bytes(2, "little")
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as file:
        file.writestr("a.npy", np.lib.format.magic(1, 0) + length + header)
    with pytest.raises(CheckpointError, match=r"must be a \.npy array, 'a\.npy' is not"):
        NpzReader([tmp_path / "m.npz"])


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 10**6)}
    )
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as file:
        file.writestr("a.npy", header.getvalue())
    with pytest.raises(CheckpointError, match="must follow from its shape"):
        NpzReader([tmp_path / "m.npz"])


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"readme\.txt"):
        NpzReader([tmp_path / "m.npz"])
