"""The table of presets in the documentation follows the code."""

from __future__ import annotations

import re
from pathlib import Path

from paligemma.retrieval.presets import PRESETS, Preset

PAGE = Path(__file__).parents[2] / "docs" / "colpali.md"


def row_of(preset: Preset) -> list[str]:
    """A preset as the page shows it."""
    sees = "all" if preset.query_attention == "bidirectional" else "those before"
    return [
        f"`{preset.name}`",
        f"`{preset.query_prefix}`" if preset.query_prefix else "nothing",
        f"{preset.num_augmentation} \N{MULTIPLICATION SIGN} `{preset.augmentation_token}`",
        "yes" if preset.newline else "no",
        f"{sees} (`{preset.query_attention}`)",
    ]


def test_the_page_of_models_shows_every_preset_as_it_is() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Presets")[1].split("\n## ")[0]
    rows = [
        re.split(r"(?<=[^|]) \| ", line.strip("| "))[:5]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert rows == [row_of(preset) for preset in PRESETS.values()]
