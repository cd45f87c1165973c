"""ColPali from the hub: what belongs to it beside the weights is fetched too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import hub_of

from paligemma import ColPali, PaliGemma
from paligemma.errors import ConfigError
from tests.retrieval.random_colpali import random_colpali

pytest.importorskip("huggingface_hub")


def test_a_colpali_of_the_hub_comes_with_its_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colpali = random_colpali(preset="v1.3")
    folder = colpali.save(tmp_path / "saved")
    with hub_of(folder, tmp_path, monkeypatch):
        loaded = ColPali.from_pretrained("owner/model", device="cpu")
    assert loaded.preset == colpali.preset
    (ours,), (theirs,) = (one.encode_queries(["a red box"]) for one in (colpali, loaded))
    assert torch.equal(ours.values, theirs.values)


def test_a_colpali_is_named_where_an_answering_model_is_asked_for(tmp_path: Path) -> None:
    folder = random_colpali().save(tmp_path / "saved")
    with pytest.raises(ConfigError, match="writes no answers, load it with ColPali"):
        PaliGemma.from_pretrained(folder)
    shutil.rmtree(folder)
