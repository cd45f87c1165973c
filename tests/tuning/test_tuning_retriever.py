"""`paligemma train transfer:colpali`, from pairs to a retriever that is loaded again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from retrieval_folders import write_colpali
from safetensors.torch import load_file

from paligemma import ColPali
from paligemma.cli import main
from paligemma.errors import ConfigError
from paligemma.retrieval.presets import PRESETS
from paligemma.retrieval.scores import score_matrix
from paligemma.scenes.pages import draw_page
from paligemma.tuning.retriever_recipe import COLPALI, RetrieverRecipe
from paligemma.weights.catalog import embedded_folder

PAGES = [draw_page(seed, size_px=128) for seed in range(6)]
OPTIONS = (
    "--model tiny --new-head --device cpu --steps 3 --batch-size 3 --part-size 2 --rank 2 "
    "--dim 16 --lr 0.003 --loss contrastive --seed 1 --threads 1 --quiet"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for k, page in enumerate(PAGES):
        Image.fromarray(page.image).save(folder / f"{k}.png")
        rows.append({"query": page.query, "image": f"{k}.png", "negatives": [f"{(k + 1) % 3}.png"]})
    del rows[1]["negatives"]
    rows.insert(0, {"query": "a page that is gone", "image": "gone.png"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[4:]))
    return folder


def train(data: Path, output: Path, options: str = OPTIONS) -> Result:
    command = f"train transfer:colpali --data {data} --output {output} {options}"
    return CliRunner().invoke(main, command.split())


def test_pairs_become_a_retriever_that_ranks_as_the_report_says(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train(data, run)
    assert done.exit_code == 0, done.output
    assert "on 3 held-out pairs  before   after" in done.stdout
    assert f"wrote {run / 'adapter'}" in done.stdout
    report = json.loads((run / "report.json").read_text())
    assert "gone.png" in report["skipped"][0]
    assert report["rows"] == {"learnt": 3, "held_out": 3}
    steps = [json.loads(x) for x in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in steps] == [1, 2, 3]
    assert all(0 <= one["first"] <= 1 and one["loss"] > 0 for one in steps)

    loaded = ColPali.from_pretrained(run / "adapter", mode="exact", device="cpu")
    assert (loaded.dim, loaded.preset.name) == (16, "tiny")
    held = PAGES[3:]
    scores = score_matrix(
        [one.values for one in loaded.encode_queries([page.query for page in held])],
        [one.values for one in loaded.encode_pages([page.image for page in held])],
    )
    ranks = [int((row > row[k]).sum()) for k, row in enumerate(scores)]
    expected = sum(1 / torch.log2(torch.tensor(2.0 + rank)).item() for rank in ranks) / 3
    assert report["ndcg@5"]["after"] == pytest.approx(expected, abs=1e-6)

    # The same command finds the run finished; another one is refused.
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert train(data, run).exit_code == 0
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before
    other = train(data, run, OPTIONS.replace("--lr 0.003", "--lr 0.001"))
    assert other.exit_code != 0
    assert "another configuration: lr" in other.stderr


def test_a_colpali_goes_on_with_its_own_adapter_and_projection(data: Path, tmp_path: Path) -> None:
    options = "--model tiny --device cpu --steps 3 --batch-size 2 --part-size 1 --num-negatives 0"
    done = train(data, tmp_path / "run", f"{options} --lr 0.0001 --threads 1 --quiet")
    assert done.exit_code == 0, done.output
    kept, own = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "run" / "adapter", embedded_folder() / "retrieval")
    )
    assert kept.keys() == own.keys()
    moved = {key: float((kept[key] - own[key].float()).abs().max()) for key in kept}
    assert all(0 < moved[key] < 1e-3 for key in kept if "custom_text_proj" in key)
    assert max(moved.values()) < 1e-3
    loaded = ColPali.from_pretrained(tmp_path / "run" / "adapter", device="cpu")
    assert loaded.preset == PRESETS["tiny"]


def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(
    data: Path, tmp_path: Path
) -> None:
    options = (
        f"--model {write_colpali(tmp_path / 'model')} --device cpu --steps 11 --batch-size 2 "
        "--part-size 1 --num-negatives 0 --lora-dropout 0.1 --seed 1 --threads 1 --quiet"
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(data, whole, options).exit_code == 0
    command = f"train transfer:colpali --data {data} --output {cut} {options}"
    killed = subprocess.Popen(
        [sys.executable, "-m", "paligemma", *command.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (cut / "train" / "step_0000010").exists() and killed.poll() is None:
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert [path.name for path in (cut / "train").glob("step_*")] == ["step_0000010"]
    assert not (cut / "adapter").exists()

    done = train(data, cut, options)
    assert done.exit_code == 0, done.output
    lines = [json.loads(x) for x in (cut / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in lines] == list(range(1, 12))
    weights = "adapter/adapter_model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    reports = [json.loads((run / "report.json").read_text()) for run in (whole, cut)]
    assert reports[0]["ndcg@5"] == reports[1]["ndcg@5"]


def test_a_model_without_a_projection_asks_for_a_new_head(data: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(embedded_folder(), plain, ignore=shutil.ignore_patterns("retrieval"))
    done = train(data, tmp_path / "run", f"--model {plain} --steps 1 --quiet")
    assert done.exit_code != 0
    assert "custom_text_proj" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_table_shows_where_every_value_comes_from() -> None:
    recipe = RetrieverRecipe()
    assert all(getattr(recipe, name) == one.value for name, one in COLPALI.items())
    shown = CliRunner().invoke(main, ["train", "transfer:colpali", "--help"]).stdout
    assert "lr                5e-05     ColPali" in shown
    assert "part_size         4         ours" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be in 1..65536"),
        ({"part_size": 0}, "part_size must be in 1..65536"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"loss": "triplet"}, "kind of a loss is one of"),
        ({"rank": 0}, "the rank must lie in"),
        ({"dim": 0}, r"dim must be in 1\.\.4096"),
    ],
)
def test_numbers_out_of_their_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RetrieverRecipe(**options)  # type: ignore[arg-type]
