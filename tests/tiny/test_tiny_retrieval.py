"""The embedded model learns to search; and the adapter in the package finds drawn pages."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paligemma import ColPali, PaliGemma
from paligemma.errors import CheckpointError
from paligemma.retrieval.presets import PRESETS
from paligemma.retrieval.scores import score_matrix
from paligemma.scenes.pages import draw_page
from paligemma.tiny.retrieval import PageSource, RetrievalTraining, train_retrieval
from paligemma.weights.catalog import embedded_folder

QUICK: dict[str, Any] = {"num_held_out": 3, "num_workers": 0, "progress": False}
SHORT = RetrievalTraining(steps=2, num_pages=2, rank=2, warmup_steps=1, compute="float32")


def test_equal_steps_give_equal_batches_and_every_query_has_its_page() -> None:
    processor = PaliGemma.from_pretrained("tiny", device="cpu").processor
    source = PageSource(
        training=replace(SHORT, num_pages=3), preset=PRESETS["tiny"], processor=processor
    )
    first, again, other = source.batch(5), source.batch(5), source.batch(6)
    assert first.page_of == (0, 0, 1, 1, 2, 2)
    assert first.queries.num_examples == 6
    assert torch.equal(first.queries.tokens, again.queries.tokens)
    assert first.pages.images is not None
    assert again.pages.images is not None
    assert other.pages.images is not None
    assert torch.equal(first.pages.images, again.pages.images)
    assert not torch.equal(first.pages.images, other.pages.images)


def test_a_training_that_stops_early_goes_on_and_gives_what_colpali_loads(tmp_path: Path) -> None:
    whole, _ = train_retrieval(tmp_path / "whole", SHORT, **QUICK)
    run = tmp_path / "parts"
    early = replace(SHORT, stop_at=1)
    folder, share = train_retrieval(run, early, **QUICK)
    assert 0 <= share <= 1
    (run / "retrieval").rename(tmp_path / "early")
    folder, _ = train_retrieval(run, SHORT, **QUICK)
    one, other = (load_file(f / "adapter_model.safetensors") for f in (whole, folder))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    loaded = ColPali.from_pretrained("tiny", adapter=folder, device="cpu")
    assert (loaded.dim, loaded.preset) == (128, PRESETS["tiny"])
    record = json.loads((folder / "training.json").read_text())
    assert record["held_out"]["pages"] == 3
    assert [one["step"] for one in record["curve"]] == [1, 2]


def test_a_training_that_is_killed_while_it_is_measured_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr("paligemma.tiny.retrieval.first_share", killed)
        with pytest.raises(KeyboardInterrupt):
            train_retrieval(tmp_path, SHORT, **QUICK)
    folder, share = train_retrieval(tmp_path, SHORT, **QUICK)
    assert json.loads((folder / "training.json").read_text())["held_out"]["first"] == share


def test_a_result_that_is_there_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "retrieval").mkdir()
    with pytest.raises(CheckpointError, match="retrieval, which exists; move that away"):
        train_retrieval(tmp_path, SHORT, **QUICK)
    assert not (tmp_path / "train").exists()


def test_a_training_does_not_go_on_with_another_version_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_retrieval(tmp_path, replace(SHORT, stop_at=1), **QUICK)
    (tmp_path / "retrieval").rename(tmp_path / "early")
    newer = shutil.copytree(embedded_folder(), tmp_path / "newer")
    weights = load_file(newer / "model.safetensors")
    save_file({key: one * 2 for key, one in weights.items()}, newer / "model.safetensors")
    monkeypatch.setattr("paligemma.weights.catalog.embedded_folder", lambda: newer)
    monkeypatch.setattr("paligemma.tiny.retrieval.embedded_folder", lambda: newer)
    with pytest.raises(CheckpointError, match="base"):
        train_retrieval(tmp_path, SHORT, **QUICK)


def test_the_model_in_the_package_finds_pages_without_a_download() -> None:
    folder = embedded_folder() / "retrieval"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1_000_000
    record = json.loads((folder / "training.json").read_text())
    assert record["held_out"]["pages"] >= 200
    assert record["held_out"]["first"] >= 0.985
    colpali = ColPali.from_pretrained("tiny", device="cpu")
    pages = [draw_page(seed, split="heldout") for seed in range(12)]
    scores = score_matrix(
        [one.values for one in colpali.encode_queries([page.query for page in pages])],
        [one.values for one in colpali.encode_pages([page.image for page in pages])],
    )
    found = (scores.argmax(dim=1) == torch.arange(12)).sum()
    assert found >= 11


def test_the_model_in_the_package_finds_words_in_small_letters() -> None:
    colpali = ColPali.from_pretrained("tiny", device="cpu")
    drawn = [draw_page(seed, split="heldout") for seed in range(24)]
    pages = [page for page in drawn if page.scene is None]
    queries = [f"a page about {' and '.join(page.words[:2]).lower()}" for page in pages]
    scores = score_matrix(
        [one.values for one in colpali.encode_queries(queries)],
        [one.values for one in colpali.encode_pages([page.image for page in pages])],
    )
    found = (scores.argmax(dim=1) == torch.arange(len(pages))).sum()
    assert found >= len(pages) - 1
