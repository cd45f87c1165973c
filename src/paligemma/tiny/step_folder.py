"""The model of a training under way, ready to be measured."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from paligemma.errors import CheckpointError
from paligemma.json_file import read_json
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.options import RunSettings
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tiny.start import PATCH_PX, tiny_config
from paligemma.tiny.training import EMBEDDED, PART_FILES
from paligemma.weights.hashes import sha256


def load_step(
    step_folder: Path, *, tokenizer: Path | None = None, mask_codec: Path | None = None
) -> PaliGemma:
    """Load the model of a training checkpoint at the image size of its position table.

    Args:
        step_folder: folder `step_NNNNNNN` of a training of the embedded model.
        tokenizer: file of the tokenizer; that of the package by default.
        mask_codec: file of the mask codec; that of the package by default.

    Raises:
        CheckpointError: the checkpoint is unreadable, not of the embedded model's architecture, or
            was trained with another tokenizer or codec.
    """
    parts = {
        "tokenizer": tokenizer or EMBEDDED / PART_FILES["tokenizer"],
        "mask_codec": mask_codec or EMBEDDED / PART_FILES["mask_codec"],
    }
    pieces = Tokenizer.from_file(parts["tokenizer"])
    _require_parts(step_folder, parts)
    path = step_folder / "model.safetensors"
    try:
        tensors = load_file(path)
        grid = round(tensors["vision.pos_embedding"].shape[1] ** 0.5)
        model = PaliGemmaModel(tiny_config(pieces.vocab, grid * PATCH_PX))
        model.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} must be a checkpoint of the embedded model's training, but it is not "
            f"({str(error)[:300]}); name a step_NNNNNNN folder and the tokenizer of that training"
        ) from error
    return PaliGemma(
        model.eval(),
        Processor(pieces, grid * PATCH_PX),
        mask_codec=parts["mask_codec"],
        settings=RunSettings(kv_cache_dtype="float32", weigh_locations=True),
    )


def _require_parts(step_folder: Path, parts: Mapping[str, Path]) -> None:
    """Raise CheckpointError unless a checkpoint was trained with these files.

    Two tokenizers of one size would make an answer of any ids.
    """
    path = step_folder / "state.json"
    try:
        run = read_json(path).get("run", {}) if path.is_file() else {}
        others = [
            name for name, file in parts.items() if run.get(name, "") not in ("", sha256(file))
        ]
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} must be the record of a training, but it is not ({str(error)[:300]}); name "
            "another checkpoint"
        ) from error
    if others:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in others)
        raise CheckpointError(
            f"{step_folder} was trained with another {' and another '.join(others)}; name the "
            f"file with {options}"
        )
