"""The rows of both papers as commands: what each needs, what it costs, how it is run.

A row is one benchmark on one model: every published figure of the two stands in it. Figures,
files, prompts and recipes are those of the catalogue of benchmarks; nothing is listed here again.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paligemma.config import PaliGemmaConfig, find_release, release_config
from paligemma.errors import ConfigError, DataError
from paligemma.tasks.published import (
    PublishedScore,
    learning_rate_sweep,
    published,
    training_splits,
    transfer_recipe,
)
from paligemma.tasks.task import Task
from paligemma.tuning.plan import UTILISATION, Card
from paligemma.tuning.recipe import Recipe
from paligemma.tuning.row_figures import rows_by_name
from paligemma.tuning.setup import recipe_of, task_of
from paligemma.tuning.stages import PUBLISHED_LR, swept_lr

_ANY_TASK = "simple"
_TRAINING_FOLDER = "{}-train"
# Names that an error offers.
_OFFERED = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the papers.

    Attributes:
        name: benchmark and model, such as "docvqa/paligemma-3b-pt-448".
        task: the benchmark.
        model: hub id of the released model that it begins with.
        figures: what was published, of every measure, split and source.
        trained_on: benchmark of the training files; None where the released model is measured as
            it is.
        transfer: published transfer that is followed; None is the recipe for any task.
    """

    name: str
    task: Task
    model: str
    figures: tuple[PublishedScore, ...]
    trained_on: Task | None
    transfer: str | None

    @property
    def size_px(self) -> int:
        """Side of the pictures in pixels."""
        return find_release(self.model)[1]

    @property
    def config(self) -> PaliGemmaConfig:
        """Sizes of the model."""
        release, side = find_release(self.model)
        return release_config(release.text, side)

    @property
    def lr(self) -> float | None:
        """Learning rate that PaliGemma 2's sweep chooses; None keeps the recipe's."""
        release = find_release(self.model)[0]
        if self.transfer is None or release.family != "PaliGemma 2":
            return None
        swept = learning_rate_sweep(self.transfer, release.size.upper())[1]
        return swept_lr(self.transfer, self.config)[0] if swept else None

    def recipe(self) -> Recipe | None:
        """Values of the training; None where nothing is trained."""
        if self.trained_on is None:
            return None
        stated = {} if self.lr is None else {"lr": self.lr}
        named = _ANY_TASK if self.transfer is None else None
        return recipe_of({"lora": False, **stated}, self.transfer, self.size_px, named=named)  # type: ignore[typeddict-item]

    def num_training_rows(self) -> int | None:
        """Training rows that the paper states; None where it states none."""
        if self.trained_on is None or self.transfer is None:
            return None
        stated = transfer_recipe(self.transfer).get("train_examples_paper")
        if stated is None:
            return None
        # "113287 images x 35 languages"
        return math.prod(int(word) for word in re.findall(r"\d+", str(stated)))

    def training_rows_are_own(self) -> bool:
        """Whether the training set was never released, so that own rows take its place."""
        return self.trained_on is not None and "train" not in self.trained_on.splits

    def folders(self) -> dict[str, Task]:
        """Folders below the data folder, and the benchmark whose files each holds.

        A folder of training rows of your own is not among them; see `training_rows_are_own`.
        """
        needed = {self.task.name: self.task}
        if self.trained_on is not None and not self.training_rows_are_own():
            needed = {self.trained_on.name: self.trained_on} | needed
        return needed

    def splits(self) -> list[tuple[str, bool]]:
        """Splits that are measured, each with whether only a test server can score it.

        Of two splits that compare with the same figures, the first is.
        """
        found: list[tuple[str, bool]] = []
        compared: set[PublishedScore] = set()
        for split in self.task.splits:
            own = set(published(self.task, our_split=split)) & set(self.figures)
            if own - compared:
                found.append((split, False))
                compared |= own
        if any(one.is_test_server for one in self.figures) and self.task.submission is not None:
            found += [(split, True) for split in self.task.server_splits[:1]]
        return found or [(self.task.splits[0], False)]

    def hours(self, card: Card) -> float | None:
        """Hours of one card for the training, at the utilisation that a plan assumes.

        None where nothing is trained, or the number of rows is unknown. Counts products of
        weights and of attention, as `plan` does by running the model.
        """
        recipe, count = self.recipe(), self.num_training_rows()
        if recipe is None or count is None or self.trained_on is None:
            return None
        asking = self.trained_on.asking
        one = flops_a_row(self.config, asking.num_pictures, asking.text_len)
        updates = recipe.num_steps(count)
        return updates * recipe.batch_size * one / (card.flops * UTILISATION) / 3600


@cache
def rows() -> dict[str, Row]:
    """Every row of both papers by its name, in the order of the benchmarks."""
    return {
        name: Row(
            name=name,
            task=one.task,
            model=one.model,
            figures=one.figures,
            trained_on=_trained_on(one.task) if one.is_trained else None,
            transfer=one.task.transfer if one.is_trained else None,
        )
        for name, one in rows_by_name().items()
    }


def find_row(name: str) -> Row:
    """The row of a name.

    Raises:
        ConfigError: there is none; the error offers near ones.
    """
    known = rows()
    if name in known:
        return known[name]
    near = _near(name.lower().strip("/"), list(known))
    offered = "`reproduce --list` has them all"
    if near:
        more = f"; {offered}" if len(near) > _OFFERED else ""
        offered = f"did you mean {' or '.join(near[:_OFFERED])}?{more}"
    raise ConfigError(
        "a row of the papers is named like its benchmark and model, such as "
        f"docvqa/paligemma-3b-pt-448, got {name!r:.80}; {offered}"
    )


def _near(wanted: str, known: list[str]) -> list[str]:
    """Rows that may be meant: that begin so, are spelt alike, or are of a benchmark like that."""
    begun = sorted(name for name in known if name.startswith(wanted)) if wanted else []
    if begun:
        return begun
    if "/" in wanted:
        return difflib.get_close_matches(wanted, known, n=_OFFERED, cutoff=0.5)
    benchmarks = {name.partition("/")[0] for name in known}
    like = difflib.get_close_matches(wanted, sorted(benchmarks), n=1)
    return sorted(name for name in known if name.partition("/")[0] in like)


def commands(
    row: Row,
    data: Path,
    output: Path,
    *,
    model: str | None = None,
    trained: str | None = None,
    more: tuple[str, ...] = (),
) -> Iterator[tuple[str, ...]]:
    """The commands of a row, without the program's name: train, measure, write for a server.

    Args:
        data: folder that holds one folder a benchmark, named like it.
        output: folder of the runs.
        model: begin with this one in the place of the published one.
        trained: measure this one and train nothing.
        more: further options of the training.
    """
    measured = trained or model or row.model
    if row.trained_on is not None and trained is None:
        run = output / "train"
        words = ["train"]
        if row.transfer is not None:
            words += [f"transfer:{row.transfer}"]
            if task_of(None, row.transfer) is not row.trained_on:
                words += ["--task", row.trained_on.name]
        else:
            words += ["--recipe", _ANY_TASK]
            if not row.training_rows_are_own():
                words += ["--task", row.trained_on.name]
        folder = row.trained_on.name
        if row.training_rows_are_own():
            folder = _TRAINING_FOLDER.format(folder)
        words += ["--data", str(data / folder), "--model", model or row.model]
        if row.lr is not None and model is None:
            words += ["--lr", PUBLISHED_LR]
        elif row.lr is not None:
            words += ["--lr", f"{row.lr:g}"]
        yield (*words, *more, "--output", str(run))
        measured = str(run / "model")
    for split, is_server in row.splits():
        run = output / split
        yield (
            *("eval", row.task.name, "--data", str(data / row.task.name), "--split", split),
            *("--model", measured, "--output", str(run)),
        )
        if is_server:
            yield ("eval", "submission", str(run), "--output", str(output / f"{split}.json"))


def flops_a_row(config: PaliGemmaConfig, num_pictures: int, num_text: int) -> float:
    """Operations of forward and backward for one training row, in floating-point operations.

    Two a weight and token forward, twice as many backward; attention reads every key. The logits
    of the answer, a quarter of the text as in a plan, read the table.
    """
    vision, text = config.vision, config.text
    patches = (vision.image_size_px // vision.patch_size_px) ** 2
    tower = vision.depth * (4 * vision.width**2 + 2 * vision.width * vision.mlp_dim)
    seen = num_pictures * patches * (2 * tower + 4 * vision.depth * patches * vision.width)
    tokens = num_pictures * patches + num_text
    heads = 2 * text.num_heads + 2 * text.num_kv_heads
    block = text.width * heads * text.head_dim + 3 * text.width * text.mlp_dim
    inner = text.num_heads * text.head_dim
    read = tokens * text.depth * (2 * block + 4 * tokens * inner)
    logits = 2 * (num_text // 4) * text.width * config.vocab.size
    return 3.0 * (seen + read + logits)


def _trained_on(task: Task) -> Task:
    """The benchmark on which the model of a benchmark was trained."""
    if task.transfer is None:
        return task
    # A zero-shot benchmark is asked of the model of another; RefCOCO's three share a training.
    return task_of(None, task.transfer)


def first_row(task: Task, data: Path, split: str) -> str:
    """Read the first example of a split, as a run would, and name it in words.

    Raises:
        DataError: a file is missing or wrong, or there is no row.
    """
    first = next(iter(task.read(data, split)), None)
    if first is None:
        raise DataError(f"{data} holds no row of the split {split}")
    return f"first row {first.id:.60}, asked {first.prefix!r:.80}"


def training_splits_of(row: Row) -> list[str]:
    """The splits that the training of a row learns from."""
    if row.trained_on is None or row.training_rows_are_own():
        return []
    return list(training_splits(row.trained_on, row.transfer))
