"""A retriever is taught in one call: read pairs, measure, train, measure again, keep.

folder/recipe.json   what was run
folder/train/        checkpoints and metrics.jsonl; the same call goes on from here
folder/adapter/      the adapter with the head, which ColPali loads
folder/report.json   nDCG@5 on held-out pairs, before and after
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from paligemma.adapt.checkpointing import checkpoint_blocks
from paligemma.adapt.lora import Adapter, attach
from paligemma.errors import ConfigError
from paligemma.eval.vidore import DEFAULT_K, retrieval_ndcg
from paligemma.jobs.model_answerer import fingerprint
from paligemma.kernels.linear import Linear
from paligemma.one_writer import one_writer
from paligemma.pipeline.loading import LoadOptions
from paligemma.pipeline.options import chosen
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.retrieval.checkpoint import EMBEDDED_ADAPTER, HEADS
from paligemma.retrieval.colpali import ColPali
from paligemma.retrieval.keeping import save_retriever
from paligemma.retrieval.objective import PairObjective
from paligemma.retrieval.presets import PRESETS, Preset, find_preset
from paligemma.retrieval.scores import score_matrix
from paligemma.train.distributed import world
from paligemma.train.loop import LoopOptions, train
from paligemma.tuning.folder import ADAPTER, REPORT, TRAIN, begin, require_own
from paligemma.tuning.pairs import Pair, PairSource, read_pairs
from paligemma.tuning.recipe import COMPUTE
from paligemma.tuning.retriever_recipe import RetrieverKeywords, RetrieverRecipe
from paligemma.tuning.watching import say
from paligemma.weights.adapter import load_adapter, resolve_base
from paligemma.weights.catalog import EMBEDDED, embedded_folder
from paligemma.whole_file import write_json

logger = logging.getLogger(__name__)

_MAX_SHOWN = 5
_BEFORE = "before.json"


@dataclass(frozen=True, kw_only=True)
class RetrieverRun:
    """What a training gave.

    Attributes:
        folder: folder of the run.
        result: folder of adapter and head, for `ColPali.from_pretrained`.
        before, after: nDCG@5 on held-out pairs, in [0, 1]; None where none are held out.
        num_held_out: held-out pairs.
        skipped: a sentence for each bad row.
    """

    folder: Path
    result: Path
    before: float | None
    after: float | None
    num_held_out: int
    skipped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A retriever to be trained: a model with its adapter, head and preset, and its base's name."""

    pg: PaliGemma
    adapter: Adapter
    head: nn.Module
    preset: Preset
    base: str


def train_retriever(
    model: str = "tiny",
    *,
    data: str | Path,
    output: str | Path,
    preset: Preset | str | None = None,
    new_head: bool = False,
    device: str | None = None,
    quant: str | None = None,
    num_workers: int = 1,
    progress: bool = True,
    **options: Unpack[RetrieverKeywords],
) -> RetrieverRun:
    """Teach a model to find pages, or go on with a run that was cut.

    Args:
        model: a ColPali, as `ColPali.from_pretrained` takes it; with `new_head` any PaliGemma. The
            adapter of one that has an adapter is gone on with.
        data: pairs, see `tuning.pairs`.
        output: folder of the run; new, or of the same run.
        preset: what stands around queries and pages; None takes the model's own, for a new head
            that of ColPali v1.3, or tiny's.
        new_head: draw the projection from the seed instead of loading it.
        device: as in `LoadOptions`.
        quant: how the frozen layers are kept, such as "nf4".
        num_workers: processes that read pages.
        progress: show bars on standard error.
        options: fields of `RetrieverRecipe`.

    Raises:
        DataError: no file of pairs, or fewer than two pages.
        ConfigError: an option is out of its range, or several processes are started.
        CheckpointError: another run lies in the folder, or the model has no projection.
    """
    if world().size > 1:
        raise ConfigError(
            "a retriever is trained by one process, whose batch part_size divides, got "
            f"{world().size}; start it without torchrun"
        )
    recipe, folder = chosen(RetrieverRecipe, options), Path(output)
    rows = read_pairs(Path(data))
    for sentence in rows.skipped[:_MAX_SHOWN]:
        logger.warning("skipped: %s", sentence)
    if len(rows.skipped) > _MAX_SHOWN:
        logger.warning("skipped: %d rows more; see %s", len(rows.skipped), folder / REPORT)
    begun = _begun(model, recipe, preset, new_head=new_head, device=device, quant=quant)
    described = {
        "model": model,
        "base": begun.base,
        "weights": fingerprint(begun.pg.model),
        "task": "retrieval",
        "new_head": new_head,
        "preset": begun.preset.to_json(),
        "quant": quant,
        "rows": _digest(rows.learnt),
        "held_out": _digest(rows.held_out),
        **recipe.to_json(),
    }
    with one_writer(folder):
        require_own(folder)
        begin(folder, described)
        before = _stored_before(folder)
        if before is None:
            before = _measured(begun, rows.held_out)
            write_json(folder / _BEFORE, {"ndcg": before})
        _train(begun, recipe, rows.learnt, folder, described, num_workers, progress)
        result = folder / ADAPTER
        if not result.exists():
            save_retriever(
                begun.adapter,
                begun.pg.model,
                begun.head,
                result,
                base=begun.base,
                preset=begun.preset,
            )
        after = _measured(begun, rows.held_out)
        report = {
            "recipe": described,
            "rows": {"learnt": len(rows.learnt), "held_out": len(rows.held_out)},
            f"ndcg@{DEFAULT_K}": {"before": before, "after": after},
            "skipped": list(rows.skipped),
        }
        write_json(folder / REPORT, report)
    return RetrieverRun(
        folder=folder,
        result=result,
        before=before,
        after=after,
        num_held_out=len(rows.held_out),
        skipped=rows.skipped,
    )


def _begun(
    model: str,
    recipe: RetrieverRecipe,
    preset: Preset | str | None,
    *,
    new_head: bool,
    device: str | None,
    quant: str | None,
) -> _Begun:
    options: dict[str, Any] = {"mode": "exact", "device": device, "quant": quant}
    chosen(LoadOptions, options)
    if new_head:
        pg = PaliGemma.from_pretrained(model, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            drawn = nn.Linear(pg.config.text.width, recipe.dim)
        head = Linear(drawn.in_features, drawn.out_features)
        head.load_state_dict(drawn.state_dict())
        stated = find_preset(preset) if isinstance(preset, str) else preset
        stated = stated or PRESETS[EMBEDDED if model == EMBEDDED else "v1.3"]
        logger.info("the projection of width %d is drawn from seed %d", recipe.dim, recipe.seed)
        place, base = None, model
    else:
        colpali = ColPali.from_pretrained(model, preset=preset, **options)
        pg, head, stated = colpali.pg, colpali.head, colpali.preset
        place, base = _adapter_of(model)
    if place is None:
        adapter = Adapter.new(pg.model, recipe.lora(), seed=recipe.seed)
    else:
        adapter = load_adapter(place, pg.model, beside=HEADS)
        for update in adapter.updates.values():
            update.dropout = recipe.lora_dropout
    attach(pg.model, adapter)
    if recipe.checkpointing:
        checkpoint_blocks([*pg.model.vision.blocks, *pg.model.text.blocks])
    head = head.to(pg.model.device).requires_grad_(True)
    return _Begun(pg=pg, adapter=adapter, head=head, preset=stated, base=base)


def _adapter_of(model: str) -> tuple[Path | None, str]:
    """The folder of the adapter that a ColPali is, if it is one, and the name of its base."""
    if model == EMBEDDED:
        return embedded_folder() / EMBEDDED_ADAPTER, EMBEDDED
    checkpoint, place = resolve_base(model, None, may_be_adapter=True)
    return place, model if place is None else str(checkpoint.name)


def _train(
    begun: _Begun,
    recipe: RetrieverRecipe,
    pairs: Sequence[Pair],
    folder: Path,
    described: dict[str, Any],
    num_workers: int,
    progress: bool,
) -> None:
    model = begun.pg.model
    steps, batch_size = recipe.num_steps(len(pairs)), min(recipe.batch_size, len(pairs))
    say(progress, f"{len(pairs):,} pairs, {steps:,} updates of {batch_size:,}")
    name = recipe.compute or ("bfloat16" if model.device.type == "cuda" else "float32")
    train(
        model,
        PairObjective(
            begun.head, recipe.losses(), part_size=recipe.part_size, compute_dtype=COMPUTE[name]
        ),
        PairSource(
            pairs=pairs,
            preset=begun.preset,
            processor=begun.pg.processor,
            batch_size=batch_size,
            num_negatives=recipe.num_negatives,
            seed=recipe.seed,
        ),
        recipe.optim(),
        LoopOptions(
            total_steps=steps,
            log_every=max(1, min(50, steps // 20)),
            save_every=max(10, min(250, steps // 10)),
            num_workers=num_workers,
            progress=progress,
            keeps_frozen=False,
            dropout_seed=recipe.seed,
        ),
        folder / TRAIN,
        settings=described,
    )


def _measured(begun: _Begun, pairs: Sequence[Pair]) -> float | None:
    """nDCG@5 of held-out queries among the pages that they ask for; None without pairs."""
    if not pairs:
        return None
    model = begun.pg.model.eval()
    colpali = ColPali(begun.pg, begun.head.eval(), begun.preset)  # type: ignore[arg-type]
    pages = {pair.page.key: pair.page for pair in pairs}
    max_pixels = begun.pg.processor.reader.max_pixels
    read = [
        colpali.encode_pages([page.picture.read(max_pixels)])[0].values for page in pages.values()
    ]
    asked = [one.values for one in colpali.encode_queries([pair.query for pair in pairs])]
    scores = score_matrix(asked, read)
    # One query may be asked of several pages.
    relevance: dict[str, dict[str, int]] = {}
    for pair in pairs:
        relevance.setdefault(pair.query, {})[pair.page.key] = 1
    ranked = {
        pair.query: dict(zip(pages, row, strict=True))
        for pair, row in zip(pairs, scores.tolist(), strict=True)
    }
    model.train()
    return retrieval_ndcg(ranked, relevance).value


def _stored_before(folder: Path) -> float | None:
    path = folder / _BEFORE
    try:
        value = json.loads(path.read_text())["ndcg"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return value if isinstance(value, float) else None


def _digest(pairs: Sequence[Pair]) -> str:
    """A name of some rows: what is asked, and the pages by their keys."""
    digest = hashlib.sha256()
    for pair in pairs:
        row = [pair.query, pair.page.key, [one.key for one in pair.negatives]]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]
