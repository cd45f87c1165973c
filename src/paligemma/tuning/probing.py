"""Whether a model answers as another one does: its logits of one drawn question."""

import torch
from torch import Tensor

from paligemma.model import PaliGemmaModel

_NUM_TOKENS = 12


@torch.no_grad()
def probe(model: PaliGemmaModel) -> Tensor:
    """Logits float32[1, T, V] of a picture and tokens that a seed draws."""
    generator = torch.Generator().manual_seed(0)
    size = model.config.vision.image_size_px
    picture = torch.rand(1, size, size, 3, generator=generator) * 2 - 1
    tokens = torch.randint(0, model.config.vocab.size, (1, _NUM_TOKENS), generator=generator)
    picture, tokens = picture.to(model.device), tokens.to(model.device)
    return model(model.encode_image(picture), tokens, torch.zeros_like(tokens)).float().cpu()


def moved(before: Tensor, after: Tensor) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    return float((after - before).abs().max() / before.abs().max())
