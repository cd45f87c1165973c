"""`paligemma reproduce`: every row of both papers, its commands, its needs and its cost."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from official_files import write_official
from task_files import write_json, write_picture

from paligemma.cli import main
from paligemma.config import PaliGemmaConfig, release_config
from paligemma.example import Prediction
from paligemma.model.paligemma import PaliGemmaModel
from paligemma.tasks.catalog import tasks
from paligemma.tasks.published import published
from paligemma.tiny.start import tiny_config
from paligemma.tuning.plan import CARDS, cards_needed, plan
from paligemma.tuning.recipe import Recipe
from paligemma.tuning.reproduce import flops_a_row, rows, training_splits_of
from paligemma.tuning.watching import Judge
from paligemma.vocab import GEMMA_VOCAB

ROWS = rows()


def docvqa(data: Path) -> None:
    """Two questions of each split that DocVQA has."""
    for split, file in (
        ("train", "train_v1.0_withQT.json"),
        ("val", "val_v1.0_withQT.json"),
        ("test", "test_v1.0.json"),
    ):
        found = []
        for k in range(2):
            write_picture(
                data / "docvqa" / split / "documents" / f"{split}{k}.png", color=(90 * k, 10, 10)
            )
            row = {"questionId": k, "question": f"q{k}?", "image": f"documents/{split}{k}.png"}
            answers = {} if split == "test" else {"answers": ["0.28"], "question_types": ["form"]}
            found.append(row | answers)
        write_json(data / "docvqa" / file, {"data": found})


def test_every_published_figure_of_a_model_stands_in_a_row() -> None:
    shown = [one for row in ROWS.values() for one in row.figures]
    known = [one for task in tasks().values() for one in published(task)]
    assert len(shown) == len(known) == 625
    assert set(shown) == set(known)
    assert len(ROWS) == 327


def test_the_list_states_hours_and_figures(paligemma) -> None:
    lines = paligemma("reproduce", "--list", "--rate", "2").out.splitlines()
    (row,) = (line for line in lines if line.startswith("docvqa/paligemma-3b-pt-448 "))
    # 5.0 hours at 2 an hour.
    assert row.split(maxsplit=3)[1:3] == ["5.0", "(10)"]
    assert "anls 74.1 val" in row
    listed = paligemma("reproduce", "--list", "--json").json["rows"]
    assert [one["name"] for one in listed] == list(ROWS)


@pytest.mark.parametrize("benchmark", sorted({row.task.name for row in ROWS.values()}))
def test_a_dry_run_of_every_row_passes(benchmark: str) -> None:
    for name in (name for name, row in ROWS.items() if row.task.name == benchmark):
        # A stated size spares the plan of memory, which takes a second.
        words = ["reproduce", name, "--dry-run", "--json", "--micro-size", "1"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told["found"], name
        measured = [one for one in told["commands"] if f"paligemma eval {benchmark} " in one]
        assert len(measured) == len(told["splits"])
        trains = [one for one in told["commands"] if one.startswith("paligemma train ")]
        assert len(trains) == (told["trained_on"] is not None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("docvqa/paligemma-3b-pt-448", "train transfer:docvqa --data data/docvqa"),
        ("countbenchqa/paligemma2-3b-pt-224", "train transfer:tallyqa --data data/tallyqa"),
        ("countbenchqa/paligemma2-3b-pt-224", "--lr published"),
        ("refcocog/paligemma2-28b-pt-448", "--data data/refcoco --model"),
        ("icdar15/paligemma2-3b-pt-896", "train --recipe simple --task icdar15"),
        ("molecules/paligemma2-10b-pt-448", "train --recipe simple --data data/molecules-train"),
        ("docvqa/paligemma-3b-pt-448", "eval submission"),
    ],
)
def test_a_row_is_trained_as_it_was_published(paligemma, name: str, words: str) -> None:
    told = paligemma("reproduce", name, "--dry-run", "--json", "--micro-size", 1).json
    assert any(words in one for one in told["commands"])


def test_a_row_says_what_it_needs(paligemma) -> None:
    told = paligemma("reproduce", "pope/paligemma-3b-mix-224", "--dry-run", "--rate", "3").out
    assert "google/paligemma-3b-mix-224, gated" in told
    assert "coco_pope_{random|popular|adversarial}.json" in told
    assert "training   none" in told


def test_the_commands_of_a_row_are_those_that_fit_the_card(paligemma) -> None:
    name = "docvqa/paligemma-3b-pt-448"
    told = paligemma("reproduce", name, "--dry-run", "--card", "a100-40").out
    (needed,) = re.findall(r"needs (\d+) of a100-40: (--processes .*)", told)
    processes, words = int(needed[0]), needed[1]
    assert words == f"--processes {processes} --micro-size 1 --checkpointing"
    (train,) = (line for line in told.splitlines() if " train transfer:docvqa" in line)
    assert f"torchrun --standalone --nproc-per-node={processes} " in train
    assert "--micro-size 1 --checkpointing" in train

    told = paligemma("reproduce", name, "--dry-run").out
    (words,) = re.findall(r"fits one h100-80 with (--micro-size \d+)", told)
    (train,) = (line for line in told.splitlines() if " train transfer:docvqa" in line)
    assert f" {words} " in train
    for own in (("--checkpointing",), ("--micro-size", "3"), ("--processes", "1")):
        told = paligemma("reproduce", name, "--dry-run", "--json", *own).json
        assert words not in " ".join(told["commands"])


def sizes() -> PaliGemmaConfig:
    return tiny_config(replace(GEMMA_VOCAB))


@pytest.mark.parametrize("config", [sizes(), release_config("gemma_2b", 224)], ids=["tiny", "3b"])
def test_hours_follow_the_work_that_a_plan_measures(config: PaliGemmaConfig) -> None:
    recipe = Recipe(lora=None, batch_size=1)
    measured = plan(config, recipe, num_text=64, num_answer=16).flops_a_step
    # The plan leaves attention among the tokens out, a few percent at this resolution.
    assert flops_a_row(config, 1, 64) == pytest.approx(measured, rel=0.1)


def test_more_cards_are_asked_for_where_one_holds_too_little() -> None:
    single = plan(sizes(), Recipe(lora=None, batch_size=1), num_text=32, num_answer=8)
    tight = replace(CARDS["t4-16"], memory=int(single.total / 0.92) + 1)
    assert cards_needed(single, tight) == 1
    assert (cards_needed(single, replace(tight, memory=tight.memory - 10)) or 0) > 1
    assert cards_needed(single, replace(tight, memory=1000)) is None


def test_the_files_of_a_row_are_tried(paligemma, tmp_path: Path) -> None:
    name = "docvqa/paligemma-3b-pt-448"
    missing = paligemma("reproduce", name, "--dry-run", "--data", tmp_path, "--micro-size", 1)
    assert missing.status == 2
    for split in ("train", "val", "test"):
        assert f"docvqa {split}: " in missing.err
    docvqa(tmp_path)
    words = ("reproduce", name, "--dry-run", "--data", tmp_path, "--json", "--micro-size", 1)
    found = paligemma(*words).json["found"]
    assert found == [
        "docvqa train: first row 0, asked 'q0?'",
        "docvqa val: first row 0, asked 'q0?'",
        "docvqa test: first row 0, asked 'q0?'",
    ]


READING = Path(__file__).parents[1] / "tasks" / "reading"
_SPLIT = re.compile(r"(?<![A-Za-z])(train|validation|val2014|val|testdev|testA|test)(?![A-Za-z])")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet copies of the benchmarks that have some, with the rows of one split in each, and
    official files of the others."""
    data = tmp_path_factory.mktemp("small_files")
    write_official(data)
    for module in ("test_tasks_hub_copies", "test_tasks_hub_captions"):
        spec = importlib.util.spec_from_file_location(module, READING / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        cases = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cases)
        for case in cases.CASES:
            folder = data / case.task
            if folder.exists():
                continue
            case.copy(folder, case.official(data / "official" / case.task))
            for path in sorted(folder.rglob("*.parquet")):
                of_all_splits(path, folder)
    return data


def of_all_splits(path: Path, folder: Path) -> None:
    """Give the rows of a file to every split: as files of other names, or in its column."""
    table = pq.read_table(path)
    if "split" in table.column_names:
        place = table.column_names.index("split")
        others = [pa.array([split] * len(table)) for split in ("train", "val", "test")]
        pq.write_table(
            pa.concat_tables(table.set_column(place, "split", one) for one in others), path
        )
        return
    # The rows of a test server have no answers.
    if path.name.startswith("test-") and any(path.parent.glob("validation-*")):
        return
    for split in ("train", "validation", "test", "testB"):
        copy = folder / _SPLIT.sub(split, str(path.relative_to(folder)))
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def test_a_dry_run_reads_the_files_of_every_row(small_files: Path) -> None:
    for name, row in ROWS.items():
        words = ["reproduce", name, "--dry-run", "--json", "--data", str(small_files)]
        words += ["--micro-size", "1"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, f"{name}: {done.output}"
        found = json.loads(done.stdout)["found"]
        for split, _ in row.splits():
            assert any(one.startswith(f"{row.task.name} {split}: first row") for one in found)
        for split in training_splits_of(row):
            learnt = f"{row.trained_on.name} {split}: first row"  # type: ignore[union-attr]
            assert any(one.startswith(learnt) for one in found) or split != "train", name


def test_one_command_trains_and_measures_a_row(
    paligemma, tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docvqa(tmp_path)
    monkeypatch.chdir(tmp_path)
    # An untrained model writes on to its bound, so nobody answers while it is trained.
    monkeypatch.setattr(
        Judge, "answers", lambda self: [Prediction(id=one.id, text="1") for one in self.examples]
    )
    words = ("reproduce", "docvqa/paligemma-3b-pt-448", "--data", tmp_path, "--output", "run")
    short = ("--model", tiny_dir, "--steps", 1, "--batch-size", 1, "--micro-size", 1, "--limit", 1)
    done = paligemma(*words, *short)
    assert done.status == 0, done.err
    scores = json.loads((tmp_path / "run" / "val" / "scores.json").read_text())
    assert scores["num_asked"] == 1
    assert (tmp_path / "run" / "test.json").is_file()
    # Started again, nothing is trained or asked twice.
    weights = tmp_path / "run/train/train/step_0000001/model.safetensors"
    made, asked = weights.stat().st_mtime_ns, (tmp_path / "run/val/predictions.jsonl").read_bytes()
    assert paligemma(*words, *short).status == 0
    assert weights.stat().st_mtime_ns == made
    assert (tmp_path / "run/val/predictions.jsonl").read_bytes() == asked


def test_a_fine_tuned_model_is_measured_without_training(paligemma, tmp_path: Path) -> None:
    told = paligemma(
        *("reproduce", "docvqa/paligemma-3b-pt-448", "--dry-run", "--json"),
        *("--trained", "google/paligemma-3b-ft-docvqa-448"),
    ).json
    assert not any("train" in one.split()[1] for one in told["commands"])
    assert all("ft-docvqa-448" in one for one in told["commands"] if " docvqa " in one)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("docvqa/paligemma-3b-pt-44", "--dry-run"), "did you mean docvqa/paligemma-3b-pt-448"),
        (("docvqa/paligemma-3b-pt-448",), "needs its files in --data"),
        ((), "name a row"),
        (("docvqa/paligemma-3b-pt-448", "--list"), "leave NAME out"),
        (("--list", "--card", "abacus"), "a card must be one of"),
        (
            ("docvqa/paligemma-3b-pt-448", "--dry-run", "--trained", "a", "--model", "b"),
            "leave --model out",
        ),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(
    paligemma, words: tuple[str, ...], complaint: str
) -> None:
    done = paligemma("reproduce", *words)
    assert done.status == 2
    assert complaint in done.err


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("docvqa", "did you mean docvqa/paligemma-3b-pt-"),
        ("DocVQA/paligemma2-10b", "did you mean docvqa/paligemma2-10b-pt-224"),
        ("docqva", "did you mean docvqa/paligemma-3b-pt-"),
        ("zzz", "; `reproduce --list` has them all"),
    ],
)
def test_a_name_without_model_or_size_offers_those_that_there_are(
    paligemma, name: str, offered: str
) -> None:
    done = paligemma("reproduce", name, "--dry-run")
    assert done.status == 2
    assert offered in " ".join(done.err.split())


def test_the_parameters_of_the_work_are_those_of_the_model() -> None:
    # The products of a row without attention are six operations a weight and token.
    config = sizes()
    model = PaliGemmaModel(config)
    grid = config.vision.grid**2
    blocks = sum(p.numel() for p in model.text.blocks.parameters() if p.ndim == 2)
    assert blocks > 0
    assert flops_a_row(config, 1, 64) > 6 * blocks * (grid + 64)


def test_a_rate_that_is_no_number_is_refused() -> None:
    result = CliRunner().invoke(main, ["reproduce", "--list", "--rate", "nan", "--json"])
    assert result.exit_code == 2
    assert "--rate takes finite numbers, got nan" in result.output
