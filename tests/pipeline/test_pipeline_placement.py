"""Everything a model computes lies on the model's device; shown without one, see pretend_device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_device import OnDevice, PlacementError, PretendDevice, pretend_device
from tiny_folder import DESK

from paligemma import Detections, Frames, PaliGemma, TextAnswer
from paligemma.example import OBJECTS, Asking, Example
from paligemma.generate import (
    ClosedSet,
    DecodeOptions,
    DecodeQueue,
    Nucleus,
    QueueOptions,
    Temperature,
)
from paligemma.jobs.model_answerer import ModelAnswerer
from paligemma.tasks.scenes.rows import ScenePicture
from paligemma.tiny.locations import spread_losses
from paligemma.train.loss import training_loss
from paligemma.train.optim import Optimizer
from paligemma.train.optim_config import OptimConfig
from paligemma.train.schedule import ScheduleConfig
from paligemma.weights.load import load_model
from paligemma.weights.save import save_model

PROMPTS = ["caption en", "answer en how many red stars are there in the picture?", "ocr"]
OPTIM = OptimConfig(lr=1e-3, wd=1e-4, schedule=((".*", ScheduleConfig(warmup_steps=2)),))
SHORT: dict[str, Any] = {"max_new_tokens": 6}


def queued(pg: PaliGemma) -> list[tuple[int, int, float, bool]]:
    """Rows of unequal prompts, samplers, bans and grammars that share two places of a queue."""
    model, vocab = pg.model, pg.model.config.vocab
    queue = DecodeQueue(model, QueueOptions(max_rows=2, kv_cache_dtype="float32"))
    plain_row = DecodeOptions(max_new_tokens=5, kv_cache_dtype="float32", record_loc_probs=True)
    grammar = ClosedSet(vocab=vocab, answers=((40,), (41, 42, 43, 44, 45)))
    soft_tokens = pg.encode_image(DESK).soft_tokens
    for prompt, options, constraint in (
        (PROMPTS[0], plain_row, None),
        (PROMPTS[1], replace(plain_row, sampler=Temperature(1.0), seed=3), None),
        (PROMPTS[2], replace(plain_row, sampler=Nucleus(0.9), banned_ids=(46,)), grammar),
        (PROMPTS[0], replace(plain_row, banned_ids=(7, 8), max_new_tokens=3), None),
    ):
        row = pg.processor.prompt_row(prompt)
        queue.submit(row, options, soft_tokens=soft_tokens, constraint=constraint)
    events = []
    while len(queue):
        events += queue.step()
    return [(event.handle, event.token, event.logprob, event.cut) for event in events]


Ask = Callable[[PaliGemma], Any]
WAYS: Mapping[str, Ask] = {
    "greedy": lambda pg: pg.caption(DESK, **SHORT),
    "text alone": lambda pg: pg.generate(None, "caption en", **SHORT),
    "frames": lambda pg: pg.generate(Frames(DESK, DESK), "caption en", **SHORT),
    "encoded": lambda pg: pg.encode_image(DESK).ask("caption en", **SHORT),
    "weighed locations": lambda pg: pg.detect(DESK, "star", weigh_locations=True, **SHORT),
    "boxes of a grammar": lambda pg: pg.detect(DESK, "star", constrain=True, max_new_tokens=12),
    "masks of a grammar": lambda pg: pg.segment(DESK, "star", constrain=True, max_new_tokens=30),
    "drawn": lambda pg: pg.caption(DESK, temperature=1.0, seed=3, **SHORT),
    "top k": lambda pg: pg.caption(DESK, temperature=1.0, top_k=5, seed=3, **SHORT),
    "top p": lambda pg: pg.caption(DESK, temperature=1.0, top_p=0.9, seed=3, **SHORT),
    "best of": lambda pg: pg.caption(DESK, temperature=1.0, best_of=3, **SHORT),
    "beams": lambda pg: pg.caption(DESK, num_beams=3, length_penalty=1.0, **SHORT),
    "batch": lambda pg: pg.generate_batch([DESK] * 3, PROMPTS, **SHORT),
    "queue": queued,
    "stream": lambda pg: list(pg.stream(DESK, "caption en", **SHORT)),
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendDevice]:
    with pretend_device(monkeypatch) as mode:
        yield mode


def plain(answer: Any) -> Any:
    """An answer as values that compare equal only if every number is equal."""
    if isinstance(answer, TextAnswer):
        return answer.text, answer.token_logprobs
    if isinstance(answer, Detections):
        masks = [None if one.mask is None else one.mask.tobytes() for one in answer]
        return answer.text, [(one.box_yxyx, one.score) for one in answer], masks
    return [plain(one) for one in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_on_the_device_is_that_of_the_cpu(
    random_tiny: PaliGemma, tiny_dir: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain(WAYS[way](random_tiny))
    with pretend_device(monkeypatch) as mode:
        pg = PaliGemma.from_pretrained(tiny_dir, device="cuda", kv_cache_dtype="float32")
        assert pg.model.device.type == "cuda"
        loaded = mode.num_calls
        found = plain(WAYS[way](pg))
    assert mode.num_calls > loaded + 100
    assert found == expected


def test_the_answers_that_are_compared_hold_boxes_and_masks(random_tiny: PaliGemma) -> None:
    (first, *_) = WAYS["masks of a grammar"](random_tiny)
    assert first.codes is not None
    assert len(WAYS["boxes of a grammar"](random_tiny)) > 0


@pytest.mark.parametrize("mode", ["mixed", "bf16"])
def test_other_precisions_stay_on_the_device_too(
    tiny_dir: Path, mode: str, device: PretendDevice
) -> None:
    pg = PaliGemma.from_pretrained(tiny_dir, device="cuda", mode=mode)
    on_cpu = PaliGemma.from_pretrained(tiny_dir, device="cpu", mode=mode)
    for way in ("greedy", "beams", "drawn"):
        ours, theirs = WAYS[way](pg), WAYS[way](on_cpu)
        # A CPU computes bfloat16 attention in float32, other devices do not.
        assert ours.token_logprobs[0] == pytest.approx(theirs.token_logprobs[0], abs=0.02)


def test_evaluation_answers_on_the_device(tiny_dir: Path, device: PretendDevice) -> None:
    picture = ScenePicture(index=0, seed=0, size_px=112)
    rows = [
        Example(id=prompt, prefix=prompt, pictures=(picture,), references=None)
        for prompt in ("detect star ; circle", "caption en", "ocr")
    ]
    found = []
    for name in ("cuda", "cpu"):
        pg = PaliGemma.from_pretrained(tiny_dir, device=name)
        asking = Asking(text_len=64, max_new_tokens=6, answer=OBJECTS)
        answerer = ModelAnswerer(pg, lambda _, asking=asking: asking)
        found.append((answerer.settings(), answerer.answer(rows, answerer.read(rows))))
    assert found[0] == found[1]


@pytest.mark.parametrize("layout", ["hf", "npz"])
def test_a_model_is_saved_from_the_device(
    tiny_dir: Path, tmp_path: Path, layout: Any, device: PretendDevice
) -> None:
    model = load_model(tiny_dir, device="cuda")
    save_model(model, tmp_path / "saved", layout=layout)
    again = load_model(tmp_path / "saved", device="cuda", config=model.config)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert ours.is_cuda
        assert torch.equal(ours, theirs)


def test_a_training_step_stays_on_the_device(tiny_dir: Path, device: PretendDevice) -> None:
    updated = []
    for name in ("cuda", "cpu"):
        pg = PaliGemma.from_pretrained(tiny_dir, device=name)
        batch = pg.processor.training_batch([DESK], ["caption en"], ["a star"], text_len=24)
        optimizer = Optimizer(pg.model, OPTIM, total_steps=4)
        for _ in range(2):
            optimizer.zero_grad()
            spread = partial(spread_losses, loc0=pg.vocab.loc0, sigma_bins=2.0)
            training_loss(pg.model, batch.to(name), token_loss=spread).loss.backward()
            optimizer.step()
        updated.append({name: p.cpu() for name, p in pg.model.named_parameters()})
    for name, ours in updated[0].items():
        assert torch.equal(ours, updated[1][name]), name


def test_the_pretended_device_refuses_what_a_gpu_would(device: PretendDevice) -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert isinstance(there, OnDevice)
    assert not isinstance(here, OnDevice)
    calls: list[Callable[[], object]] = [
        lambda: there + here,
        lambda: torch.cat((there, here)),
        lambda: there[torch.tensor([0, 1])],
        lambda: torch.where(here > 0, there, 0.0),
        lambda: there.numpy(),
        lambda: torch.empty_like(there).exponential_(generator=torch.Generator()),
        lambda: torch.empty(3).exponential_(generator=torch.Generator(device="cuda")),
    ]
    for call in calls:
        with pytest.raises(PlacementError):
            call()
    assert (there + here.to(there.device)).is_cuda
    assert not there.cpu().is_cuda
    assert (there * torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]
    drawn = torch.empty_like(there).exponential_(generator=torch.Generator(device="cuda"))
    assert drawn.is_cuda
