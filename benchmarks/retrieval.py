"""An index of pages beside Qdrant Edge used directly and beside the exact definition.

python benchmarks/retrieval.py --pages 1000
python benchmarks/retrieval.py --pages 10000 --rounds 1 --skip direct exact
python benchmarks/retrieval.py --documents reports/ --model tiny
python benchmarks/retrieval.py --drawn 1000 --model tiny

Each measurement is a process of its own; the engines take turns. Memory is Linux's VmHWM, mapped
files included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENGINES = ("ours", "direct", "exact")
VECTORS, GRID, DIM, QUERY_TOKENS, K = 1030, (32, 32), 128, 20, 5
NUM_QUERIES, BATCH, RERANK = 8, 4, 100
Floats = NDArray[np.float32]


def unit(draw: np.random.Generator, *shape: int) -> Floats:
    """Random directions."""
    values = draw.standard_normal((*shape, DIM), dtype=np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def synthetic_page(number: int) -> Floats:
    """A page: a common direction of its own in each row of its grid, so that rows differ."""
    draw = np.random.default_rng(number)
    values = unit(draw, VECTORS)
    values[: GRID[0] * GRID[1]] += np.repeat(unit(draw, GRID[0]), GRID[1], axis=0)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def synthetic_query(number: int, num_pages: int) -> Floats:
    """Tokens that recall one page, with as much noise again."""
    draw = np.random.default_rng(10**9 + number)
    page = synthetic_page(int(draw.integers(num_pages)))
    values = page[draw.integers(VECTORS, size=QUERY_TOKENS)] + unit(draw, QUERY_TOKENS)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


class Synthetic:
    """What an index asks of a model, for vectors that are given."""

    identity, dim, image_size_px = "synthetic", DIM, 448

    def encode_pages(self, pictures: Any, *, batch_size: int = 1) -> Any:
        """Not asked: pages come with their vectors."""
        raise NotImplementedError

    encode_queries = encode_pages


def url_of(engine: str, folder: Path) -> str:
    """The name of the index."""
    return f"memory://{folder}" if engine == "exact" else str(folder)


def fill(engine: str, folder: Path, num_pages: int) -> float:
    """Make the index; seconds a page, drawing the vectors excepted."""
    shutil.rmtree(folder, ignore_errors=True)
    spent = 0.0
    if engine == "direct":
        import qdrant_edge as edge

        folder.mkdir(parents=True)
        vectors = edge.EdgeVectorParams(
            DIM,
            edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            datatype=edge.VectorStorageDatatype.Float16,
        )
        shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={"page": vectors}))
        for start in range(0, num_pages, BATCH):
            pages = [(n, synthetic_page(n)) for n in range(start, min(start + BATCH, num_pages))]
            began = time.perf_counter()
            points = [edge.Point(uuid.UUID(int=n), {"page": page}, {}) for n, page in pages]
            shard.update(edge.UpdateOperation.upsert_points(points))
            shard.flush()
            spent += time.perf_counter() - began
        shard.close()
        return spent / num_pages
    import torch

    from paligemma.retrieval.index import PageIndex
    from paligemma.retrieval.items import Item
    from paligemma.retrieval.vectors import Vectors

    with PageIndex.open(url_of(engine, folder), Synthetic()) as index:
        for start in range(0, num_pages, BATCH):
            numbers = range(start, min(start + BATCH, num_pages))
            pages = [(n, torch.from_numpy(synthetic_page(n))) for n in numbers]
            began = time.perf_counter()
            index.upsert(
                Item(id=f"{n:064x}:1", vectors=Vectors(values=page, grid=GRID)) for n, page in pages
            )
            spent += time.perf_counter() - began
    return spent / num_pages


def measure(engine: str, folder: Path, num_pages: int) -> dict[str, Any]:
    """Open the index and ask it; this is a process of its own."""
    queries = [synthetic_query(number, num_pages) for number in range(NUM_QUERIES)]
    if engine == "direct":
        import qdrant_edge as edge

        began = time.perf_counter()
        shard = edge.EdgeShard.load(str(folder))
        opened_s = time.perf_counter() - began

        def ask(query: Floats, rerank: int | None) -> list[int]:
            nearest = edge.Query.Nearest(query, using="page")
            found = shard.query(edge.QueryRequest(limit=K, query=nearest, with_payload=True))
            return [uuid.UUID(str(point.id)).int for point in found]

        return {"opened_s": opened_s, **timed(ask, queries, [None])}
    import torch

    from paligemma.retrieval.index import PageIndex
    from paligemma.retrieval.vectors import Vectors

    began = time.perf_counter()
    index = PageIndex.open(url_of(engine, folder), Synthetic())
    opened_s = time.perf_counter() - began

    def ask_ours(query: Floats, rerank: int | None) -> list[int]:
        values = Vectors(values=torch.from_numpy(query), pieces=("",) * len(query))
        return [int(hit.id[:64], 16) for hit in index.search(values, K, rerank=rerank)]

    return {"opened_s": opened_s, **timed(ask_ours, queries, [None, RERANK])}


def timed(
    ask: Callable[[Floats, int | None], list[int]], queries: list[Floats], reranks: list[int | None]
) -> dict[str, Any]:
    """Median seconds of a query, answers, and the peak of memory."""
    result: dict[str, Any] = {}
    for rerank in reranks:
        name = "all" if rerank is None else "reranked"
        ask(queries[0], rerank)
        seconds, found = [], []
        for query in queries:
            began = time.perf_counter()
            found.append(ask(query, rerank))
            seconds.append(time.perf_counter() - began)
        result |= {f"{name}_s": statistics.median(seconds), f"{name}_found": found}
        if rerank is None:
            result["peak_mb"] = peak_mb()
    return result


def peak_mb() -> float:
    """Most that was resident."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024


def in_a_process(*words: object) -> Any:
    """What this script prints when it is run so."""
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(workdir: Path, num_pages: int, rounds: int, skip: list[str]) -> dict[str, Any]:
    """All engines in turns; the medians."""
    engines = [engine for engine in ENGINES if engine not in skip]
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    adding = {
        engine: in_a_process("--fill", engine, "--workdir", workdir, "--pages", num_pages)
        for engine in engines
    }
    for number in range(rounds):
        for engine in engines if number % 2 == 0 else reversed(engines):
            found = in_a_process("--ask", engine, "--workdir", workdir, "--pages", num_pages)
            runs[engine].append(found)
    report: dict[str, Any] = {"pages": num_pages, "rounds": rounds, "engines": {}}
    for engine, found in runs.items():
        numbers = {
            name: statistics.median(one[name] for one in found)
            for name, value in found[0].items()
            if isinstance(value, float)
        }
        disk = sum(
            path.stat().st_blocks * 512 for path in (workdir / engine).rglob("*") if path.is_file()
        )
        report["engines"][engine] = {
            **numbers,
            "add_s": adding[engine],
            "disk_mb": disk / 2**20,
        }
    truth = runs[engines[-1]][0]["all_found"]
    ours = runs[engines[0]][0]
    report["same_order"] = ours["all_found"] == truth
    return report


def recall(found: list[list[Any]], truth: list[list[Any]]) -> float:
    """Share of the true pages that are found."""
    pairs = zip(found, truth, strict=True)
    return sum(len(set(some) & set(true)) for some, true in pairs) / sum(map(len, truth))


def of_documents(paths: list[str], model: str) -> dict[str, Any]:
    """Recall of the choice by centres on pages of documents, and what adding spends on what."""
    from paligemma import ColPali, PageIndex

    colpali = ColPali.from_pretrained(model)
    spent = {"encode": 0.0, "keep": 0.0}

    def timing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            found = call(*args, **options)
            spent[name] += time.perf_counter() - began
            return found

        return timed_call

    with scratch_folder() as folder, PageIndex.open(folder, colpali) as index:
        colpali.encode_pages = timing("encode", colpali.encode_pages)  # type: ignore[method-assign]
        index._store.put = timing("keep", index._store.put)  # type: ignore[method-assign]
        began = time.perf_counter()
        done = index.add(paths, batch_size=4)
        total = time.perf_counter() - began
        texts = [text for page in index.pages() for text in words_of(page)]
        found = recalls(index, colpali.encode_queries(texts))
    return {
        "pages": done.added,
        "adding_s": total,
        "share_of_encoding": spent["encode"] / total,
        "share_of_index": spent["keep"] / total,
        **found,
    }


def of_drawn_pages(num_pages: int, model: str) -> dict[str, Any]:
    """The same for held-out pages that are drawn; and whether the right page comes first."""
    from PIL import Image

    from paligemma import ColPali, PageIndex
    from paligemma.retrieval.items import Item
    from paligemma.scenes.pages import draw_page

    colpali = ColPali.from_pretrained(model)
    with scratch_folder() as folder, PageIndex.open(folder, colpali) as index:
        queries = []
        for start in range(0, num_pages, 16):
            numbers = range(start, min(start + 16, num_pages))
            pages = [draw_page(number, split="heldout") for number in numbers]
            queries += [page.query for page in pages]
            pictures = [Image.fromarray(page.image) for page in pages]
            encoded = zip(numbers, colpali.encode_pages(pictures, batch_size=16), strict=True)
            index.upsert(Item(id=f"{n:064x}:1", vectors=vectors) for n, vectors in encoded)
        words = colpali.encode_queries(queries)
        first = [int(index.search(one, 1, rerank=None)[0].id[:64], 16) for one in words]
        right = sum(found == number for number, found in enumerate(first)) / num_pages
        return {"pages": num_pages, "right_page_first": right, **recalls(index, words)}


def recalls(index: Any, words: list[Any]) -> dict[str, Any]:
    """Recall among the best five where some pages are chosen by their centres."""
    exact = [[hit.id for hit in index.search(one, K, rerank=None)] for one in words]
    found = {}
    for share in (0.02, 0.05, 0.1, 0.2):
        rerank = max(K, round(share * index.count()))
        chosen = [[hit.id for hit in index.search(one, K, rerank=rerank)] for one in words]
        found[f"recall_at_5_reranking_{rerank}"] = recall(chosen, exact)
    return {"queries": len(words), **found}


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / "index"


def words_of(page: Any) -> list[str]:
    """A query: a few words of the page's text layer, if it has any."""
    words = str(page.payload.get("text", "")).split()
    return [" ".join(words[6:12])] if len(words) > 12 else []


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("retrieval-benchmark"))
    parser.add_argument("--skip", nargs="*", choices=ENGINES[1:], default=[])
    parser.add_argument("--documents", nargs="*")
    parser.add_argument("--drawn", type=int)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fill", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--ask", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        report: Any = fill(options.fill, options.workdir / options.fill, options.pages)
    elif options.ask:
        report = measure(options.ask, options.workdir / options.ask, options.pages)
    elif options.documents:
        report = of_documents(options.documents, options.model)
    elif options.drawn:
        report = of_drawn_pages(options.drawn, options.model)
    else:
        report = compare(options.workdir, options.pages, options.rounds, options.skip)
    print(json.dumps(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
