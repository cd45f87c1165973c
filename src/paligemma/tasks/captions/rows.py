"""Captions of photographs, figures and screens, in English and in 35 other languages.

Source: big_vision configs/proj/paligemma/transfers/{cococap,coco35l,textcaps,scicap,screen2words,
widgetcap}.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paligemma.errors import DataError
from paligemma.example import Asking, Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.processing.resize import BILINEAR
from paligemma.tasks.captions.docci import (
    DOCCI,
    JUDGEMENTS_FILE,
    NES_RULES,
    read_docci,
    score_docci,
)
from paligemma.tasks.captions.files import (
    COCO_IMAGES,
    CROSSMODAL,
    KARPATHY,
    NOCAPS,
    OPEN_IMAGES,
    SCICAP,
    TEXTCAPS,
    read_coco35l,
    read_coco_captions,
    read_nocaps,
    read_scicap,
    read_textcaps,
    read_xm3600,
    read_xm3600_tokenized,
)
from paligemma.tasks.captions.screens import (
    RICO,
    SCREEN2WORDS,
    WIDGETCAP,
    read_screen2words,
    read_widgetcap,
)
from paligemma.tasks.reading.languages import (
    COCO35L_LANGUAGES,
    ENGLISH,
    XM3600_LANGUAGES,
    score_by_language,
)
from paligemma.tasks.task import NeededFile, PublishedKey, Task


def score_captions(
    examples: Sequence[Example], predictions: Sequence[Prediction], *, bleu: bool = False
) -> list[Measure]:
    """CIDEr of the whole split, and BLEU-4 where asked.

    Raises:
        DataError: a split without captions.
    """
    references = [one.references for one in examples]
    if references and not any(references):
        raise DataError(
            "this split has no captions and cannot be scored here; write a submission and send it "
            "to the server"
        )
    from paligemma.metrics.caption import caption_measures

    return caption_measures([one.text for one in predictions], references, bleu=bleu)


def score_figure_captions(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """CIDEr and BLEU-4."""
    return score_captions(examples, predictions, bleu=True)


def score_coco35l(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """CIDEr of every language by itself; "avg34" leaves English out."""
    return _score_languages(examples, predictions, COCO35L_LANGUAGES)


def score_xm3600(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """CIDEr of every language by itself; "avg35" leaves English out."""
    return _score_languages(examples, predictions, XM3600_LANGUAGES)


def _score_languages(
    examples: Sequence[Example], predictions: Sequence[Prediction], languages: tuple[str, ...]
) -> list[Measure]:
    others = tuple(one for one in languages if one != ENGLISH)
    return score_by_language(
        [one.slices["language"] for one in examples],
        lambda rows: score_captions([examples[k] for k in rows], [predictions[k] for k in rows]),
        expected=languages,
        averages={f"avg{len(others)}": others, f"avg{len(languages)}": languages},
    )


def caption_submission(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """One caption an image, as caption servers and COCO's scorer take them."""
    return [
        {"image_id": int(one.id) if one.id.isdecimal() else one.id, "caption": answer.text}
        for one, answer in zip(examples, predictions, strict=True)
    ]


def _asking(text_len: int, *, num_beams: int = 1) -> Asking:
    return Asking(
        text_len=text_len, max_new_tokens=text_len, num_beams=num_beams, resize_method=BILINEAR
    )


def _keys(
    our_split: str, *places: tuple[str, str], measure: str = "cider", metric: str = "CIDEr"
) -> tuple[PublishedKey, ...]:
    return tuple(
        PublishedKey(measure=measure, task=task, split=split, metric=metric, our_split=our_split)
        for task, split in places
    )


_WHOLE_SPLIT = "CIDEr weighs words by the whole split: scores of parts cannot be averaged."
_COCO_FILES = (
    NeededFile(
        path="dataset_coco.json",
        source=KARPATHY,
        fields="images[]: filepath, filename, cocoid, split, sentences[].raw",
    ),
    NeededFile(path="train2014/, val2014/ (or below images/)", source=COCO_IMAGES),
)
_RICO_FILE = NeededFile(path="combined/{screenId}.jpg, .json", source=RICO)
_DOCCI = ("DOCCI long captions", "qual_dev (100 images)")

_XM3600 = Task(
    name="xm3600",
    title="XM3600",
    family="captions",
    splits=("test", *(f"test_{one}" for one in XM3600_LANGUAGES)),
    headline="cider/avg35",
    asking=_asking(32),
    files=(
        NeededFile(
            path="captions.jsonl",
            source=CROSSMODAL,
            fields="image/key, and for every language caption, caption/tokenized",
        ),
        NeededFile(path="images/{key}.jpg", source=CROSSMODAL),
    ),
    read=read_xm3600,
    score=score_xm3600,
    published=(
        *_keys("test", ("XM3600", "test (avg)"), measure="cider/avg36"),
        *_keys("test", ("XM3600", "test (avg-35)"), ("XM3600", "avg35"), measure="cider/avg35"),
        *_keys("test", ("XM3600", "test (en)"), ("XM3600", "en"), measure="cider/en"),
    ),
    traps=(
        "These are the raw captions, as the released configuration scores them; without spaces a "
        "Thai, Chinese or Japanese sentence is one word.",
        "avg35 leaves English out; avg36 has all languages.",
    ),
    transfer="coco35l",
    is_zero_shot=True,
)

TASKS: tuple[Task, ...] = (
    Task(
        name="coco-captions",
        title="COCO captions",
        family="captions",
        splits=("val", "test", "train"),
        headline="cider",
        asking=_asking(32, num_beams=2),
        files=_COCO_FILES,
        read=read_coco_captions,
        score=score_captions,
        published=_keys("val", ("COCO captions", "val"), ("COCOcap", "val")),
        traps=(_WHOLE_SPLIT, "The split is Karpathy's val of 5,000, not COCO's own of 40,504."),
        transfer="cococap",
        submission=caption_submission,
    ),
    Task(
        name="nocaps",
        title="NoCaps",
        family="captions",
        splits=("val",),
        headline="cider",
        asking=_asking(32, num_beams=2),
        files=(
            NeededFile(
                path="nocaps_val_4500_captions.json (nocaps_test_image_info.json)",
                source=NOCAPS,
                fields="images[]: id, file_name, domain; annotations[]: image_id, caption",
            ),
            NeededFile(path="validation/ (test/), or below Images/", source=OPEN_IMAGES),
        ),
        read=read_nocaps,
        score=score_captions,
        published=_keys("val", ("NoCaps", "val")),
        traps=(_WHOLE_SPLIT, "Answered by the COCO captions model, without training."),
        transfer="cococap",
        is_zero_shot=True,
        server_splits=("test",),
        submission=caption_submission,
    ),
    Task(
        name="coco-35l",
        title="COCO-35L",
        family="captions",
        splits=("dev", "train", *(f"dev_{one}" for one in COCO35L_LANGUAGES)),
        headline="cider/avg34",
        asking=_asking(32),
        files=(
            NeededFile(
                path="coco_mt_{split}.jsonl (or .bz2)",
                source=CROSSMODAL,
                fields="image_id, trg_lang, caption_tokenized, translation_tokenized",
            ),
            *_COCO_FILES,
        ),
        read=read_coco35l,
        score=score_coco35l,
        published=(
            *_keys("dev", ("COCO-35L", "dev (avg)"), measure="cider/avg35"),
            *_keys(
                "dev", ("COCO-35L", "dev (avg-34)"), ("COCO-35L", "avg34"), measure="cider/avg34"
            ),
            *_keys("dev", ("COCO-35L", "dev (en)"), ("COCO-35L", "en"), measure="cider/en"),
        ),
        traps=(
            "avg34 leaves English out; avg35 has all languages.",
            "Every language is scored by itself; English captions are those of the German lines.",
            "The model card and the first report print different averages.",
        ),
        transfer="coco35l",
    ),
    _XM3600,
    replace(
        _XM3600,
        name="xm3600-tokenized",
        title="XM3600, tokenised captions",
        read=read_xm3600_tokenized,
        published=(),
        traps=(
            "References are caption/tokenized; predictions are not segmented, so that th, zh and "
            "ja fall far below a system that writes words apart.",
            "Published figures follow the raw captions, as far as is known.",
        ),
    ),
    Task(
        name="textcaps",
        title="TextCaps",
        family="captions",
        splits=("val", "train"),
        headline="cider",
        asking=_asking(32, num_beams=3),
        files=(
            NeededFile(
                path="TextCaps_0.1_{split}.json",
                source=TEXTCAPS,
                fields="data[]: image_id, image_name, caption_str",
            ),
            NeededFile(path="train_images/ (test_images/)", source=TEXTCAPS),
        ),
        read=read_textcaps,
        score=score_captions,
        published=_keys("val", ("TextCaps", "val")),
        traps=(
            _WHOLE_SPLIT,
            "Pictures of val lie in train_images.",
            "Training targets are lower-cased, A to Z alone; references are not, the tokeniser "
            "does it.",
        ),
        transfer="textcaps",
        server_splits=("test",),
        submission=caption_submission,
    ),
    Task(
        name="scicap",
        title="SciCap",
        family="captions",
        splits=("test", "val", "train"),
        headline="cider",
        asking=_asking(96),
        files=(
            NeededFile(
                path="List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig/{split}/"
                "file_idx.json",
                source=SCICAP,
                fields="names of pictures",
            ),
            NeededFile(
                path="SciCap-Caption-All/{split}/{id}.json",
                source=SCICAP,
                fields="1-lowercase-and-token-and-remove-figure-index.caption",
            ),
            NeededFile(path="SciCap-No-Subfig-Img/{split}/", source=SCICAP),
        ),
        read=read_scicap,
        score=score_figure_captions,
        published=(
            *_keys("test", ("SciCap (first sentence, no subfigure)", "test"), ("SciCap", "test")),
            *_keys(
                "test",
                ("SciCap (first sentence, no subfigure)", "test"),
                measure="bleu_4",
                metric="BLEU-4",
            ),
        ),
        traps=(
            "First sentences of figures without parts; the dataset has five other selections.",
            "The model card prints BLEU-4 as a fraction; here it is times 100.",
        ),
        transfer="scicap",
        submission=caption_submission,
    ),
    Task(
        name="screen2words",
        title="Screen2Words",
        family="captions",
        splits=("test", "dev", "train"),
        headline="cider",
        asking=_asking(24),
        files=(
            NeededFile(
                path="screen_summaries.csv", source=SCREEN2WORDS, fields="screenId, summary"
            ),
            NeededFile(path="split/{split}_screens.txt", source=SCREEN2WORDS, fields="screenId"),
            _RICO_FILE,
        ),
        read=read_screen2words,
        score=score_captions,
        published=_keys("test", ("Screen2words", "test"), ("Screen2Words", "test")),
        traps=(_WHOLE_SPLIT, "Answers are cut at 24 tokens."),
        transfer="screen2words",
        submission=caption_submission,
    ),
    Task(
        name="widgetcap",
        title="WidgetCap",
        family="captions",
        splits=("test", "dev", "train"),
        headline="cider",
        asking=Asking(text_len=32, max_new_tokens=32),
        files=(
            NeededFile(
                path="widget_captions.csv",
                source=WIDGETCAP,
                fields="screenId, nodeId, captions with | between them",
            ),
            NeededFile(path="{split}.txt (or split/{split}.txt)", source=WIDGETCAP),
            _RICO_FILE,
        ),
        read=read_widgetcap,
        score=score_captions,
        published=(
            *_keys("test", ("Widget Captioning", "test"), ("WidgetCap", "test")),
            *_keys("dev", ("WidgetCap", "dev")),
        ),
        traps=(
            "Scored with all captions of a widget; two earlier papers took one.",
            "The widget is a red box, one pixel wide, drawn after resizing; the prompt says "
            "nothing of it.",
            "Figures on dev are of models trained on train alone.",
        ),
        transfer="widgetcap",
        submission=caption_submission,
    ),
    Task(
        name="docci",
        title="DOCCI",
        family="captions",
        splits=("qual_dev", "test", "train", "qual_test"),
        headline="nes",
        asking=Asking(text_len=256, max_new_tokens=192),
        files=(
            NeededFile(
                path="docci_descriptions.jsonlines",
                source=DOCCI,
                fields="example_id, split, image_file, description",
            ),
            NeededFile(path="images/", source=DOCCI),
            NeededFile(
                path=f"{JUDGEMENTS_FILE} (only for NES)",
                source="your raters, who judge every sentence of these very captions",
                fields="example_id, caption, labels[][]",
            ),
        ),
        read=read_docci,
        score=score_docci,
        published=(
            *_keys("qual_dev", _DOCCI, measure="nes", metric="non-entailment sentences %"),
            *_keys("qual_dev", _DOCCI, measure="sentences", metric="mean sentences"),
            *_keys("qual_dev", _DOCCI, measure="characters", metric="mean characters"),
        ),
        traps=(
            "NES rests on people's judgements; no scorer replaces them, and short captions err "
            "less, so read it beside the lengths.",
            "Neither the published prompt nor the training length is known.",
            "What a tie of entailment with another verdict counts is not said; ours is not "
            "entailed, `--rule ties=entailed` or `ties=left_out` changes it.",
            "Sentences with nothing to assess are left out; `--rule nothing=counted` counts them "
            "as entailed.",
        ),
        rules=NES_RULES,
    ),
)
