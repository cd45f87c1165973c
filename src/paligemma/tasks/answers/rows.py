"""Short answers to questions about photographs and diagrams.

Source: big_vision configs/proj/paligemma/transfers/{vqav2,okvqa,aokvqa_da,aokvqa_mc,gqa,textvqa,
vizwizvqa,ai2d}.py.
"""

from functools import partial

from paligemma.tasks.answers import ai2d, files, pairs, rsvqa, scienceqa, scores, vsr
from paligemma.tasks.published import transferred
from paligemma.tasks.reading.coco import COCO_IMAGES
from paligemma.tasks.reading.languages import XGQA_LANGUAGES
from paligemma.tasks.scoring import score_exact, score_languages, submit_rows
from paligemma.tasks.task import NeededFile, Task, files_from, published_keys

_COCO_2014 = NeededFile("train2014/, val2014/ (test2015/)", COCO_IMAGES)
_GQA_IMAGES = NeededFile("images/{imageId}.jpg", files.GQA)
_SERVER_TRAP = "Figures of the test server and of splits on disk are not comparable."
_AOKVQA_FILES = (
    NeededFile(
        "aokvqa_v1p0_{split}.json",
        files.AOKVQA,
        fields="question_id, image_id, question, choices, correct_choice_idx, direct_answers, "
        "difficult_direct_answer",
    ),
    NeededFile("{split}2017/", COCO_IMAGES),
)
_question = partial(Task, family="answers", headline="accuracy", splits=("val", "train"))
_aokvqa = partial(_question, files=_AOKVQA_FILES, server_splits=("test",))
_published = partial(published_keys, "accuracy", "accuracy")

TASKS: tuple[Task, ...] = (
    _question(
        **transferred("vqav2"),
        name="vqav2",
        title="VQAv2",
        splits=("minival", "minival-shuffled", "maxival", "val", "train"),
        files=files_from(
            files.VQA,
            (
                "v2_OpenEnded_mscoco_{train2014|val2014|test2015|test-dev2015}_questions.json",
                "questions[]: question_id, image_id, question",
            ),
            (
                "v2_mscoco_{train2014|val2014}_annotations.json",
                "annotations[]: question_id, answers[].answer, answer_type",
            ),
            _COCO_2014,
        ),
        reader=files.read_vqav2,
        from_rows=files.vqav2_examples,
        score=scores.score_vqa,
        published=_published(
            ("VQAv2", "minival", "minival"),
            ("VQAv2", "minival", "minival-shuffled"),
            ("VQAv2", "test server - std", None),
            ("VQAv2", "test-std", None),
        ),
        traps=(
            _SERVER_TRAP,
            "Minival is the end of val; a model that was trained on all of val has seen it.",
            "minival takes the end of the file; the data sets that big_vision builds are shuffled "
            "by a hash, and minival-shuffled takes their end.",
            "Where ten annotators agree, nothing is cleaned up: `Yes` scores 0 against ten `yes`.",
        ),
        server_splits=("test", "test-dev"),
        submission=partial(submit_rows, key="question_id"),
    ),
    _question(
        **transferred("okvqa"),
        name="okvqa",
        title="OK-VQA",
        files=files_from(
            files.OKVQA,
            (
                "OpenEnded_mscoco_{train2014|val2014}_questions.json",
                "questions[]: question_id, image_id, question",
            ),
            (
                "mscoco_{train2014|val2014}_annotations.json",
                "annotations[]: question_id, answers[].answer, question_type",
            ),
            _COCO_2014,
        ),
        reader=files.read_okvqa,
        from_rows=files.okvqa_examples,
        score=scores.score_soft,
        published=_published(("OKVQA", "val", "val")),
        traps=(
            "Every annotator who agrees gives a third of a point, up to one; nothing is cleaned "
            "up, and no annotator is left out as in VQAv2.",
            "The answers are the stemmed ones, not raw_answer.",
        ),
    ),
    _aokvqa(
        **transferred("aokvqa_da"),
        name="aokvqa-da",
        title="A-OKVQA, direct answers",
        reader=files.read_aokvqa_direct,
        from_rows=files.aokvqa_direct_examples,
        score=scores.score_aokvqa_direct,
        published=_published(
            ("AOKVQA-DA", "val", "val"),
            ("AOKVQA-DA", "test", None),
            ("A-OKVQA (DA)", "test server", None),
        ),
        traps=(
            _SERVER_TRAP,
            "The data set's own scorer leaves out questions flagged difficult_direct_answer; the "
            "published figures on val keep them.",
        ),
        submission=partial(scores.submit_aokvqa, kind="direct_answer"),
    ),
    _aokvqa(
        **transferred("aokvqa_mc"),
        name="aokvqa-mc",
        title="A-OKVQA, multiple choice",
        reader=files.read_aokvqa_choices,
        from_rows=files.aokvqa_choices_examples,
        score=scores.score_aokvqa_choices,
        published=_published(
            ("AOKVQA-MC", "val", "val"),
            ("AOKVQA-MC", "test", None),
            ("A-OKVQA (MC)", "test server", None),
        ),
        traps=(
            _SERVER_TRAP,
            "Two spaces follow `answer en`, and options stand between space, tab, space.",
            "The answer is the text of an option, not its letter.",
        ),
        submission=partial(scores.submit_aokvqa, kind="multiple_choice"),
    ),
    _question(
        **transferred("gqa"),
        name="gqa",
        title="GQA",
        splits=("testdev", "val", "train"),
        files=(
            NeededFile(
                "{split}_balanced_questions.json",
                files.GQA,
                fields="id -> imageId, question, answer",
            ),
            _GQA_IMAGES,
        ),
        reader=files.read_gqa,
        from_rows=files.gqa_examples,
        score=score_exact,
        published=_published(
            ("GQA", "testdev balanced", "testdev"),
            ("GQA", "testdev", "testdev"),
        ),
        traps=("The splits hold the balanced questions: 12,578 of testdev, not all 172,174.",),
    ),
    _question(
        **transferred("gqa"),
        name="xgqa",
        title="xGQA",
        splits=("testdev", *(f"testdev_{one}" for one in XGQA_LANGUAGES)),
        headline="accuracy/avg7",
        files=(
            NeededFile(
                "annotations/zero_shot/testdev_balanced_questions_{language}.json",
                files.XGQA,
                fields="id -> imageId, question, answer",
            ),
            _GQA_IMAGES,
        ),
        reader=files.read_xgqa,
        from_rows=files.xgqa_examples,
        score=partial(score_languages, score=score_exact, languages=XGQA_LANGUAGES),
        published=(
            *published_keys("accuracy/avg7", "accuracy", ("xGQA", "avg7", "testdev")),
            *published_keys(
                "accuracy/avg8",
                "mean accuracy",
                ("xGQA", "mean (bn,de,en,id,ko,pt,ru,zh)", "testdev"),
            ),
        ),
        traps=(
            "Questions are in eight languages, the prompt starts `answer en`, answers are English.",
            "The reports leave English out (avg7), the model card keeps it (avg8).",
            "The hub copy holds 9,666 of the 12,578 questions of a language and no ids, so its "
            "figures do not compare.",
        ),
        is_zero_shot=True,
    ),
    _question(
        **transferred("textvqa"),
        name="textvqa",
        title="TextVQA",
        files=files_from(
            files.TEXTVQA,
            ("TextVQA_0.5.1_{split}.json", "data[]: question_id, image_id, question, answers"),
            "train_images/ (test_images/)",
            NeededFile(
                "train-images-boxable-with-rotation.csv (test-images-with-rotation.csv), optional",
                files.OPEN_IMAGES_IDS,
                fields="ImageID, Rotation",
            ),
        ),
        reader=files.read_textvqa,
        from_rows=files.textvqa_examples,
        score=partial(scores.score_vqa, by_type=False),
        published=_published(
            ("TextVQA", "val", "val"),
            ("TextVQA", "test server - std", None),
            ("TextVQA", "test-std", None),
        ),
        traps=(
            _SERVER_TRAP,
            "Some pictures lie on their side; only OpenImages' id files turn them upright.",
            "Pictures of val lie in train_images.",
        ),
        server_splits=("test",),
        submission=partial(submit_rows, key="question_id"),
    ),
    _question(
        **transferred("vizwizvqa"),
        name="vizwiz",
        title="VizWiz-VQA",
        files=files_from(
            files.VIZWIZ,
            ("annotations/{split}.json", "image, question, answers[].answer, answer_type"),
            "{split}/",
        ),
        reader=files.read_vizwiz,
        from_rows=files.vizwiz_examples,
        score=scores.score_soft,
        published=_published(
            ("VizWizVQA", "val", "val"),
            ("VizWizVQA", "test", None),
            ("VizWiz VQA", "test server - std", None),
        ),
        traps=(
            _SERVER_TRAP,
            "The score on val is a third for each match, without clean-up; the server scores as "
            "VQAv2.",
            "The second report prints test figures of the first in a column headed val.",
        ),
        server_splits=("test",),
        submission=partial(submit_rows, key="image"),
    ),
    _question(
        **transferred("ai2d"),
        name="ai2d",
        title="AI2D",
        splits=("test", "train"),
        files=files_from(
            ai2d.AI2D,
            (
                "ai2d/questions/{image}.json",
                "imageName; questions: text -> answerTexts, correctAnswer, abcLabel, questionId",
            ),
            ("ai2d/annotations/{image}.json", "text: id -> rectangle, replacementText"),
            "ai2d/images/",
            ("ai2d_test_ids.csv", "one image a line"),
        ),
        reader=ai2d.read_ai2d,
        from_rows=ai2d.ai2d_examples,
        score=score_exact,
        published=_published(("AI2D", "test", "test")),
        traps=(
            "The comparison is case-sensitive.",
            "Where a question asks for letters, they are painted over the labels, here in "
            f"{ai2d.FONT_NAME}, in the original in DM Sans.",
            "Two spaces follow `answer en`, and options stand between space, tab, space.",
            "A hub copy shows the letters that its maker painted.",
        ),
    ),
    *scienceqa.TASKS,
    *pairs.TASKS,
    *vsr.TASKS,
    *rsvqa.TASKS,
)
