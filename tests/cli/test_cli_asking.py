"""The commands that answer: text for people, one JSON object for programs, overlays."""

from __future__ import annotations

import base64
import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image
from tiny_folder import DESK
from video_file import write_video

from paligemma import PaliGemma
from paligemma.cli.demo import PROMPTS
from paligemma.outputs import lettering
from paligemma.outputs import sheet as sheets
from paligemma.outputs.detections import Detections
from paligemma.outputs.masks import MaskRegion
from paligemma.outputs.rle import decode_rle
from paligemma.outputs.types import Detection, TextAnswer
from paligemma.pipeline import paligemma as pipeline

Run = Callable[..., Any]
SHORT = ("--max-new-tokens", "6")
CUT = "paligemma: 1 of 1 answers reached max_new_tokens = 6 and were cut there\n"
CONSTRAINED = ("--constrain", "--max-new-tokens", "26")


@pytest.mark.parametrize(
    ("args", "prompt"),
    [
        (("caption", DESK), "caption en"),
        (("caption", DESK, "--lang", "de", "--style", "describe"), "describe de"),
        (("answer", DESK, "how many?"), "answer en how many?"),
        (("read", DESK), "ocr"),
        (("run", DESK, "caption en"), "caption en"),
        (("generate", DESK, "detect star"), "detect star"),
    ],
)
def test_a_text_answer_is_one_json_object_on_standard_output(
    paligemma: Run, tiny_dir: Path, args: tuple[object, ...], prompt: str
) -> None:
    done = paligemma(*args, *SHORT, "--json")
    assert done.status == 0
    body = done.json
    assert body["model"] == str(tiny_dir)
    assert body["image"] == str(DESK)
    assert (body["width"], body["height"]) == (640, 480)
    assert body["prompt"] == prompt
    assert isinstance(body["text"], str)
    assert 0 <= body["score"] <= 1
    assert "max_new_tokens = 6" in done.err  # what is no answer goes to standard error


def test_detections_are_json_records_of_label_score_and_both_boxes(paligemma: Run) -> None:
    done = paligemma("detect", DESK, "digit ; circle", *CONSTRAINED, "--json")
    assert done.status == 0
    assert done.json["prompt"] == "detect digit ; circle"
    assert done.json["detections"]
    for record in done.json["detections"]:
        assert record["label"] in ("digit", "circle")
        assert 0 <= record["score"] <= 1
        y0, x0, y1, x1 = record["box_yxyx"]
        expected = (x0 * 640, y0 * 480, x1 * 640, y1 * 480)
        assert record["box_xyxy_px"] == pytest.approx(expected, abs=0.01)
    as_run = paligemma("run", DESK, "detect digit ; circle", *CONSTRAINED, "--json")
    assert as_run.json == done.json


def test_masks_are_json_run_lengths_of_the_size_of_the_picture(
    paligemma: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = MaskRegion(crop=np.ones((2, 3), bool), corner_xy=(5, 7), image_wh=(640, 480))
    item = Detection(label="star", box_yxyx=(0, 0, 0.5, 0.5), image_wh=(640, 480), region=region)
    whole = Detections(items=(item,), image_wh=(640, 480), text="...")
    monkeypatch.setattr(PaliGemma, "ask", lambda *args, **options: whole)
    (record,) = paligemma("segment", DESK, "star", "--json").json["detections"]
    assert record["mask"]["size"] == [480, 640]
    np.testing.assert_array_equal(decode_rle(record["mask"]), region.to_array())
    assert "mask 6 px" in paligemma("segment", DESK, "star").out


def test_several_pictures_give_a_line_each_or_a_list_of_results(
    paligemma: Run, tmp_path: Path
) -> None:
    other = tmp_path / "grey.png"
    Image.new("L", (30, 20), 128).save(other)
    lines = paligemma("read", DESK, other, *SHORT).out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(DESK), str(other)]
    body = paligemma("read", DESK, other, *SHORT, "--json").json
    assert [result["image"] for result in body["results"]] == [str(DESK), str(other)]
    assert body["results"][1]["width"] == 30


def test_options_of_decoding_reach_the_decoder(paligemma: Run) -> None:
    drawn = [
        paligemma("read", DESK, *SHORT, "--temperature", "2", "--seed", seed, "--json").json["text"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    done = paligemma("read", DESK, "--max-new-tokens", "1", "--beams", "2", "--json")
    assert done.json["text"] == ""  # a beam always ends its answer
    assert "cut there" not in done.err


def test_generate_streams_what_generate_as_json_returns(paligemma: Run) -> None:
    options = (*SHORT, "--temperature", "1", "--seed", "5")
    streamed = paligemma("generate", DESK, "caption en", *options)
    whole = paligemma("generate", DESK, "caption en", *options, "--json")
    assert streamed.out == whole.json["text"] + "\n"
    assert streamed.err == whole.err == CUT


def test_frames_are_one_example(paligemma: Run) -> None:
    done = paligemma("generate", DESK, DESK, "ocr", "--frames", *SHORT, "--json")
    assert done.json["images"] == [str(DESK), str(DESK)]
    assert (
        done.json["text"] + "\n" == paligemma("generate", DESK, DESK, "ocr", "--frames", *SHORT).out
    )


def test_a_frame_of_a_file_is_chosen_and_the_first_is_reported(
    paligemma: Run, tmp_path: Path
) -> None:
    pages = tmp_path / "pages.tiff"
    sheets = [Image.new("RGB", size) for size in ((20, 10), (21, 11), (22, 12))]
    sheets[0].save(pages, save_all=True, append_images=sheets[1:])
    first = paligemma("caption", pages, "--json", *SHORT)
    assert first.json["width"] == 20
    assert "has 3 frames, and frame 0 is read" in first.err
    second = paligemma("caption", pages, "--json", "--frame", 1, *SHORT)
    assert (second.json["width"], second.err) == (21, CUT)
    assert paligemma("caption", pages, "--frame", 3).status == 2
    together = paligemma("generate", pages, "caption en", "--frames", *SHORT)
    assert (together.status, together.err) == (0, CUT)


def test_frames_of_a_video_are_chosen_by_count_and_time(paligemma: Run, tmp_path: Path) -> None:
    pytest.importorskip("av")
    clip = tmp_path / "clip.mp4"
    write_video(clip, 20)
    first = paligemma("caption", clip, "--json", *SHORT)
    assert "is a video, and its first frame is read" in first.err
    texts = {
        choice: paligemma("caption", clip, "--json", "--frame", choice, *SHORT).json["text"]
        for choice in ("0", "0s", "even:2", "0.5s,1.5s")
    }
    assert first.json["text"] == texts["0"] == texts["0s"]
    assert texts["even:2"] == texts["0.5s,1.5s"]
    assert paligemma("caption", clip, "--frame", "9s").status == 2
    assert "even:8" in paligemma("caption", clip, "--frame", "two").err


def test_an_address_that_holds_the_picture_is_asked_about(paligemma: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    truth = paligemma("caption", path, "--json", *SHORT).json["text"]
    for source in (f"data:image/png;base64,{text}", text, f"file://{path}"):
        assert paligemma("caption", source, "--json", *SHORT).json["text"] == truth


def test_transparent_parts_show_the_background_that_is_named(
    paligemma: Run, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden.png"
    Image.new("RGBA", (20, 10), (9, 8, 7, 0)).save(hidden)
    overlay = tmp_path / "overlay.png"
    seen = []
    for background in ((), ("--background", "#0000ff"), ("--background", "none")):
        done = paligemma("caption", hidden, *background, "-o", overlay, *SHORT)
        assert ("transparent in places" in done.err) == (background[-1:] != ("none",))
        seen.append(Image.open(overlay).convert("RGB").getpixel((0, 0)))
        overlay.unlink()
    assert seen == [(255, 255, 255), (0, 0, 255), (9, 8, 7)]
    assert "a background is a colour" in paligemma("caption", DESK, "--background", "x").err


def test_overlays_are_written_for_objects_and_for_text(paligemma: Run, tmp_path: Path) -> None:
    for args in (
        ("detect", DESK, "digit", *CONSTRAINED),
        ("read", DESK, *SHORT),
        ("generate", DESK, "ocr", *SHORT),
    ):
        path = tmp_path / f"{args[0]}.png"
        done = paligemma(*args, "-o", path)
        assert done.status == 0
        with Image.open(path) as picture:
            assert picture.width == 640
            assert picture.height > 480  # the strip below
        assert f"wrote {path}" in done.err


def test_overlays_of_several_pictures_go_into_a_folder(paligemma: Run, tmp_path: Path) -> None:
    other = tmp_path / "grey.png"
    Image.new("L", (30, 20), 128).save(other)
    folder = tmp_path / "drawn"
    folder.mkdir()
    assert paligemma("read", DESK, other, *SHORT, "-o", folder).status == 0
    assert sorted(path.name for path in folder.iterdir()) == ["desk.png", "grey.png"]


def test_the_demo_asks_every_kind_of_question_and_writes_overlays(
    paligemma: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MAX_TEXT_TOKENS", 2)
    monkeypatch.setattr(pipeline, "MAX_OBJECT_TOKENS", 2)
    monkeypatch.chdir(tmp_path)
    assert len(paligemma("demo", "--json").json["answers"]) == len(PROMPTS)
    done = paligemma("demo")
    assert done.status == 0
    asked = [line[2:] for line in done.out.splitlines() if line.startswith("> ")]
    assert asked == list(PROMPTS)
    assert {prompt.split()[0] for prompt in asked} == {
        *("caption", "answer", "ocr", "detect", "segment")
    }
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "detect.png",
        "segment.png",
        "sheet.png",
    ]
    with Image.open(tmp_path / "demo" / "sheet.png") as sheet:
        # Boxes beside masks, words below.
        assert sheet.width > 2 * 640
        assert sheet.height > 480


def test_the_demo_writes_its_pictures_though_nobody_reads_its_answers(
    paligemma: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MAX_TEXT_TOKENS", 2)
    monkeypatch.setattr(pipeline, "MAX_OBJECT_TOKENS", 2)
    echo = click.echo

    def unread(text: object = None, *args: object, err: bool = False, **options: object) -> None:
        if not err:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        echo(text, *args, err=err, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("paligemma.cli.demo.click.echo", unread)
    done = paligemma("demo", "--output-dir", tmp_path)
    assert done.status == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "detect.png",
        "segment.png",
        "sheet.png",
    ]


def test_the_demo_finds_a_folder_in_the_place_of_a_picture_before_it_asks(
    paligemma: Run, tmp_path: Path
) -> None:
    (tmp_path / "sheet.png").mkdir()
    done = paligemma("demo", "--output-dir", tmp_path, "--overwrite")
    assert done.status == 2
    assert "sheet.png is one; name another --output-dir" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_the_sheet_of_the_demo_names_each_prompt_as_it_was_asked_in_letters_every_machine_has(
    paligemma: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MAX_TEXT_TOKENS", 2)
    monkeypatch.setattr(pipeline, "MAX_OBJECT_TOKENS", 2)
    monkeypatch.chdir(tmp_path)
    heads: list[str] = []
    searched: list[int] = []
    write = sheets.with_heads

    def note(picture: Image.Image, words: Sequence[str]) -> Image.Image:
        heads.extend(words)
        return write(picture, words)

    monkeypatch.setattr(sheets, "with_heads", note)
    # Fonts of the machine are looked for where Pillow's own lacks a letter.
    monkeypatch.setattr(lettering, "installed", lambda size_px: searched.append(size_px) or ())
    assert paligemma("demo").status == 0
    assert [prompt for head in heads for prompt in head.split(", ")] == [
        prompt for prompt in PROMPTS if prompt.startswith(("detect", "segment"))
    ]
    assert searched == []


def test_json_needs_nothing_but_the_standard_library_to_read(paligemma: Run) -> None:
    done = paligemma("caption", DESK, *SHORT, "--json")
    assert len(done.out.splitlines()) == 1
    assert list(json.loads(done.out)) == [
        *("model", "image", "width", "height", "prompt", "text", "score")
    ]


def test_a_calibration_makes_confidences_honest_and_leaves_the_rest_out(
    paligemma: Run, tmp_path: Path
) -> None:
    words = ("detect", DESK, "cat", *CONSTRAINED, "--json")
    plain = paligemma(*words).json["detections"]
    assert plain
    objects = {"temperature": 2.0, "default_threshold": 0.0, "thresholds": {}}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"format": 1, "objects": objects}))
    # Beside the model or by its own name.
    for named in (path, tmp_path):
        honest = paligemma(*words, "--calibration", named).json["detections"]
        # At temperature 2 odds become their root; those of a random model are some one to 10^5.
        assert [one["box_yxyx"] for one in honest] == [one["box_yxyx"] for one in plain]
        for before, after in zip(plain, honest, strict=True):
            assert before["score"] < 2e-5
            # Scores are written in six decimals.
            least, most = (max(before["score"] + off, 0.0) ** 0.5 for off in (-5e-7, 5e-7))
            assert 0.99 * least <= after["score"] <= 1.01 * most
    path.write_text(json.dumps({"format": 1, "objects": {**objects, "default_threshold": 1.0}}))
    kept = paligemma(*words, "--calibration", path).json["detections"]
    assert [one for one in kept if one.get("valid", True)] == []


def test_a_calibration_of_words_alone_is_refused_for_boxes(paligemma: Run, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"format": 1, "text": {"temperature": 2.0}}))
    done = paligemma("detect", DESK, "cat", *CONSTRAINED, "--calibration", path)
    assert (done.status, "holds nothing about boxes" in done.err) == (2, True)


def test_rules_of_objects_and_choices_reach_the_answer(paligemma: Run) -> None:
    drawn = ("detect", DESK, "star", "--constrain", "--temperature", "9", "--seed", "2", "--json")
    every = json.loads(paligemma(*drawn).out)["detections"]
    assert len(every) > 2
    done = paligemma(*drawn, "--max-objects", "2", "--no-repeats")
    assert json.loads(done.out)["detections"] == every[:2]
    done = paligemma("answer", DESK, "how many stars are there?", "--choices", "5..9")
    assert done.out.strip() in set("56789")
    done = paligemma("generate", DESK, "is it?", "--choices", "maybe ; perhaps not")
    assert done.out.strip() in {"maybe", "perhaps not"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("detect", DESK, "star", "--max-objects", "2"), "--max-objects is a rule"),
        (("run", DESK, "detect star", "--no-repeats"), "--no-repeats is a rule"),
        (("read", DESK, "--choices", "yes ; "), "has an empty answer"),
        (("read", DESK, "--choices", "9..1"), "9..1 is empty"),
        (("read", DESK, "--choices", "0.." + "9" * 20), "1 to 100000 answers"),
        (("read", DESK, "--choices", "\u65e5 ; \u672c"), "that the vocabulary has, got '\u65e5'"),
        (
            ("detect", DESK, "star ; \u65e5", "--constrain"),
            "that the vocabulary has, got ' \u65e5'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(map(str, value[2:])),
)
def test_rules_that_cannot_be_followed_are_refused(
    paligemma: Run, words: tuple[object, ...], said: str
) -> None:
    done = paligemma(*words)
    assert (done.status, said in done.err, done.out) == (2, True, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", DESK, "ocr", "--constrain"), "--constrain had no effect: the prompt asks"),
        (
            ("run", DESK, "ocr", "--max-overlap", "0.5"),
            "--max-overlap had no effect: the prompt asks for no boxes",
        ),
        (
            ("run", DESK, "ocr", "--constrain", "--threshold", "0.5"),
            "--constrain and --threshold had no effect: the prompt asks for no boxes",
        ),
        (("read", DESK, "--seed", "4"), "--seed had no effect: nothing is sampled"),
        (
            ("read", DESK, "--top-k", "5", "--temperature", "0", "--seed", "4"),
            "--top-k and --seed had no effect: at temperature 0 nothing is sampled",
        ),
        (("read", DESK, "--beams", "2", "--weigh-locations"), "--weigh-locations had no effect"),
        (("read", DESK, "--top-p", "1", "--weigh-locations"), "--weigh-locations had no effect"),
        (("run", DESK, "detect"), "the prompt names nothing to detect; write"),
        (("run", DESK, "segment ;;;"), "the prompt names nothing to segment; write"),
        (("generate", DESK, "detect ; "), "the prompt names nothing to detect; write"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(map(str, value[2:])),
)
def test_what_had_no_effect_is_said_in_one_line(
    paligemma: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], said: str
) -> None:
    monkeypatch.setattr(PaliGemma, "ask", lambda *args, **options: TextAnswer(text="a cat"))
    done = paligemma(*words, "--max-new-tokens", "2")
    assert done.status == 0
    (line,) = [line for line in done.err.splitlines() if "max_new_tokens" not in line]
    assert line.startswith(f"paligemma: {said}")


@pytest.mark.parametrize(
    "words",
    [
        ("read", DESK, "--top-k", "2", "--seed", "4"),
        ("read", DESK, "--best-of", "2", "--temperature", "1", "--seed", "4"),
        ("read", DESK, "--weigh-locations"),
        ("read", DESK, "--beams", "2", "--no-weigh-locations"),
        ("detect", DESK, "cat", "--constrain", "--threshold", "0.5"),
        ("detect", DESK, "cat", "--max-overlap", "0.5"),
        ("run", DESK, "<image>detect cat", "--constrain"),
    ],
    ids=lambda words: " ".join(map(str, words[2:])),
)
def test_options_with_an_effect_are_not_complained_about(
    paligemma: Run, words: tuple[object, ...]
) -> None:
    done = paligemma(*words, "--max-new-tokens", "2")
    assert (done.status, "no effect" in done.err) == (0, False)


def test_a_threshold_takes_effect_on_boxes_that_another_prompt_was_answered_by(
    paligemma: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Detections(items=(), image_wh=(1, 1))
    monkeypatch.setattr(PaliGemma, "ask", lambda *args, **options: found)
    assert paligemma("run", DESK, "where is it?", "--threshold", "0.2").err == ""
