"""What is trained, and how: the numbers of one fine-tuning."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

from torch import nn

from paligemma.adapt.lora import LoraConfig
from paligemma.errors import ConfigError
from paligemma.tasks.published import transfer_recipe
from paligemma.train.examples import ORDERS
from paligemma.train.optim_config import OptimConfig
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
    micro_size: int | None
    checkpointing: bool
    lr: float | None
    wd: float
    warmup_percent: float
    label_smoothing: float
    dropout: float
    order: str
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
        micro_size: most rows that are computed at once; their gradients are added up, which gives
            the same update in less memory.
        checkpointing: compute every block again for its gradients, in the place of keeping what is
            inside it.
        lr: peak learning rate; None is 1e-5 for the model and 2e-4 for an adapter.
        wd: weight decay a step, as in `OptimConfig`.
        warmup_percent: share of the updates over which the learning rate rises.
        label_smoothing: see `train.loss.token_losses`.
        dropout: of the decoder, after attention and MLP.
        order: of the objects in an answer: "file", "yx" (top left first) or "random" by seed and
            visit.
        seed: fixes adapter, order and dropout.
    """

    lora: LoraConfig | None = field(default_factory=LoraConfig)
    freeze: tuple[str, ...] = ()
    epochs: float = 5.0
    steps: int | None = None
    batch_size: int = 8
    micro_size: int | None = None
    checkpointing: bool = False
    lr: float | None = None
    wd: float = 0.0
    warmup_percent: float = 0.05
    label_smoothing: float = 0.0
    dropout: float = 0.0
    order: str = ORDERS[0]
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("epochs", 0 < self.epochs <= 10_000, "positive and at most 10,000"),
            ("steps", self.steps is None or 1 <= self.steps <= 10**8, "a count of updates"),
            ("batch_size", 1 <= self.batch_size <= 65_536, "in 1..65536"),
            (
                "micro_size",
                self.micro_size is None or 1 <= self.micro_size <= self.batch_size,
                f"in 1..{self.batch_size}, the batch size",
            ),
            ("lr", self.lr is None or 0 < self.lr < math.inf, "positive"),
            ("wd", 0 <= self.wd < math.inf, "0 or more"),
            ("warmup_percent", 0 <= self.warmup_percent <= 1, "in [0, 1]"),
            ("order", self.order in ORDERS, f"one of {', '.join(ORDERS)}"),
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

    @classmethod
    def of_transfer(cls, name: str, size_px: int) -> Recipe:
        """A published transfer: the whole model, with the values of the resolution.

        Args:
            name: its id in `tasks/data/transfers.json`, such as "docvqa".
            size_px: side of the model's pictures; without values of its own it takes the default.

        Raises:
            ConfigError: no transfer of that name, or one that trains nothing.
        """
        values = transfer_recipe(name)["hparams"]
        chosen = values["best_by_resolution"].get(str(size_px), values["default"])
        if chosen["lr"] == 0 or "optimizer" in chosen:
            raise ConfigError(f"the transfer {name} trains nothing by Adam; give your own recipe")
        # One transfer counts examples in the place of epochs.
        examples = chosen.get("total_examples")
        frozen = {"freeze_vit": "img/.*", "freeze_llm": "llm/.*"}
        return cls(
            lora=None,
            freeze=tuple(pattern for key, pattern in frozen.items() if chosen.get(key)),
            epochs=chosen.get("epochs", 1),
            steps=None if examples is None else round(examples / chosen["batch_size"]),
            batch_size=chosen["batch_size"],
            lr=chosen["lr"],
            wd=chosen["wd"],
            label_smoothing=chosen["label_smoothing"],
            dropout=chosen.get("llm_dropout", 0.0),
        )

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
