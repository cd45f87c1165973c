"""Training on several sets at once, through the command line and the call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paligemma.cli import main
from paligemma.errors import ConfigError, DataError, PaliGemmaError
from paligemma.tasks.mixture import read_mixture
from paligemma.tuning.finetune import finetune


def write(folder: Path, content: Any, name: str = "mixture.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def two_sets(two_colours: Path) -> Path:
    shutil.copytree(two_colours, two_colours.parent / "more")
    return two_colours.parent


def test_the_command_learns_two_sets_and_measures_each(two_sets: Path, drawn_model: Path) -> None:
    lines = "sources:\n  first: {data: two-colours/, weight: 3}\n  second: {data: more, limit: 1}\n"
    words = ["train", "--mixture", write(two_sets, lines, "mix.yaml"), "--model", drawn_model]
    words += ["--steps", "2", "--batch-size", "2", "--output", two_sets / "run", "--quiet"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert not stopped.value.code
    report = json.loads((two_sets / "run" / "report.json").read_text())
    assert report["rows"]["learnt"] == 3
    assert {one["name"].split(".")[0] for one in report["figures"]} == {"first", "second"}
    assert [one["weight"] for one in report["recipe"]["mixture"]] == [3.0, 1.0]


def test_toml_json_and_the_call_read_the_same_mixture(two_sets: Path) -> None:
    stated = {"sources": {"a": {"data": str(two_sets / "more"), "weight": 2}}}
    toml = f'[sources.a]\ndata = "{two_sets / "more"}"\nweight = 2\n'
    found = [
        read_mixture(one).sources[0].to_json()
        for one in (stated, write(two_sets, stated), write(two_sets, toml, "mixture.toml"))
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"sources": {"a": {"data": "more", "wieght": 2}}}, "'wieght'"),
        ({"sources": {"a": {"data": "more", "weight": -1}}}, "weight must be a positive number"),
        ({"sources": {"a": {"data": "nowhere"}}}, "source 'a'"),
        ({"sources": {"a": {"data": "more", "limit": True}}}, "limit must be a count"),
        ({"sources": {}}, "1 to 256 sources"),
        ("{", "mixture"),
        ('{"a": "more", "a": {"data": "more", "weight": 9}}', "'a' stands there twice"),
        ({"a": {"data": "more", "weight": 10**400}}, "weight must be a positive number"),
        ({"a": {"data": "more", "weight": 1e308}, "b": "more"}, "from 1e-09 to 1e"),
        ({"a": {"data": "~nobody-here/x"}}, "there is no"),
        ({"a": {"data": "x" * 5000}}, "there is no"),
        ({"a\x1b[2J": "more"}, "a name has"),
        ({"a\ud800": "more"}, "a name has"),
    ],
)
def test_a_wrong_mixture_is_named(two_sets: Path, content: Any, said: str) -> None:
    with pytest.raises(PaliGemmaError, match=said):
        read_mixture(write(two_sets, content))


def test_a_source_that_stands_twice_in_yaml_is_named(two_sets: Path) -> None:
    pytest.importorskip("yaml")
    path = two_sets / "mixture.yaml"
    path.write_text('1: {data: more}\n"1": {data: more, weight: 9}\n')
    with pytest.raises(DataError, match="'1' stands there twice"):
        read_mixture(path)


def test_a_source_without_good_rows_is_named_before_the_model_is_loaded(
    two_sets: Path, drawn_model: Path
) -> None:
    (two_sets / "more" / "train.jsonl").write_text('{"image": "no.png", "prefix": "", "suffix": 1}')
    mixture = {"good": {"data": str(two_sets / "two-colours")}, "bad": {"data": f"{two_sets}/more"}}
    with pytest.raises(DataError, match="source 'bad' of the mixture has no row"):
        finetune(str(drawn_model), mixture=mixture, output=two_sets / "run", progress=False)


def test_data_beside_a_mixture_is_refused(two_sets: Path) -> None:
    with pytest.raises(ConfigError, match="data or a mixture"):
        finetune(data=two_sets, mixture={"a": str(two_sets)}, output=two_sets / "run")
