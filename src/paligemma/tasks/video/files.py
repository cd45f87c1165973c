"""Where the video benchmarks keep their questions, captions and clips.

The readers of these sets were never released; frame counts and strides are of the configurations.
Source: big_vision configs/proj/paligemma/transfers/{msrvtt,msvd,activitynet,vatex}*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Example
from paligemma.tasks.reading.files import find_file, identifier, read_json, value, values
from paligemma.tasks.reading.prefixes import CAPTION_PREFIX, answer_prefix
from paligemma.tasks.reading.rows import keyed_rows, list_rows, of_split
from paligemma.tasks.video.clips import Clip, Videos

VIDEO_FOLDERS = ("frames", "videos", "TrainValVideo", "TestVideo", "YouTubeClips", ".")

MSRVTT = "MSR-VTT, Microsoft Research (train_val_annotation and test_videodatainfo archives)"
MSRVTT_QA = "MSRVTT-QA, github.com/xudejing/video-question-answering; videos of MSR-VTT"
MSVD = "MSVD-QA, github.com/xudejing/video-question-answering; videos of the MSVD corpus"
ACTIVITYNET = "ActivityNet Captions, cs.stanford.edu/people/ranjaykrishna/densevid; videos"
ANET_QA = "ActivityNet-QA, github.com/MILVLAB/activitynet-qa (dataset/); videos of ActivityNet"
VATEX = "VATEX, eric-xw.github.io/vatex-website; clips of YouTube"

_SAME = {"test": "", "val": "", "train": ""}


def read_msrvtt_cap(
    data: Path, split: str, *, num_frames: int = 16, stride: int = 9
) -> Iterator[Example]:
    """MSR-VTT captions: one example a video with all its captions."""
    names = {"test": "test", "val": "validate", "train": "train"}
    own = of_split(names, split, "msrvtt-cap")
    stem = "test" if split == "test" else "train_val"
    path = find_file(data, f"{stem}_videodatainfo.json", source=MSRVTT)
    table = read_json(path)
    captions: dict[str, list[str]] = {}
    for number, row in list_rows(table, path, "sentences"):
        where = f"{path}, sentence {number}"
        video = value(row, "video_id", str, where)
        captions.setdefault(video, []).append(value(row, "caption", str, where))
    videos = Videos(data, VIDEO_FOLDERS)
    for number, row in list_rows(table, path, "videos"):
        where = f"{path}, video {number}"
        if value(row, "split", str, where) != own:
            continue
        name = value(row, "video_id", str, where)
        if name not in captions:
            raise DataError(f"{where}: {name} has no caption in 'sentences'")
        if found := videos.find(name):
            clip = Clip(path=found, num_frames=num_frames, stride=stride)
            yield _caption_example(name, clip, captions[name])
    videos.report("msrvtt-cap", MSRVTT)


def read_msrvtt_qa(
    data: Path, split: str, *, num_frames: int = 16, stride: int = 9
) -> Iterator[Example]:
    """MSR-VTT questions; the videos are called video7010 and so on."""
    names = _msrvtt_names
    return _read_qa(data, split, "msrvtt-qa", names, MSRVTT_QA, num_frames, stride)


def read_msvd_qa(
    data: Path, split: str, *, num_frames: int = 8, stride: int = 26
) -> Iterator[Example]:
    """MSVD questions; the videos are called vid1 and so on, or as on YouTube."""
    aliases = _youtube_names(data / "youtube_mapping.txt")

    def names(number: int) -> tuple[str, ...]:
        own = f"vid{number}"
        return (own, f"video{number}", str(number), *aliases.get(own, ()))

    return _read_qa(data, split, "msvd-qa", names, MSVD, num_frames, stride)


def read_activitynet_cap(
    data: Path, split: str, *, num_frames: int = 16, stride: int = 30
) -> Iterator[Example]:
    """ActivityNet captions: one example a segment, with one caption."""
    files = {"test": "val_2", "val": "val_1", "train": "train"}
    stem = of_split(files, split, "activitynet-cap")
    path = find_file(data, f"{stem}.json", f"captions/{stem}.json", source=ACTIVITYNET)
    videos = Videos(data, VIDEO_FOLDERS)
    for name, row in keyed_rows(read_json(path), path):
        where = f"{path}, {name}"
        segments = value(row, "timestamps", list, where)
        sentences = values(row, "sentences", str, where)
        if len(segments) != len(sentences):
            raise DataError(
                f"{where}: every segment needs a sentence, got {len(segments)} timestamps and "
                f"{len(sentences)} sentences"
            )
        found = videos.find(*_activitynet_names(name))
        if found is None:
            continue
        duration_s = value(row, "duration", float, where)
        for index, (segment, sentence) in enumerate(zip(segments, sentences, strict=True)):
            start_s, end_s = _bounds(segment, where, index)
            clip = Clip(
                path=found,
                num_frames=num_frames,
                stride=stride,
                start_s=start_s,
                end_s=end_s,
                duration_s=duration_s,
            )
            yield _caption_example(f"{name}/{index}", clip, [sentence])
    videos.report("activitynet-cap", ACTIVITYNET)


def read_activitynet_qa(
    data: Path, split: str, *, num_frames: int = 16, stride: int = 70
) -> Iterator[Example]:
    """ActivityNet questions, broken down by the nine types of question."""
    of_split(_SAME, split, "activitynet-qa")
    asked, told = (
        find_file(data, f"{split}_{kind}.json", f"dataset/{split}_{kind}.json", source=ANET_QA)
        for kind in ("q", "a")
    )
    answers = {}
    for number, row in list_rows(read_json(told), told):
        where = f"{told}, row {number}"
        answers[identifier(row, "question_id", where)] = row
    videos = Videos(data, VIDEO_FOLDERS)
    for number, row in list_rows(read_json(asked), asked):
        where = f"{asked}, row {number}"
        key = identifier(row, "question_id", where)
        if key not in answers:
            raise DataError(f"{where}: question_id {key} has no answer in {told}")
        if found := videos.find(*_activitynet_names(value(row, "video_name", str, where))):
            yield _qa_example(
                key,
                Clip(path=found, num_frames=num_frames, stride=stride),
                value(row, "question", str, where),
                value(answers[key], "answer", str, f"{told}: question_id {key}"),
                {"type": str(answers[key].get("type", "unknown"))},
            )
    videos.report("activitynet-qa", ANET_QA)


def read_vatex(
    data: Path, split: str, *, num_frames: int = 16, stride: int = 7
) -> Iterator[Example]:
    """VATEX: ten English captions a clip; clips are called {YouTube id}_{start}_{end}."""
    files = {
        "test": (
            "vatex_public_test_english_v1.1.json",
            "vatex_public_test_english.json",
            "vatex_public_test_english_v1.0.json",
        ),
        "val": ("vatex_validation_v1.0.json",),
        "train": ("vatex_training_v1.0.json",),
    }
    path = find_file(data, *of_split(files, split, "vatex"), source=VATEX)
    videos = Videos(data, VIDEO_FOLDERS)
    for number, row in list_rows(read_json(path), path):
        where = f"{path}, row {number}"
        name = value(row, "videoID", str, where)
        captions = values(row, "enCap", str, where)
        if found := videos.find(name):
            clip = Clip(path=found, num_frames=num_frames, stride=stride)
            yield _caption_example(name, clip, captions)
    videos.report("vatex", VATEX)


def _read_qa(
    data: Path,
    split: str,
    task: str,
    names: Callable[[int], tuple[str, ...]],
    source: str,
    num_frames: int,
    stride: int,
) -> Iterator[Example]:
    """The layout that MSR-VTT QA and MSVD QA share: a list of rows with a numbered video."""
    of_split(_SAME, split, task)
    path = find_file(data, f"{split}_qa.json", source=source)
    videos = Videos(data, VIDEO_FOLDERS)
    for number, row in list_rows(read_json(path), path):
        where = f"{path}, row {number}"
        slices = {"category": str(row["category_id"])} if "category_id" in row else {}
        if found := videos.find(*names(value(row, "video_id", int, where))):
            yield _qa_example(
                str(value(row, "id", int, where)),
                Clip(path=found, num_frames=num_frames, stride=stride),
                value(row, "question", str, where),
                value(row, "answer", str, where),
                slices,
            )
    videos.report(task, source)


def _caption_example(example_id: str, clip: Clip, captions: list[str]) -> Example:
    return Example(
        id=example_id,
        prefix=CAPTION_PREFIX,
        pictures=clip.frames(),
        references=list(captions),
        targets=tuple(captions),
    )


def _qa_example(
    example_id: str, clip: Clip, question: str, answer: str, slices: dict[str, str]
) -> Example:
    return Example(
        id=example_id,
        prefix=answer_prefix(question),
        pictures=clip.frames(),
        references=answer,
        targets=(answer,),
        slices=slices,
    )


def _bounds(segment: Any, where: str, index: int) -> tuple[float, float]:
    """Start and end in seconds; a few of the released segments have them the wrong way round."""
    if not isinstance(segment, list) or len(segment) != 2:
        raise DataError(f"{where}: timestamps {index} must be [start, end], got {segment!r:.80}")
    one, other = (_seconds(part, where, f"timestamps {index}") for part in segment)
    return min(one, other), max(one, other)


def _seconds(number: Any, where: str, name: str) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e9:
        raise DataError(f"{where}: {name} must be seconds, got {number!r:.80}")
    return float(number)


def _msrvtt_names(number: int) -> tuple[str, ...]:
    return (f"video{number}", str(number))


def _activitynet_names(name: str) -> tuple[str, ...]:
    """Videos are stored with `v_` before their YouTube id; the questions leave it out."""
    bare = name.removeprefix("v_")
    return (f"v_{bare}", bare)


def _youtube_names(path: Path) -> dict[str, tuple[str, ...]]:
    """vid1 -> its YouTube clip, where the mapping of the release is on disk."""
    if not path.is_file():
        return {}
    pairs = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{path} must hold a YouTube clip and a name a line, separated by a space")
    return {own: (clip,) for clip, own in pairs}
