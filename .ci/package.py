"""Build the packages and try them where nobody has the clone: `make package`.

The source distribution is built from the files that git tracks, the wheels from the source
distribution: one without compiled kernels, which any machine takes, and one with them. Each is
installed into an environment of its own and asked for help, for completions and for an answer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]
# Seconds of processor time; what the tests demand of a clone, with room for a busy machine.
HELP_S, IMPORT_S = 0.5, 0.5
TRY = """
import json, sys, time
begun = time.process_time()
import paligemma
spent, has_torch = time.process_time() - begun, "torch" in sys.modules
from paligemma.kernels import native
print(json.dumps({"from": paligemma.__file__, "import_s": round(spent, 3),
                  "has_torch": has_torch, "kernels": native.library() is not None,
                  "python": sys.version.split()[0], "torch": sys.modules["torch"].__version__}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--kind", action="append", choices=("pure", "kernels"))
    parser.add_argument(
        "--python", default=sys.executable, help="the interpreter that the wheels are tried with"
    )
    parser.add_argument(
        "--resolve",
        action="store_true",
        help="install the dependencies as pip resolves them, in the place of this environment's",
    )
    parser.add_argument("--with", dest="more", action="append", default=[], metavar="torch==2.10.0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paligemma-package-") as made:
        folder = Path(made)
        clone = tracked(folder / "clone")
        source = build(clone, "sdist", folder / "sdist")
        with tarfile.open(source) as archive:
            archive.extractall(folder / "source", filter="data")
        (unpacked,) = (folder / "source").iterdir()
        check_metadata((unpacked / "PKG-INFO").read_bytes(), source.name)
        require(not (unpacked / "tests").exists(), f"{source.name} holds tests without their data")
        built = [source]
        for kind in options.kind or ("pure", "kernels"):
            kernels = "off" if kind == "pure" else None
            wheel = build(unpacked, "wheel", folder / kind, kernels=kernels)
            check_contents(wheel, kind, clone / "src")
            told = try_wheel(wheel, folder / f"{kind}-venv", options)
            print(json.dumps({"wheel": wheel.name, "bytes": wheel.stat().st_size, **told}))
            built.append(wheel)
        options.output.mkdir(parents=True, exist_ok=True)
        for path in built:
            shutil.copy2(path, options.output)


def tracked(folder: Path) -> Path:
    """Copy the files of the clone, with its changes, and nothing that tools left in it."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def build(source: Path, what: str, output: Path, *, kernels: str | None = None) -> Path:
    """Run `python -m build` with this environment's setuptools."""
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environ.pop("PALIGEMMA_KERNELS", None)
    if kernels is not None:
        environ["PALIGEMMA_KERNELS"] = kernels
    words = ("-m", "build", "--no-isolation", f"--{what}", "--outdir", str(output), str(source))
    run(sys.executable, *words, environ=environ)
    (found,) = output.iterdir()
    return found


def check_metadata(written: bytes, name: str) -> None:
    """What an index of packages asks of metadata, and a description that reads well there."""
    try:
        metadata = Metadata.from_email(written, validate=True)
    except ExceptionGroup as errors:
        sys.exit(f"the metadata of {name} is refused: {'; '.join(map(str, errors.exceptions))}")
    text = metadata.description or ""
    require(len(text) > 1_000, f"{name} has no description")
    require(metadata.description_content_type == "text/markdown", f"{name} is not in Markdown")
    relative = re.findall(r"\]\((?![a-z]+:|#)([^)]+)\)", text)
    require(not relative, f"the description of {name} has links that lead nowhere: {relative[:3]}")


def check_contents(wheel: Path, kind: str, source: Path) -> None:
    """A wheel holds the package as the clone has it and its licences, and nothing beside it."""
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    (described,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    check_metadata(archive.read(described), wheel.name)
    packed = {name for name in names if not name.startswith(f"{described.split('/')[0]}/")}
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "paligemma").rglob("*")
        if path.is_file() and path.suffix not in (".c", ".h")
    }
    libraries = {name for name in packed if name.endswith(".so")}
    lost, more = sorted(expected - packed), sorted(packed - libraries - expected)
    require(not lost, f"{wheel.name} lacks {lost[:5]}")
    require(not more, f"{wheel.name} holds {more[:5]}, which are no part of the package")
    require(bool(libraries) == (kind == "kernels"), f"{wheel.name}: compiled kernels {libraries}")
    require(wheel.name.endswith("-any.whl") == (kind == "pure"), wheel.name)


def try_wheel(wheel: Path, venv: Path, options: argparse.Namespace) -> dict[str, object]:
    """Install a wheel into an environment of its own, and ask it."""
    run(options.python, "-m", "venv", str(venv))
    python = venv / "bin" / "python"
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    if options.resolve:
        run(*pip, *options.more, str(wheel))
    else:
        run(*pip, "--no-deps", str(wheel))
        # The packages of this environment behind its own, without the clone that is installed
        # there in editable form: that is another file of the kind that Python reads at its start.
        site = Path(
            run(str(python), "-c", "import sysconfig as s; print(s.get_path('purelib'))").strip()
        )
        (site / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n")
    outside = venv / "outside"
    (outside / "examples").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "desk.png", outside / "examples")
    environ = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    told = json.loads(run(str(python), "-c", TRY, cwd=outside, environ=environ))
    require(str(venv) in told.pop("from"), "the package of another place was imported")
    require(not told.pop("has_torch"), "`import paligemma` imports torch")
    require(told["import_s"] < IMPORT_S, f"`import paligemma` took {told['import_s']} s")
    program = str(venv / "bin" / "paligemma")
    begun = children()
    shown = run(program, "--help", cwd=outside, environ=environ)
    told["help_s"] = round(children() - begun, 3)
    require("detect" in shown and told["help_s"] < HELP_S, f"--help took {told['help_s']} s")
    completing = {**environ, "_PALIGEMMA_COMPLETE": "bash_source"}
    require("_paligemma_completion" in run(program, cwd=outside, environ=completing), "completion")
    begun_s = time.monotonic()
    words = ("detect", "examples/desk.png", "star", "--model", "tiny", "--json")
    found = json.loads(run(program, *words, cwd=outside, environ=environ))
    told["detect_s"] = round(time.monotonic() - begun_s, 1)
    labels = [one["label"] for one in found["detections"]]
    require("star" in labels, f"the embedded model found {labels} on examples/desk.png")
    return told


def children() -> float:
    """Processor seconds of the processes that ended."""
    used = os.times()
    return used.children_user + used.children_system


def run(*words: str, cwd: Path | None = None, environ: dict[str, str] | None = None) -> str:
    """What a command writes on standard output; its complaint ends this program."""
    done = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def require(holds: bool, words: str) -> None:
    if not holds:
        sys.exit(f"the package is not as it should be: {words}")


if __name__ == "__main__":
    main()
