"""Schedules, loss, gradients and updates against the original's own numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import reference
import tape
import torch
from golden_set import (
    GoldenModel,
    assert_within_rounding,
    load_arrays,
    original_arrays,
)

from paligemma.batch import Batch
from paligemma.model import PaliGemmaModel
from paligemma.train.loss import perplexity, token_losses, training_loss
from paligemma.train.optim import Optimizer
from paligemma.train.optim_config import OptimConfig
from paligemma.train.schedule import ScheduleConfig, duration_in_steps, learning_rate_schedule

# The gradient of the tower's key bias is zero in mathematics: what is stored is rounding noise.
NOISE_ONLY = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/bias"


def test_schedules_are_the_original_s(golden_dir: Path) -> None:
    data = load_arrays(golden_dir / "schedule.npz")
    for i, settings in enumerate(json.loads(str(data["settings"]))):
        names = {"total_steps", "batch_size", "data_size"} & settings.keys()
        sizes = {name: settings.pop(name) for name in names}
        factor = learning_rate_schedule(ScheduleConfig.from_dict(settings), **sizes)
        steps = range(sizes["total_steps"] + 1)
        assert_within_rounding(
            [factor(step) for step in steps],
            data[f"values_{i}"],
            [reference.schedule_factor(settings, step, **sizes) for step in steps],
            what=str(settings),
        )


def test_durations_are_the_original_s(golden_dir: Path) -> None:
    cases = json.loads(str(load_arrays(golden_dir / "schedule.npz")["steps_cases"]))
    assert cases
    for durations, data_size, batch_size, total_steps, steps in cases:
        sizes = {"data_size": data_size, "batch_size": batch_size, "total_steps": total_steps}
        assert duration_in_steps("x", durations, **sizes) == steps, (durations, sizes)


@dataclass(frozen=True)
class Defined:
    """One batch by the definition.

    Attributes:
        loss: nats.
        per_example: nats of each example.
        gradients: by the original's names.
        target_logp: log-probability of each target [B, T].
    """

    loss: float
    per_example: np.ndarray
    gradients: dict[str, np.ndarray]
    target_logp: np.ndarray


def defined(
    gold: GoldenModel,
    weights: Mapping[str, np.ndarray],
    index: int,
    smoothing: float,
    seed: int | None = None,
) -> Defined:
    """Loss and gradients of a batch of the loss file, in the precision of the weights.

    Args:
        seed: changes the last bits of the pixels, so that all that follows is rounded otherwise.
    """
    arrays = gold.arrays("loss")
    text, mask_ar, mask_loss = (arrays[key][index] for key in ("text", "mask_ar", "mask_loss"))
    images = arrays["image"]
    if seed is not None:
        bits = np.random.default_rng(seed).uniform(-1, 1, images.shape) * 2.0**-23
        images = (images * (1 + bits)).astype(np.float32)
    traced = {name: tape.Traced(array) for name, array in weights.items()}
    oracle = gold.oracle(traced)
    logits = [
        oracle.text_logits(oracle.soft_tokens(image), tokens[:-1], ar[:-1])
        for image, tokens, ar in zip(images, text, mask_ar, strict=True)
    ]
    num_classes = logits[0].shape[1]
    loss, per_example = reference.batch_loss(
        logits,
        text[:, 1:],
        mask_loss[:, 1:],
        lambda target: reference.smoothed_target(target, num_classes, smoothing),
    )
    logp = np.array([reference.log_softmax(row.value) for row in logits])
    return Defined(
        loss=float(loss.value),
        per_example=np.array([float(tape.value_of(x)) for x in per_example]),
        gradients=tape.gradients(loss, traced),
        target_logp=np.take_along_axis(logp, text[:, 1:, None], axis=-1)[..., 0],
    )


@dataclass(frozen=True)
class Precision:
    """float64, or one run in float32 with roundings of its own.

    Few rounding errors decide a whole gradient: those of the logits, and of the gradient norm. So
    float32 is measured not by the original alone, but also by runs of the definition in float32.
    """

    dtype: type[np.floating]
    seed: int | None = None

    def weights(self, gold: GoldenModel) -> dict[str, np.ndarray]:
        return {name: array.astype(self.dtype) for name, array in gold.weights().items()}


# The definition in float64, then the float32 runs.
PRECISIONS = (Precision(np.float64), *(Precision(np.float32, seed) for seed in range(2)))


@cache
def at_start(gold: GoldenModel, precision: Precision, index: int, smoothing: float) -> Defined:
    """A batch with the stored weights."""
    return defined(gold, precision.weights(gold), index, smoothing, precision.seed)


def all_defined(gold: GoldenModel, index: int, smoothing: float) -> list[Defined]:
    """A batch with the stored weights in every precision."""
    return [at_start(gold, precision, index, smoothing) for precision in PRECISIONS]


def golden_batch(gold: GoldenModel, index: int, *, supervised: bool = True) -> Batch:
    arrays = gold.arrays("loss")
    tokens, mask_ar, mask_loss = (
        torch.from_numpy(arrays[key][index]) for key in ("text", "mask_ar", "mask_loss")
    )
    return Batch(
        images=torch.from_numpy(arrays["image"]),
        tokens=tokens.long(),
        mask_ar=mask_ar.long(),
        mask_input=torch.ones_like(tokens, dtype=torch.bool),
        mask_loss=mask_loss.float() if supervised else None,
    )


def tags_of(gold: GoldenModel, pattern: str) -> list[tuple[str, float, int]]:
    """Tag, smoothing and batch of the arrays whose names match, such as ("ls3_b0", 0.3, 0)."""
    found = []
    for key in gold.arrays("loss"):
        if match := re.fullmatch(pattern.replace("TAG", r"(ls(\d+)_b(\d+))"), key):
            found.append((match[1], int(match[2]) / 10, int(match[3])))
    assert found
    return found


def gradients_of(gold: GoldenModel, model: PaliGemmaModel) -> dict[str, np.ndarray]:
    return original_arrays({name: p.grad for name, p in model.named_parameters()}, gold.config)


def global_norm(arrays: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in arrays.values())))


@cache
def gradient_norms(gold: GoldenModel) -> np.ndarray:
    """Norm of the gradient with the stored weights, for every batch and smoothing of the set.

    Returns:
        float64[runs, N]: ours, the original's and those of `PRECISIONS`, in units of float64, so
        that a large norm does not hide the error of a small one.
    """
    arrays, norms = gold.arrays("loss"), []
    for tag, smoothing, index in tags_of(gold, "gradnorm_TAG"):
        model = gold.model()
        training_loss(model, golden_batch(gold, index), smoothing).loss.backward()
        ours = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
        exact = [global_norm(run.gradients) for run in all_defined(gold, index, smoothing)]
        norms.append(np.array([ours, arrays[f"gradnorm_{tag}"], *exact]) / exact[0])
    return np.array(norms).T


def test_gradient_norms_are_the_original_s(gold: GoldenModel) -> None:
    assert_within_rounding(*gradient_norms(gold), what="gradient norms")


def test_losses_are_the_original_s(gold: GoldenModel) -> None:
    arrays, model = gold.arrays("loss"), gold.model()
    losses: list[list[np.ndarray]] = []
    for tag, smoothing, index in tags_of(gold, "loss_TAG"):
        with torch.no_grad():
            result = training_loss(model, golden_batch(gold, index), smoothing)
        losses.append(
            [
                np.append(result.per_example, result.loss),
                np.append(arrays[f"per_example_{tag}"], arrays[f"loss_{tag}"]),
                *(
                    np.append(run.per_example, run.loss)
                    for run in all_defined(gold, index, smoothing)
                ),
            ]
        )
        counts = result.num_targets.float()
        assert [counts.mean().item(), counts.max().item()] == arrays[f"sup_len_{tag}"].tolist()
    assert_within_rounding(*np.array(losses).swapaxes(0, 1), what="losses")


def checksum(array: np.ndarray) -> np.ndarray:
    """Sum, sum of sizes, norm and a weighted sum, as the set stores them."""
    x = np.asarray(array, np.float64).ravel()
    wave = np.cos(0.1 * np.arange(x.size))
    return np.array([x.sum(), np.abs(x).sum(), np.sqrt((x**2).sum()), (x * wave).sum()])


def test_every_gradient_is_the_original_s(gold: GoldenModel) -> None:
    arrays = gold.arrays("loss")
    names = [str(name) for name in arrays["param_names"]]
    for tag, smoothing, index in tags_of(gold, "gradck_TAG"):
        model = gold.model()
        training_loss(model, golden_batch(gold, index), smoothing).loss.backward()
        ours = gradients_of(gold, model)
        runs = [run.gradients for run in all_defined(gold, index, smoothing)]
        assert sorted(names) == sorted(ours)
        checksums = []
        for name, original in zip(names, arrays[f"gradck_{tag}"], strict=True):
            if name != NOISE_ONLY:
                # In units of the norm, so that every tensor counts alike.
                every = [checksum(ours[name]), original, *(checksum(run[name]) for run in runs)]
                checksums.append(np.array(every) / every[2][2])
        assert_within_rounding(*np.array(checksums).swapaxes(0, 1), what=tag)
        full = [key for key in arrays if key.startswith(f"grad_{tag}:")]
        assert full
        for key in full:
            name = key.split(":")[1]
            assert_within_rounding(ours[name], arrays[key], *(run[name] for run in runs), what=key)


def test_token_log_probabilities_and_perplexities_are_the_original_s(gold: GoldenModel) -> None:
    arrays, model = gold.arrays("loss"), gold.model()
    batch, unsupervised = golden_batch(gold, 0), golden_batch(gold, 0, supervised=False)
    with torch.no_grad():
        soft = model.encode_image(batch.images)
        logits = model(soft, batch.tokens[:, :-1], batch.mask_ar[:, :-1])
    weights = arrays["mask_loss"][0][:, 1:]
    num_targets = np.maximum(weights.sum(axis=1), 1)

    def values(logp: np.ndarray) -> np.ndarray:
        """Nats a token: of every token, of the supervised ones of a row, and of all of a row."""
        supervised = -(logp * weights).sum(axis=1)
        means = (supervised / num_targets, supervised / num_targets, -logp.mean(axis=1))
        return np.concatenate((logp.ravel(), *means))

    ours = (
        -token_losses(logits, batch.tokens[:, 1:]).numpy().ravel(),
        perplexity(model, batch).numpy(),
        perplexity(model, batch, average=False).numpy() / num_targets,
        perplexity(model, unsupervised).numpy(),
    )
    original = (
        arrays["target_logp_b0"].ravel(),
        arrays["eval_pplx_avg_b0"],
        arrays["eval_pplx_sum_b0"] / num_targets,
        arrays["eval_pplx_avg_nomask_b0"],
    )
    assert_within_rounding(
        np.concatenate(ours),
        np.concatenate(original),
        *(values(run.target_logp) for run in all_defined(gold, 0, 0.0)),
    )


@dataclass(frozen=True)
class Update:
    """What one step did.

    Attributes:
        metrics: loss, gradient norm before clipping, norms of parameters and of their movement.
        parameters: after the step, by the original's names.
        gradients: that it was made from, where the definition made it.
    """

    metrics: np.ndarray
    parameters: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray] = field(default_factory=dict)


def adam(setting: Mapping[str, Any], start: Mapping[str, np.ndarray]) -> reference.AdamOracle:
    """The update rule of a variant, before the first step."""
    config = setting["config"]
    sizes = {key: setting[key] for key in ("total_steps", "batch_size", "data_size")}
    return reference.AdamOracle(
        parameters=dict(start),
        factors=factors_of(config, sizes, list(start)),
        lr=config["lr"],
        wd=config.get("wd", 0.0),
        clip=config.get("grad_clip_norm") or np.inf,
        **config.get("optax", {}),
    )


def updates_of(
    gold: GoldenModel, setting: Mapping[str, Any], precision: Precision, num_steps: int
) -> list[Update]:
    """Steps by the definition."""
    start = precision.weights(gold)
    oracle = adam(setting, start)
    smoothing = setting["config"].get("label_smoothing", 0.0)
    updates = []
    for step in range(num_steps):
        before = dict(oracle.parameters)
        if all(np.array_equal(before[name], array) for name, array in start.items()):
            run = at_start(gold, precision, step, smoothing)
        else:
            run = defined(gold, before, step, smoothing, precision.seed)
        norm = oracle.step(run.gradients)
        moved = {name: oracle.parameters[name] - array for name, array in before.items()}
        metrics = (run.loss, norm, global_norm(oracle.parameters), global_norm(moved))
        updates.append(Update(np.array(metrics), dict(oracle.parameters), run.gradients))
    return updates


def factors_of(
    config: Mapping[str, Any], sizes: Mapping[str, int], names: list[str]
) -> Callable[[int], dict[str, tuple[float, float, float]]]:
    """Step -> name -> schedule factor and factors on learning rate and decay; see `AdamOracle`."""
    schedule = config["schedule"]
    rules = [(".*", schedule)] if isinstance(schedule, dict) else schedule
    decayed = config.get("wd_mults", [(".*/kernel$", 1.0)])

    def factors(step: int) -> dict[str, tuple[float, float, float]]:
        return {
            name: (
                reference.schedule_factor(settings, step, **sizes),
                reference.first_match(config.get("lr_mults") or (), name, 1.0),
                reference.first_match(decayed, name, 0.0),
            )
            for name in names
            if (settings := reference.first_match(rules, name)) is not None
        }

    return factors


def our_updates(gold: GoldenModel, setting: Mapping[str, Any], num_steps: int) -> list[Update]:
    config = dict(setting["config"])
    sizes = {key: setting[key] for key in ("total_steps", "batch_size", "data_size")}
    smoothing = config.pop("label_smoothing", 0.0)
    model = gold.model()
    optimizer = Optimizer(model, OptimConfig.from_dict(config), **sizes)
    updates = []
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = training_loss(model, golden_batch(gold, step), smoothing).loss
        loss.backward()
        metrics = optimizer.step(measure_update=True)
        norms = (metrics[key].item() for key in ("grad_norm", "param_norm", "update_norm"))
        arrays = original_arrays(dict(model.state_dict()), gold.config)
        copies = {name: array.copy() for name, array in arrays.items()}
        updates.append(Update(np.array([loss.item(), *norms]), copies))
    return updates


def test_updates_are_the_original_s(gold: GoldenModel) -> None:
    settings = json.loads((gold.directory / f"{gold.name}_optim.json").read_text())
    metrics: list[list[np.ndarray]] = []
    for variant, setting in settings.items():
        original = gold.arrays("optim")[f"{variant}:metrics"]
        ours = our_updates(gold, setting, len(original))
        runs = [updates_of(gold, setting, each, len(original)) for each in PRECISIONS]
        for i, update in enumerate(ours):
            prefix = f"{variant}:step{i + 1}"
            units = rounding_of_elements(gold, setting, [run[: i + 1] for run in runs])
            assert_same_parameters(gold, prefix, update, [run[i] for run in runs], units)
        every = [[update.metrics for update in run] for run in (ours, *runs)]
        metrics.append([every[0], original, *every[1:]])
        assert_frozen(gold, setting, ours[-1])
    # [runs, steps, variants, metrics]: each step by its own spread, in units of the exact values.
    columns = np.moveaxis(np.array(metrics), 0, 2)
    exact = columns[2:3]
    columns /= np.where(exact > 0, exact, 1.0)
    for step in range(columns.shape[1]):
        values = columns[:, step].reshape(len(columns), -1)
        if step == 0:
            # All variants start with one gradient, and one rounding decides its norm: by chance it
            # may be small in the original and in the float32 runs. The norms of the other batches
            # are rounded by the same arithmetic, so they say what is usual.
            values = np.concatenate((values, gradient_norms(gold)), axis=1)
        assert_within_rounding(*values, what=f"metrics of step {step + 1}", noise=1e-2)


def rounding_of_elements(
    gold: GoldenModel, setting: Mapping[str, Any], runs: list[list[Update]]
) -> dict[str, np.ndarray]:
    """By how much rounding moves each element of the parameters in all steps together.

    Adam divides a gradient by its own size. Where a gradient nearly cancels, its rounding becomes
    a large part of a step: such an element strays a hundred times as far as its neighbours, and
    would decide the comparison of a whole tensor alone. In these units all elements count alike.

    Args:
        runs: the updates in every precision, float64 first.
    """
    exact, *others = runs
    start = gold.weights()

    def end(noisy_step: int | None = None) -> dict[str, np.ndarray]:
        """The last parameters, with the gradients of one step moved by the rounding of a row."""
        oracle = adam(setting, start)
        for step, update in enumerate(exact):
            moved = dict(update.gradients)
            if step == noisy_step:
                for name, gradient in moved.items():
                    errors = [run[step].gradients[name] - gradient for run in others]
                    rows = [np.sqrt((e**2).mean(axis=-1, keepdims=True)) for e in errors]
                    moved[name] = gradient + np.maximum(*rows)
            oracle.step(moved)
        return oracle.parameters

    last, noisy = end(), [end(step) for step in range(len(exact))]
    return {
        name: np.sqrt(
            np.spacing(np.abs(array).astype(np.float32)) ** 2.0
            + sum((parameters[name] - array) ** 2 for parameters in noisy)
        )
        for name, array in last.items()
    }


def assert_frozen(gold: GoldenModel, setting: Mapping[str, Any], update: Update) -> None:
    """What has no schedule has not moved."""
    sizes = {key: setting[key] for key in ("total_steps", "batch_size", "data_size")}
    start = gold.weights()
    trained = factors_of(setting["config"], sizes, list(start))(0)
    for name in start.keys() - trained.keys():
        assert np.array_equal(update.parameters[name], start[name]), name


def assert_same_parameters(
    gold: GoldenModel,
    prefix: str,
    ours: Update,
    runs: list[Update],
    units: Mapping[str, np.ndarray],
) -> None:
    """Checksums of all parameters and of their movement, and the tensors stored in full."""
    arrays, start = gold.arrays("optim"), gold.weights()
    checksums = []
    for name, original in zip(arrays["param_names"], arrays[f"{prefix}:ck"], strict=True):
        if name == NOISE_ONLY:
            continue
        size = start[name].size
        # Per element: rounding may push all elements of a tensor the same way.
        scale = np.tile([size, size, size**0.5, size], 2)
        every = [
            np.append(
                checksum(update.parameters[name]), checksum(update.parameters[name] - start[name])
            )
            for update in (ours, *runs)
        ]
        checksums.append(np.array([every[0], original, *every[1:]]) / scale)
    assert_within_rounding(*np.array(checksums).swapaxes(0, 1), what=prefix)
    for key in arrays:
        name = key.removeprefix(f"{prefix}:")
        if name in start and name != key:
            assert_within_rounding(
                ours.parameters[name] / units[name],
                arrays[key] / units[name],
                *(run.parameters[name] / units[name] for run in runs),
                what=key,
            )
