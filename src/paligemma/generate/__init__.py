"""Decoding: token ids in, token ids out, no text."""

from paligemma.generate.beam import beam_search, beam_steps
from paligemma.generate.best_of_n import best_of_n, best_of_n_steps
from paligemma.generate.constraints import MAX_OBJECTS, ClosedSet, Constraint, ObjectGrammar
from paligemma.generate.decode import generate, stream
from paligemma.generate.generation import Generation, Step, require_numbers
from paligemma.generate.json_grammar import JsonGrammar, JsonTokens, require_schema
from paligemma.generate.options import (
    MAX_BEAMS,
    MAX_NEW_TOKENS,
    PROBABILITIES,
    BeamOptions,
    DecodeOptions,
    LengthPenalty,
    QueueOptions,
    check_kv_cache_dtype,
    check_probabilities,
    require_flag,
    require_number,
    require_seed,
    require_whole,
)
from paligemma.generate.prefill import join_soft_tokens
from paligemma.generate.queue import DecodeQueue, TokenEvent
from paligemma.generate.sampling import Greedy, LocationGreedy, Nucleus, Sampler, Temperature, TopK

__all__ = [
    "MAX_BEAMS",
    "MAX_NEW_TOKENS",
    "MAX_OBJECTS",
    "PROBABILITIES",
    "BeamOptions",
    "ClosedSet",
    "Constraint",
    "DecodeOptions",
    "DecodeQueue",
    "Generation",
    "Greedy",
    "JsonGrammar",
    "JsonTokens",
    "LengthPenalty",
    "LocationGreedy",
    "Nucleus",
    "ObjectGrammar",
    "QueueOptions",
    "Sampler",
    "Step",
    "Temperature",
    "TokenEvent",
    "TopK",
    "beam_search",
    "beam_steps",
    "best_of_n",
    "best_of_n_steps",
    "check_kv_cache_dtype",
    "check_probabilities",
    "generate",
    "join_soft_tokens",
    "require_flag",
    "require_number",
    "require_numbers",
    "require_schema",
    "require_seed",
    "require_whole",
    "stream",
]
