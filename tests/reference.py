"""Slow, obvious definitions in NumPy float64 that fast code is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Added to the variance in every norm of tower and decoder: flax's LayerNorm, which big_vision's
# models/vit.py leaves at its default, and RMSNorm in models/ppp/gemma.py.
NORM_EPS = 1e-6


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def smoothed_target(target: int, num_classes: int, eps: float) -> np.ndarray:
    """Target distribution: 1 - eps on the target, eps / (V - 1) on each other class."""
    distribution = np.full(num_classes, eps / (num_classes - 1))
    distribution[target] = 1.0 - eps
    return distribution


def smoothed_location_target(
    target: int, num_classes: int, eps: float, *, loc0: int, num_loc: int, sigma_bins: float
) -> np.ndarray:
    """The same with a Gaussian over location ids, cut at 4 sigma, for the certain target."""
    certain = np.zeros(num_classes)
    for token in range(loc0, loc0 + num_loc):
        if abs(token - target) <= 4.0 * sigma_bins:
            certain[token] = np.exp(-0.5 * ((token - target) / sigma_bins) ** 2)
    certain /= certain.sum()
    return certain * (1.0 - eps) + (1.0 - certain) * eps / (num_classes - 1)


def batch_loss(
    logits: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    distribution: Callable[[int], np.ndarray],
) -> tuple[float, np.ndarray]:
    """Mean over examples of the weighted mean over tokens, and the value of each example."""
    per_example = []
    for example in range(len(targets)):
        total = 0.0
        for step in range(targets.shape[1]):
            logp = log_softmax(logits[example, step])
            loss = -(distribution(int(targets[example, step])) * logp).sum()
            total += weights[example, step] * loss
        per_example.append(total / max(weights[example].sum(), 1.0))
    return float(np.mean(per_example)), np.array(per_example)


def duration_in_steps(
    settings: dict[str, Any], name: str, default: float, sizes: tuple[int, int, int]
) -> float:
    """A duration of big_vision in steps; sizes are total_steps, batch_size and data_size."""
    total_steps, batch_size, data_size = sizes
    if f"{name}_steps" in settings:
        return settings[f"{name}_steps"]
    for unit, num_steps in (
        ("examples", 1 / batch_size),
        ("epochs", data_size / batch_size),
        ("percent", total_steps),
    ):
        if f"{name}_{unit}" in settings:
            exact = settings[f"{name}_{unit}"] * num_steps
            return max(1.0, float(np.round(exact))) if exact else 0.0
    return default


def rsqrt_factors(settings: dict[str, Any], sizes: tuple[int, int, int]) -> np.ndarray:
    """Factors of steps 0..total_steps of big_vision's rsqrt schedule; sizes as above."""
    total_steps = sizes[0]
    step = np.arange(total_steps + 1, dtype=np.float64)
    warmup = duration_in_steps(settings, "warmup", 0, sizes)
    cooldown = duration_in_steps(settings, "cooldown", 0, sizes)
    timescale = duration_in_steps(settings, "timescale", settings.get("timescale", 10_000), sizes)
    shift = duration_in_steps(settings, "shift", settings.get("shift", 0), sizes)
    factor = np.where(
        step >= warmup,
        1 / np.sqrt(1 + np.maximum(step + shift - warmup, 0) / timescale),
        1 / np.sqrt(1 + shift / timescale),
    )
    if warmup:
        factor *= np.minimum(1, step / warmup)
    if cooldown:
        factor *= np.minimum(1, (total_steps - step) / cooldown)
    return settings.get("mult", 1.0) * factor


@dataclass
class AdamOracle:
    """The update rule of big_vision, one tensor at a time.

    Attributes:
        parameters: name -> values; replaced at each update.
        factors: step -> name -> (schedule factor, lr multiplier, decay multiplier); a frozen
            parameter has no entry.
    """

    parameters: dict[str, np.ndarray]
    factors: Callable[[int], dict[str, tuple[float, float, float]]]
    lr: float
    wd: float
    clip: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    steps_done: int = 0
    first: dict[str, np.ndarray] = field(default_factory=dict)
    second: dict[str, np.ndarray] = field(default_factory=dict)

    def step(self, gradients: dict[str, np.ndarray]) -> float:
        """Update all parameters; returns the gradient norm before clipping."""
        factors = self.factors(self.steps_done)
        norm = np.sqrt(sum((gradients[name] ** 2).sum() for name in factors))
        count = self.steps_done + 1
        for name, (schedule, lr_mult, wd_mult) in factors.items():
            gradient = gradients[name] * min(1.0, self.clip / norm)
            m = self.b1 * self.first.get(name, 0.0) + (1 - self.b1) * gradient
            v = self.b2 * self.second.get(name, 0.0) + (1 - self.b2) * gradient**2
            self.first[name], self.second[name] = m, v
            update = (m / (1 - self.b1**count)) / (np.sqrt(v / (1 - self.b2**count)) + self.eps)
            update = update * self.lr * lr_mult
            update = update + self.wd * wd_mult * self.parameters[name]
            self.parameters[name] = self.parameters[name] - schedule * update
        self.steps_done = count
        return float(norm)


def levenshtein(a: str, b: str) -> int:
    """Edit distance by its recursive definition, one table entry at a time."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int64)
    table[:, 0] = np.arange(len(a) + 1)
    table[0, :] = np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, replaced)
    return int(table[-1, -1])


@dataclass(frozen=True, kw_only=True)
class ForwardOracle:
    """The whole model for one example, one head and one query at a time.

    Attributes:
        weights: parameter name -> float64 array.
        config: any object with the fields of `PaliGemmaConfig`.
    """

    weights: dict[str, np.ndarray]
    config: Any

    def soft_tokens(self, image: np.ndarray) -> np.ndarray:
        """Image [R, R, 3] in [-1, 1] -> [I, D]."""
        vision, patch = self.config.vision, self.config.vision.patch_size_px
        x = []
        for top in range(0, vision.image_size_px, patch):
            for left in range(0, vision.image_size_px, patch):
                pixels = image[top : top + patch, left : left + patch].astype(np.float64)
                x.append(self._affine("vision.patch_embed.proj", pixels.reshape(-1)))
        x = np.array(x) + self.weights["vision.pos_embedding"][0]
        for layer in range(vision.depth):
            name = f"vision.blocks.{layer}"
            x = x + self._tower_attention(name, self._layer_norm(f"{name}.norm1", x))
            y = gelu_tanh(self._affine(f"{name}.mlp.fc1", self._layer_norm(f"{name}.norm2", x)))
            x = x + self._affine(f"{name}.mlp.fc2", y)
        return self._affine("projector", self._layer_norm("vision.norm", x))

    def text_logits(
        self,
        soft_tokens: np.ndarray | None,
        tokens: np.ndarray,
        mask_ar: np.ndarray,
        mask_input: np.ndarray | None = None,
    ) -> np.ndarray:
        """Logits [T, V] of the text before any final cap; arguments as in `hidden`."""
        hidden = self.hidden(soft_tokens, tokens, mask_ar, mask_input)
        return hidden[-len(tokens) :] @ self.weights["text.embed.weight"].T

    def hidden(
        self,
        soft_tokens: np.ndarray | None,
        tokens: np.ndarray,
        mask_ar: np.ndarray,
        mask_input: np.ndarray | None = None,
    ) -> np.ndarray:
        """Final hidden states [I+T, D]; positions count valid tokens if masked."""
        table = self.weights["text.embed.weight"]
        x = table[tokens] * np.sqrt(self.config.text.width)
        num_image = 0
        if soft_tokens is not None:
            num_image = len(soft_tokens)
            x = np.concatenate((soft_tokens, x))
        mask_ar = np.concatenate((np.zeros(num_image, int), mask_ar))
        valid = np.ones(len(x), bool)
        positions = np.arange(len(x))
        if mask_input is not None:
            valid = np.concatenate((np.ones(num_image, bool), mask_input))
            positions = valid.cumsum() - 1
        mask = prefix_lm_mask(mask_ar, valid)
        for layer in range(self.config.text.depth):
            x = self._text_block(f"text.blocks.{layer}", x, positions, mask)
        return self._rms_norm("text.norm", x)

    def _affine(self, name: str, x: np.ndarray) -> np.ndarray:
        bias = self.weights.get(f"{name}.bias", 0.0)
        return x @ self.weights[f"{name}.weight"].T + bias

    def _layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPS)
        return normed * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _rms_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        normed = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + NORM_EPS)
        return normed * (1 + self.weights[f"{name}.scale"])

    def _tower_attention(self, name: str, x: np.ndarray) -> np.ndarray:
        heads = self.config.vision.num_heads
        size = self.config.vision.width // heads
        q, k, v = (self._affine(f"{name}.attn.{part}", x) for part in "qkv")
        mixed = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = q[:, own] @ k[:, own].T / np.sqrt(size)
            mixed.append(np.exp(log_softmax(scores)) @ v[:, own])
        return self._affine(f"{name}.attn.out", np.concatenate(mixed, axis=1))

    def _text_block(
        self, name: str, x: np.ndarray, positions: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        post_norms = self.config.text.post_norms
        y = self._text_attention(name, self._rms_norm(f"{name}.pre_attn_norm", x), positions, mask)
        x = x + (self._rms_norm(f"{name}.post_attn_norm", y) if post_norms else y)
        y = self._rms_norm(f"{name}.pre_ffw_norm", x)
        gated = gelu_tanh(self._affine(f"{name}.mlp.gate", y)) * self._affine(f"{name}.mlp.up", y)
        y = self._affine(f"{name}.mlp.down", gated)
        return x + (self._rms_norm(f"{name}.post_ffw_norm", y) if post_norms else y)

    def _text_attention(
        self, name: str, x: np.ndarray, positions: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        text = self.config.text
        q, k, v = (
            self._affine(f"{name}.attn.{part}", x).reshape(len(x), -1, text.head_dim)
            for part in "qkv"
        )
        mixed = np.zeros((len(x), text.num_heads, text.head_dim))
        for head in range(text.num_heads):
            shared = head // (text.num_heads // text.num_kv_heads)
            queries = rotate(q[:, head], positions, text.rope_theta)
            keys = rotate(k[:, shared], positions, text.rope_theta)
            mixed[:, head] = attention(
                queries,
                keys,
                v[:, shared],
                mask,
                scale=text.query_scale,
                softcap=text.attn_softcap,
            )
        return self._affine(f"{name}.attn.out", mixed.reshape(len(x), -1))


def prefix_lm_mask(mask_ar: np.ndarray, mask_input: np.ndarray) -> np.ndarray:
    """bool[S, S]: query i attends key j if j opens no later step and both are valid."""
    size = len(mask_ar)
    steps = [mask_ar[: i + 1].sum() for i in range(size)]
    mask = np.zeros((size, size), bool)
    for i in range(size):
        for j in range(size):
            mask[i, j] = steps[j] <= steps[i] and mask_input[i] and mask_input[j]
    return mask


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray,
    *,
    scale: float,
    softcap: float | None,
) -> np.ndarray:
    """One head: float64[T, H] from rotated q [T, H], k and v [S, H]; an empty row is uniform."""
    mixed = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        scores = (k @ q[i]) * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        scores = np.where(mask[i], scores, -2.3819763e38)
        mixed[i] = np.exp(log_softmax(scores)) @ v
    return mixed


def rotate(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Rotary positions, one plane at a time: element i turns against element i + H/2."""
    half = x.shape[1] // 2
    turned = np.zeros_like(x, dtype=np.float64)
    for i in range(half):
        angle = positions / theta ** (2 * i / x.shape[1])
        turned[:, i] = x[:, i] * np.cos(angle) - x[:, i + half] * np.sin(angle)
        turned[:, i + half] = x[:, i + half] * np.cos(angle) + x[:, i] * np.sin(angle)
    return turned


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh approximation of GELU."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
