"""The smallest official files of benchmarks that have no parquet copy: one example of each split.

Each entry is a benchmark's folder: paths with their content, which is JSON where the path ends in
.json, JSON lines where it ends in .jsonl, text otherwise, and a picture where the path is one.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from task_files import write_json, write_json_lines, write_picture, write_text

_TRAIN_VAL_TEST = ("train", "val", "test")
_PICTURES = (".jpg", ".png", ".tif")
_CLIP = "frames/{}/0.png"


def _coco(width: int = 12, height: int = 8) -> dict[str, Any]:
    box = {"bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0, "segmentation": []}
    return {
        "images": [{"id": 7, "file_name": "7.png", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 18, **box}],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
    }


def _coco_35l() -> dict[str, Any]:
    line = {"trg_lang": "de", "caption_tokenized": "a cat", "translation_tokenized": "eine Katze"}
    found: dict[str, Any] = {}
    images = []
    for k, split in enumerate(("train", "val")):
        name = f"COCO_{k}.jpg"
        images.append({"filepath": f"{split}2014", "filename": name, "cocoid": k, "split": split})
        images[-1]["sentences"] = [{"raw": "A cat."}]
        found[f"{split}2014/{name}"] = None
        listed = f"coco_mt_{'dev' if split == 'val' else split}.jsonl"
        found[listed] = [{"image_id": f"{k}_0", **line}]
    return {**found, "dataset_coco.json": {"images": images}}


def _tallyqa() -> dict[str, Any]:
    row = {"image": "VG_100K/1.jpg", "image_id": 1, "question": "How many dogs?", "answer": 2}
    row |= {"question_id": 3, "data_source": "imported_genome", "issimple": True}
    return {"VG_100K/1.jpg": None, **{f"{split}.json": [row] for split in ("train", "test")}}


def _ocr_vqa() -> dict[str, Any]:
    book: dict[str, Any] = {"imageURL": "http://a.example/a.jpg", "title": "t"}
    book |= {"questions": ["Who wrote it?"], "answers": ["A"]}
    books = {f"{k}": {**book, "split": k} for k in (1, 2, 3)}
    return {"dataset.json": books, **{f"images/{k}.jpg": None for k in (1, 2, 3)}}


def _detection(annotations: str, pictures: str, splits: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for split in splits:
        found[annotations.format(split)] = _coco()
        found[f"{pictures.format(split)}/7.png"] = None
    return found


def _scicap() -> dict[str, Any]:
    found: dict[str, Any] = {}
    first = "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig"
    text = {"1-lowercase-and-token-and-remove-figure-index": {"caption": "a star ."}}
    for split in _TRAIN_VAL_TEST:
        found[f"{first}/{split}/file_idx.json"] = ["1v1-Figure1-1.png"]
        found[f"SciCap-Caption-All/{split}/1v1-Figure1-1.json"] = text
        found[f"SciCap-No-Subfig-Img/{split}/1v1-Figure1-1.png"] = None
    return found


def _screen2words() -> dict[str, Any]:
    splits = {f"split/{split}_screens.txt": "7\n" for split in ("train", "dev", "test")}
    return {"screen_summaries.csv": "screenId,summary\n7,login page\n", **splits} | {
        "combined/7.jpg": None
    }


def _nlvr2() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for split in ("train", "dev", "test1"):
        row = {"identifier": f"{split}-0-1-0", "sentence": "Both show a dog.", "label": "True"}
        found[f"{split}.json"] = json.dumps({**row, "directory": 0}) + "\n"
        for side in (0, 1):
            found[f"images/{split}/0/{split}-0-1-img{side}.png"] = None
            found[f"{split}/{split}-0-1-img{side}.png"] = None
    return found


def _marvl() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for language in ("id", "sw", "ta", "tr", "zh"):
        row = {"concept": "39-a", "language": language, "caption": "c", "label": True, "id": "0"}
        row |= {"left_img": "39-1.jpg", "right_img": "39-2.jpg"}
        found[f"marvl-{language}.jsonl"] = [row]
        for side in (1, 2):
            found[f"{language}/images/39-a/39-{side}.jpg"] = None
    return found


def _rsvqa(stem: str, splits: tuple[str, ...], picture: str) -> dict[str, Any]:
    question = {"id": 0, "img_id": 3, "type": "presence", "question": "Is there a road?"}
    question |= {"answers_ids": [10], "active": True}
    answer = {"id": 10, "question_id": 0, "answer": "yes", "active": True}
    found: dict[str, Any] = {picture: None}
    for split in splits:
        found[f"{stem}_{split}_questions.json"] = {"questions": [question]}
        found[f"{stem}_{split}_answers.json"] = {"answers": [answer]}
    return found


def _docci() -> dict[str, Any]:
    rows = [
        {"example_id": f"{split}_0", "split": split, "image_file": f"{split}.jpg"}
        for split in ("train", "qual_dev")
    ]
    lines = "".join(json.dumps({**one, "description": "A cat. It sits."}) + "\n" for one in rows)
    pictures = {f"images/{one['image_file']}": None for one in rows}
    return {"docci_descriptions.jsonlines": lines, **pictures}


def _msrvtt_cap() -> dict[str, Any]:
    splits = ("train", "validate", "test")
    return {
        "MSRVTT_data.json": {
            "videos": [
                {"video_id": f"video{k}", "split": split, "start time": 0.0, "end time": 1.0}
                for k, split in enumerate(splits)
            ],
            "sentences": [{"caption": "a dog", "video_id": f"video{k}"} for k in range(3)],
        },
        **{_CLIP.format(f"video{k}"): None for k in range(3)},
    }


def _video_qa(clip: str) -> dict[str, Any]:
    row = {"answer": "couch", "id": 1, "question": "what?", "video_id": 5}
    listed = {f"{split}_qa.json": [row] for split in _TRAIN_VAL_TEST}
    return {**listed, "youtube_mapping.txt": "abc_5_15 vid5\n", _CLIP.format(clip): None}


def _activitynet_cap() -> dict[str, Any]:
    row = {"duration": 2.0, "timestamps": [[0.0, 1.0]], "sentences": ["A man."]}
    listed = {f"{name}.json": {"v_abc": row} for name in ("train", "val_1", "val_2")}
    return {**listed, _CLIP.format("v_abc"): None}


def _activitynet_qa() -> dict[str, Any]:
    found: dict[str, Any] = {_CLIP.format("v_abc"): None}
    for split in _TRAIN_VAL_TEST:
        row = {"question_id": "v_abc_1", "question": "what?", "video_name": "abc"}
        found[f"{split}_q.json"] = [row]
        found[f"{split}_a.json"] = [{"question_id": "v_abc_1", "answer": "a", "type": 1}]
    return found


def _vatex() -> dict[str, Any]:
    stems = ("training_v1.0", "validation_v1.0", "public_test_english_v1.1")
    listed = {f"vatex_{stem}.json": [{"videoID": "a_1_2", "enCap": ["a"]}] for stem in stems}
    return {**listed, _CLIP.format("a_1_2"): None}


def _mimic() -> dict[str, Any]:
    lines = ["dicom_id,study_id,subject_id,split"]
    found: dict[str, Any] = {}
    for k, split in enumerate(("train", "test")):
        study = f"files/p10/p1000000{k}/s5000000{k}"
        found[f"{study}.txt"] = "INDICATION: Cough.\nFINDINGS: Clear.\nIMPRESSION: None.\n"
        picture = f"0000000{k}-02aa2e5c-5c5ec8a4-4f9dd4ba-cbc3d1a2"
        found[f"{study}/{picture}.jpg"] = None
        lines.append(f"{picture},5000000{k},1000000{k},{split}")
    return {**found, "mimic-cxr-2.0.0-split.csv.gz": "\n".join(lines) + "\n"}


def _vsr(kind: str) -> dict[str, Any]:
    row = {"image": "1.jpg", "caption": "The cat is here.", "label": 1, "relation": "near"}
    listed = {f"splits/{kind}/{split}.jsonl": [row] for split in ("train", "dev", "test")}
    return {**listed, "images/1.jpg": None}


def _grandstaff() -> dict[str, Any]:
    found: dict[str, Any] = {"grandstaff/a/b/c.jpg": None}
    found["grandstaff/a/b/c.krn"] = "**kern\t**kern\n*clefF4\t*clefG2\n=1\t=1\n4C\t4e\n*-\t*-\n"
    for split in _TRAIN_VAL_TEST:
        found[f"partitions_grandstaff/types/{split}.txt"] = "Data/GrandStaff/a/b/c.krn\n"
    return found


_QUADRANGLE = "0,0,9,0,9,7,0,7,Word\n"
_OUTLINE = "x: [[0 9 9 0]], y: [[0 0 7 7]], ornt: [u'h'], transcriptions: [u'Word']\n"

OFFICIAL: Mapping[str, Mapping[str, Any]] = {
    "coco-35l": _coco_35l(),
    "tallyqa": _tallyqa(),
    "ocr-vqa": _ocr_vqa(),
    "coco-detection": _detection("annotations/instances_{}2017.json", "{}2017", ("train", "val")),
    "doclaynet": _detection("COCO/{}.json", "PNG", _TRAIN_VAL_TEST),
    "scicap": _scicap(),
    "screen2words": _screen2words(),
    "nlvr2": _nlvr2(),
    "marvl": _marvl(),
    "rsvqa-lr": _rsvqa("LR_split", _TRAIN_VAL_TEST, "Images_LR/3.tif"),
    "rsvqa-hr": _rsvqa("USGS_split", (*_TRAIN_VAL_TEST, "test_phili"), "Data/3.png"),
    "objaverse": {"lvis-annotations.json": {"mug": ["mug1"]}, "views/mug1/0.png": None},
    "docci": _docci(),
    "msrvtt-cap": _msrvtt_cap(),
    "msrvtt-qa": _video_qa("video5"),
    "msvd-qa": _video_qa("vid5"),
    "activitynet-cap": _activitynet_cap(),
    "activitynet-qa": _activitynet_qa(),
    "vatex": _vatex(),
    "mimic-cxr": _mimic(),
    "vsr-zeroshot": _vsr("zeroshot"),
    "vsr-random": _vsr("random"),
    "icdar15": {
        "ch4_training_localization_transcription_gt/gt_img_1.txt": _QUADRANGLE,
        "ch4_training_images/img_1.jpg": None,
        "Challenge4_Test_Task4_GT/gt_img_1.txt": _QUADRANGLE,
        "ch4_test_images/img_1.jpg": None,
    },
    "total-text": {
        **{f"txt_format/{split}/poly_gt_img1.txt": _OUTLINE for split in ("Train", "Test")},
        **{f"Images/{split}/img1.jpg": None for split in ("Train", "Test")},
    },
    "molecules": {
        "synthetic/chemdraw.csv": "image_id,file_path,SMILES\n1,synthetic/chemdraw/1.png,CCO\n",
        "synthetic/chemdraw/1.png": None,
    },
    "grandstaff": _grandstaff(),
}


def write_official(data: Path) -> None:
    """Write every benchmark's files below a folder of its name."""
    for benchmark, files in OFFICIAL.items():
        for name, content in files.items():
            path = data / benchmark / name
            if path.suffix in _PICTURES:
                write_picture(path)
            elif path.suffix == ".gz":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(gzip.compress(content.encode()))
            elif isinstance(content, str):
                write_text(path, content)
            elif path.suffix == ".jsonl":
                write_json_lines(path, content)
            else:
                write_json(path, content)
