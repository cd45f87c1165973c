"""What a visitor sees: the commands of the pages, their links, and what the package holds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from paligemma.cli import main

ROOT = Path(__file__).parents[1]
PACKAGE = Path(str(resources.files("paligemma")))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LARGEST_FILE_BYTES = 20 * 2**20
MODEL_BYTES = 20_000_000

_FENCE = re.compile(r"```(?:bash|sh|shell|console)\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the source is no git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command line in the shell blocks of a page."""
    for block in _FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and ("=" in words[0] or words[0] in ("$", "time")):
                words = words[1:]
            if words:
                yield words


SHOWN = [(page.name, words) for page in PAGES for words in commands(page)]
ASKED = [(name, words) for name, words in SHOWN if words[0] == "paligemma"]


def parse(words: list[str]) -> click.Context:
    """The command that a line names, with its arguments parsed and not run."""
    command: click.Command = main
    context = main.make_context("paligemma", [], resilient_parsing=True)
    words = words[1:]
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-"):
            return command.make_context(command.name, words or ["--help"], parent=context)
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"there is no command {name!r}")
        command = found
    return command.make_context(command.name, words, parent=context)


def complaint_about(words: list[str]) -> str | None:
    """What the command line would say to these words, or None if it would go to work."""
    try:
        parse(words)
    except click.exceptions.Exit as told:
        return None if told.exit_code == 0 else f"exit code {told.exit_code}"
    except click.ClickException as error:
        return error.format_message()
    return None


def runs_offline(words: list[str]) -> bool:
    """Whether a line asks the embedded model about a picture of the repository, or asks nothing.

    A server has no end of its own; tests/serve and tests/review start them and stop them."""
    if words[0] != "paligemma" or "train" in words or words[1] in ("serve", "mcp", "review"):
        return False
    return not any(
        word.startswith(("google/", "photo", "runs/", "cards/", "data/", "reports/"))
        for word in words
    )


def quicker(words: list[str]) -> list[str]:
    """A benchmark of two pictures instead of a thousand."""
    if words[1:3] != ["eval", "scenes"]:
        return words
    return [*words, "--limit", "2"]


OFFLINE = [page for page in PAGES if any(map(runs_offline, commands(page)))]


def test_the_pages_show_commands() -> None:
    assert {words[0] for _, words in SHOWN} >= {"paligemma", "make"}
    assert len(ASKED) > 10


@pytest.mark.parametrize(("page", "words"), ASKED, ids=[" ".join(words) for _, words in ASKED])
def test_every_command_shown_exists_with_its_options(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pictures that a page talks about as the reader's own.
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.endswith((".png", ".jpg")) and "/" not in word:
            (tmp_path / word).touch()
    assert complaint_about(words) is None, page


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("paligemma detekt a.png cat", "there is no command 'detekt'"),
        ("paligemma detect a.png cat --treshold 0.3", "No such option"),
        ("paligemma detect a.png cat --threshold 3", "3.0 is not in the range 0<=x<=1."),
        ("paligemma eval scenes --limmit 3", "No such option"),
        ("paligemma answer", "Missing argument"),
        ("paligemma detect --help", None),
    ],
)
def test_a_misspelt_command_would_be_noticed(line: str, complaint: str | None) -> None:
    said = complaint_about(shlex.split(line))
    assert (said is None) is (complaint is None)
    assert (complaint or "") in (said or "")


@pytest.mark.parametrize("page", OFFLINE, ids=[page.name for page in OFFLINE])
def test_the_commands_that_need_no_download_run_in_the_order_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "desk.png", tmp_path / "examples")
    for words in filter(runs_offline, commands(page)):
        done = CliRunner().invoke(main, quicker(words)[1:])
        assert done.exit_code == 0, f"{shlex.join(words)}: {done.output}"
        assert done.output
        if "--json" in words:
            assert isinstance(json.loads(done.stdout), dict)


def test_every_make_target_shown_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "check", "bench", "clean", "help"} <= targets
    shown = {words[1] for _, words in SHOWN if words[0] == "make" and len(words) > 1}
    assert shown <= targets


def test_make_help_lists_every_target_with_a_line() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {line.split()[1]: line.split()[2:] for line in done.stdout.splitlines()}
    targets = {"demo", "finetune-demo", "test", "check", "test-kernels", "fuzz", "bench"}
    targets |= {"test-web", "test-api", "test-js", "test-triton", "package", "docs"}
    targets |= {"clean", "distclean", "help"}
    assert listed.keys() == targets
    assert all(len(line) >= 2 for line in listed.values())


def test_torch_is_pinned_beside_the_project_and_not_in_it() -> None:
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert pins == ["torch==2.13.0"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [entry for entry in project["dependencies"] if "==" in entry] == []
    everything = str(project["dependencies"]) + str(project["optional-dependencies"])
    assert "torchvision" not in everything
    assert "transformers" not in str(project["dependencies"])


def test_every_link_of_a_page_leads_somewhere() -> None:
    pages = [*PAGES, ROOT / "WEIGHTS_LICENSE.md", ROOT / "CHANGELOG.md"]
    pages += sorted(PACKAGE.rglob("*.md"))
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in _LINK.findall(page.read_text())
        if not target.startswith(("http://", "https://", "mailto:"))
        and not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_page_is_linked_from_the_readme_or_the_architecture() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", ROOT / "docs" / "architecture.md")
        for target in _LINK.findall(page.read_text())
    }
    lost = [page.name for page in (ROOT / "docs").glob("*.md") if page.resolve() not in linked]
    assert lost == []


def test_nothing_tracked_names_a_machine_or_a_registry() -> None:
    # Written in parts, so that this file does not name them.
    forbidden = re.compile(
        "|".join(
            (
                r"/work" r"/(?:main|shared)",
                r"/tmp" r"/v/",
                r"/ho" r"me/\w+/",
                r"/ro" r"ot/",
                r"/Us" r"ers/\w+/",
                r"PIP_(?:INDEX|FIND|EXTRA)",
                r"--index" r"-url",
                r"--extra-index" r"-url",
                r"pypi\.or" r"g/simple",
                r"artifact" r"ory",
            )
        )
    )
    found = []
    for path in tracked_files():
        raw = path.read_bytes()
        if b"\0" in raw[:8192]:
            continue
        text = raw.decode(errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if match := forbidden.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []


def test_the_licences_are_there_and_say_what_is_whose() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    weights = (ROOT / "WEIGHTS_LICENSE.md").read_text()
    for word in ("Gemma Terms of Use", "vae-oid.npz", "CC BY 4.0", "DejaVu", "`tiny`"):
        assert word in weights
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"].startswith("Apache-2.0 AND ")  # of the data inside, see below
    assert [name for name in project["license-files"] if not (ROOT / name).is_file()] == []


DATA = [
    "py.typed",
    "models/tiny/config.json",
    "models/tiny/mask_codec.safetensors",
    "models/tiny/model.safetensors",
    "models/tiny/tokenizer.model",
    "models/tiny/README.md",
    "scenes/data/SOURCES.md",
    "scenes/data/DejaVuSans.ttf",
    "scenes/data/LICENSE_DEJAVU.txt",
    "scenes/data/china.jpg",
    "scenes/data/digits.npz",
    "scenes/data/flower.jpg",
]


@pytest.mark.parametrize("name", DATA)
def test_the_package_holds_its_data(name: str) -> None:
    assert resources.files("paligemma").joinpath(name).is_file()


def test_every_file_of_data_is_packed() -> None:
    """What lies beside the code reaches a wheel: some pattern of package-data names it. The sources
    of the compiled kernels reach the source distribution: setup.py and MANIFEST.in name them."""
    built = (ROOT / "setup.py").read_text() + (ROOT / "MANIFEST.in").read_text()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    suffixes = {pattern.rpartition(".")[2] for pattern in setuptools["package-data"]["paligemma"]}
    left_out = [
        str(path.relative_to(PACKAGE))
        for path in tracked_files()
        if path.is_relative_to(PACKAGE) and path.suffix[1:] not in suffixes | {"py", "c", "h"}
    ]
    sources = [
        path
        for path in tracked_files()
        if path.is_relative_to(PACKAGE) and path.suffix in (".c", ".h")
    ]
    left_out += [path.name for path in sources if f'"{path.stem}"' not in built]
    assert left_out == []


def test_a_wheel_carries_the_licences_of_all_that_lies_in_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = {ROOT / name for name in project["license-files"]}
    named = {
        path
        for path in tracked_files()
        if path.suffix in ("", ".md", ".txt")
        and re.search("LICEN[CS]E|NOTICE|SOURCES", path.name)
        and not path.is_relative_to(ROOT / "tests")
    }
    assert named == files
    expression = project["license"].split(" AND ")
    sources = (PACKAGE / "scenes" / "data" / "SOURCES.md").read_text()
    for words in ("CC BY 4.0", "CC BY 2.0"):
        assert words in sources
        assert words.replace(" ", "-") in expression
    assert {"Apache-2.0", "Bitstream-Vera"} <= set(expression)


def test_the_embedded_model_is_small_enough_to_travel_with_the_code() -> None:
    folder = PACKAGE / "models" / "tiny"
    # Files of the model itself; its adapter for searching has a bound of its own.
    total = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    assert total <= MODEL_BYTES
    # With the adapter and the sprites that its pictures are drawn from.
    beside = sum(path.stat().st_size for path in (folder / "retrieval").iterdir())
    sprites = (PACKAGE / "scenes" / "data" / "things.zip").stat().st_size
    assert total + beside + sprites <= 22_000_000


def test_no_tracked_file_is_large() -> None:
    large = {
        str(path.relative_to(ROOT)): size
        for path in tracked_files()
        if (size := path.stat().st_size) > LARGEST_FILE_BYTES
    }
    assert large == {}
