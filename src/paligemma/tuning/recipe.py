"""What is trained, and how: the numbers of one fine-tuning."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypedDict

import torch
from torch import nn

from paligemma.adapt.lora import LoraConfig
from paligemma.adapt.quant import Quant
from paligemma.errors import ConfigError
from paligemma.example import NOISE
from paligemma.kernels.nf4 import NF4Linear
from paligemma.processing.augment import Augmentation
from paligemma.tasks.published import transfer_recipe
from paligemma.train.examples import ORDERS
from paligemma.train.loss import MEANS
from paligemma.train.optim_config import ADAPTED, DEFAULT_WD_MULTS, OptimConfig, PartPattern
from paligemma.train.rules import RULES
from paligemma.train.schedule import ScheduleConfig

# Peak learning rates: published transfers use 1e-5 for the whole model; an adapter's is ours.
FULL_LR, LORA_LR = 1e-5, 2e-4
# Positions are rotated by formula; beyond this no release was trained.
MAX_TEXT_LEN = 8192
KEPT = ("last", "best")
SCHEDULES = ("cosine", "rsqrt")
_SPAN = "a share of the run below 1, or a whole number of updates"
# Kinds of values by the first word of a field's type.
_KINDS: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "a text"),
    "bool": (bool, "True or False"),
    "tuple[str, ...]": ((tuple, list), "several, such as (value,)"),
}
COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Parts by name: in big_vision's names of a model, and in this package's names of an adapter.
PART_PATTERNS = {
    "vision": r"img/(?!head/).*|vision\..*",
    "projector": r"img/head/.*|projector\..*",
    "embedding": r"llm/embedder/.*|text\.embed.*",
    "decoder": r"llm/(?!embedder/).*|text\.(?!embed).*",
    "decoder.attention": r"llm/layers/attn/.*|text\.blocks\.\d+\.attn\..*",
    "decoder.mlp": r"llm/layers/mlp/.*|text\.blocks\.\d+\.mlp\..*",
}


class RecipeKeywords(TypedDict, total=False):
    """The fields of `Recipe` as keywords; `lora` may also be True or False."""

    lora: LoraConfig | bool | None
    quant: str | None
    freeze: tuple[str, ...]
    epochs: float
    steps: int | None
    batch_size: int
    micro_size: int | None
    batch_tokens: int | None
    checkpointing: bool
    lr: float | str | None
    wd: float
    schedule: str
    timescale: float
    schedule_start: int
    warmup_percent: float
    label_smoothing: float
    dropout: float
    mean: str
    rule: str
    momentum: float
    average: float | None
    compute: str | None
    lr_mults: tuple[tuple[str, float], ...]
    warmups: tuple[tuple[str, float], ...]
    order: str
    augment: tuple[str, ...]
    negatives: float
    text_len: int | None
    noise_piece: str
    eval_every: float | None
    patience: int | None
    keep: str | None
    overfit: int | None
    size_px: int | None
    replay: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One fine-tuning; the defaults are those of the published transfers where these agree.

    Attributes:
        lora: the adapter that is trained beside the frozen model; None trains the model itself.
        quant: how the frozen layers under an adapter are kept, as in `LoadOptions`; None keeps
            their dtype.
        freeze: parts that stay as they are: names of `PART_PATTERNS`, or patterns of big_vision
            names such as "img/.*".
        epochs: how often every row is seen.
        steps: number of updates, in the place of epochs.
        batch_size: rows an update.
        micro_size: most rows that are computed at once; their gradients are added up, which gives
            the same update in less memory.
        batch_tokens: most tokens that are computed at once, those of pictures and padding included;
            a longer row is computed alone.
        checkpointing: compute every block again for its gradients, in the place of keeping what is
            inside it.
        lr: peak learning rate; None is 1e-5 for the model and 2e-4 for an adapter.
        wd: weight decay a step, as in `OptimConfig`.
        schedule: of the learning rate after its warm-up: "cosine" to 0, or "rsqrt" without end.
        timescale: updates over which rsqrt falls to 0.7 of its peak.
        schedule_start: updates of the schedule before this run, which goes on from there.
        warmup_percent: share of the updates over which the learning rate rises; from 1 on their
            number.
        label_smoothing: see `train.loss.token_losses`.
        dropout: of the decoder, after attention and MLP.
        mean: what the loss is a mean over: "example" as in the original, or "token".
        rule: update rule, one of `train.rules.RULES`.
        momentum: of the rules that have one.
        average: decay of an average of the trained parameters, which is then what is kept.
        compute: dtype of the products, "float32" or "bfloat16"; None is bfloat16 on a GPU. What is
            trained is float32 in either.
        lr_mults: (part or pattern, factor on the learning rate), as `freeze` names them.
        warmups: (part or pattern, share or number of the updates over which its learning rate
            rises), in the place of `warmup_percent`.
        order: of the objects in an answer: "file", "yx" (top left first) or "random" by seed and
            visit.
        augment: policies of `processing.augment`, such as "flip" or "crop=0.7".
        negatives: share of visits in which a detect or segment row asks for classes of its set
            that are not in the picture, beside those that are or alone.
        text_len: most tokens of prompt and answer, in the place of the task's own.
        noise_piece: class of the noise boxes of `detect all classes`; the published one is unknown.
        eval_every: updates between two looks at the held-out rows; below 1 a share of the run. None
            looks before and after the training alone.
        patience: looks without a better one after which the run ends; None runs to the end.
        keep: which result counts, "last" or "best" by the task's headline on held-out rows; None is
            best with a patience, else last.
        replay: share of the rows of every batch that are the model's own answers from before the
            training, see `tuning.replay`.
        overfit: learn this many rows by heart, and end as soon as all their answers are exact.
        size_px: side of the pictures; None is the model's own. Another one resizes its position
            table.
        seed: fixes adapter, order and dropout.
    """

    lora: LoraConfig | None = field(default_factory=LoraConfig)
    quant: str | None = None
    freeze: tuple[str, ...] = ()
    epochs: float = 5.0
    steps: int | None = None
    batch_size: int = 8
    micro_size: int | None = None
    batch_tokens: int | None = None
    checkpointing: bool = False
    lr: float | None = None
    wd: float = 0.0
    schedule: str = SCHEDULES[0]
    timescale: float = 10_000.0
    schedule_start: int = 0
    warmup_percent: float = 0.05
    label_smoothing: float = 0.0
    dropout: float = 0.0
    mean: str = MEANS[0]
    rule: str = RULES[0]
    momentum: float = 0.9
    average: float | None = None
    compute: str | None = None
    lr_mults: tuple[tuple[str, float], ...] = ()
    warmups: tuple[tuple[str, float], ...] = ()
    order: str = ORDERS[0]
    augment: tuple[str, ...] = ()
    negatives: float = 0.0
    text_len: int | None = None
    noise_piece: str = NOISE
    eval_every: float | None = 0.25
    patience: int | None = None
    keep: str | None = None
    overfit: int | None = None
    size_px: int | None = None
    replay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for one in fields(self):
            name, _, rest = str(one.type).partition(" | ")
            kind, words = _KINDS.get(name, (object, ""))
            value = getattr(self, one.name)
            is_other = not isinstance(value, kind) or (isinstance(value, bool) and name != "bool")
            if words and is_other and not (value is None and rest):
                raise ConfigError(f"{one.name} must be {words}, got {value!r:.80}")
        rules = (
            ("epochs", 0 < self.epochs <= 10_000, "positive and at most 10,000"),
            ("steps", self.steps is None or 1 <= self.steps <= 10**8, "a count of updates"),
            ("batch_size", 1 <= self.batch_size <= 65_536, "in 1..65536"),
            (
                "micro_size",
                self.micro_size is None or 1 <= self.micro_size <= self.batch_size,
                f"in 1..{self.batch_size}, the batch size",
            ),
            (
                "batch_tokens",
                self.batch_tokens is None or self.batch_tokens >= 1,
                "a count of tokens",
            ),
            ("lr", self.lr is None or 0 < self.lr < math.inf, "positive"),
            ("wd", 0 <= self.wd <= 1, "in [0, 1]"),
            ("label_smoothing", 0 <= self.label_smoothing <= 0.9, "in [0, 0.9]"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("timescale", 0 < self.timescale < math.inf, "a positive number of updates"),
            ("schedule_start", 0 <= self.schedule_start <= 10**8, "a count of updates"),
            ("warmup_percent", _is_span(self.warmup_percent), _SPAN),
            ("mean", self.mean in MEANS, f"one of {', '.join(MEANS)}"),
            ("rule", self.rule in RULES, f"one of {', '.join(RULES)}"),
            (
                "compute",
                self.compute is None or self.compute in COMPUTE,
                f"one of {', '.join(COMPUTE)}",
            ),
            ("warmups", all(_is_span(span) for _, span in self.warmups), _SPAN),
            ("noise_piece", self.noise_piece.strip() != "", "a class of a noise box"),
            ("negatives", 0 <= self.negatives <= 1, "in [0, 1]"),
            (
                "text_len",
                self.text_len is None or 2 <= self.text_len <= MAX_TEXT_LEN,
                f"in 2..{MAX_TEXT_LEN}",
            ),
            ("order", self.order in ORDERS, f"one of {', '.join(ORDERS)}"),
            (
                "eval_every",
                self.eval_every is None
                or 0 < self.eval_every < 1
                or (self.eval_every >= 1 and self.eval_every == int(self.eval_every)),
                "a count of updates, or a share of the run below 1",
            ),
            ("patience", self.patience is None or self.patience >= 1, "a count of looks"),
            ("replay", 0 <= self.replay < 1, "a share in [0, 1)"),
            ("overfit", self.overfit is None or 1 <= self.overfit <= 64, "in 1..64 rows"),
            ("keep", self.keep in (None, *KEPT), f"one of {', '.join(KEPT)}"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("seed", 0 <= self.seed < 2**63, "a whole number, 0 or more"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)}")
        if self.quant is not None:
            if Quant.parse(self.quant).is_packed:
                raise ConfigError(
                    f"an adapter is trained beside layers of nf4, got {self.quant}, which is "
                    "packed for answering"
                )
            if self.lora is None:
                raise ConfigError(
                    f"quantised layers are frozen under an adapter, got {self.quant} without one; "
                    "train an adapter, or leave it out"
                )
        Augmentation.of(self.augment)
        if self.lora is not None and self.freeze:
            raise ConfigError(
                "an adapter freezes the whole model by itself, got freeze patterns beside it; "
                "choose its parts, or train the model itself"
            )

    def num_steps(self, num_examples: int) -> int:
        """Number of updates; epochs are rounded as the original rounds them."""
        return self.steps or max(
            1, round(self.epochs * num_examples / self.batch_size / (1 - self.replay))
        )

    def looks_every(self, num_steps: int) -> int | None:
        """Updates between two looks at the held-out rows; None looks at the end alone."""
        if self.eval_every is None:
            return None
        share = self.eval_every if self.eval_every < 1 else None
        return int(self.eval_every) if share is None else max(1, round(share * num_steps))

    @property
    def keeps_best(self) -> bool:
        """Whether the best look at held-out rows is what the run is kept as."""
        return self.keep == "best" or (self.keep is None and self.patience is not None)

    def optim(self) -> OptimConfig:
        """The update rule with its schedules."""
        schedules: list[tuple[str, ScheduleConfig | None]]
        schedules = [(self._pattern(part), None) for part in self.freeze]
        schedules += [(self._pattern(part), self._schedule(span)) for part, span in self.warmups]
        whole = self._schedule(self.warmup_percent)
        if self.lora is not None:
            schedules += [(f"{ADAPTED}.*", whole), (".*", None)]
        else:
            schedules += [(".*", whole)]
        lr = self.lr or (FULL_LR if self.lora is None else LORA_LR)
        decayed = DEFAULT_WD_MULTS if self.lora is None else ((f"{ADAPTED}.*", 1.0),)
        return OptimConfig(
            lr=lr,
            wd=self.wd,
            schedule=tuple(schedules),
            lr_mults=tuple((self._pattern(part), mult) for part, mult in self.lr_mults),
            wd_mults=decayed,
            rule=self.rule,
            momentum=self.momentum,
            average=self.average,
        )

    def _schedule(self, warmup: float) -> ScheduleConfig:
        """The schedule with a warm-up, a share of the updates or their number."""
        return ScheduleConfig(
            decay_type=self.schedule,
            warmup_percent=warmup if warmup < 1 else None,
            warmup_steps=None if warmup < 1 else int(warmup),
            timescale=self.timescale,
            start=self.schedule_start,
        )

    def _pattern(self, part: str) -> str:
        """The pattern of a part, or one that is stated; of an adapter its own parameters alone."""
        pattern = PART_PATTERNS.get(part, part)
        return PartPattern(pattern if self.lora is None else f"{ADAPTED}(?:{pattern})", part)

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype of the products on a device."""
        name = self.compute or ("bfloat16" if device.type == "cuda" else "float32")
        return COMPUTE[name]

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


def _is_span(value: float) -> bool:
    return 0 <= value < 1 or (1 <= value <= 10**8 and value == int(value))


def part_table(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """What is trained of each part of a model.

    Returns:
        Rows of part, state ("trained", "frozen", "quantised" or "adapter"), number of parameters
        and peak learning rate.
    """
    named = dict(model.named_parameters())
    rates = optim.peak_rates(named)
    rows: dict[tuple[str, str, float], int] = {}
    for name, parameter in named.items():
        rate = rates[name]
        state = "frozen" if rate is None else "adapter" if ".update." in name else "trained"
        key = (_part(name), state, rate or 0.0)
        rows[key] = rows.get(key, 0) + parameter.numel()
    for name, module in model.named_modules():
        if isinstance(module, NF4Linear):
            key = (_part(f"{name}."), "quantised", 0.0)
            rows[key] = rows.get(key, 0) + module.num_weights
    return [
        {"part": part, "state": state, "parameters": number, "lr": rate}
        for (part, state, rate), number in rows.items()
    ]


def part_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table of parts in lines for people."""
    cells = [("part", "state", "parameters", "learning rate")]
    cells += [
        (
            one["part"],
            one["state"],
            f"{one['parameters']:,}",
            f"{one['lr']:g}" if one["lr"] else "-",
        )
        for one in rows
    ]
    a, b, c, d = (max(map(len, column)) for column in zip(*cells, strict=True))
    return [f"{part:{a}}  {state:{b}}  {num:>{c}}  {lr:>{d}}" for part, state, num, lr in cells]


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
