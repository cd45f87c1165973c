"""Fourth auxiliary objective: which patches a prompt speaks of, asked half-way up the decoder.

An answer of one word says little of why it is right. Image tokens attend to the prompt, so each
can say whether it shows what the prompt names; from there "how many", "where" and "which is bigger"
are short ways. Dropped from the saved model, like the patch heads.
"""

from __future__ import annotations

import re

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.scenes import COLORS, LABELS, Scene, SceneExample, plural

# Shows the first thing named, or the second; is the patch at the centre of one of them.
NUM_ANSWERS = 4
_SINGULAR = {word: label for label in LABELS for word in (label, plural(label))}
_MENTION = re.compile(rf"(?:({'|'.join(COLORS)}) )?\b({'|'.join(_SINGULAR)})\b")


class NamingHead(nn.Module):
    """One linear layer on the decoder's image tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, NUM_ANSWERS)
        nn.init.normal_(self.proj.weight, std=0.02)
        # Few patches are spoken of.
        nn.init.constant_(self.proj.bias, -3.0)

    def forward(self, hidden: Tensor) -> Tensor:
        """float[B, I, D] -> logits float[B, I, 4]."""
        return self.proj(self.norm(hidden))


def named_objects(scene: Scene, example: SceneExample) -> tuple[set[int], set[int]] | None:
    """Objects that a prompt speaks of; the second set is for what a comparison names second.

    Returns:
        Indices into `scene.objects`, empty where the prompt names what is not there. None where it
        names nothing: an answer whose question is wanted.
    """
    everything = set(range(len(scene.objects)))
    if example.kind == "question":
        return None
    if example.kind == "ocr":
        return {k for k in everything if scene.objects[k].text}, set()
    if example.prefix_box is not None:
        return {k for k in everything if scene.objects[k].box_yxyx == example.prefix_box}, set()
    mentions = [
        {
            k
            for k in everything
            if scene.objects[k].label == _SINGULAR[word] and color in ("", scene.objects[k].color)
        }
        for color, word in _MENTION.findall(example.prefix)
    ]
    if not mentions:
        return everything, set()
    if example.kind == "comparison":
        return mentions[0], mentions[1]
    return set().union(*mentions), set()


def named_patches(
    named: tuple[set[int], set[int]] | None, owners: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """What `NamingHead` should say.

    Args:
        named: of `named_objects`.
        owners: int64[I], the object that each patch shows, -1 for none.
        centres: int64[N], the patch at the centre of each object's box.

    Returns:
        float32[I, 4], 0 or 1; NaN where there is nothing to say.
    """
    says = np.zeros((len(owners), NUM_ANSWERS), np.float32)
    if named is None:
        return np.full_like(says, np.nan)
    for place, group in enumerate(named):
        for index in group:
            says[owners == index, place] = 1.0
            says[centres[index], 2 + place] = 1.0
    return says


def naming_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the four answers, mean over patches.

    Args:
        logits: float[B, I, 4].
        targets: float32[B, I, 4]; rows of NaN are left out.
    """
    asked = ~targets[:, 0, 0].isnan()
    total = F.binary_cross_entropy_with_logits(logits[asked], targets[asked], reduction="sum")
    return total / max(1, int(asked.sum()) * targets.shape[1])
