"""Text to ids and back: SentencePiece and tokenizer.json, and that text forges nothing."""

from __future__ import annotations

import json
import os
import pickle
import string
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_json import hub_json

from paligemma.errors import MissingExtraError, PromptError, TokenizerError
from paligemma.processing import tokenizer as tokenizer_module
from paligemma.processing.sentencepiece_model import (
    _user_defined_piece,
    append_object_pieces,
    object_pieces,
    train_tokenizer,
)
from paligemma.processing.tokenizer import Tokenizer, load_tokenizer
from paligemma.vocab import GEMMA_VOCAB

CONTROLS = ["<pad>", "<eos>", "<bos>", "<image>"]
FRAGMENTS = [
    *CONTROLS,
    "<unk>",
    "<",
    ">",
    "image",
    "bos>",
    "<e",
    "os>",
    "<loc0000>",
    " ",
    "\n",
    "a",
]
TEXTS = [
    "detect cat ; dog",
    "<loc0012><loc0034><loc0900><loc1023> cat ; <seg000><seg127> dog",
    "a<loc0001>b",
    "  two  spaces ",
    "line\nline\n\nend",
    "answer en  What? choose from: a",
    "0123 42",
    "<bos> <eos><pad><image> <unk>",
    "",
]


def raw_model(path: Path) -> bytes:
    """The trained model without the object pieces that were appended to it."""
    model = path.read_bytes()
    tail = append_object_pieces(b"")
    assert model.endswith(tail)
    return model[: -len(tail)]


@pytest.fixture(scope="session")
def hub_tokenizer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("hub") / "tokenizer.json"
    return Tokenizer.from_file(hub_json(tokenizer, path))


def test_the_ids_of_a_trained_tokenizer_follow_gemma(tokenizer: Tokenizer) -> None:
    vocab = tokenizer.vocab
    assert (vocab.pad, vocab.eos, vocab.bos, vocab.sep) == (0, 1, 2, 4)
    assert tokenizer.piece(3) == "<unk>"
    assert vocab.seg0 == vocab.loc0 + 1024
    assert vocab.size == vocab.seg0 + 128


def test_every_object_piece_is_one_id_within_running_text(tokenizer: Tokenizer) -> None:
    before, after = tokenizer.encode("a"), tokenizer.encode("b")
    for offset, piece in enumerate(object_pieces()):
        token = tokenizer.vocab.loc0 + offset
        assert tokenizer.encode(f"a{piece}b") == [*before, token, *after]
        assert tokenizer.decode([token]) == piece


def test_sentencepiece_itself_reads_the_appended_pieces(tokenizer_file: Path) -> None:
    model = raw_model(tokenizer_file)
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    extended = sentencepiece.SentencePieceProcessor(model_proto=append_object_pieces(model))
    assert extended.get_piece_size() == plain.get_piece_size() + 1152
    added = range(plain.get_piece_size(), extended.get_piece_size())
    assert [extended.id_to_piece(token) for token in added] == object_pieces()
    assert {extended.get_score(token) for token in added} == {0.0}
    assert not any(extended.is_control(t) or extended.is_unused(t) for t in added)
    assert all(
        extended.id_to_piece(t) == plain.id_to_piece(t) for t in range(plain.get_piece_size())
    )


def test_a_model_without_object_pieces_is_extended_and_one_with_them_is_not(
    tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(raw_model(tokenizer_file))
    extended = Tokenizer.from_file(tmp_path / "tokenizer.model")
    assert extended.vocab == tokenizer.vocab
    assert [extended.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_the_same_lines_train_the_same_file(tmp_path: Path) -> None:
    lines = ["detect cat", "caption en", "ocr 12"] * 10
    first = train_tokenizer(lines, vocab_size=150, out_path=tmp_path / "a.model")
    second = train_tokenizer(iter(lines), vocab_size=150, out_path=tmp_path / "b.model")
    assert first.read_bytes() == second.read_bytes()


def test_training_covers_printable_ascii_and_learns_nothing_from_object_tokens(
    tokenizer: Tokenizer,
) -> None:
    text = "".join(character for character in string.printable if character.isprintable())
    assert len(text) == 95
    assert tokenizer.decode(tokenizer.encode(text)) == text
    learned = [tokenizer.piece(token) for token in range(5, tokenizer.vocab.loc0)]
    assert not [piece for piece in learned if "loc" in piece or "<" in piece[:-1]]


def test_byte_fallback_spells_what_the_pieces_cannot(tmp_path: Path) -> None:
    path = train_tokenizer(
        ["caption en"] * 10, vocab_size=400, out_path=tmp_path / "t.model", byte_fallback=True
    )
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.decode(tokenizer.encode("é漢\n<loc0007>")) == "é漢\n<loc0007>"


def test_digits_stay_apart(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(token) for token in tokenizer.encode("42")] == ["4", "2"]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_returns_the_text_with_its_spaces(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_stops_at_the_first_eos_and_skips_padding(tokenizer: Tokenizer) -> None:
    cat = tokenizer.encode("cat")
    assert tokenizer.decode([2, *cat, 0, 1, *cat]) == "cat"
    assert tokenizer.decode([1, *cat]) == ""


@pytest.mark.parametrize("token", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(TokenizerError, match="do not belong together"):
        tokenizer.decode([5, token])
    with pytest.raises(TokenizerError, match="do not belong together"):
        tokenizer.piece(token)


@settings(max_examples=80, deadline=None)
@given(parts=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=12))
def test_text_never_forges_a_control_id(
    tokenizer: Tokenizer, hub_tokenizer: Tokenizer, parts: list[str]
) -> None:
    text = "".join(part.encode(errors="ignore").decode() for part in parts)
    for reader in (tokenizer, hub_tokenizer):
        ids = reader.encode(text)
        assert not {0, 1, 2} & set(ids)
        assert all(token < reader.vocab.size for token in ids)


@pytest.mark.parametrize("text", ["<image>", "x<image>y", "<<image>>", "<image><image> a"])
def test_a_file_that_lets_text_match_image_cannot_be_forged(
    tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_file.read_bytes() + _user_defined_piece("<image>"))
    forgeable = Tokenizer.from_file(path)
    image = tokenizer.vocab.size
    assert image in sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(text)
    assert forgeable.vocab == tokenizer.vocab  # the row of <image> is not part of the model
    assert image not in forgeable.encode(text)
    assert forgeable.decode(forgeable.encode(text)) == text


def test_tokenizer_json_agrees_with_sentencepiece(
    tokenizer: Tokenizer, hub_tokenizer: Tokenizer
) -> None:
    assert hub_tokenizer.vocab == tokenizer.vocab
    for text in [*TEXTS, "a red circle and the number 42 on sand", "unseen wörds äöü \t in here"]:
        ids = tokenizer.encode(text)
        assert hub_tokenizer.encode(text) == ids
        if 3 not in ids:  # the two spell unk differently
            assert hub_tokenizer.decode(ids) == tokenizer.decode(ids) == text


def test_a_saved_tokenizer_reads_back_the_same(
    tokenizer: Tokenizer, hub_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for reader, name in ((tokenizer, "tokenizer.model"), (hub_tokenizer, "tokenizer.json")):
        path = reader.save(tmp_path)
        assert path.name == name
        again = Tokenizer.from_file(path)
        assert again.vocab == reader.vocab
        assert [again.encode(text) for text in TEXTS] == [reader.encode(text) for text in TEXTS]


def test_a_tokenizer_travels_to_worker_processes(
    tokenizer: Tokenizer, hub_tokenizer: Tokenizer
) -> None:
    for reader in (tokenizer, hub_tokenizer):
        copy = pickle.loads(pickle.dumps(reader))
        assert copy.encode(TEXTS[1]) == reader.encode(TEXTS[1])
        assert copy.encode("<bos>") == reader.encode("<bos>")


def test_the_model_file_is_preferred_to_the_json(
    tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("not even json")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    assert load_tokenizer(tmp_path).vocab == tokenizer.vocab
    (tmp_path / "tokenizer.model").unlink()
    hub_json(tokenizer, tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).vocab == tokenizer.vocab
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab == tokenizer.vocab


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.model or tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_json_without_the_tokenizers_package_names_the_extra(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub_json(tokenizer, tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"paligemma\[hub\]"):
        load_tokenizer(path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x0a\xff\xff\xff\xff\x7f", b"{}", b"[1]"])
def test_a_damaged_file_gets_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match="download it again") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_cut_file_a_missing_one_and_a_huge_one_are_refused(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tokenizer_file.read_bytes()
    (tmp_path / "cut.model").write_bytes(model[: len(model) // 2 + 1])
    with pytest.raises(TokenizerError):
        Tokenizer.from_file(tmp_path / "cut.model")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.from_file(tmp_path / "missing.model")
    monkeypatch.setattr(tokenizer_module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(TokenizerError, match="may have 1000 bytes"):
        Tokenizer.from_file(tokenizer_file)


def test_a_tokenizer_of_another_family_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some text to learn"] * 10),
        model_prefix=str(tmp_path / "t"),
        vocab_size=40,
        hard_vocab_limit=False,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(TokenizerError, match="must hold the piece '<pad>'"):
        Tokenizer.from_file(path)


def test_object_pieces_out_of_order_are_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    pieces = object_pieces()
    pieces[5], pieces[6] = pieces[6], pieces[5]
    shuffled = raw_model(tokenizer_file) + b"".join(map(_user_defined_piece, pieces))
    (tmp_path / "tokenizer.model").write_bytes(shuffled)
    with pytest.raises(TokenizerError, match="<loc0005> should be"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["pad", "eos", "bos", "sep", "loc0", "seg0"])
def test_check_names_the_id_that_differs(tokenizer: Tokenizer, name: str) -> None:
    tokenizer.check(tokenizer.vocab)
    expected = replace(tokenizer.vocab, **{name: getattr(tokenizer.vocab, name) - 1})
    wanted, found = getattr(expected, name), getattr(tokenizer.vocab, name)
    with pytest.raises(TokenizerError, match=f"give {name} the id {wanted} .* got {found}"):
        tokenizer.check(expected)


def test_check_allows_spare_embedding_rows_but_not_too_few(tokenizer: Tokenizer) -> None:
    vocab = tokenizer.vocab
    tokenizer.check(replace(vocab, size=vocab.size + 64))
    larger = Tokenizer(tokenizer._backend)
    larger.vocab = replace(vocab, size=vocab.size + 1)
    with pytest.raises(TokenizerError, match="embedding rows"):
        larger.check(vocab)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="character 2"):
        tokenizer.encode("ab\ud800")


@pytest.mark.skipif(
    "PALIGEMMA_TOKENIZER" not in os.environ,
    reason="PALIGEMMA_TOKENIZER does not name the released tokenizer file",
)
def test_the_released_tokenizer_gives_the_published_ids() -> None:
    released = load_tokenizer(os.environ["PALIGEMMA_TOKENIZER"])
    released.check(GEMMA_VOCAB)
    assert released.vocab.size == 257152
    assert released.encode("Where is the cow standing?") == [6006, 603, 573, 13910, 9980, 235336]
    assert released.encode("on the beach") == [477, 573, 8318]
    assert released.encode("\n") == [108]
    assert released.encode("<loc0000><loc1023><seg000><seg127>") == [256000, 257023, 257024, 257151]
    assert not {0, 1, 2, 257152} & set(released.encode("<image><bos><eos><pad>"))


def test_the_hub_file_marks_special_pieces_that_text_may_hold(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = hub_json(tokenizer, tmp_path / "tokenizer.json")
    added = {
        token["content"]: token["special"] for token in json.loads(path.read_text())["added_tokens"]
    }
    assert added["<seg000>"]
    assert not added["<loc0000>"]  # otherwise the agreement above would not cover both cases


REGEX = {"Regex": "(a|a)*$"}
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
HOSTILE = {
    "regex": {"normalizer": {"type": "Replace", "pattern": REGEX, "content": ""}},
    "doubling": {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 40}},
    "many steps": {
        "normalizer": {"type": "Sequence", "normalizers": [DOUBLE | {"content": "b"}] * 17}
    },
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "split": {"pre_tokenizer": {"type": "Split", "pattern": REGEX, "behavior": "Isolated"}},
    "decoder": {"decoder": {"type": "Replace", "pattern": REGEX, "content": "b"}},
    "empty": {"normalizer": DOUBLE | {"pattern": {"String": ""}, "content": ""}},
    "unigram": {"model": {"type": "Unigram", "vocab": []}},
    "deep": {"x": json.loads("[" * 90 + "]" * 90)},
    "number": {"x": 10**400},
    "ids": {"added_tokens": [{"id": "7", "content": "a"}]},
    "tokens": {"added_tokens": 7},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_tokenizer_json_with_steps_without_bounds_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, change: dict[str, object]
) -> None:
    path = hub_json(tokenizer, tmp_path / "tokenizer.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TokenizerError, match=r"cannot be read as one .*; download it again"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("token", [2**31, -1, "7", True, None], ids=str)
def test_an_id_of_a_tokenizer_json_beyond_every_table_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, token: object
) -> None:
    path = hub_json(tokenizer, tmp_path / "tokenizer.json")
    body = json.loads(path.read_text())
    body["model"]["vocab"]["beyond"] = token
    path.write_text(json.dumps(body))
    with pytest.raises(TokenizerError, match=r"ids of its vocabulary must lie in 0\.\.1048575"):
        Tokenizer.from_file(path)


def test_chance_and_templates_of_a_tokenizer_json_are_left_out(
    tokenizer: Tokenizer, hub_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = hub_json(tokenizer, tmp_path / "tokenizer.json")
    body = json.loads(path.read_text())
    body["model"]["dropout"] = 0.9
    body["post_processor"] = {"type": "TemplateProcessing", "single": "what?"}
    path.write_text(json.dumps(body))
    assert [Tokenizer.from_file(path).encode(t) for t in TEXTS] == list(
        map(hub_tokenizer.encode, TEXTS)
    )


def test_a_panic_of_the_library_is_a_sentence(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenizers

    class PanicException(BaseException):
        """As PyO3 raises it."""

    def raising(error: BaseException) -> object:
        def from_str(_: str) -> object:
            raise error

        return type("Tokenizer", (), {"from_str": staticmethod(from_str)})

    path = hub_json(tokenizer, tmp_path / "tokenizer.json")
    monkeypatch.setattr(tokenizers, "Tokenizer", raising(PanicException("index out of bounds")))
    with pytest.raises(TokenizerError, match=r"\(index out of bounds\); download it again"):
        Tokenizer.from_file(path)
    monkeypatch.setattr(tokenizers, "Tokenizer", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.from_file(path)
