"""Tokens of a fine-tune: found in text, spelt out, wherever its files list them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizer_json import hub_json

from paligemma.errors import TokenizerError
from paligemma.processing.added_tokens import AddedPattern, AddedToken, added_tokens
from paligemma.processing.tokenizer import Tokenizer, load_tokenizer

NAMES = ["<s_total>", "<s_total_price>", "new york", "</s>"]
TEXTS = [
    "<s_total>42<s_total_price> in new york</s>",
    "read new york, newyork and new  york",
    "<s_total><s_total>",
    "<<s_total>>",
    "a <s_total> b",
    "<image><s_total><bos>",
    "",
]


def entry(token: int, text: str, **flags: bool) -> dict[str, Any]:
    off = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"id": token, "content": text, **off, **flags}


def ids_of(tokenizer: Tokenizer) -> dict[str, int]:
    first = tokenizer.vocab.size
    return {"<image>": first, **{name: first + 1 + i for i, name in enumerate(NAMES)}}


def write(folder: Path, tokenizer_file: Path, ids: dict[str, int], kind: str) -> Path:
    shutil.copy(tokenizer_file, folder / "tokenizer.model")
    if kind == "names":
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    elif kind == "config":
        decoder = {str(token): entry(token, text) for text, token in ids.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    else:
        listed = [entry(token, text) for text, token in ids.items()]
        body = {"version": "1.0", "added_tokens": listed, "model": {}}
        (folder / "tokenizer.json").write_text(json.dumps(body))
    return folder


@pytest.mark.parametrize("kind", ["names", "config", "full"])
def test_tokens_are_found_in_whichever_file_lists_them(
    tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path, kind: str
) -> None:
    ids = ids_of(tokenizer)
    extended = load_tokenizer(write(tmp_path, tokenizer_file, ids, kind))
    first = tokenizer.vocab.size
    assert (extended.vocab.size, extended.vocab.image) == (first + 5, first)
    between = tokenizer.encode("42")
    assert extended.encode("<s_total>42<s_total_price>") == [first + 1, *between, first + 2]
    for text in TEXTS:
        encoded = extended.encode(text)
        assert first not in encoded
        assert extended.decode(encoded) == text
    assert extended.decode([first, first + 4]) == "</s>"
    assert extended.piece(first + 3) == "new york"
    assert extended.encode("detect cat") == tokenizer.encode("detect cat")


def test_both_tokenizers_agree_on_added_tokens(
    tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    ids = ids_of(tokenizer)
    path = hub_json(tokenizer, tmp_path / "tokenizer.json")
    body = json.loads(path.read_text())
    body["added_tokens"] += [entry(ids[name], name, normalized=True) for name in NAMES]
    path.write_text(json.dumps(body))
    theirs = Tokenizer.from_file(path)
    ours = Tokenizer.from_file(write(tmp_path, tokenizer_file, ids, "names") / "tokenizer.model")
    assert theirs.vocab == ours.vocab
    for text in TEXTS:
        assert theirs.encode(text) == ours.encode(text), text
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def test_a_saved_tokenizer_keeps_its_added_tokens(
    tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    extended = load_tokenizer(write(tmp_path, tokenizer_file, ids_of(tokenizer), "config"))
    (tmp_path / "out").mkdir()
    again = Tokenizer.from_file(extended.save(tmp_path / "out"))
    assert again.vocab == extended.vocab
    assert [again.encode(text) for text in TEXTS] == [extended.encode(text) for text in TEXTS]


def test_the_files_of_one_tokenizer_must_agree(
    tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    ids = ids_of(tokenizer)
    write(tmp_path, tokenizer_file, ids, "config")
    swapped = ids | {"<s_total>": ids["</s>"], "</s>": ids["<s_total>"]}
    write(tmp_path, tokenizer_file, swapped, "names")
    with pytest.raises(TokenizerError, match=r"an id must stand for one token.*from one save"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"<a>": 1e400}',
        '{"<a>": "7"}',
        '{"": 7}',
        '{"<a>": -1}',
        '{"<a>": true}',
        "[7]",
        '"x"',
        json.dumps({"x" * 2000: 7}),
        json.dumps({f"<{i}>": i for i in range(70_000)}),
    ],
)
def test_a_list_that_cannot_be_one_is_left_aside_with_a_warning(
    tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path, caplog, content: str
) -> None:
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(content)
    assert load_tokenizer(tmp_path).vocab == tokenizer.vocab
    assert "added_tokens.json is left aside" in caplog.text


def test_whitespace_and_words_are_heeded_as_the_file_asks(tmp_path: Path) -> None:
    listed = [entry(7, "<l>", lstrip=True), entry(8, "<r>", rstrip=True)]
    listed.append(entry(9, "tag", single_word=True))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": listed}))
    found = AddedPattern(added_tokens(tmp_path))
    assert list(found.split("a  <l> b")) == ["a", 7, " b"]
    assert list(found.split("a <r> \n b")) == ["a ", 8, "b"]
    assert list(found.split("tags tag")) == ["tags ", 9, ""]


def test_many_spaces_before_a_token_take_no_time() -> None:
    found = AddedPattern([AddedToken(id=7, text="<l>", lstrip=True, rstrip=True)])
    text = " " * 200_000
    assert list(found.split(text + "<l>" + text)) == ["", 7, ""]
