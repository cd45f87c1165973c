"""What a retriever learns by: the head beside a model, and the loss of a batch of pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paligemma.batch import Batch
from paligemma.model import PaliGemmaModel
from paligemma.retrieval.colpali import embed
from paligemma.retrieval.losses import PairLossConfig, VectorRows, in_parts, pair_loss


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Queries with their pages.

    Attributes:
        queries: Q rows of text.
        pages: P pictures with their prompts; hard negatives follow those that are asked for.
        page_of: number of the right page of each query.
        num_negatives: how many of the last pages are hard negatives of each query, in the order of
            the queries.
    """

    queries: Batch
    pages: Batch
    page_of: tuple[int, ...]
    num_negatives: tuple[int, ...] = ()


class PairObjective(nn.Module):
    """Objective of the training loop; the head is trained beside the model.

    Args:
        head: projection of the decoder's width to that of the vectors.
        config: the loss.
        part_size: most pages, and most queries, whose activations are kept at once; see
            `in_parts`.
        compute_dtype: dtype of the products; the loss is computed in float32.
    """

    def __init__(
        self,
        head: nn.Module,
        config: PairLossConfig,
        *,
        part_size: int | None = None,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.head, self.config, self.part_size = head, config, part_size
        self.compute_dtype = compute_dtype

    def forward(self, model: PaliGemmaModel, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss float32[], and `first`: the share of the queries whose page is ranked first."""
        queries, pages = self._embed(model, batch.queries), self._embed(model, batch.pages)
        num_hard = sum(batch.num_negatives)
        negatives = None
        if num_hard:
            cut = len(pages) - num_hard
            negatives = VectorRows(values=pages.values[cut:], valid=pages.valid[cut:])
            pages = VectorRows(values=pages.values[:cut], valid=pages.valid[:cut])
        loss, first = pair_loss(
            queries,
            pages,
            self.config,
            page_of=batch.page_of,
            negatives=negatives,
            num_negatives=batch.num_negatives,
        )
        return loss, {"first": first}

    def _embed(self, model: PaliGemmaModel, rows: Batch) -> VectorRows:
        device, dtype = model.device, self.compute_dtype

        def part(start: int, end: int) -> tuple[Tensor, Tensor]:
            some = rows.rows(slice(start, end)).trim().to(device)
            with torch.autocast(
                device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False
            ):
                return embed(model, self.head, some)

        return in_parts(part, rows.num_examples, self.part_size)
