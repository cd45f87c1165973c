"""Fine-tuning through the command line and the call: it learns, resumes, repeats and refuses."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import write_random_tiny

from paligemma import PaliGemma
from paligemma.adapt.lora import LoraConfig
from paligemma.cli import main
from paligemma.errors import CheckpointError, ConfigError, DataError
from paligemma.tuning.finetune import finetune
from paligemma.tuning.recipe import Recipe
from paligemma.weights.load import load_model

QUESTION = "answer en what color is it?"
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
LORA = LoraConfig(rank=4, alpha=8, parts=("decoder",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("base") / "model", dtype="float32")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures of one colour each, named in the answers; the first is held out too."""
    folder = tmp_path / "colours"
    folder.mkdir()
    rows = []
    for name, rgb in COLORS.items():
        Image.fromarray(np.full((40, 60, 3), rgb, np.uint8)).save(folder / f"{name}.png")
        rows.append({"image": f"{name}.png", "prefix": QUESTION, "suffix": name})
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "valid.jsonl", rows[:1])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("way", ["--full", "--lora"])
def test_the_command_teaches_two_colours_and_what_it_keeps_answers_them(
    way: str, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = ["--parts", "decoder,vision,projector", "--rank", 8, "--lora-dropout", 0.01]
    options = adapter if way == "--lora" else []
    code = run(
        "train", "--data", data, "--model", base, "--output", tmp_path / "run", way, *options,
        "--steps", 60, "--batch-size", 2, "--lr", 3e-3, "--quiet",
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().out
    assert "answer_accuracy" in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    after = {one["name"]: one["after"] for one in report["figures"]}
    assert after["answer_accuracy"] == 100.0
    if way == "--lora":
        assert report["recipe"]["lora"]["dropout"] == 0.01
        pg = PaliGemma.from_pretrained(base, adapter=tmp_path / "run")
    else:
        pg = PaliGemma.from_pretrained(tmp_path / "run" / "model")
    for name in COLORS:
        assert pg.ask(data / f"{name}.png", QUESTION).text == name


def test_an_adapter_leaves_the_model_as_it_was_and_states_what_it_trained(
    base: Path, data: Path, tmp_path: Path
) -> None:
    before = {name: p.clone() for name, p in load_model(base).named_parameters()}
    finetune(
        str(base), data=data, output=tmp_path / "run", progress=False, num_workers=0,
        lora=LORA, steps=3, batch_size=2, lr=1e-3,
    )  # fmt: skip
    assert all(torch.equal(before[name], p) for name, p in load_model(base).named_parameters())
    states = json.loads((tmp_path / "run" / "report.json").read_text())["parts"]
    assert {(one["part"], one["state"]) for one in states if one["state"] != "frozen"} == {
        ("decoder.attention", "adapter"),
        ("decoder.mlp", "adapter"),
    }
    assert sum(one["parameters"] for one in states if one["state"] == "frozen") == sum(
        p.numel() for p in before.values()
    )
    checkpoint = next((tmp_path / "run" / "train").glob("step_*")) / "model.safetensors"
    assert checkpoint.stat().st_size < 1_000_000


def test_two_runs_are_equal_and_a_cut_one_ends_the_same(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paligemma.tuning import loop_inputs as module

    real = module.LoopOptions
    monkeypatch.setattr(module, "LoopOptions", lambda **o: real(**{**o, "save_every": 4}))
    recipe = {"lora": LORA, "steps": 11, "batch_size": 2, "lr": 1e-3, "dropout": 0.1}

    def made(folder: Path) -> tuple[bytes, list[float]]:
        torch.rand(3)  # The global generator's state must not matter.
        finetune(str(base), data=data, output=folder, progress=False, num_workers=0, **recipe)
        lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
        weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
        return weights, [json.loads(line)["loss"] for line in lines]

    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    assert first == second
    # As if it had been killed after step 8: the last checkpoint and all that follows are missing.
    shutil.rmtree(tmp_path / "b" / "train" / "step_0000011")
    shutil.rmtree(tmp_path / "b" / "adapter")
    (tmp_path / "b" / "report.json").unlink()
    assert made(tmp_path / "b") == first


def test_a_training_killed_again_and_again_leaves_the_same_files(
    base: Path, data: Path, tmp_path: Path
) -> None:
    """Through the program: SIGKILL at moments that a seed draws, from the start to the end."""
    words = [sys.executable, "-m", "paligemma", "train", "--data", str(data), "--model", str(base),
             "--steps", "16", "--batch-size", "2", "--rank", "4", "--eval-every", "8",
             "--quiet"]  # fmt: skip

    def kept(folder: Path) -> dict[str, bytes]:
        names = (
            "adapter/adapter_model.safetensors",
            "recipe.json",
            "report.json",
            "train/validation.jsonl",
        )
        return {name: (folder / name).read_bytes() for name in names}

    whole = subprocess.run([*words, "--output", str(tmp_path / "whole")], capture_output=True)
    assert whole.returncode == 0, whole.stderr
    rng, cut = random.Random(0), [*words, "--output", str(tmp_path / "cut")]
    started = time.monotonic()
    process = subprocess.Popen(cut, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    kills = 0
    while process.poll() is None:
        assert time.monotonic() - started < 120
        if kills < 2 and has_begun(tmp_path / "cut", kills):
            time.sleep(rng.random() * 0.3)
            process.kill()
            process.wait()
            kills += 1
            process = subprocess.Popen(cut, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(0.01)
    assert process.returncode == 0
    assert kills == 2
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")


def has_begun(folder: Path, kills: int) -> bool:
    """Whether a run has come as far as it is to be killed: at its start, at steps, at its end."""
    lines = folder / "train" / "metrics.jsonl"
    steps = lines.read_text().count("\n") if lines.exists() else 0
    return (folder / "recipe.json").exists() if kills == 0 else steps >= 4 * kills


def test_bad_rows_are_named_and_skipped_and_the_good_ones_are_learnt(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    bad = [
        {"image": "missing.png", "prefix": QUESTION, "suffix": "red"},
        {"image": "red.png", "prefix": "detect cat", "suffix": "no boxes here"},
        {"image": "red.png", "prefix": QUESTION, "suffix": "red " * 600},
        {"image": "../red.png", "prefix": QUESTION, "suffix": "red"},
        {"image": "red.png", "prefix": QUESTION},
    ]
    write_rows(data / "train.jsonl", bad + good)
    code = run(
        "train", "--data", data, "--model", base, "--output", tmp_path / "run", "--steps", 1,
        "--batch-size", 2, "--quiet",
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().err
    skipped = json.loads((tmp_path / "run" / "report.json").read_text())["skipped"]
    assert len(skipped) == len(bad)
    for words in (
        "missing.png",
        "objects such as",
        "512 tokens",
        "below the data folder",
        "suffix",
    ):
        assert any(words in sentence for sentence in skipped), (words, skipped)
        assert words in said


def test_a_set_without_a_good_row_stops_before_the_model_loads(
    data: Path, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(data / "train.jsonl", [{"image": "gone.png", "prefix": "ocr", "suffix": "x"}])
    monkeypatch.setattr(PaliGemma, "from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(DataError, match=r"no row .* can be learnt from.*gone\.png"):
        finetune(str(base), data=data, output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_another_recipe_in_the_same_folder_is_refused(
    base: Path, data: Path, tmp_path: Path
) -> None:
    def once(lr: float) -> None:
        finetune(
            str(base), data=data, output=tmp_path / "run", progress=False, num_workers=0,
            lora=LORA, steps=2, batch_size=2, lr=lr,
        )  # fmt: skip

    once(1e-3)
    with pytest.raises(CheckpointError, match="lr"):
        once(2e-3)


def test_without_held_out_rows_a_tenth_is_held_out(base: Path, data: Path, tmp_path: Path) -> None:
    row = json.loads((data / "train.jsonl").read_text().splitlines()[0])
    (data / "valid.jsonl").unlink()
    write_rows(data / "train.jsonl", [row] * 30)
    finetune(
        str(base), data=data, output=tmp_path / "run", progress=False, num_workers=0,
        lora=LORA, steps=1, batch_size=2,
    )  # fmt: skip
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]
    assert rows == {"learnt": 27, "held_out": 3, "skipped": 0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": float("nan")}, "epochs"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1.0}, "lr"),
        ({"seed": -1}, "seed"),
        ({"freeze": ("img/.*",)}, "freeze"),
        ({"steps": "3"}, "steps must be a whole number, got '3'"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"lr": True}, "lr must be a number, got True"),
        ({"epochs": None}, "epochs must be a number, got None"),
        ({"checkpointing": "no"}, "checkpointing must be True or False, got 'no'"),
        ({"lora": None, "freeze": "vision"}, "freeze must be several"),
    ],
)
def test_a_recipe_without_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Recipe(**options)


def test_objects_of_an_answer_follow_the_order_of_the_policy() -> None:
    from tiny_folder import EMBEDDED

    from paligemma.example import Asking, Example
    from paligemma.pipeline.loading import LoadOptions, load_processor
    from paligemma.train.examples import ExampleSource

    processor, _ = load_processor(EMBEDDED, LoadOptions())
    boxes = [f"<loc0{k}00><loc0100><loc0900><loc0900> cup" for k in (5, 1, 7, 3)]
    example = Example(
        id="a", prefix="detect cup", pictures=(), references=None, targets=(" ; ".join(boxes),)
    )

    def made(order: str, visit: int) -> list[str]:
        source = ExampleSource(
            examples=(), asking_of=lambda _: Asking(text_len=200, max_new_tokens=1),
            processor=processor, batch_size=1, seed=0, order=order,
        )  # fmt: skip
        text = processor.tokenizer.decode(source.row(example, visit).tokens)
        return [box for box in text.replace(" ;", ";").split(";") for box in [box[-45:].strip()]]

    assert len({tuple(made("file", k)) for k in range(3)}) == 1
    assert made("yx", 0) != made("file", 0)
    assert made("yx", 0) == made("yx", 1)
    assert len({tuple(made("random", k)) for k in range(6)}) > 2
    assert made("random", 3) == made("random", 3)
    with pytest.raises(ConfigError, match="order"):
        Recipe(order="xy")


def test_a_folder_that_is_not_there_is_named_before_the_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no '.*cards'; check the path"):
        finetune("no/such-model", data=tmp_path / "cards", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
