"""Video benchmarks: captions and short answers over 8 or 16 frames.

Source: big_vision configs/proj/paligemma/transfers/{msrvtt,msvd,activitynet,vatex}*.py;
arXiv:2407.07726 appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence

from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.answers import exact_match_measures
from paligemma.metrics.measure import Measure
from paligemma.processing.resize import BILINEAR
from paligemma.tasks.task import NeededFile, PublishedKey, Task
from paligemma.tasks.video.files import (
    ACTIVITYNET,
    ANET_QA,
    MSRVTT,
    MSRVTT_QA,
    MSVD,
    VATEX,
    read_activitynet_cap,
    read_activitynet_qa,
    read_msrvtt_cap,
    read_msrvtt_qa,
    read_msvd_qa,
    read_vatex,
)

_VIDEO_TRAPS = (
    "Videos vanish: the published scores rest on what could be had, so publish the ids you used.",
    "Frames are resized without antialiasing and are not rounded to grey levels.",
    "A stride counts stored frames; frames extracted at another rate show another stretch of time.",
)
_VIDEOS = NeededFile(
    path="frames/{video}/*.jpg or videos/{video}.mp4",
    source="the videos of the benchmark, or all their frames extracted at full rate",
)


def score_video_captions(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """CIDEr over the clips that were on disk."""
    from paligemma.metrics.caption import caption_measures

    return caption_measures([one.text for one in predictions], [one.references for one in examples])


def score_video_answers(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Exact match, case-sensitive."""
    references = [one.references for one in examples]
    return exact_match_measures([one.text for one in predictions], references)


def _asking(text_len: int, num_pictures: int) -> Asking:
    return Asking(
        text_len=text_len,
        max_new_tokens=text_len,
        resize_method=BILINEAR,
        num_pictures=num_pictures,
        keep_fractions=True,
    )


def _keys(measure: str, metric: str, *tasks: str) -> tuple[PublishedKey, ...]:
    return tuple(
        PublishedKey(measure=measure, task=task, split="test", metric=metric, our_split="test")
        for task in tasks
    )


TASKS: tuple[Task, ...] = (
    Task(
        name="msrvtt-cap",
        title="MSR-VTT captions",
        family="video",
        splits=("test", "val", "train"),
        headline="cider",
        asking=_asking(32, 16),
        files=(
            NeededFile(
                path="{train_val|test}_videodatainfo.json",
                source=MSRVTT,
                fields="videos[]: video_id, split; sentences[]: video_id, caption",
            ),
            _VIDEOS,
        ),
        read=read_msrvtt_cap,
        score=score_video_captions,
        published=_keys("cider", "CIDEr", "MSR-VTT (captioning)", "MSRVTT-CAP"),
        traps=(
            *_VIDEO_TRAPS,
            "Published scores use 2,094 of the 2,990 test videos.",
            "`start time` and `end time` are of the YouTube video; the released clips are cut.",
        ),
        transfer="msrvtt_cap",
    ),
    Task(
        name="msrvtt-qa",
        title="MSR-VTT QA",
        family="video",
        splits=("test", "val", "train"),
        headline="accuracy",
        asking=_asking(64, 16),
        files=(
            NeededFile(
                path="{split}_qa.json", source=MSRVTT_QA, fields="id, question, answer, video_id"
            ),
            _VIDEOS,
        ),
        read=read_msrvtt_qa,
        score=score_video_answers,
        published=_keys("accuracy", "accuracy", "MSR-VTT (QA)", "MSRVTT-QA"),
        traps=(*_VIDEO_TRAPS, "Exact match is case-sensitive."),
        transfer="msrvtt_qa",
    ),
    Task(
        name="msvd-qa",
        title="MSVD QA",
        family="video",
        splits=("test", "val", "train"),
        headline="accuracy",
        asking=_asking(64, 8),
        files=(
            NeededFile(
                path="{split}_qa.json", source=MSVD, fields="id, question, answer, video_id"
            ),
            NeededFile(
                path="youtube_mapping.txt",
                source="MSVD-QA; only where the videos carry their YouTube names",
                fields="YouTube clip and vid number, separated by a space",
            ),
            _VIDEOS,
        ),
        read=read_msvd_qa,
        score=score_video_answers,
        published=_keys("accuracy", "accuracy", "MSVD (QA)", "MSVD-QA"),
        traps=(*_VIDEO_TRAPS, "8 frames, 26 apart: not the 16 of the other sets."),
        transfer="msvd_qa",
    ),
    Task(
        name="activitynet-cap",
        title="ActivityNet captions",
        family="video",
        splits=("test", "val", "train"),
        headline="cider",
        asking=_asking(64, 16),
        files=(
            NeededFile(
                path="{train|val_1|val_2}.json",
                source=ACTIVITYNET,
                fields="video -> duration, timestamps, sentences",
            ),
            _VIDEOS,
        ),
        read=read_activitynet_cap,
        score=score_video_captions,
        published=_keys("cider", "CIDEr", "ActivityNet (captioning)", "ActivityNet-CAP"),
        traps=(
            *_VIDEO_TRAPS,
            "Our test is val_2 and our val is val_1: the sizes of the published splits fit that, "
            "no source says it.",
            "Each segment is one example with one reference; scores per paragraph differ.",
        ),
        transfer="activitynet_cap",
    ),
    Task(
        name="activitynet-qa",
        title="ActivityNet QA",
        family="video",
        splits=("test", "val", "train"),
        headline="accuracy",
        asking=_asking(64, 16),
        files=(
            NeededFile(
                path="{split}_q.json", source=ANET_QA, fields="question_id, video_name, question"
            ),
            NeededFile(path="{split}_a.json", source=ANET_QA, fields="question_id, answer, type"),
            _VIDEOS,
        ),
        read=read_activitynet_qa,
        score=score_video_answers,
        published=_keys("accuracy", "accuracy", "ActivityNet (QA)", "ActivityNet-QA"),
        traps=(*_VIDEO_TRAPS, "Exact match is case-sensitive."),
        transfer="activitynet_qa",
    ),
    Task(
        name="vatex",
        title="VATEX captions (English)",
        family="video",
        splits=("test", "val", "train"),
        headline="cider",
        asking=_asking(64, 16),
        files=(
            NeededFile(
                path="vatex_{training_v1.0|validation_v1.0|public_test_english_v1.1}.json",
                source=VATEX,
                fields="videoID, enCap",
            ),
            _VIDEOS,
        ),
        read=read_vatex,
        score=score_video_captions,
        published=_keys("cider", "CIDEr", "VATEX (captioning)", "VATEX"),
        traps=(*_VIDEO_TRAPS, "Published scores use 5,135 of the 6,000 public test clips."),
        transfer="vatex_cap",
    ),
)
