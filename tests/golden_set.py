"""A golden set: the original's own numbers, our model of the same weights, and float64.

Layout and meaning of the files: tests/golden/data/README.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import ForwardOracle, round_to_bfloat16
from torch import Tensor

from paligemma.batch import Batch
from paligemma.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma.model import PaliGemmaModel
from paligemma.vocab import Vocab
from paligemma.weights.big_vision import BigVisionReader, rows
from paligemma.weights.npz import NpzReader


@dataclass(frozen=True)
class GoldenModel:
    """One tiny model of the original.

    Attributes:
        directory: the golden set.
        name: key of config.json and first part of the file names.
    """

    directory: Path
    name: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.directory / "config.json").read_text())[self.name]

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """All arrays of one file, such as "forward"."""
        return load_arrays(self.directory / f"{self.name}_{kind}.npz")

    def has(self, kind: str) -> bool:
        return (self.directory / f"{self.name}_{kind}.npz").exists()

    @property
    def query_scale(self) -> float:
        llm = self.settings["llm"]
        if llm["query_pre_attn_norm"] == "rsqrt_head_dim":
            return llm["head_dim"] ** -0.5
        # The original divides whole numbers.
        return (llm["width"] // llm["num_heads"]) ** -0.5

    @property
    def config(self) -> PaliGemmaConfig:
        img, llm = self.settings["img"], self.settings["llm"]
        return PaliGemmaConfig(
            vision=VisionConfig(
                image_size_px=img["res"],
                patch_size_px=img["patch_size"],
                width=img["width"],
                depth=img["depth"],
                mlp_dim=img["mlp_dim"],
                num_heads=img["num_heads"],
            ),
            text=TextConfig(
                width=llm["width"],
                depth=llm["depth"],
                mlp_dim=llm["mlp_dim"],
                num_heads=llm["num_heads"],
                num_kv_heads=llm["num_kv_heads"],
                head_dim=llm["head_dim"],
                query_scale=self.query_scale,
                attn_softcap=llm["attn_logits_softcap"] or None,
                final_softcap=llm["final_logits_softcap"] or None,
                post_norms=llm["post_norms"],
                sliding_window=None,
                # The original's norm has a constant; it never reads the setting of that name.
                norm_eps=1e-6,
                rope_theta=10_000.0,
            ),
            vocab=Vocab(
                size=llm["vocab_size"],
                pad=self.settings["pad_id"],
                eos=self.settings["eos_id"],
                bos=self.settings["bos_id"],
                sep=self.settings["sep_id"],
                loc0=-1,
                seg0=-1,
            ),
        )

    def model(self, file: str = "params", **text_options: float | None) -> PaliGemmaModel:
        """Our model with the weights of one file, computing in float32."""
        config = replace(self.config, text=replace(self.config.text, **text_options))
        model = PaliGemmaModel(config)
        with NpzReader([self.directory / f"{self.name}_{file}.npz"]) as npz:
            reader = BigVisionReader(npz)
            assert reader.problems(config) == []
            state = {key: tensor.float() for key, tensor in reader.tensors(config)}
            model.load_state_dict(state, strict=True)
            model.text.set_embed_scale(reader.table_dtype())
        return model.eval()

    def oracle(self, weights: Mapping[str, Any] | None = None, **options: Any) -> ForwardOracle:
        """The float64 model of the given weights, by default those of the params file."""
        return ForwardOracle(
            weights=self.weights() if weights is None else weights,
            query_scale=self.query_scale,
            attn_softcap=self.settings["llm"]["attn_logits_softcap"] or None,
            **options,
        )

    def weights(self, file: str = "params") -> dict[str, np.ndarray]:
        """float64 arrays of a checkpoint file by the original's names."""
        return {
            key.removeprefix("params/"): widened(array) for key, array in self.arrays(file).items()
        }


@cache
def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def widened(array: np.ndarray) -> np.ndarray:
    """float64 of float32, or of bfloat16 in two opaque bytes."""
    if array.dtype == np.dtype("V2"):
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def original_arrays(
    tensors: Mapping[str, Tensor], config: PaliGemmaConfig
) -> dict[str, np.ndarray]:
    """Torch tensors by name in the original's names, axes and stacking."""
    arrays = {}
    for row in rows(config):
        depth = (config.vision if row.key.startswith("img/") else config.text).depth
        pieces = [
            row.from_torch(tensors[name.format(layer)], config)
            for layer in range(depth if row.stacked else 1)
            for name in row.names
        ]
        arrays[row.key] = torch.stack(pieces).reshape(row.shape(config)).detach().numpy()
    return arrays


@dataclass(frozen=True)
class Decoding:
    """One way in which the original decoded a batch of prompts.

    Attributes:
        gold: the model.
        variant: first part of the arrays' names: the final soft-cap and the dtype of the cache,
            such as "nocap_f32" or "cap30_bf16".
    """

    gold: GoldenModel
    variant: str

    def __str__(self) -> str:
        return f"{self.gold.name}-{self.variant}"

    @property
    def final_softcap(self) -> float | None:
        cap = self.variant.split("_")[0]
        return None if cap == "nocap" else float(cap.removeprefix("cap"))

    @property
    def kv_cache_dtype(self) -> str:
        return {"f32": "float32", "bf16": "bfloat16"}[self.variant.split("_")[1]]

    @property
    def num_tokens(self) -> int:
        """Bound of an answer, EOS included."""
        return self.gold.settings["max_decode_len"]

    def array(self, key: str) -> np.ndarray:
        return self.gold.arrays("decode")[f"{self.variant}:{key}"]

    def __contains__(self, key: str) -> bool:
        return f"{self.variant}:{key}" in self.gold.arrays("decode")

    def numbers(self, pattern: str) -> list[int]:
        """The number in each key that matches the pattern."""
        prefix = re.escape(self.variant + ":")
        matches = (re.fullmatch(prefix + pattern, key) for key in self.gold.arrays("decode"))
        return [int(match[1]) for match in matches if match]

    def model(self) -> PaliGemmaModel:
        return self.gold.model(final_softcap=self.final_softcap)

    def batch(self, prefix: str = "") -> Batch:
        """The prompts, or those of another part of the file, such as "stop_"."""
        tokens, mask_ar, mask_input = (
            torch.from_numpy(self.gold.arrays("decode")[prefix + key]).long()
            for key in ("text", "mask_ar", "mask_input")
        )
        return Batch(
            images=torch.from_numpy(self.gold.arrays("decode")[prefix + "image"]),
            tokens=tokens,
            mask_ar=mask_ar,
            mask_input=mask_input.bool(),
        )

    def real(self, prefix: str = "") -> np.ndarray:
        """bool[B]: False for rows that only pad the batch."""
        return self.gold.arrays("decode")[prefix + "mask"]

    def exact_logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits in float64 that each of the given tokens was chosen from.

        A cache only spares work, so each row is one forward over the prompt and the tokens.

        Args:
            ids: int[N, S], answers to the N real prompts.

        Returns:
            float64[N, S, V], capped after the first as the original does.
        """
        data = self.gold.arrays("decode")
        store = round_to_bfloat16 if self.kv_cache_dtype == "bfloat16" else (lambda x: x)
        oracle = self.gold.oracle(store=store)
        logits = []
        for row, answer in zip(np.flatnonzero(data["mask"]), ids, strict=True):
            valid = data["mask_input"][row].astype(bool)
            tokens = np.concatenate((data["text"][row][valid], answer[:-1]))
            mask_ar = np.concatenate((data["mask_ar"][row][valid], np.ones(len(answer) - 1, int)))
            soft = oracle.soft_tokens(data["image"][row])
            logits.append(oracle.text_logits(soft, tokens, mask_ar)[-len(answer) :])
        capped = np.array(logits)
        if self.final_softcap is not None:
            capped[:, 1:] = self.final_softcap * np.tanh(capped[:, 1:] / self.final_softcap)
        return capped


def decodings(gold: GoldenModel) -> list[Decoding]:
    """Every way of decoding that the set holds of a model."""
    keys = [key for key in gold.arrays("decode") if key.endswith(":greedy_ids")]
    return [Decoding(gold, key.split(":")[0]) for key in keys]


def golden_models(directory: Path) -> list[GoldenModel]:
    """Every model of a set."""
    names = json.loads((directory / "config.json").read_text())
    return [GoldenModel(directory, name) for name in names]


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def top_margins(logits: np.ndarray) -> np.ndarray:
    """By how much the best of the last axis exceeds the second best."""
    second, best = np.moveaxis(np.sort(logits, axis=-1)[..., -2:], -1, 0)
    return best - second


def assert_within_rounding(
    ours: Any,
    original: Any,
    exact: Any,
    *float32_runs: Any,
    what: str = "",
    noise: float = 2e-4,
    summed: Any = None,
) -> None:
    """Ours differs from the original as two float32 computations of one thing differ.

    How far float32 strays is measured by the distance of the original from float64: ours may be
    three times as far from the original in the root mean square, and five times at most. Where few
    rounding errors decide the whole array, one such distance may be small by chance; further
    float32 runs of the definition then say what is usual, and the largest counts.

    Args:
        exact: the same in float64, by the definition.
        float32_runs: the same from the definition in float32.
        noise: bound on the original's own error, in root mean squares of the exact values: beyond
            it the definition, not rounding, would be at fault, and the test worthless.
        summed: size of the quantities whose sum each value is, where these may cancel. Two sums
            that are each rounded once, to half a unit in the last place of what they add, differ by
            up to a whole unit, however near the original came to float64 by chance; and the
            original's error is measured in these sizes. The exact values themselves by default,
            and no such unit.
    """
    ours, original, exact, *runs = (
        np.asarray(x, np.float64) for x in (ours, original, exact, *float32_runs)
    )
    assert ours.shape == original.shape == exact.shape, what
    spreads = [run - exact for run in (original, *runs)]
    unit = np.zeros(1) if summed is None else 2.0**-23 * np.abs(summed)
    allowed_rms = max(3 * max(rms(spread) for spread in spreads), rms(unit))
    allowed_max = max(5 * max(np.abs(spread).max() for spread in spreads), unit.max())
    size = rms(exact) if summed is None else rms(summed)
    assert allowed_rms <= 3 * noise * size, f"{what}: the definition is not the original's"
    difference = ours - original
    assert rms(difference) <= allowed_rms, f"{what}: {rms(difference):.2e} > {allowed_rms:.2e}"
    worst = np.abs(difference).max()
    assert worst <= allowed_max, f"{what}: {worst:.2e} > {allowed_max:.2e}"


@dataclass(frozen=True)
class Ties:
    """Choices that differ because float32 cannot decide them.

    A choice whose best two candidates lie closer together than rounding may fall either way on
    another machine. It is never passed over in silence: after everything else was compared,
    `report` makes the test an expected failure that names each place and margin.

    Attributes:
        margins: place of a choice -> by how much the one candidate exceeds the other.
        noise: largest margin that rounding can turn.
    """

    margins: dict[tuple[int, ...], float]
    noise: float

    @property
    def rows(self) -> list[int]:
        return [place[0] for place in self.margins]

    def report(self) -> None:
        if self.margins:
            pytest.xfail(f"margins below {self.noise:.2e} are rounding: {self.margins}")


def compare_choices(
    ours: Any, original: Any, margins: np.ndarray, noise: float, *, in_order: bool = False
) -> Ties:
    """Assert that choices agree wherever rounding cannot turn them; returns where they do not.

    Args:
        margins: by how much each choice exceeds the next best; same shape as the choices.
        noise: largest margin that rounding can turn.
        in_order: each row is a sequence, in which a choice decides about all later ones.
    """
    ours, original = np.asarray(ours), np.asarray(original)
    assert ours.shape == original.shape == margins.shape
    different = ours != original
    if in_order:
        # Only the first difference of a row is a choice of its own.
        different &= different.cumsum(axis=-1) == 1
    places = [tuple(map(int, place)) for place in np.argwhere(different)]
    found = {place: float(margins[place]) for place in places}
    wrong = {place: margin for place, margin in found.items() if margin > noise}
    assert not wrong, f"choices differ though rounding turns {noise:.2e} at most: {wrong}"
    return Ties(found, noise)
