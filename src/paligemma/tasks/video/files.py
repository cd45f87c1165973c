"""Reads the questions, captions and clips of the video benchmarks.

The readers of these sets were never released; frame counts and strides come from the recipes.
Source: big_vision configs/proj/paligemma/transfers/{msrvtt,msvd,activitynet,vatex}*.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.published import transfer_recipe
from paligemma.tasks.reading.examples import example_of
from paligemma.tasks.reading.file_rows import (
    FileRow,
    list_rows,
    read_keyed,
    read_list,
)
from paligemma.tasks.reading.files import find_file, read_json, read_text_lines
from paligemma.tasks.reading.prefixes import CAPTION_PREFIX, answer_prefix
from paligemma.tasks.video.clips import Clip, Videos

VIDEO_FOLDERS = ("frames", "videos", "TrainValVideo", "TestVideo", "YouTubeClips", ".")

MSRVTT = "MSR-VTT, Microsoft Research (train_val_annotation and test_videodatainfo archives)"
MSRVTT_QA = "MSRVTT-QA, github.com/xudejing/video-question-answering; videos of MSR-VTT"
MSVD = "MSVD-QA, github.com/xudejing/video-question-answering; videos of the MSVD corpus"
ACTIVITYNET = "ActivityNet Captions, cs.stanford.edu/people/ranjaykrishna/densevid; videos"
ANET_QA = "ActivityNet-QA, github.com/MILVLAB/activitynet-qa (dataset/); videos of ActivityNet"
VATEX = "VATEX, eric-xw.github.io/vatex-website; clips of YouTube"

SPLITS = ("test", "val", "train")
_NUMBERED = re.compile("(?:vid(?:eo)?)?([0-9]{1,9})")


def read_msrvtt_cap(data: Path, split: str) -> Iterator[Example]:
    """Read MSR-VTT captions: one example a video with all its captions."""
    names = {"test": "test", "val": "validate", "train": "train"}
    own = names[split]
    stem = "test" if split == "test" else "train_val"
    path = find_file(data, f"{stem}_videodatainfo.json", "MSRVTT_data.json", source=MSRVTT)
    table = read_json(path)
    captions: dict[str, list[str]] = {}
    for row in list_rows(table, path, "sentences"):
        captions.setdefault(row.text("video_id"), []).append(row.text("caption"))
    videos = _videos(data, "msrvtt_cap")
    for row in list_rows(table, path, "videos"):
        if row.text("split") != own:
            continue
        name = row.text("video_id")
        if name not in captions:
            raise row.error(f"{name} has no caption in 'sentences'")
        if clip := videos.find(name):
            yield _captioned(name, clip, captions[name])
    videos.report("msrvtt-cap", MSRVTT)


def read_msrvtt_qa(data: Path, split: str) -> Iterator[Example]:
    """Read MSR-VTT questions; the videos are called video7010 and so on."""

    def names(number: int) -> tuple[str, ...]:
        return f"video{number}", str(number)

    return _read_qa(data, split, "msrvtt_qa", names, MSRVTT_QA)


def read_msvd_qa(data: Path, split: str) -> Iterator[Example]:
    """Read MSVD questions; the videos are called vid1 and so on, or as on YouTube."""
    aliases = _youtube_names(data / "youtube_mapping.txt")

    def names(number: int) -> tuple[str, ...]:
        own = f"vid{number}"
        return (own, f"video{number}", str(number), *aliases.get(own, ()))

    return _read_qa(data, split, "msvd_qa", names, MSVD)


def read_activitynet_cap(data: Path, split: str) -> Iterator[Example]:
    """Read ActivityNet captions: one example a segment, with one caption."""
    names = {"test": "val_2", "val": "val_1", "train": "train"}
    stem = names[split]
    path = find_file(data, f"{stem}.json", f"captions/{stem}.json", source=ACTIVITYNET)
    videos = _videos(data, "activitynet_cap")
    for name, row in read_keyed(path):
        segments, sentences = row.value("timestamps", list), row.texts("sentences")
        if len(segments) != len(sentences):
            raise row.error(
                f"every segment needs a sentence, got {len(segments)} timestamps and "
                f"{len(sentences)} sentences"
            )
        clip = videos.find(*_activitynet_names(name))
        if clip is None:
            continue
        clip = replace(clip, duration_s=row.value("duration", float))
        for index, (segment, sentence) in enumerate(zip(segments, sentences, strict=True)):
            start_s, end_s = _bounds(row, segment, index)
            part = replace(clip, start_s=start_s, end_s=end_s)
            yield _captioned(f"{name}/{index}", part, [sentence])
    videos.report("activitynet-cap", ACTIVITYNET)


def read_activitynet_qa(data: Path, split: str) -> Iterator[Example]:
    """Read ActivityNet questions, with the nine types of question as slices."""
    return _read_question_pairs(data, split, "activitynet_qa", _activitynet_names, ANET_QA)


def read_vatex(data: Path, split: str) -> Iterator[Example]:
    """Read VATEX: ten English captions a clip; clips are called {YouTube id}_{start}_{end}."""
    names = {
        "test": (
            "vatex_public_test_english_v1.1.json",
            "vatex_public_test_english.json",
            "vatex_public_test_english_v1.0.json",
        ),
        "val": ("vatex_validation_v1.0.json",),
        "train": ("vatex_training_v1.0.json",),
    }
    path = find_file(data, *names[split], source=VATEX)
    videos = _videos(data, "vatex_cap")
    for row in read_list(path):
        name, captions = row.text("videoID"), row.texts("enCap")
        if clip := videos.find(name):
            yield _captioned(name, clip, captions)
    videos.report("vatex", VATEX)


def _read_qa(
    data: Path, split: str, transfer: str, names: Callable[[int], tuple[str, ...]], source: str
) -> Iterator[Example]:
    """Read the layout of MSR-VTT QA and MSVD QA: a list of rows with a numbered video."""
    task = transfer.replace("_", "-")
    if not (data / f"{split}_qa.json").exists() and (data / f"{split}_q.json").exists():

        def named(name: str) -> tuple[str, ...]:
            number = _NUMBERED.fullmatch(name)
            return (name, *(names(int(number[1])) if number else ()))

        yield from _read_question_pairs(data, split, transfer, named, source)
        return
    path = find_file(data, f"{split}_qa.json", source=source)
    videos = _videos(data, transfer)
    for row in read_list(path):
        if clip := videos.find(*names(row.integer("video_id"))):
            yield example_of(
                str(row.integer("id")),
                answer_prefix(row.text("question")),
                picture=clip.frames(),
                answers=row.text("answer"),
                slices={"category": str(row.fields["category_id"])} if "category_id" in row else {},
            )
    videos.report(task, source)


def _read_question_pairs(
    data: Path, split: str, transfer: str, names: Callable[[str], tuple[str, ...]], source: str
) -> Iterator[Example]:
    """Read questions in one file and answers in another, as ActivityNet-QA has them."""
    asked, told = (
        find_file(data, f"{split}_{kind}.json", f"dataset/{split}_{kind}.json", source=source)
        for kind in ("q", "a")
    )
    answers = {row.identifier("question_id"): row for row in read_list(told)}
    videos = _videos(data, transfer)
    for row in read_list(asked):
        key = row.identifier("question_id")
        if key not in answers:
            raise row.error(f"question_id {key} has no answer in {told}")
        if clip := videos.find(*names(row.identifier("video_name"))):
            kind = {"type": str(answers[key].fields["type"])} if "type" in answers[key] else {}
            yield example_of(
                key,
                answer_prefix(row.text("question")),
                picture=clip.frames(),
                answers=answers[key].text("answer"),
                slices=kind,
            )
    videos.report(transfer.replace("_", "-"), source)


def _videos(data: Path, transfer: str) -> Videos:
    """Look up videos below the data folder, shown as a recipe shows them."""
    image = transfer_recipe(transfer)["image"]
    return Videos(data, VIDEO_FOLDERS, num_frames=image["num_frames"], stride=image["frame_stride"])


def _captioned(name: str, clip: Clip, captions: list[str]) -> Example:
    return example_of(name, CAPTION_PREFIX, picture=clip.frames(), answers=captions)


def _bounds(row: FileRow, segment: Any, index: int) -> tuple[float, float]:
    """Read start and end in seconds; a few released segments have them swapped."""
    if not isinstance(segment, list) or len(segment) != 2:
        raise row.error(f"timestamps {index} must be [start, end], got {segment!r:.80}")
    for one in segment:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one < 1e9:
            raise row.error(f"timestamps {index} must be seconds, got {one!r:.80}")
    return float(min(segment)), float(max(segment))


def _activitynet_names(name: str) -> tuple[str, ...]:
    """Return both names of a video: `v_` stands before the YouTube id, but not in questions."""
    bare = name.removeprefix("v_")
    return (f"v_{bare}", bare)


def _youtube_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Read vid1 -> its YouTube clip, where the mapping of the release is on disk."""
    pairs = [line.split() for _, line in read_text_lines(path)] if path.is_file() else []
    if any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{path} must hold a YouTube clip and a name a line, separated by a space")
    return {own: (clip,) for clip, own in pairs}
