"""Every benchmark with a training split: one row is read, checked and made a batch for `tiny`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_folders import FOLDERS

from paligemma import finetune
from paligemma.batch import Batch
from paligemma.errors import ConfigError
from paligemma.example import ALL_CLASSES
from paligemma.outputs.vqvae import MaskCodec
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.processing.processor import Processor, layout
from paligemma.tasks.catalog import find_task, tasks
from paligemma.tasks.lint import Lint
from paligemma.train.examples import ExampleSource
from paligemma.tuning.recipe import Recipe
from paligemma.tuning.setup import Setup, variety, with_text_len

TRAINED = [name for name, task in tasks().items() if "train" in task.splits]
# Those that are only measured with, and why.
MEASURED = {
    "nocaps": "has no training captions; COCO's are learnt",
    "xm3600": "has no training captions; COCO-35L's are learnt",
    "xm3600-tokenized": "the same pictures with other captions",
    "xgqa": "translates GQA's testdev only",
    "marvl": "has a test set only; NLVR2 is learnt",
    "countbenchqa": "has a test set only; TallyQA is learnt",
    "pope": "has three test sets; VQAv2 is learnt",
    "mmvp": "has 300 questions, all of them measured with",
    "objaverse": "has pictures to classify, none to learn",
    "molecules": "has a synthetic test set only",
    "scenes": "are drawn; the embedded model learns others, by `train tiny`",
}


@pytest.fixture(scope="module")
def processor() -> Processor:
    return load_processor("tiny", LoadOptions())[0]


def test_every_benchmark_is_trained_here_or_measured_only_for_a_reason() -> None:
    assert set(FOLDERS) == set(TRAINED)
    assert set(MEASURED) == set(tasks()) - set(TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_row_becomes_a_batch_with_its_prompt_its_target_and_its_resizing(
    name: str, processor: Processor, tmp_path: Path
) -> None:
    FOLDERS[name](tmp_path)
    task = find_task(name)
    rows = list(Lint(task, processor, MaskCodec).rows(tmp_path, "train"))
    assert [found for _, found in rows] == [[]] * len(rows)
    example = rows[0][0]
    assert example is not None
    asking = task.asks(example)
    source = ExampleSource(
        examples=[example], asking_of=task.asks, processor=processor, batch_size=1, seed=1
    )
    batch = source.batch(0)
    assert isinstance(batch, Batch)
    # What is asked is, token by token, what evaluation asks.
    encode = processor.tokenizer.encode
    prompt = layout(encode(example.prefix), (), processor.vocab, add_eos=False).tokens
    assert batch.tokens[0, : len(prompt)].tolist() == list(prompt)
    learnt = batch.tokens[0][batch.mask_loss[0].bool()].tolist()
    if asking.answer == ALL_CLASSES:
        assert learnt[: len(encode(example.targets[0]))] == encode(example.targets[0])
    else:
        assert learnt in [[*encode(one), processor.vocab.eos] for one in example.targets]
    assert len(example.pictures) == asking.num_pictures
    # What is shown is, but for a method that the recipe changes, what evaluation shows.
    side, images = processor.image_size_px, batch.images
    assert images is not None
    measured = asking.preparation(example, side)
    if asking.train_resize_method is not None:
        assert measured != asking.preparation(example, side, training=True)
        measured = asking.preparation(example, side, training=True)
    shown = images.reshape(-1, *images.shape[-3:])
    assert len(shown) == len(example.pictures)
    for frame, picture in zip(shown, example.pictures, strict=True):
        assert frame.equal(torch.from_numpy(measured.prepare(picture.read(10**6))))


def test_options_of_scienceqa_are_shuffled_anew_at_each_visit_of_training(
    processor: Processor, tmp_path: Path
) -> None:
    FOLDERS["scienceqa"](tmp_path)
    task = find_task("scienceqa")
    setup = Setup(
        model="tiny", processor=processor, task=task, transfer=None, recipe=Recipe(),
        data=tmp_path, folder=tmp_path / "run",
    )  # fmt: skip
    (example,) = task.read(tmp_path, "train")
    vary = variety(setup, [example])
    assert vary is not None
    shown = [vary(example, visit) for visit in range(20)]
    found = {(one.prefix.partition("Options: ")[2], *one.targets) for one in shown}
    assert found == {
        ("(A) ice, (B) water\nAnswer:", "The answer is B."),
        ("(A) water, (B) ice\nAnswer:", "The answer is A."),
    }
    assert [one.prefix for one in shown] == [vary(example, k).prefix for k in range(20)]
    others = replace(setup, task=find_task("ai2d"))
    assert variety(others, [example]) is None
    short = replace(setup, task=with_text_len(task, len(processor.tokenizer.encode("?"))))
    kept = variety(short, [example])
    assert kept is not None
    assert {kept(example, visit).prefix for visit in range(20)} == {example.prefix}


@pytest.mark.parametrize("name", MEASURED)
def test_a_benchmark_that_is_only_measured_with_cannot_be_trained_and_is_named(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{name} is only measured with, it has no split"):
        finetune("tiny", data=tmp_path, task=name, output=tmp_path / "run", progress=False)
