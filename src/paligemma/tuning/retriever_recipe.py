"""The numbers of a retriever's training, with those of ColPali as defaults and their sources.

Source: arXiv:2407.01449, section 5.1; scripts/configs/pali of github.com/illuin-tech/colpali;
adapter_config.json of vidore/colpali-v1.3. What was never published, or is done otherwise here, is
marked as ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, TypedDict

from paligemma.adapt.lora import LoraConfig
from paligemma.errors import ConfigError
from paligemma.retrieval.losses import PairLossConfig
from paligemma.train.optim_config import ADAPTED, OptimConfig
from paligemma.train.schedule import ScheduleConfig
from paligemma.tuning.recipe import COMPUTE
from paligemma.tuning.stages import OURS, Chosen

_PAPER, _V13 = "ColPali", "ColPali v1.3"
COLPALI: Mapping[str, Chosen] = MappingProxyType(
    {
        "rank": Chosen(32, _PAPER),
        "alpha": Chosen(32.0, _PAPER),
        "lora_dropout": Chosen(0.1, _V13),
        "dim": Chosen(128, _PAPER),
        "loss": Chosen("pairwise", _PAPER),
        "normalisation": Chosen("none", _V13),
        "num_negatives": Chosen(1, OURS),
        "negatives_weight": Chosen(0.5, _V13),
        "batch_size": Chosen(256, _V13),
        "part_size": Chosen(4, OURS),
        "epochs": Chosen(3.0, _V13),
        "lr": Chosen(5e-5, _PAPER),
        "warmup_percent": Chosen(0.025, _PAPER),
    }
)


class RetrieverKeywords(TypedDict, total=False):
    """The fields of `RetrieverRecipe` as keywords, for type checkers."""

    rank: int
    alpha: float
    lora_dropout: float
    dim: int
    loss: str
    temperature: float | None
    normalisation: str
    num_negatives: int
    negatives_weight: float
    batch_size: int
    part_size: int
    epochs: float
    steps: int | None
    lr: float
    warmup_percent: float
    checkpointing: bool
    compute: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class RetrieverRecipe:
    """One training of a retriever.

    Attributes:
        rank, alpha, lora_dropout: of a new adapter of the decoder; one that is gone on with keeps
            its shape.
        dim: width of the vectors that a new head gives.
        loss, temperature, normalisation, negatives_weight: see `PairLossConfig`.
        num_negatives: most hard negatives of a query that an update shows.
        batch_size: pairs of an update, all compared with each other; at most all that there are.
        part_size: most pages, and queries, whose activations are in memory at once.
        epochs: how often every pair is shown.
        steps: number of updates, in the place of epochs.
        lr: peak learning rate, which falls to 0 along a line.
        warmup_percent: share of the updates over which it rises.
        checkpointing: compute every block again for its gradients.
        compute: dtype of the products, as in `Recipe`.
        seed: fixes new weights, orders and dropout.
    """

    rank: int = COLPALI["rank"].value
    alpha: float = COLPALI["alpha"].value
    lora_dropout: float = COLPALI["lora_dropout"].value
    dim: int = COLPALI["dim"].value
    loss: str = COLPALI["loss"].value
    temperature: float | None = None
    normalisation: str = COLPALI["normalisation"].value
    num_negatives: int = COLPALI["num_negatives"].value
    negatives_weight: float = COLPALI["negatives_weight"].value
    batch_size: int = COLPALI["batch_size"].value
    part_size: int = COLPALI["part_size"].value
    epochs: float = COLPALI["epochs"].value
    steps: int | None = None
    lr: float = COLPALI["lr"].value
    warmup_percent: float = COLPALI["warmup_percent"].value
    checkpointing: bool = False
    compute: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("dim", 1 <= self.dim <= 4096, "in 1..4096"),
            ("num_negatives", 0 <= self.num_negatives <= 64, "in 0..64"),
            ("batch_size", 1 <= self.batch_size <= 65_536, "in 1..65536"),
            ("part_size", 1 <= self.part_size <= 65_536, "in 1..65536"),
            ("epochs", 0 < self.epochs <= 10_000, "positive and at most 10,000"),
            ("steps", self.steps is None or 1 <= self.steps <= 10**8, "a count of updates"),
            ("lr", 0 < self.lr < math.inf, "positive"),
            ("warmup_percent", 0 <= self.warmup_percent < 1, "a share below 1"),
            (
                "compute",
                self.compute is None or self.compute in COMPUTE,
                f"one of {', '.join(COMPUTE)}",
            ),
            ("seed", 0 <= self.seed < 2**63, "a whole number, 0 or more"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)}")
        self.lora()
        self.losses()

    def lora(self) -> LoraConfig:
        """The shape of a new adapter."""
        return LoraConfig(rank=self.rank, alpha=self.alpha, dropout=self.lora_dropout)

    def losses(self) -> PairLossConfig:
        """The loss."""
        return PairLossConfig(
            kind=self.loss,
            temperature=self.temperature,
            normalisation=self.normalisation,
            negatives_weight=self.negatives_weight,
        )

    def optim(self) -> OptimConfig:
        """The update rule with its schedule; the model under the adapter is frozen."""
        schedule = ScheduleConfig(decay_type="linear", warmup_percent=self.warmup_percent)
        return OptimConfig(lr=self.lr, schedule=((f"{ADAPTED}.*", schedule), (".*", None)))

    def num_steps(self, num_pairs: int) -> int:
        """Number of updates."""
        batch = min(self.batch_size, num_pairs)
        return self.steps or max(1, round(self.epochs * num_pairs / batch))

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def recipe_lines() -> list[str]:
    """The table of ColPali's values in lines for people."""
    shown = {name: f"{one.value:g}" if isinstance(one.value, float) else str(one.value)
             for name, one in COLPALI.items()}  # fmt: skip
    a, b = max(map(len, shown)), max(map(len, shown.values()))
    return [f"{name:{a}}  {text:{b}}  {COLPALI[name].source}" for name, text in shown.items()]


RECIPE_FIELDS = tuple(field.name for field in fields(RetrieverRecipe))
