"""One training row of every benchmark that has some, in its official layout."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from task_files import (
    write_csv,
    write_json,
    write_json_lines,
    write_picture,
    write_pixels,
    write_text,
)

IMAGE = "000000000005.jpg"
TEN = [{"answer": "red"}] * 10


def coco_captions(data: Path) -> None:
    row = {"cocoid": 5, "split": "restval", "filepath": "val2014", "filename": IMAGE}
    sentences = [{"raw": "A dog."}, {"raw": "A brown dog."}]
    write_json(data / "dataset_coco.json", {"images": [{**row, "sentences": sentences}]})
    write_picture(data / "val2014" / IMAGE)


def coco_35l(data: Path) -> None:
    coco_captions(data)
    row = {"image_id": "5_0", "trg_lang": "de", "translation_tokenized": "Ein Hund ."}
    write_json_lines(data / "coco_mt_train.jsonl", [{**row, "caption_tokenized": "A dog ."}])


def textcaps(data: Path) -> None:
    row = {"image_id": "a1", "image_name": "a1", "caption_str": "A Nokia phone"}
    write_json(data / "TextCaps_0.1_train.json", {"data": [row]})
    write_picture(data / "train_images/a1.jpg")


def scicap(data: Path) -> None:
    root, name = data / "scicap_data", "1001.0001v1-Figure1-1"
    listed = "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig/train/file_idx.json"
    write_json(root / listed, [f"{name}.png"])
    texts = {"1-lowercase-and-token-and-remove-figure-index": {"caption": "a star ."}}
    write_json(root / f"SciCap-Caption-All/train/{name}.json", texts)
    write_picture(root / f"SciCap-No-Subfig-Img/train/{name}.png")


def screen2words(data: Path) -> None:
    write_csv(data / "screen_summaries.csv", ["screenId", "summary"], [[7, "login page"]])
    write_text(data / "split/train_screens.txt", "7\n")
    write_picture(data / "combined/7.jpg")


def widgetcap(data: Path) -> None:
    button = {"bounds": [720, 640, 1440, 1280], "children": []}
    root = {"bounds": [0, 0, 1440, 2560], "children": [button]}
    write_json(data / "combined/7.json", {"activity": {"root": root}})
    write_picture(data / "combined/7.jpg", size_wh=(54, 96))
    columns = ["screenId", "nodeId", "captions"]
    write_csv(data / "widget_captions.csv", columns, [["7", "0.0", "go back|return"]])
    write_text(data / "split/train.txt", "7\n")


def docci(data: Path) -> None:
    row = {"example_id": "train_0", "split": "train", "image_file": "t.jpg"}
    write_json_lines(data / "docci_descriptions.jsonlines", [{**row, "description": "A dog. Red."}])
    write_picture(data / "images/t.jpg")


def mimic_cxr(data: Path) -> None:
    picture = "00000000-02aa2e5c-5c5ec8a4-4f9dd4ba-cbc3d1a2"
    rows = f"dicom_id,study_id,subject_id,split\n{picture},50414267,10000032,train\n"
    (data / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(rows.encode()))
    folder = data / "files/p10/p10000032"
    write_text(
        folder / "s50414267.txt", "INDICATION: cough\n\nFINDINGS: clear\n\nIMPRESSION: none\n"
    )
    write_picture(folder / f"s50414267/{picture}.jpg")


def vqav2(data: Path) -> None:
    question = {"question_id": 1, "image_id": 5, "question": "Which?"}
    told = {"question_id": 1, "answers": TEN, "answer_type": "other", "question_type": "eight"}
    for asked, answered in (
        ("v2_OpenEnded_mscoco_train2014_questions", "v2_mscoco_train2014_annotations"),
        ("OpenEnded_mscoco_train2014_questions", "mscoco_train2014_annotations"),
    ):
        write_json(data / f"{asked}.json", {"questions": [question]})
        write_json(data / f"{answered}.json", {"annotations": [told]})
    write_picture(data / f"train2014/COCO_train2014_{IMAGE}")


def aokvqa(data: Path) -> None:
    row = {
        "question_id": "q", "image_id": 5, "question": "what is it?", "correct_choice_idx": 1,
        "choices": ["bus", "car", "tram", "bike"], "direct_answers": ["bus"] * 10,
        "difficult_direct_answer": False,
    }  # fmt: skip
    write_json(data / "aokvqa_v1p0_train.json", [row])
    write_picture(data / "train2017" / IMAGE)


def gqa(data: Path) -> None:
    row = {"imageId": "n1", "question": "Is it red?", "answer": "yes", "fullAnswer": "It is."}
    write_json(data / "train_balanced_questions.json", {"201": row})
    write_picture(data / "images/n1.jpg")


def textvqa(data: Path) -> None:
    row = {"question_id": 1, "image_id": "a", "question": "brand?", "answers": ["nokia"] * 10}
    write_json(data / "TextVQA_0.5.1_train.json", {"data": [row]})
    write_picture(data / "train_images/a.jpg")


def vizwiz(data: Path) -> None:
    row = {"image": "a.jpg", "question": "What's this?", "answers": TEN, "answer_type": "other"}
    write_json(data / "annotations/train.json", [row])
    write_picture(data / "train/a.jpg")


def ai2d(data: Path) -> None:
    question = {"answerTexts": ["Snake", "Grass"], "correctAnswer": 0, "abcLabel": True}
    table = {"imageName": "0.png", "questions": {"Which?": {**question, "questionId": "0.png-0"}}}
    label = {"rectangle": [[4, 2], [24, 16]], "replacementText": "A", "value": "frog"}
    write_json(data / "ai2d/questions/0.png.json", table)
    write_json(data / "ai2d/annotations/0.png.json", {"text": {"T0": label}})
    write_text(data / "ai2d_test_ids.csv", "1\n")
    write_picture(data / "ai2d/images/0.png", size_wh=(40, 30))


def scienceqa(data: Path) -> None:
    row = {
        "question": "Which is liquid?", "choices": ["ice", "water"], "answer": 1, "hint": "",
        "image": "image.png", "split": "train",
    }  # fmt: skip
    write_json(data / "problems.json", {"2": row})
    write_picture(data / "train/2/image.png")


def nlvr2(data: Path) -> None:
    row = {"identifier": "train-1-0-1", "label": "True", "sentence": "Both.", "directory": 3}
    write_json_lines(data / "train.json", [row])
    for k in (0, 1):
        write_picture(data / f"train/3/train-1-0-img{k}.png")


def vsr(data: Path) -> None:
    row = {"image": IMAGE, "caption": "The cat is near.", "label": 1, "relation": "near"}
    for kind in ("zeroshot", "random"):
        write_json_lines(data / f"splits/{kind}/train.jsonl", [row])
    write_picture(data / "images" / IMAGE)


def rsvqa(data: Path) -> None:
    question = {"id": 1, "img_id": 3, "type": "presence", "question": "Is there a road?"}
    told = {"id": 10, "question_id": 1, "answer": "Yes", "active": True}
    for stem in ("LR_split", "USGS_split"):
        asked = {**question, "answers_ids": [10], "active": True}
        write_json(data / f"{stem}_train_questions.json", {"questions": [asked]})
        write_json(data / f"{stem}_train_answers.json", {"answers": [told]})
    write_pixels(data / "Images_LR/3.tif", np.zeros((4, 5, 3), np.uint8))
    write_picture(data / "Data/3.png")


def docvqa(data: Path) -> None:
    row = {"questionId": 1, "question": "What?", "image": "documents/x.png", "answers": ["0.28"]}
    write_json(data / "train_v1.0.json", {"data": [row]})
    write_picture(data / "train/documents/x.png")


def infovqa(data: Path) -> None:
    row = {"questionId": 1, "question": "Which?", "image_local_name": "2.jpeg", "answers": ["Red"]}
    write_json(data / "infographicsVQA_train_v1.0.json", {"data": [row]})
    write_picture(data / "images/2.jpeg")


def st_vqa(data: Path) -> None:
    row = {"question_id": 1, "file_path": "iiit_text/img_1.jpg", "question": "What?"}
    write_json(data / "train_task_3.json", {"data": [{**row, "answers": ["One Way"]}]})
    write_text(data / "stvqa_val_images.txt", "coco-text/COCO_train2014_1.jpg\n")
    write_picture(data / "train_images/iiit_text/img_1.jpg")


def chartqa(data: Path) -> None:
    for kind in ("human", "augmented"):
        row = {"imgname": "1.png", "query": "How many?", "label": "14"}
        write_json(data / f"train/train_{kind}.json", [row])
    write_picture(data / "train/png/1.png")


def ocr_vqa(data: Path) -> None:
    book = {"imageURL": "http://x/1.jpg", "questions": ["Who wrote it?"], "answers": ["I"]}
    write_json(data / "dataset.json", {"7": {**book, "title": "A", "split": 1}})
    write_picture(data / "images/7.jpg")


def tallyqa(data: Path) -> None:
    row = {"image": f"train2014/{IMAGE}", "image_id": 1, "question": "How many dogs?"}
    write_json(data / "train.json", [{**row, "question_id": 1, "answer": 15}])
    write_picture(data / "train2014" / IMAGE)


def videos(data: Path) -> None:
    """Frames and questions of all sets of clips, which do not share the names of their files."""
    video = {"video_id": "video1", "split": "train", "id": 1}
    sentence = {"caption": "a man sings", "video_id": "video1", "sen_id": 0}
    write_json(data / "train_val_videodatainfo.json", {"videos": [video], "sentences": [sentence]})
    asked = {"id": 1, "video_id": 1, "question": "who sings?", "answer": "man", "category_id": 2}
    write_json(data / "train_qa.json", [asked])
    segment = {"duration": 9.0, "timestamps": [[0.0, 4.5]], "sentences": ["A man sings."]}
    write_json(data / "train.json", {"v_a": segment})
    question = {"question_id": "q", "video_name": "a", "question": "who sings"}
    write_json(data / "train_q.json", [question])
    write_json(data / "train_a.json", [{"question_id": "q", "answer": "man", "type": 3}])
    write_json(data / "vatex_training_v1.0.json", [{"videoID": "a_0_1", "enCap": ["A man."]}])
    for name in ("video1", "vid1", "v_a", "a_0_1"):
        for k in range(3):
            write_picture(data / f"frames/{name}/{k:05d}.png")


def coco(**more: Any) -> dict[str, Any]:
    box = {"bbox": [10.0, 10.0, 20.0, 10.0], "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]}
    label = {"id": 1, "image_id": 5, "category_id": 1, "area": 200.0, "iscrowd": 0}
    image = {"id": 5, "file_name": IMAGE, "width": 40, "height": 30}
    names = [{"id": 1, "name": "dog", "supercategory": "none"}]
    return {"images": [image], "annotations": [{**label, **box}], "categories": names, **more}


def referring(data: Path) -> None:
    ref = {
        "ref_id": 1, "ann_id": 1, "image_id": 5, "split": "train",
        "sentences": [{"sent": "left dog", "sent_id": 0, "raw": "left dog", "tokens": []}],
        "sent_ids": [0], "category_id": 1, "file_name": IMAGE,
    }  # fmt: skip
    for name in ("refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p"):
        path = data / name
        path.parent.mkdir()
        path.write_bytes(pickle.dumps([ref], protocol=2))
    write_json(data / "instances_train2017.json", coco())
    write_picture(data / "train2017" / IMAGE, size_wh=(40, 30))


def detection(data: Path) -> None:
    """COCO, DocLayNet and a set of one's own, which differ in places."""
    write_json(data / "annotations/instances_train2017.json", coco())
    write_json(data / "COCO/train.json", coco())
    write_json(data / "train/_annotations.coco.json", coco())
    for folder in ("train2017", "PNG", "train"):
        write_picture(data / folder / IMAGE, size_wh=(40, 30))


def icdar15(data: Path) -> None:
    truth = data / "ch4_training_localization_transcription_gt/gt_img_1.txt"
    write_text(truth, "1,1,9,1,9,5,1,5,STOP\n")
    write_picture(data / "ch4_training_images/img_1.jpg")


def total_text(data: Path) -> None:
    word = "x: [[1 9 9 1]], y: [[1 1 5 5]], ornt: [u'c'], transcriptions: [u'STOP']\n"
    write_text(data / "txt_format/Train/poly_gt_img1.txt", word)
    write_picture(data / "Images/Train/img1.jpg")


def tables(data: Path) -> None:
    """PubTabNet, and FinTabNet of a page of 100 x 200 points at 144 pixels an inch."""
    cell = {"tokens": ["5"], "bbox": [20, 160, 40, 180]}
    html = {"cells": [cell], "structure": {"tokens": ["<tr>", "<td>", "</td>", "</tr>"]}}
    row = {"split": "train", "html": html}
    small = {**html, "cells": [{**cell, "bbox": [1, 1, 9, 5]}]}
    write_json_lines(
        data / "PubTabNet_2.0.0.jsonl", [{**row, "html": small, "filename": "P.png", "imgid": 7}]
    )
    write_picture(data / "train/P.png")
    page = {"filename": "A/2007/page_7.pdf", "table_id": 1, "bbox": [20, 120, 60, 180]}
    write_json_lines(data / "FinTabNet_1.0.0_cell_train.jsonl", [{**row, **page}])
    write_picture(data / "pages/A/2007/page_7.png", size_wh=(200, 400))


def grandstaff(data: Path) -> None:
    name = "chopin/op17/min3_up_m-1-2"
    write_text(data / "partitions_grandstaff/types/train.txt", f"Data/GrandStaff/{name}.bekrn\n")
    kern = "**kern\t**kern\n*clefF4\t*clefG2\n=1\t=1\n4C\t4e 4g\n*-\t*-\n"
    write_text(data / f"grandstaff/{name}.krn", kern)
    write_picture(data / f"grandstaff/{name}.jpg")


def own(data: Path) -> None:
    row = {
        "image": "a.png",
        "prefix": "detect dog",
        "suffix": "<loc0010><loc0010><loc0500><loc0500> dog",
    }
    write_text(data / "train.jsonl", json.dumps(row) + "\n")
    write_picture(data / "a.png")


# Benchmark -> what writes its folder.
FOLDERS: dict[str, Callable[[Path], None]] = {
    "coco-captions": coco_captions, "coco-35l": coco_35l, "textcaps": textcaps, "scicap": scicap,
    "screen2words": screen2words, "widgetcap": widgetcap, "docci": docci, "mimic-cxr": mimic_cxr,
    "aokvqa-da": aokvqa, "aokvqa-mc": aokvqa, "gqa": gqa, "textvqa": textvqa, "vizwiz": vizwiz,
    "ai2d": ai2d, "scienceqa": scienceqa, "nlvr2": nlvr2, "docvqa": docvqa, "infovqa": infovqa,
    "st-vqa": st_vqa, "chartqa": chartqa, "ocr-vqa": ocr_vqa, "tallyqa": tallyqa,
    "icdar15": icdar15, "total-text": total_text, "grandstaff": grandstaff, "own": own,
    **dict.fromkeys(("vqav2", "okvqa"), vqav2),
    **dict.fromkeys(("vsr-zeroshot", "vsr-random"), vsr),
    **dict.fromkeys(("rsvqa-lr", "rsvqa-hr"), rsvqa),
    **dict.fromkeys(
        ("msrvtt-cap", "msrvtt-qa", "msvd-qa", "activitynet-cap", "activitynet-qa", "vatex"), videos
    ),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), referring),
    **dict.fromkeys(
        ("coco-detection", "coco-detection-labels", "doclaynet", "doclaynet-labels",
         "own-detection"), detection,
    ),
    **dict.fromkeys(("pubtabnet", "fintabnet"), tables),
}  # fmt: skip
