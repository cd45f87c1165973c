"""Draw several answers to each prompt and keep the most probable.

Source: big_vision trainers/proj/paligemma/predict_fns.py, best_of_n.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.errors import ConfigError
from paligemma.generate.decode import answer
from paligemma.generate.generation import Generation, Step, collect, last_of
from paligemma.generate.options import MAX_SAMPLES, MAX_SEED, DecodeOptions, per_row
from paligemma.generate.prefill import prefill_prompt
from paligemma.generate.rows import begin_rows
from paligemma.generate.sampling import Greedy, LocationGreedy
from paligemma.model import PaliGemmaModel

# 2^64 divided by the golden ratio. Its lower half is odd, so the samples of one seed differ on
# generators that read 32 bits of it, as torch's on a CPU does.
_SEED_STEP = 0x9E3779B97F4A7C15


def best_of_n(
    model: PaliGemmaModel,
    batch: Batch,
    options: DecodeOptions | Sequence[DecodeOptions],
    *,
    n: int,
    soft_tokens: Tensor | None = None,
) -> Generation:
    """The best of n sampled answers to every prompt, by the plain sum of log-probabilities.

    The model reads image and prompt once, whatever n is. The first of the n answers is the one that
    `generate` draws with the same arguments; the others have seeds derived from theirs.

    Raises:
        ConfigError: n out of bounds, or a greedy sampler, which would draw the same answer n times.
    """
    return last_of(best_of_n_steps(model, batch, options, n=n, soft_tokens=soft_tokens))


def best_of_n_steps(
    model: PaliGemmaModel,
    batch: Batch,
    options: DecodeOptions | Sequence[DecodeOptions],
    *,
    n: int,
    soft_tokens: Tensor | None = None,
) -> Generator[None, None, Generation]:
    """`best_of_n`, pausing before each further step of the model."""
    if not 1 <= n <= MAX_SAMPLES:
        raise ConfigError(f"best-of-n needs n in 1..{MAX_SAMPLES}, got {n}")
    own = per_row(options, batch.num_examples)
    for one in own:
        if n > 1 and isinstance(one.sampler, Greedy | LocationGreedy):
            raise ConfigError(
                f"best-of-{n} needs a sampler that varies, got {one.sampler}; "
                "use Temperature or Nucleus"
            )
    vocab, device = model.config.vocab, model.device
    with torch.inference_mode():
        drawn = [
            replace(one, seed=(int(one.seed) + _SEED_STEP * sample) % MAX_SEED)
            for one in own
            for sample in range(n)
        ]
        rows = begin_rows(drawn, None, None, vocab, device)
        prompt = prefill_prompt(model, batch, own, soft_tokens=soft_tokens).repeat(n)
    steps: list[Step] = []
    for step in answer(model, prompt, rows):
        steps.append(step)
        yield
    generation = collect(steps)
    return generation.select(best_rows(generation.scores, n))


def best_rows(scores: Tensor, n: int) -> Tensor:
    """Index of the best of each n neighbouring rows: float32[B * n] -> int64[B]."""
    groups = scores.view(-1, n)
    start = torch.arange(groups.shape[0], device=scores.device) * n
    return start + groups.argmax(dim=1)
