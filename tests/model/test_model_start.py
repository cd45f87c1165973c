"""What building a model costs."""

from __future__ import annotations

import subprocess
import sys

_BUILD = """
import sys
import torch
from paligemma.config import release_config
from paligemma.model import PaliGemmaModel
with torch.device("meta"):
    PaliGemmaModel(release_config("gemma_2b", 224))
print("torch._dynamo" in sys.modules)
"""


def test_building_on_the_meta_device_does_not_import_torch_s_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BUILD], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
