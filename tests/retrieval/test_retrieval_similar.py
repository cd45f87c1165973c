"""Pictures like a picture, by the image tower of the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageEnhance

from paligemma import PaliGemma
from paligemma.cli import main
from paligemma.errors import ConfigError, ImageError
from paligemma.pipeline.pictures import read_picture
from paligemma.retrieval.similar import similar_pictures, tower_vectors
from paligemma.scenes import draw_scene

NUM_SCENES = 24


@pytest.fixture(scope="module")
def tiny() -> PaliGemma:
    return PaliGemma.from_pretrained("tiny")


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [Image.fromarray(draw_scene(seed).image) for seed in range(NUM_SCENES)]


def varied(picture: Image.Image) -> Image.Image:
    """The same scene as a photograph of it might be: cut and darker."""
    width, height = picture.size
    cut = (width // 12, height // 16, width - width // 16, height - height // 12)
    return ImageEnhance.Brightness(picture.crop(cut)).enhance(0.8)


def test_a_scene_that_was_cut_and_darkened_is_found_among_others(
    tiny: PaliGemma, scenes: list[Image.Image]
) -> None:
    pixels = [read_picture(one, tiny.processor).pixels for one in scenes]
    changed = [read_picture(varied(one), tiny.processor).pixels for one in scenes]
    cosines = tower_vectors(tiny, changed) @ tower_vectors(tiny, pixels).T
    first = cosines.argmax(1) == torch.arange(NUM_SCENES)
    assert first.float().mean() >= 0.9  # by chance one in 24; 0.975 among 200


def test_scores_do_not_depend_on_the_batch_and_the_same_picture_comes_first(
    tiny: PaliGemma, scenes: list[Image.Image]
) -> None:
    others = [scenes[3], scenes[0], scenes[1], scenes[0]]
    found = similar_pictures(tiny, scenes[0], others, k=4, batch_size=3)
    assert sorted(one.number for one in found[:2]) == [1, 3]
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    alone = similar_pictures(tiny, scenes[0], others, k=4, batch_size=1)
    assert {one.number: one.score for one in alone} == pytest.approx(
        {one.number: one.score for one in found}, abs=1e-5
    )


def test_a_bad_picture_is_left_out_or_an_error(tiny: PaliGemma, scenes: list[Image.Image]) -> None:
    faults: list[int] = []
    others = [b"no picture", scenes[1]]
    found = similar_pictures(tiny, scenes[0], others, on_fault=lambda n, _: faults.append(n))
    assert ([one.number for one in found], faults) == ([1], [0])
    with pytest.raises(ImageError):
        similar_pictures(tiny, scenes[0], others)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        similar_pictures(tiny, scenes[0], others, k=0)


def test_the_command_names_the_most_similar_and_leaves_out_the_picture_itself(
    tmp_path: Path, scenes: list[Image.Image]
) -> None:
    for number, scene in enumerate(scenes[:4]):
        scene.save(tmp_path / f"{number}.png")
    varied(scenes[2]).save(tmp_path / "wanted.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    asked = ["similar", str(tmp_path / "wanted.png"), str(tmp_path), "--model", "tiny"]
    done = CliRunner().invoke(main, [*asked, "-k", "3", "--json"])
    body = json.loads(done.stdout)
    assert Path(body["similar"][0]["path"]).name == "2.png"
    assert len(body["similar"]) == 3
    assert "wanted.png" not in json.dumps(body["similar"])
    assert "broken.png is left out" in done.stderr
    plain = CliRunner().invoke(main, [*asked, "-k", "1"])
    assert plain.stdout.split()[1] == str(tmp_path / "2.png")


def test_the_command_needs_another_picture(tmp_path: Path, scenes: list[Image.Image]) -> None:
    one = tmp_path / "one.png"
    scenes[0].save(one)
    done = CliRunner().invoke(main, ["similar", str(one), str(one), "--model", "tiny"])
    assert done.exit_code == 2
    assert "no picture but the one to compare" in done.stderr
