"""What exports that compute a model have alike: how it is opened, and how close they must come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from paligemma.errors import RunError
from paligemma.export.side_files import write_side_files
from paligemma.model import PaliGemmaModel
from paligemma.weights.load import OpenCheckpoint

# Of float32 logits; more is a fault of the export.
MAX_DIFFERENCE = 1e-4


def open_for_export(
    source: str,
    staging: Path,
    *,
    revision: str | None,
    image_size_px: int | None,
    on_step: Callable[[str], None],
) -> tuple[PaliGemmaModel, str]:
    """Load a model in float32 and write what stands beside its weights.

    Args:
        staging: folder that gets the files of `write_side_files`.
        on_step: told what is being done.

    Returns:
        The model and its name.

    Raises:
        ConfigError: the source is packed.
        CheckpointError, TokenizerError: it is incomplete.
    """
    with OpenCheckpoint(source, revision=revision, image_size_px=image_size_px) as opened:
        opened.checkpoint.require_plain("an export")
        write_side_files(opened.checkpoint, opened.config, staging)
        on_step(f"loading {source}")
        return opened.load(dtype="float32"), opened.checkpoint.name


def require_close(largest: float, source: str, tools: str) -> None:
    """Refuse an export whose float32 logits differ from the model's.

    Args:
        largest: difference that was measured.
        tools: what made the export, beside torch.

    Raises:
        RunError: the difference is above `MAX_DIFFERENCE`, or not a number.
    """
    if not largest <= MAX_DIFFERENCE:
        raise RunError(
            f"float32 logits of an export may differ by {MAX_DIFFERENCE:.0e}, those of {source} "
            f"differ by {largest:.1e}; report it with the versions of torch and {tools}"
        )
