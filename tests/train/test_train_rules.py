"""Rules beside Adam, against their slow definitions, and averages of parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paligemma.errors import CheckpointError
from paligemma.train.optim import Optimizer
from paligemma.train.optim_config import OptimConfig
from paligemma.train.rules import RULES, orthogonalised
from paligemma.train.schedule import ScheduleConfig

LR = 0.01


class Layer(nn.Module):
    """A matrix large enough to be factored and quantised, a smaller one, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.wide = nn.Parameter(torch.randn(96, 64, generator=draw))
        self.thin = nn.Parameter(torch.randn(40, 8, generator=draw))
        self.bias = nn.Parameter(torch.randn(96, generator=draw))


def gradients(steps: int) -> Iterator[dict[str, Tensor]]:
    """Gradients of very different sizes from row to row, as an embedding has them."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = {"wide": 96, "thin": 40, "bias": 96}
        scale = {name: 10.0 ** torch.linspace(-4, 0, num) for name, num in rows.items()}
        yield {
            "wide": torch.randn(96, 64, generator=draw) * scale["wide"][:, None],
            "thin": torch.randn(40, 8, generator=draw) * scale["thin"][:, None],
            "bias": torch.randn(96, generator=draw) * scale["bias"],
        }


def new(rule: str, **options: object) -> tuple[Layer, Optimizer]:
    model = Layer()
    values = {"lr": LR, "grad_clip_norm": None, "rule": rule, **options}
    return model, Optimizer(model, OptimConfig(**values), total_steps=20)


def run(model: Layer, optimizer: Optimizer, made: Iterator[dict[str, Tensor]]) -> None:
    for one in made:
        for name, parameter in model.named_parameters():
            parameter.grad = one[name].clone()
        optimizer.step()


def bfloat16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).float().bfloat16().double().numpy()


def slow_adafactor(start: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """The definition: optax's factored means, no clipping, momentum rounded to bfloat16."""
    p, momentum = start.astype(np.float64), np.zeros_like(start, dtype=np.float64)
    factored = start.ndim == 2 and min(start.shape) >= 32
    square = np.zeros_like(p)
    rows, columns = np.zeros(start.shape[0]), np.zeros(start.shape[-1])
    for count, g in enumerate(grads, start=1):
        decay = min(0.999, 1 - count**-0.8)
        squares = g.astype(np.float64) ** 2 + 1e-30
        if factored:
            rows = decay * rows + (1 - decay) * squares.mean(axis=1)
            columns = decay * columns + (1 - decay) * squares.mean(axis=0)
            estimate = np.outer(rows, columns) / rows.mean()
        else:
            estimate = square = decay * square + (1 - decay) * squares
        direction = 0.1 * g / np.sqrt(estimate) + 0.9 * momentum
        momentum = bfloat16(direction)
        p = p - LR * direction
    return p


def test_adafactor_is_its_slow_definition() -> None:
    model, optimizer = new("adafactor")
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    run(model, optimizer, gradients(6))
    for name, parameter in model.named_parameters():
        grads = [one[name].numpy() for one in gradients(6)]
        # A direction is about 1, so two roundings of the momentum may differ by 2^-8 of it.
        expected = slow_adafactor(before[name], grads)
        assert np.abs(parameter.detach().numpy() - expected).max() < 2e-6, name
    state, _ = optimizer.export_state()
    assert {name: tuple(x.shape) for name, x in state.items() if "wide" in name} == {
        "wide.rows": (96,),
        "wide.columns": (64,),
        "wide.momentum": (96, 64),
    }
    assert state["thin.square"].shape == (40, 8)


def test_momentum_is_a_decayed_sum_that_is_rounded_to_bfloat16() -> None:
    model, optimizer = new("momentum", momentum=0.5)
    expected, trace = model.bias.detach().double().numpy(), np.zeros(96)
    run(model, optimizer, gradients(5))
    for one in gradients(5):
        direction = one["bias"].double().numpy() + 0.5 * trace
        trace = bfloat16(direction)
        expected = expected - LR * direction
    np.testing.assert_allclose(model.bias.detach().numpy(), expected, atol=1e-6)


def test_plain_descent_follows_the_gradient_and_keeps_nothing() -> None:
    model, optimizer = new("sgd", schedule=((".*", ScheduleConfig(mult=0.5)),))
    expected = model.bias.detach() - LR / 2 * sum(one["bias"] for one in gradients(3))
    run(model, optimizer, gradients(3))
    torch.testing.assert_close(model.bias.detach(), expected)
    assert optimizer.export_state()[0] == {}


def test_adam_in_8_bits_moves_as_adam_does_with_a_quarter_of_its_state() -> None:
    plain, adam = new("adam")
    small, adam8bit = new("adam8bit")
    start = {name: p.detach().clone() for name, p in plain.named_parameters()}
    run(plain, adam, gradients(10))
    run(small, adam8bit, gradients(10))
    for name, parameter in plain.named_parameters():
        moved = parameter.detach() - start[name]
        gap = dict(small.named_parameters())[name].detach() - parameter.detach()
        # Moments below 4,096 elements are not quantised.
        bound = 0.1 if name == "wide" else 1e-6
        assert gap.norm() < bound * moved.norm(), name
    assert not torch.equal(small.wide, plain.wide)
    sizes = [
        sum(
            x.numel() * x.element_size()
            for name, x in one.export_state()[0].items()
            if "wide" in name
        )
        for one in (adam, adam8bit)
    ]
    assert sizes[1] < 0.27 * sizes[0]


def test_a_moment_in_8_bits_is_within_the_width_of_its_code() -> None:
    from paligemma.train import rules

    values = torch.randn(256 * 16, generator=torch.Generator().manual_seed(2)) ** 3
    for name in ("exp_avg", "exp_avg_sq"):
        book = rules._codebook(name, torch.device("cpu"))
        wanted = values if name == "exp_avg" else values.abs()
        codes, scale = rules._narrow(wanted, book)
        blocks = wanted.view(-1, 256) / scale[:, None]
        slow = (blocks[:, :, None] - book).abs().min(dim=-1).values
        found = (rules._widen(codes, scale, book).view(-1, 256) / scale[:, None] - blocks).abs()
        torch.testing.assert_close(found, slow, atol=1e-6, rtol=0)
        assert torch.equal(
            rules._narrow(torch.zeros(256), book)[0], codes.new_full((256,), book.abs().argmin())
        )


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_goes_on_bit_for_bit_from_its_stored_state(rule: str, tmp_path: Path) -> None:
    whole, optimizer = new(rule, average=0.9)
    run(whole, optimizer, gradients(8))
    first, halfway = new(rule, average=0.9)
    made = gradients(8)
    run(first, halfway, (next(made) for _ in range(4)))
    tensors, counters = halfway.export_state()
    save_file(tensors, tmp_path / "state.safetensors")
    second, resumed = new(rule, average=0.9)
    second.load_state_dict(first.state_dict())
    resumed.import_state(load_file(tmp_path / "state.safetensors"), counters)
    run(second, resumed, made)
    for name, parameter in second.named_parameters():
        assert torch.equal(parameter, dict(whole.named_parameters())[name]), name
    with optimizer.averaged(), resumed.averaged():
        assert torch.equal(second.wide, whole.wide)


def test_a_state_of_another_rule_is_refused_by_the_names_of_its_parts() -> None:
    model, optimizer = new("adafactor")
    run(model, optimizer, gradients(1))
    _, other = new("adam")
    with pytest.raises(CheckpointError, match=r"missing bias.exp_avg; .*unexpected bias.momentum"):
        other.import_state(*optimizer.export_state())


def test_averages_are_an_exponential_moving_average_that_starts_at_the_start() -> None:
    model, optimizer = new("sgd", average=0.75)
    expected = model.bias.detach().clone()
    for one in gradients(4):
        run(model, optimizer, iter([one]))
        expected = 0.75 * expected + 0.25 * model.bias.detach()
    last = model.bias.detach().clone()
    with optimizer.averaged():
        torch.testing.assert_close(model.bias.detach(), expected)
    assert torch.equal(model.bias, last)
    optimizer.keep_averages()
    torch.testing.assert_close(model.bias.detach(), expected)


def test_decay_of_every_rule_is_apart_from_its_direction() -> None:
    for rule in RULES:
        model, optimizer = new(rule, wd=0.1, wd_mults=(("wide", 1.0),))
        plain, without = new(rule)
        start = model.wide.detach().clone()
        run(model, optimizer, gradients(1))
        run(plain, without, gradients(1))
        torch.testing.assert_close(model.wide.detach(), plain.wide.detach() - 0.1 * start)


class Block(nn.Module):
    """A model with the names of one tower block, as patterns see them."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.wide = nn.Parameter(torch.randn(96, 64, generator=draw))
        self.tall = nn.Parameter(torch.randn(64, 96, generator=draw))
        self.bias = nn.Parameter(torch.randn(96, generator=draw))
        self.table = nn.Parameter(torch.randn(96, 64, generator=draw))


def test_muon_is_torchs_own_on_matrices_of_blocks_and_adam_elsewhere() -> None:
    model, peer = Block(), Block()
    names = {name: f"img/Transformer/encoderblock/{name}" for name in ("wide", "tall", "bias")}
    optimizer = Optimizer(
        model,
        OptimConfig(lr=LR, grad_clip_norm=None, rule="muon"),
        total_steps=20,
        name_of=lambda name: names.get(name, "llm/embedder/table"),
    )
    muon = torch.optim.Muon(
        [peer.wide, peer.tall], lr=LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.Adam([peer.bias, peer.table], lr=LR, betas=(0.9, 0.999))
    draw = torch.Generator().manual_seed(1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(6):
        for (_, one), (_, other) in zip(
            model.named_parameters(), peer.named_parameters(), strict=True
        ):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = one.grad.clone()
        optimizer.step()
        muon.step()
        adam.step()
    for (name, one), (_, other) in zip(
        model.named_parameters(), peer.named_parameters(), strict=True
    ):
        moved = (other - before[name]).norm()
        # Newton-Schulz runs in bfloat16 there, and here where the processor multiplies it.
        bound = 0.02 if name in ("wide", "tall") else 1e-5
        assert (one - other).norm() <= bound * moved, name


def test_orthogonalised_moves_singular_values_close_to_one() -> None:
    draw = torch.Generator().manual_seed(2)
    for shape in ((64, 96), (96, 64), (80, 80)):
        matrix = torch.randn(shape, generator=draw)
        values = torch.linalg.svdvals(orthogonalised(matrix).float())
        large = torch.linalg.svdvals(matrix) > 0.15 * torch.linalg.matrix_norm(matrix, 2)
        assert 0.6 < values[large].min() <= values.max() < 1.3
