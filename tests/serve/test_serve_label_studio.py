"""Label Studio gets boxes and brushes as its ML backends give them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from paligemma import PaliGemma
from paligemma.outputs.brush import brush_rle
from paligemma.pipeline.engine_queue import EngineQueue
from paligemma.serve import label_studio
from paligemma.serve.app import create_app
from tests.serve.conftest import DESK, serving

BOXES = """<View>
  <!-- what annotators see -->
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="label" toName="image">
    <Label value="Star" predicted_values="star" background="#FFA39E"/>
    <Label value="digit" background="#D4380D"/>
  </RectangleLabels>
</View>"""
BRUSHES = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="tag" toName="image"><Label value="star"/></BrushLabels>
</View>"""


def predict_request(config: str, *pictures: Any) -> dict[str, Any]:
    """As label_studio/ml/api_connector.py sends it."""
    return {
        "tasks": [
            {
                "id": number,
                "data": {"image": picture},
                "meta": {},
                "created_at": "2026-11-27T10:00:00.000000Z",
                "updated_at": "2026-11-27T10:00:00.000000Z",
                "is_labeled": False,
                "project": 1,
                "annotations": [],
                "predictions": [],
            }
            for number, picture in enumerate(pictures, start=1)
        ],
        "model_version": None,
        "project": "1.1795773200",
        "label_config": config,
        "params": {"login": None, "password": None, "context": None},
    }


def unpacked(data: list[int]) -> np.ndarray:
    """The values, by the definition of @thi.ng/rle-pack."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def read(size: int) -> int:
        nonlocal place
        place += size
        return int(bits[place - size : place], 2)

    num, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    found = np.zeros(num, np.uint8)
    at = 0
    while at < num:
        is_run = read(1)
        end = at + 1 + read(sizes[read(2)])
        if is_run:
            found[at:end] = read(word)
        else:
            for one in range(at, end):
                found[one] = read(word)
        at = end
    return found


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 400)])
def test_a_brush_holds_every_pixel_in_four_channels(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(3).random(shape) < share
    values = unpacked(brush_rle(mask)).reshape(*shape, 4)
    np.testing.assert_array_equal(values, np.repeat(mask[..., None], 4, -1) * np.uint8(255))


def test_boxes_come_in_per_cent_under_the_labels_of_the_interface(
    client: TestClient, desk: str, local: PaliGemma
) -> None:
    answer = client.post("/label-studio/predict", json=predict_request(BOXES, desk))
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    assert prediction["model_version"] == "tiny"
    expected = [item for item in local.detect(DESK, ["star", "digit"]) if item.is_valid]
    assert len(prediction["result"]) == len(expected) > 0
    for region, item in zip(prediction["result"], expected, strict=True):
        assert region["type"] == "rectanglelabels"
        assert (region["from_name"], region["to_name"]) == ("label", "image")
        assert (region["original_width"], region["original_height"]) == (640, 480)
        assert region["image_rotation"] == region["value"]["rotation"] == 0
        assert region["value"]["rectanglelabels"] == [{"star": "Star", "digit": "digit"}[item.name]]
        x0, y0, x1, y1 = item.box_xyxy_px
        value = region["value"]
        assert value["x"] == pytest.approx(x0 / 6.4)
        assert value["y"] == pytest.approx(y0 / 4.8)
        assert value["width"] == pytest.approx((x1 - x0) / 6.4)
        assert value["height"] == pytest.approx((y1 - y0) / 4.8)
        assert region["score"] == pytest.approx(item.score, abs=1e-4)
    scores = [region["score"] for region in prediction["result"]]
    assert prediction["score"] == pytest.approx(sum(scores) / len(scores))


def test_masks_come_as_brushes(client: TestClient, desk: str, local: PaliGemma) -> None:
    answer = client.post("/label-studio/tiny/predict", json=predict_request(BRUSHES, desk))
    regions = answer.json()["results"][0]["result"]
    expected = [item for item in local.segment(DESK, "star") if item.mask is not None]
    assert len(regions) == len(expected) > 0
    for region, item in zip(regions, expected, strict=True):
        assert region["type"] == "brushlabels"
        assert region["value"]["format"] == "rle"
        assert region["value"]["brushlabels"] == ["star"]
        alpha = unpacked(region["value"]["rle"]).reshape(480, 640, 4)[..., 3]
        np.testing.assert_array_equal(alpha > 0, item.mask)


def test_one_bad_picture_leaves_the_predictions_of_the_others(
    client: TestClient, desk: str
) -> None:
    pictures = [desk, "data:image/png;base64,AAAA", None, "/data/upload/1/desk.png", desk]
    asked = predict_request(BOXES, *pictures)
    results = client.post("/label-studio/predict", json=asked).json()["results"]
    assert [bool(one["result"]) for one in results] == [True, False, False, False, True]
    assert [("error" in one) for one in results] == [False, True, True, True, False]
    assert "path of Label Studio" in results[3]["error"]
    alone = client.post("/label-studio/predict", json=predict_request(BOXES, pictures[1]))
    assert alone.status_code == 400
    assert alone.json()["error"]["code"] == "invalid_image"


def test_pictures_of_tasks_may_lie_below_a_root_of_the_server() -> None:
    asked = predict_request(BOXES, "file:desk.png", "file:../README.md", "http://10.0.0.1/a.png")
    with TestClient(create_app(serving(media_roots=(DESK.parent,)))) as reading:
        results = reading.post("/label-studio/predict", json=asked).json()["results"]
    assert [bool(one["result"]) for one in results] == [True, False, False]
    assert "below a root of this server, '../README.md' does not" in results[1]["error"]
    assert "remote pictures are off" in results[2]["error"]


def test_uploads_and_local_files_of_label_studio_are_read_in_its_own_folders(
    tmp_path: Path,
) -> None:
    """By the names that it gives them, one by one below the folders that were named."""
    uploads, local = tmp_path / "media", tmp_path / "files"
    for path in (uploads / "upload" / "1" / "e17-desk.png", local / "a b" / "desk.png"):
        path.parent.mkdir(parents=True)
        shutil.copy(DESK, path)
    (tmp_path / "secret.png").write_bytes(DESK.read_bytes())
    names = {
        "/data/upload/1/e17-desk.png": True,
        "/data/local-files/?d=a%20b/desk.png": True,
        "/data/local-files/?d=/a%20b/desk.png": True,
        "/data/upload/../../secret.png": False,
        "/data/local-files/?d=../secret.png": False,
        "/data/local-files/?d=%2E%2E/secret.png": False,
        f"/data/local-files/?d={tmp_path}/secret.png": False,
        "/media/upload/1/e17-desk.png": False,
        "/data/local-files/?d=": False,
    }
    with TestClient(create_app(serving(media_roots=(uploads, local)))) as reading:
        asked = predict_request(BOXES, *names)
        results = reading.post("/label-studio/predict", json=asked).json()["results"]
    found = [bool(one["result"]) for one in results]
    assert dict(zip(names, found, strict=True)) == names


def test_a_project_is_set_up_and_no_tasks_have_no_predictions(client: TestClient) -> None:
    asked = {
        "project": "1.1795773200",
        "schema": BOXES,
        "hostname": "http://localhost:8080",
        "access_token": "secret",
        "extra_params": None,
    }
    assert client.post("/label-studio/setup", json=asked).json() == {"model_version": "tiny"}
    assert client.get("/label-studio/health").json()["status"] == "UP"
    assert client.post("/label-studio/predict", json=predict_request(BOXES)).json() == {
        "results": []
    }
    missing = client.post("/label-studio/other/setup", json=asked)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "config",
    [
        "",
        "<View>",
        "<View/>",
        BOXES.replace("$image", "http://example.com/a.png"),
        BOXES.replace('toName="image"', 'toName="other"'),
        BOXES.replace("RectangleLabels", "Choices"),
        "<View>" * 10_000,
        '<!DOCTYPE a [<!ENTITY b "c">]>' + BOXES,
        '<!DOCTYPE a SYSTEM "file:///etc/passwd">' + BOXES,
        "x" * 200_000,
        BOXES.replace("digit", "a;b"),
    ],
    ids=range(11),
)
def test_an_interface_that_cannot_be_filled_is_refused(
    client: TestClient, desk: str, config: str
) -> None:
    answer = client.post("/label-studio/predict", json=predict_request(config, desk))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_more_tasks_than_the_bound_are_refused(client: TestClient) -> None:
    answer = client.post("/label-studio/predict", json=predict_request(BOXES, *["x"] * 101))
    assert answer.status_code == 400
    assert "100" in answer.json()["error"]["message"]


def test_more_questions_than_the_bound_are_refused(client: TestClient, desk: str) -> None:
    tag = BOXES.split('zoom="true"/>')[1].removesuffix("</View>")
    config = BOXES.replace(tag, tag * 5)
    answer = client.post("/label-studio/predict", json=predict_request(config, *["x"] * 81))
    assert answer.status_code == 400
    assert "400 questions, got 81 tasks with 5 tags each" in answer.json()["error"]["message"]


def test_a_request_has_one_deadline_and_keeps_what_was_found_until_then(
    desk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = EngineQueue.step

    def slowly(queue: EngineQueue) -> object:
        time.sleep(0.02)
        return step(queue)

    monkeypatch.setattr(EngineQueue, "step", slowly)
    monkeypatch.setattr(label_studio, "_AT_ONCE", 1)
    asked = predict_request(BOXES, *[desk] * 20)  # half a second each
    with TestClient(create_app(serving(answer_s=2))) as client:
        start = time.monotonic()
        results = client.post("/label-studio/predict", json=asked).json()["results"]
        took_s = time.monotonic() - start
    assert 2 <= took_s < 6
    assert results[0]["result"]
    assert "not complete in 2 s" in results[-1]["error"]
    assert len(results) == 20
