"""POPE, MMVP and Objaverse, which a model trained on VQAv2 answers zero-shot.

Source: arXiv:2407.07726 table 1 and appendix G; tsb0601/MMVP;
big_vision configs/proj/paligemma/transfers/pope.py.
"""

from typing import get_args

from paligemma.metrics.yes_no import OptionRule
from paligemma.tasks.published import asking_of, transferred
from paligemma.tasks.robustness import files, objaverse, scores
from paligemma.tasks.task import NeededFile, Task, files_from, published_keys

TASKS: tuple[Task, ...] = (
    Task(
        name="pope",
        title="POPE",
        family="robustness",
        splits=("test",),
        headline="accuracy",
        # A published evaluation of its own, beside the transfer whose model answers.
        asking=asking_of("pope"),
        files=(
            NeededFile(
                "coco_pope_{random|popular|adversarial}.json",
                files.POPE,
                fields="JSON lines: question_id, image, text, label",
            ),
            NeededFile("val2014/", files.COCO_VAL),
        ),
        reader=files.read_pope,
        from_rows=files.pope_examples,
        score=scores.score_pope,
        published=(
            *published_keys("accuracy", "accuracy", ("POPE", "mean", "test")),
            *(
                key
                for kind in files.POPE_FILES
                for key in published_keys(f"accuracy/{kind}", "accuracy", ("POPE", kind, "test"))
            ),
        ),
        traps=(
            "The released configuration asks the bare question; reported figures come from "
            "`answer en {question}`. `--prompt '{question}'` asks the former.",
            "The official script reads free text; the published accuracy needs exactly yes or no.",
        ),
        transfer="vqav2",
        is_zero_shot=True,
    ),
    Task(
        **transferred("vqav2"),
        name="mmvp",
        title="MMVP",
        family="robustness",
        splits=("all", "corrected"),
        headline="paired_accuracy",
        files=files_from(
            files.MMVP,
            ("Questions.csv", "Index, Question, Options, Correct Answer"),
            "MMVP Images/{1..300}.jpg",
        ),
        reader=files.read_mmvp,
        from_rows=files.mmvp_examples,
        score=scores.score_mmvp,
        published=published_keys("paired_accuracy", "paired accuracy", ("MMVP", "all", "all")),
        traps=(
            "A pair counts only if both of its questions are right.",
            "Rows 99, 100, 279 and 280 are wrong in the file; state whether you score `corrected`. "
            "A hub copy may be corrected already, which is warned of.",
            "The published rule for free text is unknown; ours needs the text of the right "
            "option, ignoring case and outer spaces. `--rule options=letter` needs its letter, "
            "`options=either` one of them.",
        ),
        rules={"options": get_args(OptionRule)},
        is_zero_shot=True,
    ),
    Task(
        **transferred("vqav2"),
        name="objaverse",
        title="Objaverse multiview",
        family="robustness",
        splits=("all",),
        headline="cosine",
        files=(
            NeededFile("lvis-annotations.json", files.OBJAVERSE, fields="category -> uids"),
            NeededFile("views/{uid}/*.png", "eight renderings of each object"),
            NeededFile(
                "embeddings.npz",
                "Universal Sentence Encoder v4 over the texts that scoring asks for",
                fields="texts, vectors",
            ),
        ),
        reader=files.read_objaverse,
        score=objaverse.score_objaverse,
        published=published_keys(
            "cosine",
            "cosine similarity (USEv4)",
            ("Objaverse multiview", "all", "all"),
            ("Objaverse Multiview", "all", "all"),
        ),
        traps=(
            "The published figures pool five sampled answers a question; ours pool the greedy "
            "answers of eight views and four questions.",
            "The weighting of answers is not fully published; ours is the sum of probabilities of"
            " equal answers, and the report has others beside it.",
            "Underscores of a category become spaces before it is embedded.",
        ),
        is_zero_shot=True,
    ),
)
