"""Training `detect all classes`: noise boxes fill the row, and their coordinates have no loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paligemma.batch import TokenRow
from paligemma.cli import main
from paligemma.pipeline.loading import LoadOptions, load_processor
from paligemma.processing.processor import Processor
from paligemma.tasks.catalog import find_task
from paligemma.train.examples import ExampleSource

NOISE = "card"  # a class of one token, in the place of the unknown one


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two pictures of COCO 2017, one of them without objects."""
    root = tmp_path / "coco"
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        for k in (1, 2):
            image = np.full((60, 80, 3), 30 * k + len(split), np.uint8)
            Image.fromarray(image).save(root / split / f"{k:012d}.jpg")
        content = {
            "images": [
                {"id": k, "file_name": f"{k:012d}.jpg", "width": 80, "height": 60} for k in (1, 2)
            ],
            "annotations": [
                {"id": k, "image_id": 1, "category_id": k, "bbox": [8 * k, 6, 40, 30]}
                | {"area": 1200, "iscrowd": 0, "segmentation": []}
                for k in (1, 2)
            ],
            "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def processor() -> Processor:
    return load_processor("tiny", LoadOptions())[0]


def rows(coco: Path, processor: Processor, visit: int) -> list[TokenRow]:
    task = find_task("coco-detection")
    examples = list(task.read(coco, "train"))
    source = ExampleSource(examples, task.asks, processor, 2, 0, noise_piece=NOISE)
    return [source.row(one, visit) for one in examples]


def test_a_row_is_filled_with_noise_and_learns_no_noise_coordinate(
    coco: Path, processor: Processor
) -> None:
    vocab, encode = processor.vocab, processor.tokenizer.encode
    noise = encode(NOISE)
    asking = find_task("coco-detection").asking
    with_objects, empty = rows(coco, processor, 0)
    for row, real in ((with_objects, 2), (empty, 0)):
        assert asking.max_new_tokens - 12 <= sum(row.mask_ar) <= asking.max_new_tokens
        assert row.tokens[-1] != vocab.eos
        locs = [k for k, token in enumerate(row.tokens) if vocab.is_loc(token)]
        groups = [locs[k : k + 4] for k in range(0, len(locs), 4)]
        assert all(group == list(range(group[0], group[0] + 4)) for group in groups)
        learnt = [sum(row.mask_loss[k] for k in group) for group in groups]
        assert learnt == [4] * real + [0] * (len(groups) - real)
        assert len(groups) > 60
        for group in groups[real:]:
            after = row.tokens[group[3] + 1 : group[3] + 1 + len(noise)]
            assert list(after) == noise
            assert all(row.mask_loss[group[3] + 1 + k] == 1 for k in range(len(noise)))


def test_each_visit_draws_other_noise_and_a_visit_repeats(coco: Path, processor: Processor) -> None:
    assert rows(coco, processor, 3) == rows(coco, processor, 3)
    assert rows(coco, processor, 3) != rows(coco, processor, 4)


def test_the_command_trains_all_classes_from_official_files(coco: Path, drawn_model: Path) -> None:
    labels = coco / "annotations" / "instances_train2017.json"
    content = json.loads(labels.read_text())
    labels.write_text(json.dumps({**content, "images": content["images"][:1]}))
    (coco / "annotations" / "instances_val2017.json").unlink()  # answers of 704 tokens take long
    words = ["train", "--data", coco, "--task", "coco-detection", "--model", drawn_model]
    words += ["--steps", "1", "--batch-size", "1", "--noise-piece", NOISE, "--text-len", "96"]
    words += ["--eval-every", "0", "--quiet", "--output", coco.parent / "run"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert not stopped.value.code
    report = json.loads((coco.parent / "run" / "report.json").read_text())
    assert report["rows"] == {"learnt": 1, "held_out": 0, "skipped": 0}
    assert report["recipe"]["noise_piece"] == NOISE
