"""Decoding: token ids in, token ids out, no text."""

from paligemma.generate.beam import beam_search
from paligemma.generate.best_of_n import best_of_n
from paligemma.generate.constraints import ClosedSet, Constraint, ObjectGrammar
from paligemma.generate.decode import generate, stream
from paligemma.generate.generation import Generation, Step, require_numbers
from paligemma.generate.options import (
    KV_CACHE_DTYPES,
    MAX_BEAMS,
    MAX_NEW_TOKENS,
    BeamOptions,
    DecodeOptions,
    LengthPenalty,
    check_kv_cache_dtype,
    require_number,
    require_seed,
    require_whole,
)
from paligemma.generate.sampling import (
    Greedy,
    LocationGreedy,
    Nucleus,
    Sampler,
    Temperature,
    TopK,
)
from paligemma.generate.scheduler import plan_batches, run_in_batches

__all__ = [
    "KV_CACHE_DTYPES",
    "MAX_BEAMS",
    "MAX_NEW_TOKENS",
    "BeamOptions",
    "ClosedSet",
    "Constraint",
    "DecodeOptions",
    "Generation",
    "Greedy",
    "LengthPenalty",
    "LocationGreedy",
    "Nucleus",
    "ObjectGrammar",
    "Sampler",
    "Step",
    "Temperature",
    "TopK",
    "beam_search",
    "best_of_n",
    "check_kv_cache_dtype",
    "generate",
    "plan_batches",
    "require_number",
    "require_numbers",
    "require_seed",
    "require_whole",
    "run_in_batches",
    "stream",
]
