"""A benchmark driven by a stand-in: what is asked, resumed, refused and recorded."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from toy_task import TOY, Grey, ToyAnswerer, read_toy

from paligemma.errors import ConfigError, DataError
from paligemma.eval.options import EvalOptions
from paligemma.eval.runner import evaluate, read_again
from paligemma.example import Asking, Example, Prediction
from paligemma.jobs.run_folder import Run, load_run
from paligemma.tasks.task import NeededFile

OPTIONS = EvalOptions(batch_size=16)


def test_a_run_answers_every_example_once_and_records_how(tmp_path: Path) -> None:
    answerer = ToyAnswerer()
    run = evaluate(TOY, answerer, None, "val", OPTIONS, tmp_path, model="m", command="eval toy")
    assert [len(batch) for batch in answerer.batches] == [16] * 12 + [8]
    assert sorted(run.predictions) == sorted(one.id for one in run.examples)
    assert run.missing == []
    assert run.config.command == "eval toy"
    assert run.config.settings["batch_size"] == 16
    assert run.config.settings["model"] == "toy"
    assert run.config.settings["max_new_tokens"] == 4
    assert run.config.environment["python"].startswith("3.")
    again = load_run(tmp_path)
    assert again.predictions == run.predictions
    assert [one.references for one in again.examples] == [one.references for one in run.examples]


def test_reading_ahead_changes_nothing(tmp_path: Path) -> None:
    runs = [
        evaluate(TOY, ToyAnswerer(), None, "test", replace(OPTIONS, num_workers=n), tmp_path / n_)
        for n, n_ in ((0, "a"), (3, "b"))
    ]
    assert runs[0].predictions == runs[1].predictions
    lines = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in "ab"]
    assert lines[0] == lines[1]


def test_a_complete_run_asks_nothing_again(tmp_path: Path) -> None:
    evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, tmp_path)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    idle = ToyAnswerer()
    evaluate(TOY, idle, None, "test", OPTIONS, tmp_path)
    assert idle.batches == []
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_a_cut_batch_is_answered_whole_and_only_its_missing_lines_are_added(
    tmp_path: Path,
) -> None:
    full = ToyAnswerer()
    expected = evaluate(TOY, full, None, "test", OPTIONS, tmp_path / "a").predictions
    path = tmp_path / "a" / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    # The third batch keeps five of its sixteen lines, and half of a sixth.
    path.write_bytes(b"".join(lines[: 2 * 16 + 5]) + lines[2 * 16 + 5][:40])
    rest = ToyAnswerer()
    run = evaluate(TOY, rest, None, "test", OPTIONS, tmp_path / "a")
    assert rest.batches == full.batches[2:]
    assert path.read_bytes() == b"".join(lines)
    assert run.predictions == expected
    assert run.num_duplicates == 0


def test_what_another_writer_answered_meanwhile_is_not_asked_again(tmp_path: Path) -> None:
    class Late(ToyAnswerer):
        """Is overtaken by a whole run between the plan and the first answer."""

        def settings(self) -> dict[str, object]:
            if not list(tmp_path.iterdir()):
                evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, tmp_path)
            return dict(super().settings())

    late = Late()
    run = evaluate(TOY, late, None, "test", OPTIONS, tmp_path)
    assert (late.batches, run.num_duplicates, len(run.predictions)) == ([], 0, 200)


def test_of_three_that_begin_at_once_no_answer_is_doubled_and_none_is_misled(
    tmp_path: Path,
) -> None:
    starts = threading.Barrier(3)
    said = []

    def begin() -> None:
        starts.wait()
        try:
            evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, tmp_path / "run")
        except ConfigError as error:
            said.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    run = load_run(tmp_path / "run")
    assert (len(run.predictions), run.num_duplicates) == (200, 0)
    assert all("another process is writing to" in one for one in said)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["examples.jsonl", "predictions.jsonl", "run.json"]


def test_the_limit_is_a_seeded_sample_of_the_split(tmp_path: Path) -> None:
    def ids(seed: int, name: str) -> list[str]:
        options = replace(OPTIONS, limit=30, seed=seed)
        run = evaluate(TOY, ToyAnswerer(), None, "test", options, tmp_path / name)
        return [one.id for one in run.examples]

    first = ids(0, "a")
    assert len(first) == 30
    assert first == ids(0, "b") != ids(1, "c")
    assert first != [f"test/{k}" for k in range(30)]


def test_other_words_are_asked_and_belong_to_the_key(tmp_path: Path) -> None:
    options = replace(OPTIONS, prompt="{prefix} please")
    run = evaluate(TOY, ToyAnswerer(), None, "test", options, tmp_path)
    assert all(one.prefix.startswith("answer en ") for one in run.examples)
    assert all(one.prefix.endswith(" please") for one in run.examples)
    with pytest.raises(ConfigError, match=r"prompt was .* please\", is null"):
        evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, tmp_path)


@pytest.mark.parametrize(
    ("prompt", "prefix", "asked"),
    [
        ("{question}", "answer en {prefix} or {x}?", "{prefix} or {x}?"),
        (
            "{question}",
            "answer en  why choose from: which? choose from: a \t b",
            "why choose from: which?",
        ),
        ("ask {question} / {prefix}", "answer en why?", "ask why? / answer en why?"),
        ("{prefix}", "caption en", "caption en"),
    ],
)
def test_the_bare_question_can_be_asked(prompt: str, prefix: str, asked: str) -> None:
    example = Example(id="a", prefix=prefix, pictures=(), references=None)
    assert [one.prefix for one in EvalOptions(prompt=prompt).prompted([example])] == [asked]


def test_a_benchmark_without_question_refuses_its_place() -> None:
    example = Example(id="a", prefix="caption en", pictures=(), references=None)
    with pytest.raises(ConfigError, match=r"asks 'caption en'; write \{prefix\}"):
        list(EvalOptions(prompt="{question}").prompted([example]))


def test_changed_files_or_another_split_are_refused_in_the_folder_of_a_run(tmp_path: Path) -> None:
    evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, tmp_path)
    shorter = replace(TOY, reader=lambda data, split: list(read_toy(data, split))[:50])
    with pytest.raises(ConfigError, match="num_examples was 200, is 50"):
        evaluate(shorter, ToyAnswerer(), None, "test", OPTIONS, tmp_path)
    with pytest.raises(ConfigError, match='split was "test", is "val"'):
        evaluate(TOY, ToyAnswerer(), None, "val", OPTIONS, tmp_path)
    with pytest.raises(ConfigError, match="batch_size was 16, is 8"):
        evaluate(TOY, ToyAnswerer(), None, "test", replace(OPTIONS, batch_size=8), tmp_path)


def test_splits_and_data_folders_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="splits test, val, got 'train'"):
        evaluate(TOY, ToyAnswerer(), None, "train", OPTIONS, tmp_path)
    filed = replace(TOY, files=(NeededFile(path="a.json", source="somewhere"),))
    with pytest.raises(ConfigError, match="name it with --data"):
        evaluate(filed, ToyAnswerer(), None, "test", OPTIONS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_answers_in_another_order_are_refused(tmp_path: Path) -> None:
    class Turned(ToyAnswerer):
        def answer(self, examples: Sequence[Example], prepared: list[int]) -> list[Prediction]:
            return super().answer(examples, prepared)[::-1]

    with pytest.raises(DataError, match="an answerer must keep their order"):
        evaluate(TOY, Turned(), None, "test", OPTIONS, tmp_path)


def test_examples_that_cannot_be_asked_are_counted_and_end_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Blind(ToyAnswerer):
        def answer(self, examples: Sequence[Example], prepared: list[int]) -> list[Prediction]:
            made = super().answer(examples, prepared)
            return [
                replace(one, text="", error="no such file") if one.id.endswith("7") else one
                for one in made
            ]

    with caplog.at_level(logging.WARNING):
        run = evaluate(TOY, Blind(), None, "test", OPTIONS, tmp_path)
    assert (len(run.missing), len(run.failed)) == (0, 20)
    assert "20 of 200 examples could not be asked" in caplog.text
    assert "no such file" in caplog.text


def test_an_error_is_no_answer_and_is_asked_again(tmp_path: Path) -> None:
    class Blind(ToyAnswerer):
        """Cannot read some pictures, for a reason that may change."""

        def __init__(self, ids: set[str], error: str = "no such file") -> None:
            super().__init__()
            self.ids, self.error = ids, error

        def answer(self, examples: Sequence[Example], prepared: list[int]) -> list[Prediction]:
            made = super().answer(examples, prepared)
            return [
                replace(one, text="", error=self.error) if one.id in self.ids else one
                for one in made
            ]

    def lines() -> list[str]:
        return (tmp_path / "predictions.jsonl").read_text().splitlines()

    def run(answerer: ToyAnswerer) -> Run:
        return evaluate(TOY, answerer, None, "test", OPTIONS, tmp_path)

    run(Blind({"test/7", "test/90"}))
    first = lines()
    still = Blind({"test/7", "test/90"})
    run(still)
    # Both batches were asked, and their other answers and the same errors are not written twice.
    assert (len(still.batches), lines()) == (2, first)
    half = Blind({"test/90"}, "it is damaged")
    assert [one.error for one in run(half).failed] == ["it is damaged"]
    assert (len(half.batches), lines()[:200], len(lines())) == (2, first, 202)
    whole = ToyAnswerer()
    mended = run(whole)
    assert (len(whole.batches), mended.failed, mended.num_duplicates) == (1, [], 0)
    idle = ToyAnswerer()
    run(idle)
    assert idle.batches == []
    expected = evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, tmp_path / "b").predictions
    assert mended.predictions == expected


def test_pictures_of_single_examples_are_found_again(tmp_path: Path) -> None:
    evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, tmp_path)
    run = load_run(tmp_path)
    assert run.examples[7].pictures == ()
    found = read_again(TOY, run, ["test/7", "gone"])
    assert found["test/7"].pictures == (Grey(level=2),)
    assert list(found) == ["test/7"]
    described = json.loads((tmp_path / "examples.jsonl").read_text().splitlines()[7])
    assert described["pictures"] == [{"level": 2}]


def test_the_bar_tells_examples_done_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(TOY, ToyAnswerer(), None, "test", OPTIONS, tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "200/200" in shown
    assert "example/s" in shown


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"limit": 0}, "limit must be 1 or more, got 0"),
        ({"batch_size": 0}, r"batch_size must be 1..4096, got 0"),
        ({"num_workers": -1}, r"num_workers must be 0..64"),
        ({"num_beams": 65}, r"num_beams must be 1..64"),
        ({"max_new_tokens": 9000}, r"max_new_tokens must be 1..8192"),
        ({"resize_method": "best"}, "got 'best'"),
        ({"prompt": " "}, "a prompt must hold some text"),
        ({"prompt": "{questoin}"}, r"may hold \{prefix\}.*, got '\{questoin\}'"),
    ],
)
def test_options_out_of_bounds_are_refused_before_a_run(
    change: dict[str, object], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        EvalOptions(**change)  # type: ignore[arg-type]


def test_the_users_word_goes_before_the_benchmarks() -> None:
    changed = EvalOptions(num_beams=3, resize_method="bicubic")
    example = next(read_toy(Path(), "test"))
    asking = changed.asking_of(TOY)(example)
    assert (asking.num_beams, asking.resize_method, asking.max_new_tokens) == (3, "bicubic", 4)
    special = replace(TOY, asking_for=lambda one: Asking(text_len=9, max_new_tokens=7))
    asking = EvalOptions(num_beams=2).asking_of(special)(example)
    assert (asking.text_len, asking.max_new_tokens, asking.num_beams) == (9, 7, 2)


def test_how_to_ask_travels_to_other_processes() -> None:
    example = next(read_toy(Path(), "test"))
    asking_of = pickle.loads(pickle.dumps(EvalOptions(num_beams=3).asking_of(TOY)))
    assert asking_of(example) == replace(TOY.asking, num_beams=3)


def test_a_split_without_examples_is_named_with_its_folder(tmp_path: Path) -> None:
    task = replace(TOY, reader=lambda data, split: iter(()))
    with pytest.raises(DataError, match=r"^toy test in here must hold at least one example"):
        evaluate(task, ToyAnswerer(), "here", "test", EvalOptions(), tmp_path / "run")
