"""How an answer is written: the options a user may state, the decoder they name, what it leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.errors import ConfigError, ImageError
from paligemma.generate import (
    BeamOptions,
    Constraint,
    DecodeOptions,
    Generation,
    Greedy,
    LengthPenalty,
    LocationGreedy,
    Nucleus,
    ObjectGrammar,
    Sampler,
    Step,
    Temperature,
    TopK,
    beam_search,
    best_of_n,
    generate,
    require_number,
    require_numbers,
    require_whole,
)
from paligemma.model import PaliGemmaModel
from paligemma.outputs.boxes import SEPARATOR
from paligemma.outputs.types import Detections, TokenRecord
from paligemma.vocab import NUM_LOC, Vocab

logger = logging.getLogger(__name__)

MAX_SEED = 2**63


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How to write an answer; greedy by default.

    Attributes:
        max_new_tokens: bound of the answer, end token included; None is 128, and 512 where boxes
            are asked for.
        temperature: draws from softmax(logits / temperature); None or 0 takes the most probable
            token.
        top_k: draws among the k most probable tokens.
        top_p: draws from the smallest set of tokens whose probabilities reach p.
        num_beams: beam search with so many hypotheses.
        length_penalty: compares finished beams by score / length^penalty; None compares plain sums,
            as the original does.
        best_of: draws so many answers and keeps the most probable.
        seed: of every draw.
        weigh_locations: greedy answers weigh all locations together against any other token, see
            `LocationGreedy`; None does what the model's config.json asks for, by default not.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1
    length_penalty: float | None = None
    best_of: int = 1
    seed: int = 0
    weigh_locations: bool | None = None

    def __post_init__(self) -> None:
        for name in ("num_beams", "best_of", "seed"):
            require_whole(name, getattr(self, name))
        for name in ("max_new_tokens", "top_k"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name))
        for name in ("temperature", "top_p", "length_penalty"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name))
        if not 0 <= self.seed < MAX_SEED:
            raise ConfigError(f"the seed must lie in 0..{MAX_SEED - 1}, got {self.seed}")
        if self.top_k is not None and self.top_p is not None:
            raise ConfigError(
                f"a draw is bounded by top_k or by top_p, got {self.top_k} and {self.top_p}; "
                "leave one out"
            )
        draws = not isinstance(self.sampler, Greedy)
        if self.num_beams != 1 and (draws or self.best_of != 1):
            raise ConfigError(
                f"beam search draws nothing, got num_beams = {self.num_beams} with temperature, "
                "top_k, top_p or best_of; leave either out"
            )
        if self.best_of != 1 and not draws:
            raise ConfigError(
                f"best_of = {self.best_of} needs answers that differ, but none are drawn; "
                "state a temperature, top_k or top_p"
            )
        if self.length_penalty is not None and self.num_beams == 1:
            raise ConfigError(
                f"a length penalty compares beams, got {self.length_penalty:g} with one beam; "
                "raise num_beams or leave the penalty out"
            )

    @property
    def sampler(self) -> Sampler:
        """The named way of choosing a token."""
        if self.temperature == 0:
            return Greedy()
        temperature = 1.0 if self.temperature is None else self.temperature
        if self.top_k is not None:
            return TopK(self.top_k, temperature)
        if self.top_p is not None:
            return Nucleus(self.top_p, temperature)
        return Greedy() if self.temperature is None else Temperature(temperature)

    def decode_options(
        self,
        *,
        max_new_tokens: int,
        kv_cache_dtype: str,
        record_loc_probs: bool,
        weighed_from: int | None = None,
    ) -> DecodeOptions:
        """The options of token-by-token decoding.

        Args:
            max_new_tokens: bound where the user stated none.
            kv_cache_dtype: of the model.
            record_loc_probs: keep the distribution of every coordinate.
            weighed_from: id of the first location where greedy answers weigh locations together.

        Raises:
            ConfigError: a value out of bounds.
        """
        stated = self.max_new_tokens
        sampler = self.sampler
        if isinstance(sampler, Greedy) and weighed_from is not None:
            sampler = LocationGreedy(weighed_from)
        return DecodeOptions(
            max_new_tokens=max_new_tokens if stated is None else stated,
            sampler=sampler,
            kv_cache_dtype=kv_cache_dtype,
            record_loc_probs=record_loc_probs,
            seed=self.seed,
        )

    def require_one_answer(self, what: str) -> None:
        """Raise ConfigError where several answers are written to choose from."""
        if self.num_beams != 1 or self.best_of != 1:
            raise ConfigError(
                f"{what} follows one answer token by token, got num_beams = {self.num_beams} and "
                f"best_of = {self.best_of}; leave these out"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """Checked prompts and options, before any picture is looked at."""

    batch: Batch
    options: AnswerOptions
    steps: DecodeOptions


def write_answers(
    model: PaliGemmaModel,
    request: Request,
    soft_tokens: Tensor | None,
    constraint: Constraint | None = None,
) -> list[TokenRecord]:
    """Run the decoder that the options name; one record a prompt.

    Args:
        soft_tokens: float[B or 1, I, D], or None for text alone.
        constraint: a grammar for every row.

    Raises:
        ConfigError: a value out of bounds, or a grammar with beams or best_of.
    """
    generation = _decode(model, request, soft_tokens, constraint)
    num_cut = int(generation.cut.sum())
    if num_cut:
        if request.options.num_beams != 1:
            what = "are the best that had ended, though longer ones might be better"
        elif constraint is not None:
            what = "were cut there, with no room for what was to follow"
        else:
            what = "were cut there"
        _warn_cut(num_cut, len(generation.cut), request.steps.max_new_tokens, what)
    vocab = model.config.vocab
    return [token_record(generation, row, vocab) for row in range(request.batch.num_examples)]


def joined(soft_tokens: Sequence[Tensor]) -> Tensor:
    """Soft tokens of a batch: float[1, I, D] of each example -> float[B, I, D].

    Raises:
        ImageError: the examples have different numbers of soft tokens.
    """
    lengths = sorted({example.shape[1] for example in soft_tokens})
    if len(lengths) > 1:
        raise ImageError(
            f"all examples of a batch must have the same number of soft tokens, got {lengths}; "
            "batch examples of one picture and of several frames apart"
        )
    return torch.cat(list(soft_tokens))


def object_grammar(
    vocab: Vocab, encode: Callable[[str], list[int]], task: str, labels: str
) -> ObjectGrammar:
    """What `constrain` allows.

    Args:
        encode: ids of a text.
        task: "detect" or "segment".
        labels: as a prompt has them, ";" between them.
    """
    return ObjectGrammar(
        vocab=vocab,
        labels=[encode(f" {label.strip()}") for label in labels.split(";") if label.strip()],
        separator=encode(SEPARATOR),
        with_masks=task == "segment",
    )


def report_maskless(found: Detections, *, has_codec: bool) -> None:
    """Warn of objects of a segment prompt that came as boxes alone.

    Args:
        has_codec: whether codewords were decoded; where not, that is known already.
    """
    num_maskless = sum((item.region if has_codec else item.codes) is None for item in found)
    if num_maskless:
        logger.warning(
            "%d of %d objects came without a mask; ask for one label at a time",
            num_maskless,
            len(found),
        )


def _warn_cut(num_cut: int, num_answers: int, max_new_tokens: int, what: str) -> None:
    logger.warning(
        "%d of %d answers reached max_new_tokens = %d and %s",
        num_cut,
        num_answers,
        max_new_tokens,
        what,
    )


def _decode(
    model: PaliGemmaModel,
    request: Request,
    soft_tokens: Tensor | None,
    constraint: Constraint | None,
) -> Generation:
    options, steps, batch = request.options, request.steps, request.batch
    if constraint is not None:
        options.require_one_answer("a grammar")
    if options.num_beams != 1:
        penalty = options.length_penalty
        beams = BeamOptions(
            num_beams=options.num_beams,
            max_new_tokens=steps.max_new_tokens,
            length_penalty=None if penalty is None else LengthPenalty("power", penalty),
            kv_cache_dtype=steps.kv_cache_dtype,
        )
        return beam_search(model, batch, beams, soft_tokens=soft_tokens)
    if options.best_of != 1:
        return best_of_n(model, batch, steps, n=options.best_of, soft_tokens=soft_tokens)
    return generate(model, batch, steps, soft_tokens=soft_tokens, constraint=constraint)


def token_record(generation: Generation, row: int, vocab: Vocab) -> TokenRecord:
    """One row of a generation as the parser reads it."""
    length = int(generation.lengths[row])
    ids = generation.ids[row, :length].cpu().numpy()
    loc_probs = None
    if generation.loc_probs is not None:
        loc_probs = np.zeros((length, NUM_LOC), np.float32)
        is_loc = (ids >= vocab.loc0) & (ids < vocab.loc0 + NUM_LOC)
        loc_probs[is_loc] = generation.loc_probs[row].float().cpu().numpy()
    return TokenRecord(
        ids=ids,
        logprobs=generation.logprobs[row, :length].float().cpu().numpy(),
        loc_probs=loc_probs,
    )


def reported(steps: Iterable[Step], max_new_tokens: int) -> Iterator[Step]:
    """The steps of a single row, with the warning and the error that `write_answers` would give.

    Raises:
        ConfigError: the model produced NaN.
    """
    step = None
    for step in steps:
        require_numbers(step.logprobs)
        yield step
    if step is not None and not bool(step.finished.all()):
        _warn_cut(1, 1, max_new_tokens, "were cut there")


def text_pieces(steps: Iterable[Step], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """The text of a single row as it grows; a character of several tokens comes whole.

    Args:
        steps: of `generate.stream`.
        decode: text of ids, up to the end token.
    """
    ids: list[int] = []
    text = written = ""
    for step in steps:
        ids.append(int(step.tokens[0]))
        text = decode(ids)
        # What is still unfinished shows as replacement characters at the end.
        complete = text.rstrip("\N{REPLACEMENT CHARACTER}")
        if len(complete) > len(written):
            yield complete[len(written) :]
            written = complete
    if len(text) > len(written):
        yield text[len(written) :]
