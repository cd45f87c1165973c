"""A labeller without a model, whose answers depend on every row of their batch, as rounding makes a
model's; as a program it labels slowly, to be killed: toy_labeller.py INPUT OUTPUT SECONDS."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paligemma.errors import ImageError
from paligemma.example import Example
from paligemma.jobs.labelling.labeller import Refused
from paligemma.jobs.labelling.records import Record
from paligemma.jobs.labelling.run import Labelled, Labelling, label

# Red of a picture that kills the process which asks about it.
DEADLY = 13


class ToyLabeller:
    """Answers by the pictures and prompts of the whole batch."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[str]] = []
        self.num_read = 0

    def settings(self) -> Mapping[str, Any]:
        return {"model": "toy"}

    def read(self, examples: Sequence[Example]) -> dict[str, np.ndarray | str]:
        found: dict[str, np.ndarray | str] = {}
        for one in examples:
            key = repr(one.pictures)
            if key not in found:
                self.num_read += 1
                try:
                    found[key] = one.pictures[0].read(1 << 20)
                except ImageError as error:
                    found[key] = str(error)
        return found

    def answer(
        self, examples: Sequence[Example], prepared: Mapping[str, np.ndarray | str]
    ) -> list[Record | Refused]:
        time.sleep(self.seconds)
        self.batches.append([one.id for one in examples])
        whole = hashlib.sha256("".join(one.id + one.prefix for one in examples).encode())
        found: list[Record | Refused] = []
        for one in examples:
            picture = prepared[repr(one.pictures)]
            if isinstance(picture, str):
                found.append(Refused(reason=picture))
                continue
            if picture[0, 0, 0] == DEADLY:
                os.kill(os.getpid(), signal.SIGKILL)
            digest = whole.copy()
            digest.update(picture.tobytes())
            text = digest.hexdigest()
            box = [0.1, 0.1, 0.5, 0.25 + int(text[0], 16) / 32]
            thing = {"label": "thing", "score": 0.5, "box_xyxy_px": box, "box_yxyx": box}
            height, width = picture.shape[:2]
            record: Record = {"text": text, "logprob": -1.0, "num_tokens": 4}
            found.append({**record, "width": width, "height": height, "detections": [thing]})
        return found


def label_toys(source: object, output: object, labeller: Any, **more: Any) -> Labelled:
    """Label in small parts and batches."""
    how = {name: more.pop(name) for name in ("retry", "num_threads") if name in more}
    known = {"prompt": "detect thing", "part_rows": 10, "batch_size": 3}
    job = Labelling(input=str(source), output=str(output), **{**known, **more})
    return label(job, labeller, **how)


if __name__ == "__main__":
    label_toys(sys.argv[1], sys.argv[2], ToyLabeller(float(sys.argv[3])))
