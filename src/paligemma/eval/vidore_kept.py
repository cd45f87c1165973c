"""Scores of an evaluation that was stopped, a column a page, so that it goes on with the next."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paligemma.errors import RunError
from paligemma.eval.vidore_sets import RetrievalSet

_SCORE = np.dtype("<f4")


class KeptScores:
    """The scores of one set by one model, in a file whose name follows from both.

    Args:
        folder: exists.
        identity: of the model, as `ColPali.identity` has it.
        asked: the set.
    """

    def __init__(self, folder: Path, identity: str, asked: RetrievalSet) -> None:
        files = sorted({one.path for one in asked.pictures})
        sizes = [[path.name, path.stat().st_size] for path in files]
        what = [identity, list(asked.queries.items()), list(asked.page_ids), sizes]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        self._path = folder / f"{asked.name[:100]}-{digest}.f32"
        self._num_queries, self._num_pages = len(asked.queries), len(asked.page_ids)

    def read(self) -> Tensor:
        """float32[Q, P]: the scores of all queries on the first pages, as many as were kept.

        Raises:
            RunError: the file cannot be read.
        """
        try:
            values = np.fromfile(self._path, _SCORE) if self._path.exists() else np.zeros(0, _SCORE)
        except OSError as error:
            raise self._refused(error) from error
        num_pages = min(len(values) // self._num_queries, self._num_pages)
        kept = values[: num_pages * self._num_queries].reshape(num_pages, self._num_queries)
        return torch.from_numpy(np.ascontiguousarray(kept.T.astype(np.float32)))

    def write(self, start: int, columns: Tensor) -> None:
        """Keep the scores of the pages from `start` on; what a kill has torn is written over.

        Args:
            columns: float32[Q, P].

        Raises:
            RunError: the disk refuses.
        """
        try:
            with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
                file.seek(start * self._num_queries * _SCORE.itemsize)
                file.write(columns.T.contiguous().numpy().astype(_SCORE).tobytes())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> RunError:
        return RunError(
            f"scores are kept in {self._path}, which cannot be read or written "
            f"({error.strerror or error}); name another folder with --output"
        )
