"""Which worker gets which task, and what follows when workers die; Ray is a stand-in here."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_labelling_run import contents, labelled, rows_of
from toy_labeller import ToyLabeller, label_toys

from paligemma.errors import RunError
from paligemma.jobs.cluster import Cluster


class RayError(Exception):
    """Any error of Ray."""


class RayActorError(RayError):
    """A worker died."""


class RayTaskError(RayError):
    """A fault of the program in a worker."""


@dataclass(eq=False)
class Call:
    """A call of a worker that was not waited for yet."""

    owner: Any
    run: tuple[str, tuple[Any, ...]]
    dead: bool = False


class StandIn:
    """Ray with workers that are objects; one dies with all its calls where it asks a deadly row."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayActorError=RayActorError, RayTaskError=RayTaskError
    )

    def __init__(self, deadly: Callable[[str], bool]) -> None:
        self.deadly, self.num_deaths, self.most = deadly, 0, 0
        self.calls: list[Call] = []

    def remote(self, kind: Any) -> Any:
        def make(*words: Any) -> Any:
            worker = kind(*words)

            def method(name: str) -> Any:
                def call(*given: Any) -> Any:
                    reference = Call(worker, (name, given))
                    self.calls.append(reference)
                    self.most = max(self.most, sum(c.owner is worker for c in self.calls))
                    return reference

                return SimpleNamespace(remote=call)

            return SimpleNamespace(**{n: method(n) for n in ("label", "settings", "ping")})

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, reference: Any) -> Any:
        self.calls.remove(reference)
        if reference.dead:
            raise RayActorError("its worker died")
        name, given = reference.run
        asked = [one.id for _, batch in pickle.loads(given[0]) for one in batch] if given else []
        if any(map(self.deadly, asked)):
            self.num_deaths += 1
            for other in self.calls:
                other.dead |= other.owner is reference.owner
            raise RayActorError("a worker died")
        return getattr(reference.owner, name)(*given)

    def kill(self, worker: Any) -> None:
        pass


class LosesWorkers(StandIn):
    """Some workers die once, as those of one machine do, before any of them answers."""

    def __init__(self, num: int) -> None:
        super().__init__(lambda row: False)
        self.left, self.lost = num, set[int]()

    def get(self, reference: Any) -> Any:
        is_new = reference.run[0] == "label" and id(reference.owner) not in self.lost
        if self.left and is_new and not reference.dead:
            self.left -= 1
            self.lost.add(id(reference.owner))
            for other in self.calls:
                other.dead |= other.owner is reference.owner
        return super().get(reference)


def spread(monkeypatch: pytest.MonkeyPatch, ray: StandIn, num_workers: int = 2) -> Any:
    monkeypatch.setattr(Cluster, "connected", lambda self: ray)
    monkeypatch.setattr(Cluster, "require_room", lambda self: None)
    return Cluster(make_answerer=ToyLabeller, num_workers=num_workers)  # type: ignore[arg-type]


def test_a_row_that_kills_workers_is_quarantined_and_the_other_parts_keep_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, tmp_path / "one", ToyLabeller())
    ray = StandIn(lambda row: row == "17")
    found = label_toys(rows, out, spread(monkeypatch, ray))
    assert found.num_quarantined == 1
    assert ray.num_deaths == 4
    assert ray.most == 2  # no worker has more than two parts
    assert [one["row"] for one in labelled(out)] == [k for k in range(43) if k != 17]
    before, after = contents(tmp_path / "one"), contents(out)
    same = {name for name in before if before[name] == after[name]}
    assert set(before) - same == {"labels-00000001.jsonl"}
    assert b"died 2 times" in after["part-00000001.jsonl"]


def test_workers_that_never_answer_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(tmp_path / "in")
    with pytest.raises(RunError, match="workers died 13 times"):
        label_toys(rows, tmp_path / "out", spread(monkeypatch, StandIn(lambda row: True)))


def test_a_lost_machine_with_many_workers_costs_its_parts_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = rows_of(tmp_path / "in"), tmp_path / "out"
    label_toys(rows, tmp_path / "one", ToyLabeller(), part_rows=1)
    ray = LosesWorkers(14)
    label_toys(rows, out, spread(monkeypatch, ray, 16), part_rows=1)
    assert len(ray.lost) == 14
    assert contents(out) == contents(tmp_path / "one")
