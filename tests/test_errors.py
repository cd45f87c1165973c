"""Sentences for people stay short, whatever a file holds."""

from __future__ import annotations

import pickle

from paligemma.errors import DataError, bounded


def test_a_long_word_and_a_long_text_lose_their_middle() -> None:
    word = str(DataError(f"the id {'x' * 600_000}.png must be short; cut it"))
    assert len(word) < 300
    assert word.endswith("xxx.png must be short; cut it")
    text = str(DataError(f"the text {'x y ' * 150_000} must be short; cut it"))
    assert len(text) < 12_100
    assert text.endswith("must be short; cut it")
    assert "characters) ..." in text


def test_a_path_and_a_table_stay_as_they_are() -> None:
    path = "/" + "a" * 4_000
    table = "\n".join(["a row of a table"] * 500)
    for sentence in (path, table, ""):
        assert bounded(sentence) == sentence == str(DataError(sentence))
    assert DataError(3).args == (3,)
    assert str(pickle.loads(pickle.dumps(DataError("x")))) == "x"
