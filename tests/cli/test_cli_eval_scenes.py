"""`paligemma eval scenes` on a training checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from paligemma.cli.eval import eval_group
from paligemma.errors import CheckpointError, ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.model.paligemma import init_weights
from paligemma.processing.tokenizer import Tokenizer
from paligemma.scenes.things import sprite_file
from paligemma.tiny.start import tiny_config
from paligemma.tiny.step_folder import load_step

TOKENIZER = Path(__file__).parents[2] / "src/paligemma/models/tiny/tokenizer.model"


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the training loop leaves it, at 64 px with random weights."""
    folder = tmp_path_factory.mktemp("run") / "step_0000003"
    folder.mkdir()
    model = PaliGemmaModel(tiny_config(Tokenizer.from_file(TOKENIZER).vocab, 64))
    init_weights(model)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "state.json").write_text("{}")
    return folder


def scenes(step: Path, output: Path, *arguments: str) -> Result:
    words = ["scenes", "--model", str(step), "--output", str(output), *arguments]
    return CliRunner().invoke(eval_group, words)


def test_a_checkpoint_is_measured_at_the_size_of_its_position_table(
    step: Path, tmp_path: Path
) -> None:
    result = scenes(step, tmp_path, "--limit", "1", "--tasks", "segment")
    assert result.exit_code == 0, result.output
    (example,) = map(json.loads, (tmp_path / "examples.jsonl").read_text().splitlines())
    assert example["pictures"][0]["size_px"] == 64
    assert load_step(step).processor.image_size_px == 64


def test_json_goes_to_standard_output_alone_and_files_to_the_folder(
    step: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = scenes(step, out, "--limit", "2", "--tasks", "answer, ocr", "--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert body.pop("folder") == str(out)
    assert body == json.loads((out / "scores.json").read_text())
    assert {one["measure"].partition("_")[0] for one in body["figures"]} == {"answer", "ocr"}
    assert sorted(path.name for path in out.iterdir()) == [
        "examples.jsonl",
        "predictions.jsonl",
        "report.html",
        "run.json",
        "scenes.png",
        "scores.json",
    ]
    assert "4/4" in result.stderr
    with Image.open(out / "scenes.png") as sheet:
        assert sheet.width == 2 * 2 * 448 + 3 * 12


def test_the_table_is_shown_by_default_and_names_the_seed(step: Path, tmp_path: Path) -> None:
    arguments = ("--limit", "1", "--seed", "7", "--tasks", "answer", "--no-html")
    result = scenes(step, tmp_path, *arguments)
    assert "1 of 1 examples (seed 7)" in result.stdout
    assert "answer_accuracy" in result.stdout
    assert not (tmp_path / "report.html").exists()


def test_the_same_command_goes_on_and_another_is_refused_in_its_folder(
    step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["scenes", "--model", str(step), "--tasks", "ocr", "--no-html", "--limit"]
    for limit in ("3", "3", "4"):
        assert CliRunner().invoke(eval_group, [*words, limit]).exit_code == 0
    folders = sorted(Path("runs/eval").iterdir())
    assert len(folders) == 2
    refused = scenes(step, folders[0], "--tasks", "ocr", "--limit", "5")
    assert "num_examples was" in str(refused.exception)


def sprites(path: Path, color: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        file = BytesIO()
        Image.new("RGBA", (40, 30), color).save(file, "WEBP", lossless=True)
        archive.writestr("mine/cat.webp", file.getvalue())
    return path


def test_a_run_does_not_go_on_with_other_sprites_of_the_same_shapes(
    step: Path, tmp_path: Path
) -> None:
    out, path = tmp_path / "run", sprites(tmp_path / "mine.zip", "red")
    words = ("--things", str(path), "--limit", "4", "--tasks", "ocr", "--no-html")
    for _ in range(2):
        assert scenes(step, out, *words).exit_code == 0
        sprite_file.cache_clear()
    sprites(path, "blue")
    assert "examples was" in str(scenes(step, out, *words).exception)
    # Without things, other pictures are asked the same.
    assert "examples was" in str(scenes(step, out, *words[2:]).exception)


def test_a_page_shows_the_things_of_a_run_wherever_it_is_read(
    step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sprites(tmp_path / "mine.zip", "red")
    monkeypatch.chdir(tmp_path)
    words = ("--things", "mine.zip", "--limit", "1", "--tasks", "answer", "--no-html")
    assert scenes(step, tmp_path / "run", *words).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = CliRunner().invoke(eval_group, ["report", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "the page has no pictures" not in result.stderr
    assert "data:image/" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("number", ["0", "-5", "1025"])
def test_pictures_at_a_time_have_bounds_of_their_own(
    step: Path, tmp_path: Path, number: str
) -> None:
    result = scenes(step, tmp_path, "--batch-size", number)
    assert result.exit_code == 2
    assert f"{number} is not in the range 1<=x<=1024" in result.stderr


def test_a_checkpoint_of_another_model_is_named(step: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="name a step_NNNNNNN folder"):
        load_step(tmp_path)


def test_a_checkpoint_is_measured_with_the_parts_of_its_training(
    step: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(step, tmp_path / "step_0000004")
    own = hashlib.sha256(TOKENIZER.read_bytes()).hexdigest()
    run = {"tokenizer": "0" * 64, "mask_codec": "1" * 64}
    (copy / "state.json").write_text(json.dumps({"run": run}))
    result = scenes(copy, tmp_path / "run", "--limit", "1")
    assert "another tokenizer and another mask_codec" in str(result.exception)
    assert "--tokenizer and --mask-codec" in str(result.exception)
    (copy / "state.json").write_text(json.dumps({"run": {"tokenizer": own}}))
    assert load_step(copy).processor.image_size_px == 64
    (copy / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must be the record of a training"):
        load_step(copy)


def test_a_run_without_a_prompt_asks_for_more_pictures(step: Path, tmp_path: Path) -> None:
    path = sprites(tmp_path / "mine.zip", "red")
    words = ("--things", str(path), "--limit", "1", "--tasks", "ocr")
    error = scenes(step, tmp_path / "run", *words).exception
    assert isinstance(error, ConfigError)
    assert "no prompt of ocr is about pictures 0..0 of seed 0; raise the limit" in str(error)


def test_an_output_that_is_no_folder_is_refused_before_anything_runs(
    step: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = scenes(step, tmp_path / "file" / "run")
    assert isinstance(result.exception, ConfigError)


def test_an_option_that_a_checkpoint_cannot_honour_is_refused(step: Path, tmp_path: Path) -> None:
    result = scenes(step, tmp_path, "--mode", "bf16")
    assert "got mode; leave these options out" in str(result.exception)
