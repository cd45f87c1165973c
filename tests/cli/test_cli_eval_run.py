"""`paligemma eval docvqa` from files on disk to a page, with a random model."""

from __future__ import annotations

import html
import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from task_files import write_json_lines, write_picture

from paligemma.cli.eval_run import default_folder, task_of
from paligemma.cli.options import ModelChoice
from paligemma.eval.options import EvalOptions
from paligemma.example import Example
from paligemma.jobs.run_folder import RunConfig, RunFolder, load_run
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.rle import encode_rle
from paligemma.outputs.vqvae import load_mask_codec
from paligemma.tasks.catalog import find_task

NUM = 6


@pytest.fixture
def docvqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six questions about two pages, in the layout of the official download."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "docvqa"
    (data / "spdocvqa_images").mkdir(parents=True)
    for name, grey in (("a", 200), ("b", 90)):
        picture = Image.new("RGB", (40, 30), (grey, grey, grey))
        picture.save(data / "spdocvqa_images" / f"{name}.png")
    rows = [
        {
            "questionId": 100 + k,
            "question": f"what is {k}?",
            "image": f"documents/{'ab'[k % 2]}.png",
            "answers": [str(k)],
            "question_types": ["form"],
        }
        for k in range(NUM)
    ]
    (data / "val_v1.0_withQT.json").write_text(json.dumps({"data": rows}))
    asked = [{key: row[key] for key in ("questionId", "question", "image")} for row in rows]
    (data / "test_v1.0.json").write_text(json.dumps({"data": asked}))
    return data


def test_a_run_writes_every_answer_scores_and_page(paligemma: Any, docvqa: Path) -> None:
    done = paligemma("eval", "docvqa", "--data", docvqa, "--max-new-tokens", 4, "--json")
    assert done.status == 0, done.err
    body = done.json
    assert (body["task"], body["split"], body["headline"]) == ("docvqa", "val", "anls")
    assert (body["num_asked"], body["num_scored"]) == (NUM, NUM)
    folder = Path(body["folder"])
    assert folder.parent == Path("runs/eval")
    assert folder.name.startswith("docvqa-val-random-tiny-")
    assert sorted(path.name for path in folder.iterdir()) == [
        "examples.jsonl",
        "predictions.jsonl",
        "report.html",
        "run.json",
        "scores.json",
    ]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == NUM
    assert "what is 3?" in page
    assert body["run"]["settings"]["max_new_tokens"] == 4
    assert body["run"]["settings"]["resize_method"] == "bilinear-antialias"


def test_the_same_command_goes_on_where_it_was_cut(paligemma: Any, docvqa: Path) -> None:
    words = ("eval", "docvqa", "--data", docvqa, "--batch-size", 2, "--max-new-tokens", 4, "--json")
    first = paligemma(*words).json
    path = Path(first["folder"]) / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    # As a kill leaves it: half of the answers, the last one torn.
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    again = paligemma(*words)
    assert again.json == first
    assert "3/6" in again.err
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_the_noise_piece_is_chosen_where_all_classes_are_asked_for(
    paligemma: Any, tmp_path: Path
) -> None:
    pictures = tmp_path / "val2017"
    pictures.mkdir()
    Image.new("RGB", (40, 30)).save(pictures / "1.jpg")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
        ],
    }
    (tmp_path / "instances_val2017.json").write_text(json.dumps(content))
    words = ("eval", "coco-detection", "--data", tmp_path, "--max-new-tokens", 4, "--json")
    notices = {}
    for piece in ("<noise>", " star"):
        folder = tmp_path / piece.strip(" <>")
        done = paligemma(*words, "--noise-piece", piece, "--output", folder)
        assert done.status == 0, done.err
        assert done.json["run"]["settings"]["noise_piece"] == piece
        notices[piece] = done.json["notices"]
    assert any("'<noise>' is no single token" in one for one in notices["<noise>"])
    assert not any("single token" in one for one in notices[" star"])
    assert "--noise-piece" not in paligemma("eval", "docvqa", "--help").out


def test_limit_beams_and_prompt_are_settings_of_a_run_of_their_own(
    paligemma: Any, docvqa: Path
) -> None:
    words = ("eval", "docvqa", "--data", docvqa, "--max-new-tokens", 2, "--json", "--no-html")
    whole = paligemma(*words).json
    some = paligemma(*words, "--limit", 2, "--beams", 2, "--prompt", "answer en {prefix}").json
    assert some["folder"] != whole["folder"]
    assert some["num_scored"] == 2
    asked = (Path(some["folder"]) / "examples.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prefix"].startswith("answer en what is ") for line in asked)
    assert some["run"]["settings"]["num_beams"] == 2
    assert not (Path(some["folder"]) / "report.html").exists()


def test_another_run_in_the_folder_is_refused_by_what_differs(paligemma: Any, docvqa: Path) -> None:
    words = ("eval", "docvqa", "--data", docvqa, "--output", "mine", "--no-html")
    assert paligemma(*words, "--max-new-tokens", 2).status == 0
    done = paligemma(*words, "--max-new-tokens", 3)
    assert done.status == 2
    assert "max-new-tokens was 2, is 3" in done.err.replace("_", "-")


def test_answers_to_a_server_split_become_a_submission(paligemma: Any, docvqa: Path) -> None:
    words = ("eval", "docvqa", "--data", docvqa, "--split", "test", "--output", "mine")
    done = paligemma(*words, "--max-new-tokens", 2)
    assert done.status == 0
    assert "only a server has the answers of docvqa test" in done.err
    assert paligemma("eval", "submission", "mine", "-o", "out.json").status == 0
    rows = json.loads(Path("out.json").read_text())
    assert [row["questionId"] for row in rows] == [100 + k for k in range(NUM)]


def test_missing_data_is_named_before_a_model_is_loaded(
    paligemma: Any, docvqa: Path, tmp_path: Path
) -> None:
    none = paligemma("eval", "docvqa", "--model", "no/such")
    assert none.status == 2
    assert "docvqa reads its files from a folder, got none" in none.err
    assert "or its parquet copy lmms-lab/DocVQA" in none.err
    empty = paligemma("eval", "docvqa", "--model", "no/such", "--data", tmp_path / "nowhere")
    assert empty.status == 2
    assert f"there is no {tmp_path / 'nowhere'}; it must hold val_v1.0_withQT.json" in empty.err
    assert "rrc.cvc.uab.es" in empty.err
    (docvqa / "val_v1.0_withQT.json").write_text('{"data": []}')
    bare = paligemma("eval", "docvqa", "--model", "no/such", "--data", docvqa)
    assert bare.status == 2
    assert f"docvqa val in {docvqa} must hold at least one example, got none" in bare.err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--limit", 0), "limit must be 1 or more, got 0"),
        (("--batch-size", 0), "batch_size must be 1..4096, got 0"),
        (("--split", "nowhere"), "'nowhere' is not one of 'val', 'train', 'test'"),
        (("--prompt", " "), "a prompt must hold some text"),
        (("--prompt", "{question}"), "asks 'what is 0?'; write {prefix} for its own words"),
    ],
)
def test_options_out_of_bounds_are_refused(
    paligemma: Any, docvqa: Path, option: tuple[str, object], words: str
) -> None:
    done = paligemma("eval", "docvqa", "--data", docvqa, *option)
    assert (done.status, words in done.err) == (2, True), done.err


def test_examples_that_could_not_be_asked_are_named_and_asked_again(
    paligemma: Any, docvqa: Path
) -> None:
    damaged = docvqa / "spdocvqa_images" / "b.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no picture")
    words = (
        "eval",
        "docvqa",
        "--data",
        docvqa,
        "--max-new-tokens",
        2,
        "--json",
        "--output",
        "mine",
    )
    done = paligemma(*words)
    assert done.status == 1
    (notice,) = done.json["notices"]
    assert notice.startswith(
        "3 of 6 examples could not be asked and count as empty answers (101, 103, 105), such as "
        "101: "
    )
    assert [one["id"] for one in done.json["failed"]] == ["101", "103", "105"]
    assert "3 of 6 examples could not be asked, more than the share of 0.01" in done.err
    assert "could not be asked" in Path("mine/report.html").read_text()
    allowed = paligemma(*words, "--max-failed", 0.5)
    assert (allowed.status, allowed.json["failed"]) == (0, done.json["failed"])
    damaged.write_bytes(whole)
    mended = paligemma(*words)
    assert (mended.status, mended.json["notices"], mended.json["failed"]) == (0, [], [])
    assert mended.json["num_scored"] == NUM


def test_the_score_is_shown_where_its_page_cannot_be_written(paligemma: Any, docvqa: Path) -> None:
    (Path("mine") / "report.html" / "in the way").mkdir(parents=True)
    words = ("eval", "docvqa", "--data", docvqa, "--max-new-tokens", 2, "--output", "mine")
    for command in (words, ("eval", "report", "mine")):
        done = paligemma(*command, "--json")
        assert done.status == 2
        assert done.json["num_scored"] == NUM
        assert "got mine/report.html (Is a directory)" in done.err
    names = sorted(path.name for path in Path("mine").iterdir())
    assert names == [
        "examples.jsonl",
        "predictions.jsonl",
        "report.html",
        "run.json",
        "scores.json",
    ]


def test_ctrl_c_says_how_to_go_on(
    paligemma: Any, docvqa: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunFolder.append

    def stopped(self: RunFolder, predictions: Any) -> None:
        append(self, predictions)
        raise KeyboardInterrupt

    words = ("eval", "docvqa", "--data", docvqa, "--max-new-tokens", 2, "--batch-size", 4)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "append", stopped)
        done = paligemma(*words)
    assert done.status == 130
    assert f"paligemma eval docvqa --data {docvqa} --max-new-tokens 2 --batch-size 4" in done.err
    again = paligemma(*words, "--json")
    assert (again.status, again.json["num_scored"]) == (0, NUM)
    assert "4/6" in again.err


def test_a_submission_without_some_answers_says_so(paligemma: Any, docvqa: Path) -> None:
    (docvqa / "spdocvqa_images" / "b.png").unlink()
    words = ("eval", "docvqa", "--data", docvqa, "--split", "test", "--output", "mine")
    assert paligemma(*words, "--max-new-tokens", 2).status == 1
    done = paligemma("eval", "submission", "mine", "-o", "out.json")
    assert done.status == 0
    assert "3 answers are empty because their examples could not be asked: 101, 103" in done.err


def test_where_no_picture_is_found_nothing_is_asked(paligemma: Any, docvqa: Path) -> None:
    pictures = docvqa / "spdocvqa_images"
    pictures.rename(docvqa / "elsewhere")
    pictures.mkdir()
    words = ("eval", "docvqa", "--data", docvqa, "--output", "mine", "--max-new-tokens", 2)
    done = paligemma(*words, "--model", "no/such")
    assert done.status == 2
    assert f"needs the pictures of docvqa val in {docvqa}, but none of the first 6" in done.err
    assert f"no picture 'a.png' lies in {pictures} or a folder inside" in done.err
    assert not Path("mine").exists()
    # Unpacked once more than they should be, and under other suffixes.
    (docvqa / "elsewhere").rename(pictures / "spdocvqa_images")
    for one in list(pictures.rglob("*.png")):
        one.rename(one.with_suffix(".PNG"))
    assert paligemma(*words).status == 0


def test_a_name_that_leaves_the_data_folder_is_never_read(
    paligemma: Any, docvqa: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    path = docvqa / "val_v1.0_withQT.json"
    table = json.loads(path.read_text())
    (docvqa / "spdocvqa_images").rename(docvqa / "documents")
    (docvqa / "spdocvqa_images").mkdir()
    (docvqa / "documents").rename(docvqa / "spdocvqa_images" / "documents")
    for row, name in zip(
        table["data"], ("../../secret.png", f"{tmp_path}/secret.png"), strict=False
    ):
        row["image"] = name
    path.write_text(json.dumps(table))
    words = ("eval", "docvqa", "--data", docvqa, "--output", "mine", "--max-new-tokens", 2)
    done = paligemma(*words, "--json")
    assert (done.status, [one["id"] for one in done.json["failed"]]) == (1, ["100", "101"])
    assert all("a picture must lie below" in one["error"] for one in done.json["failed"])


def test_a_folder_is_named_after_the_command() -> None:
    task = find_task("docvqa")

    def name(model: str, **options: Any) -> str:
        choice = ModelChoice(name=model, options={})
        return default_folder(task, "val", choice, Path("d"), EvalOptions(**options)).name

    one = name("google/paligemma-3b-ft-docvqa-896")
    assert one.startswith("docvqa-val-paligemma-3b-ft-docvqa-896-")
    assert len(one.rpartition("-")[2]) == 8
    assert one == name("google/paligemma-3b-ft-docvqa-896")
    assert one != name("google/paligemma-3b-ft-docvqa-896", limit=5)
    assert name("../we ird/..").startswith("docvqa-val-model-")


def test_the_page_of_drawn_scenes_shows_the_pictures_that_were_asked(
    paligemma: Any, tmp_path: Path
) -> None:
    words = ("--limit", 2, "--seed", 3, "--tasks", "answer", "--output", tmp_path / "run")
    assert paligemma("eval", "scenes", *words).status == 0
    task = task_of(load_run(tmp_path / "run"))
    first = next(iter(task.read(tmp_path, "heldout")))
    assert (first.pictures[0].seed, first.id.split("/")[1]) == (3, "1003000000")
    done = paligemma("eval", "report", tmp_path / "run")
    assert done.status == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2


def test_ids_that_come_twice_in_the_data_are_refused_by_run_and_score_alike(
    paligemma: Any, docvqa: Path
) -> None:
    path = docvqa / "val_v1.0_withQT.json"
    table = json.loads(path.read_text())
    table["data"].append(table["data"][0])
    path.write_text(json.dumps(table))
    Path("theirs.jsonl").write_text('{"id": "100", "text": "0"}')
    scored = paligemma("eval", "score", "theirs.jsonl", "--task", "docvqa", "--data", docvqa)
    run = paligemma("eval", "docvqa", "--data", docvqa)
    for done in (scored, run):
        assert (done.status, "'100' occurs twice; remove the copy" in done.err) == (2, True)


def test_the_page_of_scored_predictions_has_the_command_that_scores_them_again(
    paligemma: Any, docvqa: Path
) -> None:
    Path("theirs.jsonl").write_text('{"id": "100", "text": "0"}')
    words = ["eval", "score", "theirs.jsonl", "--task", "docvqa", "--split", "val"]
    words += ["--data", str(docvqa), "--html", "page.html"]
    assert paligemma(*words).status == 0
    page = html.unescape(Path("page.html").read_text())
    assert shlex.join(["paligemma", *words]) in page


def test_a_notice_on_the_data_is_said_once_a_command(paligemma: Any, tmp_path: Path) -> None:
    """They are looked at before a model loads, and read again when it is asked."""
    image = write_picture(tmp_path / "own" / "a.png")
    row = {"image": str(image.absolute()), "prefix": "answer en what?", "suffix": "a cat"}
    write_json_lines(tmp_path / "own" / "test.jsonl", [row])
    words = ("eval", "own", "--data", tmp_path / "own", "--split", "test", "--no-html")
    for name in ("one", "two"):
        done = paligemma(*words, "--output", tmp_path / name)
        assert (done.status, done.err.count("which is taken to be a.png")) == (0, 1)


def test_masks_of_another_program_count_for_own_rows(paligemma: Any, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.jsonl"
    mask = np.zeros((8, 12), bool)
    mask[:4, :6] = True
    write_picture(tmp_path / "own" / "a.png")
    suffix = "<loc0000><loc0000><loc0512><loc0512> cat"
    row = {"image": "a.png", "prefix": "segment cat", "suffix": suffix, "masks": [encode_rle(mask)]}
    write_json_lines(tmp_path / "own" / "test.jsonl", [row])
    found = {"label": "cat", "box_yxyx": [0, 0, 0.5, 0.5], "score": 0.9}
    words = ("eval", "score", theirs, "--task", "own", "--split", "test", "--json")
    for more, measures in (({"mask": encode_rle(mask)}, {"segment_miou": 100.0}), ({}, {})):
        said = {"id": "test/1", "text": "", "objects": [{**found, **more}]}
        write_json_lines(theirs, [said])
        figures = paligemma(*words, "--data", tmp_path / "own").json["figures"]
        scores = {one["measure"]: one["value"] for one in figures}
        assert scores["detect_ap50"] == 100.0
        assert {name: scores[name] for name in scores if name == "segment_miou"} == measures


# Masks that somebody else's answers only spell


def referring_run(folder: Path, codec: Path) -> tuple[np.ndarray, str]:
    """Begins a run of one RefCOCO sentence; the mask that is true and the text that spells it."""
    text = "<loc0256><loc0256><loc0767><loc0767>" + "".join(f"<seg{k:03d}>" for k in range(16))
    spelt = to_detections(parse_objects(text), (40, 20), codec=load_mask_codec(codec))
    mask = spelt.items[0].mask
    assert mask is not None
    box = [0.25, 0.25, 0.75, 0.75]
    references = {"box_yxyx": box, "mask": encode_rle(mask), "ann_id": 1}
    example = Example(id="1-1", prefix="the dog", pictures=(), references=references, unit="5")
    RunFolder.create(folder, RunConfig(task="refcoco", split="val", model="m"), [example])
    return mask, text


def test_masks_that_a_text_spells_are_decoded_with_a_codec(paligemma: Any, tmp_path: Path) -> None:
    codec = Path(str(resources.files("paligemma"))) / "models/tiny/mask_codec.safetensors"
    mask, text = referring_run(tmp_path / "run", codec)
    assert 0 < mask.sum() < mask.size
    file = tmp_path / "run" / "theirs.jsonl"
    file.write_text(json.dumps({"id": "1-1", "text": text + " dog"}) + "\n")
    words = ("eval", "score", file, "--task", "refcoco", "--json")
    refused = paligemma(*words)
    assert refused.status == 2
    assert "name the codec with --mask-codec, or add the run lengths" in refused.err
    done = paligemma(*words, "--mask-codec", codec)
    assert done.status == 0, done.err
    assert (done.json["headline"], done.json["score"]) == ("miou", 100.0)
    assert len(done.json["run"]["settings"]["mask_codec"]) == 16
    # Objects that came beside the text count as they came.
    nothing = {"label": "", "box_yxyx": [0, 0, 1, 1], "mask": encode_rle(np.zeros((20, 40), bool))}
    file.write_text(json.dumps({"id": "1-1", "text": text, "objects": [nothing]}) + "\n")
    assert paligemma(*words, "--mask-codec", codec).json["score"] == 0.0


def test_objects_beside_an_empty_text_count(paligemma: Any, tmp_path: Path) -> None:
    codec = Path(str(resources.files("paligemma"))) / "models/tiny/mask_codec.safetensors"
    mask, text = referring_run(tmp_path / "run", codec)
    file = tmp_path / "run" / "theirs.jsonl"
    right = {"label": "dog", "box_yxyx": [0.25, 0.25, 0.75, 0.75]}

    def score(text: str, *objects: dict[str, Any]) -> tuple[dict[str, float], str]:
        file.write_text(json.dumps({"id": "1-1", "text": text, "objects": objects}) + "\n")
        done = paligemma("eval", "score", file, "--task", "refcoco", "--json")
        assert done.status == 0, done.err
        body = done.json
        figures = {one["measure"]: one["value"] for one in body["figures"]}
        return figures, " ".join(body["notices"])

    whole, notices = score("", {**right, "mask": encode_rle(mask)})
    assert (whole["miou"], whole["boxacc_0.75"], whole["invalid"], notices) == (100, 100, 0, "")
    assert score("the dog", {**right, "mask": encode_rle(mask)})[0] == whole
    # Boxes alone have no figure of masks, rather than one of 0.
    boxes, notices = score("", right)
    assert boxes == {"boxacc_0.5": 100, "boxacc_0.75": 100, "invalid": 0}
    assert "1 answers are a box without a mask (1-1)" in notices
    turned = {**right, "box_yxyx": [0.75, 0.25, 0.25, 0.75], "mask": encode_rle(mask)}
    assert score("", turned)[0]["invalid"] == 100
    # A text that spells places is the answer, as the original reads it.
    spelt = score(text[: 4 * len("<loc0000>")] + " dog", {**right, "mask": encode_rle(mask)})
    assert (spelt[0]["miou"], spelt[0]["invalid"]) == (0, 100)


def test_a_benchmark_without_masks_takes_no_codec(paligemma: Any, tmp_path: Path) -> None:
    done = paligemma("eval", "score", "x.jsonl", "--task", "docvqa", "--mask-codec", tmp_path / "c")
    assert done.status == 2
    assert "docvqa scores no masks, so it takes no --mask-codec; leave it out" in done.err


@pytest.mark.parametrize(
    "mask",
    [
        {},
        {"size": [20, 40], "counts": "\u00e9\u00e9"},
        {"size": [20, 40], "counts": [5, 5]},
        {"size": [10**9, 10**9], "counts": [1]},
        {"size": [2, 2], "counts": [0, 4]},  # of another picture
    ],
)
def test_a_mask_that_cannot_be_read_costs_its_row_and_no_other(
    paligemma: Any, tmp_path: Path, mask: dict[str, Any]
) -> None:
    codec = Path(str(resources.files("paligemma"))) / "models/tiny/mask_codec.safetensors"
    right, text = referring_run(tmp_path / "one", codec)
    box = [0.25, 0.25, 0.75, 0.75]
    references = {"box_yxyx": box, "mask": encode_rle(right), "ann_id": 1}
    examples = [
        Example(id=name, prefix="the dog", pictures=(), references=references, unit=name)
        for name in ("1-1", "1-2")
    ]
    config = RunConfig(task="refcoco", split="val", model="m")
    RunFolder.create(tmp_path / "run", config, examples)
    file = tmp_path / "run" / "theirs.jsonl"
    rows = [
        {"id": name, "text": text, "objects": [{"label": "dog", "box_yxyx": box, "mask": one}]}
        for name, one in (("1-1", encode_rle(right)), ("1-2", mask))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = paligemma("eval", "score", file, "--task", "refcoco", "--json")
    assert done.status == 0, done.err
    assert done.json["score"] == 50.0
    (said,) = [one for one in done.json["notices"] if "mask" in one]
    assert said.startswith("1 predictions hold a mask that is no run lengths of their picture")
    assert "1-2" in said


def test_a_run_names_the_adapter_of_its_model() -> None:
    assert ModelChoice(name="tiny", options={}).label == "tiny"
    assert ModelChoice(name="tiny", options={"adapter": "runs/cut"}).label == "tiny with runs/cut"


def test_own_rows_are_scored_by_a_metric_of_choice(
    paligemma: Any, docvqa: Path, tmp_path: Path
) -> None:
    rows = [
        {"image": f"spdocvqa_images/{name}.png", "prefix": "answer en what?", "suffix": right}
        for name, right in (("a", ["twelve", "12"]), ("b", "none"))
    ]
    (docvqa / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("eval", "own", "--data", docvqa, "--split", "test", "--max-new-tokens", 4)
    refused = paligemma(*asked, "--metric", "cidr")
    assert refused.status == 2
    assert all(name in refused.err for name in ("anls", "cider", "by_prompt"))
    done = paligemma(*asked, "--metric", "anls", "--json")
    assert (done.status, done.json["headline"], done.json["num_scored"]) == (0, "anls", 2)
    again = paligemma("eval", "report", done.json["folder"], "--rule", "metric=cer", "--json")
    assert again.json["headline"] == "cer"
    path = tmp_path / "said.jsonl"
    path.write_text('{"id": "test/1", "text": "12"}\n{"id": "test/2", "text": "some"}')
    theirs = ("eval", "score", path, "--task", "own", "--data", docvqa, "--split", "test")
    assert paligemma(*theirs, "--rule", "metric=accuracy", "--json").json["score"] == 50
