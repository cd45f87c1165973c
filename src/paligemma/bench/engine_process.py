"""A process of `worker.py` from outside: started, asked, and ended whatever it does."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from paligemma.bench import worker
from paligemma.errors import ConfigError

OURS = "ours"
# Of one answer: seconds it may take, bytes it may have.
_TIMEOUT_S, _MAX_LINE = 3600, 1 << 16


class EngineFailed(Exception):
    """A worker ended, or answered what is no answer; the text says which."""


class Worker:
    """A process of `worker.py`; a context manager that ends it.

    Raises:
        ConfigError: it does not start, or its engine is not installed.
    """

    def __init__(self, engine: str, python: str, threads: int) -> None:
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        env["CUDA_VISIBLE_DEVICES"] = ""  # processors are compared
        if engine == OURS:
            places = (str(Path(__file__).parents[2]), env.get("PYTHONPATH"))
            env["PYTHONPATH"] = os.pathsep.join(one for one in places if one)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, str(Path(worker.__file__)), engine],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=env,
            )
        except OSError as error:
            self._errors.close()
            raise ConfigError(
                f"{python!r:.200} cannot be run ({error.strerror}); name a Python that has "
                f"{engine} with --peer-python"
            ) from error
        try:
            found = self._read()
        except EngineFailed as error:
            self.close()
            raise ConfigError(
                f"{engine} does not start with {python!r:.200}: {error}; name a Python that has it "
                "with --peer-python"
            ) from error
        if "missing" in found:
            self.close()
            raise ConfigError(
                f"{engine} is not installed for {python!r:.200} ({found.get('reason')!s:.200}); "
                f"install {found['missing']!s:.50} there, or name a Python that has it with "
                "--peer-python"
            )
        self.version = found.get("version")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a line.

        Raises:
            EngineFailed: there is none.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # its end, which is read below
            pass
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(_TIMEOUT_S, give_up)
        timer.start()
        try:
            line = self._process.stdout.readline(_MAX_LINE)
        finally:
            timer.cancel()
        if is_late.is_set():
            raise EngineFailed(f"it did not answer within {_TIMEOUT_S} s")
        if not line:
            status = self._process.wait()
            raise EngineFailed(f"its process ended with status {status}{self._last_words()}")
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise EngineFailed(f"it answered {line[:80]!r}, which is no JSON object")
        if "error" in body:
            raise EngineFailed(f"{body['error']!s:.300}")
        return body

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" ({last:.200})" if last else ""

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
