"""The drawn scenes run by something that knows the answers, by nothing, and by a real model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma.errors import ConfigError
from paligemma.eval.figures import Figure
from paligemma.eval.options import EvalOptions
from paligemma.eval.report import Report, make_report, to_table
from paligemma.eval.runner import evaluate
from paligemma.eval.scored import score_run
from paligemma.example import Example, FoundObject, Prediction
from paligemma.jobs.answerer import Answerer
from paligemma.jobs.run_folder import Run
from paligemma.model import PaliGemmaModel
from paligemma.outputs.assemble import to_detections
from paligemma.outputs.parse import parse_objects
from paligemma.outputs.rle import encode_rle
from paligemma.outputs.vqvae import MaskCodec, load_mask_codec
from paligemma.pipeline.options import RunSettings
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.processing.processor import Processor
from paligemma.processing.tokenizer import Tokenizer
from paligemma.tasks.scenes.rows import (
    EVAL_SEED,
    SCENE_KINDS,
    benchmark_examples,
    heldout_scene,
    scene_suffix,
    scenes_task,
)
from paligemma.tasks.task import Task
from paligemma.tiny.contact_sheet import contact_sheet
from paligemma.tiny.start import tiny_config

HEADLINES = ["detect_ap50", "segment_miou", "answer_accuracy", "ocr_cer"]
SMALL = {"limit": 30, "size_px": 112}
EMBEDDED = Path(str(resources.files("paligemma"))) / "models" / "tiny"


@pytest.fixture(scope="module")
def codec() -> MaskCodec:
    return load_mask_codec(EMBEDDED / "mask_codec.safetensors")


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


def run(answerer: Answerer, task: Task, folder: Path) -> Run:
    return evaluate(task, answerer, None, "heldout", EvalOptions(), folder, model="somebody")


def report(answerer: Answerer, task: Task, folder: Path) -> Report:
    return make_report(score_run(run(answerer, task, folder), task))


def row(report: Report, measure: str) -> Figure:
    (found,) = (one for one in report.figures if one.measure == measure)
    return found


@pytest.fixture(scope="module")
def perfect(codec: MaskCodec, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(_Knows(codec), scenes_task(**SMALL), tmp_path_factory.mktemp("perfect"))


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(_Silent(), scenes_task(**SMALL), tmp_path_factory.mktemp("silent"))


@pytest.mark.parametrize("name", ["segment_miou", "segment_miou_filled_boxes"])
def test_slices_of_a_mask_score_are_of_all_its_pictures(perfect: Report, name: str) -> None:
    whole = row(perfect, name)
    slices = [one for one in perfect.figures if one.measure.startswith(f"{name}/")]
    total = sum(one.num for one in slices)
    assert total == whole.num
    mean = sum(one.value * one.num for one in slices) / total
    assert mean == pytest.approx(whole.value, abs=0.01)


def test_masks_are_compared_with_their_boxes_filled_label_by_label(perfect: Report) -> None:
    for end in ("", "/star", "/circle"):
        whole, filled = (row(perfect, f"segment_miou{kind}{end}") for kind in ("", "_filled_boxes"))
        assert whole.num == filled.num
        assert filled.value < whole.value - 5
    # The outline of a circle fills pi / 4 of its box.
    assert row(perfect, "segment_miou_filled_boxes/circle").value == pytest.approx(78.5, abs=4)


def test_the_taught_answers_are_worth_everything_but_what_the_mask_codec_loses(
    perfect: Report,
) -> None:
    for name in ("detect_ap50", "detect_ap50_pooled", "detect_precision50", "detect_recall50"):
        assert row(perfect, name).value == pytest.approx(100.0, abs=1e-9)
    # At 112 px one pixel at the border of an object is a large share of it.
    assert 85 < row(perfect, "segment_miou").value < 100
    assert row(perfect, "answer_accuracy").value == 100.0
    assert row(perfect, "ocr_cer").value == 0.0
    assert row(perfect, "caption_exact_match").value == 100.0
    assert row(perfect, "caption_region_exact_match").num == 8


def test_silence_is_worth_nothing(silent: Report) -> None:
    for name in ("detect_ap50", "segment_miou", "answer_accuracy"):
        assert row(silent, name).value == 0.0
    assert row(silent, "ocr_cer").value == 100.0
    assert math.isnan(row(silent, "detect_precision50").value)
    undefined = next(line for line in to_table(silent).splitlines() if "precision50" in line)
    assert undefined.split()[1] == "-"


def test_the_report_begins_with_four_headlines_and_holds_every_slice(perfect: Report) -> None:
    body = perfect.to_json()
    assert json.loads(json.dumps(body, allow_nan=False)) == body
    assert (body["task"], body["split"], body["model"]) == ("scenes", "heldout", "somebody")
    assert body["headline"] == "detect_ap50"
    names = [one["measure"] for one in body["figures"]]
    assert names[:4] == HEADLINES
    kinds = {
        one["measure"].rpartition("/")[2]: one["num"]
        for one in body["figures"]
        if one["measure"].startswith("answer_accuracy/")
    }
    assert set(kinds) == {"color", "count", "presence", "position", "reading", "comparison"}
    assert sum(kinds.values()) == 30
    assert "detect_ap50/sign" in names


def test_the_interval_is_over_pictures_and_narrows_with_more_of_them(tmp_path: Path) -> None:
    few, many = (
        row(
            report(
                _Sometimes(),
                scenes_task(limit=n, size_px=64, kinds=("answer",)),
                tmp_path / str(n),
            ),
            "answer_accuracy",
        )
        for n in (15, 90)
    )
    assert few.value == many.value == pytest.approx(200 / 3)
    assert few.low < many.low < 200 / 3 < many.high < few.high


def test_figures_rest_on_the_task_alone_and_cover_every_example(tmp_path: Path) -> None:
    task = scenes_task(**SMALL)
    examples = list(task.read(Path(), "heldout"))
    assert examples[0].id == f"scenes/{EVAL_SEED}/detect"
    # Half of the answers in words are right, and every other box is found.
    half = {
        one.id: Prediction(
            id=one.id,
            text=one.references.get("text", "") if k % 2 else "?",
            objects=tuple(
                FoundObject(label=o["label"], box_yxyx=tuple(o["box_yxyx"]), score=1 / (k + 2))
                for k, o in enumerate(one.references.get("objects", [])[k % 2 :])
            ),
        )
        for k, one in enumerate(examples)
    }

    class Half(_Silent):
        def answer(self, examples: Sequence[Example], prepared: None) -> list[Prediction]:
            return [half[one.id] for one in examples]

    measures = task.score(examples, list(half.values()))
    assert {one.num for one in measures} == {len(examples)}
    found = report(Half(), task, tmp_path)
    assert [one.measure for one in found.figures] == [one.name for one in measures]
    for one in measures:
        assert row(found, one.name).value == pytest.approx(100 * one.value, nan_ok=True)
    assert 20 < row(found, "detect_ap50").value < 90
    assert 20 < row(found, "answer_accuracy").value < 80


def test_the_contact_sheet_shows_the_first_twelve_pictures(
    codec: MaskCodec, tmp_path: Path
) -> None:
    found = run(_Knows(codec), scenes_task(limit=13, size_px=112), tmp_path)
    examples, answers = found.answered()
    sheet = contact_sheet(examples, answers)
    # Three columns of two 448 px pictures, four rows with words below.
    assert sheet.width == 3 * 2 * 448 + 4 * 12
    assert sheet.height > 4 * 448
    twelve = [k for k, one in enumerate(examples) if one.unit != str(EVAL_SEED + 12)]
    assert len(twelve) < len(examples)
    again = contact_sheet([examples[k] for k in twelve], [answers[k] for k in twelve])
    assert again.tobytes() == sheet.tobytes()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"limit": 0}, "limit must lie in 1..1000000"),
        ({"seed": -1}, "seed must lie in 0..999999"),
        ({"kinds": ("detect", "sing")}, "got sing"),
        ({"kinds": ()}, f"some of {', '.join(SCENE_KINDS)}"),
    ],
)
def test_a_benchmark_out_of_bounds_is_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        scenes_task(**change)


# A real model


@pytest.fixture(scope="module")
def bundle(codec: MaskCodec) -> PaliGemma:
    """The embedded architecture at 64 px; random weights so large that its answers vary."""
    tokenizer = Tokenizer.from_file(EMBEDDED / "tokenizer.model")
    model = PaliGemmaModel(tiny_config(tokenizer.vocab, 64))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15, generator=generator)
        # Small, or every token would only repeat the one before.
        model.text.embed.weight.mul_(0.1)
    return PaliGemma(
        model,
        Processor(tokenizer, 64),
        mask_codec=codec,
        settings=RunSettings(kv_cache_dtype="float32"),
    )


def test_a_model_sees_each_picture_once_and_answers_alike_in_any_batch(
    bundle: PaliGemma, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoded: list[int] = []
    encode = bundle.model.encode_image

    def counting(images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return encode(images)

    monkeypatch.setattr(bundle.model, "encode_image", counting)
    task = scenes_task(limit=3, size_px=64, kinds=("answer", "ocr"))
    said = []
    for n in (6, 2):
        options = EvalOptions(batch_size=n)
        forgetful = PaliGemma(
            bundle.model,
            bundle.processor,
            settings=replace(bundle.settings, picture_cache_bytes=0),
        )
        found = evaluate(task, forgetful, None, "heldout", options, tmp_path / str(n))
        said.append({name: one.text for name, one in found.predictions.items()})
    # Three pictures with two prompts each, together and one by one.
    assert encoded == [3, 1, 1, 1]
    assert said[0] == said[1]
    assert len(set(said[0].values())) >= 4


def test_without_a_mask_codec_segmentation_scores_nothing(
    bundle: PaliGemma, tmp_path: Path
) -> None:
    blind = PaliGemma(bundle.model, bundle.processor, settings=bundle.settings)
    # The first kind asked is words, so that the benchmark as a whole needs no codec.
    task = replace(scenes_task(limit=1, size_px=64), asking=scenes_task(kinds=("ocr",)).asking)
    found = evaluate(task, blind, None, "heldout", EvalOptions(), tmp_path)
    assert row(make_report(score_run(found, task)), "segment_miou").value == 0.0


def test_mixed_precision_is_honoured(
    bundle: PaliGemma, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[torch.dtype] = []
    encode = bundle.model.encode_image

    def watching(images: torch.Tensor) -> torch.Tensor:
        seen.append(encode(images).dtype)
        return encode(images)

    monkeypatch.setattr(bundle.model, "encode_image", watching)
    task = scenes_task(limit=1, size_px=64, kinds=("answer",))
    for mode in ("exact", "mixed"):
        settings = replace(bundle.settings, mode=mode)
        other = PaliGemma(bundle.model, bundle.processor, settings=settings)
        evaluate(task, other, None, "heldout", EvalOptions(), tmp_path / mode)
    assert seen == [torch.float32, torch.bfloat16]
