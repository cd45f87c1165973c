"""The order of the rooms and the manners of every module, read from the source by its syntax."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "paligemma"

# A row imports only from rows above it; rooms in one row never import each other.
# A room that is several modules lists them.
ROWS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"ground": ("errors", "config", "vocab")},
    {
        "batch": ("batch",),
        "kernels": ("kernels",),
        "whole_file": ("whole_file",),
        "json_file": ("json_file",),
        "one_writer": ("one_writer",),
        "stand_ins": ("stand_ins",),
        "stop_signals": ("stop_signals",),
    },
    {
        "model": ("model",),
        "adapt": ("adapt",),
        "processing": ("processing",),
        "outputs": ("outputs",),
        "scenes": ("scenes",),
    },
    {"example": ("example",)},
    {"weights": ("weights",), "generate": ("generate",), "metrics": ("metrics",)},
    {"pipeline": ("pipeline",), "tasks": ("tasks",)},
    {
        "jobs": ("jobs",),
        "train": ("train",),
        "retrieval": ("retrieval",),
        "client": ("client",),
    },
    {"eval": ("eval",), "serve": ("serve",), "review": ("review",)},
    {"tiny": ("tiny",), "tuning": ("tuning",), "bench": ("bench",), "export": ("export",)},
    {"cli": ("cli", "__main__")},
)
ROOM_OF = {module: room for row in ROWS for room, modules in row.items() for module in modules}
ROW_OF = {room: number for number, row in enumerate(ROWS, start=1) for room in row}

# Oracles and other frameworks: tests may use them, the package never.
FORBIDDEN = {"transformers", "torchvision", "jax", "flax", "tensorflow", "peft", "timm", "scipy"}
BANNED_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
MAX_LINES = 420
# A room that is all for the sake of its extras, which it may import at once; others import it late.
EXTRAS_OF_ROOM = {"serve": ("serve", "mcp", "replicas")}
# A module that is all for the sake of an extra; whoever needs it imports it late.
EXTRAS_OF_MODULE = {
    "paligemma.kernels.triton_layers": ("gpu",),
    "paligemma.kernels.triton_step": ("gpu",),
}
# Name on the package index of what is imported under another name.
DISTRIBUTION_OF = {"PIL": "pillow", "yaml": "pyyaml", "qdrant_edge": "qdrant_edge_py"}

MODULES = sorted(PACKAGE.rglob("*.py"))


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module.

    Attributes:
        target: full dotted name.
        line: where it stands.
        is_lazy: inside a function, or only for the type checker.
    """

    target: str
    line: int
    is_lazy: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in MODULES}


def imports_of(tree: ast.Module, name: str, *, is_package: bool) -> Iterator[Import]:
    """Every import statement, those inside functions and for the type checker too."""
    package = name.split(".") if is_package else name.split(".")[:-1]

    def walk(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            lazy = is_lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            lazy = lazy or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(target=alias.name, line=child.lineno, is_lazy=lazy)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else []
                base = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    # `from paligemma.outputs import draw` names a file, not an attribute.
                    name = f"{base}.{alias.name}"
                    target = name if base == "paligemma" or name in FILES else base
                    yield Import(target=target, line=child.lineno, is_lazy=lazy)
            yield from walk(child, lazy)

    yield from walk(tree, False)


@cache
def imports_of_file(path: Path) -> list[Import]:
    tree = ast.parse(path.read_text(), filename=str(path))
    return list(imports_of(tree, module_name(path), is_package=path.name == "__init__.py"))


def imports_of_text(text: str, name: str) -> list[Import]:
    return list(imports_of(ast.parse(text), name, is_package=False))


def broken_rule(importer: str, target: str) -> str | None:
    """Why one module of the package may not import another, or None if it may."""
    here, there = (name.split(".")[1] for name in (importer, target))
    if there not in ROOM_OF:
        return f"{target} belongs to no row; names at the root are for users of the package"
    if here not in ROOM_OF:
        return f"{importer} belongs to no row; add it to ROWS"
    ours, theirs = ROOM_OF[here], ROOM_OF[there]
    if ours == theirs or ROW_OF[theirs] < ROW_OF[ours]:
        return None
    return f"row {ROW_OF[ours]} ({ours}) imports from row {ROW_OF[theirs]} ({theirs})"


def is_ours(target: str) -> bool:
    return target == "paligemma" or target.startswith("paligemma.")


def test_every_module_belongs_to_a_row() -> None:
    # "models" holds the embedded model: data, no code.
    names = {name.split(".")[1] for name in map(module_name, MODULES) if "." in name}
    assert names <= set(ROOM_OF)


def test_a_row_imports_only_from_rows_above_it() -> None:
    broken = []
    for path in MODULES:
        name = module_name(path)
        if name == "paligemma":
            continue
        for found in imports_of_file(path):
            if is_ours(found.target) and (why := broken_rule(name, found.target)):
                broken.append(f"{path.relative_to(ROOT)}:{found.line}: {why}")
    assert broken == []


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("from paligemma.vocab import Vocab", True),
        ("from paligemma.kernels.attention import attend", True),
        ("from .kv_cache import KVCache", True),
        ("from ..vocab import Vocab", True),
        ("from paligemma.outputs.boxes import encode_boxes", False),
        ("import paligemma.train.loss", False),
        ("from paligemma import generate", False),
        ("from .. import weights", False),
        ("def f():\n    from paligemma.weights import load", False),
        ("if TYPE_CHECKING:\n    from paligemma.pipeline.paligemma import PaliGemma", False),
        ("from paligemma import PaliGemma", False),
    ],
)
def test_the_rule_sees_lazy_and_relative_imports(text: str, is_allowed: bool) -> None:
    (found,) = imports_of_text(text, "paligemma.model.gemma")
    assert (broken_rule("paligemma.model.gemma", found.target) is None) is is_allowed


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of names that reach each other, each sorted."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = edges.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    reach = {name: reached(name) for name in edges}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach.get(other, ())))
        for name in edges
    }
    return sorted(list(group) for group in groups if group)


def test_no_two_files_import_each_other_even_by_way_of_others() -> None:
    # An edge leads from a file to the file whose name its import states. Imports inside functions
    # and for the type checker count: a reader has to follow them too. That Python runs the
    # `__init__` of a package on the way to one of its modules is no edge, because the importing
    # file does not name it; `from paligemma.generate import stream` names it and is one.
    edges = {
        name: {one.target for one in imports_of_file(path) if one.target in FILES}
        for name, path in FILES.items()
    }
    assert circles(edges) == []


def test_a_circle_is_seen_however_long_it_is() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a", "c"}}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]
    late = "def f():\n    from paligemma.outputs import draw"
    (found,) = imports_of_text(late, "paligemma.outputs.types")
    assert (found.target, found.is_lazy) == ("paligemma.outputs.draw", True)


def test_the_package_never_imports_an_oracle() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{one.line}: {one.target}"
        for path in MODULES
        for one in imports_of_file(path)
        if one.target.split(".")[0] in FORBIDDEN
    }
    assert found == set()


def test_the_model_needs_torch_alone() -> None:
    allowed = {"torch", "paligemma", *sys.stdlib_module_names}
    roots = {
        one.target.split(".")[0]
        for path in (PACKAGE / "model").rglob("*.py")
        for one in imports_of_file(path)
    }
    assert roots <= allowed


def test_everything_imported_is_declared_and_extras_are_imported_late() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[>=\[]", entry)[0].replace("-", "_") for entry in requirements}

    core = names(project["dependencies"])
    extras = names(
        [
            entry
            for extra, entries in project["optional-dependencies"].items()
            if extra != "dev"
            for entry in entries
        ]
    )
    optional = project["optional-dependencies"]
    wrong = []
    for path in MODULES:
        room = path.relative_to(PACKAGE).parts[0]
        own = EXTRAS_OF_MODULE.get(
            ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), ()
        )
        at_once = core | {
            name
            for extra in (*EXTRAS_OF_ROOM.get(room, ()), *own)
            for name in names(optional.get(extra, []))
        }
        for one in imports_of_file(path):
            root = one.target.split(".")[0]
            theirs = one.target.split(".")[1:2]
            if one.target in EXTRAS_OF_MODULE and not one.is_lazy:
                wrong.append(f"{path.relative_to(ROOT)}:{one.line}: {one.target}")
            if is_ours(one.target) and theirs and theirs[0] in EXTRAS_OF_ROOM and theirs[0] != room:
                if not one.is_lazy:
                    wrong.append(f"{path.relative_to(ROOT)}:{one.line}: {one.target}")
                continue
            if root in sys.stdlib_module_names or is_ours(one.target):
                continue
            distribution = DISTRIBUTION_OF.get(root, root)
            if distribution not in at_once and not (distribution in extras and one.is_lazy):
                wrong.append(f"{path.relative_to(ROOT)}:{one.line}: {root}")
    assert wrong == []


def test_no_module_is_named_after_nothing_in_particular() -> None:
    named = [path.relative_to(ROOT) for path in MODULES if path.stem in BANNED_NAMES]
    assert named == []


def test_every_module_can_be_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in MODULES
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_every_module_says_what_it_is() -> None:
    silent = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_the_root_offers_these_names_and_no_more() -> None:
    import paligemma

    assert paligemma.__all__ == [
        "AnswerOptions",
        "Batch",
        "Client",
        "Detection",
        "Detections",
        "EncodedImage",
        "PaliGemma",
        "PaliGemmaConfig",
        "PaliGemmaError",
        "PaliGemmaModel",
        "Processor",
        "TextAnswer",
        "Tokenizer",
        "finetune",
        "load_model",
    ]
    assert len(paligemma.__all__) <= 15
    assert [name for name in paligemma.__all__ if not hasattr(paligemma, name)] == []


HEAVY = ("torch", "numpy", "PIL", "sentencepiece", "safetensors", "tqdm")


@pytest.mark.parametrize(
    "code",
    [
        "import paligemma",
        "from paligemma.cli import main; main(['--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    report = f"import sys; print('heavy:', *(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
