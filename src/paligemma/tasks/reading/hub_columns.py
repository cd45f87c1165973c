"""Columns of the parquet copies of benchmarks that people hold, as one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from paligemma.tasks.reading.languages import XGQA_LANGUAGES, XM3600_LANGUAGES


@dataclass(frozen=True, kw_only=True)
class HubCopy:
    """How the parquet copies of one benchmark look.

    Attributes:
        names: data sets of the hub that have these columns.
        columns: field of the official files -> columns that may hold it, with | between them.
        optional: the same for fields without which the copy is scored too.
        picture: columns that may hold the picture.
        parts: our split -> the parts of the copy that make it up, as the names of files or folders
            spell them; of several entries the first that is there counts. Without an entry it is
            the part of the split's own name; an empty one takes every file.
        unless: columns that mark the copy of another benchmark.
        folder: part of the name of the folder to take, where several hold the part.
        joined_by: field that names a picture which may lie in a table of its own, with its `id`.
    """

    names: tuple[str, ...]
    columns: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    picture: str = "image"
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unless: tuple[str, ...] = ()
    folder: str = ""
    joined_by: str | None = None


_QUESTION = {"question_id": "question_id|questionId|id", "question": "question"}
_AOKVQA = HubCopy(
    names=("HuggingFaceM4/A-OKVQA",),
    columns={
        "question_id": "question_id",
        "question": "question",
        "choices": "choices",
        "correct_choice_idx": "correct_choice_idx",
        "direct_answers": "direct_answers",
        "difficult_direct_answer": "difficult_direct_answer",
    },
)


_XM3600_PARTS = {
    "test": (" ".join(XM3600_LANGUAGES),),
    **{f"test_{language}": (language,) for language in XM3600_LANGUAGES},
}


def _refcoco(name: str) -> HubCopy:
    return HubCopy(
        names=(name,),
        columns={
            "question_id": "question_id|ref_id",
            "sentences": "answer|sentences",
            "bbox": "bbox",
            "segmentation": "segmentation",
        },
        optional={"file_name": "file_name"},
        parts={"testA": ("testa",), "testB": ("testb",)},
    )


def _otsl(name: str, field: str) -> HubCopy:
    return HubCopy(
        names=(name,), columns={field: "imgid|table_id", "tokens": "html", "cells": "cells"}
    )


HUB_COPIES: Mapping[str, HubCopy] = {
    "vqav2": HubCopy(
        names=("lmms-lab/VQAv2", "HuggingFaceM4/VQAv2"),
        columns={**_QUESTION, "answers": "answers", "answer_type": "answer_type"},
        parts=dict.fromkeys(("minival", "minival-shuffled", "maxival"), ("val",)),
    ),
    "okvqa": HubCopy(
        names=("lmms-lab/OK-VQA", "HuggingFaceM4/OK-VQA"),
        columns={**_QUESTION, "answers": "answers"},
        optional={"question_type": "question_type"},
    ),
    "aokvqa-da": _AOKVQA,
    "aokvqa-mc": _AOKVQA,
    "gqa": HubCopy(
        names=("lmms-lab/GQA (the folders of questions and of pictures)",),
        columns={
            "id": "id|question_id",
            "imageId": "imageId|image_id",
            "question": "question",
            "answer": "answer",
        },
        optional={"isBalanced": "isBalanced"},
        folder="balanced",
        joined_by="imageId",
    ),
    "xgqa": HubCopy(
        names=("floschne/xgqa",),
        columns={"imageId": "image_id|imageId", "question": "question", "answer": "answer"},
        optional={"id": "question_id|id"},
        parts={
            "testdev": (" ".join(XGQA_LANGUAGES),),
            **{f"testdev_{language}": (language,) for language in XGQA_LANGUAGES},
        },
        joined_by="imageId",
    ),
    "textvqa": HubCopy(
        names=("lmms-lab/textvqa", "facebook/textvqa"),
        columns=_QUESTION,
        optional={"answers": "answers", "image_id": "image_id"},
    ),
    "vizwiz": HubCopy(
        names=("lmms-lab/VizWiz-VQA", "HuggingFaceM4/VizWiz"),
        columns={"image": "question_id|filename|image_id", "question": "question"},
        optional={"answers": "answers", "answer_type": "answer_type|category"},
    ),
    "coco-captions": HubCopy(
        names=("HuggingFaceM4/COCO", "nlphuji/mscoco_2014_5k_test_image_text_retrieval"),
        columns={
            "cocoid": "cocoid|image_id|question_id",
            "sentences": "sentences_raw|sentences|caption|captions|answer",
        },
        optional={"split": "split"},
        parts={"train": ("train restval", "train")},
    ),
    "nocaps": HubCopy(
        names=("lmms-lab/NoCaps", "HuggingFaceM4/NoCaps"),
        columns={"id": "image_id", "captions": "annotations_captions"},
        optional={"domain": "image_domain|domain"},
    ),
    "xm3600": HubCopy(
        names=("floschne/xm3600",),
        columns={"image/key": "image_id", "caption": "captions"},
        parts=_XM3600_PARTS,
    ),
    "xm3600-tokenized": HubCopy(
        names=("floschne/xm3600",),
        columns={"image/key": "image_id", "caption/tokenized": "captions_tokenized"},
        parts=_XM3600_PARTS,
    ),
    "textcaps": HubCopy(
        names=("lmms-lab/TextCaps", "HuggingFaceM4/TextCaps"),
        columns={"image_id": "image_id"},
        optional={"captions": "caption_str|reference_strs"},
    ),
    "widgetcap": HubCopy(
        names=("rootsautomation/RICO-WidgetCaptioning",),
        columns={"screenId": "screenId", "captions": "captions", "bbox": "bbox"},
        optional={"nodeId": "nodeId"},
    ),
    "refcoco": _refcoco("lmms-lab/RefCOCO"),
    "refcoco+": _refcoco("lmms-lab/RefCOCOplus"),
    "refcocog": _refcoco("lmms-lab/RefCOCOg"),
    "pubtabnet": _otsl("docling-project/PubTabNet_OTSL", "imgid"),
    "fintabnet": _otsl("docling-project/FinTabNet_OTSL", "table_id"),
    "ai2d": HubCopy(
        names=("lmms-lab/ai2d",),
        columns={"question": "question", "answerTexts": "options", "correctAnswer": "answer"},
    ),
    "scienceqa": HubCopy(
        names=("lmms-lab/ScienceQA", "derek-thomas/ScienceQA"),
        columns={"question": "question", "choices": "choices", "answer": "answer", "hint": "hint"},
        optional={"subject": "subject", "topic": "topic", "grade": "grade"},
        folder="IMG",
    ),
    "docvqa": HubCopy(
        names=("lmms-lab/DocVQA (folder DocVQA)",),
        columns={"questionId": "questionId|question_id", "question": "question"},
        optional={"answers": "answers", "question_types": "question_types"},
        unless=("operation/reasoning", "answer_type"),
    ),
    "infovqa": HubCopy(
        names=("lmms-lab/DocVQA (folder InfographicVQA)",),
        columns={"questionId": "questionId|question_id", "question": "question"},
        optional={"answers": "answers", "answer_type": "answer_type"},
        unless=("question_types", "ucsf_document_id"),
    ),
    "st-vqa": HubCopy(
        names=("vikhyatk/st-vqa", "lmms-lab/ST-VQA"),
        columns={"question": "qas|question"},
        optional={"question_id": "question_id", "answers": "answers", "file_path": "file_path"},
        parts={"val": ("val", "train")},
    ),
    "chartqa": HubCopy(
        names=("HuggingFaceM4/ChartQA", "lmms-lab/ChartQA"),
        columns={
            "query": "query|question",
            "label": "label|answer",
            "kind": "human_or_machine|type",
        },
    ),
    "pope": HubCopy(
        names=("lmms-lab/POPE",),
        columns={
            "question_id": "question_id",
            "text": "question|text",
            "label": "answer|label",
            "category": "category",
        },
        parts={"test": ("test", "random popular adversarial")},
    ),
    "mmvp": HubCopy(
        names=("lmms-lab-eval/MMVP",),
        columns={
            "Question": "Question|question",
            "Options": "Options|options",
            "Correct Answer": "Correct Answer|answer",
        },
        optional={"Index": "Index|lndex|index"},
        parts={"all": ("",), "corrected": ("",)},
    ),
    "countbenchqa": HubCopy(
        names=("vikhyatk/CountBenchQA",),
        columns={"question": "question", "number": "number"},
        parts={"all": ("",)},
    ),
}


def needed_columns(copy: HubCopy) -> str:
    """The columns that a copy must have, as a sentence."""
    apart = " (or in a table of its own, with id)" if copy.joined_by else ""
    needed = [*copy.columns.values(), f"{copy.picture}{apart}"]
    besides = f", and not {' or '.join(copy.unless)}" if copy.unless else ""
    return f"a copy must have the columns {_listed(needed)}{besides}"


def optional_columns(copy: HubCopy) -> str:
    """The columns that are read where a copy has them."""
    return _listed(copy.optional.values())


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(one.replace("|", " or ") for one in columns)
