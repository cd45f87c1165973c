"""`paligemma train`: what is checked before minutes of work, and what is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from paligemma import PaliGemma
from paligemma.cli.train import train_group
from paligemma.errors import ConfigError, PaliGemmaError
from paligemma.model.paligemma import init_weights
from paligemma.outputs.vqvae import load_mask_codec
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tiny import mask_codec, start, training
from paligemma.tiny.mask_codec import MaskCodecTraining
from paligemma.tiny.mask_set import MaskSet, collect_masks
from paligemma.tiny.objective import LossWeights
from paligemma.tiny.stages import Stage


def train(*arguments: object) -> Result:
    return CliRunner().invoke(train_group, [str(one) for one in arguments])


@pytest.fixture
def few_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty masks instead of the sixteen thousand that take a minute to draw."""

    def few(num_masks: int, **options: Any) -> MaskSet:
        return collect_masks(min(num_masks, 40), **options)

    monkeypatch.setattr(mask_codec, "collect_masks", few)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused is refused before any mask is drawn."""

    def drawing(*_: object, **__: object) -> MaskSet:
        raise AssertionError("masks were drawn")

    monkeypatch.setattr(mask_codec, "collect_masks", drawing)


@pytest.mark.usefixtures("few_masks")
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_codec_of_few_steps_is_trained_and_written_into_a_new_folder(
    tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "new" / "codec.safetensors"
    result = train("codec", "--steps", steps, "--output", path)
    assert result.exit_code == 0, result.output
    assert f"wrote {path}: IoU" in result.stdout
    assert load_mask_codec(path).config.num_codes == 32
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["options"]["steps"] == record["curve"][-1]["step"] == steps
    # The same command again changes nothing; another one is another training.
    before = path.read_bytes()
    assert train("codec", "--steps", steps, "--output", path, "--resume").exit_code == 0
    assert path.read_bytes() == before
    error = train("codec", "--steps", steps, "--output", path, "--seed", 1).exception
    assert isinstance(error, PaliGemmaError)
    assert "but seed changed; use another output folder" in str(error)
    assert path.read_bytes() == before


def test_a_codec_training_killed_and_stopped_leaves_the_files_of_a_whole_one(
    tmp_path: Path,
) -> None:
    """Through the program: killed before the first checkpoint, and then stopped by SIGTERM."""
    script = Path(__file__).with_name("killed_codec.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [-9, 143, 0, 0]
    assert "the same command goes on where it stopped" in done.stderr

    def left(name: str) -> dict[str, Any]:
        run = tmp_path / f"{name}.train"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        names = ("step", "loss", "iou", "codes", "grad_norm", "param_norm", "schedule")
        files = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.safe*")}
        codec = (tmp_path / f"{name}.safetensors").read_bytes()
        return {"lines": [[line[key] for key in names] for line in lines], "codec": codec, **files}

    assert [line[0] for line in left("whole")["lines"]] == list(range(1, 13))
    assert "step_0000012/optimizer.safetensors" in left("whole")
    assert left("cut") == left("whole")


@pytest.mark.parametrize(("steps", "warmup"), [(100, 50), (200, 100), (1000, 200)])
def test_a_short_run_warms_up_for_half_of_it_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: int, warmup: int
) -> None:
    seen: list[MaskCodecTraining] = []

    def keep(_: Path, options: MaskCodecTraining, **__: object) -> dict[str, Any]:
        seen.append(options)
        return {"heldout": {"all": {"iou": 0.0}}}

    monkeypatch.setattr(mask_codec, "train_codec_file", keep)
    assert train("codec", "--steps", steps, "--output", tmp_path / "c.npz").exit_code == 0
    assert (seen[0].steps, seen[0].warmup_steps) == (steps, warmup)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", ["codec.npz", "codec.json"])
def test_a_codec_that_is_there_is_kept_unless_the_user_says_otherwise(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    error = train("codec", "--output", tmp_path / "codec.npz").exception
    assert isinstance(error, ConfigError)
    assert f"{name}' was not written by this program" in str(error)
    assert (tmp_path / name).read_text() == "mine"
    again = train("codec", "--output", tmp_path / "codec.npz", "--overwrite").exception
    assert isinstance(again, AssertionError)  # it goes on to draw masks


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--resume"], "none began in runs/mask_codec.train; check --output, or leave --resume"),
        (["--steps", "0"], "steps of a codec training must be 1..10000000, got 0"),
        (["--seed", "-1"], "seed of a codec training must be 0..18446744073709551615, got -1"),
        (["--seed", str(2**64)], "seed of a codec training must be 0..18446744073709551615"),
        (["--output", "codec.txt"], "must end in .npz or .safetensors, got codec.txt"),
        (["--output", "file/codec.npz"], "a result needs a folder that can be written, got file"),
    ],
)
def test_what_a_codec_training_cannot_do_is_refused_before_any_mask_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], rule: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    error = train("codec", *arguments).exception
    assert isinstance(error, PaliGemmaError)
    assert rule in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tokenizer_is_trained_on_prompts_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two dozen scenes instead of the three thousand that take half a minute to draw.
    monkeypatch.setattr(start, "make_tokenizer", partial(start.make_tokenizer, num_scenes=24))
    path = tmp_path / "new" / "tokenizer.model"
    result = train("tokenizer", "--output", path)
    assert result.exit_code == 0, result.output
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.vocab.has_objects
    # Words of the prompts are pieces; those on signs are spelled.
    assert len(tokenizer.encode("detect circle")) < len("detect circle") / 2
    assert len(tokenizer.encode("STOP")) == 4


def test_a_tokenizer_without_a_place_is_refused_before_any_picture_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawing(*_: object) -> None:
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr(start, "draw_scene", drawing)
    (tmp_path / "file").write_text("")
    error = train("tokenizer", "--output", tmp_path / "file" / "tokenizer.model").exception
    assert isinstance(error, ConfigError)
    (tmp_path / "mine.model").symlink_to(tmp_path / "file")
    error = train("tokenizer", "--output", tmp_path / "mine.model").exception
    assert "was not written by this program" in str(error)


SHORT = Stage(
    name="first-112",
    window_px=112,
    total_steps=1,
    num_scenes=1,
    prompts_per_scene=1,
    lr=1e-3,
    warmup_steps=0,
)


# Of a line of metrics, what no clock decides.
_LEARNT = {"step", "loss", "text", "grad_norm", "param_norm"}


@pytest.fixture
def two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages of a step or two instead of three of thousands."""
    second = replace(SHORT, name="second-224", window_px=224, losses=LossWeights(edge=0.5))
    monkeypatch.setattr(training, "BUDGETS", {"cpu": (SHORT, second)})
    monkeypatch.setattr(training, "init_tiny", init_weights)


@pytest.mark.usefixtures("two_stages")
def test_all_stages_are_trained_and_the_model_loads_by_path(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in training.PART_FILES.values():
        shutil.copy(training.EMBEDDED / name, parts)
    output = tmp_path / "tiny"
    # One stage, then the same command for all: the first is not run again.
    words = ("tiny", "--output", output, "--parts", parts, "--quiet")
    assert train(*words, "--stage", "first-112").output == ""
    result = train(*words, "--workers", "2")
    assert result.exit_code == 0, result.output
    assert f"wrote {output / 'model'}" in result.stdout
    model = PaliGemma.from_pretrained(output / "model")
    assert model.settings.weigh_locations
    assert model.answer(np.zeros((50, 50, 3), np.uint8), "is there a star?", max_new_tokens=2)
    record = json.loads((output / "model" / "training.json").read_text())
    assert [one["name"] for one in record["stages"]] == ["first-112", "second-224"]
    assert record["stages"][1]["losses"]["edge"] == 0.5
    assert record["command"] == (
        "paligemma train tiny --budget cpu --precision float32 --device cpu --workers 2"
    )
    for stage, folder in zip(record["stages"], ("first-112", "second-224"), strict=True):
        run = json.loads((output / folder / "step_0000001" / "state.json").read_text())["run"]
        assert stage["seed"] == run["seed"]
        assert stage["wall_minutes"] >= 0
        assert [point["step"] for point in stage["curve"]] == [1]
    # Another codec makes it another training.
    path = parts / "mask_codec.safetensors"
    load_mask_codec(path).save(path, dtype="float32")
    error = train(*words).exception
    assert isinstance(error, PaliGemmaError)
    assert "but mask_codec changed" in str(error)


@pytest.mark.usefixtures("two_stages")
def test_a_training_that_is_killed_while_its_model_is_written_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    words = ("tiny", "--output", tmp_path, "--quiet")
    with monkeypatch.context() as during:
        during.setattr(training, "training_record", killed)
        assert train(*words).exit_code != 0
    # What a kill amid the weights leaves.
    (tmp_path / f".model.{uuid.uuid4().hex}" / "shard").mkdir(parents=True)
    result = train(*words)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / "model" / "training.json").is_file()


@pytest.mark.usefixtures("two_stages")
def test_a_stage_goes_on_with_a_stage_before_that_is_whole_and_of_the_same_parts(
    tmp_path: Path,
) -> None:
    output, parts = tmp_path / "tiny", tmp_path / "parts"
    assert train("tiny", "--output", output, "--stage", "first-112", "--quiet").exit_code == 0
    parts.mkdir()
    for name in training.PART_FILES.values():
        shutil.copy(training.EMBEDDED / name, parts)
    codec = parts / "mask_codec.safetensors"
    load_mask_codec(codec).save(codec, dtype="float32")
    second = ("tiny", "--output", output, "--stage", "second-224", "--quiet")
    error = train(*second, "--parts", parts).exception
    assert isinstance(error, PaliGemmaError)
    assert "share their parts, but mask_codec changed" in str(error)
    # One bit of a weight.
    stored = output / "first-112" / "step_0000001" / "model.safetensors"
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    error = train(*second).exception
    assert isinstance(error, PaliGemmaError)
    assert "model.safetensors is not as it was written" in str(error)
    assert not (output / "second-224").exists()


@pytest.mark.usefixtures("two_stages")
def test_the_command_run_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    kept: list[dict[str, Any]] = []
    for torch_seed in (1, 2):
        torch.manual_seed(torch_seed)  # Whatever drew from torch's generator before.
        output = tmp_path / str(torch_seed)
        words = ("tiny", "--output", output, "--stage", "first-112", "--quiet")
        assert train(*words).exit_code == 0
        found: dict[str, Any] = {
            str(path.relative_to(output)): path.read_bytes()
            for path in output.rglob("*.safetensors")
        }
        for path in output.rglob("metrics.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[str(path.relative_to(output))] = [
                {name: line[name] for name in line if name in _LEARNT} for line in lines
            ]
        kept.append(found)
    assert "first-112/step_0000001/objective.safetensors" in kept[0]
    assert kept[0]["first-112/metrics.jsonl"][0].keys() >= _LEARNT
    assert kept[0] == kept[1]


@pytest.mark.usefixtures("two_stages")
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--stage", "third"], "must be one of first-112, second-224, got 'third'"),
        (["--stage", "second-224"], "run it with --stage first-112"),
        (["--parts", "."], "lacks tokenizer.model and mask_codec.safetensors; make them with"),
        (["--device", "nowhere"], "the device must be one that torch finds here"),
        (["--device", "cuda:99"], "the device must be one that torch finds here"),
        (["--device", "meta"], "the device must be one that computes"),
    ],
)
def test_what_a_training_lacks_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], rule: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = train("tiny", *arguments).exception
    assert isinstance(error, ConfigError)
    assert rule in str(error)


@pytest.mark.usefixtures("two_stages")
def test_a_folder_of_another_model_is_not_where_the_finished_one_goes(tmp_path: Path) -> None:
    shutil.copytree(training.EMBEDDED, tmp_path / "model")
    (tmp_path / "model" / "training.json").unlink(missing_ok=True)
    error = train("tiny", "--output", tmp_path).exception
    assert isinstance(error, ConfigError)
    assert "which holds something else" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
