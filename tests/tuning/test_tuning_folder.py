"""The folder of a fine-tuning: nothing of the user's is replaced, and one run writes at a time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_folder import write_random_tiny

from paligemma import PaliGemma
from paligemma.cli import main
from paligemma.one_writer import one_writer
from paligemma.tuning import finetune as module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("base") / "model", dtype="float32")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "a.png")
    row = {"image": "a.png", "prefix": "answer en what is it?", "suffix": "red"}
    for name in ("train.jsonl", "valid.jsonl"):
        (folder / name).write_text(json.dumps(row) + "\n")
    return folder


def train(data: Path, base: Path, output: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(
            ["train", "--data", str(data), "--model", str(base), "--output", str(output),
             "--steps", "1", "--batch-size", "1", "--rank", "2", "--quiet", *words]
        )  # fmt: skip
    return int(stopped.value.code or 0)


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file of a folder by its name; of a link where it leads."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def place(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    if kind == "link":
        path.symlink_to(folder / "elsewhere")
    elif kind == "file":
        path.write_text('{"mine": [1, 2]}')
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
@pytest.mark.parametrize(
    "name",
    ["recipe.json", "answers", "report.json", "train", "adapter", "model", "best", "report.html"],
)
def test_what_a_run_did_not_write_is_kept_and_refused_before_the_model_loads(
    name: str, kind: str, data: Path, base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(PaliGemma, "from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    output = tmp_path / "run"
    output.mkdir()
    place(output, name, kind)
    before = contents(output)
    assert train(data, base, output) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"holds {name} and no recipe.json of a run" in said
    assert contents(output) == before


def test_a_second_run_learns_who_writes_there_before_anything_is_read(
    data: Path, base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "read_rows", lambda *a: pytest.fail("read"))
    with one_writer(tmp_path / "run"):
        assert train(data, base, tmp_path / "run") == 2
    assert f"another process is writing to {tmp_path / 'run'}: process" in capsys.readouterr().err


def test_a_refused_recipe_leaves_that_of_the_run_as_it_was(
    data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, base, tmp_path / "run") == 0
    before = contents(tmp_path / "run")
    assert train(data, base, tmp_path / "run", "--lr", "0.5", "--seed", "7") == 2
    said = capsys.readouterr().err
    assert "lr was 0.0002, is 0.5" in said
    assert "seed was 0, is 7" in said
    assert contents(tmp_path / "run") == before
    assert train(data, base, tmp_path / "run") == 0


def test_a_full_disk_is_one_sentence_and_exit_code_1_and_the_run_goes_on(
    data: Path, base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real: Any = os.replace

    def refuses(name: str) -> Any:
        def replace(old: Any, new: Any) -> None:
            if Path(new).name == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(old, new)

        return replace

    for name in ("recipe.json", "step_0000001", "adapter", "report.json"):
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", refuses(name))
            assert train(data, base, tmp_path / "run") == 1
        said = [line for line in capsys.readouterr().err.splitlines() if "No space" in line]
        assert len(said) == 1, name
    assert train(data, base, tmp_path / "run") == 0


def test_a_merged_model_is_refused_a_taken_folder_before_the_base_loads(
    data: Path, base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train(data, base, tmp_path / "run") == 0
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    monkeypatch.setattr("paligemma.tuning.merging.OpenCheckpoint", lambda *a: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as stopped:
        main(["adapter", "merge", str(tmp_path / "run"), "--output", str(taken)])
    assert stopped.value.code == 2
    assert "holds config.json" in capsys.readouterr().err
    assert contents(taken) == {"config.json": b"{}"}


@pytest.mark.parametrize(
    "words",
    [
        ("--lr-of", "vision=0.1"),
        ("--lr-of", "decoder=nan"),
        ("--lr", "1e300"),
        ("--warmup", "5"),
        ("--full", "--freeze", ".*"),
        ("--full", "--wd", "1e300"),
        ("--label-smoothing", "1"),
        ("--save", "later"),
    ],
)
def test_options_that_do_not_fit_leave_no_run_behind(
    base: Path, data: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    rank = () if "--full" in words else ("--rank", "2")
    with pytest.raises(SystemExit) as stopped:
        main(
            ["train", "--data", str(data), "--model", str(base), "--steps", "2", "--quiet",
             "--output", str(tmp_path / "run"), *rank, *words]
        )  # fmt: skip
    assert stopped.value.code == 2
    assert not (tmp_path / "run").exists()


def test_a_run_that_breaks_before_its_first_checkpoint_gives_way_to_the_corrected_one(
    base: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    quick_looks: None,
) -> None:
    run = tmp_path / "run"
    assert train(data, base, run, "--alpha", "1e300") == 1
    assert "loss of step 1 is nan" in capsys.readouterr().err
    assert not list((run / "train").glob("step_*"))
    # Warm-up of all that an adapter has leaves nothing to the general one.
    assert train(data, base, run, "--warmup-of", "decoder=0.5") == 0
    assert len((run / "train" / "metrics.jsonl").read_text().splitlines()) == 1
    looks = (run / "train" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(look)["step"] for look in looks] == [0, 1]
    assert train(data, base, run) == 2


@pytest.mark.parametrize("edited", [None, b"", b'\xff\n[]\n{"step": 1}\n'])
def test_a_finished_run_whose_metrics_were_edited_is_reported_again(
    base: Path, data: Path, tmp_path: Path, quick_looks: None, edited: bytes | None
) -> None:
    run = tmp_path / "run"
    assert train(data, base, run) == 0
    metrics = run / "train" / "metrics.jsonl"
    metrics.unlink()
    if edited is not None:
        metrics.write_bytes(edited)
    assert train(data, base, run) == 0
    assert json.loads((run / "report.json").read_text())["steps_done"] == 1
