"""The training objective of the embedded model: the loss on text and the auxiliary losses."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from paligemma.model import PaliGemmaModel
from paligemma.outputs.vqvae import MaskCodec
from paligemma.tiny.data import SceneBatch
from paligemma.tiny.dense import BOX_UNIT_PX, PatchHeads, patch_losses
from paligemma.tiny.edges import EdgeHead, edge_loss, patch_centres
from paligemma.tiny.gathering import GatheringHead, ends_of_prompts, gathering_loss, tokens_at
from paligemma.tiny.locations import spread_losses
from paligemma.tiny.mask_tokens import MaskTokenHead, similar_codewords, soft_cross_entropy
from paligemma.tiny.naming import NamingHead, naming_loss
from paligemma.tiny.stages import LossWeights
from paligemma.train.loss import TokenLoss, token_losses, training_loss
from paligemma.vocab import NUM_LOC, NUM_SEG

# Factor of each patch loss.
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

# Shares of the decoder after which counts and places are asked for; 1 is one block before its end.
_GATHERED_AT = (1 / 2, 1)
# Spread of the target of a patch's own place; a patch is 73 bins wide.
_PLACE_SIGMA_BINS = 8.0


class SceneObjective(nn.Module):
    """Loss of one batch of scenes: the original's loss on text and weighted auxiliary losses.

    Args:
        weights: factors of the auxiliary losses. A head exists where its factor is above 0, and
            needs a batch with its targets; the patch heads always exist.
        codec: makes the targets of masks soft; None keeps them one-hot.
        precision: type in which matrices are multiplied; parameters stay float32.
    """

    similarity: Tensor

    def __init__(
        self,
        vision_width: int,
        *,
        text_width: int,
        weights: LossWeights,
        codec: MaskCodec | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.heads = PatchHeads(vision_width)
        self.edges = EdgeHead(text_width) if weights.edge else None
        self.mask_tokens = MaskTokenHead(text_width) if weights.mask_token else None
        self.naming = NamingHead(text_width) if weights.naming else None
        self.gathering = (
            nn.ModuleList(GatheringHead(text_width) for _ in _GATHERED_AT)
            if weights.gathering
            else None
        )
        self.weights = weights
        self.precision = precision
        similarity = torch.eye(NUM_SEG) if codec is None else similar_codewords(codec)
        self.register_buffer("similarity", similarity, persistent=False)

    def forward(self, model: PaliGemmaModel, batch: SceneBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss float32[] and its unweighted parts, which the metrics log."""
        batch = batch.to(self.similarity.device)
        is_narrow = self.precision != torch.float32
        with torch.autocast(self.similarity.device.type, self.precision, enabled=is_narrow):
            return self._loss(model, batch)

    def _loss(self, model: PaliGemmaModel, batch: SceneBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.text.images
        assert images is not None
        weights = self.weights
        features = model.vision(images, window_positions(model, batch))
        parts: dict[str, Tensor] = {}
        loss = torch.zeros((), device=images.device)
        if weights.patch:
            patch = patch_losses(self.heads(features), batch.patches)
            parts |= {f"patch_{name}": value.detach() for name, value in patch.items()}
            loss = loss + weights.patch * sum(
                (PATCH_WEIGHTS[name] * value for name, value in patch.items()),
                torch.zeros_like(loss),
            )
        soft = model.projector(features)
        if self.edges is not None:
            located = self._edge_losses(self.edges, model, soft, batch)
            parts |= {name: value.detach() for name, value in located.items()}
            loss = loss + weights.edge * sum(located.values(), torch.zeros_like(loss))
        if self.mask_tokens is not None:
            masks = self._mask_token_loss(self.mask_tokens, model, soft, batch)
            parts["mask_tokens"] = masks.detach()
            loss = loss + weights.mask_token * masks
        if batch.text.mask_loss is None:
            return loss, parts
        prompts = self._text_losses(model, soft, batch)
        parts |= {name: value.detach() for name, value in prompts.items()}
        factors = {"text": 1.0, "naming": weights.naming, "gathering": weights.gathering}
        return loss + sum(factors[name] * value for name, value in prompts.items()), parts

    def _edge_losses(
        self, head: EdgeHead, model: PaliGemmaModel, soft: Tensor, batch: SceneBatch
    ) -> dict[str, Tensor]:
        """Losses on the edges of each patch's object and on the place of the patch itself."""
        vision, start = model.config.vision, model.config.vocab.loc0
        table = model.text.embedding_rows(start, NUM_LOC)
        sigma = max(1.0, self.weights.loc_sigma_bins)
        shown = batch.patches["label"] > 0
        edges = batch.patches["box"][shown] / (vision.image_size_px / BOX_UNIT_PX)
        side = round(soft.shape[1] ** 0.5)
        places = patch_centres(side, vision.grid, batch.corner or (0, 0))
        places = places.to(soft.device).expand(len(soft), -1, -1)
        return {
            "edge": edge_loss(head(soft[shown], table), edges, sigma),
            # Every fifth patch is enough.
            "place": edge_loss(head.places(soft[:, ::5], table), places[:, ::5], _PLACE_SIGMA_BINS),
        }

    def _mask_token_loss(
        self, head: MaskTokenHead, model: PaliGemmaModel, soft: Tensor, batch: SceneBatch
    ) -> Tensor:
        """Loss on the mask codewords that lie on each patch of an object."""
        start = model.config.vocab.seg0
        table = model.text.embedding_rows(start, NUM_SEG)
        shown = batch.patches["label"] > 0
        targets = batch.patches["mask_tokens"][shown]
        return soft_cross_entropy(head(soft[shown], table), targets, self.similarity)

    def _text_losses(
        self, model: PaliGemmaModel, soft: Tensor, batch: SceneBatch
    ) -> dict[str, Tensor]:
        """The original's loss on text, and the losses on hidden states of the decoder."""
        text, num_image = batch.text, soft.shape[1]
        assert text.mask_loss is not None
        soft = soft.repeat_interleave(len(text.tokens) // len(soft), dim=0)
        half_way = _Watched(model, 1 / 2)
        gather_at = [_Watched(model, share) for share in _GATHERED_AT]
        rows = replace(text, images=None)
        token_loss: TokenLoss = token_losses
        if self.weights.loc_sigma_bins:
            token_loss = partial(
                spread_losses,
                loc0=model.config.vocab.loc0,
                sigma_bins=self.weights.loc_sigma_bins,
                seg0=model.config.vocab.seg0,
                similarity=self.similarity,
            )
        order: list[Tensor] = []
        per_example: list[Tensor] = []
        named: list[Tensor] = []
        known: list[list[tuple[Tensor, Tensor]]] = []
        with ExitStack() as stack:
            for watched in (half_way, *gather_at):
                stack.enter_context(watched)
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
                    known.append(
                        [
                            head(tokens_at(watched.hidden, place))
                            for head, watched in zip(self.gathering, gather_at, strict=True)
                        ]
                    )
        losses = {"text": torch.cat(per_example).mean()}
        if named and batch.named is not None:
            losses["naming"] = naming_loss(torch.cat(named), batch.named[torch.cat(order)])
        if known and batch.gathered is not None:
            asked = batch.gathered[torch.cat(order)]
            losses["gathering"] = torch.stack(
                [_gathering_loss(parts, asked) for parts in zip(*known, strict=True)]
            ).mean()
        return losses


def _gathering_loss(parts: Sequence[tuple[Tensor, Tensor]], targets: Tensor) -> Tensor:
    """The loss of one head, whose answers come in parts."""
    sides, apart = (torch.cat(found) for found in zip(*parts, strict=True))
    return gathering_loss(sides, apart, targets)


class _Watched:
    """A context that keeps the output of one block of the decoder, never that of the last one."""

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


def window_positions(model: PaliGemmaModel, batch: SceneBatch) -> Tensor | None:
    """Rows float[1, I, D] of the position table for the I patches of the window that a batch shows;
    None for the whole field.
    """
    if batch.corner is None or batch.text.images is None:
        return None
    vision = model.config.vision
    side = batch.text.images.shape[1] // vision.patch_size_px
    (row, column), table = batch.corner, model.vision.pos_embedding
    grid = table.unflatten(1, (vision.grid, vision.grid))
    return grid[:, row : row + side, column : column + side].flatten(1, 2)
