"""The scenes benchmark run by something that knows the answers, by nothing, and by a real model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from paligemma.errors import ConfigError
from paligemma.example import Example, FoundObject, Prediction
from paligemma.jobs.run_folder import load_run
from paligemma.model import PaliGemmaModel
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.rle import encode_rle
from paligemma.outputs.vqvae import MaskCodec, load_mask_codec
from paligemma.pipeline.options import RunSettings
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tasks.scenes.rows import (
    EVAL_SEED,
    KINDS,
    benchmark_examples,
    heldout_scene,
    scene_suffix,
    scenes_task,
)
from paligemma.tiny.scene_report import SceneReport, to_table, write_files
from paligemma.tiny.scene_runner import SceneEvalOptions, evaluate_scenes, run_scenes
from paligemma.tiny.start import tiny_config

HEADLINES = ["detect_ap50", "segment_miou", "answer_accuracy", "ocr_cer"]
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
        settings=RunSettings(kv_cache_dtype="float32"),
    )


def _embedded() -> Path:
    return Path(str(resources.files("paligemma"))) / "models" / "tiny"


class _Silent:
    """Says nothing."""

    def settings(self) -> dict[str, object]:
        return {"model": type(self).__name__}

    def read(self, examples: Sequence[Example]) -> None:
        return None

    def answer(self, examples: Sequence[Example], prepared: None) -> list[Prediction]:
        return [Prediction(id=one.id, text="") for one in examples]


class _Knows(_Silent):
    """Answers with the text that training would teach."""

    def __init__(self, codec: MaskCodec) -> None:
        self.codec = codec

    def answer(self, examples: Sequence[Example], prepared: None) -> list[Prediction]:
        return list(map(self._know, examples))

    def _know(self, example: Example) -> Prediction:
        (picture,) = example.pictures
        scene = heldout_scene(picture.index, size_px=picture.size_px)
        (asked,) = benchmark_examples(scene, picture.index, (example.references["task"],))
        text = scene_suffix(scene, asked, self.codec)
        height, width = scene.image.shape[:2]
        found = to_detections(parse_objects(text), (width, height), codec=self.codec)
        objects = tuple(
            FoundObject(
                label=one.label or "",
                box_yxyx=one.box_yxyx,
                mask=None if one.mask is None else encode_rle(one.mask),
            )
            for one in found
        )
        return Prediction(id=example.id, text=text, objects=objects)


class _Sometimes(_Silent):
    """Answers two pictures of three."""

    def answer(self, examples: Sequence[Example], prepared: None) -> list[Prediction]:
        return [
            Prediction(id=e.id, text=e.references["text"] if int(e.unit or 0) % 3 else "?")
            for e in examples
        ]


@pytest.fixture(scope="module")
def perfect(codec: MaskCodec) -> SceneReport:
    return run_scenes(_Knows(codec), SMALL)


@pytest.fixture(scope="module")
def silent() -> SceneReport:
    return run_scenes(_Silent(), SMALL, name="nobody")


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
    few, many = (
        run_scenes(_Sometimes(), SceneEvalOptions(limit=n, size_px=64, kinds=("answer",))).figure(
            "answer", "accuracy"
        )
        for n in (15, 90)
    )
    assert few.value == many.value == pytest.approx(2 / 3)
    assert few.low < many.low < 2 / 3 < many.high < few.high


def test_files_hold_the_report_the_run_and_twelve_pictures(
    codec: MaskCodec, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    report = run_scenes(_Knows(codec), replace(SMALL, limit=12), folder=folder)
    write_files(report, folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "examples.jsonl",
        "predictions.jsonl",
        "report.json",
        "run.json",
        "scenes.png",
    ]
    assert json.loads((folder / "report.json").read_text()) == report.to_json()
    run = load_run(folder)
    asked = {one.id for one in scenes_task(limit=12, size_px=112).read(Path(), "heldout")}
    assert set(run.predictions) == asked
    assert len(asked) > 40
    # Three columns of two 448 px pictures, four rows.
    with Image.open(folder / "scenes.png") as sheet:
        assert sheet.width == 3 * 2 * 448 + 4 * 12
        assert sheet.height > 4 * 448


def test_a_run_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    options = SceneEvalOptions(limit=20, size_px=64, batch_size=3, kinds=("answer",))
    report = run_scenes(_Sometimes(), options, folder=tmp_path)
    path = tmp_path / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    again = run_scenes(_Sometimes(), options, folder=tmp_path)
    assert again.figures == report.figures
    assert path.read_bytes() == whole
    with pytest.raises(ConfigError, match="num_examples was 20, is 5"):
        run_scenes(_Sometimes(), replace(options, limit=5), folder=tmp_path)


def test_the_task_gives_the_figures_of_the_report(
    perfect: SceneReport, silent: SceneReport
) -> None:
    task = scenes_task(limit=SMALL.limit, size_px=SMALL.size_px)
    examples = list(task.read(Path(), "heldout"))
    assert examples[0].id == f"scenes/{EVAL_SEED}/detect"
    quiet = [Prediction(id=one.id, text="") for one in examples]
    # Half of the answers in words are right, and every other box is found.
    half = [
        Prediction(
            id=one.id,
            text=one.references.get("text", "") if k % 2 else "?",
            objects=tuple(
                FoundObject(label=o["label"], box_yxyx=tuple(o["box_yxyx"]), score=1 / (k + 2))
                for k, o in enumerate(one.references.get("objects", [])[k % 2 :])
            ),
        )
        for k, one in enumerate(examples)
    ]

    class Half(_Silent):
        def answer(self, examples: Sequence[Example], prepared: None) -> list[Prediction]:
            by_id = {one.id: one for one in half}
            return [by_id[one.id] for one in examples]

    for predictions, report in ((quiet, silent), (half, run_scenes(Half(), SMALL))):
        measures = {one.name: one for one in task.score(examples, predictions)}
        expected = {
            f"{f.task}_{f.metric}" + (f"/{f.slice}" if f.slice else ""): f.value
            for f in report.figures
        }
        assert sorted(measures) == sorted(expected)
        assert list(measures)[:4] == HEADLINES
        for name, value in expected.items():
            assert measures[name].value == pytest.approx(value, abs=1e-12, nan_ok=True), name
            assert measures[name].num == len(examples)
    assert 0.2 < measures["detect_ap50"].value < 0.9
    assert 0.2 < measures["answer_accuracy"].value < 0.8


def test_the_table_shows_value_interval_and_number_of_examples(silent: SceneReport) -> None:
    table = to_table(silent)
    assert "nobody on scenes: limit 30, seed 0, size_px 112" in table
    headline = next(line for line in table.splitlines() if line.startswith("reading character"))
    assert headline.split()[-5:] == ["[1.000,", "1.000]", "n", "=", headline.split()[-1]]
    undefined = next(line for line in table.splitlines() if line.startswith("detect precision50"))
    assert undefined.split()[2] == "-"


def test_a_model_sees_each_picture_once_and_answers_alike_in_any_batch(
    bundle: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoded: list[int] = []
    encode = bundle.model.encode_image

    def counting(images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return encode(images)

    monkeypatch.setattr(bundle.model, "encode_image", counting)
    said = []
    for n in (3, 1):
        options = SceneEvalOptions(limit=3, batch_size=n, size_px=64, kinds=("answer", "ocr"))
        evaluate_scenes(bundle, options, folder=tmp_path / str(n))
        run = load_run(tmp_path / str(n))
        said.append({name: one.text for name, one in run.predictions.items()})
    # Three pictures with two prompts each, together and one by one.
    assert encoded == [3, 1, 1, 1]
    assert said[0] == said[1]
    assert len(set(said[0].values())) >= 4


def test_measuring_leaves_a_training_model_in_training(bundle: SimpleNamespace) -> None:
    bundle.model.train()
    evaluate_scenes(bundle, SceneEvalOptions(limit=1, size_px=64, kinds=("answer",)))
    assert bundle.model.training


def test_without_a_mask_codec_segmentation_scores_nothing(bundle: SimpleNamespace) -> None:
    blind = SimpleNamespace(**{**vars(bundle), "mask_codec": None})
    options = SceneEvalOptions(limit=1, size_px=64, kinds=("segment",))
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
    options = SceneEvalOptions(limit=1, size_px=64, kinds=("answer",))
    for mode in ("exact", "mixed"):
        settings = RunSettings(mode=mode, kv_cache_dtype="float32")
        evaluate_scenes(SimpleNamespace(**{**vars(bundle), "settings": settings}), options)
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"limit": 0}, "limit must lie in 1..1000000"),
        ({"seed": -1}, "seed must lie in 0..999999"),
        ({"batch_size": 2000}, "batch_size must lie in 1..1024"),
        ({"kinds": ("detect", "sing")}, "got sing"),
        ({"kinds": ()}, f"some of {', '.join(KINDS)}"),
    ],
)
def test_options_out_of_bounds_are_refused(change: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        SceneEvalOptions(**change)  # type: ignore[arg-type]
