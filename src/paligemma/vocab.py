"""Token ids with a meaning: special ids, the 1,024 location tokens and the 128 mask codewords.

The released vocabulary is Gemma's 256,000 pieces followed by `<loc0000>`..`<loc1023>` and
`<seg000>`..`<seg127>` (big_vision pp/proj/paligemma/ops.py). A model with another tokenizer states
its own ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

from paligemma.errors import ConfigError

NUM_LOC = 1024
NUM_SEG = 128
SEG_PER_SIDE = 4  # the codewords of a mask are a grid over the object's box, in raster order
SEG_PER_MASK = SEG_PER_SIDE**2


@dataclass(frozen=True, kw_only=True)
class Vocab:
    """Ids with a meaning in one tokenizer.

    Attributes:
        size: number of rows of the embedding table.
        pad, eos, bos: ids of padding, end and beginning.
        sep: id of the separator behind the prompt.
        loc0: id of the first of `NUM_LOC` location tokens; negative if there are none.
        seg0: id of the first of `NUM_SEG` mask codewords; negative if there are none.
        image: id of transformers' `<image>` where tokens of a fine-tune follow it; None where it
            has the id `size`.
    """

    size: int
    pad: int
    eos: int
    bos: int
    sep: int
    loc0: int
    seg0: int
    image: int | None = None

    def __post_init__(self) -> None:
        highest = max(self.pad, self.eos, self.bos, self.sep, self.loc0 + NUM_LOC - 1)
        if max(highest, self.seg0 + NUM_SEG - 1) >= self.size and self.has_objects:
            raise ConfigError(
                f"every id must lie below the vocabulary size {self.size}, got {self}; "
                "state the size that the embedding table has"
            )

    @property
    def has_objects(self) -> bool:
        """Whether the vocabulary has location tokens and mask codewords."""
        return self.loc0 >= 0

    def is_loc(self, token: int) -> bool:
        """Whether an id is a location token."""
        return self.has_objects and self.loc0 <= token < self.loc0 + NUM_LOC

    def is_seg(self, token: int) -> bool:
        """Whether an id is a mask codeword."""
        return self.has_objects and self.seg0 <= token < self.seg0 + NUM_SEG


GEMMA_VOCAB = Vocab(size=257152, pad=0, eos=1, bos=2, sep=108, loc0=256000, seg0=257024)
