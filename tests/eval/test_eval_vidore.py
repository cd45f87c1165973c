"""ViDoRe sets: what is read of them, and nDCG by the rules of mteb."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import ndcg_score

from paligemma import ColPali
from paligemma.cli import main
from paligemma.errors import DataError
from paligemma.eval.vidore import PUBLISHED, retrieval_ndcg
from paligemma.eval.vidore_sets import read_sets
from paligemma.retrieval.scores import score_matrix
from paligemma.scenes.pages import DrawnPage, draw_page
from tests.retrieval.random_colpali import random_colpali

parquet = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

PAGES = [draw_page(seed, split="heldout") for seed in range(6)]


def encoded(page: DrawnPage) -> dict[str, Any]:
    data = io.BytesIO()
    Image.fromarray(page.image).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def beir(folder: Path, *, spelling: str = "-") -> Path:
    """Six pages, one of them twice; a query without words, one that nobody judged, and two pages
    for the first query, of which the corpus lacks one."""
    page, query = f"corpus{spelling}id", f"query{spelling}id"
    corpus = [{page: k, "image": encoded(one)} for k, one in enumerate(PAGES)]
    write(folder / "corpus" / "test-00000-of-00001.parquet", [*corpus, corpus[2]])
    queries = [{query: k, "query": one.query} for k, one in enumerate(PAGES)]
    queries += [{query: 6, "query": "  "}, {query: 7, "query": "never judged"}]
    write(folder / "queries" / "test-00000-of-00001.parquet", queries)
    qrels = [{query: k, page: k, "score": 1} for k in range(6)]
    qrels += [{query: 0, page: 99, "score": 2}, {query: 6, page: 1, "score": 1}]
    write(folder / "qrels" / "test-00000-of-00001.parquet", qrels)
    return folder


class TestSets:
    @pytest.mark.parametrize("spelling", ["-", "_"])
    def test_beir_tables_are_read_and_what_was_left_out_is_said(
        self, tmp_path: Path, spelling: str
    ) -> None:
        (found,) = read_sets(beir(tmp_path / "one", spelling=spelling))
        assert found.name == "one"
        assert found.page_ids == ("0", "1", "2", "3", "4", "5")
        assert list(found.queries.values()) == [page.query for page in PAGES]
        assert found.relevance["0"] == {"0": 1, "99": 2}
        assert np.array_equal(found.pictures[3].read(10**6), PAGES[3].image)
        assert found.notes == (
            "pages that are there twice, counted once: 1",
            "queries without words, left out: 1",
            "queries without a judged page, left out: 1",
            "judged pages that the corpus lacks, counted as not found: 1",
        )

    def test_rows_of_query_and_page_become_a_set_whose_pages_are_there_once(
        self, tmp_path: Path
    ) -> None:
        names = ["a.png", "a.png", "b.png", "b.png"]
        texts = ["first", "second", "second", None]
        rows = [
            {"query": text, "image_filename": name, "image": encoded(PAGES[0])}
            for name, text in zip(names, texts, strict=True)
        ]
        write(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
        (found,) = read_sets(tmp_path)
        assert found.page_ids == ("a.png", "b.png")
        assert list(found.queries) == ["first", "second"]
        assert found.relevance["second"] == {"a.png": 1, "b.png": 1}

    def test_a_folder_of_sets_gives_each_and_a_split_is_chosen(self, tmp_path: Path) -> None:
        beir(tmp_path / "b")
        beir(tmp_path / "a")
        other = [{"query-id": 0, "query": "of another split"}]
        write(tmp_path / "a" / "queries" / "train-00000-of-00001.parquet", other)
        found = read_sets(tmp_path)
        assert [one.name for one in found] == ["a", "b"]
        assert found[0].queries["0"] == PAGES[0].query

    def test_damaged_sets_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no parquet file"):
            read_sets(tmp_path)
        beir(tmp_path / "one")
        (tmp_path / "one" / "qrels" / "test-00000-of-00001.parquet").unlink()
        with pytest.raises(DataError, match="lacks qrels"):
            read_sets(tmp_path)
        write(tmp_path / "one" / "qrels" / "test.parquet", [{"query-id": 0, "page": 1}])
        with pytest.raises(DataError, match="must have a column corpus-id or corpus_id"):
            read_sets(tmp_path)
        rows = [{"query-id": 0, "corpus-id": 0, "score": 0.5}]
        write(tmp_path / "one" / "qrels" / "test.parquet", rows)
        with pytest.raises(DataError, match=r"whole number, got 0\.5"):
            read_sets(tmp_path)
        for grade in (float("nan"), float("inf")):
            write(tmp_path / "one" / "qrels" / "test.parquet", [{**rows[0], "score": grade}])
            with pytest.raises(DataError, match=f"whole number, got {grade}"):
                read_sets(tmp_path)


class TestNdcg:
    def test_it_is_sklearns_where_no_scores_are_equal(self) -> None:
        rng = np.random.default_rng(0)
        scores, grades = rng.standard_normal((20, 12)), rng.integers(0, 4, (20, 12))
        grades[:, 0] = 1
        for k in (1, 5, 10):
            found = retrieval_ndcg(
                {str(q): {str(p): x for p, x in enumerate(row)} for q, row in enumerate(scores)},
                {
                    str(q): {str(p): int(g) for p, g in enumerate(row)}
                    for q, row in enumerate(grades)
                },
                k=k,
            )
            assert found.value == pytest.approx(ndcg_score(grades, scores, k=k), abs=1e-12)

    @pytest.mark.parametrize(
        ("ranked", "grades", "expected"),
        [
            # Of equal scores the higher id comes first, as text.
            ({"p0": 0.5, "p1": 0.5, "p2": 0.5}, {"p2": 1}, 1.0),
            ({"p0": 0.5, "p1": 0.5, "p2": 0.5}, {"p1": 1}, 0.6309297535714575),
            ({"p2": 0.1, "p10": 0.1}, {"p10": 1}, 0.6309297535714575),
            # Several pages, of two grades.
            ({"p0": 0.5, "p1": 0.4, "p2": 0.3}, {"p1": 2, "p2": 3}, 0.6480409554829326),
            # A page that the corpus lacks counts in the ideal.
            ({"p0": 0.5}, {"p0": 1, "lost": 2}, 0.38009376671593426),
            # Nothing is relevant.
            ({"p0": 0.5, "p1": 0.2}, {"p0": 0}, 0.0),
            ({"p0": 0.5, "p1": 0.2}, {}, 0.0),
        ],
    )
    def test_it_is_what_pytrec_eval_gives(
        self, ranked: dict[str, float], grades: dict[str, int], expected: float
    ) -> None:
        # Values of pytrec_eval 0.5.11, by which mteb computes, on the same input.
        found = retrieval_ndcg({"q": ranked}, {"q": grades}, k=5)
        assert found.value == pytest.approx(expected, abs=1e-12)

    def test_no_query_is_refused(self) -> None:
        with pytest.raises(DataError, match="at least one query"):
            retrieval_ndcg({}, {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model under a drawn projection, as a folder."""
    return random_colpali(dim=32).save(tmp_path_factory.mktemp("model") / "colpali")


class TestCommand:
    def test_it_scores_a_set_as_the_vectors_say_and_says_what_was_left_out(
        self, tmp_path: Path, model: Path
    ) -> None:
        data = beir(tmp_path / "drawn")
        command = ["eval", "vidore", "--data", str(data), "--model", str(model), "--quiet"]
        done = CliRunner().invoke(main, [*command, "-k", "3", "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        colpali = ColPali.from_pretrained(model)
        scores = score_matrix(
            [one.values for one in colpali.encode_queries([page.query for page in PAGES])],
            [one.values for one in colpali.encode_pages([page.image for page in PAGES])],
        )
        relevance = {str(k): {str(k): 1} for k in range(6)}
        relevance["0"]["99"] = 2
        expected = retrieval_ndcg(
            {str(q): {str(p): float(x) for p, x in enumerate(row)} for q, row in enumerate(scores)},
            relevance,
            k=3,
        )
        (of_set,) = found["sets"]
        assert of_set["ndcg@3"] == pytest.approx(expected.value, abs=1e-6)
        assert found["mean ndcg@3"] == of_set["ndcg@3"]
        assert (of_set["queries"], of_set["pages"], len(of_set["notes"])) == (6, 6, 4)

    def test_lines_hold_each_set_the_mean_and_the_published_figures(
        self, tmp_path: Path, model: Path
    ) -> None:
        for name in ("a", "b"):
            rows = [
                {"query": page.query, "image_filename": str(k), "image": encoded(page)}
                for k, page in enumerate(PAGES[:2])
            ]
            write(tmp_path / name / "test-00000-of-00001.parquet", rows)
        command = ["eval", "vidore", "--data", str(tmp_path), "--model", str(model), "--quiet"]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines[:3]] == ["a", "b", "mean"]
        assert "2 queries, 2 pages" in lines[0]
        shown = [float(line.split()[1]) for line in lines[4:]]
        assert shown == [*PUBLISHED.values()] == [81.3, 81.5, 83.9, 84.8]

    def test_a_stopped_run_goes_on_with_the_next_page(
        self, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = beir(tmp_path / "drawn")
        command = ["eval", "vidore", "--data", str(data), "--model", str(model), "--quiet"]
        command += ["--json", "--batch-size", "2"]
        whole = json.loads(CliRunner().invoke(main, command).stdout)
        encode, read = ColPali.encode_pages, []

        def stopped(self: ColPali, pictures: Any, **options: Any) -> Any:
            read.append(len(pictures))
            if len(read) == 3:
                raise KeyboardInterrupt
            return encode(self, pictures, **options)

        monkeypatch.setattr(ColPali, "encode_pages", stopped)
        kept = [*command, "--output", str(tmp_path / "scores")]
        assert CliRunner().invoke(main, kept).exit_code != 0
        (file,) = (tmp_path / "scores").iterdir()
        file.write_bytes(file.read_bytes() + b"torn")
        assert json.loads(CliRunner().invoke(main, kept).stdout) == whole
        assert read == [2, 2, 2, 2]
        assert json.loads(CliRunner().invoke(main, kept).stdout) == whole
        assert len(read) == 4
        # Another question, another file.
        queries = data / "queries" / "test-00000-of-00001.parquet"
        write(queries, [{"query-id": k, "query": "another"} for k in range(6)])
        assert CliRunner().invoke(main, kept).exit_code == 0
        assert len(read) == 7

    def test_a_folder_without_a_set_is_an_error_of_one_sentence(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(main, ["eval", "vidore", "--data", str(tmp_path)])
        assert done.exit_code != 0
        assert "holds no parquet file; download a set" in done.stderr
