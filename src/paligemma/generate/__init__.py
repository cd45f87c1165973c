"""Decoding: ids in, ids out; knows no text."""

from paligemma.generate.beam import BeamOptions, LengthPenalty, beam_search
from paligemma.generate.best_of_n import best_of_n
from paligemma.generate.constraints import ClosedSet, Constraint, ObjectGrammar
from paligemma.generate.decode import DecodeOptions, generate, stream
from paligemma.generate.generation import Generation, Step, require_numbers
from paligemma.generate.prompt import require_number, require_whole
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
    "generate",
    "plan_batches",
    "require_number",
    "require_numbers",
    "require_whole",
    "run_in_batches",
    "stream",
]
