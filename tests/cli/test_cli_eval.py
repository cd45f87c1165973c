"""`paligemma eval scenes` on a training checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from paligemma.cli.eval import eval_group, evaluate_checkpoint, load_step
from paligemma.errors import CheckpointError, ConfigError
from paligemma.model import PaliGemmaModel
from paligemma.model.paligemma import init_weights
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tiny.start import tiny_config

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


def test_a_checkpoint_is_measured_at_the_size_of_its_position_table(step: Path) -> None:
    report = evaluate_checkpoint(step, TOKENIZER, None, limit=1)
    assert report.settings == {"limit": 1, "seed": 0, "size_px": 64}
    assert report.figure("segment", "miou").num == 1


def test_json_goes_to_standard_output_alone_and_files_to_the_folder(
    step: Path, tmp_path: Path
) -> None:
    arguments = ["scenes", "--model", str(step), "--limit", "2", "--tasks", "answer, ocr"]
    out = tmp_path / "run"
    result = CliRunner().invoke(eval_group, [*arguments, "--json", "--output", str(out)])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert set(report["tasks"]) <= {"answer", "ocr"}
    assert report == json.loads((out / "report.json").read_text())
    assert "4/4" in result.stderr


def test_the_table_is_shown_by_default(step: Path) -> None:
    arguments = ["scenes", "--model", str(step), "--limit", "1", "--tasks", "answer"]
    result = CliRunner().invoke(eval_group, arguments)
    assert "question answering accuracy" in result.stdout


def test_a_checkpoint_of_another_model_is_named(step: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="name a step_NNNNNNN folder"):
        load_step(tmp_path, TOKENIZER, None)


def test_an_output_that_is_no_folder_is_refused_before_anything_runs(
    step: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["scenes", "--model", str(step), "--output", str(tmp_path / "file" / "run")]
    result = CliRunner().invoke(eval_group, arguments)
    assert isinstance(result.exception, ConfigError)


def test_an_option_that_a_checkpoint_cannot_honour_is_refused(step: Path) -> None:
    arguments = ["scenes", "--model", str(step), "--mode", "bf16"]
    result = CliRunner().invoke(eval_group, arguments)
    assert "got mode; leave these options out" in str(result.exception)
