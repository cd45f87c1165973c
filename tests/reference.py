"""Slow, obvious definitions in NumPy float64 that fast code is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


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
