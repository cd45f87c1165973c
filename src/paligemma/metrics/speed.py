"""The CPU and quantisation tables: tokens a second, and quality kept.

Source: PaliGemma 2 report, tables on CPU inference with quantised checkpoints.
"""

import math

from paligemma.errors import DataError

# Protocol of the tables: 256 soft tokens and 4 of text, then 11 steps.
PREFILL_TOKENS = 260
EXTEND_CALLS = 11


def cpu_table(
    *,
    prefill_seconds: float,
    extend_seconds: float,
    prefill_tokens: int = PREFILL_TOKENS,
    extend_calls: int = EXTEND_CALLS,
) -> dict[str, float]:
    """Compute tokens a second as the table prints them, without the time of the vision tower.

    Returns:
        "prefill_tok_per_s" and "extend_tok_per_s".

    Raises:
        DataError: a number is not positive and finite.
    """
    _require_positive(
        prefill_seconds=prefill_seconds,
        extend_seconds=extend_seconds,
        prefill_tokens=prefill_tokens,
        extend_calls=extend_calls,
    )
    return {
        "prefill_tok_per_s": prefill_tokens / prefill_seconds,
        "extend_tok_per_s": extend_calls / extend_seconds,
    }


def relative_quality(full: float, quantised: float) -> float:
    """Divide the quantised score by that in 32 bits, in percent, both before rounding.

    Raises:
        DataError: a score is not finite, or nothing to divide by.
    """
    _require_positive(full=full)
    if not math.isfinite(quantised):
        raise DataError(f"a quantised score must be finite, got {quantised}; score it again")
    return 100 * quantised / full


def _require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (math.isfinite(number) and number > 0):
            raise DataError(f"{name} must be a positive finite number, got {number}; measure again")
