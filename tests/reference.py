"""Slow, obvious definitions in NumPy that fast code is compared with.

They compute in the precision of what they are given, which is float64 unless the noise of float32
itself is measured. What is differentiated takes `tape.Traced` arrays as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tape import value_of

TOWER = "img/Transformer/encoderblock"
ROPE_THETA = 10_000.0
# Added to the variance in every norm of tower and decoder: flax's LayerNorm, which big_vision's
# models/vit.py leaves at its default, and RMSNorm in models/ppp/gemma.py.
NORM_EPS = 1e-6


def log_softmax(logits: Any) -> Any:
    """Over the last axis."""
    shifted = logits - value_of(logits).max(axis=-1, keepdims=True)
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


def example_loss(
    logits: Any,
    targets: np.ndarray,
    weights: np.ndarray,
    distribution: Callable[[int], np.ndarray],
) -> Any:
    """Weighted mean over tokens of one example: logits [T, V], targets and weights [T]."""
    total = 0.0
    for step, target in enumerate(targets):
        if not weights[step]:
            continue
        expected = distribution(int(target)).astype(logits.dtype)
        loss = -(expected * log_softmax(logits[step])).sum()
        total = total + loss * float(weights[step])
    return total / max(float(weights.sum()), 1.0)


def batch_loss(
    logits: Sequence[Any],
    targets: np.ndarray,
    weights: np.ndarray,
    distribution: Callable[[int], np.ndarray],
) -> tuple[Any, list[Any]]:
    """Mean over examples of the weighted mean over tokens, and the value of each example."""
    per_example = [
        example_loss(logits[i], targets[i], weights[i], distribution) for i in range(len(targets))
    ]
    return sum(per_example) / len(per_example), per_example


def duration_in_steps(
    name: str,
    settings: Mapping[str, Any],
    default: float,
    *,
    total_steps: int,
    batch_size: int | None,
    data_size: int | None,
) -> float:
    """A duration that is given as `{name}_steps`, `_examples`, `_epochs` or `_percent`."""
    if f"{name}_steps" in settings:
        return settings[f"{name}_steps"]
    if f"{name}_examples" in settings:
        steps = settings[f"{name}_examples"] / batch_size
    elif f"{name}_epochs" in settings:
        steps = settings[f"{name}_epochs"] * (data_size / batch_size)
    elif f"{name}_percent" in settings:
        steps = settings[f"{name}_percent"] * total_steps
    else:
        return default
    return max(1, round(steps)) if steps else 0


def schedule_factor(
    settings: Mapping[str, Any],
    step: int,
    *,
    total_steps: int,
    batch_size: int | None = None,
    data_size: int | None = None,
) -> float:
    """big_vision's learning-rate schedule at one step, counted from 0."""
    sizes = {"total_steps": total_steps, "batch_size": batch_size, "data_size": data_size}
    warmup = duration_in_steps("warmup", settings, 0, **sizes)
    cooldown = duration_in_steps("cooldown", settings, 0, **sizes)
    peak = settings.get("mult", 1.0)
    if settings.get("scale_with_batchsize"):
        peak *= batch_size / 256
    progress = min(max((step - warmup) / (total_steps - warmup), 0.0), 1.0)
    kind = settings.get("decay_type", "stair")
    if kind in ("linear", "polynomial"):
        end = settings.get("end", settings.get("linear_end", 0.0))
        factor = end + (peak - end) * (1.0 - progress) ** settings.get("power", 1)
    elif kind == "cosine":
        factor = peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    elif kind == "rsqrt":
        timescale = duration_in_steps(
            "timescale", settings, settings.get("timescale", 10_000), **sizes
        )
        shift = duration_in_steps("shift", settings, settings.get("shift", 0), **sizes)
        factor = peak / math.sqrt(1 + (max(step - warmup, 0) + shift) / timescale)
    else:
        passed = sum(step >= start for start in settings.get("steps", ()))
        factor = peak * [1.0, *settings.get("mults", ())][passed]
    if warmup:
        factor *= min(1.0, step / warmup)
    if cooldown:
        factor *= min(1.0, (total_steps - step) / cooldown)
    return factor


def first_match(rules: Sequence[tuple[str, Any]], name: str, default: Any = None) -> Any:
    """The value of the first rule whose pattern matches the whole name."""
    for pattern, value in rules:
        if re.fullmatch(pattern, name):
            return value
    return default


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
    """The whole model for one example, one head at a time.

    It reads the original's own arrays, in the original's names and axes, so that nothing of the
    package stands between a checkpoint and these numbers. Layers are stacked on axis 0.

    Attributes:
        weights: the original's name of an array ("llm/layers/mlp/linear") -> values.
        query_scale: factor on the queries of the decoder.
        attn_softcap: bound of the decoder's attention scores, or None.
        embed_scale: factor on text embeddings; the square root of the width if None.
        store: what a cache makes of keys and values, such as `round_to_bfloat16`.
    """

    weights: Mapping[str, Any]
    query_scale: float
    attn_softcap: float | None = None
    embed_scale: float | None = None
    store: Callable[[np.ndarray], np.ndarray] = lambda x: x

    def image_steps(self, image: np.ndarray) -> dict[str, Any]:
        """Image [R, R, 3] in [-1, 1] -> what the tower computes, by the original's names."""
        x = self._patches(image) + self.weights["img/pos_embedding"][0]
        steps = {"img_with_posemb": x}
        for layer in range(len(self.weights[f"{TOWER}/LayerNorm_0/scale"])):
            attended = self._tower_attention(layer, self._layer_norm("LayerNorm_0", layer, x))
            x = x + attended
            normed = self._layer_norm("LayerNorm_1", layer, x)
            hidden = gelu_tanh(self._tower_dense("MlpBlock_0/Dense_0", layer, normed))
            x = x + self._tower_dense("MlpBlock_0/Dense_1", layer, hidden)
            if layer == 0:
                steps |= {"img_block0_sa": attended, "img_block0_out": x}
        norm = "img/Transformer/encoder_norm"
        x = layer_norm(x, self.weights[f"{norm}/scale"], self.weights[f"{norm}/bias"])
        soft = x @ self.weights["img/head/kernel"] + self.weights["img/head/bias"]
        return steps | {"img_encoded": x, "zimg": soft}

    def soft_tokens(self, images: np.ndarray) -> Any:
        """Image [R, R, 3], or frames [F, R, R, 3] in time order -> [F * I, D]."""
        frames = images[None] if images.ndim == 3 else images
        return np.concatenate([self.image_steps(frame)["zimg"] for frame in frames])

    def text_steps(
        self,
        soft_tokens: Any | None,
        tokens: np.ndarray,
        mask_ar: np.ndarray,
        mask_input: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """What the decoder computes, by the original's names; logits [T, V] are not capped.

        Positions count the valid tokens where there is a mask_input.
        """
        table = self.weights["llm/embedder/input_embedding"]
        scale = table.shape[1] ** 0.5 if self.embed_scale is None else self.embed_scale
        embedded = table[tokens] * scale
        num_image = 0 if soft_tokens is None else len(soft_tokens)
        x = embedded if soft_tokens is None else np.concatenate((soft_tokens, embedded))
        mask_ar = np.concatenate((np.zeros(num_image, int), mask_ar))
        valid = np.ones(len(x), bool)
        positions = np.arange(len(x))
        if mask_input is not None:
            valid[num_image:] = mask_input
            positions = valid.cumsum() - 1
        mask = prefix_lm_mask(mask_ar, valid)
        for layer in range(len(self.weights["llm/layers/mlp/linear"])):
            x = self._text_block(layer, x, positions, mask)
        normed = self._rms_norm(x, self.weights["llm/final_norm/scale"])
        return {
            "ztxt": embedded,
            "llm_encoded": x,
            "pre_logits": normed,
            "text_logits": normed[num_image:] @ table.T,
        }

    def text_logits(self, *args: Any) -> Any:
        """Logits [T, V] of the text positions; arguments of `text_steps`."""
        return self.text_steps(*args)["text_logits"]

    def hidden(self, *args: Any) -> Any:
        """Hidden states [I+T, D] after the final norm; arguments of `text_steps`."""
        return self.text_steps(*args)["pre_logits"]

    def _patches(self, image: np.ndarray) -> Any:
        kernel = self.weights["img/embedding/kernel"]  # [Y, X, C, D]
        size = kernel.shape[0]
        pixels = [
            image[top : top + size, left : left + size].reshape(-1)
            for top in range(0, image.shape[0], size)
            for left in range(0, image.shape[1], size)
        ]
        flat = kernel.reshape(-1, kernel.shape[3])
        return np.array(pixels, kernel.dtype) @ flat + self.weights["img/embedding/bias"]

    def _layer_norm(self, name: str, layer: int, x: Any) -> Any:
        scale, bias = (self.weights[f"{TOWER}/{name}/{part}"] for part in ("scale", "bias"))
        return layer_norm(x, scale[layer], bias[layer])

    def _tower_dense(self, name: str, layer: int, x: Any) -> Any:
        kernel, bias = (self.weights[f"{TOWER}/{name}/{part}"] for part in ("kernel", "bias"))
        return x @ kernel[layer] + bias[layer]

    def _tower_attention(self, layer: int, x: Any) -> Any:
        name = f"{TOWER}/MultiHeadDotProductAttention_0"
        kernels = {
            part: self.weights[f"{name}/{part}/kernel"][layer]
            for part in ("query", "key", "value", "out")
        }
        biases = {part: self.weights[f"{name}/{part}/bias"][layer] for part in kernels}
        everything = np.ones((len(x), len(x)), bool)
        total = biases["out"]
        for head in range(kernels["query"].shape[1]):
            q, k, v = (
                x @ kernels[part][:, head] + biases[part][head]
                for part in ("query", "key", "value")
            )
            mixed = attention(q, k, v, everything, scale=q.shape[1] ** -0.5, softcap=None)
            total = total + mixed @ kernels["out"][head]
        return total

    def _rms_norm(self, x: Any, scale: Any) -> Any:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + NORM_EPS) * (1 + scale)

    def _text_norm(self, name: str, layer: int, x: Any) -> Any:
        return self._rms_norm(x, self.weights[f"llm/layers/{name}/scale"][layer])

    def _text_block(self, layer: int, x: Any, positions: np.ndarray, mask: np.ndarray) -> Any:
        gating = self.weights["llm/layers/mlp/gating_einsum"][layer]
        post_norms = "llm/layers/post_ffw_norm/scale" in self.weights
        normed = self._text_norm("pre_attention_norm", layer, x)
        y = self._text_attention(layer, normed, positions, mask)
        x = x + (self._text_norm("post_attention_norm", layer, y) if post_norms else y)
        normed = self._text_norm("pre_ffw_norm", layer, x)
        gated = gelu_tanh(normed @ gating[0]) * (normed @ gating[1])
        y = gated @ self.weights["llm/layers/mlp/linear"][layer]
        return x + (self._text_norm("post_ffw_norm", layer, y) if post_norms else y)

    def _text_attention(self, layer: int, x: Any, positions: np.ndarray, mask: np.ndarray) -> Any:
        fused = self.weights.get("llm/layers/attn/qkv_einsum/w")  # [L, 3, N, D, H]
        if fused is not None:
            queries, keys, values = (fused[layer][part] for part in range(3))
        else:
            queries = self.weights["llm/layers/attn/q_einsum/w"][layer]  # [N, D, H]
            both = self.weights["llm/layers/attn/kv_einsum/w"][layer]  # [2, K, D, H]
            keys, values = both[0], both[1]
        out = self.weights["llm/layers/attn/attn_vec_einsum/w"][layer]  # [N, H, D]
        keys = [self.store(rotate(x @ kernel, positions, ROPE_THETA)) for kernel in keys]
        values = [self.store(x @ kernel) for kernel in values]
        total = 0.0
        for head in range(len(queries)):
            shared = head // (len(queries) // len(keys))
            mixed = attention(
                rotate(x @ queries[head], positions, ROPE_THETA),
                keys[shared],
                values[shared],
                mask,
                scale=self.query_scale,
                softcap=self.attn_softcap,
            )
            total = total + mixed @ out[head]
        return total


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    """Mean 0 and variance 1 over the last axis, times scale, plus bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPS) * scale + bias


def resized_position_table(table: np.ndarray, num_tokens: int) -> np.ndarray:
    """[1, A*A, D] -> [1, B*B, D], linear between samples whose corners coincide."""
    old, new = (round(math.sqrt(size)) for size in (table.shape[1], num_tokens))
    rows = [table[0, i * old : (i + 1) * old].astype(np.float64) for i in range(old)]
    resized = []
    for i in range(new):
        y = i * (old - 1) / (new - 1)
        above = min(int(y), old - 2)
        row = rows[above] * (above + 1 - y) + rows[above + 1] * (y - above)
        for j in range(new):
            x = j * (old - 1) / (new - 1)
            left = min(int(x), old - 2)
            resized.append(row[left] * (left + 1 - x) + row[left + 1] * (x - left))
    return np.array([resized])


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest value with eight significant bits, ties to even."""
    step = 2.0 ** (np.frexp(x)[1] - 8)
    return np.round(x / step) * step


@dataclass(frozen=True)
class MaskCodecOracle:
    """The mask codec for one mask, one tap of a kernel at a time, in float64.

    Attributes:
        arrays: those of vae-oid.npz by name, "encoder.0.weight".
    """

    arrays: Mapping[str, np.ndarray]

    def latents(self, mask: np.ndarray) -> np.ndarray:
        """Mask [64, 64] in [0, 1] -> [16, D] in raster order."""
        x = 2.0 * mask[:, :, None].astype(np.float64) - 1.0
        for layer in (0, 2, 4, 6):
            x = np.maximum(self._convolve(f"encoder.{layer}", x, stride=2), 0)
        x = self._residual("encoder.9", self._residual("encoder.8", x))
        x = self._convolve("encoder.10", x)
        return x.reshape(-1, x.shape[-1])

    def distances(self, latents: np.ndarray) -> np.ndarray:
        """Squared distances [16, K] to every codeword."""
        codewords = self.arrays["_vq_vae._embedding"].astype(np.float64)
        return ((latents[:, None] - codewords) ** 2).sum(axis=-1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [16] -> mask [64, 64] around [-1, 1]."""
        codewords = self.arrays["_vq_vae._embedding"].astype(np.float64)
        x = codewords[codes].reshape(4, 4, -1)
        x = np.maximum(self._convolve("decoder.0", x), 0)
        x = self._residual("decoder.3", self._residual("decoder.2", x))
        for layer in (4, 6, 8, 10):
            x = np.maximum(self._enlarge(f"decoder.{layer}", x), 0)
        return self._convolve("decoder.12", x)[:, :, 0]

    def _residual(self, name: str, x: np.ndarray) -> np.ndarray:
        y = np.maximum(self._convolve(f"{name}.net.0", x), 0)
        y = np.maximum(self._convolve(f"{name}.net.2", y), 0)
        return x + self._convolve(f"{name}.net.4", y)

    def _convolve(self, name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        """[H, W, C] -> [H / stride, W / stride, O]; zeros around x."""
        weight = self.arrays[f"{name}.weight"].astype(np.float64)  # [O, C, k, k]
        margin = 1 if weight.shape[2] > 1 else 0
        padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
        height, width = (size // stride for size in x.shape[:2])
        y = np.zeros((height, width, len(weight))) + self.arrays[f"{name}.bias"]
        for row in range(weight.shape[2]):
            for column in range(weight.shape[3]):
                seen = padded[row::stride, column::stride][:height, :width]
                y += seen @ weight[:, :, row, column].T
        return y

    def _enlarge(self, name: str, x: np.ndarray) -> np.ndarray:
        """[H, W, C] -> [2H, 2W, O]: each pixel adds its 4x4 patch, every second pixel apart."""
        weight = self.arrays[f"{name}.weight"].astype(np.float64)  # [C, O, 4, 4]
        height, width = x.shape[:2]
        y = np.zeros((2 * height + 2, 2 * width + 2, weight.shape[1]))
        for row in range(4):
            for column in range(4):
                patch = x @ weight[:, :, row, column]
                y[row : row + 2 * height : 2, column : column + 2 * width : 2] += patch
        return y[1:-1, 1:-1] + self.arrays[f"{name}.bias"]


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
    q: Any, k: Any, v: Any, mask: np.ndarray, *, scale: float, softcap: float | None
) -> Any:
    """One head: float64[T, H] from rotated q [T, H], k and v [S, H]; an empty row is uniform."""
    scores = (q @ k.T) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(mask, scores, -2.3819763e38)
    return np.exp(log_softmax(scores)) @ v


def rotate(x: Any, positions: np.ndarray, theta: float) -> Any:
    """Rotary positions: element i turns against element i + H/2."""
    half = x.shape[1] // 2
    angles = positions[:, None] / theta ** (2 * np.arange(half) / x.shape[1])
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    first, second = x[:, :half], x[:, half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=1)


def gelu_tanh(x: Any) -> Any:
    """The tanh approximation of GELU."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def late_interaction_score(
    query: np.ndarray, page: np.ndarray, smooth_max: float | None = None
) -> float:
    """Sum over the query's vectors [N, D] of the largest product with a page's vector."""
    total = 0.0
    for vector in query:
        products = np.array([float(vector @ other) for other in page])
        if smooth_max is None:
            total += products.max()
        else:
            total += smooth_max * math.log(np.exp(products / smooth_max).sum())
    return total


def late_interaction_loss(
    queries: Sequence[np.ndarray],
    pages: Sequence[np.ndarray],
    negatives: Sequence[Sequence[np.ndarray]],
    *,
    kind: str,
    temperature: float,
    by_length: bool,
    negatives_weight: float,
    smooth_max: float | None = None,
    suspect_above: float | None = None,
) -> float:
    """Mean loss of queries whose i-th page is right; negatives holds the hard ones of each."""

    def score(query: np.ndarray, page: np.ndarray) -> float:
        value = late_interaction_score(query, page, smooth_max)
        return value / len(query) if by_length else value

    losses = []
    for place, query in enumerate(queries):
        right = score(query, pages[place])
        wrong = [score(query, page) for k, page in enumerate(pages) if k != place]
        if suspect_above is not None:
            wrong = [w / 2 if w > suspect_above * right else w for w in wrong]
        if kind == "pairwise":
            loss = math.log1p(math.exp((max(wrong) - right) / temperature))
        else:
            weights = [math.exp((w - right) / temperature) for w in wrong]
            loss = math.log(1.0 + sum(weights))
        hard = [score(query, page) for page in negatives[place]]
        if hard:
            worse = [math.log1p(math.exp((h - right) / temperature)) for h in hard]
            loss = (1 - negatives_weight) * loss + negatives_weight * sum(worse) / len(worse)
        losses.append(loss)
    return sum(losses) / len(losses)
