"""What a cluster is checked for before anything starts."""

from __future__ import annotations

import math
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
from toy_task import ToyAnswerer

from paligemma.errors import ConfigError
from paligemma.jobs.cluster import Cluster


@pytest.mark.parametrize(
    "change",
    [
        {"num_workers": 0},
        {"num_workers": 2, "gpus_each": -1.0},
        {"num_workers": 2, "gpus_each": 1.5},
        {"num_workers": 2, "cpus_each": math.nan},
        {"num_workers": 2, "cpus_each": math.inf},
    ],
)
def test_a_run_needs_workers(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least 1 worker"):
        Cluster(make_answerer=ToyAnswerer, **change)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, cores: float, machines: Sequence[dict[str, float]] = ()
) -> dict[str, Any]:
    """A Ray that notes how it is started, of a cluster with so many cores, or of these machines."""
    begun: dict[str, Any] = {}
    ray: Any = ModuleType("ray")
    ray.is_initialized = lambda: bool(begun)

    def init(**words: Any) -> None:
        begun.update(words)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does

    ray.init = init
    machines = machines or [{"CPU": cores}]
    ray.cluster_resources = lambda: dict(sum(map(Counter, machines), Counter()))
    gone = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    ray.nodes = lambda: [gone, *({"Alive": True, "Resources": one} for one in machines)]
    ray.data = ModuleType("ray.data")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    return begun


def test_without_an_address_no_cluster_that_was_left_here_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = stand_in(monkeypatch, cores=3)
    Cluster(make_answerer=ToyAnswerer, num_workers=3).require_room()
    assert (begun["address"], begun["num_cpus"]) == ("local", 3)


def test_ray_ends_no_program_that_has_a_handler_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, cores=3)
    before = signal.getsignal(signal.SIGTERM)
    Cluster(make_answerer=ToyAnswerer, num_workers=1).require_room()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("change", "said"),
    [({"num_workers": 5}, "5 workers need 5 cores"), ({"gpus_each": 0.5}, "need 1 GPUs")],
)
def test_workers_beyond_the_cluster_are_refused(
    change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, cores=4)
    with pytest.raises(ConfigError, match=said):
        Cluster(**{"make_answerer": ToyAnswerer, "num_workers": 2, **change}).require_room()


@pytest.mark.parametrize(
    ("machines", "each", "most"),
    [
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"cpus_each": 2.0}, 2),
        # The cores of a machine without GPUs are of no use to workers that need one.
        ([{"CPU": 64.0}, *[{"CPU": 4.0, "GPU": 8.0}] * 2], {"gpus_each": 1.0}, 8),
        ([{"CPU": 64.0, "GPU": 5.0}], {"gpus_each": 0.4}, 10),
        ([{"CPU": 64.0, "GPU": 5.0}], {"gpus_each": 2.0, "cpus_each": 0.1}, 2),
    ],
)
def test_workers_must_fit_on_single_machines(
    machines: list[dict[str, float]],
    each: dict[str, float],
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, 0, machines)
    Cluster(make_answerer=ToyAnswerer, num_workers=most, **each).require_room()
    with pytest.raises(ConfigError, match=rf"room for {most};|need [\d.]+ "):
        Cluster(make_answerer=ToyAnswerer, num_workers=most + 1, **each).require_room()


def test_shares_of_a_core_are_rounded_up_to_what_this_machine_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = stand_in(monkeypatch, cores=3)
    Cluster(make_answerer=ToyAnswerer, num_workers=5, cpus_each=0.5).require_room()
    assert begun["num_cpus"] == 3
