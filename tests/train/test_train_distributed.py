"""Two processes that train one model: the numbers of one process, through the command."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tiny_folder import EMBEDDED, write_random_tiny

from paligemma import cli
from paligemma.adapt.lora import LoraConfig
from paligemma.errors import ConfigError, DataError, PaliGemmaError, RunError
from paligemma.example import Asking, Example
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.train import distributed
from paligemma.train.data import MicroBatches
from paligemma.train.distributed import World, joined
from paligemma.train.examples import ExampleSource, SuffixLoss
from paligemma.train.loss import MEANS
from paligemma.train.optim import Optimizer
from paligemma.train.optim_config import OptimConfig
from paligemma.train.packing import Packing, RowSize
from paligemma.train.sharding import is_sharded, rows_of, shard
from paligemma.train.stored import StoredTensors, save_own, shard_files
from paligemma.train.watchdog import Watchdog
from paligemma.tuning.finetune import finetune
from paligemma.tuning.recipe import Recipe
from paligemma.tuning.setup import Setup, task_of
from paligemma.weights.load import load_model

COLOURS = ((220, 30, 30), (30, 30, 220), (20, 160, 60))
NAMES = ("red", "blue", "a dark green")


@dataclass(frozen=True)
class Plain:
    grey: int
    side: int

    def read(self, max_pixels: int) -> np.ndarray:
        return np.full((self.side, self.side, 3), self.grey, np.uint8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_tiny(tmp_path_factory.mktemp("base") / "model", dtype="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one picture and with two, and answers of unequal length."""
    folder = tmp_path_factory.mktemp("colours")
    rows: list[dict[str, Any]] = []
    for name, rgb in zip(NAMES, COLOURS, strict=True):
        Image.fromarray(np.full((40, 60, 3), rgb, np.uint8)).save(folder / f"{name}.png")
        rows.append({"image": f"{name}.png", "prefix": "answer en color?", "suffix": name})
    pair = [f"{name}.png" for name in NAMES[:2]]
    rows.append({"image": pair, "prefix": "answer en colors?", "suffix": "red, then blue"})
    for split, some in (("train", rows), ("valid", rows[:2])):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def start(number: int, *words: object) -> list[subprocess.Popen[str]]:
    """The command in some processes, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "paligemma", *map(str, words)]
    started = []
    for rank in range(number):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if number > 1:
            env |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        started.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        found.append((process.returncode, out, err))
    return found


def losses(folder: Path) -> list[float]:
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_an_adapter_trained_by_two_processes_has_the_losses_of_one(
    base: Path, data: Path, tmp_path: Path
) -> None:
    words = ["train", "--data", data, "--model", base, "--steps", 6, "--batch-size", 3,
             "--rank", 4, "--lr", 3e-3, "--mean", "token", "--quiet"]  # fmt: skip
    both = start(1, *words, "--output", tmp_path / "one")
    both += start(2, *words, "--output", tmp_path / "two")
    alone, first, second = ended(both)
    assert (alone[0], first[0], second[0]) == (0, 0, 0), (alone, first, second)
    assert second[1] == ""
    assert "answer_accuracy" in first[1]
    # Five decimals of a loss are written.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
    reports = [json.loads((tmp_path / k / "report.json").read_text()) for k in ("one", "two")]
    assert reports[0] == reports[1]


def test_a_model_divided_among_two_processes_is_trained_as_in_one(
    base: Path, data: Path, tmp_path: Path
) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    one_row = (own / "valid.jsonl").read_text().splitlines()[0]
    (own / "valid.jsonl").write_text(one_row + "\n")
    words = ["train", "--data", own, "--model", base, "--full", "--steps", 12, "--batch-size", 3,
             "--micro-size", 1, "--lr", 1e-3, "--mean", "token", "--average", 0.5,
             "--eval-every", 0, "--quiet"]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    # Both at once: each is mostly start-up.
    alone, pair = start(1, *words, "--output", one), start(2, *words, "--output", two)
    found = [*ended(alone), *ended(pair)]
    assert [code for code, _, _ in found] == [0, 0, 0], found
    expected = losses(one)
    assert losses(two) == pytest.approx(expected, abs=2e-5)
    parameters = [dict(load_model(folder / "model").named_parameters()) for folder in (one, two)]
    for name, parameter in parameters[0].items():
        torch.testing.assert_close(parameters[1][name], parameter, atol=2e-4, rtol=0)
    shards = sorted(path.name for path in (two / "train" / "step_0000012").iterdir())
    assert "model-00001-of-00002.safetensors" in shards
    # From two processes to one.
    shutil.rmtree(two / "train" / "step_0000012")
    (again,) = ended(start(1, *words, "--output", two))
    assert again[0] == 0, again
    assert "processes from 2 to 1" in again[2]
    assert "not bit-equal" in again[2]
    assert losses(two) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("writers", [1, 2, 3])
def test_any_number_of_processes_reads_its_rows_of_what_others_wrote(
    writers: int, tmp_path: Path
) -> None:
    whole = {"wide": torch.arange(14.0).view(7, 2), "vector": torch.arange(4.0)}
    shards = None if writers == 1 else writers
    files = shard_files(tmp_path, "model", shards)
    for rank, file in enumerate(files):
        own = {name: x[slice(*rows_of(len(x), rank, writers))] for name, x in whole.items()}
        save_own(own, file)
    stored = StoredTensors(files)
    assert stored.names() == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(stored.get(name), tensor)
        for readers in (1, 2, 5):
            pieces = [
                stored._rows(name, *rows_of(len(tensor), rank, readers)) for rank in range(readers)
            ]
            assert torch.equal(torch.cat(pieces), tensor)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parallel": "both"}, "must be one of replicate, shard"),
        ({"parallel": "shard", "lora": LoraConfig()}, "an adapter and its base are not"),
        ({"patience": 2}, "keeps its last state"),
    ],
)
def test_what_a_divided_model_cannot_do_is_said_first(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.tuning.setup.world", lambda: World(size=2))
    parallel = options.pop("parallel", None)
    recipe = Recipe(**{"lora": None, **options})
    with pytest.raises(ConfigError, match=said):
        Setup(
            model="tiny", processor=Processor(load_tokenizer(EMBEDDED), 32), recipe=recipe,
            task=task_of(None, None), transfer=None, data=Path("a"), folder=Path("b"),
            parallel=parallel,
        )  # fmt: skip


def test_a_rule_that_needs_whole_parameters_is_refused_before_anything_is_written(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.tuning.setup.world", lambda: World(size=2))
    with pytest.raises(ConfigError, match="trained by adam, got adafactor"):
        finetune(str(base), data=data, output=tmp_path / "run", lora=False, rule="adafactor")
    assert not (tmp_path / "run").exists()


def test_rules_that_need_whole_parameters_refuse_divided_ones(base: Path, tmp_path: Path) -> None:
    model = load_model(base)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'met'}", rank=0, world_size=1
    )
    try:
        shard(model)
        assert is_sharded(model)
        with pytest.raises(ConfigError, match="trained by adam, got adafactor"):
            Optimizer(model, OptimConfig(lr=1e-3, rule="adafactor"), total_steps=2)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be a whole number, got 'x'"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "WORLD_SIZE 2 and RANK 5"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE -1 and RANK 0"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "started by torchrun"),
    ],
)
def test_an_environment_that_names_no_process_is_refused(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said), joined("cpu"):
        pytest.fail("joined")


def test_processes_that_never_start_are_waited_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    stated = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in stated.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_MAX_JOIN", timedelta(seconds=1))
    with pytest.raises(RunError, match="does not answer"), joined("cpu"):
        pytest.fail("joined")


def test_a_batch_is_packed_by_kind_and_tokens_in_order_and_shared_without_gap() -> None:
    rows = [RowSize(k % 3, tokens) for k, tokens in enumerate((9, 4, 4, 9, 30, 4, 2, 4))]
    packing = Packing(micro_size=3, max_tokens=20)
    parts = [part.places for part in packing.parts(rows)]
    assert parts == [(0, 3), (6,), (1,), (4,), (7,), (2, 5)]
    for size in (2, 3, 11):
        of_all = [replace(packing, rank=k, world_size=size).parts(rows) for k in range(size)]
        counted = [
            place for parts in of_all for part in parts if part.counts for place in part.places
        ]
        assert sorted(counted) == list(range(8))
        aligned = [
            replace(packing, rank=k, world_size=size, aligned=True).parts(rows) for k in range(size)
        ]
        kinds = [[rows[part.places[0]].pictures > 0 for part in parts] for parts in aligned]
        assert all(one == kinds[0] for one in kinds)


def test_parts_by_tokens_and_shares_of_processes_add_up_to_the_gradient_of_the_batch(
    base: Path,
) -> None:
    model = load_model(base).train()
    side = model.config.vision.image_size_px
    images = {0: (), 1: (Plain(90, side),), 2: (Plain(20, side), Plain(60, side))}
    examples = [
        Example(
            id=str(k), prefix="answer en " + "what " * k, pictures=images[k % 3], references=None,
            targets=(NAMES[k % 3],),
        )
        for k in range(7)
    ]  # fmt: skip

    def gradient(mean: str, **options: Any) -> torch.Tensor:
        source = ExampleSource(
            examples=examples, asking_of=lambda _: Asking(text_len=40, max_new_tokens=8),
            processor=Processor(load_tokenizer(EMBEDDED), side), batch_size=5, seed=1, mean=mean,
            tokens_a_picture=model.config.num_image_tokens, **options,
        )  # fmt: skip
        batch = source.batch(0)
        assert isinstance(batch, MicroBatches)
        for part, share in zip(batch.parts, batch.shares, strict=True):
            (SuffixLoss(mean=mean)(model, part)[0] * share).backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=False)
        return found

    for mean in MEANS:
        whole = gradient(mean)
        assert whole.abs().max() > 1e-2
        assert (gradient(mean, max_tokens=60) - whole).abs().max() <= 1e-5
        shared = sum(
            gradient(mean, world=World(k, 3), aligned=k_aligned)
            for k, k_aligned in ((0, True), (1, True), (2, True))
        )
        assert (shared - whole).abs().max() <= 1e-5


def test_a_step_that_hangs_ends_the_run_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_with: list[int] = []
    over = threading.Event()

    def end(code: int) -> None:
        ended_with.append(code)
        over.set()
        watchdog.close()

    monkeypatch.setattr(os, "_exit", end)
    watchdog = Watchdog(0.1, World(), lambda step: [f"row {step}"])
    watchdog.begin(6)
    watchdog.rest()
    assert not over.wait(0.3)
    watchdog.begin(7)
    assert over.wait(5)
    assert ended_with == [1]
    said = capsys.readouterr().err
    assert "process 0 of 1 is longer in step 8 (rows row 7;" in said


def test_the_survivor_of_a_process_that_was_killed_has_failed_and_asked_nothing_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    monkeypatch.setattr(dist, "all_reduce", broken)
    gradients = click.command()(lambda: print(World(1, 2).summed({"loss": 1.0})))
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: gradients)
    with pytest.raises(RunError, match="another one ended"):
        World(1, 2).summed({"loss": 1.0})
    with pytest.raises(SystemExit) as ended_with:
        cli.main(["train"])
    assert ended_with.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("paligemma: all processes of a run end together")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(28, "No space left on device"), RunError),
        (RuntimeError("out of memory"), RunError),
        (DataError("a row is wrong"), DataError),
        (ConfigError("an option is wrong"), ConfigError),
    ],
)
def test_what_the_first_process_could_not_do_is_no_wrong_input_of_the_others(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, told: type[PaliGemmaError]
) -> None:
    sent: list[object] = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda said, **_: sent.extend(said))

    def fail() -> None:
        raise raised

    with pytest.raises(type(raised)):
        World(0, 2).on_first(fail)
    assert type(sent[1]) is told
    assert str(raised) in str(sent[1])
