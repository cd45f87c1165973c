"""Put the pages of the site together in build/pages: `make docs`.

The pages of `docs/`, those at the root of the repository, and the notebooks as Markdown. A link
that leaves them leads to the file's page where there is one, and else becomes the file's path.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages of the site.
ELSEWHERE = {
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "WEIGHTS_LICENSE.md": "WEIGHTS_LICENSE.md",
    "README.md": "readme.md",
    "benchmarks/README.md": "benchmarks.md",
    "src/paligemma/models/tiny/README.md": "tiny.md",
    "tests/golden/data/README.md": "golden.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def put_together(output: Path, *, runs_notebooks: bool) -> dict[Path, str]:
    """Write every page below a folder, which is emptied first.

    Args:
        runs_notebooks: run them for their outputs, else their pages show the code alone.

    Returns:
        The place of each source on the site.
    """
    places = {path: path.name for path in (ROOT / "docs").glob("*.md")}
    places |= {ROOT / source: target for source, target in ELSEWHERE.items()}
    notebooks = (ROOT / "examples" / "notebooks").glob("*.ipynb")
    places |= {path: f"notebooks/{path.stem}.md" for path in notebooks}
    shutil.rmtree(output, ignore_errors=True)
    (output / "notebooks").mkdir(parents=True)
    for source, target in places.items():
        text = source.read_text(encoding="utf-8")
        if source.suffix == ".ipynb":
            content = executed(source) if runs_notebooks else json.loads(text)
            text = notebook(content, output / "notebooks", source.stem)
        (output / target).write_text(linked(text, source, target, places, output), "utf-8")
    return places


def executed(path: Path) -> dict[str, Any]:
    """A notebook with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return book


def notebook(content: dict[str, Any], folder: Path, name: str) -> str:
    """The cells of a notebook with what they printed, as Markdown; pictures go into the folder."""
    parts = []
    for place, cell in enumerate(content["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        outputs = cell.get("outputs", ())
        printed = "".join("".join(one["text"]) for one in outputs if one.get("name") == "stdout")
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for one in outputs:
            if picture := one.get("data", {}).get("image/png"):
                (folder / f"{name}-{place}.png").write_bytes(base64.b64decode(picture))
                parts.append(f"![what the cell above shows]({name}-{place}.png)")
    return "\n\n".join(parts) + "\n"


def linked(text: str, source: Path, target: str, places: dict[Path, str], output: Path) -> str:
    """A page with its links as they are on the site; its pictures are copied there."""

    def link(match: re.Match[str]) -> str:
        picture, words, where, anchor = match[1], match[2], match[3], match[4] or ""
        file = (source.parent / where).resolve()
        here = Path(target).parent
        if (output / here / where).exists():
            return match[0]
        if file in places:
            return f"[{words}]({os.path.relpath(places[file], here)}{anchor})"
        if file.suffix in (".png", ".webp", ".jpg") and file.is_file():
            copy = Path("pictures") / file.name
            (output / copy).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, output / copy)
            return f"{picture}[{words}]({os.path.relpath(copy, here)})"
        name = str(file.relative_to(ROOT))
        return words if words.strip("`") == name else f"{words} (`{name}`)"

    parts = _CODE.split(text)
    # Every second part is code, of which nothing is a link.
    return "".join(
        part if k % 2 else _LINK.sub(link, part).replace("labels[][]", r"labels\[\]\[\]")
        for k, part in enumerate(parts)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "pages")
    parser.add_argument("--no-notebooks", action="store_true", help="show their code alone")
    options = parser.parse_args()
    put_together(options.output, runs_notebooks=not options.no_notebooks)
