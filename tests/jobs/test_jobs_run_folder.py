"""A run on disk: what comes back, what a kill may leave, what is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example, FoundObject, Prediction
from paligemma.jobs.run_folder import RunConfig, RunFolder, load_run

EXAMPLES = [
    Example(
        id="a",
        prefix="answer en  what?",
        pictures=(),
        references=["yes", "no"],
        slices={"type": "yesno"},
        unit="pair 1",
    ),
    Example(id="b", prefix="x", pictures=(), references=3, mark_box_yxyx=(0.0, 0.1, 0.5, 1.0)),
]
ANSWER = Prediction(
    id="a",
    text=" <loc0001>\n„déjà“ ",
    logprob=-0.1 - 0.2,
    objects=(
        FoundObject(
            label="a cat",
            box_yxyx=(0.1, 0.2, 1 / 3, 1.0),
            score=0.1 + 0.2,
            mask={"size": [2, 2], "counts": "04"},
        ),
        FoundObject(label="", box_yxyx=(0.0, 0.0, 1.0, 1.0)),
    ),
)
NOTHING = Prediction(id="b", text="", error="the picture 'b.png' cannot be read")


def _config(**settings: object) -> RunConfig:
    return RunConfig(task="toy", split="test", model="m", settings={"batch_size": 4, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", _config(), EXAMPLES)
    with folder:
        folder.append([ANSWER])
        folder.append([NOTHING])
    return folder


def test_everything_written_is_read_back_to_the_last_bit(folder: RunFolder) -> None:
    run = load_run(folder.path)
    assert run.predictions == {"a": ANSWER, "b": NOTHING}
    assert run.examples == EXAMPLES
    assert run.config == _config()
    assert run.missing == []
    assert run.answered() == (EXAMPLES, [ANSWER, NOTHING])


def test_a_line_cut_by_a_kill_is_dropped_and_overwritten(folder: RunFolder) -> None:
    path = folder.path / "predictions.jsonl"
    whole = path.read_bytes()
    for kept in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:kept])
        assert set(folder.predictions()) == {"a"}
    with folder:
        folder.append([NOTHING])
    assert path.read_bytes() == whole


def test_a_file_cut_in_its_first_line_begins_anew(folder: RunFolder) -> None:
    path = folder.path / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:30])
    with folder:
        assert path.read_bytes() == b""


def test_of_duplicates_the_first_counts(folder: RunFolder) -> None:
    with folder:
        folder.append([Prediction(id="a", text="later"), Prediction(id="a", text="last")])
    run = load_run(folder.path)
    assert run.predictions["a"] == ANSWER
    assert run.num_duplicates == 2


def test_lines_of_another_run_are_refused(folder: RunFolder) -> None:
    path = folder.path / "predictions.jsonl"
    stranger = {"key": "0123456789abcdef", "id": "a", "text": ""}
    path.write_text(path.read_text() + json.dumps(stranger) + "\n")
    with pytest.raises(DataError, match=r"line 3 belongs to another run: its key is \"0123"):
        folder.predictions()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "must be a JSON object, got list"),
        ('{"id": "b"}', "id 'b' and text of type NoneType"),
        ('{"id": "b", "text": "", "objects": [{"label": "x"}]}', "a box is"),
        ('{"id": "b", "text": "", "objects": 3}', "objects must be a list, got int"),
        ('{"id": "b", "text": "", "logprob": "low"}', "logprob must be a number, got 'low'"),
    ],
)
def test_a_damaged_line_is_named(folder: RunFolder, line: str, fault: str) -> None:
    path = folder.path / "predictions.jsonl"
    first = path.read_text().splitlines()[0]
    keyed = line.replace("{", f'{{"key": "{folder.config.key}", ', 1) if len(line) > 3 else line
    path.write_text(f"{first}\n{keyed}\n")
    with pytest.raises(DataError, match=fault):
        folder.predictions()


def test_going_on_with_other_settings_names_what_differs(folder: RunFolder) -> None:
    same = RunFolder.create(folder.path, _config(), [])
    assert same.examples() == EXAMPLES
    with pytest.raises(ConfigError, match="batch_size was 4, is 8; beams was null, is 2"):
        RunFolder.create(folder.path, _config(batch_size=8, beams=2), EXAMPLES)


def test_limit_and_command_may_differ_but_no_setting() -> None:
    one = RunConfig(task="t", split="s", model="m", sampling={"seed": 1}, command="x")
    two = RunConfig(task="t", split="s", model="other/path", sampling={"seed": 2})
    assert one.key == two.key
    assert one.key != RunConfig(task="t", split="s", model="m", settings={"seed": 1}).key


def test_an_edited_run_is_refused(folder: RunFolder) -> None:
    path = folder.path / "run.json"
    path.write_text(path.read_text().replace('"batch_size": 4', '"batch_size": 5'))
    with pytest.raises(DataError, match="must not be edited"):
        load_run(folder.path)


def test_two_writers_at_once_are_refused(folder: RunFolder) -> None:
    with folder, pytest.raises(ConfigError, match="another process is writing"):
        RunFolder(folder.path).__enter__()


def test_a_full_disk_costs_no_answer_that_was_kept(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = folder.path / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.splitlines(keepends=True)[0])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        said = r"failed \(No space left on device\); those before"
        with folder, pytest.raises(ConfigError, match=said):
            folder.append([NOTHING])
    path.write_bytes(path.read_bytes()[:-3])  # the disk took a part of the line
    with folder:
        folder.append([NOTHING])
    assert path.read_bytes() == whole
    assert not (folder.path / ".writer").exists()


def test_an_answer_takes_the_place_of_an_error_and_never_the_other_way(folder: RunFolder) -> None:
    other = Prediction(id="b", text="", error="it is damaged")
    with folder:
        folder.append([other, Prediction(id="a", text="", error="gone")])
    assert folder.predictions() == {"a": ANSWER, "b": other}
    answer = Prediction(id="b", text="yes")
    with folder:
        folder.append([answer, other])
    run = load_run(folder.path)
    assert (run.predictions, run.failed, run.num_duplicates) == ({"a": ANSWER, "b": answer}, [], 0)


def test_answers_are_never_added_through_a_link(folder: RunFolder, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.txt"
    stranger.write_text("a line without its end")
    (folder.path / "predictions.jsonl").unlink()
    (folder.path / "predictions.jsonl").symlink_to(stranger)
    with pytest.raises(ConfigError, match=r"predictions.jsonl, which cannot be written"):
        folder.__enter__()
    assert stranger.read_text() == "a line without its end"
    assert not (folder.path / ".writer").exists()


def test_a_folder_without_a_run_and_predictions_without_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds run.json, .* does not; name the folder"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("no object")
    with pytest.raises(DataError, match="must be a readable JSON file"):
        load_run(tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"predictions.jsonl but no run.json"):
        RunFolder.create(tmp_path, _config(), EXAMPLES)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a result needs a folder that can be written"):
        RunFolder.create(tmp_path / "file" / "run", _config(), EXAMPLES)


@pytest.mark.parametrize("name", ["examples.jsonl", "scores.json", "report.html", "scenes.png"])
def test_files_of_the_user_that_are_named_like_those_of_a_run_are_kept(
    tmp_path: Path, name: str
) -> None:
    mine = tmp_path / name
    mine.write_text('{"id": "mine"}\n')
    with pytest.raises(ConfigError, match=f"{name} but no run.json"):
        RunFolder.create(tmp_path, _config(), EXAMPLES)
    assert mine.read_text() == '{"id": "mine"}\n'


def test_a_run_that_was_killed_before_it_had_begun_begins_again(folder: RunFolder) -> None:
    for name in ("run.json", "predictions.jsonl"):
        (folder.path / name).unlink()
    assert RunFolder.create(folder.path, _config(), EXAMPLES).exists()
    assert load_run(folder.path).examples == EXAMPLES


def test_infinite_numbers_never_reach_the_file(folder: RunFolder) -> None:
    with folder:
        folder.append([Prediction(id="c", text="", logprob=float("-inf"))])
    assert folder.predictions()["c"].logprob is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", 5), ("data", 5), ("command", None), ("sampling", None), ("environment", [1])],
)
def test_a_record_of_another_kind_is_refused(folder: RunFolder, field: str, value: object) -> None:
    path = folder.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(DataError, match=rf"run.json: {field} is of the wrong kind"):
        load_run(folder.path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"id": 7, "prefix": "x", "references": 1}', "line 3: id is of the wrong kind, got 7"),
        ('{"id": "c", "prefix": "x", "references": 1, "slices": [1]}', "line 3: slices"),
        ('{"id": "a", "prefix": "x", "references": 1}', "line 3 must hold an id of its own"),
    ],
)
def test_a_damaged_example_is_named(folder: RunFolder, line: str, fault: str) -> None:
    with open(folder.path / "examples.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=fault):
        load_run(folder.path)
