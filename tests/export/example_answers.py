"""The program that an export writes beside a model, held against the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tiny_folder import DESK

from paligemma import PaliGemma


def require_the_models_answer(folder: Path, model: Path) -> None:
    """Run an export's example.py for 12 tokens; it must print what the model answers."""
    settings = json.loads((folder / "generation_config.json").read_text())
    short = json.dumps(settings | {"max_new_tokens": 12})
    (folder / "generation_config.json").write_text(short)
    done = subprocess.run(
        [sys.executable, folder / "example.py", DESK, "caption en"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    loaded = PaliGemma.from_pretrained(model, kv_cache_dtype="float32")
    answer = loaded.generate(DESK, "caption en", max_new_tokens=12).text
    assert done.stdout.strip() == answer.strip()
    assert len(answer) > 5
