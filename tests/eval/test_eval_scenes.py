"""The scenes benchmark run by something that knows the answers, by nothing, and by a real model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from paligemma.errors import ConfigError
from paligemma.eval.scene_report import SceneReport, prediction_row, to_table, write_files
from paligemma.eval.scene_runner import Asked, SceneEvalOptions, evaluate_scenes, run_scenes
from paligemma.model import PaliGemmaModel
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.vqvae import MaskCodec, load_mask_codec
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.scenes import Scene
from paligemma.tasks.scenes import TASKS, SceneAnswer, scene_suffix
from paligemma.train.tiny import tiny_config

SMALL = SceneEvalOptions(limit=30, batch_size=8, size_px=112)


@pytest.fixture(scope="module")
def codec() -> MaskCodec:
    return load_mask_codec(_embedded() / "mask_codec.safetensors")


@pytest.fixture(scope="module")
def bundle(codec: MaskCodec) -> SimpleNamespace:
    """The embedded architecture at 64 px; random weights so large that its answers vary."""
    tokenizer = Tokenizer.from_file(_embedded() / "tokenizer.model")
    model = PaliGemmaModel(tiny_config(tokenizer.vocab, 64))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15, generator=generator)
        # Small, or every token would only repeat the one before.
        model.text.embed.weight.mul_(0.1)
    return SimpleNamespace(
        model=model,
        processor=Processor(tokenizer, 64),
        mask_codec=codec,
        mode="exact",
        kv_cache_dtype="float32",
        weigh_locations=False,
    )


def _embedded() -> Path:
    return Path(str(resources.files("paligemma"))) / "models" / "tiny"


class _Knows:
    """Answers with the text that training would teach."""

    def __init__(self, codec: MaskCodec) -> None:
        self.codec = codec

    def __call__(self, scenes: Sequence[Scene], asked: Sequence[Asked]) -> list[SceneAnswer]:
        answers = []
        for one in asked:
            scene = scenes[one.picture]
            text = scene_suffix(scene, one.example, self.codec)
            height, width = scene.image.shape[:2]
            found = to_detections(parse_objects(text), (width, height), codec=self.codec)
            answers.append(SceneAnswer(text=text, detections=found))
        return answers


def _silent(scenes: Sequence[Scene], asked: Sequence[Asked]) -> list[SceneAnswer]:
    return [SceneAnswer(text="") for _ in asked]


@pytest.fixture(scope="module")
def perfect(codec: MaskCodec) -> SceneReport:
    return run_scenes(_Knows(codec), SMALL)


@pytest.fixture(scope="module")
def silent() -> SceneReport:
    return run_scenes(_silent, SMALL, name="nobody")


def test_the_taught_answers_are_worth_everything_but_what_the_mask_codec_loses(
    perfect: SceneReport,
) -> None:
    report = perfect
    assert report.figure("detect", "ap50").value == pytest.approx(1.0, abs=1e-9)
    assert report.figure("detect", "ap50_pooled").value == pytest.approx(1.0, abs=1e-9)
    assert report.figure("detect", "precision50").value == 1.0
    # At 112 px one pixel at the border of an object is a large share of it.
    assert 0.85 < report.figure("segment", "miou").value < 1.0
    assert report.figure("answer", "accuracy").value == 1.0
    assert report.figure("ocr", "cer").value == 0.0
    assert report.figure("caption", "exact_match").value == 1.0
    assert report.figure("caption_region", "exact_match").num == 8


def test_silence_is_worth_nothing(silent: SceneReport) -> None:
    report = silent
    assert report.figure("detect", "ap50").value == 0.0
    assert report.figure("segment", "miou").value == 0.0
    assert report.figure("answer", "accuracy").value == 0.0
    assert report.figure("ocr", "cer").value == 1.0
    assert math.isnan(report.figure("detect", "precision50").value)
    assert report.to_json()["tasks"]["detect"]["precision50"]["value"] is None


def test_the_report_names_four_headlines_and_every_slice(perfect: SceneReport) -> None:
    report = perfect.to_json()
    assert list(report["headline"]) == [
        "detect_ap50",
        "segment_miou",
        "answer_accuracy",
        "ocr_cer",
    ]
    kinds = report["tasks"]["answer"]["accuracy"]["by"]
    assert set(kinds) == {"color", "count", "presence", "position", "reading", "comparison"}
    assert sum(one["num"] for one in kinds.values()) == 30
    assert "sign" in report["tasks"]["detect"]["ap50"]["by"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["limit"], report["seed"], report["size_px"]) == (30, 0, 112)


def test_the_interval_holds_the_figure_and_narrows_with_more_pictures() -> None:
    def sometimes(scenes: Sequence[Scene], asked: Sequence[Asked]) -> list[SceneAnswer]:
        right = [scenes[one.picture].seed % 3 > 0 for one in asked]
        return [
            SceneAnswer(text=str(one.example.suffix) if ok else "?")
            for one, ok in zip(asked, right, strict=True)
        ]

    few, many = (
        run_scenes(sometimes, SceneEvalOptions(limit=n, size_px=64, tasks=("answer",))).figure(
            "answer", "accuracy"
        )
        for n in (15, 90)
    )
    assert few.value == many.value == pytest.approx(2 / 3)
    assert few.low < many.low < 2 / 3 < many.high < few.high


def test_files_hold_the_report_every_prediction_once_and_twelve_pictures(
    perfect: SceneReport, tmp_path: Path
) -> None:
    write_files(perfect, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "predictions.jsonl",
        "report.json",
        "scenes.png",
    ]
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["id"] for row in rows}) == len(rows) == len(perfect.outcomes)
    assert rows == [prediction_row(one) for one in perfect.outcomes]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == perfect.to_json()
    # Three columns of two 448 px pictures, four rows.
    with Image.open(tmp_path / "run" / "scenes.png") as sheet:
        assert sheet.width == 3 * 2 * 448 + 4 * 12
        assert sheet.height > 4 * 448


def test_the_table_shows_value_interval_and_number_of_examples(silent: SceneReport) -> None:
    table = to_table(silent)
    assert "nobody on scenes: limit 30, seed 0, size_px 112" in table
    headline = next(line for line in table.splitlines() if line.startswith("reading character"))
    assert headline.split()[-5:] == ["[1.000,", "1.000]", "n", "=", headline.split()[-1]]
    undefined = next(line for line in table.splitlines() if line.startswith("detect precision50"))
    assert undefined.split()[2] == "-"


def test_a_model_sees_each_picture_once_and_answers_alike_in_any_batch(
    bundle: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = bundle.model.encode_image

    def counting(images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return encode(images)

    monkeypatch.setattr(bundle.model, "encode_image", counting)
    tasks = ("answer", "ocr")
    reports = [
        evaluate_scenes(bundle, SceneEvalOptions(limit=3, batch_size=n, size_px=64, tasks=tasks))
        for n in (3, 1)
    ]
    assert encoded == [3, 1, 1, 1]
    said = [{one.id: one.prediction for one in report.outcomes} for report in reports]
    assert said[0] == said[1]
    assert len(set(said[0].values())) >= 4


def test_measuring_leaves_a_training_model_in_training(bundle: SimpleNamespace) -> None:
    bundle.model.train()
    evaluate_scenes(bundle, SceneEvalOptions(limit=1, size_px=64, tasks=("answer",)))
    assert bundle.model.training


def test_without_a_mask_codec_segmentation_scores_nothing(bundle: SimpleNamespace) -> None:
    blind = SimpleNamespace(**{**vars(bundle), "mask_codec": None})
    options = SceneEvalOptions(limit=1, size_px=64, tasks=("segment",))
    assert evaluate_scenes(blind, options).figure("segment", "miou").value == 0.0


def test_mixed_precision_is_honoured(
    bundle: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    encode = bundle.model.encode_image

    def watching(images: torch.Tensor) -> torch.Tensor:
        seen.append(encode(images).dtype)
        return encode(images)

    monkeypatch.setattr(bundle.model, "encode_image", watching)
    options = SceneEvalOptions(limit=1, size_px=64, tasks=("answer",))
    for mode in ("exact", "mixed"):
        evaluate_scenes(SimpleNamespace(**{**vars(bundle), "mode": mode}), options)
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"limit": 0}, "limit must lie in 1..1000000"),
        ({"seed": -1}, "seed must lie in 0..999999"),
        ({"batch_size": 2000}, "batch_size must lie in 1..1024"),
        ({"tasks": ("detect", "sing")}, "got sing"),
        ({"tasks": ()}, f"some of {', '.join(TASKS)}"),
    ],
)
def test_options_out_of_bounds_are_refused(change: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        SceneEvalOptions(**change)  # type: ignore[arg-type]
