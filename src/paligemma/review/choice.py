"""Which labelled rows are looked at: those that the model was least sure of, all, or some drawn."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable

from paligemma.errors import ConfigError, DataError
from paligemma.jobs.labelling.records import Record

ORDERS = ("uncertain", "random", "rows")


def confidence(record: Record) -> float:
    """How sure the model was of a row, in [0, 1].

    Of objects that of the least sure one; of an answer in words, or where nothing was found, the
    geometric mean of its tokens' probabilities.
    """
    scores = [one["score"] for one in record.get("detections", ()) if one.get("score") is not None]
    if scores:
        return float(min(scores))
    num = max(1, int(record.get("num_tokens", 1)))
    return math.exp(min(0.0, float(record.get("logprob", 0.0))) / num)


def chosen(
    records: Iterable[Record], limit: int, order: str = "uncertain", seed: int = 0
) -> list[Record]:
    """The rows to look at, in the order in which they are shown; only these are held.

    Args:
        records: all labelled rows.
        limit: most rows.
        order: "uncertain", least sure first; "random", drawn by the seed; "rows", the first ones.

    Raises:
        ConfigError: no such order, or no row.
        DataError: a row is damaged.
    """
    if order not in ORDERS or limit < 1:
        raise ConfigError(
            f"rows are chosen by one of {', '.join(ORDERS)}, and at least 1, got {order!r:.80} and "
            f"{limit}"
        )

    def rank(record: Record) -> tuple[float, int]:
        try:
            return _rank(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"row {record.get('row')!r:.40} of the labels is damaged ({error!r:.100}); restore "
                "its file"
            ) from error

    def _rank(record: Record) -> tuple[float, int]:
        row = int(record["row"])
        if order == "uncertain":
            return confidence(record), row
        if order == "random":
            digest = hashlib.blake2b(f"{seed}/{row}".encode(), digest_size=8).digest()
            return float(int.from_bytes(digest)), row
        return 0.0, row

    return heapq.nsmallest(limit, records, key=rank)
