"""What is trained, and how: the numbers of one fine-tuning."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

from torch import nn

from paligemma.adapt.lora import LoraConfig
from paligemma.errors import ConfigError
from paligemma.train.optim import OptimConfig
from paligemma.train.schedule import ScheduleConfig

# Peak learning rates: published transfers use 1e-5 for the whole model; an adapter's is ours.
FULL_LR, LORA_LR = 1e-5, 2e-4
_UPDATES = r".*\.update\.(down|up|magnitude)"


class RecipeKeywords(TypedDict, total=False):
    """The fields of `Recipe` as keywords; `lora` may also be True or False."""

    lora: LoraConfig | bool | None
    freeze: tuple[str, ...]
    epochs: float
    steps: int | None
    batch_size: int
    lr: float | None
    wd: float
    warmup_percent: float
    label_smoothing: float
    dropout: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One fine-tuning; the defaults are those of the published transfers where these agree.

    Attributes:
        lora: the adapter that is trained beside the frozen model; None trains the model itself.
        freeze: big_vision patterns of parameters that stay as they are, such as "img/.*".
        epochs: how often every row is seen.
        steps: number of updates, in the place of epochs.
        batch_size: rows an update.
        lr: peak learning rate; None is 1e-5 for the model and 2e-4 for an adapter.
        wd: weight decay a step, as in `OptimConfig`.
        warmup_percent: share of the updates over which the learning rate rises.
        label_smoothing: see `train.loss.token_losses`.
        dropout: of the decoder, after attention and MLP.
        seed: fixes adapter, order and dropout.
    """

    lora: LoraConfig | None = field(default_factory=LoraConfig)
    freeze: tuple[str, ...] = ()
    epochs: float = 5.0
    steps: int | None = None
    batch_size: int = 8
    lr: float | None = None
    wd: float = 0.0
    warmup_percent: float = 0.05
    label_smoothing: float = 0.0
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("epochs", 0 < self.epochs <= 10_000, "positive and at most 10,000"),
            ("steps", self.steps is None or 1 <= self.steps <= 10**8, "a count of updates"),
            ("batch_size", 1 <= self.batch_size <= 65_536, "in 1..65536"),
            ("lr", self.lr is None or 0 < self.lr < math.inf, "positive"),
            ("wd", 0 <= self.wd < math.inf, "0 or more"),
            ("warmup_percent", 0 <= self.warmup_percent <= 1, "in [0, 1]"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("seed", 0 <= self.seed < 2**63, "a whole number, 0 or more"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)}")
        if self.lora is not None and self.freeze:
            raise ConfigError(
                "an adapter freezes the whole model by itself, got freeze patterns beside it; "
                "choose its parts, or train the model itself"
            )

    def num_steps(self, num_examples: int) -> int:
        """Number of updates; epochs are rounded as the original rounds them."""
        return self.steps or max(1, round(self.epochs * num_examples / self.batch_size))

    def optim(self) -> OptimConfig:
        """The update rule: AdamW with a cosine schedule and a linear warm-up."""
        schedule = ScheduleConfig(decay_type="cosine", warmup_percent=self.warmup_percent)
        if self.lora is not None:
            patterns: tuple[tuple[str, ScheduleConfig | None], ...]
            patterns = ((_UPDATES, schedule), (".*", None))
        else:
            patterns = (*((pattern, None) for pattern in self.freeze), (".*", schedule))
        lr = self.lr or (FULL_LR if self.lora is None else LORA_LR)
        return OptimConfig(lr=lr, wd=self.wd, schedule=patterns)

    def to_json(self) -> dict[str, Any]:
        """The recipe with its learning rate, as JSON holds it."""
        return {**asdict(self), "lr": self.optim().lr}


def part_table(model: nn.Module) -> list[dict[str, Any]]:
    """What is trained of each part of a model: rows of part, state and number of parameters."""
    counts: dict[tuple[str, str], int] = {}
    for name, parameter in model.named_parameters():
        adapted = ".update." in name
        part = _part(name)
        state = "adapter" if adapted else "trained" if parameter.requires_grad else "frozen"
        counts[part, state] = counts.get((part, state), 0) + parameter.numel()
    return [
        {"part": part, "state": state, "parameters": number}
        for (part, state), number in counts.items()
    ]


def _part(name: str) -> str:
    for start, part in (
        ("vision.", "vision"),
        ("projector.", "projector"),
        ("text.embed", "embedding"),
    ):
        if name.startswith(start):
            return part
    inner = {".attn.": "decoder.attention", ".mlp.": "decoder.mlp"}
    return next((part for mark, part in inner.items() if mark in name), "decoder.norms")
