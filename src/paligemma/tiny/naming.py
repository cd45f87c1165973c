"""Fourth auxiliary loss: image tokens predict which objects the prompt names.

An answer of one word teaches little about the reason for it. Image tokens attend to the prompt, so
after half of the decoder each can predict whether its patch shows what the prompt names; "how
many", "where" and "which is bigger" build on that. The head is dropped from the saved model.

Axes: B prompts, I patches of a picture, D width of the decoder.
"""

import re

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.scenes import COLORS, LABELS, THINGS, Scene, SceneExample, plural

# Does the patch show what is named first, or second; is it the centre of the first, or second.
NUM_ANSWERS = 4
_SINGULAR = {word: label for label in (*LABELS, *THINGS) for word in (label, plural(label))}
_MENTION = re.compile(rf"(?:({'|'.join(COLORS)}) )?\b({'|'.join(_SINGULAR)})\b")


class NamingHead(nn.Module):
    """One linear layer on the decoder's image tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, NUM_ANSWERS)
        nn.init.normal_(self.proj.weight, std=0.02)
        # Few patches show what a prompt names.
        nn.init.constant_(self.proj.bias, -3.0)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map float[B, I, D] to logits float[B, I, 4]."""
        return self.proj(self.norm(hidden))


def named_objects(scene: Scene, example: SceneExample) -> tuple[set[int], set[int]] | None:
    """Find the objects that a prompt names.

    Returns:
        Two sets of indices into `scene.objects`; the second is for what a comparison names second,
        or for the object beside the one that the prompt names.
        A set is empty where the prompt names what is not in the picture. None for a prompt that
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
    if example.kind == "neighbour":
        return mentions[0], set(example.objects)
    return set().union(*mentions), set()


def named_patches(
    named: tuple[set[int], set[int]] | None, owners: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """Compute the targets of `NamingHead` for one prompt.

    Args:
        named: result of `named_objects`.
        owners: int64[I], index of the object that each patch shows, -1 for none.
        centres: int64[N], index of the patch at the centre of each object's box.

    Returns:
        float32[I, 4], 0 or 1; NaN where the targets do not apply.
    """
    targets = np.zeros((len(owners), NUM_ANSWERS), np.float32)
    if named is None:
        return np.full_like(targets, np.nan)
    for place, group in enumerate(named):
        for index in group:
            targets[owners == index, place] = 1.0
            targets[centres[index], 2 + place] = 1.0
    return targets


def naming_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the binary cross-entropy, a sum over the four targets and a mean over patches.

    Args:
        logits: float[B, I, 4], output of the head.
        targets: float32[B, I, 4]; prompts with NaN are left out.
    """
    asked = ~targets[:, 0, 0].isnan()
    total = F.binary_cross_entropy_with_logits(logits[asked], targets[asked], reduction="sum")
    return total / max(1, int(asked.sum()) * targets.shape[1])
