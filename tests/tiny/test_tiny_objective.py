"""The objective is the original's loss plus the patch losses, however its rows are batched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from scene_training import FIELD_PX, small_model, small_objective, small_source

from paligemma.model import PaliGemmaModel
from paligemma.tiny.data import SceneBatch
from paligemma.tiny.dense import masked_cross_entropy, patch_losses
from paligemma.tiny.edges import edge_loss
from paligemma.tiny.gathering import ends_of_prompts, gathering_loss
from paligemma.tiny.locations import spread_losses
from paligemma.tiny.naming import naming_loss
from paligemma.tiny.objective import (
    _PLACE_SIGMA_BINS,
    PATCH_WEIGHTS,
    LossWeights,
    SceneObjective,
)
from paligemma.train.loss import token_losses, training_loss


def plain(model: PaliGemmaModel, **options: float) -> SceneObjective:
    torch.manual_seed(0)
    widths = (model.config.vision.width, model.config.text.width)
    weights = LossWeights(**({"patch": 0.0} | options))
    return SceneObjective(widths[0], text_width=widths[1], weights=weights)


@pytest.fixture(scope="module")
def whole_field() -> SceneBatch:
    return small_source(window_px=FIELD_PX, num_scenes=3, prompts_per_scene=3).batch(0)


@pytest.mark.parametrize("sigma_bins", [0.0, 4.0])
def test_without_patches_it_is_the_training_loss_of_the_same_rows(
    whole_field: SceneBatch, sigma_bins: float
) -> None:
    model = small_model()
    with torch.no_grad():
        model.projector.weight.normal_(std=0.1)
        # Pictures repeated for each of their prompts, all rows in one batch.
        text = whole_field.text
        assert text.images is not None
        repeated = replace(text, images=text.images.repeat_interleave(3, dim=0))
        spread = partial(spread_losses, loc0=model.config.vocab.loc0, sigma_bins=4.0)
        token_loss = spread if sigma_bins else token_losses
        expected = training_loss(model, repeated, token_loss=token_loss).loss
        loss, parts = plain(model, loc_sigma_bins=sigma_bins)(model, whole_field)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts.keys() == {"text"}


def test_every_part_is_added_with_its_weight(whole_field: SceneBatch) -> None:
    model = small_model()
    objective = small_objective(model, edge=0.25)
    with torch.no_grad():
        loss, parts = objective(model, whole_field)
        assert whole_field.text.images is not None
        answers = objective.heads(model.vision(whole_field.text.images))
        losses = patch_losses(answers, whole_field.patches)
    assert losses.keys() == PATCH_WEIGHTS.keys()
    located = {"edge", "place"}
    assert {f"patch_{name}" for name in losses} | located | {"text"} == parts.keys()
    patches = sum(PATCH_WEIGHTS[name] * losses[name] for name in losses)
    expected = parts["text"] + 0.5 * patches + 0.25 * sum(parts[name] for name in located)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_edges_and_places_are_those_of_each_patch(whole_field: SceneBatch) -> None:
    model = small_model()
    objective = small_objective(model, edge=0.25)
    head, loc0 = objective.edges, model.config.vocab.loc0
    assert head is not None
    assert whole_field.text.images is not None
    edges, places = [], []
    with torch.no_grad():
        model.projector.weight.normal_(std=0.1)
        _, parts = objective(model, whole_field)
        soft = model.encode_image(whole_field.text.images)
        table = model.text.embed.weight[loc0 : loc0 + 1024]
        for picture, patch in (whole_field.patches["label"] > 0).nonzero().tolist():
            # Boxes are in units of 32 px; the field is 96 px wide.
            box = whole_field.patches["box"][picture, patch][None] * 32 / FIELD_PX
            assert -0.01 < box.min() < box.max() < 1.01
            edges.append(edge_loss(head(soft[picture, patch][None], table), box, 4.0))
        for picture in range(3):
            for patch in range(0, 36, 5):
                centre = torch.tensor([[(patch // 6 + 0.5) / 6, (patch % 6 + 0.5) / 6]])
                logits = head.places(soft[picture, patch][None], table)
                places.append(edge_loss(logits, centre, _PLACE_SIGMA_BINS))
    assert len(edges) > 10
    assert parts["edge"].item() == pytest.approx(torch.stack(edges).mean().item(), rel=1e-5)
    assert parts["place"].item() == pytest.approx(torch.stack(places).mean().item(), rel=1e-5)


def test_masks_names_and_what_is_gathered_are_asked_of_the_right_tokens() -> None:
    model = small_model(text_depth=4)
    with torch.no_grad():
        model.projector.weight.normal_(std=0.1)
    weights = {"mask_token": 0.3, "naming": 2.0, "gathering": 0.7}
    objective = small_objective(model, **weights)
    batch = small_source(
        window_px=FIELD_PX, num_scenes=3, prompts_per_scene=2, mask_tokens=True, naming=True
    ).batch(0)
    assert objective.mask_tokens is not None
    assert objective.naming is not None
    assert objective.gathering is not None
    with torch.no_grad():
        loss, parts = objective(model, batch)
        plain_loss, plain_parts = small_objective(model)(model, batch)
        extra = 0.3 * parts["mask_tokens"] + 2.0 * parts["naming"] + 0.7 * parts["gathering"]
        assert loss.item() == pytest.approx((plain_loss + extra).item(), rel=1e-4)
        assert plain_parts.keys() == parts.keys() - {"mask_tokens", "naming", "gathering"}

        # Row by row, with only the first blocks of the decoder.
        assert batch.text.images is not None
        assert batch.named is not None
        assert batch.gathered is not None
        assert batch.text.mask_loss is not None
        soft = model.encode_image(batch.text.images)
        seg0 = model.config.vocab.seg0
        shown = batch.patches["label"] > 0
        logits = objective.mask_tokens(soft[shown], model.text.embed.weight[seg0 : seg0 + 128])
        masks = masked_cross_entropy(logits, batch.patches["mask_tokens"][shown])
        assert parts["mask_tokens"].item() == pytest.approx(masks.item(), rel=1e-5)
        model.text.norm = torch.nn.Identity()

        def states(row: int) -> torch.Tensor:
            x, mask, _ = model._join(
                soft[row // 2][None],
                batch.text.tokens[row : row + 1, :-1],
                batch.text.mask_ar[row : row + 1, :-1],
                None,
            )
            return model.text(x, torch.arange(x.shape[1])[None], mask)

        del model.text.blocks[3:]
        ends = ends_of_prompts(batch.text.mask_loss)
        last = torch.cat([states(row)[:, soft.shape[1] + int(ends[row])] for row in range(6)])
        late = gathering_loss(*objective.gathering[1](last), batch.gathered)
        del model.text.blocks[2:]
        last = torch.cat([states(row)[:, soft.shape[1] + int(ends[row])] for row in range(6)])
        early = gathering_loss(*objective.gathering[0](last), batch.gathered)
        known = (early + late) / 2
        assert parts["gathering"].item() == pytest.approx(known.item(), rel=1e-4)
        each = [
            naming_loss(objective.naming(states(row)[:, : soft.shape[1]]), named[None])
            for row, named in enumerate(batch.named)
            if not named.isnan().any()
        ]
    assert parts["naming"].item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-4)


def test_a_batch_without_text_trains_tower_and_heads_alone() -> None:
    model = small_model()
    objective = small_objective(model)
    loss, parts = objective(model, small_source(prompts_per_scene=0).batch(0))
    loss.backward()
    assert "text" not in parts
    assert model.vision.patch_embed.proj.weight.grad is not None
    assert objective.heads.proj.weight.grad is not None
    assert all(p.grad is None for p in model.text.parameters())


def test_a_window_uses_the_part_of_the_position_table_that_it_shows() -> None:
    model = small_model()
    objective = small_objective(model)
    batch = small_source(prompts_per_scene=0).batch(3)
    assert batch.corner is not None
    loss, _ = objective(model, batch)
    loss.backward()
    table = model.vision.pos_embedding.grad
    assert table is not None
    touched = table[0].view(6, 6, -1).abs().sum(dim=-1) > 0
    row, column = batch.corner
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[row : row + 4, column : column + 4] = True
    assert torch.equal(touched, expected)


def test_every_parameter_gets_a_gradient_from_a_whole_batch(whole_field: SceneBatch) -> None:
    model = small_model()
    with torch.no_grad():
        # Zero at the start, as in the original: the tower would learn from patches alone.
        model.projector.weight.normal_(std=0.1)
    objective = small_objective(model)
    loss, _ = objective(model, whole_field)
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
