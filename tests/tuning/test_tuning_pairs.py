"""Pairs of a query and its page: what is read of them, and the batches that they make."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma import PaliGemma
from paligemma.errors import DataError
from paligemma.processing.processor import Processor
from paligemma.retrieval.presets import PRESETS
from paligemma.scenes.pages import draw_page
from paligemma.tuning.pairs import PairSource, read_pairs


@pytest.fixture(scope="module")
def processor() -> Processor:
    return PaliGemma.from_pretrained("tiny", device="cpu").processor


def pages(folder: Path, count: int) -> list[str]:
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    names = [f"pages/{k}.png" for k in range(count)]
    for k, name in enumerate(names):
        Image.fromarray(draw_page(k, size_px=128).image).save(folder / name)
    return names


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(data: Path, processor: Processor, **options: Any) -> PairSource:
    given = {"batch_size": 3, "num_negatives": 1, "seed": 0, **options}
    return PairSource(
        pairs=read_pairs(data).learnt, preset=PRESETS["tiny"], processor=processor, **given
    )


def pixels_of(made: PairSource, step: int) -> np.ndarray:
    images = made.batch(step).pages.images
    assert images is not None
    return images.numpy()


def test_bad_rows_are_named_and_the_rest_is_learnt(tmp_path: Path) -> None:
    names = pages(tmp_path, 4)
    good = [{"query": f"page {k}", "image": name} for k, name in enumerate(names)]
    bad = [
        {"query": "", "image": names[0]},
        {"query": "no page"},
        {"query": "gone", "image": "pages/99.png"},
        {"query": "outside", "image": "../secret.png"},
        {"query": "its own negative", "image": names[0], "negatives": [names[0]]},
        {"query": "half \ud800 a pair", "image": names[0]},
        {"query": "too many", "image": names[0], "negatives": [names[1]] * 65},
        [1, 2],
    ]
    found = read_pairs(lines(tmp_path / "pairs.jsonl", [*bad, *good]))
    assert [pair.query for pair in found.learnt] == ["page 0", "page 1", "page 2", "page 3"]
    assert len(found.skipped) == len(bad)
    for number, words in enumerate(
        (
            "a query is a text of 1 to",
            "image",
            "99.png",
            "below the folder",
            "right and a negative",
            "lone surrogate",
            "may have 64 negatives",
            "row 8",
        ),
        start=1,
    ):
        assert f"row {number}" in found.skipped[number - 1]
        assert words in found.skipped[number - 1]


def test_a_tenth_of_the_pages_is_held_out_with_all_their_queries(tmp_path: Path) -> None:
    names = pages(tmp_path, 20)
    rows = [{"query": f"{word} {k}", "image": name} for k, name in enumerate(names)
            for word in ("first", "second")]  # fmt: skip
    found = read_pairs(lines(tmp_path / "pairs.jsonl", rows))
    held = {pair.page.key for pair in found.held_out}
    assert len(held) == 2
    assert len(found.held_out) == 4
    assert len(found.learnt) == 36
    assert not held & {pair.page.key for pair in found.learnt}


def test_a_folder_holds_train_and_valid_and_a_page_alone_is_refused(tmp_path: Path) -> None:
    names = pages(tmp_path, 3)
    rows = [{"query": f"page {k}", "image": name} for k, name in enumerate(names)]
    lines(tmp_path / "train.jsonl", rows[:2])
    lines(tmp_path / "valid.jsonl", rows[2:])
    found = read_pairs(tmp_path)
    assert (len(found.learnt), len(found.held_out)) == (2, 1)
    lines(tmp_path / "train.jsonl", rows[:1])
    with pytest.raises(DataError, match="pairs of 1 pages; add more"):
        read_pairs(tmp_path)
    with pytest.raises(DataError, match="there is no"):
        read_pairs(tmp_path / "gone")
    with pytest.raises(DataError, match=r"lie in train\.jsonl"):
        read_pairs(tmp_path / "pages")


def test_parquet_rows_of_one_file_name_share_a_page(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = io.BytesIO()
    Image.fromarray(draw_page(0, size_px=128).image).save(data, "PNG")
    rows = [
        {"query": f"q {k}", "image": {"bytes": data.getvalue()}, "image_filename": name}
        for k, name in enumerate(("a", "a", "b", "b"))
    ]
    rows[3]["query"] = None
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
    found = read_pairs(tmp_path)
    assert [pair.page.key for pair in found.learnt] == ["a", "a", "b"]
    assert found.learnt[0].page.picture.read(10**6).shape == (128, 128, 3)
    assert len(found.skipped) == 1


def test_a_batch_shows_a_page_once_and_draws_negatives_by_step(
    tmp_path: Path, processor: Processor
) -> None:
    names = pages(tmp_path, 5)
    rows = [
        {"query": "one", "image": names[0], "negatives": names[2:]},
        {"query": "another", "image": names[0]},
        {"query": "third", "image": names[1]},
    ]
    made = source(lines(tmp_path / "pairs.jsonl", rows), processor)
    assert [made.batch(0).page_of, made.batch(0).num_negatives] in (
        [(0, 0, 1), (1, 0, 0)],
        [(0, 0, 1), (0, 1, 0)],
        [(0, 1, 0), (1, 0, 0)],
        [(0, 1, 0), (0, 0, 1)],
        [(0, 1, 1), (0, 1, 0)],
        [(0, 1, 1), (0, 0, 1)],
    )
    first = made.batch(0)
    assert first.pages.num_examples == 3
    assert first.queries.num_examples == 3
    hard = [pixels_of(made, step)[-1] for step in range(6)]
    assert len({float(one.sum()) for one in hard}) > 1
    assert np.array_equal(pixels_of(made, 3)[-1], hard[3])
    assert sorted(made.ids(0)) == sorted(pair.id for pair in made.pairs)


def test_an_epoch_shows_every_pair_once(tmp_path: Path, processor: Processor) -> None:
    names = pages(tmp_path, 6)
    rows = [{"query": f"page {k}", "image": name} for k, name in enumerate(names)]
    made = source(lines(tmp_path / "pairs.jsonl", rows), processor)
    for epoch in range(3):
        shown = [one for step in (2 * epoch, 2 * epoch + 1) for one in made.ids(step)]
        assert sorted(shown) == sorted(pair.id for pair in made.pairs)


def test_every_batch_has_two_pages_also_where_an_epoch_ends(
    tmp_path: Path, processor: Processor
) -> None:
    names = pages(tmp_path, 2)
    rows = [{"query": f"about {k}", "image": names[k // 2]} for k in range(3)]
    made = source(lines(tmp_path / "pairs.jsonl", rows), processor, batch_size=2)
    for step in range(12):
        batch = made.batch(step)
        assert batch.pages.num_examples == 2
        assert set(batch.page_of) == {0, 1}
        assert batch.queries.num_examples <= 3
