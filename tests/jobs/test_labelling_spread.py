"""Labelling by several processes through Ray: the same bytes, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_labelling_run import contents, rows_of
from toy_labeller import ToyLabeller, label_toys

from paligemma.errors import ConfigError
from paligemma.jobs.cluster import Cluster
from paligemma.stop_signals import handler_kept

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    import paligemma

    path = os.pathsep.join(
        [str(Path(paligemma.__file__).parents[1]), str(Path(__file__).parents[1])]
    )
    with handler_kept(signal.SIGTERM):
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )
    yield
    ray.shutdown()


def spread(seconds: float = 0.0, num_workers: int = 2) -> Any:
    return Cluster(make_answerer=partial(ToyLabeller, seconds), num_workers=num_workers)  # type: ignore[arg-type]


def test_a_pool_beyond_the_cluster_is_refused_before_it_hangs(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "in")
    with pytest.raises(ConfigError, match="3 workers need 3 cores, the cluster has 2"):
        label_toys(rows, tmp_path / "out", spread(num_workers=3))
    assert not (tmp_path / "out").exists()


def test_two_workers_of_which_one_is_killed_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    rows, out = rows_of(tmp_path / "in", 80), tmp_path / "out"
    label_toys(rows, tmp_path / "one", ToyLabeller())
    killed = []

    def kill_a_worker() -> None:
        log, workers = out / "log.jsonl", []
        while not workers:
            time.sleep(0.01)
            lines = log.read_text().splitlines() if log.exists() else []
            rows = [json.loads(line) for line in lines if line.endswith("}")]
            workers = [row["worker"] for row in rows if "worker" in row]
        process = int(workers[0].removeprefix("process "))
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    found = label_toys(rows, out, spread(0.1))
    killer.join(10)
    assert killed
    assert found.num_new == 80
    assert contents(out) == contents(tmp_path / "one")
