"""What pooled, eight-bit and binary vectors cost: how often the right page still comes first.

    python benchmarks/vector_compression.py --model tiny --pages 200 --seed 0

Held-out pages with a query each are drawn from a seed. Each way of compression is scored exactly;
`binary` also with the exact score of its 10 best pages.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma import ColPali
from paligemma.retrieval.compression import binary, hamming_sim, quantise_int8, widen
from paligemma.retrieval.pooling import pool
from paligemma.retrieval.scores import score_matrix
from paligemma.scenes.pages import draw_page

RERANKED = 10
"""Pages of a binary search that are scored exactly."""


def compressions() -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> what a page's vectors are after it, widened again."""
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "float32": lambda values: values,
        "float16": lambda values: values.half(),
        "int8": lambda values: widen(*quantise_int8(values)),
    }
    for how in ("colpali", "ward"):
        for factor in (2, 3, 4, 9):
            ways[f"{how} {factor}"] = lambda values, f=factor, h=how: pool(values, f, h)
    return ways


def drawn_pages(count: int, seed: int) -> list[tuple[Any, str]]:
    """Held-out pages, each with its query."""
    drawn = (draw_page(seed + number, split="heldout") for number in range(count))
    return [(page.image, page.query) for page in drawn]


def num_bytes(name: str, values: Tensor) -> int:
    """Bytes of a page's vectors; those that are pooled are kept in float16."""
    count, dim = values.shape
    per_vector = {"float32": 4 * dim, "int8": dim + 4, "binary": dim // 8}
    return count * per_vector.get(name, 2 * dim)


def first_and_ndcg(scores: Tensor) -> tuple[float, float]:
    """Share of queries whose page comes first, and nDCG@5; query i belongs to page i."""
    right = scores.diagonal()[:, None]
    # A tie counts against the right page.
    rank = (scores >= right).sum(dim=1)
    gain = torch.where(rank <= 5, 1 / (rank + 1.0).log2(), torch.zeros(()))
    return float((rank == 1).float().mean()), float(gain.mean())


def searched_binary(queries: Sequence[Tensor], pages: Sequence[Tensor], exact: Tensor) -> Tensor:
    """Scores by signs, of the best pages replaced by the exact ones."""
    signs = [binary(page) for page in pages]
    rough = torch.stack([hamming_sim(binary(query), signs) for query in queries])
    kept = rough.topk(min(RERANKED, len(pages)), dim=1).indices
    scores = torch.full_like(exact, -torch.inf)
    return scores.scatter(1, kept, exact.gather(1, kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model = ColPali.from_pretrained(args.model, device="cpu")
    drawn = drawn_pages(args.pages, args.seed)
    pages = [one.values for one in model.encode_pages([page for page, _ in drawn], batch_size=8)]
    queries = [one.values for one in model.encode_queries([query for _, query in drawn])]
    exact = score_matrix(queries, pages)
    rows = []
    for name, way in compressions().items():
        start = time.perf_counter()
        small = [way(page) for page in pages]
        seconds = (time.perf_counter() - start) / len(pages)
        rows.append((name, num_bytes(name, small[0]), score_matrix(queries, small), seconds))
    start = time.perf_counter()
    rough = searched_binary(queries, pages, exact)
    seconds = (time.perf_counter() - start) / len(pages)
    signs = [torch.where(one > 0, 1.0, -1.0) for one in pages]
    mine = [torch.where(one > 0, 1.0, -1.0) for one in queries]
    rows.append(("binary", num_bytes("binary", pages[0]), score_matrix(mine, signs), 0.0))
    rows.append((f"binary, {RERANKED} exact", num_bytes("binary", pages[0]), rough, seconds))
    found = []
    for name, size, scores, seconds in rows:
        first, ndcg = first_and_ndcg(scores)
        found.append({"way": name, "bytes": size, "first": first, "ndcg@5": ndcg, "s": seconds})
        print(f"{name:18} {size:8} B a page  first {first:.3f}  nDCG@5 {ndcg:.4f}  {seconds:.4f} s")
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
