"""nDCG of a retriever on ViDoRe sets, by the rules of mteb, beside published figures.

The gain of a page is its grade, the ideal holds every judged page, and pages of equal score follow
each other by falling id, as trec_eval orders them. Source: mteb, which computes with pytrec_eval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from paligemma.errors import ConfigError, DataError, ImageError
from paligemma.eval.vidore_kept import KeptScores
from paligemma.eval.vidore_sets import RetrievalSet
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.ranking import ndcg
from paligemma.retrieval.scores import score_matrix

if TYPE_CHECKING:
    from paligemma.retrieval.colpali import ColPali

DEFAULT_K = 5
# Mean nDCG@5 over the ten sets of ViDoRe V1, times 100.
# Source: README of github.com/illuin-tech/colpali.
PUBLISHED: Mapping[str, float] = {
    "vidore/colpali": 81.3,
    "vidore/colpali-v1.1": 81.5,
    "vidore/colpali-v1.2": 83.9,
    "vidore/colpali-v1.3": 84.8,
}


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """What a retriever scores on one set.

    Attributes:
        name: name of the set.
        measure: mean nDCG over its queries.
        num_pages: pages that were ranked.
        notes: what was left out of the set.
    """

    name: str
    measure: Measure
    num_pages: int
    notes: tuple[str, ...]


def retrieval_ndcg(
    scores: Mapping[str, Mapping[str, float]],
    relevance: Mapping[str, Mapping[str, int]],
    *,
    k: int = DEFAULT_K,
) -> Measure:
    """Mean nDCG@k over the queries, as mteb and trec_eval compute it.

    Args:
        scores: id of a query -> id of a page -> score.
        relevance: id of a query -> id of a page -> grade; a page that was not ranked counts in the
            ideal, one that is not named has grade 0. A query without a relevant page scores 0.

    Raises:
        DataError: no query, or a score that is not finite.
    """
    values = []
    for query, ranked in scores.items():
        grades = relevance.get(query, {})
        if not any(grades.values()):
            values.append(0.0)
            continue
        # Of equal scores the higher id comes first.
        pages = sorted(ranked, reverse=True)
        numbers = [ranked[page] for page in pages]
        # Pages that were not ranked count in the ideal alone: k others stand before them.
        behind = [0.0] * k + [float(grades[page]) for page in grades if page not in ranked]
        found = [float(grades.get(page, 0)) for page in pages] + behind
        below = min(numbers, default=0.0) - 1.0
        values.append(ndcg([*numbers, *[below] * len(behind)], found, k=k, ties="given"))
    if not values:
        raise DataError("nDCG needs at least one query, got none")
    return mean_measure(f"ndcg@{k}", values)


def score_set(
    model: ColPali,
    asked: RetrievalSet,
    *,
    k: int = DEFAULT_K,
    batch_size: int = 4,
    kept: KeptScores | None = None,
    on_pages: Callable[[int], None] | None = None,
) -> SetScore:
    """Rank all pages of a set for each of its queries.

    Vectors of pages are dropped as soon as they are scored, so a set of any size fits.

    Args:
        batch_size: pages, and queries, that are embedded together.
        kept: scores of an earlier call, to which those of each batch are added.
        on_pages: called with the number of pages that were just scored, or were kept.

    Raises:
        DataError: a picture of the set cannot be read.
    """
    if k < 1:
        raise ConfigError(f"nDCG counts the first k pages, k of 1 or more, got {k}")
    queries = [one.values for one in model.encode_queries(list(asked.queries.values()))]
    columns = [torch.zeros(len(queries), 0) if kept is None else kept.read()]
    first = columns[0].shape[1]
    if on_pages is not None and first:
        on_pages(first)
    for start in range(first, len(asked.pictures), batch_size):
        some = asked.pictures[start : start + batch_size]
        try:
            pictures = [one.read(model.pg.processor.reader.max_pixels) for one in some]
        except ImageError as error:
            raise DataError(f"{asked.name}: {error}") from error
        pages = [one.values for one in model.encode_pages(pictures, batch_size=batch_size)]
        columns.append(score_matrix(queries, pages))
        if kept is not None:
            kept.write(start, columns[-1])
        if on_pages is not None:
            on_pages(len(some))
    whole = torch.cat(columns, dim=1).numpy().astype(np.float64)
    scores = {
        query: dict(zip(asked.page_ids, row.tolist(), strict=True))
        for query, row in zip(asked.queries, whole, strict=True)
    }
    return SetScore(
        name=asked.name,
        measure=retrieval_ndcg(scores, asked.relevance, k=k),
        num_pages=len(asked.page_ids),
        notes=asked.notes,
    )


def score_lines(model: str, found: Sequence[SetScore]) -> list[str]:
    """The scores in lines for people: each set, the mean of several, the published figures."""
    width = max(map(len, [*(one.name for one in found), "mean of all sets"]))
    lines = []
    for one in found:
        low, high = (bound * 100 for bound in one.measure.interval())
        lines.append(
            f"{one.name:{width}}  {one.measure.name} {one.measure.value * 100:5.1f}  "
            f"95 % in {low:.1f}..{high:.1f}  {one.measure.num:,} queries, {one.num_pages:,} pages"
        )
        lines += [f"{'':{width}}  {note}" for note in one.notes]
    if len(found) > 1:
        mean = float(np.mean([one.measure.value for one in found])) * 100
        lines.append(f"{'mean of all sets':{width}}  {found[0].measure.name} {mean:5.1f}")
    lines.append("published means of ViDoRe V1's ten sets, nDCG@5:")
    for name, value in PUBLISHED.items():
        mark = "  <- this model" if name == model else ""
        lines.append(f"  {name:22}  {value:.1f}{mark}")
    return lines
