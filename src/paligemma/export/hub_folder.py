"""A folder as the hub publishes models, complete for transformers and what reads its layout."""

from __future__ import annotations

from pathlib import Path

from paligemma.export.card import write_card
from paligemma.export.new_folder import new_folder
from paligemma.export.side_files import write_side_files
from paligemma.outputs.codec_file import read_arrays, write_arrays
from paligemma.weights.load import OpenCheckpoint
from paligemma.weights.model_files import CODECS
from paligemma.weights.save import convert


def export_hub(
    source: str, folder: Path, *, dtype: str | None = None, revision: str | None = None
) -> None:
    """Write a model with processor, tokenizer, generation settings and card.

    Args:
        source: a model, as `paligemma.weights.catalog.resolve` finds it.
        folder: must not exist.
        dtype: of the weights; None keeps the source's.
        revision: branch of the hub.

    Raises:
        ConfigError: the folder exists, or the source is packed.
        CheckpointError, TokenizerError: the source is incomplete.
    """
    with new_folder(folder) as staging:
        with OpenCheckpoint(source, revision=revision) as opened:
            opened.checkpoint.require_plain("an export")
            config, checkpoint = opened.config, opened.checkpoint
        weights = convert(source, staging / "weights", dtype=dtype, revision=revision)
        for path in weights.iterdir():
            path.replace(staging / path.name)
        weights.rmdir()
        _set_codec_apart(staging)
        write_side_files(checkpoint, config, staging)
        write_card(staging, name=checkpoint.name, config=config, kind="hub")


def _set_codec_apart(folder: Path) -> None:
    """Write a mask codec in NumPy's format: mlx-vlm takes every safetensors file for weights."""
    for path in (folder / name for name in CODECS):
        if path.suffix == ".safetensors" and path.is_file():
            write_arrays(path.with_suffix(".npz"), read_arrays(path))
            path.unlink()
