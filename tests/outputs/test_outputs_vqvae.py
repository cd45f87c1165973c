"""The mask codec: layers, training step, files. Golden numbers are in tests/golden."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from paligemma.errors import CheckpointError, DataError
from paligemma.outputs.vqvae import (
    RELEASED,
    MaskCodec,
    MaskCodecConfig,
    load_mask_codec,
    mask_codec_from_arrays,
    mask_to_codes,
)

SMALL = MaskCodecConfig(channels=(3, 4, 5), hidden=6, code_dim=7, num_codes=128)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These convolutions are so small that a second thread only waits."""
    num = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num)


def small_codec(seed: int = 0) -> MaskCodec:
    torch.manual_seed(seed)
    return MaskCodec(SMALL).eval()


def disc_masks(count: int) -> torch.Tensor:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:64, :64]
    return torch.from_numpy(
        np.stack(
            [
                ((y - a) ** 2 + (x - b) ** 2 < r**2).astype(np.float32)
                for a, b, r in zip(
                    *rng.uniform(20, 44, (2, count)), rng.uniform(8, 30, count), strict=True
                )
            ]
        )
    )


def test_the_released_codec_has_the_published_arrays() -> None:
    with torch.device("meta"):
        shapes = {n: tuple(v.shape) for n, v in MaskCodec(RELEASED).state_dict().items()}
    assert shapes["encoder.0.weight"] == (16, 1, 4, 4)
    assert shapes["encoder.9.net.4.weight"] == (128, 128, 1, 1)
    assert shapes["encoder.10.weight"] == (512, 128, 1, 1)
    assert shapes["_vq_vae._embedding"] == (128, 512)
    assert shapes["_vq_vae._ema_w"] == (128, 512)
    assert shapes["decoder.6.weight"] == (128, 64, 4, 4)
    assert shapes["decoder.12.weight"] == (1, 16, 1, 1)
    assert len(shapes) == 49


def test_encode_finds_the_codeword_at_least_squared_distance() -> None:
    codec = small_codec()
    masks = disc_masks(3)
    latents = codec.latents(masks).detach()
    distance = (latents[:, :, None] - codec._vq_vae._embedding).square().sum(-1)
    assert torch.equal(codec.encode(masks), distance.argmin(-1))


def test_the_forward_pass_equals_decode_of_encode_and_its_gradient_reaches_the_encoder() -> None:
    codec = small_codec()
    masks = disc_masks(2)
    out = codec(masks)
    assert torch.equal(out.codes, codec.encode(masks))
    torch.testing.assert_close(out.reconstruction, codec.decode(out.codes), atol=1e-6, rtol=0)
    out.reconstruction.square().mean().backward()
    assert codec.encoder[0].weight.grad.abs().max() > 0


def test_the_codebook_moves_to_the_mean_of_its_latents() -> None:
    codec = small_codec()
    book = codec._vq_vae
    before = book._embedding.clone()
    latents = torch.full((1, 16, 7), 2.0)
    codec.update_codebook(latents, torch.full((1, 16), 5), decay=0.5, epsilon=0.0)
    # code 5: count (1 + 16) / 2, sum (codeword + 32) / 2; every other code keeps its place
    torch.testing.assert_close(book._embedding[5], (before[5] + 32) / 17)
    torch.testing.assert_close(book._embedding[4], before[4])


def test_the_count_of_a_rare_codeword_is_smoothed_by_a_hundred_thousandth() -> None:
    codec = small_codec()
    book = codec._vq_vae
    counts = np.geomspace(1e-5, 10.0, len(book._ema_cluster_size))
    book._ema_cluster_size.copy_(torch.from_numpy(counts))
    sums = book._ema_w.double().numpy()
    codec.update_codebook(torch.full((1, 16, 7), 2.0), torch.full((1, 16), 5))
    # 16 latents of code 5; the averages keep 99 % of what they were.
    sums, counts = 0.99 * sums, 0.99 * counts
    sums[5] += 0.01 * 32
    counts[5] += 0.01 * 16
    smoothed = (counts + 1e-5) / (counts + 1e-5).sum() * counts.sum()
    np.testing.assert_allclose(book._embedding, sums / smoothed[:, None], rtol=1e-5)


def test_dead_codewords_are_reseeded_on_latents_of_the_batch() -> None:
    codec = small_codec()
    latents = torch.full((8, 16, 7), 2.0)
    codes = torch.full((8, 16), 5)
    num = codec.update_codebook(latents, codes, decay=0.5, epsilon=0.0, reseed_below=0.6)
    assert num == 127
    torch.testing.assert_close(codec._vq_vae._embedding[4], torch.full((7,), 2.0))


def test_a_few_training_steps_lower_the_reconstruction_error() -> None:
    codec = small_codec().train()
    masks = disc_masks(8)
    optimiser = torch.optim.AdamW(codec.parameters(), lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(30):
        out = codec(masks)
        error = (out.reconstruction - (2 * masks - 1)).square().mean()
        optimiser.zero_grad()
        (error + 0.25 * out.commitment_loss).backward()
        optimiser.step()
        codec.update_codebook(out.latents, out.codes, reseed_below=0.05)
        losses.append(error.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_saved_codec_loads_bit_for_bit(tmp_path: Path, ending: str) -> None:
    codec = small_codec()
    path = tmp_path / f"codec{ending}"
    codec.save(path, with_averages=True)
    loaded = load_mask_codec(path)
    assert loaded.config == SMALL
    for name, value in codec.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_half_precision_codec_loads_as_float32_without_its_averages(tmp_path: Path) -> None:
    codec = small_codec()
    codec.save(tmp_path / "c.safetensors", dtype="float16")
    loaded = load_mask_codec(tmp_path / "c.safetensors")
    for value, own in zip(loaded.parameters(), codec.parameters(), strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, own.half().float())
    assert torch.equal(loaded._vq_vae._ema_w, loaded._vq_vae._embedding)


def test_one_error_names_every_array_that_does_not_fit() -> None:
    arrays = {n: v.numpy() for n, v in small_codec().state_dict().items()}
    del arrays["decoder.0.bias"]
    arrays["extra"] = np.zeros(1, np.float32)
    arrays["encoder.2.bias"] = np.zeros(9, np.float32)
    arrays["encoder.4.bias"] = np.full(5, np.nan, np.float32)
    arrays["encoder.6.bias"] = np.zeros(6, np.int64)
    with pytest.raises(CheckpointError) as caught:
        mask_codec_from_arrays(arrays, source="x.npz")
    message = str(caught.value)
    for part in [
        "missing decoder.0.bias",
        "unexpected extra",
        "encoder.2.bias has shape (9,) instead of (4,)",
        "encoder.4.bias holds values that are not finite",
        "encoder.6.bias is int64",
    ]:
        assert part in message


def test_arrays_beside_those_of_the_codec_are_named_and_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    codec = small_codec()
    arrays = {n: v.numpy() for n, v in codec.state_dict().items()}
    # Which others the published file holds is not documented; averages may be wider.
    arrays |= {"decoder.step": np.zeros((), np.int64)}
    arrays["_vq_vae._ema_cluster_size"] = arrays["_vq_vae._ema_cluster_size"].astype(np.float64)
    loaded = mask_codec_from_arrays(arrays, source="x.npz")
    assert "x.npz: arrays that no codec needs were left out: ['decoder.step']" in caplog.text
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, codec.state_dict()[name])


def test_a_hostile_shape_is_refused_without_building_its_model() -> None:
    arrays = {"encoder.6.weight": np.zeros((4096, 1, 1, 1), np.float32)}
    with pytest.raises(CheckpointError, match=r"shape \(4096, 1, 1, 1\) instead of \(4096, 64, 4"):
        mask_codec_from_arrays(arrays, source="x.npz")


def test_a_loaded_codec_can_be_trained_on(tmp_path: Path) -> None:
    small_codec().save(tmp_path / "c.npz")
    codec = load_mask_codec(tmp_path / "c.npz").train()
    out = codec(disc_masks(1))
    out.reconstruction.sum().backward()
    codec.update_codebook(out.latents, out.codes)
    assert all(p.grad is not None for p in codec.parameters())


def test_files_that_are_no_codec_are_refused(tmp_path: Path) -> None:
    pickled = tmp_path / "objects.npz"
    np.savez(pickled, **{"encoder.0.weight": np.array([{}], dtype=object)})
    cut = tmp_path / "cut.safetensors"
    small_codec().save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    bare = tmp_path / "bare.npz"  # a member that is no .npy, which NumPy gives as bytes
    with zipfile.ZipFile(bare, "w") as archive:
        archive.writestr("encoder.0.weight.npy", b"")
    for path in [pickled, cut, bare, tmp_path / "absent.npz", tmp_path / "codec.bin"]:
        with pytest.raises(CheckpointError, match=path.name):
            load_mask_codec(path)
    header = json.dumps({"x": "y" * 5000}).encode()
    cut.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError) as refused:
        load_mask_codec(cut)
    assert len(str(refused.value)) < 1000


def test_a_codec_of_absurd_width_is_refused() -> None:
    with pytest.raises(CheckpointError, match="hidden must lie in"):
        MaskCodecConfig(channels=(1, 1, 1), hidden=10**6, code_dim=1, num_codes=1)


def test_saving_under_another_ending_or_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must end in"):
        small_codec().save(tmp_path / "codec.pt")
    with pytest.raises(CheckpointError, match="float64"):
        small_codec().save(tmp_path / "codec.npz", dtype="float64")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codes", [torch.zeros(1, 15).long(), torch.full((1, 16), 128)])
def test_codes_outside_the_codebook_are_refused(codes: torch.Tensor) -> None:
    with pytest.raises(DataError, match="mask codes must"):
        small_codec().decode(codes)


def test_a_bool_mask_gets_the_codes_of_its_uint8_picture() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:30, 5:25] = True
    box = np.float32([0.2, 0.1, 0.8, 0.6])
    codec = small_codec()
    codes = mask_to_codes(codec, mask, box)
    assert codes.shape == (16,)
    assert np.array_equal(codes, mask_to_codes(codec, mask.astype(np.uint8) * 255, box))


def test_masks_the_codec_cannot_see_are_refused() -> None:
    codec = small_codec()
    box = np.float32([0, 0, 1, 1])
    mask = np.ones((8, 8), bool)
    with pytest.raises(DataError, match="maximum of 1"):
        mask_to_codes(codec, mask.astype(np.uint8), box)
    with pytest.raises(DataError, match="at least one pixel"):
        mask_to_codes(codec, mask, np.float32([0.5, 0.5, 0.5, 0.9]))
    with pytest.raises(DataError, match="finite"):
        mask_to_codes(codec, mask, np.float32([0, 0, np.nan, 1]))
    with pytest.raises(DataError, match="float32"):
        mask_to_codes(codec, mask.astype(np.float32), box)
