"""Captions, read from the official files and scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from task_files import write_csv, write_json, write_json_lines, write_picture, write_text

from paligemma.errors import ConfigError, DataError
from paligemma.example import Example, Prediction
from paligemma.tasks.captions.docci import num_sentences
from paligemma.tasks.captions.screens import node_bounds
from paligemma.tasks.catalog import find_task
from paligemma.tasks.reading.file_rows import FileRow
from paligemma.tasks.reading.languages import COCO35L_LANGUAGES, XM3600_LANGUAGES
from paligemma.tasks.task import Task

SHAPE = (8, 12, 3)


def read(name: str, data: Path, split: str | None = None) -> list[Example]:
    task = find_task(name)
    return list(task.read(data, split or task.splits[0]))


def say(examples: list[Example], texts: list[str]) -> list[Prediction]:
    return [Prediction(id=one.id, text=text) for one, text in zip(examples, texts, strict=True)]


def figures(task: Task, examples: list[Example], texts: list[str]) -> dict[str, float]:
    return {one.name: one.value for one in task.score(examples, say(examples, texts))}


def coco_folder(data: Path) -> Path:
    images = [
        {
            "filepath": "train2014" if split in ("train", "restval") else "val2014",
            "filename": f"COCO_{k:012d}.jpg",
            "cocoid": 100 + k,
            "split": split,
            "sentences": [{"raw": f"A {name} on the mat.", "tokens": []}, {"raw": f"One {name}."}],
        }
        for k, (split, name) in enumerate(
            [("val", "cat"), ("val", "dog"), ("train", "cow"), ("restval", "hen"), ("test", "ox")]
        )
    ]
    write_json(data / "dataset_coco.json", {"images": images, "dataset": "coco"})
    for row in images:
        write_picture(data / row["filepath"] / row["filename"])
    return data


def test_coco_captions_follow_karpathys_split(tmp_path: Path) -> None:
    examples = read("coco-captions", coco_folder(tmp_path))
    assert [one.id for one in examples] == ["100", "101"]
    assert examples[0].prefix == "caption en"
    assert examples[0].references == ["A cat on the mat.", "One cat."]
    assert examples[0].targets == ("A cat on the mat.", "One cat.")
    assert examples[1].pictures[0].read(1000).shape == SHAPE
    # Training joins train and restval.
    assert [one.id for one in read("coco-captions", tmp_path, "train")] == ["102", "103"]
    assert [one.id for one in read("coco-captions", tmp_path, "test")] == ["104"]


@pytest.mark.parametrize("place", ["", "annotations"])
def test_karpathys_split_is_read_from_blips_lists_too(tmp_path: Path, place: str) -> None:
    expected = read("coco-captions", coco_folder(tmp_path))
    (tmp_path / "dataset_coco.json").unlink()
    rows = [
        {"image": f"val2014/COCO_{k:012d}.jpg", "caption": one.references}
        for k, one in enumerate(expected)
    ]
    write_json(tmp_path / place / "coco_karpathy_val.json", rows)
    found = read("coco-captions", tmp_path)
    assert [one.id for one in found] == ["0", "1"]
    assert [(one.references, one.targets) for one in found] == [
        (one.references, one.targets) for one in expected
    ]
    assert found[1].pictures[0].read(1000).shape == SHAPE
    apart = [
        {"image": "train2014/COCO_000000000002.jpg", "caption": text, "image_id": "coco_2"}
        for text in ("a cow", "one cow")
    ]
    write_json(tmp_path / place / "coco_karpathy_train.json", apart)
    (one,) = read("coco-captions", tmp_path, "train")
    assert (one.id, one.targets) == ("2", ("a cow", "one cow"))


def test_cocos_own_captions_are_read_and_said_to_be_no_split_of_karpathy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coco_folder(tmp_path)
    content = {
        "images": [{"id": 7, "file_name": "COCO_000000000000.jpg"}],
        "annotations": [{"id": k, "image_id": 7, "caption": f"cat {k}"} for k in range(2)],
    }
    write_json(tmp_path / "annotations/captions_val2014.json", content)
    assert [one.id for one in read("coco-captions", tmp_path)] == ["100", "101"]
    assert not caplog.text
    (tmp_path / "dataset_coco.json").unlink()
    (one,) = read("coco-captions", tmp_path)
    assert (one.id, one.references) == ("7", ["cat 0", "cat 1"])
    assert one.pictures[0].read(1000).shape == SHAPE
    assert "captions_val2014.json is COCO's own split of 1 pictures" in caplog.text
    content["images"] = [{"id": 8, "file_name": "x.jpg"}]
    write_json(tmp_path / "annotations/captions_val2014.json", content)
    with pytest.raises(DataError, match="captions the image 7, which is not among"):
        read("coco-captions", tmp_path)


def test_a_perfect_caption_outscores_a_wrong_one_and_an_empty_one_scores_nothing(
    tmp_path: Path,
) -> None:
    task, examples = find_task("coco-captions"), read("coco-captions", coco_folder(tmp_path))
    right = figures(task, examples, ["A cat on the mat.", "A dog on the mat."])["cider"]
    swapped = figures(task, examples, ["A dog on the mat.", "A cat on the mat."])["cider"]
    assert right > 2 * swapped
    assert figures(task, examples, ["", ""])["cider"] == 0.0


def test_captions_are_submitted_with_their_image(tmp_path: Path) -> None:
    task, examples = find_task("coco-captions"), read("coco-captions", coco_folder(tmp_path))
    assert task.submission is not None
    assert task.submission(examples, say(examples, ["a", "b"])) == [
        {"image_id": 100, "caption": "a"},
        {"image_id": 101, "caption": "b"},
    ]


def test_nocaps_groups_ten_captions_by_image(tmp_path: Path) -> None:
    row = {"id": 3, "file_name": "ab.jpg", "coco_url": "u", "domain": "near-domain"}
    captions = [{"image_id": 3, "caption": f"caption {k}"} for k in range(10)]
    table = {"images": [row], "annotations": captions}
    write_json(tmp_path / "nocaps_val_4500_captions.json", table)
    write_json(tmp_path / "nocaps_test_image_info.json", {"images": [{**row, "id": 9}]})
    write_picture(tmp_path / "Images" / "validation" / "ab.jpg")
    write_picture(tmp_path / "Images" / "test" / "ab.jpg")
    (example,) = read("nocaps", tmp_path)
    assert (example.id, example.slices) == ("3", {"domain": "near-domain"})
    assert len(example.references) == 10
    assert example.pictures[0].read(1000).shape == SHAPE
    asked = read("nocaps", tmp_path, "test")
    assert asked[0].references == []
    with pytest.raises(DataError, match="no captions and cannot be scored here"):
        find_task("nocaps").score(asked, say(asked, ["x"]))
    write_json(tmp_path / "nocaps_val_4500_captions.json", {"images": [row], "annotations": []})
    with pytest.raises(DataError, match=r"images, row 0 must have at least one caption"):
        read("nocaps", tmp_path)


def coco35l_rows(languages: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": f"{image}_{k}",
            "trg_lang": language,
            "caption_tokenized": f"{name} {k} stands here today",
            "translation_tokenized": f"{language} {name} {k} steht hier",
        }
        for language in languages
        for image, name in ((100, "cat"), (101, "dog"))
        for k in range(2)
    ]


@pytest.mark.parametrize("ending", ["", ".bz2"])
def test_coco35l_takes_english_from_the_german_lines(tmp_path: Path, ending: str) -> None:
    path = coco_folder(tmp_path) / f"coco_mt_dev.jsonl{ending}"
    write_json_lines(path, coco35l_rows(["fr", "de"]))
    examples = read("coco-35l", tmp_path)
    assert [one.id for one in examples] == [
        *("100_de", "101_de", "100_en", "101_en", "100_fr", "101_fr"),
    ]
    assert [one.prefix for one in examples[::2]] == ["caption de", "caption en", "caption fr"]
    assert examples[2].references == ["cat 0 stands here today", "cat 1 stands here today"]
    assert examples[5].references == ["fr dog 0 steht hier", "fr dog 1 steht hier"]
    assert examples[5].slices == {"language": "fr"}
    assert {one.unit for one in examples} == {"100", "101"}
    assert examples[4].pictures[0].read(1000).shape == SHAPE
    assert [one.id for one in read("coco-35l", tmp_path, "dev_fr")] == ["100_fr", "101_fr"]
    with pytest.raises(ConfigError, match="coco-35l has the splits dev, train, dev_ar"):
        read("coco-35l", tmp_path, "dev_xx")


def test_coco35l_reports_each_language_and_both_averages(tmp_path: Path) -> None:
    task = find_task("coco-35l")
    write_json_lines(
        coco_folder(tmp_path) / "coco_mt_dev.jsonl",
        coco35l_rows([one for one in COCO35L_LANGUAGES if one != "en"]),
    )
    examples = read("coco-35l", tmp_path)
    # English is answered with nothing, all other languages with their first caption.
    texts = ["" if one.slices["language"] == "en" else one.references[0] for one in examples]
    scores = figures(task, examples, texts)
    others = [scores[f"cider/{one}"] for one in COCO35L_LANGUAGES if one != "en"]
    assert scores["cider/en"] == 0.0
    assert min(others) > 0
    assert scores["cider/avg34"] == pytest.approx(sum(others) / 34)
    assert scores["cider/avg35"] == pytest.approx(sum(others) / 35)
    assert next(iter(scores)) == task.headline == "cider/avg34"
    assert "cider" not in scores


def test_languages_are_scored_apart_and_resampled_together(tmp_path: Path) -> None:
    task = find_task("coco-35l")
    write_json_lines(coco_folder(tmp_path) / "coco_mt_dev.jsonl", coco35l_rows(["de", "fr"]))
    examples = read("coco-35l", tmp_path)
    measures = {
        one.name: one
        for one in task.score(examples, say(examples, [one.references[0] for one in examples]))
    }
    alone = read("coco-35l", tmp_path, "dev_fr")
    (_, by_itself) = task.score(alone, say(alone, [one.references[0] for one in alone]))
    french = measures["cider/fr"]
    assert french.value == pytest.approx(by_itself.value)
    assert (french.num, french.num_used) == (6, 2)
    # Published averages are left out where languages are missing.
    assert set(measures) == {"cider", "cider/de", "cider/en", "cider/fr"}


def xm3600_folder(data: Path) -> Path:
    row: dict[str, Any] = {"image/key": "00ab", "image/locale": "en"}
    for language in XM3600_LANGUAGES:
        row[language] = {
            "caption": [f"{language}caption"],
            "caption/tokenized": [f"{language} caption"],
        }
    write_json_lines(data / "captions.jsonl", [row, {**row, "image/key": "00cd"}])
    write_picture(data / "images" / "00ab.jpg")
    return data


def test_xm3600_has_36_languages_raw_or_tokenised(tmp_path: Path) -> None:
    raw = read("xm3600", xm3600_folder(tmp_path))
    tokenized = read("xm3600-tokenized", tmp_path)
    assert len(XM3600_LANGUAGES) == 36
    assert len(raw) == len(tokenized) == 72
    assert raw[0].id == tokenized[0].id == "00ab_ar"
    assert raw[0].references == ["arcaption"]
    assert tokenized[0].references == ["ar caption"]
    assert raw[0].pictures[0].read(1000).shape == SHAPE
    assert [one.prefix for one in read("xm3600", tmp_path, "test_quz")] == ["caption quz"] * 2


def test_xm3600_names_the_language_a_row_lacks(tmp_path: Path) -> None:
    path = xm3600_folder(tmp_path) / "captions.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    del row["th"]
    write_json_lines(path, [row])
    with pytest.raises(DataError, match=r"captions\.jsonl, row 1 must .* field 'th'"):
        read("xm3600", tmp_path)


def test_textcaps_joins_captions_and_lowers_targets_alone(tmp_path: Path) -> None:
    rows = [
        {"image_id": "a1", "image_name": "a1", "caption_str": text}
        for text in ("A Nokia phone", "The word STOP, \u00c9 \u0130")
    ]
    write_json(tmp_path / "TextCaps_0.1_val.json", {"data": rows})
    write_picture(tmp_path / "train_images" / "a1.jpg")
    (example,) = read("textcaps", tmp_path)
    assert example.references == ["A Nokia phone", "The word STOP, \u00c9 \u0130"]
    assert example.targets == ("a nokia phone", "the word stop, \u00c9 \u0130"), "A to Z alone"
    assert example.pictures[0].read(1000).shape == SHAPE
    assert find_task("textcaps").asking.num_beams == 3


def scicap_folder(data: Path) -> Path:
    root = data / "scicap_data"
    listed = root / "List-of-Files-for-Each-Experiments" / "First-Sentence" / "No-Subfig" / "test"
    write_json(listed / "file_idx.json", ["1001.0001v1-Figure1-1.png", "1001.0001v1-Figure2-1.png"])
    for k in (1, 2):
        name = f"1001.0001v1-Figure{k}-1"
        caption = {"caption": f"the spectrum of star {k} over time .", "sentence": []}
        texts = {
            "0-originally-extracted": "Figure 1: The spectrum.",
            "1-lowercase-and-token-and-remove-figure-index": caption,
        }
        write_json(root / "SciCap-Caption-All" / "test" / f"{name}.json", texts)
        write_picture(root / "SciCap-No-Subfig-Img" / "test" / f"{name}.png")
    return data


def test_scicap_reads_the_cleaned_first_sentence(tmp_path: Path) -> None:
    task, examples = find_task("scicap"), read("scicap", scicap_folder(tmp_path))
    assert [one.id for one in examples] == ["1001.0001v1-Figure1-1", "1001.0001v1-Figure2-1"]
    assert examples[0].references == ["the spectrum of star 1 over time ."]
    assert examples[1].pictures[0].read(1000).shape == SHAPE
    scores = figures(task, examples, [one.references[0] for one in examples])
    assert scores["bleu_4"] == pytest.approx(1.0)
    assert list(scores)[:2] == ["cider", "bleu_4"]


def test_scicap_names_the_caption_file_that_lacks_its_field(tmp_path: Path) -> None:
    folder = scicap_folder(tmp_path) / "scicap_data" / "SciCap-Caption-All" / "test"
    write_json(folder / "1001.0001v1-Figure2-1.json", {"0-originally-extracted": "x"})
    with pytest.raises(DataError, match=r"Figure2-1\.json must .* field '1-lowercase-and-token"):
        read("scicap", tmp_path)


def test_screen2words_joins_summaries_of_a_screen(tmp_path: Path) -> None:
    rows = [[7, "login page"], [8, "a list"], [7, "screen to sign in"]]
    write_csv(tmp_path / "screen_summaries.csv", ["screenId", "summary"], rows)
    write_text(tmp_path / "split" / "test_screens.txt", "7\n")
    write_text(tmp_path / "split" / "dev_screens.txt", "9\n")
    write_picture(tmp_path / "combined" / "7.jpg")
    (example,) = read("screen2words", tmp_path)
    assert (example.id, example.prefix) == ("7", "caption en")
    assert example.references == ["login page", "screen to sign in"]
    assert example.pictures[0].read(1000).shape == SHAPE
    with pytest.raises(DataError, match=r"dev_screens\.txt, row 1: .* no summary of screen 9"):
        read("screen2words", tmp_path, "dev")


def widget_folder(data: Path, bounds: list[float]) -> Path:
    button = {"class": "Button", "bounds": bounds, "children": []}
    root = {"bounds": [0, 0, 1440, 2560], "children": [{"children": [{}, button]}]}
    write_json(data / "combined" / "7.json", {"activity": {"root": root}})
    write_picture(data / "combined" / "7.jpg", size_wh=(54, 96))
    write_csv(
        data / "widget_captions.csv",
        ["screenId", "nodeId", "captions"],
        [["7", "0.0.1", "go back|return to menu"], ["8", "0.1", "other"]],
    )
    write_text(data / "split" / "test.txt", "7\n")
    return data


def test_widgetcap_marks_the_widget_on_its_screen(tmp_path: Path) -> None:
    (example,) = read("widgetcap", widget_folder(tmp_path, [720, 640, 1440, 1280]))
    assert example.id == "7_0.0.1"
    assert example.prefix == "caption en"
    assert example.references == ["go back", "return to menu"]
    # Bounds are on a canvas 2560 high; a picture of 54 x 96 makes it 1440 wide.
    assert example.mark_box_yxyx == pytest.approx((0.25, 0.5, 0.5, 1.0))
    assert example.pictures[0].read(10_000).shape == (96, 54, 3)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 0, 1500, 100], r"widget 0\.0\.1 of screen 7 must lie on the screen"),
        ([100, 0, 50, 100], r"must lie on the screen"),
        ([0, 0, 10], r"node 0\.0\.1: bounds must be four numbers"),
    ],
)
def test_a_widget_off_its_screen_is_named(
    tmp_path: Path, bounds: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read("widgetcap", widget_folder(tmp_path, bounds))


def test_a_node_path_that_leads_nowhere_is_named() -> None:
    root = FileRow({"children": [{"bounds": [1, 2, 3, 4], "children": []}]}, "7.json")
    assert node_bounds(root, "0.0") == (1, 2, 3, 4)
    with pytest.raises(DataError, match=r"7\.json must lead to a node by '0\.1', but '1' is none"):
        node_bounds(root, "0.1")
    with pytest.raises(DataError, match=r"'-1' is none"):
        node_bounds(root, "0.-1")


def docci_folder(data: Path) -> Path:
    rows = [
        {
            "example_id": f"{split}_{k:05d}",
            "split": split,
            "image_file": f"{split}_{k}.jpg",
            "description": f"A long description {k}. With sentences.",
        }
        for split in ("qual_dev", "test")
        for k in range(2)
    ]
    write_json_lines(data / "docci_descriptions.jsonlines", rows)
    for k in range(2):
        write_picture(data / "images" / f"qual_dev_{k}.jpg")
    return data


TEXTS = ["A cat. It sits.", "A dog runs. It is red! Why?"]
YES, NO = ["Entailment"] * 5, ["Contradiction"] * 3 + ["Entailment"] * 2


def judgements(path: Path, texts: list[str]) -> None:
    labels = ([YES, NO], [YES, YES, NO])
    rows = [
        {"example_id": f"qual_dev_{k:05d}", "caption": text, "labels": labels[k]}
        for k, text in enumerate(texts)
    ]
    write_json_lines(path / "docci_judgements.jsonl", rows)


def test_docci_reports_lengths_without_judgements_and_nes_with_them(tmp_path: Path) -> None:
    task, examples = find_task("docci"), read("docci", docci_folder(tmp_path))
    assert [one.id for one in examples] == ["qual_dev_00000", "qual_dev_00001"]
    assert examples[0].pictures[0].read(1000).shape == SHAPE
    assert figures(task, examples, TEXTS) == {"characters": 21.0, "sentences": 2.5}
    judgements(tmp_path, TEXTS)
    assert figures(task, examples, TEXTS) == {
        "nes": pytest.approx(0.4),
        "sentences": 2.5,
        "characters": 21.0,
    }
    assert task.asking.max_new_tokens == 192


def test_ties_and_nothing_to_assess_are_counted_by_the_rules(tmp_path: Path) -> None:
    examples = read("docci", docci_folder(tmp_path))[:1]
    labels = [["Entailment", "Neutral"], ["Nothing to assess"], YES]
    row = {"example_id": examples[0].id, "caption": TEXTS[0], "labels": labels}
    write_json_lines(tmp_path / "docci_judgements.jsonl", [row])
    task = find_task("docci")

    def nes(**rules: str) -> float:
        assert all(chosen in task.rules[name] for name, chosen in rules.items())
        return task.score(examples, say(examples, TEXTS[:1]), **rules)[0].value

    assert nes() == nes(ties="non_entailed", nothing="left_out") == pytest.approx(1 / 2)
    assert nes(ties="entailed") == nes(ties="left_out") == 0.0
    assert nes(nothing="counted") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["A cat. It sits."], r"must judge every caption, it lacks qual_dev_00001"),
        (["A cat. It sits.", "A cow."], r"judges another caption of qual_dev_00001: 'A cow\.'"),
    ],
)
def test_judgements_of_other_captions_are_refused(
    tmp_path: Path, texts: list[str], message: str
) -> None:
    examples = read("docci", docci_folder(tmp_path))
    judgements(tmp_path, texts)
    with pytest.raises(DataError, match=message):
        figures(find_task("docci"), examples, TEXTS)


def test_sentences_are_counted_by_their_ends() -> None:
    assert num_sentences("") == 0
    assert num_sentences("no end") == 1
    assert num_sentences('One. Two! "Three?" Four') == 4
    assert num_sentences("It costs 3.50 dollars.") == 1


NAMES = [
    *("coco-captions", "nocaps", "xm3600", "textcaps", "scicap"),
    *("coco-35l", "screen2words", "widgetcap", "docci"),
]


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_caption_folder_is_named_with_what_it_lacks(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"must hold .*, which comes from .*") as error:
        read(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(ConfigError, match=r"has the splits .*, got 'holdout'"):
        read(name, tmp_path, "holdout")
