"""Labels looked at by a person: which rows, what is kept, and the rows that are learnt from."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from task_files import write_json_lines, write_picture
from toy_labeller import ToyLabeller, label_toys

from paligemma.cli import main
from paligemma.errors import ConfigError, DataError
from paligemma.jobs.labelling.folder import LabelFolder
from paligemma.review.choice import chosen, confidence
from paligemma.review.decisions import Reviewed, checked, taught
from paligemma.review.server import ReviewServer
from paligemma.tasks.own.files import read_own

NUM = 12
THING = {"label": "thing", "box_yxyx": [0.1, 0.2, 0.5, 0.6]}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Labels of a dozen pictures."""
    for k in range(NUM):
        write_picture(tmp_path / "in" / f"{k}.png", color=(20 * k, 0, 0))
    rows = [{"image": f"{k}.png"} for k in range(NUM)]
    label_toys(
        write_json_lines(tmp_path / "in" / "rows.jsonl", rows), tmp_path / "l", ToyLabeller()
    )
    return tmp_path / "l"


def reviewed_of(labels: Path, limit: int = NUM) -> Reviewed:
    records = chosen(LabelFolder(labels).records(), limit, "rows")
    return Reviewed(labels.parent / "reviewed", labels, records)


def found(*scores: float) -> dict[str, Any]:
    return {"detections": [{"score": score} for score in scores]}


def test_the_least_sure_rows_come_first() -> None:
    records = [
        {"row": 0, "logprob": -0.1, "num_tokens": 2, **found(0.9, 0.4)},
        {"row": 1, "logprob": -8.0, "num_tokens": 2, **found(0.8)},
        {"row": 2, "logprob": -2.4, "num_tokens": 2, **found()},  # exp(-1.2) = 0.30
        {"row": 3, "logprob": -0.2, "num_tokens": 2},  # exp(-0.1) = 0.90
    ]
    assert [round(confidence(one), 2) for one in records] == [0.4, 0.8, 0.3, 0.9]
    assert [one["row"] for one in chosen(records, 3)] == [2, 0, 1]
    drawn = [[one["row"] for one in chosen(records, 2, "random", seed)] for seed in range(8)]
    assert drawn[0] == [one["row"] for one in chosen(records, 2, "random", 0)]
    assert len(set(map(tuple, drawn))) > 1


def test_decisions_survive_a_kill_and_accepted_rows_are_learnt_from(labels: Path) -> None:
    reviewed = reviewed_of(labels)
    reviewed.decide(3, {"state": "accepted", "objects": [THING]})
    reviewed.decide(5, {"state": "rejected"})
    reviewed.decide(7, {"state": "rejected"})
    with open(reviewed.path / "decisions.jsonl", "ab") as file:
        file.write(b'{"row": 7, "sta')  # as a kill leaves it
    again = reviewed_of(labels)
    again.decide(7, {"state": "accepted", "objects": [THING, {**THING, "label": "other"}]})
    assert again.counts() == {"open": NUM - 3, "accepted": 2, "rejected": 1}
    assert again.write_rows() == 2
    examples = list(read_own(again.path / "train.jsonl", "train"))
    assert [one.prefix for one in examples] == ["detect thing", "detect thing ; other"]
    assert examples[0].targets == ("<loc0102><loc0205><loc0512><loc0614> thing",)
    assert examples[1].targets[0].count("<loc0102><loc0205><loc0512><loc0614>") == 2
    assert examples[1].targets[0].endswith(" other")
    assert examples[0].pictures[0].read(1 << 20)[0, 0, 0] == 60


def test_rows_of_an_earlier_choice_stay_among_those_that_are_learnt_from(labels: Path) -> None:
    reviewed_of(labels).decide(9, {"state": "accepted", "objects": [THING]})
    again = reviewed_of(labels, 4)  # rows 0 to 3 alone
    again.decide(1, {"state": "accepted", "objects": []})
    assert again.counts() == {"open": 3, "accepted": 2}
    assert again.write_rows() == 2
    examples = list(read_own(again.path / "train.jsonl", "train"))
    assert [one.pictures[0].read(1 << 20)[0, 0, 0] for one in examples] == [20, 180]
    assert [len(one.references["objects"]) for one in examples] == [0, 1]


def test_decisions_about_other_labels_are_not_taken_for_those_of_the_same_numbers(
    labels: Path,
) -> None:
    reviewed_of(labels).decide(3, {"state": "accepted", "objects": [THING]})
    other = labels.parent / "other"
    label_toys(labels.parent / "in" / "rows.jsonl", other, ToyLabeller(), prompt="detect cup")
    with pytest.raises(ConfigError, match="decisions about other labels"):
        reviewed_of(other)
    assert reviewed_of(labels).counts()["accepted"] == 1


def test_a_row_without_its_picture_is_left_out_with_a_warning(
    labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reviewed = reviewed_of(labels)
    for row in (2, 4):
        reviewed.decide(row, {"state": "accepted", "objects": [THING]})
    (labels.parent / "in" / "2.png").unlink()
    assert reviewed.write_rows() == 1
    assert "1 accepted rows are left out of train.jsonl, such as row 2: " in caplog.text


def test_frames_of_one_example_are_learnt_from_together(tmp_path: Path) -> None:
    for k in range(2):
        write_picture(tmp_path / "in" / f"{k}.png", color=(100 * k, 0, 0))
    rows = write_json_lines(tmp_path / "in" / "rows.jsonl", [{"image": ["0.png", "1.png"]}])
    label_toys(rows, tmp_path / "l", ToyLabeller())
    reviewed = reviewed_of(tmp_path / "l")
    reviewed.decide(0, {"state": "accepted", "objects": [THING]})
    reviewed.write_rows()
    (example,) = read_own(reviewed.path / "train.jsonl", "train")
    assert [int(one.read(1 << 20)[0, 0, 0]) for one in example.pictures] == [0, 100]


def test_a_full_disk_leaves_no_half_of_a_decision(
    labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviewed = reviewed_of(labels)
    reviewed.decide(2, {"state": "rejected"})

    def full(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 9)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left"):
            reviewed.decide(3, {"state": "rejected"})
    reviewed.decide(4, {"state": "rejected"})
    assert sorted(reviewed_of(labels).decisions) == sorted(reviewed.decisions) == [2, 4]


def test_a_damaged_decision_is_named(labels: Path) -> None:
    reviewed = reviewed_of(labels)
    reviewed.decide(3, {"state": "rejected"})
    with open(reviewed.path / "decisions.jsonl", "ab") as file:
        file.write(b'{"row": "4"}\n')
    with pytest.raises(DataError, match=r"decisions\.jsonl, line 2 is no decision"):
        reviewed_of(labels)


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ("accepted", "has a state"),
        ({"state": "maybe"}, "has a state"),
        ({"state": "accepted", "objects": 3}, "a list"),
        ({"state": "accepted", "objects": [{"label": "a"}]}, "a label and a box_yxyx"),
        ({"state": "accepted", "objects": [{**THING, "label": "a;b"}]}, "a label must be"),
        ({"state": "accepted", "objects": [{**THING, "label": "a\nb"}]}, "a label is one line"),
        ({"state": "accepted", "objects": [{**THING, "label": "\ud800"}]}, "a label is one line"),
        ({"state": "accepted", "objects": [{**THING, "label": "x" * 300}]}, "at most 256"),
        (
            {"state": "accepted", "objects": [{**THING, "box_yxyx": [0.5, 0, 0.5, 1]}]},
            "ymin < ymax",
        ),
    ],
)
def test_what_is_no_decision_is_refused(decision: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        checked(decision, {"row": 1, "detections": []})


def test_an_answer_in_words_is_corrected_as_text() -> None:
    record = {"row": 1, "prompt": "caption en", "text": "a cat"}
    kept = checked({"state": "accepted", "text": " a dog "}, record)
    assert taught(record, kept) == ("caption en", "a dog")
    for text in (" ", "\ud800", "a\0b"):
        with pytest.raises(DataError, match="characters of Unicode"):
            checked({"state": "accepted", "text": text}, record)


def test_a_mask_is_kept_until_its_box_is_moved() -> None:
    codes = "".join(f"<seg{k:03d}>" for k in range(16))
    record = {
        "row": 1,
        "prompt": "segment thing",
        "text": f"<loc0102><loc0205><loc0512><loc0614>{codes} thing",
        "detections": [THING],
    }
    box = [b / 1023 for b in (102, 205, 512, 614)]
    kept = checked({"state": "accepted", "objects": [{"label": "thing", "box_yxyx": box}]}, record)
    assert taught(record, kept) == ("segment thing", record["text"])
    renamed = {"label": "cup", "box_yxyx": box}
    kept = checked({"state": "accepted", "objects": [renamed]}, record)
    expected = ("segment thing ; cup", record["text"].replace("thing", "cup"))
    assert taught(record, kept) == expected
    moved = {"label": "thing", "box_yxyx": [0.0, *box[1:]]}
    kept = checked({"state": "accepted", "objects": [moved]}, record)
    assert taught(record, kept) == ("detect thing", "<loc0000><loc0205><loc0512><loc0614> thing")


@pytest.fixture
def server(labels: Path) -> Iterator[ReviewServer]:
    with ReviewServer(reviewed_of(labels)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: ReviewServer, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        data = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request("GET" if data is None else "POST", path, data, {**kind, **headers})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_the_server_shows_rows_and_keeps_decisions(server: ReviewServer) -> None:
    status, body = ask(server, "/rows")
    assert status == 200
    assert [one["row"] for one in json.loads(body)["rows"]] == list(range(NUM))
    record = json.loads(ask(server, "/rows/4")[1])["record"]
    assert record["image"] == "4.png"
    (server.reviewed.path / "shown.jpg").write_bytes(ask(server, "/pictures/4")[1])
    shown = np.asarray(Image.open(server.reviewed.path / "shown.jpg"))
    assert abs(int(shown[0, 0, 0]) - 80) < 4
    assert shown.shape == (427, 640, 3)  # 12x8 pixels are shown larger
    status, body = ask(server, "/decisions/4", {"state": "rejected"})
    assert json.loads(body)["counts"] == {"open": NUM - 1, "rejected": 1}


def test_no_other_page_may_frame_or_embed_the_review(server: ReviewServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", "/")
    reply = connection.getresponse()
    assert "frame-ancestors 'none'" in (reply.getheader("Content-Security-Policy") or "")
    assert reply.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    connection.close()


def test_other_hosts_forms_and_rows_are_refused(server: ReviewServer) -> None:
    decision = {"state": "rejected"}
    assert ask(server, "/rows", Host="evil.example:80")[0] == 403
    assert ask(server, "/decisions/4", decision, Host="evil.example:80")[0] == 403
    assert ask(server, "/decisions/4", decision, **{"Content-Type": "text/plain"})[0] == 415
    assert ask(server, "/decisions/99", decision)[0] == 400
    assert ask(server, "/rows/99")[0] == 404
    assert ask(server, "/../decisions.jsonl")[0] == 404
    assert ask(server, "/decisions/4", decision, **{"Content-Length": "9999999"})[0] == 413
    assert not server.reviewed.decisions


def test_a_browser_that_leaves_early_is_no_error(
    server: ReviewServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def left(*_: Any) -> None:
        raise ConnectionResetError

    monkeypatch.setattr("paligemma.review.server._Handler._send", left)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/rows/4")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change", [{"row": "x"}, {"detections": 5}, {"detections": [{"score": "high"}]}]
)
def test_a_damaged_label_is_named(labels: Path, change: dict[str, Any]) -> None:
    (file,) = labels.glob("labels-00000001*")
    record = json.loads(file.read_text().splitlines()[0])
    file.write_text(json.dumps(record | change) + "\n")
    result = CliRunner().invoke(main, ["review", str(labels), "--output", str(labels.parent / "r")])
    assert result.exit_code == 2
    assert "of the labels is damaged" in result.output


def test_the_program_writes_the_rows_when_it_is_stopped(labels: Path) -> None:
    out = labels.parent / "reviewed"
    words = ["review", labels, "--output", out, "--no-open", "--choose", "rows", "--limit", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "paligemma", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        port = re.search(r"5 rows at http://127\.0\.0\.1:(\d+)/", said)
        assert port is not None, said
        server: Any = type("Server", (), {"server_port": int(port[1])})
        assert ask(server, "/decisions/2", {"state": "accepted", "objects": [THING]})[0] == 200
        process.send_signal(signal.SIGINT)
        assert "1 accepted, 0 rejected, 4 open" in process.communicate(timeout=30)[0]
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    assert (out / "images" / "0000000002.png").exists()
    assert len((out / "train.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["nothing", "in"])
def test_a_folder_without_labels_is_named(labels: Path, name: str) -> None:
    words = ["review", labels.parent / name, "--output", labels.parent / "r", "--no-open"]
    result = CliRunner().invoke(main, [*map(str, words)])
    assert result.exit_code == 2
    assert "holds no batch.json" in result.output
    assert not (labels.parent / "r").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("PALIGEMMA_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


def test_boxes_have_their_names_and_a_lost_picture_is_a_sentence(
    server: ReviewServer, browser: Any
) -> None:
    from playwright.sync_api import expect

    server.reviewed.records[0]["detections"][0]["score"] = 0.5
    (server.reviewed.path.parent / "in" / "1.png").unlink()
    with browser.new_page() as page:
        page.goto(server.url)
        expect(page.locator("#names span")).to_have_text("thing 0.50")
        page.keyboard.press("e")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("cup")
        expect(page.locator("#names span")).to_have_text("cup")
        page.keyboard.press("Escape")
        expect(page.locator("#picture")).to_be_visible()
        page.keyboard.press("n")
        expect(page.locator("#unread")).to_contain_text("cannot be shown: ")
        expect(page.locator("#unread")).to_contain_text("1.png")
        expect(page.locator("#picture")).to_be_hidden()
        page.keyboard.press("n")
        expect(page.locator("#picture")).to_be_visible()
        expect(page.locator("#unread")).to_be_hidden()


def test_rows_are_decided_by_the_keyboard_alone(server: ReviewServer, browser: Any) -> None:
    from playwright.sync_api import expect

    with browser.new_page() as page:
        faults: list[str] = []
        page.on("console", lambda one: faults.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.url)
        place = page.locator("#place")
        expect(place).to_contain_text("1 of 12")
        page.keyboard.press("ArrowDown")  # moves the only box
        page.keyboard.press("b")
        page.keyboard.press("e")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("cup")
        page.keyboard.press("Enter")
        page.keyboard.press("a")
        expect(place).to_contain_text("2 of 12")
        page.keyboard.press("x")
        expect(place).to_contain_text("3 of 12")
        page.keyboard.press("d")
        page.keyboard.press("a")
        expect(place).to_contain_text("4 of 12")
    assert faults == []
    kept = server.reviewed.decisions
    assert [one["label"] for one in kept[0]["objects"]] == ["thing", "cup"]
    assert kept[0]["objects"][0]["box_yxyx"][0] == pytest.approx(0.105)
    assert kept[1]["state"] == "rejected"
    assert kept[2]["objects"] == []
