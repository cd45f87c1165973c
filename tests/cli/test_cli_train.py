"""`paligemma train`: what is checked before minutes of work, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from paligemma.cli.train import train_group
from paligemma.errors import PaliGemmaError
from paligemma.outputs.vqvae import load_mask_codec
from paligemma.tiny import mask_codec
from paligemma.tiny.mask_codec import MaskCodecTraining, MaskSet, collect_masks


def train(*arguments: object) -> Result:
    return CliRunner().invoke(train_group, [str(one) for one in arguments])


@pytest.fixture
def few_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty masks instead of the sixteen thousand that take a minute to draw."""

    def few(num_masks: int, **options: Any) -> MaskSet:
        return collect_masks(min(num_masks, 40), **options)

    monkeypatch.setattr(mask_codec, "collect_masks", few)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused is refused before any mask is drawn."""

    def drawing(*_: object, **__: object) -> MaskSet:
        raise AssertionError("masks were drawn")

    monkeypatch.setattr(mask_codec, "collect_masks", drawing)


@pytest.mark.usefixtures("few_masks")
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_codec_of_few_steps_is_trained_and_written_into_a_new_folder(
    tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "new" / "codec.safetensors"
    result = train("codec", "--steps", steps, "--output", path)
    assert result.exit_code == 0, result.output
    assert f"wrote {path}: IoU" in result.stdout
    assert load_mask_codec(path).config.num_codes == 32
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["options"]["steps"] == record["curve"][-1]["step"] == steps


@pytest.mark.parametrize(("steps", "warmup"), [(100, 50), (200, 100), (1000, 200)])
def test_a_short_run_warms_up_for_half_of_it_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: int, warmup: int
) -> None:
    seen: list[MaskCodecTraining] = []

    def keep(_: Path, options: MaskCodecTraining, **__: object) -> dict[str, Any]:
        seen.append(options)
        return {"heldout": {"all": {"iou": 0.0}}}

    monkeypatch.setattr(mask_codec, "train_codec_file", keep)
    assert train("codec", "--steps", steps, "--output", tmp_path / "c.npz").exit_code == 0
    assert (seen[0].steps, seen[0].warmup_steps) == (steps, warmup)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--steps", "0"], "steps of a codec training must be 1..10000000, got 0"),
        (["--seed", "-1"], "seed of a codec training must be 0..18446744073709551615, got -1"),
        (["--seed", str(2**64)], "seed of a codec training must be 0..18446744073709551615"),
        (["--output", "codec.txt"], "must end in .npz or .safetensors, got codec.txt"),
        (["--output", "file/codec.npz"], "needs a folder that can be written, got file"),
    ],
)
def test_what_a_codec_training_cannot_do_is_refused_before_any_mask_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], rule: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    error = train("codec", *arguments).exception
    assert isinstance(error, PaliGemmaError)
    assert rule in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
