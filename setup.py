"""What pyproject.toml cannot say: a plain C library that may fail to build, for any Python, and a
description whose links hold where nobody has the clone."""

import hashlib
import os
import re
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = "src/paligemma/kernels"


def fingerprint(folder: str) -> str:
    """Of the sources, as `native.is_of_other_sources` makes it."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.[ch]")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def description(text: str, address: str | None) -> str:
    """README.md for an index of packages, where relative links and pictures lead nowhere.

    Args:
        address: of a release's files; without one, links become the paths of the files, and
            pictures the words that describe them.
    """

    def link(match: re.Match[str]) -> str:
        picture, words, path = match.groups()
        if address is not None:
            return f"{picture}[{words}]({address}/{path})"
        if picture:
            return f"*{words}*"
        return words if words.strip("`") == path else f"{words} (`{path}`)"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    relative = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")
    # Every second part is code, of which nothing is a link.
    return "".join(part if k % 2 else relative.sub(link, part) for k, part in enumerate(parts))


def release_address() -> str | None:
    """Where GitHub shows the files of this version, if the project's address is stated."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository")
    return repository and f"{repository.rstrip('/')}/raw/v{project['version']}"


class SharedLibrary(build_ext):
    """A library for ctypes: no symbols of Python, and a name without its version."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols


class AnyPython(bdist_wheel):
    """A wheel that depends on the platform and not on Python's version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


# `PALIGEMMA_KERNELS=off python -m build --wheel` makes the wheel that any machine takes.
BUILDS_KERNELS = os.environ.get("PALIGEMMA_KERNELS") != "off"

setup(
    long_description=description(Path("README.md").read_text(encoding="utf-8"), release_address()),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension(
            "paligemma.kernels._native",
            [
                f"{KERNELS}/{name}.c"
                for name in (
                    *("threads", "pack", "check", "limits", "attend", "step"),
                    *("products", "inputs", "level", "plain", "avx2", "avx512", "neon"),
                )
            ],
            depends=[
                f"{KERNELS}/{name}.h"
                for name in (
                    *("kernels", "panels", "vectors", "level", "inputs"),
                    *("pack_level", "step", "step_rows", "step_level"),
                    *("attend", "attend_level", "math_level"),
                )
            ],
            # gcc notes how vectors would be passed between files; here they never are.
            extra_compile_args=["-O3", "-pthread", "-Wno-psabi"],
            define_macros=[("PG_SOURCES", f'"{fingerprint(KERNELS)}"')],
            libraries=["m"],
            optional=True,
        )
    ]
    if BUILDS_KERNELS
    else [],
    cmdclass={"build_ext": SharedLibrary, "bdist_wheel": AnyPython},
)
