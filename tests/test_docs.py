"""The pages: their Python runs, their anchors lead to headings, their tables follow the code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from paligemma.tiny.stages import STAGES, Stage

ROOT = Path(__file__).parents[1]
CARD = ROOT / "src" / "paligemma" / "models" / "tiny" / "README.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), CARD]

_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANCHOR = re.compile(r"\]\(([^)\s#]*)#([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Number of lines in front of a block, and the block."""
    text = page.read_text(encoding="utf-8")
    for match in _PYTHON.finditer(text):
        yield text.count("\n", 0, match.start(1)), match[1]


WITH_PYTHON = [page for page in PAGES if any(python_blocks(page))]


def test_the_pages_that_show_python_are_these() -> None:
    assert [name_of(page) for page in WITH_PYTHON] == [
        "README.md",
        "docs/agents.md",
        "docs/batch.md",
        "docs/evaluation.md",
        "docs/faithfulness.md",
        "docs/finetuning.md",
        "docs/index.md",
        "docs/outputs.md",
        "docs/prompts.md",
        "docs/quantisation.md",
        "docs/quickstart.md",
        "docs/retrieval.md",
        "docs/training-tiny.md",
        "docs/weights.md",
    ]


# supervision says so on import where OpenCV is missing.
@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "desk.png", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for offset, block in python_blocks(page):
        # Blank lines in front make a traceback name the line of the page.
        exec(compile("\n" * offset + block, str(page), "exec"), names)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the usual hosts write them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-") for one in headings}


def test_links_to_headings_lead_to_headings() -> None:
    found = [
        (page, page.parent / target if target else page, anchor)
        for page in PAGES
        for target, anchor in _ANCHOR.findall(page.read_text(encoding="utf-8"))
        if not target.startswith("http")
    ]
    assert found
    lost = [
        f"{name_of(page)}: #{anchor}" for page, to, anchor in found if anchor not in anchors(to)
    ]
    assert lost == []


def test_the_card_states_the_number_of_parameters_of_each_part() -> None:
    from paligemma.model import PaliGemmaModel
    from paligemma.processing.tokenizer import load_tokenizer
    from paligemma.tiny.start import tiny_config

    vocab = load_tokenizer(CARD.parent).vocab
    with torch.device("meta"):
        model = PaliGemmaModel(tiny_config(vocab))
    card = CARD.read_text(encoding="utf-8")
    for part in (model, model.vision, model.projector, model.text):
        assert f"{sum(p.numel() for p in part.parameters()):,}" in card


def test_the_page_on_training_lists_every_stage_as_the_recipe_has_it() -> None:
    page = (ROOT / "docs" / "training-tiny.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `[a-z]+-\d+` \|.*\|$", page, re.MULTILINE)
    assert shown == [row_of(one) for one in STAGES]


def row_of(stage: Stage) -> str:
    steps = f"{stage.total_steps:,}"
    return (
        f"| `{stage.name}` | {stage.window_px} px | {steps} | {stage.num_scenes} | "
        f"{stage.prompts_per_scene} | {stage.lr:g} | "
        + " | ".join(f"{value:g}" for value in vars(stage.losses).values())
        + " |"
    )


def test_the_page_on_prompts_states_the_ids_of_both_vocabularies() -> None:
    from paligemma.processing.tokenizer import load_tokenizer
    from paligemma.vocab import GEMMA_VOCAB, NUM_LOC, NUM_SEG

    page = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    tiny = load_tokenizer(CARD.parent).vocab

    def run(first: int, count: int) -> str:
        return f"{first} to {first + count - 1}"

    for row in (
        f"| {GEMMA_VOCAB.sep} | {tiny.sep} |",
        f"| {run(GEMMA_VOCAB.loc0, NUM_LOC)} | {run(tiny.loc0, NUM_LOC)} |",
        f"| {run(GEMMA_VOCAB.seg0, NUM_SEG)} | {run(tiny.seg0, NUM_SEG)} |",
        f"| {GEMMA_VOCAB.size:,} | {tiny.size:,} |",
    ):
        assert row in page


# Rooms of which the page on architecture names every file; elsewhere the folder says enough.
NAMED_ROOMS = (
    *("kernels", "model", "adapt", "processing", "outputs", "weights", "generate", "pipeline"),
    *("tasks", "tasks/own", "jobs", "train", "tuning"),
)


@pytest.mark.parametrize("room", NAMED_ROOMS)
def test_the_page_on_architecture_names_every_file_of_a_room_and_none_that_is_gone(
    room: str,
) -> None:
    lines = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    (row,) = (one for one in lines if re.match(rf"\| \d+ \| `{room}/` \|", one))
    folder = ROOT / "src" / "paligemma" / room
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"`(\w+\.py)`", row))
    assert files <= named
    assert {one for one in named - files if not list(folder.rglob(one))} == set()


def test_each_of_a_newcomers_five_tasks_takes_five_lines_at_most() -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    section = page.split("\n## Five tasks\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(?:python|bash)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    # The Python is run by this file, and the commands by `test_repository.py`.
    assert len(blocks) == 5
    assert max(len(block.splitlines()) for block in blocks) <= 5
