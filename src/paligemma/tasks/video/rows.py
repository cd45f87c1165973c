"""Video benchmarks: captions and short answers over 8 or 16 frames.

Source: big_vision configs/proj/paligemma/transfers/{msrvtt,msvd,activitynet,vatex}*.py;
arXiv:2407.07726 appendix B.
"""

from paligemma.tasks.published import transferred
from paligemma.tasks.scoring import score_captions, score_exact
from paligemma.tasks.task import NeededFile, Reader, Task, published_keys
from paligemma.tasks.video import files

_TRAPS = (
    "Videos vanish: published scores rest on those that were available, so publish the ids you "
    "used.",
    "Frames are resized without antialiasing and are not rounded to grey levels.",
    "A stride counts stored frames; frames extracted at another rate cover another span of time.",
)
_VIDEOS = NeededFile(
    "frames/{video}/*.jpg or videos/{video}.mp4",
    "the videos of the benchmark, or all their frames extracted at full rate",
)
_PAIRS = (
    NeededFile(
        "{split}_q.json and {split}_a.json",
        "in its place, as other programs divide it",
        fields="question_id, video_name, question; question_id, answer",
    ),
)
_EXACT = "Exact match is case-sensitive."


def _task(
    name: str,
    title: str,
    *needed: NeededFile,
    reader: Reader,
    transfer: str,
    records: tuple[str, str],
    traps: tuple[str, ...],
    captions: bool = False,
) -> Task:
    """One benchmark, of captions or of answers."""
    measure, metric = ("cider", "CIDEr") if captions else ("accuracy", "accuracy")
    return Task(
        **transferred(transfer),
        name=name,
        title=title,
        family="video",
        splits=files.SPLITS,
        headline=measure,
        files=(*needed, _VIDEOS),
        reader=reader,
        score=score_captions if captions else score_exact,
        published=published_keys(measure, metric, *((task, "test", "test") for task in records)),
        traps=(*_TRAPS, *traps),
    )


TASKS: tuple[Task, ...] = (
    _task(
        "msrvtt-cap",
        "MSR-VTT captions",
        NeededFile(
            "{train_val|test}_videodatainfo.json or MSRVTT_data.json",
            files.MSRVTT,
            fields="videos[]: video_id, split; sentences[]: video_id, caption",
        ),
        reader=files.read_msrvtt_cap,
        transfer="msrvtt_cap",
        captions=True,
        records=("MSR-VTT (captioning)", "MSRVTT-CAP"),
        traps=(
            "Published scores use 2,094 of the 2,990 test videos.",
            "`start time` and `end time` refer to the YouTube video; the released clips are cut.",
        ),
    ),
    _task(
        "msrvtt-qa",
        "MSR-VTT QA",
        NeededFile("{split}_qa.json", files.MSRVTT_QA, fields="id, question, answer, video_id"),
        *_PAIRS,
        reader=files.read_msrvtt_qa,
        transfer="msrvtt_qa",
        records=("MSR-VTT (QA)", "MSRVTT-QA"),
        traps=(_EXACT,),
    ),
    _task(
        "msvd-qa",
        "MSVD QA",
        NeededFile("{split}_qa.json", files.MSVD, fields="id, question, answer, video_id"),
        *_PAIRS,
        NeededFile(
            "youtube_mapping.txt",
            "MSVD-QA; only where the videos carry their YouTube names",
            fields="YouTube clip and vid number, separated by a space",
        ),
        reader=files.read_msvd_qa,
        transfer="msvd_qa",
        records=("MSVD (QA)", "MSVD-QA"),
        traps=("A clip has 8 frames, 26 apart, not 16 as in the other sets.",),
    ),
    _task(
        "activitynet-cap",
        "ActivityNet captions",
        NeededFile(
            "{train|val_1|val_2}.json",
            files.ACTIVITYNET,
            fields="video -> duration, timestamps, sentences",
        ),
        reader=files.read_activitynet_cap,
        transfer="activitynet_cap",
        captions=True,
        records=("ActivityNet (captioning)", "ActivityNet-CAP"),
        traps=(
            "Our test is val_2 and our val is val_1, which fits the sizes of the published "
            "splits; no source states it.",
            "Each segment is one example with one reference; scores per paragraph differ.",
        ),
    ),
    _task(
        "activitynet-qa",
        "ActivityNet QA",
        NeededFile("{split}_q.json", files.ANET_QA, fields="question_id, video_name, question"),
        NeededFile("{split}_a.json", files.ANET_QA, fields="question_id, answer, type"),
        reader=files.read_activitynet_qa,
        transfer="activitynet_qa",
        records=("ActivityNet (QA)", "ActivityNet-QA"),
        traps=(_EXACT,),
    ),
    _task(
        "vatex",
        "VATEX captions (English)",
        NeededFile(
            "vatex_{training_v1.0|validation_v1.0|public_test_english_v1.1}.json",
            files.VATEX,
            fields="videoID, enCap",
        ),
        reader=files.read_vatex,
        transfer="vatex_cap",
        captions=True,
        records=("VATEX (captioning)", "VATEX"),
        traps=("Published scores use 5,135 of the 6,000 public test clips.",),
    ),
)
