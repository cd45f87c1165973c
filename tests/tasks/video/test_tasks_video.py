"""Video benchmarks: annotation files, clips from folders and files, and videos that are gone."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_files import write_json, write_picture, write_pixels, write_text

from paligemma.errors import DataError, ImageError, MissingExtraError
from paligemma.example import Example, Prediction
from paligemma.tasks.task import Task
from paligemma.tasks.video import clips
from paligemma.tasks.video.clips import Clip
from paligemma.tasks.video.rows import TASKS

ROWS: dict[str, Task] = {task.name: task for task in TASKS}
FPS = 10


def _frames(folder: Path, num: int) -> Path:
    """A folder of frames; frame k is uniformly 2 k + 1."""
    for k in range(num):
        pixels = np.full((2, 3, 3), 2 * k + 1, np.uint8)
        write_pixels(folder / f"{k:05d}.png", pixels)
    return folder


def _video(path: Path, num: int) -> Path:
    """A lossless video of FPS frames a second; frame k is uniformly 2 k + 1."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        stream.time_base = Fraction(1, FPS)
        for k in range(num):
            pixels = np.full((16, 16, 3), 2 * k + 1, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _shown(clip: Clip) -> list[int]:
    """Numbers of the frames that a clip shows."""
    return [int(frame.read(10_000)[0, 0, 0]) // 2 for frame in clip.frames()]


def _read(task: str, data: Path, split: str = "test") -> list[Example]:
    return list(ROWS[task].read(data, split))


def test_a_folder_shows_every_stride_th_frame(tmp_path: Path) -> None:
    clip = Clip(path=_frames(tmp_path / "v", 10), num_frames=3, stride=4)
    assert _shown(clip) == [0, 4, 8]


def test_a_short_folder_starts_over(tmp_path: Path) -> None:
    clip = Clip(path=_frames(tmp_path / "v", 5), num_frames=8, stride=2)
    assert _shown(clip) == [0, 2, 4, 0, 2, 4, 0, 2]


def test_a_segment_of_a_folder_is_a_share_of_the_duration(tmp_path: Path) -> None:
    folder = _frames(tmp_path / "v", 10)
    clip = Clip(path=folder, num_frames=4, stride=1, start_s=4.0, end_s=10.0, duration_s=20.0)
    assert _shown(clip) == [2, 3, 4, 2]
    late = Clip(path=folder, num_frames=1, stride=1, start_s=30.0, end_s=31.0, duration_s=20.0)
    assert _shown(late) == [9]
    with pytest.raises(ImageError, match="needs the duration"):
        _shown(Clip(path=folder, num_frames=1, stride=1, start_s=1.0, end_s=2.0))


def test_a_video_file_shows_the_frames_its_folder_would(tmp_path: Path) -> None:
    path = _video(tmp_path / "v.mkv", 10)
    assert _shown(Clip(path=path, num_frames=3, stride=4)) == [0, 4, 8]
    assert _shown(Clip(path=path, num_frames=8, stride=4)) == [0, 4, 8, 0, 4, 8, 0, 4]


def test_a_segment_of_a_video_file_is_cut_by_time(tmp_path: Path) -> None:
    path = _video(tmp_path / "v.mkv", 40)
    clip = Clip(path=path, num_frames=5, stride=3, start_s=1.0, end_s=2.0)
    assert _shown(clip) == [10, 13, 16, 19, 10]
    instant = Clip(path=path, num_frames=2, stride=1, start_s=3.0, end_s=3.0)
    assert _shown(instant) == [30, 30]
    with pytest.raises(ImageError, match="no frame between 9 s and 10"):
        _shown(Clip(path=path, num_frames=2, stride=1, start_s=9.0, end_s=10.0))


def test_frames_of_a_video_are_decoded_once_by_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Clip(path=_video(tmp_path / "v.mkv", 20), num_frames=16, stride=1)
    opened = []
    wanted = clips._wanted
    monkeypatch.setattr(clips, "_wanted", lambda *args: opened.append(1) or wanted(*args))
    with ThreadPoolExecutor(8) as pool:
        shown = list(pool.map(lambda frame: int(frame.read(10_000)[0, 0, 0]) // 2, clip.frames()))
    assert shown == list(range(16))
    assert len(opened) == 1


def test_frames_travel_to_other_processes_and_are_not_shared(tmp_path: Path) -> None:
    clip = Clip(path=_video(tmp_path / "v.mkv", 3), num_frames=2, stride=1)
    frame = pickle.loads(pickle.dumps(clip.frames()[1]))
    frame.read(10_000)[:] = 0
    assert frame.read(10_000)[0, 0, 0] == 3


def test_damaged_soundless_and_large_videos_are_image_errors(tmp_path: Path) -> None:
    path = _video(tmp_path / "v.mkv", 3)
    with pytest.raises(ImageError, match=r"frames of .*v\.mkv have 16x16"):
        Clip(path=path, num_frames=1, stride=1).frames()[0].read(255)
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 1000)
    with pytest.raises(ImageError, match=r"bad\.mp4 cannot be decoded"):
        _shown(Clip(path=tmp_path / "bad.mp4", num_frames=1, stride=1))
    write_text(tmp_path / "words.srt", "1\n00:00:00,000 --> 00:00:01,000\nhello\n\n")
    with pytest.raises(ImageError, match="only sound or text"):
        _shown(Clip(path=tmp_path / "words.srt", num_frames=1, stride=1))


def test_damaged_bytes_of_a_video_are_a_frame_or_an_image_error(tmp_path: Path) -> None:
    whole = _video(tmp_path / "whole.avi", 6).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for number in range(60):
        damaged = bytearray(whole[: random.integers(1, len(whole))] if number % 3 else whole)
        for position in random.integers(0, min(len(damaged), 6000), 40):
            damaged[position] = random.integers(256)
        path = tmp_path / f"{number}.flv" if number % 5 == 0 else tmp_path / f"{number}.avi"
        path.write_bytes(b"FLV\1\5" + damaged[5:] if path.suffix == ".flv" else damaged)
        try:
            assert Clip(path=path, num_frames=2, stride=1).frames()[1].read(10**6).shape[2] == 3
        except ImageError:
            refused += 1
    assert 10 < refused < 60


def test_a_video_filmed_on_its_side_is_turned_as_players_do(tmp_path: Path) -> None:
    import av

    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)
        stored = np.zeros((32, 64, 3), np.uint8)
        stored[:, :16] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    shown = Clip(path=path, num_frames=1, stride=1).frames()[0].read(2048)
    assert np.abs(shown.astype(int) - np.rot90(stored)).max() < 20


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"paligemma\[video\]"):
        _shown(Clip(path=tmp_path / "v.mp4", num_frames=1, stride=1))


def _msrvtt(data: Path) -> Path:
    table = {
        "info": {},
        "videos": [
            {"video_id": f"video{n}", "split": split, "start time": 1.0, "end time": 2.0, "id": n}
            for n, split in ((7010, "test"), (7011, "test"))
        ],
        "sentences": [
            {"caption": caption, "video_id": name, "sen_id": k}
            for k, (name, caption) in enumerate(
                [
                    ("video7010", "a man sings"),
                    ("video7011", "a dog runs"),
                    ("video7010", "a singer"),
                ]
            )
        ],
    }
    write_json(data / "test_videodatainfo.json", table)
    return data


def test_msrvtt_captions_are_gathered_by_video(tmp_path: Path) -> None:
    _frames(_msrvtt(tmp_path) / "frames/video7010", 20)
    _frames(tmp_path / "frames/video7011", 20)
    first, second = _read("msrvtt-cap", tmp_path)
    assert (first.id, second.id) == ("video7010", "video7011")
    assert first.prefix == "caption en"
    assert first.references == ["a man sings", "a singer"]
    assert len(first.pictures) == ROWS["msrvtt-cap"].asking.num_pictures == 16
    assert [int(one.read(100)[0, 0, 0]) // 2 for one in first.pictures[:4]] == [0, 9, 18, 0]


def test_one_file_of_all_videos_of_msrvtt_is_read_by_its_splits(tmp_path: Path) -> None:
    _frames(_msrvtt(tmp_path) / "frames/video7010", 20)
    _frames(tmp_path / "frames/video7011", 20)
    (tmp_path / "test_videodatainfo.json").rename(tmp_path / "MSRVTT_data.json")
    table = json.loads((tmp_path / "MSRVTT_data.json").read_text())
    table["videos"][0]["split"] = "validate"
    write_json(tmp_path / "MSRVTT_data.json", table)
    assert [one.id for one in _read("msrvtt-cap", tmp_path)] == ["video7011"]
    assert [one.id for one in _read("msrvtt-cap", tmp_path, "val")] == ["video7010"]


@pytest.mark.parametrize(
    ("task", "said", "name"),
    [
        ("msrvtt-qa", "video7010", "frames/video7010"),
        ("msvd-qa", 1301, "frames/vid1301"),
        ("msvd-qa", "vid1301", "YouTubeClips/abc_5_15"),
        ("msvd-qa", "abc_5_15", "YouTubeClips/abc_5_15"),
    ],
)
def test_questions_and_answers_may_stand_in_two_files(
    tmp_path: Path, task: str, said: object, name: str
) -> None:
    _frames(tmp_path / name, 3)
    write_text(tmp_path / "youtube_mapping.txt", "abc_5_15 vid1301\n")
    asked = {"question_id": 4, "video_name": said, "question": "what?"}
    write_json(tmp_path / "test_q.json", [asked])
    write_json(tmp_path / "test_a.json", [{"question_id": 4, "answer": "couch"}])
    (example,) = _read(task, tmp_path)
    assert (example.id, example.prefix, example.references) == ("4", "answer en what?", "couch")
    write_json(tmp_path / "test_a.json", [{"question_id": 5, "answer": "couch"}])
    with pytest.raises(DataError, match="question_id 4 has no answer"):
        _read(task, tmp_path)


def test_missing_videos_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _frames(_msrvtt(tmp_path) / "frames/video7011", 2)
    (tmp_path / "frames/video7010").mkdir()  # without frames it is missing too
    with caplog.at_level(logging.WARNING):
        assert [one.id for one in _read("msrvtt-cap", tmp_path)] == ["video7011"]
    assert "1 of 2 videos are not on disk and are left out (video7010)" in caplog.text


def test_no_video_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found none of 2, such as video7010, video7011"):
        _read("msrvtt-cap", _msrvtt(tmp_path))


def _qa(data: Path, number: int) -> Path:
    rows = [
        {
            "answer": "couch",
            "category_id": 14,
            "id": 158581,
            "question": "what?",
            "video_id": number,
        }
    ]
    write_json(data / "test_qa.json", rows)
    return data


@pytest.mark.parametrize(
    ("task", "number", "name"),
    [
        ("msrvtt-qa", 7010, "frames/video7010"),
        ("msvd-qa", 1301, "frames/vid1301"),
        ("msvd-qa", 1301, "YouTubeClips/abc_5_15"),
    ],
)
def test_numbered_videos_are_found(tmp_path: Path, task: str, number: int, name: str) -> None:
    _frames(_qa(tmp_path, number) / name, 3)
    write_text(tmp_path / "youtube_mapping.txt", "abc_5_15 vid1301\n")
    (example,) = _read(task, tmp_path)
    assert (example.id, example.prefix) == ("158581", "answer en what?")
    assert example.references == "couch"
    assert len(example.pictures) == {"msrvtt-qa": 16, "msvd-qa": 8}[task]
    for text, accuracy in (("couch", 1.0), ("Couch", 0.0)):
        measures = ROWS[task].score([example], [Prediction(id="158581", text=text)])
        assert (measures[0].name, measures[0].value) == ("accuracy", accuracy)


def test_activitynet_captions_are_one_example_a_segment(tmp_path: Path) -> None:
    row = {
        "duration": 2.0,
        "timestamps": [[0.0, 1.0], [2.0, 1.0]],
        "sentences": ["A man. ", " He leaves."],
    }
    write_json(tmp_path / "val_2.json", {"v_abc": row})
    _frames(tmp_path / "frames/v_abc", 20)
    first, second = _read("activitynet-cap", tmp_path)
    assert (first.id, second.id) == ("v_abc/0", "v_abc/1")
    assert (first.references, second.references) == (["A man. "], [" He leaves."])
    assert int(second.pictures[0].read(100)[0, 0, 0]) // 2 == 10, "turned the right way round"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": None}, "'duration'"),
        ({"timestamps": [[0.0]]}, "timestamps 0 must be"),
        ({"timestamps": [[0.0, -1.0]]}, "timestamps 0 must be seconds"),
        ({"timestamps": []}, "every segment needs a sentence"),
        ({"sentences": [3]}, "'sentences'"),
    ],
)
def test_broken_segments_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"duration": 2.0, "timestamps": [[0.0, 1.0]], "sentences": ["x"], **change}
    write_json(tmp_path / "val_2.json", {"v_abc": row})
    _frames(tmp_path / "frames/v_abc", 2)
    with pytest.raises(DataError, match=rf"val_2\.json, v_abc.*{message}"):
        _read("activitynet-cap", tmp_path)


def test_activitynet_questions_find_their_answers(tmp_path: Path) -> None:
    asked = {"question_id": "abc_1", "video_name": "abc", "question": "is it raining"}
    write_json(tmp_path / "test_q.json", [asked])
    told = {"question_id": "abc_1", "answer": "no", "type": 3}
    write_json(tmp_path / "test_a.json", [told])
    _frames(tmp_path / "frames/v_abc", 80)
    (example,) = _read("activitynet-qa", tmp_path)
    assert (example.id, example.prefix) == ("abc_1", "answer en is it raining")
    assert (example.references, example.slices) == ("no", {"type": "3"})
    assert [int(one.read(100)[0, 0, 0]) // 2 for one in example.pictures[:3]] == [0, 70, 0]
    write_json(tmp_path / "test_a.json", [])
    with pytest.raises(DataError, match="question_id abc_1 has no answer"):
        _read("activitynet-qa", tmp_path)


def test_vatex_takes_english_captions(tmp_path: Path) -> None:
    row = {"videoID": "G9zN5TTuGO4_000179_000189", "enCap": ["a", "b"], "chCap": ["c"]}
    write_json(tmp_path / "vatex_public_test_english_v1.1.json", [row])
    write_picture(tmp_path / "videos/G9zN5TTuGO4_000179_000189/1.jpg")
    (example,) = _read("vatex", tmp_path)
    assert example.id == "G9zN5TTuGO4_000179_000189"
    assert example.targets == ("a", "b")


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("msrvtt-cap", r"test_videodatainfo\.json"),
        ("msrvtt-qa", r"test_qa\.json"),
        ("msvd-qa", r"test_qa\.json"),
        ("activitynet-cap", r"val_2\.json"),
        ("activitynet-qa", r"test_q\.json"),
        ("vatex", r"vatex_public_test_english_v1\.1\.json"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, task: str, file: str) -> None:
    with pytest.raises(DataError, match=file):
        _read(task, tmp_path)


def test_frames_are_resized_as_the_configurations_say() -> None:
    for task in ROWS.values():
        assert task.asking.resize_method == "bilinear"
        assert task.asking.keep_fractions
    assert {name: task.asking.text_len for name, task in ROWS.items()} == {
        "msrvtt-cap": 32,
        "msrvtt-qa": 64,
        "msvd-qa": 64,
        "activitynet-cap": 64,
        "activitynet-qa": 64,
        "vatex": 64,
    }


def test_a_perfect_caption_beats_another(tmp_path: Path) -> None:
    for name in ("video7010", "video7011"):
        _frames(_msrvtt(tmp_path) / "frames" / name, 1)
    examples = _read("msrvtt-cap", tmp_path)
    values = []
    for texts in (["a man sings", "a dog runs"], ["a man sings", "a cat"]):
        said = [Prediction(id=one.id, text=text) for one, text in zip(examples, texts, strict=True)]
        values.append(ROWS["msrvtt-cap"].score(examples, said)[0])
    assert values[0].name == "cider"
    assert values[0].value > values[1].value > 0
