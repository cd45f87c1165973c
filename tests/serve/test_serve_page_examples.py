"""The examples of the server's page: what it proposes to look for is found, each thing once."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from paligemma import PaliGemma

PAGE = Path(__file__).parents[2] / "src" / "paligemma" / "serve" / "page"
_EXAMPLE = re.compile(r'file: "([^"]+)", name: "[^"]+", labels: "([^"]+)"')


def test_the_embedded_model_finds_what_each_example_proposes() -> None:
    model = PaliGemma.from_pretrained("tiny")
    proposed = dict(_EXAMPLE.findall((PAGE / "pictures.js").read_text()))
    assert proposed.keys() == {path.name for path in (PAGE / "examples").iterdir()}
    for name, labels in proposed.items():
        picture = Image.open(PAGE / "examples" / name).convert("RGB")
        found = model.detect(picture, labels)
        assert set(found.labels) == set(labels.split(" ; ")), name
        assert len(model.detect(picture, labels, max_overlap=0.5)) == len(found), name
