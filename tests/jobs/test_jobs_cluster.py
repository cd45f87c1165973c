"""What a cluster is checked for before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from toy_task import ToyAnswerer

from paligemma.errors import ConfigError
from paligemma.jobs.cluster import Cluster


@pytest.mark.parametrize("change", [{"num_workers": 0}, {"num_workers": 2, "gpus_each": -1.0}])
def test_a_run_needs_workers(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least 1 worker"):
        Cluster(make_answerer=ToyAnswerer, **change)
