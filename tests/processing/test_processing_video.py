"""Frames of videos: by number, by time, so many of them, from files, bytes and streams."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from video_file import write_video

from paligemma.errors import ImageError
from paligemma.processing.frames import EvenFrames, FramesAt, parse_frames
from paligemma.processing.image import load_frames, load_image
from paligemma.processing.pixels import PixelReader

pytest.importorskip("av")
NUM_FRAMES, RATE = 30, 10
SLACK = 9  # of a lossy codec, one step of the levels


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, NUM_FRAMES, rate=RATE)
    return path


def numbers(frames: list[np.ndarray]) -> list[int]:
    """Which frames these are, by their level."""
    return [round(float(frame.mean()) * (NUM_FRAMES - 1) / 255) for frame in frames]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "mpeg4"),
        ("mov", "mpeg4"),
        ("mkv", "mpeg4"),
        ("avi", "mpeg4"),
        ("flv", "flv1"),
        ("ts", "mpeg2video"),
        ("wmv", "wmv2"),
    ],
)
def test_frames_of_every_container_are_found_by_number_time_and_count(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    path = tmp_path / f"clip.{suffix}"
    rate = 25 if suffix == "ts" else RATE  # mpeg2video has rates of its own
    write_video(path, NUM_FRAMES, codec=codec, rate=rate)
    assert numbers(load_frames(path, [7, 2, 7])) == [7, 2, 7]
    assert numbers([load_image(path, frame=29)]) == [29]
    at = [7 / rate + 0.001, 2 / rate + 0.001, 0.0]
    assert numbers(load_frames(path, FramesAt(at))) == [7, 2, 0]
    found = numbers(load_frames(path, EvenFrames(3)))
    assert [abs(one - wanted) <= 1 for one, wanted in zip(found, [5, 15, 25], strict=True)]
    assert numbers(load_frames(path)) == list(range(NUM_FRAMES))


def test_a_video_may_come_as_bytes_or_a_stream(clip: Path) -> None:
    data = clip.read_bytes()
    for source in (data, io.BytesIO(data), f"file://{clip}"):
        assert numbers(load_frames(source, [11])) == [11]


def test_a_video_without_a_stated_duration_is_divided_all_the_same() -> None:
    class Pipe(io.RawIOBase):
        data = b""

        def writable(self) -> bool:
            return True

        def write(self, piece: object) -> int:
            self.data += bytes(piece)  # type: ignore[call-overload]
            return len(bytes(piece))  # type: ignore[call-overload]

    pipe = Pipe()
    write_video(pipe, NUM_FRAMES, container="matroska", rate=RATE)
    assert numbers(load_frames(pipe.data, EvenFrames(3))) == [4, 14, 24]


def test_one_picture_of_a_video_is_its_first_frame_and_said(
    clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert numbers([load_image(clip)]) == [0]
    assert "is a video, and its first frame is read" in caplog.text


def test_more_frames_than_there_are_give_each_once(clip: Path) -> None:
    assert numbers(load_frames(clip, EvenFrames(100))) == list(range(NUM_FRAMES))


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        ([30], r"must lie in 0\.\.29"),
        ([-1], "must lie at or after 0"),
        ([True], "must lie at or after 0"),
        (FramesAt([99.0]), r"ends after 2\.90 s, got 99 s"),
        (FramesAt([1e300]), "must lie within the video"),
    ],
)
def test_a_frame_that_is_not_there_is_named_with_those_that_are(
    clip: Path, frames: object, rule: str
) -> None:
    with pytest.raises(ImageError, match=rule):
        load_frames(clip, frames)  # type: ignore[arg-type]


def test_bounds_of_pixels_hold_for_each_frame_and_all_together(clip: Path) -> None:
    size = 64 * 48
    with pytest.raises(ImageError, match="have 64x48"):
        load_image(clip, max_pixels=size - 1)
    with pytest.raises(ImageError, match="together"):
        load_frames(clip, [0, 1, 2], max_pixels=2 * size)
    assert len(load_frames(clip, [0, 1], max_pixels=2 * size)) == 2


def test_decoding_on_the_way_to_a_frame_is_bounded(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.processing.video.MAX_DECODED", 10)
    with pytest.raises(ImageError, match=r"are decoded, .* needs more"):
        load_frames(clip, [29], max_pixels=64 * 48)


def test_damaged_videos_and_playlists_are_refused_in_a_sentence(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(clip.read_bytes()[:200])
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{clip}\n")
    with pytest.raises(ImageError, match="cannot be recognised"):
        load_image(playlist)


def test_where_only_pictures_are_read_a_video_is_refused(clip: Path) -> None:
    reader = PixelReader(
        image_size_px=224,
        resize_method="bicubic",
        allow_url=False,
        max_pixels=10**6,
        allow_video=False,
    )
    with pytest.raises(ImageError, match="is a video; take frames of it"):
        reader.load(clip.read_bytes())


def test_without_pyav_a_video_is_a_bad_picture_that_names_the_extra(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"paligemma\[video\]"):
        load_image(clip)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("3", 3),
        ("0, 5,9", [0, 5, 9]),
        ("1.5s,3s", FramesAt([1.5, 3.0])),
        ("even:8", EvenFrames(8)),
        ("all", "all"),
    ],
)
def test_frames_are_chosen_in_a_word(text: str, meant: object) -> None:
    assert parse_frames(text) == meant


@pytest.mark.parametrize("text", ["", "x", "1,2s", "even:0", "even:x", "nans", "-1s", "9999999s,"])
def test_a_word_that_chooses_no_frames_is_refused(text: str) -> None:
    with pytest.raises(ImageError):
        parse_frames(text)


def test_frames_of_an_animation_are_evenly_spaced_and_times_are_of_videos(
    clip: Path, tmp_path: Path
) -> None:
    from PIL import Image

    path = tmp_path / "a.gif"
    greys = [Image.new("L", (4, 4), level) for level in range(0, 250, 25)]
    greys[0].save(path, save_all=True, append_images=greys[1:])
    assert [int(one[0, 0, 0]) for one in load_frames(path, EvenFrames(2))] == [50, 175]
    with pytest.raises(ImageError, match="times choose frames of a video"):
        load_frames(path, FramesAt([0.5]))
