"""Pickles are read without running anything that they name."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from paligemma.errors import DataError
from paligemma.tasks.reading.plain_pickle import read_plain_pickle

PLAIN = [{"ref_id": 7, "sentences": [{"sent": "left müg", "sent_id": 1}], "area": 2.5, "t": (1,)}]


class _RunsOnLoading:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "refs.p"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert read_plain_pickle(_write(tmp_path, pickle.dumps(PLAIN, protocol))) == PLAIN


def test_texts_of_python_2_come_back(tmp_path: Path) -> None:
    # (lp0\n(dp1\nS'sent'\n... is what cPickle of Python 2 wrote by default; U is a short text of
    # its protocol 2.
    old = b"(lp0\n(dp1\nS'sent'\np2\nS'left mug'\np3\nsS'sent_id'\np4\nI1\nsa."
    assert read_plain_pickle(_write(tmp_path, old)) == [{"sent": "left mug", "sent_id": 1}]
    new = b"\x80\x02]q\x01}q\x02U\x04sentq\x03U\x08left mugq\x04sa."
    assert read_plain_pickle(_write(tmp_path, new)) == [{"sent": "left mug"}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "it-ran"
    path = _write(tmp_path, pickle.dumps([PLAIN, _RunsOnLoading(marker)], protocol))
    with pytest.raises(DataError, match="nothing was loaded"):
        read_plain_pickle(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the file does what it is accused of
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\nS'true'\n.",
        b"\x80\x02\x82\x01.",
        b"Psomewhere\n.",
        pickle.dumps(OrderedDict(a=1)),
        pickle.dumps(PLAIN.append),
        pickle.dumps(range(3)),
    ],
)
def test_whatever_names_a_function_a_class_or_an_object_is_refused(
    tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(DataError, match="which can run code or make objects"):
        read_plain_pickle(_write(tmp_path, data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps(PLAIN)[:-5],
        b"\x80\x02h\x05.",
        b"}](s.",
        b"\x80\x02a.",
        b"X" + struct.pack("<I", 2**32 - 1) + b"short.",
        b"U\x01\xff.",
    ],
)
def test_a_damaged_pickle_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"refs\.p is damaged as a pickle"):
        read_plain_pickle(_write(tmp_path, data))


def test_no_file_makes_room_for_more_than_it_holds(tmp_path: Path) -> None:
    far = b"\x80\x02]r" + struct.pack("<I", 2**31) + b"."
    with pytest.raises(DataError, match="asks for more memory"):
        read_plain_pickle(_write(tmp_path, far))
    with pytest.raises(DataError, match="may have 3 bytes"):
        read_plain_pickle(_write(tmp_path, far), max_bytes=3)
    with pytest.raises(DataError, match="cannot be read"):
        read_plain_pickle(tmp_path / "missing.p")
