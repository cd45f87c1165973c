"""The update rule, its patterns and its state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy_training import small_model

from paligemma.errors import CheckpointError, ConfigError
from paligemma.model.paligemma import PaliGemmaModel
from paligemma.train.optim import Optimizer
from paligemma.train.optim_config import OptimConfig, pattern_name
from paligemma.train.schedule import ScheduleConfig

CONSTANT = ScheduleConfig()
WARMUP = ScheduleConfig(decay_type="linear", warmup_steps=1)


class Toy(nn.Module):
    """Four parameters named like the original's."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, shape in {
            "img-kernel": (3, 2),
            "img-bias": (2,),
            "llm-attn": (4,),
            "llm-embed": (2, 2),
        }.items():
            self.register_parameter(
                name, nn.Parameter(torch.randn(shape, generator=draw, dtype=dtype))
            )


def toy_name(name: str) -> str:
    return name.replace("-", "/")


def toy_optimizer(
    model: nn.Module, total_steps: int = 10, **options: object
) -> tuple[Optimizer, Callable[[Iterable[float]], dict[str, Tensor]]]:
    """An optimiser and a function that updates with one constant gradient a parameter."""
    extra = {k: options.pop(k) for k in ("extra_parameters", "extra_schedule") if k in options}
    config = OptimConfig(**{"lr": 0.1, "grad_clip_norm": None, **options})
    optimizer = Optimizer(model, config, total_steps=total_steps, name_of=toy_name, **extra)

    def update(values: Iterable[float]) -> dict[str, Tensor]:
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.grad = torch.full_like(parameter, value)
        return optimizer.step(measure_update=True)

    return optimizer, update


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def model() -> PaliGemmaModel:
    model = small_model()
    with torch.no_grad():
        model.projector.weight.fill_(0.5)
    return model


def test_six_updates_are_the_slow_definition() -> None:
    model = Toy()
    # Factors by parameter: two schedules, one frozen, both kinds of multipliers.
    optimizer, _ = toy_optimizer(
        model,
        wd=0.02,
        grad_clip_norm=1.0,
        b2=0.95,
        schedule=(
            ("img/bias", None),
            ("img/.*", ScheduleConfig(decay_type="cosine", warmup_steps=2)),
            ("llm/.*", ScheduleConfig(decay_type="rsqrt", timescale=4)),
        ),
        lr_mults=(("img/.*", 0.25), ("llm/attn", 3.0)),
        wd_mults=((".*/kernel$", 1.0), ("llm/embed", 0.5)),
    )

    def factors(step: int) -> dict[str, tuple[float, float, float]]:
        cosine = 0.5 * (1 + np.cos(np.pi * max(step - 2, 0) / 8)) * min(1, step / 2)
        rsqrt = (1 + step / 4) ** -0.5
        return {
            "img-kernel": (cosine, 0.25, 1.0),
            "llm-attn": (rsqrt, 3.0, 0.0),
            "llm-embed": (rsqrt, 1.0, 0.5),
        }

    oracle = reference.AdamOracle(
        parameters={name: p.detach().numpy().copy() for name, p in model.named_parameters()},
        factors=factors,
        lr=0.1,
        wd=0.02,
        clip=1.0,
        b2=0.95,
    )
    random = np.random.default_rng(0)
    for step in range(6):
        # Norms from about 0.4 to 40: clipped and not clipped.
        gradients = {
            name: random.normal(size=p.shape) * (0.1, 10, 0.2, 1, 5, 0.1)[step]
            for name, p in model.named_parameters()
        }
        for name, parameter in model.named_parameters():
            parameter.grad = torch.tensor(gradients[name])
        metrics = optimizer.step()
        assert metrics["grad_norm"].item() == pytest.approx(oracle.step(gradients), rel=1e-6)
        for name, parameter in model.named_parameters():
            # The clipping factor is a float32.
            np.testing.assert_allclose(
                parameter.detach(), oracle.parameters[name], rtol=1e-6, atol=1e-7, err_msg=name
            )


def test_an_update_at_schedule_zero_moves_the_moments_only() -> None:
    model = Toy()
    optimizer, update = toy_optimizer(model, wd=0.1, schedule=((".*", WARMUP),))
    before = copies(model)
    metrics = update([1.0] * 4)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert metrics["update_norm"] == 0.0
    tensors, meta = optimizer.export_state()
    assert meta == {"steps_done": 1}
    assert tensors["img-bias.exp_avg"].tolist() == pytest.approx([0.1, 0.1])
    # The count of the bias correction went on as well: the direction of step 2 is exactly 1.
    update([1.0] * 4)
    moved = before["llm-attn"] - model.get_parameter("llm-attn")
    assert moved.tolist() == pytest.approx([0.1] * 4, rel=1e-6)


def test_decay_is_not_multiplied_by_the_learning_rate() -> None:
    model = Toy()
    half = ScheduleConfig(mult=0.5)
    _, update = toy_optimizer(
        model, lr=1e-3, wd=0.2, schedule=((".*", half),), lr_mults=(("img/.*", 0.1),)
    )
    before = copies(model)
    update([0.0] * 4)
    # schedule * wd = 0.1 of the kernel; nothing else decays.
    after = model.get_parameter("img-kernel")
    torch.testing.assert_close(after.detach(), 0.9 * before["img-kernel"])
    for name in ("img-bias", "llm-attn", "llm-embed"):
        assert torch.equal(model.get_parameter(name), before[name])


def test_a_decay_of_a_millionth_is_a_millionth() -> None:
    # 1 - 1e-6 in float32 is 1 - 1.01e-6. Each parameter is rounded too, but every one its own way.
    model = nn.Module()
    start = 1.0 + torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    model.register_parameter("img-kernel", nn.Parameter(start.clone()))
    _, update = toy_optimizer(model, wd=1e-6)
    update([0.0])
    moved = start.double() - model.get_parameter("img-kernel").detach().double()
    assert moved.mean() / start.double().mean() == pytest.approx(1e-6, rel=2e-3)


def test_norms_of_millions_of_elements_keep_the_digits_of_float32() -> None:
    draw = torch.Generator().manual_seed(0)
    model = nn.Module()
    start, gradient = (torch.randn(3000, 1000, generator=draw) for _ in range(2))
    model.register_parameter("llm-embed", nn.Parameter(start.clone()))
    optimizer, _ = toy_optimizer(model, lr=0.0625)
    parameter = model.get_parameter("llm-embed")
    parameter.grad = gradient.clone()
    metrics = optimizer.step(measure_update=True)
    arrays = {"grad_norm": gradient, "param_norm": parameter, "update_norm": parameter - start}
    for name, array in arrays.items():
        exact = array.detach().double().norm().item()
        assert metrics[name].item() == pytest.approx(exact, rel=2e-7), name


def test_only_kernels_of_tower_and_projector_decay(model: PaliGemmaModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    before = copies(model)
    Optimizer(model, OptimConfig(lr=1e-3, wd=0.1), total_steps=5).step()
    decayed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert decayed == {
        "vision.patch_embed.proj.weight",
        "projector.weight",
        *(
            f"vision.blocks.{i}.{part}.weight"
            for i in range(2)
            for part in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.fc1", "mlp.fc2")
        ),
    }


def test_clipping_scales_to_the_exact_norm_and_leaves_smaller_gradients_alone() -> None:
    model = Toy(torch.float32)
    optimizer, _ = toy_optimizer(model, grad_clip_norm=1.0)
    # 6 + 2 + 4 + 4 = 16 elements of 0.5: norm 2.
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    assert optimizer.step()["grad_norm"].item() == 2.0
    assert all((p.grad == 0.25).all() for p in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.125)
    assert optimizer.step()["grad_norm"].item() == 0.5
    assert all((p.grad == 0.125).all() for p in model.parameters())


def test_gradients_of_zero_are_clipped_to_zero() -> None:
    model = Toy()
    _, update = toy_optimizer(model, grad_clip_norm=1.0)
    before = copies(model)
    assert update([0.0] * 4)["grad_norm"] == 0.0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_frozen_parameters_have_no_gradient_no_state_and_no_part_in_the_norm() -> None:
    model = Toy()
    optimizer, update = toy_optimizer(model, wd=0.5, schedule=(("img/.*", None), (".*", CONSTANT)))
    before = copies(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "llm-attn",
        "llm-embed",
    ]
    # 4 + 4 elements of 2: sqrt(32); the gradients of 100 on the tower do not count.
    metrics = update([100.0, 100.0, 2.0, 2.0])
    assert metrics["grad_norm"].item() == pytest.approx(32**0.5)
    assert torch.equal(model.get_parameter("img-kernel"), before["img-kernel"])
    tensors, _ = optimizer.export_state()
    assert sorted(tensors) == [
        "llm-attn.exp_avg",
        "llm-attn.exp_avg_sq",
        "llm-embed.exp_avg",
        "llm-embed.exp_avg_sq",
    ]
    # The parameter norm is of all parameters.
    norm = torch.cat([p.flatten() for p in model.parameters()]).norm().item()
    assert metrics["param_norm"].item() == pytest.approx(norm, rel=1e-6)


def test_freezing_the_tower_by_its_prefix_freezes_the_projector_too(model: PaliGemmaModel) -> None:
    config = OptimConfig(lr=0.1, schedule=(("img/.*", None), ("llm/.*", CONSTANT)))
    Optimizer(model, config, total_steps=5)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"text"}


def test_the_first_pattern_that_matches_the_whole_name_decides() -> None:
    model = Toy()
    _, update = toy_optimizer(
        model,
        schedule=(
            ("img/kernel", ScheduleConfig(mult=0.5)),
            ("img/.*", ScheduleConfig(mult=0.25)),
            (".*", CONSTANT),
        ),
    )
    before = copies(model)
    update([1.0] * 4)
    moved = {
        name: (before[name] - p.detach()).flatten()[0].item()
        for name, p in model.named_parameters()
    }
    assert moved == pytest.approx(
        {"img-kernel": 0.05, "img-bias": 0.025, "llm-attn": 0.1, "llm-embed": 0.1}
    )


def test_uncovered_parameters_are_listed() -> None:
    with pytest.raises(ConfigError, match="no pattern matches llm/attn, llm/embed"):
        toy_optimizer(Toy(), schedule=(("img/.*", CONSTANT),))


@pytest.mark.parametrize(
    "options",
    [
        {"lr_mults": (("lmm/.*", 0.1),)},
        {"schedule": (("img", None), (".*", CONSTANT))},  # Matches no whole name.
        {"schedule": ((".*", CONSTANT), ("img/.*", None))},  # What comes first decides.
        {"wd": 0.1, "wd_mults": (("img/kernels", 1.0),)},
    ],
)
def test_a_pattern_that_decides_nothing_is_an_error(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"must decide for a parameter, '\S+' decides for none"):
        toy_optimizer(Toy(), **options)


def test_freezing_everything_is_an_error() -> None:
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        toy_optimizer(Toy(), schedule=((".*", None),))


def test_extra_parameters_follow_a_schedule_of_their_own() -> None:
    model, head = Toy(), nn.Linear(2, 1, dtype=torch.float64)
    before = head.weight.detach().clone()
    optimizer, _ = toy_optimizer(
        model,
        schedule=((".*", WARMUP),),
        lr_mults=(("extra/bias", 0.5),),
        extra_parameters=dict(head.named_parameters()),
        extra_schedule=CONSTANT,
    )
    assert optimizer.schedule_factors() == {".*": 0.0, "extra/.*": 1.0}
    bias = head.bias.item()
    for parameter in head.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(head.weight.detach(), before - 0.1)
    assert head.bias.item() == pytest.approx(bias - 0.05)
    assert "extra/weight.exp_avg" in optimizer.export_state()[0]


def test_extra_parameters_need_a_schedule() -> None:
    with pytest.raises(ConfigError, match="come together"):
        toy_optimizer(Toy(), extra_parameters={"w": nn.Parameter(torch.zeros(1))})


def test_a_parameter_that_the_loss_does_not_reach_has_a_zero_gradient() -> None:
    model = Toy()
    optimizer, update = toy_optimizer(model)
    update([1.0] * 4)
    optimizer.zero_grad()
    model.get_parameter("llm-attn").grad = torch.ones(4, dtype=torch.float64)
    optimizer.step()
    moments, _ = optimizer.export_state()
    assert moments["img-bias.exp_avg"].tolist() == pytest.approx([0.09, 0.09])
    assert moments["llm-attn.exp_avg"].tolist() == pytest.approx([0.19] * 4)


def test_the_update_norm_is_measured_when_asked() -> None:
    model = Toy()
    optimizer, update = toy_optimizer(model)
    # The first Adam direction of a constant gradient is 1 everywhere: 0.1 * sqrt(16).
    assert update([3.0] * 4)["update_norm"].item() == pytest.approx(0.4)
    assert "update_norm" not in optimizer.step()


def test_saved_state_continues_bit_for_bit(tmp_path: Path) -> None:
    options = {"wd": 0.1, "schedule": (("img/bias", None), (".*", WARMUP))}
    straight = Toy(torch.float32)
    optimizer, update = toy_optimizer(straight, **options)
    for step in range(3):
        update([0.1 * step, 1.0, -0.5, 0.2])
    tensors, meta = optimizer.export_state()
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text(json.dumps(meta))

    resumed = Toy(torch.float32)
    resumed.load_state_dict(straight.state_dict())
    other, update_other = toy_optimizer(resumed, **options)
    other.import_state(
        load_file(tmp_path / "state.safetensors"),
        json.loads((tmp_path / "state.json").read_text()),
    )
    assert other.steps_done == 3
    for _ in range(2):
        update([0.3, 1.0, 0.4, -0.2])
        update_other([0.3, 1.0, 0.4, -0.2])
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_the_state_of_no_step_is_empty_and_can_be_imported() -> None:
    optimizer, update = toy_optimizer(Toy())
    assert optimizer.export_state() == ({}, {"steps_done": 0})
    update([1.0] * 4)
    optimizer.import_state({}, {"steps_done": 0})
    assert optimizer.export_state() == ({}, {"steps_done": 0})


def test_imported_moments_are_copies() -> None:
    optimizer, update = toy_optimizer(Toy())
    update([1.0] * 4)
    saved = {name: tensor.clone() for name, tensor in optimizer.export_state()[0].items()}
    optimizer.import_state(saved, {"steps_done": 1})
    update([5.0] * 4)
    assert saved["img-bias.exp_avg"].tolist() == pytest.approx([0.1, 0.1])


def test_state_that_does_not_fit_is_an_error_that_names_every_problem() -> None:
    optimizer, update = toy_optimizer(Toy())
    update([1.0] * 4)
    tensors, meta = optimizer.export_state()
    broken = {**tensors, "old.exp_avg": torch.zeros(1), "img-bias.exp_avg": torch.zeros(3)}
    del broken["llm-attn.exp_avg_sq"]
    with pytest.raises(CheckpointError) as caught:
        optimizer.import_state(broken, meta)
    for problem in (
        "missing llm-attn.exp_avg_sq",
        "unexpected old.exp_avg",
        "img-bias.exp_avg has shape (3,) instead of (2,)",
    ):
        assert problem in str(caught.value)
    with pytest.raises(CheckpointError, match="steps_done must be a count"):
        optimizer.import_state(tensors, {})


def test_the_original_s_keys_are_read() -> None:
    config = OptimConfig.from_dict(
        {
            "lr": 1e-5,
            "wd": 1e-6,
            "optax_name": "scale_by_adam",
            "optax": {"b2": 0.95},
            "schedule": [["img/.*", None], [".*", {"decay_type": "cosine"}]],
            "lr_mults": [["llm/.*", 2]],
        }
    )
    assert config == OptimConfig(
        lr=1e-5,
        wd=1e-6,
        b2=0.95,
        grad_clip_norm=None,  # Absent is off, as in the original.
        schedule=(("img/.*", None), (".*", ScheduleConfig(decay_type="cosine"))),
        lr_mults=(("llm/.*", 2.0),),
    )
    single = OptimConfig.from_dict({"lr": 1.0, "schedule": {"decay_type": "cosine"}})
    assert single.schedule == ((".*", ScheduleConfig(decay_type="cosine")),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 1.0, "weight_decay": 0.1}, "remove weight_decay"),
        ({"lr": 1.0, "optax_name": "sgd"}, "must be one of scale_by_adam, .*, got 'sgd'"),
        ({"wd": 0.1}, "needs lr"),
        ({"lr": 0.0}, "must be positive"),
        ({"lr": 1.0, "lr_mults": [["a", 0.0]]}, "freeze parameters with a schedule of None"),
        ({"lr": 1.0, "wd": -1.0}, "must not be negative"),
        ({"lr": 1.0, "grad_clip_norm": -1.0}, "positive or None"),
        ({"lr": 1.0, "optax": {"b1": 1.0}}, r"lie in \[0, 1\)"),
        ({"lr": 1.0, "wd_mults": [["(", 1.0]]}, "regular expression"),
        ({"lr": 1.0, "wd_mults": [["/img/.*", 1.0]]}, "never start with '/'"),
    ],
)
def test_a_configuration_that_breaks_a_rule_is_an_error(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig.from_dict(values)


def test_patterns_see_the_original_s_names_and_torch_names_of_adapters() -> None:
    assert pattern_name("text.blocks.3.attn.q.weight") == "llm/layers/attn/q_einsum/w"
    assert pattern_name("vision.pos_embedding") == "img/pos_embedding"
    assert pattern_name("text.blocks.3.attn.q.lora_a") == "text.blocks.3.attn.q.lora_a"
