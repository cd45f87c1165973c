"""The model of a training under way, ready to be measured."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from paligemma.errors import CheckpointError
from paligemma.model import PaliGemmaModel
from paligemma.pipeline.options import RunSettings
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tiny.start import PATCH_PX, tiny_config
from paligemma.tiny.training import EMBEDDED, PART_FILES


def load_step(
    step_folder: Path, *, tokenizer: Path | None = None, mask_codec: Path | None = None
) -> PaliGemma:
    """Load the model of a training checkpoint at the image size of its position table.

    Args:
        step_folder: folder `step_NNNNNNN` of a training of the embedded model.
        tokenizer: file of the tokenizer; that of the package by default.
        mask_codec: file of the mask codec; that of the package by default.

    Raises:
        CheckpointError: the checkpoint is unreadable, or not of the embedded model's architecture.
    """
    pieces = Tokenizer.from_file(tokenizer or EMBEDDED / PART_FILES["tokenizer"])
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
        mask_codec=mask_codec or EMBEDDED / PART_FILES["mask_codec"],
        settings=RunSettings(kv_cache_dtype="float32", weigh_locations=True),
    )
