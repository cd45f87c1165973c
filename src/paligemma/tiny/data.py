"""Batches of drawn scenes with their targets, by step number."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from paligemma.batch import Batch
from paligemma.outputs.vqvae import MaskCodec, crop_mask
from paligemma.processing.processor import Processor
from paligemma.processing.resize import BICUBIC, resize
from paligemma.scenes import Scene, draw_scene, sample_example
from paligemma.tasks.scenes.rows import Box, scene_prefix, scene_suffix
from paligemma.tiny.dense import patch_targets
from paligemma.tiny.gathering import gathered
from paligemma.tiny.mask_tokens import mask_token_targets
from paligemma.tiny.naming import named_objects, named_patches
from paligemma.tiny.stages import Stage


@dataclass(frozen=True, kw_only=True)
class SceneBatch:
    """Scenes with prompts and with the targets of the auxiliary losses.

    Attributes:
        text: B images and B*P rows of text, P consecutive rows for each image; there may be no
            rows at all.
        corner: (row, column) of the first patch in the field where the pictures are a window of
            it; None where they show the whole field.
        patches: fields of `PatchTargets`, each stacked to [B, I, ...], and `mask_tokens`
            int64[B, I, 4] where the source makes them.
        named: float32[B*P, I, 4], targets of `tiny.naming`, where the source makes them.
        gathered: float32[B*P, 2, 4], targets of `tiny.gathering`, where the source makes them.
    """

    text: Batch
    corner: tuple[int, int] | None = None
    patches: dict[str, Tensor] = field(default_factory=dict)
    named: Tensor | None = None
    gathered: Tensor | None = None

    def to(self, device: torch.device) -> "SceneBatch":
        """The same batch with all tensors on a device."""
        return replace(
            self,
            text=self.text.to(device),
            patches={name: x.to(device) for name, x in self.patches.items()},
            named=None if self.named is None else self.named.to(device),
            gathered=None if self.gathered is None else self.gathered.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """Batches of scenes that are drawn anew for every step.

    Attributes:
        stage: numbers and kinds of pictures, prompts and targets; the processor sets their size.
        processor: makes the token rows; its image size is the side of the drawn pictures.
        field_px: side of the model's input; larger than the pictures where they are windows of it.
        codec: turns masks into mask tokens; None where nothing is segmented.
        text_len: largest number of tokens that the model reads.
        seed: first scene seed; evaluation draws from another range.
    """

    stage: Stage
    processor: Processor
    field_px: int
    codec: MaskCodec | None
    patch_px: int
    text_len: int
    seed: int

    def batch(self, step: int) -> SceneBatch:
        """Draw the batch of a step, counted from 0; equal steps give equal batches."""
        rng = np.random.default_rng((self.seed, step))
        first = self.seed + step * self.stage.num_scenes
        scenes = [self._draw(first + k, rng) for k in range(self.stage.num_scenes)]
        corner = self._corner(rng)
        targets = [patch_targets(scene, self.patch_px, corner or (0, 0)) for scene in scenes]
        patches = {
            name: torch.from_numpy(np.stack([getattr(one, name) for one in targets]))
            for name in ("label", "color", "value", "chars", "order", "box")
        }
        if self.stage.losses.mask_token and self.codec is not None:
            owners = [one.owner for one in targets]
            patches["mask_tokens"] = self._mask_tokens(scenes, owners, self.codec)
        pictures = torch.stack([self.processor.pixels(scene.image) for scene in scenes])
        if self.codec is None or not self.stage.prompts_per_scene:
            text = Batch.from_rows([], pad=self.processor.vocab.pad, images=pictures)
            return SceneBatch(text=text, patches=patches, corner=corner)
        prefixes, suffixes, named, known = [], [], [], []
        locate = partial(self._locate, corner=corner)
        for scene, target in zip(scenes, targets, strict=True):
            for _ in range(self.stage.prompts_per_scene):
                example = sample_example(scene, rng, self.stage.kinds)
                prefixes.append(scene_prefix(example, locate))
                suffixes.append(scene_suffix(scene, example, self.codec, locate))
                if self.stage.losses.naming:
                    of_prompt = named_objects(scene, example)
                    has_two = example.kind in ("comparison", "neighbour")
                    named.append(self._named(scene, target.owner, of_prompt))
                    known.append(gathered(of_prompt, scene, has_two=has_two))
        rows = self.processor.training_batch(None, prefixes, suffixes, text_len=self.text_len)
        return SceneBatch(
            text=replace(rows.trim(), images=pictures),
            patches=patches,
            corner=corner,
            named=torch.from_numpy(np.stack(named)) if named else None,
            gathered=torch.from_numpy(np.stack(known)) if known else None,
        )

    def _mask_tokens(
        self, scenes: Sequence[Scene], owners: Sequence[np.ndarray], codec: MaskCodec
    ) -> Tensor:
        """Codewords under the points of every patch, int64[B, I, 4]; all masks go in at once."""
        boxes = [np.array([one.box_yxyx for one in scene.objects]) for scene in scenes]
        crops = [
            crop_mask(scene.mask(k), box)
            for scene, of_scene in zip(scenes, boxes, strict=True)
            for k, box in enumerate(of_scene)
        ]
        codes = codec.encode(torch.from_numpy(np.stack(crops))).split([len(one) for one in boxes])
        found = [
            mask_token_targets(
                of_scene, box * scene.image.shape[0], of_objects.numpy(), self.patch_px
            )
            for scene, of_scene, box, of_objects in zip(scenes, owners, boxes, codes, strict=True)
        ]
        return torch.from_numpy(np.stack(found))

    def _named(
        self, scene: Scene, owners: np.ndarray, named: tuple[set[int], set[int]] | None
    ) -> np.ndarray:
        grid = scene.image.shape[0] // self.patch_px
        boxes = np.array([one.box_yxyx for one in scene.objects])
        cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 * grid).astype(int).clip(max=grid - 1)
        centres = cells[:, 0] * grid + cells[:, 1]
        return named_patches(named, owners, centres)

    def _corner(self, rng: np.random.Generator) -> tuple[int, int] | None:
        spare = (self.field_px - self.processor.image_size_px) // self.patch_px
        if not spare:
            return None
        row, column = rng.integers(spare + 1, size=2)
        return int(row), int(column)

    def _locate(self, box_yxyx: Box, corner: tuple[int, int] | None) -> Box:
        """Move a normalised box of the picture to its place in the normalised field."""
        if corner is None:
            return box_yxyx
        share = self.processor.image_size_px / self.field_px
        top, left = (place * self.patch_px / self.field_px for place in corner)
        y0, x0, y1, x1 = (edge * share for edge in box_yxyx)
        return y0 + top, x0 + left, y1 + top, x1 + left

    def _draw(self, seed: int, rng: np.random.Generator) -> Scene:
        side = self.processor.image_size_px
        hw = (side, side)
        options = self.stage.scenes
        if self.stage.thing_pictures and rng.random() >= self.stage.thing_pictures:
            options = replace(options, thing_share=0.0)
        if rng.random() < self.stage.squashed_share:
            long_side = int(side * rng.uniform(1.0, 1.5))
            hw = (side, long_side) if rng.random() < 0.75 else (long_side, side)
        return _squashed(draw_scene(seed, replace(options, size_hw=hw)), side)


def _squashed(scene: Scene, side: int) -> Scene:
    """Resize a scene to a square without keeping its aspect, as the processor resizes pictures."""
    height, width = scene.image.shape[:2]
    if height == width == side:
        return scene
    rows = (np.arange(side) + 0.5) * height / side
    columns = (np.arange(side) + 0.5) * width / side
    down, across = side / height, side / width
    objects = tuple(
        replace(
            one,
            char_boxes=tuple(
                (char, top * down, left * across, bottom * down, right * across)
                for char, top, left, bottom, right in one.char_boxes
            ),
        )
        for one in scene.objects
    )
    return Scene(
        image=resize(scene.image, side, BICUBIC),
        objects=objects,
        object_map=scene.object_map[rows.astype(int)[:, None], columns.astype(int)],
        seed=scene.seed,
    )
