"""Draw several answers to each prompt and keep the most probable.

Source: big_vision trainers/proj/paligemma/predict_fns.py, best_of_n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.errors import ConfigError
from paligemma.generate.decode import answer
from paligemma.generate.generation import Generation, collect
from paligemma.generate.options import MAX_SAMPLES, DecodeOptions
from paligemma.generate.prefill import prefill_prompt
from paligemma.generate.sampling import Greedy
from paligemma.model import PaliGemmaModel


def best_of_n(
    model: PaliGemmaModel,
    batch: Batch,
    options: DecodeOptions,
    *,
    n: int,
    soft_tokens: Tensor | None = None,
) -> Generation:
    """The best of n sampled answers to every prompt, by the plain sum of log-probabilities.

    The model reads image and prompt once, whatever n is.

    Raises:
        ConfigError: n out of bounds, or a greedy sampler, which would draw the same answer n times.
    """
    if not 1 <= n <= MAX_SAMPLES:
        raise ConfigError(f"best-of-n needs n in 1..{MAX_SAMPLES}, got {n}")
    if n > 1 and isinstance(options.sampler, Greedy):
        raise ConfigError(
            f"best-of-{n} needs a sampler that varies, got Greedy(); use Temperature or Nucleus"
        )
    options.check_vocab(model.config.vocab)
    with torch.inference_mode():
        prompt = prefill_prompt(
            model,
            batch,
            soft_tokens=soft_tokens,
            max_new_tokens=options.max_new_tokens,
            kv_cache_dtype=options.kv_cache_dtype,
        ).repeat(n)
    drawn = collect(answer(model, prompt, options))
    return drawn.select(best_rows(drawn.scores, n))


def best_rows(scores: Tensor, n: int) -> Tensor:
    """Index of the best of each n neighbouring rows: float32[B * n] -> int64[B]."""
    groups = scores.view(-1, n)
    start = torch.arange(groups.shape[0], device=scores.device) * n
    return start + groups.argmax(dim=1)
