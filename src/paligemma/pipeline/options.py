"""What a user may say of an answer, checked, and the decoder that it names."""

from __future__ import annotations

import difflib
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from paligemma.errors import ConfigError
from paligemma.generate import (
    MAX_OBJECTS,
    PROBABILITIES,
    BeamOptions,
    ClosedSet,
    DecodeOptions,
    Greedy,
    LengthPenalty,
    LocationGreedy,
    Nucleus,
    ObjectGrammar,
    Sampler,
    Temperature,
    TopK,
    check_probabilities,
    require_flag,
    require_number,
    require_schema,
    require_seed,
    require_whole,
)
from paligemma.outputs.boxes import SEPARATOR
from paligemma.outputs.detections import require_selection
from paligemma.pipeline.habits import for_asking
from paligemma.processing.prompts import ObjectPrompt
from paligemma.vocab import Vocab

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("exact", "mixed", "bf16")
MAX_CHOICES = 100_000
MAX_CHOICES_CHARS = 4_000_000  # of all answers; reading them into tokens takes a second
_CHOICE_BOUND = 10**99
# Some thirty pictures of 224 px of a 3B model in float32, or one of 896 px.
PICTURE_CACHE_BYTES = 64 << 20

Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a loaded model computes; the same for every answer.

    Attributes:
        mode: "exact" (float32), "mixed" (float32 weights, bfloat16 arithmetic) or "bf16"; only
            "mixed" computes otherwise than the weights' dtype says.
        kv_cache_dtype: dtype of keys and values while decoding: "bfloat16", as the original,
            "float32" or "int8".
        weigh_locations: default of the option of that name in `AnswerOptions`.
        picture_cache_bytes: bound of the soft tokens that are kept of pictures encoded before, so
            that asking one again does not encode it again; 0 keeps none.
    """

    mode: str = "exact"
    kv_cache_dtype: str = "bfloat16"
    weigh_locations: bool = False
    picture_cache_bytes: int = PICTURE_CACHE_BYTES

    def __post_init__(self) -> None:
        require_whole("picture_cache_bytes", self.picture_cache_bytes)
        if self.picture_cache_bytes < 0:
            raise ConfigError(
                f"picture_cache_bytes must be 0 or more, got {self.picture_cache_bytes}"
            )
        if self.mode not in MODES:
            raise ConfigError(f"the mode must be one of {', '.join(MODES)}, got {self.mode!r:.100}")


class AnswerKeywords(TypedDict, total=False):
    """The fields of `AnswerOptions` as keywords, for type checkers."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    num_beams: int
    length_penalty: float | None
    best_of: int
    seed: int
    weigh_locations: bool | None
    adapter: str | None
    probabilities: str
    choices: Sequence[str | int] | None
    json_schema: Mapping[str, Any] | None


class AskKeywords(AnswerKeywords, total=False):
    """The fields of `AnswerOptions` and `ObjectOptions` as keywords, for type checkers."""

    threshold: float | None
    max_overlap: float | None
    constrain: bool
    max_objects: int | None
    no_repeats: bool


class FindKeywords(AskKeywords, total=False):
    """The same with those of tiles, for type checkers."""

    tile: str | Sequence[int] | None
    tile_overlap: float


@dataclass(frozen=True, kw_only=True)
class ObjectOptions:
    """Which objects of an answer are kept, and whether a grammar guides them.

    Attributes:
        threshold: lowest confidence of an object; None keeps all, empty boxes too.
        max_overlap: of one thing found twice keep only the likelier, see `Detections.distinct`;
            None keeps all.
        constrain: allow a detect or segment prompt only well-formed objects of its labels.
        max_objects: most objects of a constrained answer; None is 100.
        no_repeats: whether a constrained answer has each box only once with each label.
    """

    threshold: float | None = None
    max_overlap: float | None = None
    constrain: bool = False
    max_objects: int | None = None
    no_repeats: bool = False

    def __post_init__(self) -> None:
        require_selection(self.threshold, self.max_overlap)
        require_flag("constrain", self.constrain)
        require_flag("no_repeats", self.no_repeats)
        if self.max_objects is not None:
            require_whole("max_objects", self.max_objects)
            if not 1 <= self.max_objects <= MAX_OBJECTS:
                raise ConfigError(
                    f"max_objects must lie in 1..{MAX_OBJECTS}, got {self.max_objects}"
                )
        if not self.constrain and (self.no_repeats or self.max_objects is not None):
            raise ConfigError(
                "max_objects and no_repeats are rules of a constrained answer, got "
                f"{self.max_objects} and {self.no_repeats} without constrain; state constrain too"
            )


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
        num_beams: number of hypotheses of beam search; 1 is no beam search.
        length_penalty: compares finished beams by score / length^penalty; None compares plain sums,
            as the original does.
        best_of: draws this many answers and keeps the most probable.
        seed: seed of the sampler's generator.
        weigh_locations: greedy answers weigh all locations together against any other token, and
            places and mask codewords with those near them, see `LocationGreedy`; None follows the
            model's config.json, where the default is False, in prompts that ask for objects.
        adapter: name of one of the model's `adapters`; None is the model itself.
        probabilities: "vocabulary", confidences as the model has them, or "allowed", those among
            the tokens that `constrain`, `choices` or
            `json_schema` allow, which are faster to compute.
        choices: the only answers allowed, such as ["yes", "no"] or range(101); None allows any.
        json_schema: a schema, as an object of JSON, that the answer obeys; None allows any text.

    Raises:
        ConfigError: a value of another type, out of its range, or at odds with another.
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
    adapter: str | None = None
    probabilities: str = PROBABILITIES[0]
    choices: Sequence[str | int] | None = None
    json_schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_probabilities(self.probabilities)
        if self.choices is not None:
            _require_choices(self.choices)
        if self.json_schema is not None:
            require_schema(self.json_schema)
            if self.choices is not None:
                raise ConfigError(
                    "an answer follows one grammar, got choices and json_schema; leave one out"
                )
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise ConfigError(f"adapter must be a name, got {reprlib.repr(self.adapter)}")
        for name in ("num_beams", "best_of"):
            require_whole(name, getattr(self, name))
        require_seed(self.seed)
        for name in ("max_new_tokens", "top_k"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name))
        if self.weigh_locations is not None:
            require_flag("weigh_locations", self.weigh_locations)
        for name in ("temperature", "top_p", "length_penalty"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name))
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
        """The way of choosing a token that these options name."""
        if self.temperature == 0:
            return Greedy()
        temperature = 1.0 if self.temperature is None else self.temperature
        if self.top_k is not None:
            return TopK(self.top_k, temperature)
        if self.top_p is not None:
            return Nucleus(self.top_p, temperature)
        return Greedy() if self.temperature is None else Temperature(temperature)

    def decoder(
        self,
        settings: RunSettings,
        vocab: Vocab,
        max_new_tokens: int,
        codebook: Callable[[], Tensor | None] = lambda: None,
        *,
        finds: bool = True,
    ) -> DecodeOptions | BeamOptions:
        """The options of the decoder that these options name.

        Args:
            max_new_tokens: bound of the answer where the user gave none.
            codebook: see `LocationGreedy`.
            finds: whether the prompt asks for objects; `settings.weigh_locations` holds for such
                prompts alone.

        Raises:
            ConfigError: a value out of bounds.
        """
        bound = max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        if self.num_beams != 1:
            penalty = self.length_penalty
            return BeamOptions(
                num_beams=self.num_beams,
                max_new_tokens=bound,
                length_penalty=None if penalty is None else LengthPenalty("power", penalty),
                kv_cache_dtype=settings.kv_cache_dtype,
            )
        weighs = self.weigh_locations
        if weighs is None:
            weighs = finds and settings.weigh_locations
        sampler = self.sampler
        if weighs and vocab.has_objects and isinstance(sampler, Greedy):
            sampler = LocationGreedy(vocab.loc0, vocab.seg0, codebook)
        return DecodeOptions(
            max_new_tokens=bound,
            sampler=sampler,
            kv_cache_dtype=settings.kv_cache_dtype,
            record_loc_probs=vocab.has_objects,
            seed=self.seed,
            probabilities=self.probabilities,
        )

    def require_one_answer(self, what: str) -> None:
        """Raise ConfigError where several answers are written to choose from."""
        if self.num_beams != 1 or self.best_of != 1:
            raise ConfigError(
                f"{what} follows one answer token by token, got num_beams = {self.num_beams} and "
                f"best_of = {self.best_of}; leave these out"
            )


def chosen(kind: type[Options], keywords: Mapping[str, Any]) -> Options:
    """Options from the keywords of a method.

    Raises:
        ConfigError: an unknown option; the error names the nearest ones. Values are checked by
            `kind`.
    """
    _require_known(keywords, _names(kind))
    return kind(**keywords)


def chosen_for_asking(keywords: Mapping[str, Any]) -> tuple[AnswerOptions, ObjectOptions]:
    """The two kinds of options of a method that may find objects; errors as in `chosen`."""
    keywords = for_asking(keywords)
    of_objects = _names(ObjectOptions)
    _require_known(keywords, _names(AnswerOptions) + of_objects)
    return (
        AnswerOptions(**{k: v for k, v in keywords.items() if k not in of_objects}),
        ObjectOptions(**{k: v for k, v in keywords.items() if k in of_objects}),
    )


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _require_known(keywords: Mapping[str, Any], known: list[str]) -> None:
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            remedy = f"did you mean {' or '.join(near)}?" if near else f"use {', '.join(known)}"
            raise ConfigError(f"there is no option {name!r:.100} here; {remedy}")


def _require_choices(choices: object) -> None:
    """Raise ConfigError unless the value is some answers: texts and whole numbers."""
    if isinstance(choices, str | bytes | bytearray) or not isinstance(choices, Sequence):
        raise ConfigError(f"choices must be a list of answers, got {reprlib.repr(choices)}")
    try:
        count = len(choices)
    except OverflowError:  # of a range
        count = sys.maxsize
    if not 1 <= count <= MAX_CHOICES:
        raise ConfigError(f"choices must be 1 to {MAX_CHOICES} answers, got {count}")
    for choice in choices:
        if isinstance(choice, bool) or not isinstance(choice, str | Integral) or choice == "":
            raise ConfigError(
                f"each of the choices must be a text or a whole number, got {reprlib.repr(choice)}"
            )
        if isinstance(choice, Integral) and abs(int(choice)) >= _CHOICE_BOUND:
            raise ConfigError("a whole number among the choices must have at most 99 digits")
    num_chars = sum(len(choice) for choice in choices if isinstance(choice, str))
    if num_chars > MAX_CHOICES_CHARS:
        raise ConfigError(
            f"choices may have {MAX_CHOICES_CHARS} characters together, got {num_chars}; shorten "
            "them"
        )


def choice_grammar(
    vocab: Vocab, spell: Callable[[str], list[int]], options: AnswerOptions
) -> ClosedSet | None:
    """The grammar of the option `choices`, if it is stated."""
    if options.choices is None:
        return None
    options.require_one_answer("a grammar")
    return ClosedSet(vocab=vocab, answers=[spell(str(choice)) for choice in options.choices])


def object_grammar(
    vocab: Vocab,
    spell: Callable[[str], list[int]],
    asked: ObjectPrompt,
    options: ObjectOptions,
) -> ObjectGrammar:
    """The grammar of the option `constrain`."""
    bound = {} if options.max_objects is None else {"max_objects": int(options.max_objects)}
    return ObjectGrammar(
        vocab=vocab,
        labels=[spell(f" {label}") for label in asked.labels],
        separator=spell(SEPARATOR),
        with_masks=asked.task == "segment",
        no_repeats=bool(options.no_repeats),
        **bound,
    )
