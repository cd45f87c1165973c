"""Folders with some files replaced, and the program run on them in this process."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# A name that never leaves the folder, whatever the content asks for.
Files = Mapping[str, bytes]


@contextlib.contextmanager
def changed(base: Path, files: Files) -> Iterator[Path]:
    """A copy of a folder with some files replaced; nothing may appear beside it.

    Raises:
        AssertionError: a file appeared beside the folder.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "given"
        shutil.copytree(base, folder)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        yield folder
        beside = {path.name for path in Path(name).iterdir()} - {"given", "out"}
        assert not beside, f"beside the folder appeared {beside}"


def program(*words: object) -> None:
    """Run the program; what it prints holds no control character and no traceback.

    Raises:
        SystemExit: the program's end.
    """
    from paligemma.cli import main

    os.environ["HF_HUB_OFFLINE"] = "1"
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(word) for word in words])
    finally:
        printed = out.getvalue() + err.getvalue()
        assert "Traceback" not in printed, printed[-2000:]
        found = OBEYED.search(re.sub("\r|\x1b\\[A", "", printed))
        assert not found, f"a control character reached the terminal: {found!r}"
