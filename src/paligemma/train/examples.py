"""Batches of examples: any benchmark, or a user's own rows, as training reads them.

Which rows a step sees, and which of several answers, follows from seed and step alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from paligemma.batch import Batch, TokenRow
from paligemma.errors import DataError, ImageError
from paligemma.example import ALL_CLASSES, NOISE, Asking, Example
from paligemma.model import PaliGemmaModel
from paligemma.outputs.boxes import SEPARATOR
from paligemma.processing.pixels import stack_pixels
from paligemma.processing.processor import Processor
from paligemma.processing.prompts import object_prompt
from paligemma.tasks.lint import token_row
from paligemma.train.data import MicroBatches
from paligemma.train.distributed import World
from paligemma.train.loss import MEANS, training_loss
from paligemma.train.mixture import MixedOrder
from paligemma.train.noise import noisy_row
from paligemma.train.packing import Packing, RowSize
from paligemma.train.window import TOKENS

# Streams of random numbers that must not meet.
_ORDER, _TARGET, _OBJECTS, _NOISE = 0, 1, 2, 3
# How the objects of an answer follow each other: as in the file, top left first, or drawn anew at
# each visit.
ORDERS = ("file", "yx", "random")


@dataclass(frozen=True)
class ExampleSource:
    """Makes the batch of any step; an epoch shows every example once, in an order of its own.

    Attributes:
        examples: what is learnt, each with at least one target.
        asking_of: how an example is asked, which decides resizing and length.
        processor: tokenizer and size of the pictures.
        batch_size: examples an update.
        micro_size: most examples that are computed at once; None computes all of an update.
        seed: seed of orders and of the choice among several targets.
        order: one of `ORDERS`, for answers that are objects.
        mean: one of `train.loss.MEANS`; it decides how much each part of an update counts.
        weights: part of each source of a mixture; empty for one set.
        source_of: number of the source of an example; of a mixture.
        drawing: numbers of the sources whose recipe draws among several targets at each visit, with
            replacement; in all others each target is shown before one is shown again.
        noise_piece: class of the noise boxes of rows that ask for all classes.
        vary: changes an example for a visit, from seed, visit and id alone; None shows it as it is.
        max_tokens: most tokens that are computed at once, padding and pictures included.
        tokens_a_picture: of the decoder.
        world: the processes that share each batch.
        aligned: see `Packing`.
    """

    examples: Sequence[Example]
    asking_of: Callable[[Example], Asking]
    processor: Processor
    batch_size: int
    seed: int
    micro_size: int | None = None
    order: str = ORDERS[0]
    mean: str = MEANS[0]
    weights: tuple[float, ...] = ()
    source_of: Callable[[Example], int] | None = None
    drawing: frozenset[int] = frozenset()
    noise_piece: str = NOISE
    vary: Callable[[Example, int], Example] | None = None
    max_tokens: int | None = None
    tokens_a_picture: int = 0
    world: World = field(default_factory=World)
    aligned: bool = False

    def batch(self, step: int) -> Batch | MicroBatches[Batch]:
        """The batch of a step, counted from 0; rows are padded to the longest beside them.

        Raises:
            DataError: a picture can no longer be read, or a row is longer than its `text_len`.
        """
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        shown = [self._visit(place) for place in places]
        parts = self._packing.parts([self._size(*one) for one in shown])
        made = tuple(self._made([shown[k] for k in part.places]) for part in parts)
        if len(made) == 1 and len(made[0].tokens) == len(shown):
            return made[0]
        weights = [
            loss_weight(one, self.mean) if part.counts else 0.0
            for one, part in zip(made, parts, strict=True)
        ]
        total = sum(weights) if self.world.size == 1 else self._weight(shown)
        shares = tuple(weight / max(total, 1.0) for weight in weights)
        return MicroBatches(made, shares, tuple(part.places[0] for part in parts))

    def ids(self, step: int) -> list[str]:
        """The ids of the rows of this process in a step."""
        own = self.world.share(self.batch_size)
        return [self._visit(step * self.batch_size + k)[0].id for k in own]

    @property
    def _packing(self) -> Packing:
        return Packing(
            micro_size=self.micro_size,
            max_tokens=self.max_tokens,
            rank=self.world.rank,
            world_size=self.world.size,
            aligned=self.aligned,
        )

    def _size(self, example: Example, visit: int) -> RowSize:
        pictures = len(example.pictures)
        if self.max_tokens is None:
            return RowSize(pictures)
        text = len(self.row(self._varied(example, visit), visit)) - 1
        return RowSize(pictures, text + pictures * self.tokens_a_picture)

    def _weight(self, shown: Sequence[tuple[Example, int]]) -> float:
        """`loss_weight` of rows of which other processes make some."""
        if self.mean != "token":
            return float(len(shown))
        rows = (self.row(self._varied(one, visit), visit) for one, visit in shown)
        return float(sum(sum(row.mask_loss[1:]) for row in rows))

    def _varied(self, example: Example, visit: int) -> Example:
        return example if self.vary is None else self.vary(example, visit)

    def batch_of(self, examples: Sequence[Example]) -> Batch:
        """Some examples as a batch, as a first visit shows them."""
        return self._made([(example, 0) for example in examples])

    def _made(self, shown: Sequence[tuple[Example, int]]) -> Batch:
        """A batch of examples, each at a visit, which chooses its target and what varies."""
        examples = [self._varied(example, visit) for example, visit in shown]
        rows = [self.row(one, visit) for one, (_, visit) in zip(examples, shown, strict=True)]
        images = [self._pixels(example) for example in examples if example.pictures]
        return Batch.from_rows(
            rows,
            pad=self.processor.vocab.pad,
            images=stack_pixels(images) if images else None,
            with_loss=True,
        )

    def row(self, example: Example, visit: int = 0) -> TokenRow:
        """The tokens of an example with one of its targets and the end token.

        Targets take turns, each round in an order of its own, or are drawn at each visit.
        """
        target, several = example.targets[0], len(example.targets)
        if several > 1:
            source = 0 if self.source_of is None else self.source_of(example)
            turn, place = (visit, 0) if source in self.drawing else divmod(visit, several)
            rng = np.random.default_rng((self.seed, _TARGET, turn, zlib.crc32(example.id.encode())))
            target = example.targets[int(rng.permutation(several)[place])]
        if self.order != ORDERS[0] and object_prompt(example.prefix) is not None:
            target = self._ordered(target, example, visit)
        asking = self.asking_of(example)
        if asking.answer == ALL_CLASSES:
            key = (self.seed, _NOISE, visit, zlib.crc32(example.id.encode()))
            rng = np.random.default_rng(key)
            return noisy_row(example, target, asking, self.processor, rng, self.noise_piece)
        return token_row(example, target, asking, self.processor)

    def _ordered(self, target: str, example: Example, visit: int) -> str:
        """The objects of an answer in the order of the policy."""
        objects = target.split(SEPARATOR)
        if self.order == "yx":  # bins have equally many digits, so text sorts as numbers do
            return SEPARATOR.join(sorted(objects))
        rng = np.random.default_rng((self.seed, _OBJECTS, visit, zlib.crc32(example.id.encode())))
        return SEPARATOR.join(objects[k] for k in rng.permutation(len(objects)))

    def _pixels(self, example: Example) -> Tensor:
        preparation = self.asking_of(example).preparation(
            example, self.processor.image_size_px, training=True
        )
        try:
            frames = [
                preparation.prepare(picture.read(self.processor.reader.max_pixels))
                for picture in example.pictures
            ]
        except ImageError as error:
            raise DataError(f"{example.id}: {error}") from error
        return torch.from_numpy(frames[0] if len(frames) == 1 else np.stack(frames))

    def _visit(self, place: int) -> tuple[Example, int]:
        """The example of a place, and how often it was shown before."""
        source, index, visit = self._order.visit(place)
        return self.examples[int(self._rows_of[source][index])], visit

    @cached_property
    def _rows_of(self) -> list[np.ndarray]:
        if self.source_of is None:
            return [np.arange(len(self.examples))]
        places = np.array([self.source_of(one) for one in self.examples])
        return [np.flatnonzero(places == k) for k in range(len(self.weights))]

    @cached_property
    def _order(self) -> MixedOrder:
        sizes = [len(rows) for rows in self._rows_of]
        return MixedOrder(sizes, self.weights or (1.0,), (self.seed, _ORDER))


def loss_weight(batch: Batch, mean: str) -> float:
    """How much a batch counts in a mean over several: its examples, or its supervised tokens."""
    if mean == "token" and batch.mask_loss is not None:
        return float(batch.mask_loss[:, 1:].sum())
    return float(len(batch.tokens))


class SuffixLoss(nn.Module):
    """Objective of the loop: the loss of the answers, as `train.loss` defines it.

    Args:
        label_smoothing: see `train.loss.token_losses`.
        mean: see `train.loss.training_loss`.
        compute_dtype: dtype of the products; parameters and their gradients keep their own.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        *,
        mean: str = MEANS[0],
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.mean, self.compute_dtype = label_smoothing, mean, compute_dtype

    def forward(self, model: PaliGemmaModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss float32[] and what is logged beside it."""
        device, dtype = model.device, self.compute_dtype
        with torch.autocast(
            device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False
        ):
            found = training_loss(model, batch.to(device), self.label_smoothing, mean=self.mean)
        tokens = batch.mask_input.sum()
        if batch.images is not None:
            num_pictures = batch.images.shape[:-3].numel()
            tokens = tokens + num_pictures * model.config.num_image_tokens
        return found.loss, {"targets": found.num_targets.sum(), TOKENS: tokens}
