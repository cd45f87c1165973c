"""Converting over a checkpoint while the process is killed, interrupted or out of room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from paligemma.cli import main
from paligemma.errors import CheckpointError
from paligemma.weights import save as save_module
from paligemma.weights.catalog import resolve
from paligemma.weights.doctor import diagnose, worst
from paligemma.weights.hashes import sha256
from paligemma.weights.load import load_model
from paligemma.weights.model_files import UNFINISHED_NAME
from paligemma.weights.save import convert, save_model

# Forks once for every call that changes the file system, and ends the child right before it, as
# kill -9 does.
SCRIPT = """
import os, shutil, sys
from pathlib import Path
from paligemma.weights.save import convert

source, before, place = map(Path, sys.argv[1:])

def end_at(number):
    left = iter(range(number - 1, -1, -1))
    def watched(call):
        def run(*args, **kwargs):
            if next(left, None) == 0:
                os._exit(9)
            return call(*args, **kwargs)
        return run
    for name in ("replace", "rename", "unlink", "fsync", "mkdir", "rmdir", "link"):
        setattr(os, name, watched(getattr(os, name)))

number, status = 0, 9
while status == 9:
    number += 1
    target = place / str(number) / "m"
    shutil.copytree(before, target)
    child = os.fork()
    if not child:
        end_at(number)
        convert(source, target, overwrite=True, max_shard_bytes=90_000)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(number, status)
"""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_killed_at_any_step_the_folder_is_old_or_new_or_refused(
    make_config, make_model, tmp_path: Path
) -> None:
    source, before, new = tmp_path / "source", tmp_path / "before", tmp_path / "new"
    save_model(make_model(make_config(2), seed=1), source)
    save_model(make_model(make_config(2), seed=2), before, max_shard_bytes=70_000)
    (before / "notes.txt").write_text("mine")
    shutil.copytree(before, new)
    convert(source, new, overwrite=True, max_shard_bytes=90_000)
    assert len(digests(new)) > 4
    place = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(source), str(before), str(place)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    number, status = map(int, run.stdout.split())
    assert (number > 8, status) == (True, 0)
    states = {"old": 0, "new": 0, "refused": 0}
    for folder in place.glob("*/m"):
        found = digests(folder)
        assert found["notes.txt"] == sha256(before / "notes.txt")
        if (folder / UNFINISHED_NAME).exists():
            with pytest.raises(CheckpointError, match="was being overwritten when"):
                resolve(folder)
            assert worst(diagnose(folder)) == "error"
            convert(source, folder, overwrite=True, max_shard_bytes=90_000)
            assert digests(folder) == digests(new)
            states["refused"] += 1
        else:
            assert found in (digests(before), digests(new))
            states["old" if found == digests(before) else "new"] += 1
    assert min(states.values()) > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_among_its_renames_the_folder_is_the_new_one(
    make_config, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    for name, seed in (("source", 1), ("target", 2)):
        save_model(make_model(make_config(1), seed=seed), tmp_path / name)
    save_model(make_model(make_config(1), seed=1), tmp_path / "new", max_shard_bytes=90_000)
    rename, calls = os.replace, []

    def interrupted(*args: object) -> None:
        calls.append(args)
        if len(calls) == 4:
            raise error
        rename(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        convert(tmp_path / "source", tmp_path / "target", overwrite=True, max_shard_bytes=90_000)
    assert digests(tmp_path / "target") == digests(tmp_path / "new")
    assert not list(tmp_path.rglob(".*"))


def test_interrupted_while_writing_nothing_is_left(
    make_config, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(make_model(make_config(1)), tmp_path / "a")

    def terminated(*_: object, **__: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(save_module, "hf_config", terminated)
    for target in ("a", "b"):
        with pytest.raises(SystemExit):
            convert(tmp_path / "a", tmp_path / target, overwrite=True)
    assert os.listdir(tmp_path) == ["a"]
    load_model(tmp_path / "a")


def test_converting_in_place_gives_what_converting_elsewhere_gives(
    make_config, make_model, tmp_path: Path
) -> None:
    save_model(make_model(make_config(1)), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", dtype="bfloat16")
    convert(tmp_path / "a", tmp_path / "a", dtype="bfloat16", overwrite=True)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("name", ["x" * 300, "ü" * 200, "y" * 230, "tiny/config.json/z"])
def test_a_name_of_any_length_is_written_or_refused_in_a_sentence(
    make_config, make_model, tmp_path: Path, name: str
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    model = make_model(make_config(1))
    if len(name.encode()) <= 255 and "/" not in name:
        load_model(save_model(model, tmp_path / name))
        return
    with pytest.raises(
        CheckpointError, match=r"must be writable .* choose another place"
    ) as caught:
        save_model(model, tmp_path / name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("size", ["1e300", "inf", "nan", "0", "-5"])
def test_a_shard_size_without_sense_is_a_sentence(tmp_path: Path, size: str) -> None:
    arguments = ["convert", "tiny", str(tmp_path / "a"), "--max-shard-gb", size]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--max-shard-gb" in result.output
    assert not (tmp_path / "a").exists()
