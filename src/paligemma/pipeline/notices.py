"""Warnings about answers: what a bound cut off, and which masks are missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from paligemma.generate import BeamOptions
from paligemma.outputs.detections import Detections
from paligemma.pipeline.engine import Request

logger = logging.getLogger(__name__)


def warn_of_cuts(num_cut: int, requests: Sequence[Request]) -> None:
    """Warn of answers that reached their bound."""
    decoder = requests[0].decoder
    if isinstance(decoder, BeamOptions):
        what = "are the best that had ended, though longer ones might be better"
    elif requests[0].constraint is not None:
        what = "were cut there, with no room for what was to follow"
    else:
        what = "were cut there"
    logger.warning(
        "%d of %d answers reached max_new_tokens = %d and %s",
        num_cut,
        len(requests),
        decoder.max_new_tokens,
        what,
    )


def warn_of_missing_masks(found: Detections, *, has_codec: bool) -> None:
    """Warn of objects of a segment prompt that came as boxes alone.

    Args:
        has_codec: whether codewords were decoded; a missing codec has its own warning.
    """
    num_maskless = sum((item.region if has_codec else item.codes) is None for item in found)
    if num_maskless:
        logger.warning(
            "%d of %d objects came without a mask; ask for one label at a time",
            num_maskless,
            len(found),
        )
