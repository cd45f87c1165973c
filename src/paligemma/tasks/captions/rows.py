"""Captions of photographs, figures and screens, long descriptions, and radiology reports.

Source: big_vision configs/proj/paligemma/transfers/{cococap,coco35l,textcaps,scicap,screen2words,
widgetcap}.py; arXiv:2412.03555 sections 4.6 and 4.7.
"""

from dataclasses import replace
from functools import partial

from paligemma.example import Asking
from paligemma.tasks.captions import docci, files, mimic, screens
from paligemma.tasks.published import transferred
from paligemma.tasks.reading.coco import COCO_IMAGES
from paligemma.tasks.reading.formats import own_format
from paligemma.tasks.reading.languages import COCO35L_LANGUAGES, XM3600_LANGUAGES
from paligemma.tasks.scoring import score_captions, score_languages, submit_rows
from paligemma.tasks.task import NeededFile, Task, files_from, published_keys

_WHOLE_SPLIT = "CIDEr weighs words by the whole split, so scores of parts cannot be averaged."
_COCO_FILES = (
    NeededFile(
        "dataset_coco.json",
        files.KARPATHY,
        fields="images[]: filepath, filename, cocoid, split, sentences[].raw",
    ),
    NeededFile("train2014/, val2014/ (or below images/)", COCO_IMAGES),
)
_KARPATHY_LISTS = NeededFile(
    "coco_karpathy_{split}.json, or annotations/captions_{split}2014.json",
    "in its place, Karpathy's split as BLIP has it, or COCO's own split",
    fields="image, caption; or images[]: id, file_name; annotations[]: image_id, caption",
)
_RICO_FILE = NeededFile("combined/{screenId}.jpg, .json", screens.RICO)
_DOCCI = ("DOCCI long captions", "qual_dev (100 images)", "qual_dev")
_MIMIC = ("MIMIC-CXR report generation", "test", "test")
_captions = partial(
    Task,
    family="captions",
    headline="cider",
    score=score_captions,
    # The caption servers and COCO's scorer take one caption an image.
    submission=partial(submit_rows, key="image_id", answer="caption"),
)
_cider = partial(published_keys, "cider", "CIDEr")

_XM3600 = Task(
    **transferred("coco35l"),
    name="xm3600",
    title="XM3600",
    family="captions",
    splits=("test", *(f"test_{one}" for one in XM3600_LANGUAGES)),
    headline="cider/avg35",
    files=files_from(
        files.CROSSMODAL,
        ("captions.jsonl", "image/key, and for every language caption, caption/tokenized"),
        "images/{key}.jpg",
    ),
    reader=files.read_xm3600,
    from_rows=files.xm3600_examples,
    score=partial(score_languages, score=score_captions, languages=XM3600_LANGUAGES),
    published=(
        *published_keys("cider/avg36", "CIDEr", ("XM3600", "test (avg)", "test")),
        *published_keys(
            "cider/avg35", "CIDEr", ("XM3600", "test (avg-35)", "test"), ("XM3600", "avg35", "test")
        ),
        *published_keys(
            "cider/en", "CIDEr", ("XM3600", "test (en)", "test"), ("XM3600", "en", "test")
        ),
    ),
    traps=(
        "These are the raw captions, as the released configuration scores them; without spaces a "
        "Thai, Chinese or Japanese sentence is one word.",
        "avg35 leaves English out; avg36 has all languages.",
    ),
    is_zero_shot=True,
)

TASKS: tuple[Task, ...] = (
    _captions(
        **transferred("cococap"),
        name="coco-captions",
        title="COCO captions",
        splits=("val", "test", "train"),
        files=(_COCO_FILES[0], _KARPATHY_LISTS, *_COCO_FILES[1:]),
        reader=files.read_coco_captions,
        from_rows=files.copied_coco_captions,
        published=_cider(("COCO captions", "val", "val"), ("COCOcap", "val", "val")),
        traps=(
            _WHOLE_SPLIT,
            "The split is Karpathy's val of 5,000, not COCO's own of 40,504.",
            "A hub copy of COCO's own split is cut to Karpathy's where dataset_coco.json lies "
            "beside it; without that file a warning tells it, as for captions_val2014.json.",
        ),
    ),
    _captions(
        **transferred("cococap"),
        name="nocaps",
        title="NoCaps",
        splits=("val",),
        files=(
            NeededFile(
                "nocaps_val_4500_captions.json (nocaps_test_image_info.json)",
                files.NOCAPS,
                fields="images[]: id, file_name, domain; annotations[]: image_id, caption",
            ),
            NeededFile("validation/ (test/), or below Images/", files.OPEN_IMAGES),
        ),
        reader=files.read_nocaps,
        from_rows=files.nocaps_examples,
        published=_cider(("NoCaps", "val", "val")),
        traps=(_WHOLE_SPLIT, "The COCO captions model answers it without further training."),
        is_zero_shot=True,
        server_splits=("test",),
    ),
    Task(
        **transferred("coco35l"),
        name="coco-35l",
        title="COCO-35L",
        family="captions",
        splits=("dev", "train", *(f"dev_{one}" for one in COCO35L_LANGUAGES)),
        headline="cider/avg34",
        files=(
            NeededFile(
                "coco_mt_{split}.jsonl (or .bz2)",
                files.CROSSMODAL,
                fields="image_id, trg_lang, caption_tokenized, translation_tokenized",
            ),
            *_COCO_FILES,
        ),
        reader=files.read_coco35l,
        score=partial(score_languages, score=score_captions, languages=COCO35L_LANGUAGES),
        published=(
            *published_keys("cider/avg35", "CIDEr", ("COCO-35L", "dev (avg)", "dev")),
            *published_keys(
                "cider/avg34",
                "CIDEr",
                ("COCO-35L", "dev (avg-34)", "dev"),
                ("COCO-35L", "avg34", "dev"),
            ),
            *published_keys(
                "cider/en", "CIDEr", ("COCO-35L", "dev (en)", "dev"), ("COCO-35L", "en", "dev")
            ),
        ),
        traps=(
            "avg34 leaves English out; avg35 has all languages.",
            "Every language is scored by itself; English captions are those of the German lines.",
            "The model card and the first report print different averages.",
        ),
    ),
    _XM3600,
    replace(
        _XM3600,
        name="xm3600-tokenized",
        title="XM3600, tokenised captions",
        reader=partial(files.read_xm3600, tokenized=True),
        from_rows=partial(files.xm3600_examples, tokenized=True),
        published=(),
        traps=(
            "References are caption/tokenized; predictions are not segmented, so that th, zh and "
            "ja fall far below a system that writes words apart.",
            "Published figures follow the raw captions, as far as is known.",
        ),
    ),
    _captions(
        **transferred("textcaps"),
        name="textcaps",
        title="TextCaps",
        splits=("val", "train"),
        files=files_from(
            files.TEXTCAPS,
            ("TextCaps_0.1_{split}.json", "data[]: image_id, image_name, caption_str"),
            "train_images/ (test_images/)",
        ),
        reader=files.read_textcaps,
        from_rows=files.textcaps_examples,
        published=_cider(("TextCaps", "val", "val")),
        traps=(
            _WHOLE_SPLIT,
            "Pictures of val lie in train_images.",
            "Training targets are lower-cased, A to Z alone; references are not, the tokeniser "
            "does it.",
        ),
        server_splits=("test",),
    ),
    _captions(
        **transferred("scicap"),
        name="scicap",
        title="SciCap",
        splits=("test", "val", "train"),
        files=files_from(
            files.SCICAP,
            (
                "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig/{split}/file_idx.json",
                "names of pictures",
            ),
            (
                "SciCap-Caption-All/{split}/{id}.json",
                "1-lowercase-and-token-and-remove-figure-index.caption",
            ),
            "SciCap-No-Subfig-Img/{split}/",
        ),
        reader=files.read_scicap,
        score=partial(score_captions, bleu=True),
        published=(
            *_cider(
                ("SciCap (first sentence, no subfigure)", "test", "test"),
                ("SciCap", "test", "test"),
            ),
            *published_keys(
                "bleu_4", "BLEU-4", ("SciCap (first sentence, no subfigure)", "test", "test")
            ),
        ),
        traps=(
            "First sentences of figures without parts; the dataset has five other selections.",
            "The model card prints BLEU-4 as a fraction; here it is times 100.",
        ),
    ),
    _captions(
        **transferred("screen2words"),
        name="screen2words",
        title="Screen2Words",
        splits=screens.SPLITS,
        files=files_from(
            screens.SCREEN2WORDS,
            ("screen_summaries.csv", "screenId, summary"),
            ("split/{split}_screens.txt", "screenId"),
            _RICO_FILE,
        ),
        reader=screens.read_screen2words,
        published=_cider(("Screen2words", "test", "test"), ("Screen2Words", "test", "test")),
        traps=(_WHOLE_SPLIT, "Answers are cut at 24 tokens."),
    ),
    _captions(
        **transferred("widgetcap"),
        name="widgetcap",
        title="WidgetCap",
        splits=screens.SPLITS,
        files=files_from(
            screens.WIDGETCAP,
            ("widget_captions.csv", "screenId, nodeId, captions with | between them"),
            "{split}.txt (or split/{split}.txt)",
            _RICO_FILE,
        ),
        reader=screens.read_widgetcap,
        from_rows=screens.widgetcap_examples,
        published=_cider(
            ("Widget Captioning", "test", "test"),
            ("WidgetCap", "test", "test"),
            ("WidgetCap", "dev", "dev"),
        ),
        traps=(
            "The score uses all captions of a widget; two earlier papers use one.",
            "A red box, one pixel wide and drawn after resizing, marks the widget; the prompt "
            "does not mention it.",
            "A hub copy holds the boxes, so it needs no view hierarchies.",
            "Figures on dev belong to models trained on train alone.",
        ),
    ),
    Task(
        name="docci",
        title="DOCCI",
        family="captions",
        splits=docci.SPLITS,
        headline="nes",
        asking=Asking(text_len=256, max_new_tokens=192),
        files=files_from(
            docci.DOCCI,
            ("docci_descriptions.jsonlines", "example_id, split, image_file, description"),
            "images/",
            NeededFile(
                f"{docci.JUDGEMENTS_FILE} (only for NES)",
                "your raters, who judge every sentence of exactly these captions",
                fields="example_id, caption, labels[][]",
            ),
        ),
        reader=docci.read_docci,
        score=docci.score_docci,
        published=(
            *published_keys("nes", "non-entailment sentences %", _DOCCI),
            *published_keys("sentences", "mean sentences", _DOCCI),
            *published_keys("characters", "mean characters", _DOCCI),
        ),
        traps=(
            "NES rests on people's judgements, which no scorer replaces. Short captions err less,"
            " so read it beside the lengths.",
            "Neither the published prompt nor the training length is known.",
            "No source states the count of a tie of entailment with another verdict; ours is not "
            "entailed, and `--rule ties=entailed` or `ties=left_out` changes it.",
            "Sentences with nothing to assess do not count; `--rule nothing=counted` counts them "
            "as entailed.",
        ),
        rules=docci.NES_RULES,
    ),
    Task(
        name="mimic-cxr",
        title="MIMIC-CXR reports",
        family="captions",
        splits=mimic.MIMIC_SPLITS,
        headline="cider",
        # Length in tokens is unpublished; the longest reports of the test have about 400.
        asking=Asking(text_len=768, max_new_tokens=512),
        files=(
            NeededFile(
                "mimic-cxr-2.0.0-split.csv.gz",
                mimic.MIMIC_JPG,
                fields="dicom_id, study_id, subject_id, split",
            ),
            NeededFile(
                "files/p1X/p{subject}/s{study}.txt",
                mimic.MIMIC,
                fields="INDICATION, FINDINGS, IMPRESSION",
            ),
            NeededFile("files/p1X/p{subject}/s{study}/{dicom}.jpg", mimic.MIMIC_JPG),
            own_format("mimic-cxr", "prompt, no_indication, target, one_line"),
            NeededFile(
                mimic.GRAPHS_FILE,
                "optional, written by you with RadGraph's network",
                fields="id, report, prediction, reference",
            ),
        ),
        reader=mimic.read_mimic_cxr,
        score=mimic.score_reports,
        published=(
            *published_keys("cider", "CIDEr", _MIMIC),
            *published_keys("bleu_4", "BLEU-4", _MIMIC),
            *published_keys("rouge_l", "ROUGE-L", _MIMIC),
            *published_keys("radgraph_partial", "RadGraph F1", _MIMIC),
        ),
        traps=(
            "For PaliGemma 2 an LLM removed mentions of earlier studies from the reports; the "
            "reports here keep them, so figures do not quite compare.",
            "RadGraph F1 needs graphs of all reports from a separate network, in "
            f"{mimic.GRAPHS_FILE}; no source states the published level, so the partial one is "
            "compared.",
            "Every picture of a study is an example with the study's report.",
        ),
    ),
)
