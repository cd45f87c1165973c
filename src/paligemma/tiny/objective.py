"""What the embedded model is trained on: the original's loss on text, and losses on patches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from paligemma.model import PaliGemmaModel
from paligemma.tiny.data import SceneBatch
from paligemma.tiny.dense import BOX_UNIT_PX, PatchHeads, patch_losses
from paligemma.tiny.edges import EdgeHead, edge_loss, patch_centres
from paligemma.tiny.gathering import (
    GatheringHead,
    ends_of_prompts,
    gathering_loss,
    tokens_at,
)
from paligemma.tiny.locations import spread_losses
from paligemma.tiny.mask_tokens import MaskTokenHead, mask_token_loss
from paligemma.tiny.naming import NamingHead, naming_loss
from paligemma.train.loss import TokenLoss, token_losses, training_loss
from paligemma.vocab import NUM_LOC, NUM_SEG

# Weight of each question of the auxiliary objective.
PATCH_WEIGHTS = {
    "label": 1.0,
    "color": 0.4,
    "value": 1.0,
    "char_left": 1.0,
    "char_right": 1.0,
    "order_left": 0.5,
    "order_right": 0.5,
    "box": 1.2,
}


# A patch is 73 bins wide.
_PLACE_SIGMA_BINS = 8.0


class SceneObjective(nn.Module):
    """Loss of one batch of scenes.

    Args:
        width: of the tower.
        patch_weight: factor on the auxiliary loss; 0 leaves the original's loss alone.
        loc_sigma_bins: spread of the target of a location token; 0 is the original's loss.
        edge_weight: factor on `edge_loss`; needs boxes in the field. 0 has no such head.
        mask_token_weight: factor on `mask_token_loss`; needs a batch with these targets. 0 has no
            such head.
        naming_weight: factor on `naming_loss`, likewise.
        gathering_weight: factor on `gathering_loss`, likewise.
        text_width: of the decoder.
    """

    def __init__(
        self,
        width: int,
        *,
        text_width: int,
        patch_weight: float,
        edge_weight: float = 0.0,
        mask_token_weight: float = 0.0,
        naming_weight: float = 0.0,
        gathering_weight: float = 0.0,
        loc_sigma_bins: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = PatchHeads(width)
        self.edges = EdgeHead(text_width) if edge_weight else None
        self.mask_tokens = MaskTokenHead(text_width) if mask_token_weight else None
        self.naming = NamingHead(text_width) if naming_weight else None
        self.gathering = GatheringHead(text_width) if gathering_weight else None
        self.patch_weight = patch_weight
        self.edge_weight = edge_weight
        self.mask_token_weight = mask_token_weight
        self.naming_weight = naming_weight
        self.gathering_weight = gathering_weight
        self.loc_sigma_bins = loc_sigma_bins

    def forward(self, model: PaliGemmaModel, batch: SceneBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss float32[] and the parts worth logging."""
        images = batch.text.images
        assert images is not None
        features = model.vision(images, _window(model, batch))
        parts: dict[str, Tensor] = {}
        loss = torch.zeros(())
        if self.patch_weight:
            patch = patch_losses(self.heads(features), batch.patches)
            parts |= {f"patch_{name}": value.detach() for name, value in patch.items()}
            loss = loss + self.patch_weight * sum(
                (PATCH_WEIGHTS[name] * value for name, value in patch.items()), torch.zeros(())
            )
        soft = model.projector(features)
        if self.edges is not None:
            located = self._edge_losses(self.edges, model, soft, batch)
            parts |= {name: value.detach() for name, value in located.items()}
            loss = loss + self.edge_weight * sum(located.values(), torch.zeros(()))
        if self.mask_tokens is not None:
            masks = self._mask_token_loss(self.mask_tokens, model, soft, batch)
            parts["mask_tokens"] = masks.detach()
            loss = loss + self.mask_token_weight * masks
        if batch.text.mask_loss is None:
            return loss, parts
        prompts = self._text_losses(model, soft, batch)
        parts |= {name: value.detach() for name, value in prompts.items()}
        weights = {
            "text": 1.0,
            "naming": self.naming_weight,
            "gathering": self.gathering_weight,
        }
        return loss + sum(weights[name] * value for name, value in prompts.items()), parts

    def _edge_losses(
        self, head: EdgeHead, model: PaliGemmaModel, soft: Tensor, batch: SceneBatch
    ) -> dict[str, Tensor]:
        """Where in the field each object's edges are, and where each patch itself is."""
        vision, start = model.config.vision, model.config.vocab.loc0
        table = model.text.embedding_rows(start, NUM_LOC)
        sigma = max(1.0, self.loc_sigma_bins)
        shown = batch.patches["label"] > 0
        edges = batch.patches["box"][shown] / (vision.image_size_px / BOX_UNIT_PX)
        side = round(soft.shape[1] ** 0.5)
        places = patch_centres(side, vision.grid, batch.corner or (0, 0))
        places = places.expand(len(soft), -1, -1)
        return {
            "edge": edge_loss(head(soft[shown], table), edges, sigma),
            # A fraction of the patches says as much as all of them.
            "place": edge_loss(head.places(soft[:, ::5], table), places[:, ::5], _PLACE_SIGMA_BINS),
        }

    def _mask_token_loss(
        self, head: MaskTokenHead, model: PaliGemmaModel, soft: Tensor, batch: SceneBatch
    ) -> Tensor:
        """What lies of its object's mask on each patch that shows one."""
        start = model.config.vocab.seg0
        table = model.text.embedding_rows(start, NUM_SEG)
        shown = batch.patches["label"] > 0
        return mask_token_loss(head(soft[shown], table), batch.patches["mask_tokens"][shown])

    def _text_losses(
        self, model: PaliGemmaModel, soft: Tensor, batch: SceneBatch
    ) -> dict[str, Tensor]:
        """The original's loss, and what the decoder knows on its way to the answer."""
        text, num_image = batch.text, soft.shape[1]
        assert text.mask_loss is not None
        soft = soft.repeat_interleave(len(text.tokens) // len(soft), dim=0)
        half_way, late = _Watched(model, 1 / 2), _Watched(model, 1)
        rows = replace(text, images=None)
        token_loss: TokenLoss = token_losses
        if self.loc_sigma_bins:
            token_loss = partial(
                spread_losses, loc0=model.config.vocab.loc0, sigma_bins=self.loc_sigma_bins
            )
        order: list[Tensor] = []
        per_example: list[Tensor] = []
        named: list[Tensor] = []
        known: list[Tensor] = []
        with half_way, late:
            # Rows of like length together, each part cut to its longest row: less padding.
            for index in text.mask_input.sum(dim=1).argsort().chunk(2):
                found = training_loss(
                    model,
                    rows.rows(index).trim(),
                    soft_tokens=soft[index],
                    token_loss=token_loss,
                )
                order.append(index)
                per_example.append(found.per_example)
                if self.naming is not None:
                    named.append(self.naming(half_way.hidden[:, :num_image]))
                if self.gathering is not None:
                    place = num_image + ends_of_prompts(text.mask_loss[index])
                    known.append(self.gathering(tokens_at(late.hidden, place)))
        losses = {"text": torch.cat(per_example).mean()}
        if named and batch.named is not None:
            losses["naming"] = naming_loss(torch.cat(named), batch.named[torch.cat(order)])
        if known and batch.gathered is not None:
            asked = batch.gathered[torch.cat(order)]
            losses["gathering"] = gathering_loss(torch.cat(known), asked)
        return losses


class _Watched:
    """Output of the block that ends a share of the decoder, the last block left out."""

    hidden: Tensor

    def __init__(self, model: PaliGemmaModel, share: float) -> None:
        depth = model.config.text.depth
        self.block = model.text.blocks[max(0, min(round(share * depth), depth - 1) - 1)]

    def __enter__(self) -> None:
        self.hook = self.block.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, hidden: Tensor) -> None:
        self.hidden = hidden

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def _window(model: PaliGemmaModel, batch: SceneBatch) -> Tensor | None:
    """Rows of the position table for the part of the field that the batch shows."""
    if batch.corner is None or batch.text.images is None:
        return None
    vision = model.config.vision
    side = batch.text.images.shape[1] // vision.patch_size_px
    (row, column), table = batch.corner, model.vision.pos_embedding
    grid = table.unflatten(1, (vision.grid, vision.grid))
    return grid[:, row : row + side, column : column + side].flatten(1, 2)
