"""`paligemma eval` on runs that no model made: list, score, report, compare, calibrate, submit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_runs import QUIZ, answers, questions, write_run
from PIL import Image

from paligemma.example import Example, Prediction
from paligemma.tasks import catalog, published
from paligemma.tasks.published import PublishedScore
from paligemma.tasks.reading.pictures import FilePicture
from paligemma.tasks.task import PublishedKey

TRUTH = ["yes", "no", "two", "red"]
PUBLISHED = PublishedScore(
    measure="accuracy",
    value=70.5,
    std=0.25,
    model="pt-448 transfer",
    family="PaliGemma",
    size="3B",
    resolution=448,
    source="a table",
    split="val",
    is_test_server=False,
    kind="transfer",
)
HUB_ID = "google/paligemma-3b-ft-vqav2-448"


def submit(examples: Sequence[Example], said: Sequence[Prediction]) -> Any:
    return [{"question": e.id, "answer": a.text} for e, a in zip(examples, said, strict=True)]


def read_quiz(data: Path, split: str) -> Any:
    rows = json.loads((data / "quiz.json").read_text())
    return iter(questions(rows))


TASK = replace(
    QUIZ,
    reader=read_quiz,
    submission=submit,
    server_splits=("secret",),
    published=(
        PublishedKey(measure="accuracy", task="q", split="val", metric="acc", our_split="val"),
    ),
)


@pytest.fixture(autouse=True)
def one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of a quiz, with one published figure on its val split."""
    monkeypatch.setattr(catalog, "tasks", lambda: {"quiz": TASK})

    def figures(task: Any, *, our_split: str | None = None) -> list[PublishedScore]:
        return [PUBLISHED] if our_split in (None, "val") else []

    monkeypatch.setattr(published, "published", figures)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three of four right, the wrong one least sure; asked of a released model."""
    said = answers(["yes", "no", "two", "blue"], [0.9, 0.8, 0.9, 0.6])
    write_run(tmp_path / "run", questions(TRUTH), said, model=HUB_ID)
    return tmp_path / "run"


def test_a_page_of_predictions_shows_the_pictures_of_the_data(
    paligemma: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 48), (9, 90, 200)).save(tmp_path / "a.png")

    def read(data: Path, split: str) -> Any:
        picture = FilePicture(path=data / "a.png")
        return (replace(one, pictures=(picture,)) for one in questions(TRUTH))

    monkeypatch.setattr(catalog, "tasks", lambda: {"quiz": replace(TASK, reader=read)})
    said = [{"id": f"q{k}", "text": "yes"} for k in range(4)]
    path, page = tmp_path / "said.jsonl", tmp_path / "page.html"
    path.write_text("".join(json.dumps(one) + "\n" for one in said))
    done = paligemma("eval", "score", path, "--task", "quiz", "--data", tmp_path, "--html", page)
    assert done.status == 0
    assert page.read_text().count("data:image/jpeg") == 3  # of the three wrong answers


def test_list_shows_splits_measure_and_published_figures(paligemma: Any) -> None:
    done = paligemma("eval", "list")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == "answers"
    assert lines[1].split("  ") == [
        "",
        "quiz",
        "Quiz; val, test, secret (server); accuracy",
    ]
    assert lines[2].strip() == "PaliGemma 3B: 70.5 at 448"


def test_list_of_one_tells_files_decoding_traps_and_sources(paligemma: Any) -> None:
    out = paligemma("eval", "list", "quiz").out
    for part in (
        "secret: answered here, scored by a server",
        "greedy, at most 8 tokens",
        "  quiz.json\n      from nowhere",
        "  - Case counts.",
        "  accuracy, val\n    PaliGemma 3B     448: 70.5 +- 0.25  [1]\n  [1] a table",
    ):
        assert part in out


def test_list_as_json_holds_the_same(paligemma: Any) -> None:
    (row,) = paligemma("eval", "list", "--json").json["tasks"]
    assert row == paligemma("eval", "list", "quiz", "--json").json
    assert (row["splits"], row["server_splits"]) == (["val", "test"], ["secret"])
    assert row["asking"]["max_new_tokens"] == 8
    assert row["files"] == [{"path": "quiz.json", "source": "nowhere", "fields": ""}]
    assert row["published"][0]["value"] == 70.5
    assert row["published"][0]["our_splits"] == ["val"]


def test_an_unknown_benchmark_is_refused_with_what_is_near(paligemma: Any) -> None:
    for words in (("eval", "quizz"), ("eval", "list", "quizz")):
        done = paligemma(*words)
        assert done.status == 2
        assert done.err.strip().endswith("no benchmark is named 'quizz'; did you mean quiz?")


def test_the_help_of_a_benchmark_names_files_and_traps(paligemma: Any) -> None:
    out = paligemma("eval", "quiz", "--help").out
    assert "quiz.json  (nowhere)" in out
    assert "- Case counts." in out
    assert "[val|test|secret]" in out


def test_report_writes_scores_and_page_and_shows_published_beside_ours(
    paligemma: Any, run: Path
) -> None:
    done = paligemma("eval", "report", run)
    assert done.status == 0
    (line,) = [line for line in done.out.splitlines() if line.startswith("accuracy ")]
    # Three of four; 75.00 - 70.5 = 4.50.
    assert line.split() == ["accuracy", "75.00", "[25.00,", "100.00]", "70.50", "+4.50", "4"]
    assert "published accuracy 70.5 +- 0.25 over runs: PaliGemma 3B at 448 px" in done.out
    scores = json.loads((run / "scores.json").read_text())
    assert scores["score"] == 75.0
    assert scores["figures"][0]["difference"] == 4.5
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_report_as_json_is_alone_on_standard_output(paligemma: Any, run: Path) -> None:
    done = paligemma("eval", "report", run, "--json", "--no-html")
    assert done.json == {**json.loads((run / "scores.json").read_text()), "folder": str(run)}
    assert not (run / "report.html").exists()


def test_a_run_under_way_is_reported_as_such(paligemma: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", questions(TRUTH), answers(["yes", "no"]))
    out = paligemma("eval", "report", tmp_path / "run").out
    assert "2 of 4 examples" in out
    assert "2 of 4 examples have no answer yet and are left out" in out


def test_a_run_without_an_answer_is_refused(paligemma: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", questions(TRUTH), [])
    done = paligemma("eval", "report", tmp_path / "run")
    assert (done.status, "holds no answer to any of its 4 examples" in done.err) == (2, True)


def test_foreign_predictions_are_scored_with_everything_amiss_counted(
    paligemma: Any, tmp_path: Path
) -> None:
    (tmp_path / "quiz.json").write_text(json.dumps(TRUTH))
    rows = [("q0", "yes"), ("q0", "no"), ("q1", "no"), ("q9", "?")]
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps({"id": a, "text": b}) + "\n" for a, b in rows))
    done = paligemma("eval", "score", path, "--task", "quiz", "--data", tmp_path, "--json")
    # q0 and q1 are right, q2 and q3 count as empty answers.
    assert done.json["score"] == 50.0
    assert done.json["notices"] == [
        "2 of 4 examples have no prediction and count as empty answers: q2, q3",
        "1 predictions belong to no example and were left out: q9",
        "1 further lines repeat an id and were left out: q0",
    ]
    refused = paligemma(
        "eval", "score", path, "--task", "quiz", "--data", tmp_path, "--missing", "refuse"
    )
    assert refused.status == 2
    assert "misses 2 of 4: q2, q3" in refused.err


def test_nothing_that_a_file_holds_is_repeated_whole(paligemma: Any, tmp_path: Path) -> None:
    (tmp_path / "quiz.json").write_text(json.dumps(TRUTH))
    long = "x" * 600_000
    path = tmp_path / "theirs.jsonl"
    for row in ({"id": long, "text": "yes"}, {"id": "q0", "text": "", "error": long}, {long: long}):
        path.write_text(json.dumps(row))
        done = paligemma("eval", "score", path, "--task", "quiz", "--data", tmp_path)
        assert len(done.out) + len(done.err) < 3_000


def test_a_rule_of_scoring_is_taken_wherever_a_run_is_scored(
    paligemma: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(examples: Any, said: Any, *, words: str = "as_told") -> Any:
        swapped = {"as_told": said, "all_right": answers([one.references for one in examples])}
        return QUIZ.score(examples, swapped[words])

    task = replace(TASK, score=score, rules={"words": ("as_told", "all_right")})
    monkeypatch.setattr(catalog, "tasks", lambda: {"quiz": task})
    assert "words=as_told (the default), or all_right" in paligemma("eval", "list", "quiz").out
    rule = ("--rule", "words=all_right", "--json")
    report = paligemma("eval", "report", run, *rule).json
    assert report["score"] == 100.0
    assert report["run"]["rules"] == {"words": "all_right"}
    assert paligemma("eval", "report", run, "--json").json["score"] == 75.0
    scored = paligemma("eval", "score", run / "predictions.jsonl", "--task", "quiz", *rule).json
    assert (scored["score"], scored["notices"]) == (
        100.0,
        ["scored by the rule words=all_right instead of words=as_told"],
    )
    (first, *_) = paligemma("eval", "compare", run, run, *rule).json["differences"]
    assert first["first"] == first["second"] == 100.0
    refused = paligemma("eval", "report", run, "--rule", "words=none")
    assert refused.status == 2
    assert "must be one of words=as_told, words=all_right, got 'words=none'" in refused.err


def test_predictions_in_a_run_folder_need_no_data(paligemma: Any, run: Path) -> None:
    done = paligemma("eval", "score", run / "predictions.jsonl", "--task", "quiz", "--json")
    assert done.json["score"] == 75.0


def test_predictions_without_data_are_refused_before_anything_is_read(
    paligemma: Any, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text("")
    done = paligemma("eval", "score", tmp_path / "p.jsonl", "--task", "quiz")
    assert (done.status, "name their folder with --data" in done.err) == (2, True)


def test_compare_tells_which_run_is_better(paligemma: Any, run: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "b", questions(TRUTH), answers(TRUTH), settings={"model": "b"})
    page = tmp_path / "page.html"
    done = paligemma("eval", "compare", run, tmp_path / "b", "--html", page)
    assert "accuracy" in done.out
    assert "+25.00" in done.out
    assert "the second won 1, lost 0, tied 3" in done.out
    assert "blue" in page.read_text()
    assert paligemma("eval", "compare", run, tmp_path / "b", "--json").json["examples"] == {
        "won": 1,
        "lost": 0,
        "tied": 3,
    }


def test_calibrate_writes_beside_the_model(paligemma: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    done = paligemma("eval", "calibrate", run, "--model", tmp_path / "model")
    assert done.status == 0
    written = json.loads((tmp_path / "model" / "calibration.json").read_text())
    assert written["text"]["fitted_on"]["num_hits"] == 3
    assert "temperature" in done.out
    assert paligemma("eval", "calibrate", run, "--json").json["text"] == written["text"]


def test_a_precision_for_words_is_refused(paligemma: Any, run: Path) -> None:
    done = paligemma("eval", "calibrate", run, "--precision", 0.9)
    assert (done.status, "quiz is answered in words" in done.err) == (2, True)


def test_a_submission_holds_every_answer(paligemma: Any, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "submission.json"
    assert paligemma("eval", "submission", run, "-o", out).status == 0
    assert json.loads(out.read_text())[3] == {"question": "q3", "answer": "blue"}


def test_a_submission_of_a_cut_run_is_refused(paligemma: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", questions(TRUTH), answers(["yes"]))
    done = paligemma("eval", "submission", tmp_path / "run", "-o", tmp_path / "out.json")
    assert (done.status, "misses 3 of 4" in done.err) == (2, True)
    assert not (tmp_path / "out.json").exists()


def test_a_benchmark_without_a_server_names_those_with_one(
    paligemma: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"quiz": replace(TASK, submission=None), "other": replace(TASK, name="other")}
    monkeypatch.setattr(catalog, "tasks", lambda: known)
    done = paligemma("eval", "submission", run, "-o", tmp_path / "out.json")
    assert (done.status, "quiz has no test server; other have one" in done.err) == (2, True)


def vectors(tmp_path: Path, expected: float) -> Path:
    rows = [
        {"id": "v1", "metric": "exact_match", "predictions": ["a", "b"], "references": ["a", "c"]}
    ]
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps({"vectors": [{**rows[0], "expected": {"accuracy": expected}}]}))
    return path


def test_vectors_exits_with_one_where_a_number_differs(paligemma: Any, tmp_path: Path) -> None:
    done = paligemma("eval", "vectors", vectors(tmp_path, 0.75))
    assert done.status == 1
    assert done.out.splitlines()[0].split()[:2] == ["FAILED", "exact_match"]
    assert done.out.splitlines()[-1] == "0 of 1 vectors agree"


def test_the_help_of_the_group_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time\nstarted = time.process_time()\n"
        "from paligemma.cli import main\nmain(['eval', '--help'], standalone_mode=False)\n"
        "assert time.process_time() - started < 0.3\n"
        "print('heavy:', *({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
    for name in ("list", "score", "report", "compare", "calibrate", "submission", "vectors"):
        assert f"\n  {name} " in done.stdout
