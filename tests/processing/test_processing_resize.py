"""Resizing: the named methods against Pillow, torch, transformers and a float64 oracle."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from paligemma.errors import ConfigError
from paligemma.processing.resize import RESIZE_METHODS, resize, resize_float, to_unit_range


def random_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def filter_matrix(size_in: int, size_out: int, antialias: bool) -> NDArray[np.float64]:
    """[out, in] weights of bilinear resizing with half-pixel centres, in float64."""
    scale = size_in / size_out
    width = max(scale, 1.0) if antialias else 1.0
    matrix = np.zeros((size_out, size_in))
    for row in range(size_out):
        centre = (row + 0.5) * scale - 0.5
        if antialias:
            matrix[row] = np.maximum(0, 1 - np.abs(np.arange(size_in) - centre) / width)
        else:
            below = int(np.floor(centre))
            matrix[row, max(below, 0)] += 1 - (centre - below)
            matrix[row, min(below + 1, size_in - 1)] += centre - below
    return matrix / matrix.sum(axis=1, keepdims=True)


SIZES = [
    (37, 53, 56),
    (300, 200, 56),
    (10, 9, 32),
    (64, 65, 64),
    (1, 1, 8),
    (3, 200, 7),
    (500, 2, 5),
]


@pytest.mark.parametrize(("height", "width", "size_px"), SIZES)
@pytest.mark.parametrize("antialias", [False, True])
def test_bilinear_stays_close_to_float64(
    height: int, width: int, size_px: int, antialias: bool
) -> None:
    image = random_image(height, width)
    rows = filter_matrix(height, size_px, antialias)
    columns = filter_matrix(width, size_px, antialias)
    half = np.tensordot(rows, image.astype(np.float64), axes=(1, 0))
    expected = np.einsum("xw,ywc->yxc", columns, half)
    actual = resize_float(image, size_px, antialias=antialias)
    assert actual.dtype == np.float32
    # A float32 position near n is known to n * 2**-23 pixels, each worth up to 255 grey levels.
    assert np.abs(actual - expected).max() <= 255 * 2**-23 * max(height, width, 56)


@pytest.mark.parametrize(("height", "width", "size_px"), SIZES)
@pytest.mark.parametrize("antialias", [False, True])
def test_bilinear_is_one_grey_level_from_torch_at_most(
    height: int, width: int, size_px: int, antialias: bool
) -> None:
    image = random_image(height, width)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(
        planes, (size_px, size_px), mode="bilinear", align_corners=False, antialias=antialias
    )
    floor = expected.clamp(0, 255).floor()[0].permute(1, 2, 0).numpy()
    actual = resize(image, size_px, "bilinear-antialias" if antialias else "bilinear")
    assert np.abs(actual.astype(float) - floor).max() <= 1


def test_bilinear_truncates_instead_of_rounding() -> None:
    image = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    # Three samples of two pixels: positions -1/6, 1/2, 7/6; the middle is 127.5.
    assert resize(image, 3, "bilinear")[0, :, 0].tolist() == [0, 127, 255]
    assert resize_float(image, 3, antialias=False)[0, 1, 0] == 127.5


def test_antialiasing_differs_only_when_shrinking() -> None:
    small, large = random_image(20, 30), random_image(200, 150)
    grown = [resize(small, 64, method) for method in ("bilinear", "bilinear-antialias")]
    assert np.abs(grown[0].astype(int) - grown[1]).max() <= 1
    shrunk = [resize(large, 32, method) for method in ("bilinear", "bilinear-antialias")]
    assert np.abs(shrunk[0].astype(int) - shrunk[1]).max() > 50


@pytest.mark.parametrize("method", RESIZE_METHODS)
def test_the_right_size_is_left_as_it_is(method: str) -> None:
    image = random_image(224, 224)
    assert resize(image, 224, method) is image


@pytest.mark.parametrize("antialias", [False, True])
def test_the_filters_are_the_identity_at_equal_size(antialias: bool) -> None:
    image = random_image(224, 224)
    assert np.array_equal(resize_float(image, 224, antialias=antialias), image)


def test_bicubic_is_pillow() -> None:
    image = random_image(90, 131)
    expected = Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC)
    assert np.array_equal(resize(image, 56, "bicubic"), np.asarray(expected))


@pytest.mark.parametrize(
    ("height", "width"), [(1500, 1500), (1400, 1700), (56, 40_000), (2500, 1000), (30_000, 100)]
)
def test_a_large_picture_in_bands_of_rows_has_the_values_of_pillow(height: int, width: int) -> None:
    image = random_image(height, width)
    expected = Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC)
    assert np.array_equal(resize(image, 56, "bicubic"), np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(90, 131), (400, 333), (30, 20)])
def test_bicubic_equals_the_hub_processor(height: int, width: int) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    image = random_image(height, width)
    hub = SiglipImageProcessorPil(
        size={"height": 56, "width": 56},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    pixels = hub(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    ours = resize(image, 56, "bicubic")
    levels = np.rint((pixels.astype(np.float64) + 1) * 127.5)
    assert np.array_equal(ours, levels.transpose(1, 2, 0))
    assert np.abs(to_unit_range(ours) - pixels.transpose(1, 2, 0)).max() <= 3e-7


def test_the_unit_range_is_exact_in_float32() -> None:
    levels = np.arange(256, dtype=np.uint8)
    values = to_unit_range(levels)
    assert values.dtype == np.float32
    assert (values[0], values[255]) == (-1.0, 1.0)
    assert np.array_equal(np.rint((values.astype(np.float64) + 1) * 127.5), levels)


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="bicubic, bilinear, bilinear-antialias, got 'lanczos'"):
        resize(random_image(4, 4), 8, "lanczos")


@pytest.mark.parametrize("method", ["bilinear", "bilinear-antialias"])
def test_a_twelve_megapixel_photo_is_resized_in_a_moment(method: str) -> None:
    image = np.full((3000, 4000, 3), 200, dtype=np.uint8)
    began = time.process_time()
    resized = resize(image, 224, method)
    assert np.abs(resized.astype(int) - 200).max() <= 1  # weights sum to one up to truncation
    assert time.process_time() - began < 1.0  # about 0.06 s on an idle core
