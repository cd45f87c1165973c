"""Warnings about answers that a bound cut off."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from paligemma.generate import BeamOptions
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
