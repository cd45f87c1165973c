"""The embedded model on the CPU and on a CUDA device; every test here needs such a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from paligemma import PaliGemma
from paligemma.scenes import SceneOptions, draw_scene

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(without)


@pytest.fixture(autouse=True)
def _float32_products() -> Iterator[None]:
    """Products in float32 instead of TF32, which rounds their operands to 10 bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(scope="session")
def cpu() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny", device="cpu", kv_cache_dtype="float32")


@pytest.fixture(scope="session")
def gpu() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny", device="cuda", kv_cache_dtype="float32")


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """uint8[224, 224, 3] of four drawn scenes."""
    return [draw_scene(seed, SceneOptions(size_px=224)).image for seed in range(900, 904)]
