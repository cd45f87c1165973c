"""What `paligemma plan batch` foretells: exact where nothing fails, else right on average."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from task_files import write_json_lines, write_picture
from toy_labeller import ToyLabeller, label_toys

from paligemma.bench.batch_costs import RowCost, card_cost, read_pilot
from paligemma.bench.batch_plan import Fleet, forecast
from paligemma.cli import main
from paligemma.cli.batch import batch
from paligemma.cli.plan_batch import plan_batch
from paligemma.config import release_config
from paligemma.errors import ConfigError, DataError
from paligemma.jobs.labelling.run import PART_ROWS

STEADY = RowCost(
    seconds=0.1,
    spread=0.0,
    start=60.0,
    label_bytes=200.0,
    picture_bytes=None,
    quarantined=0.0,
    parts={},
    source="a test",
)


def test_without_failures_the_hours_are_those_of_the_division() -> None:
    fleet = Fleet(num_workers=4, part_rows=100, stragglers=0.0, hours_to_loss=math.inf)
    found = forecast(10_000, STEADY, fleet)
    assert found.hours * 3600 == pytest.approx(60 + 25 * 100 * 0.1)
    assert found.hours == pytest.approx(found.ideal_hours)
    assert (found.num_parts, found.num_lost, found.rows_again) == (100, 0, 0)


def test_a_last_short_part_and_more_workers_than_parts_count() -> None:
    fleet = Fleet(num_workers=8, part_rows=100, stragglers=0.0, hours_to_loss=1e12)
    assert forecast(250, STEADY, fleet).hours * 3600 == pytest.approx(60 + 10)


def test_stragglers_and_lost_machines_cost_what_their_shares_say() -> None:
    slow = Fleet(num_workers=8, part_rows=100, stragglers=0.1, slowdown=3.0, hours_to_loss=1e12)
    found = forecast(4_000_000, STEADY, slow)
    assert found.hours / found.ideal_hours == pytest.approx(1 + 0.1 * 2, rel=0.01)
    frail = Fleet(num_workers=8, part_rows=1000, stragglers=0.0, hours_to_loss=5.0)
    found = forecast(40_000_000, STEADY, frail)
    assert found.num_lost == pytest.approx(found.worker_hours / 5.0, rel=0.05)
    assert found.rows_again == pytest.approx(found.num_lost * 500, rel=0.05)


def test_losses_that_are_rarer_than_simulated_parts_are_in_the_budget() -> None:
    # 50,000 of 4 million parts of 26 s are simulated, in which no machine may be lost.
    fleet = Fleet(num_workers=64, part_rows=256, stragglers=0.0, hours_to_loss=10_000.0)
    for seed in range(3):
        found = forecast(10**9, STEADY, fleet, seed)
        assert found.num_lost == pytest.approx(found.worker_hours / 10_000, rel=0.02)
        assert found.rows_again == pytest.approx(found.num_lost * 128, rel=0.02)


def test_more_parts_than_are_simulated_go_on_at_the_same_rate() -> None:
    fleet = Fleet(num_workers=10, part_rows=10, stragglers=0.02)
    small, large = (forecast(num, STEADY, fleet) for num in (500_000, 50_000_000))
    at_work = [one.hours * 3600 - STEADY.start for one in (small, large)]
    assert at_work[1] / at_work[0] == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("change", [{"num_workers": 0}, {"stragglers": 1.5}, {"slowdown": 0.5}])
def test_a_fleet_without_sense_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="a plan needs workers"):
        Fleet(**{"num_workers": 1, "part_rows": 1, **change})  # type: ignore[arg-type]


def test_a_card_reads_pictures_beside_its_model_and_is_slower_at_a_larger_input() -> None:
    costs = [
        card_cost(release_config("gemma_2b", side), card="h100-80", flops=989e12)
        for side in (224, 448, 896)
    ]
    assert costs[0].seconds < costs[1].seconds < costs[2].seconds
    # 5 to 60 ms a row: 1,543 tokens a second at a batch of 32 are 16 ms for 24 tokens.
    assert 0.005 < costs[0].seconds < 0.06
    large = card_cost(
        release_config("gemma_2b", 224),
        card="h100-80",
        flops=989e12,
        megapixels=1000,
        num_threads=1,
    )
    assert large.seconds == large.parts["reading pictures"] > costs[0].seconds


def pilot(folder: Path, num: int, limit: int | None = None) -> tuple[Path, float]:
    write_picture(folder / "a.png")
    rows = write_json_lines(folder / "rows.jsonl", [{"image": "a.png"} for _ in range(num)])
    out = folder / f"out{limit}"
    began = time.perf_counter()
    label_toys(rows, out, ToyLabeller(0.02), part_rows=6, limit=limit)
    return out, time.perf_counter() - began


def test_a_pilot_foretells_the_whole(tmp_path: Path) -> None:
    small, _ = pilot(tmp_path, 240, limit=48)
    _, seconds = pilot(tmp_path, 240)
    cost = read_pilot(small).cost
    fleet = Fleet(num_workers=1, part_rows=6, stragglers=0.0, hours_to_loss=1e12)
    # 15 % on a quiet machine; tests share theirs.
    assert forecast(240, cost, fleet).hours * 3600 == pytest.approx(seconds, rel=0.4)
    words = ["--images", "1e6", "--pilot", str(small), "--workers", "4", "--rate", "2", "--json"]
    result = CliRunner().invoke(main, ["plan", "batch", *words])
    assert result.exit_code == 0, result.output
    (plan,) = json.loads(result.output)["plans"]
    assert plan["money"] == pytest.approx(2 * plan["worker_hours"])
    assert plan["hours"] * 3600 == pytest.approx(250_000 * cost.seconds, rel=0.1)


def test_a_short_pilot_of_workers_with_two_parts_under_way_foretells_the_whole(
    tmp_path: Path,
) -> None:
    """Logged by two workers on two idle cores: 384 rows; 1,024 rows of the same took 32.9 s."""
    small, _ = pilot(tmp_path, 48, limit=48)
    ends = ((3.5588, 9.944), (3.8486, 10.167), (3.3665, 11.564))
    ends += ((3.481, 11.957), (3.1994, 14.87), (3.2841, 15.348))
    same = {"rows": 64, "quarantined": 0, "bytes": 22_000}
    lines = [{"part": k, **same, "seconds": s, "at": at} for k, (s, at) in enumerate(ends)]
    write_json_lines(small / "log.jsonl", [{"processes": 2, "ready": 4.276}, *lines])
    fleet = Fleet(num_workers=2, part_rows=64, stragglers=0.0, hours_to_loss=1e12)
    found = forecast(1024, read_pilot(small).cost, fleet)
    assert found.ideal_hours * 3600 == pytest.approx(32.9, rel=0.1)


def test_a_plan_names_the_options_that_a_pilot_was_given_and_counts_without_exponents(
    tmp_path: Path,
) -> None:
    small, _ = pilot(tmp_path, 240, limit=48)
    record = json.loads((small / "batch.json").read_text())
    record["loading"] = {"allow_url": "False", "adapter": "None", "image_size": "448"}
    (small / "batch.json").write_text(json.dumps({**record, "model": "toy"}))
    result = CliRunner().invoke(main, ["plan", "batch", "--images", "1e9", "--pilot", str(small)])
    assert result.exit_code == 0, result.output
    assert re.search(r"^of +toy image_size=448, ", result.output)
    assert re.search(r"^worker hours +\d?\d,\d{3}$", result.output, re.MULTILINE)


def test_too_small_a_pilot_is_refused(tmp_path: Path) -> None:
    out, _ = pilot(tmp_path, 12)
    with pytest.raises(DataError, match="needs 3 parts or more"):
        read_pilot(out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--images 1e6", "takes either --pilot DIR, or --model and --gpu"),
        ("--images 1.5 --model tiny --gpu h100", "no whole number"),
        ("--images 1e6 --model tiny --gpu a100", "one of a100-40, a100-80"),
        ("--images 1e6 --pilot .", "name the --output of `paligemma batch`"),
        ("--images 1e6 --pilot x --model tiny", "leave either out"),
        ("--images 1e6 --pilot x --quant int8", "leave either out"),
        ("--images 1e6 --model tiny --gpu h100 --rate nan", "finite numbers"),
        ("--images 1e6 --model tiny --gpu h100 --megapixels nan", "--megapixels takes finite"),
        ("--images 1e6 --model tiny --gpu h100 --rate 1e308 --json", "--rate"),
        ("--images 1e6 --model tiny --gpu h100 --hours-to-loss nan", "a plan needs workers"),
        ("--images 1e6 --model tiny --gpu h100 --hours-to-loss 1e-9", "hardly a part would end"),
        (
            "--images 1e6 --model tiny --gpu h100 --stragglers 1 --slowdown 1e9",
            "hardly a part would end",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(words: str, said: str) -> None:
    result = CliRunner().invoke(main, ["plan", "batch", *words.split()])
    assert result.exit_code == 2
    assert said in result.output


def test_models_at_once_are_called_as_by_a_batch_and_by_their_former_name() -> None:
    words = "--images 1e6 --model google/paligemma2-3b-mix-448 --gpu h100 --json"
    hours = {}
    for stated in ("--processes 1", "--processes 3", "--workers 3"):
        result = CliRunner().invoke(main, ["plan", "batch", *words.split(), *stated.split()])
        assert result.exit_code == 0, result.output
        hours[stated] = json.loads(result.output)["plans"][0]["hours"]
    assert hours["--workers 3"] == hours["--processes 3"] < hours["--processes 1"] / 2


def test_machines_that_are_never_lost_and_storage_are_planned() -> None:
    words = "--images 1e6 --model google/paligemma2-3b-mix-448 --gpu h100 --hours-to-loss inf"
    more = [*words.split(), "--picture-bytes", "2e5", "--json"]
    result = CliRunner().invoke(main, ["plan", "batch", *more])
    assert result.exit_code == 0, result.output
    (plan,) = json.loads(result.output)["plans"]
    assert (plan["num_lost"], plan["rows_again"]) == (0, 0)
    assert plan["read_bytes"] == 2e11
    assert plan["written_bytes"] == pytest.approx(1e6 * plan["cost"]["label_bytes"])


def test_a_plan_cuts_the_rows_as_a_batch_does() -> None:
    sizes = [
        next(one.default for one in command.params if one.name == "part_rows")
        for command in (plan_batch, batch)
    ]
    assert sizes == [PART_ROWS, PART_ROWS]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"part": k} for k in range(3)], "is damaged"),
        ([{"rows": 1, "at": "now"}] * 3, "is damaged"),
        (
            [{"rows": 1, "at": 1.0, "seconds": 0.0, "bytes": 9, "quarantined": 0}] * 3,
            "at one moment",
        ),
    ],
)
def test_a_damaged_pilot_is_named(tmp_path: Path, lines: list[dict], said: str) -> None:
    out, _ = pilot(tmp_path, 18)
    write_json_lines(out / "log.jsonl", [{"processes": 1, "ready": 0.1}, *lines])
    with pytest.raises(DataError, match=said):
        read_pilot(out)
