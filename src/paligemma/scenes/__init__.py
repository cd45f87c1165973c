"""Labelled pictures drawn from a seed: shapes, real handwriting, signs and everyday things."""

from paligemma.scenes.draw import draw_scene
from paligemma.scenes.examples import (
    DEFAULT_WEIGHTS,
    KINDS,
    detect_all,
    sample_example,
    scene_examples,
)
from paligemma.scenes.language import plural
from paligemma.scenes.scene import (
    COLORS,
    LABELS,
    SHAPES,
    Scene,
    SceneExample,
    SceneObject,
    SceneOptions,
)
from paligemma.scenes.thing_names import THINGS

__all__ = [
    "COLORS",
    "DEFAULT_WEIGHTS",
    "KINDS",
    "LABELS",
    "SHAPES",
    "THINGS",
    "Scene",
    "SceneExample",
    "SceneObject",
    "SceneOptions",
    "detect_all",
    "draw_scene",
    "plural",
    "sample_example",
    "scene_examples",
]
