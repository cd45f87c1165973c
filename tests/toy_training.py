"""A model of a few thousand weights, batches of random text and pictures, and a plain objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paligemma.batch import Batch
from paligemma.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.train.loss import training_loss
from paligemma.train.optim_config import OptimConfig
from paligemma.train.schedule import ScheduleConfig
from paligemma.vocab import Vocab

VOCAB = Vocab(size=64, pad=0, eos=1, bos=2, sep=3, loc0=-1, seg0=-1)
CONFIG = PaliGemmaConfig(
    vision=VisionConfig(
        image_size_px=8, patch_size_px=4, width=8, depth=2, mlp_dim=12, num_heads=2
    ),
    text=TextConfig(
        width=12,
        depth=2,
        mlp_dim=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        query_scale=6**-0.5,
        attn_softcap=None,
        final_softcap=30.0,
        post_norms=True,
        sliding_window=None,
        norm_eps=1e-6,
        rope_theta=10_000.0,
    ),
    vocab=VOCAB,
)


OPTIM = OptimConfig(
    lr=1e-2,
    wd=1e-4,
    schedule=((".*", ScheduleConfig(decay_type="cosine", warmup_steps=2)),),
)


def small_model(seed: int = 0) -> PaliGemmaModel:
    model = PaliGemmaModel(CONFIG)
    init_weights(model, seed)
    return model


def make_batch(seed: int = 0) -> Batch:
    """Three examples of 8 + 1 tokens: some supervised, one without a target."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, VOCAB.size, (3, 9), generator=draw)
    supervised = torch.zeros(3, 9)
    supervised[0, 5:9] = 1.0
    supervised[1, 3:5] = 1.0
    return Batch(
        images=torch.rand(3, 8, 8, 3, generator=draw) * 2 - 1,
        tokens=tokens,
        mask_ar=supervised.long(),
        mask_input=torch.ones(3, 9, dtype=torch.bool),
        mask_loss=supervised,
    )


@dataclass(frozen=True, kw_only=True)
class RandomBatches:
    """Three batches in turn, any of them from its step number alone."""

    def batch(self, step: int) -> Batch:
        return make_batch(step % 3)


class TextObjective(nn.Module):
    """The loss on text, and a head of its own that learns to say nothing of a picture."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Parameter(torch.randn(CONFIG.text.width, generator=generator))

    def forward(self, model: PaliGemmaModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.images is not None
        soft = model.encode_image(batch.images)
        text = training_loss(model, batch, soft_tokens=soft).loss
        head = (soft @ self.head).square().mean() + 0.1 * self.head.square().mean()
        return text + head, {"text": text.detach(), "head": head.detach()}


def digest(module: nn.Module) -> float:
    """Sum of absolute parameter values; equal runs have equal digests."""
    with torch.no_grad():
        return float(sum(p.double().abs().sum() for p in module.parameters()))
