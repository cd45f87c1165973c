"""`paligemma eval`: what a model scores, and how sure that is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paligemma.errors import CheckpointError

if TYPE_CHECKING:
    from paligemma.eval.report import SceneReport
    from paligemma.eval.runner import SceneModel

logger = logging.getLogger(__name__)

# A training step's own file beside the model; a model folder has config.json instead.
STEP_FILES = ("model.safetensors", "state.json")


@click.group("eval")
def eval_group() -> None:
    """Measure a model on a benchmark."""


def is_step_folder(path: Path) -> bool:
    """Whether this is a checkpoint of an unfinished training rather than a model to publish."""
    return all((path / name).is_file() for name in STEP_FILES)


def load_step(
    step_folder: Path,
    tokenizer_path: Path,
    codec_path: Path | None,
    *,
    image_size_px: int | None = None,
) -> SceneModel:
    """The model of a training checkpoint `step_NNNNNNN`, ready to be measured.

    Args:
        codec_path: mask codec; None leaves masks undecoded, so that segmentation scores 0.
        image_size_px: side of its input; read off the position table by default.

    Raises:
        CheckpointError: unreadable, or not of the embedded model's architecture.
    """
    from types import SimpleNamespace
    from typing import cast

    from safetensors.torch import load_file

    from paligemma.model import PaliGemmaModel
    from paligemma.outputs.vqvae import load_mask_codec
    from paligemma.processing.processor import Processor
    from paligemma.processing.tokenizer import Tokenizer
    from paligemma.train.tiny import PATCH_PX, tiny_config

    tokenizer = Tokenizer.from_file(tokenizer_path)
    path = step_folder / "model.safetensors"
    try:
        tensors = load_file(path)
        grid = round(tensors["vision.pos_embedding"].shape[1] ** 0.5)
        size_px = grid * PATCH_PX if image_size_px is None else image_size_px
        model = PaliGemmaModel(tiny_config(tokenizer.vocab, size_px))
        model.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} must be a checkpoint of the embedded model's training, but it is not "
            f"({str(error)[:300]}); name a step_NNNNNNN folder and the tokenizer of that training"
        ) from error
    return cast(
        "SceneModel",
        SimpleNamespace(
            model=model.eval(),
            processor=Processor(tokenizer, size_px),
            mask_codec=None if codec_path is None else load_mask_codec(codec_path),
        ),
    )


def evaluate_checkpoint(
    step_folder: Path,
    tokenizer_path: Path,
    codec_path: Path | None,
    *,
    limit: int = 200,
    seed: int = 0,
    image_size_px: int | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> SceneReport:
    """Measure a training checkpoint on pictures of its own size; arguments as for `load_step`."""
    from paligemma.eval.runner import SceneEvalOptions, evaluate_scenes

    bundle = load_step(step_folder, tokenizer_path, codec_path, image_size_px=image_size_px)
    options = SceneEvalOptions(
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        size_px=bundle.processor.image_size_px,
    )
    return evaluate_scenes(bundle, options, name=str(step_folder), progress=progress)
