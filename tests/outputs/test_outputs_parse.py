"""The total parser, on texts and on ids."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.outputs.boxes import decode_boxes, format_detections
from paligemma.outputs.parse import parse_objects, parse_tokens
from paligemma.outputs.types import ParsedObject, TokenRecord
from paligemma.vocab import Vocab

BOX = "<loc0010><loc0020><loc0300><loc0400>"
LOC = (10, 20, 300, 400)
SEG = tuple(range(16))
MASK = "".join(f"<seg{c:03d}>" for c in SEG)

# A vocabulary of characters: id = code point for ASCII, then locations, then codewords.
VOCAB = Vocab(size=128 + 1024 + 128, pad=0, eos=1, bos=2, sep=10, loc0=128, seg0=128 + 1024)


def decode(ids: Sequence[int]) -> str:
    return "".join(
        chr(i) if i < 128 else f"<loc{i - 128:04d}>" if i < 1152 else f"<seg{i - 1152:03d}>"
        for i in ids
    )


def encode(text: str) -> list[int]:
    ids: list[int] = []
    while text:
        if text.startswith("<loc"):
            ids.append(128 + int(text[4:8]))
            text = text[9:]
        elif text.startswith("<seg"):
            ids.append(1152 + int(text[4:7]))
            text = text[8:]
        else:
            ids.append(ord(text[0]))
            text = text[1:]
    return ids


def record(ids: Sequence[int]) -> TokenRecord:
    return TokenRecord(ids=np.array(ids, np.int64), logprobs=np.zeros(len(ids), np.float32))


CASES = [
    # text, [(label, has mask)], rest
    (f"{BOX} cat", [("cat", False)], ""),
    (f"{BOX} cat ; {BOX} dog", [("cat", False), ("dog", False)], ""),
    (f"{BOX} 3.5mm jack", [("3.5mm jack", False)], ""),
    (f"{BOX} can (open) ; {BOX} q-tip, 10%", [("can (open)", False), ("q-tip, 10%", False)], ""),
    (f"{BOX}cat", [("cat", False)], ""),
    (f"{BOX}cat;{BOX}dog", [("cat", False), ("dog", False)], ""),
    (f"{BOX} jack  of clubs", [("jack  of clubs", False)], ""),
    (BOX, [(None, False)], ""),
    (f"{BOX}{BOX} cat", [(None, False), ("cat", False)], ""),
    (f"{BOX} cat {BOX} dog", [("cat", False), ("dog", False)], ""),
    (f"{BOX} ; {BOX}", [(None, False), (None, False)], ""),
    (f"{BOX}{MASK} cat", [("cat", True)], ""),
    (f"{BOX}{MASK}", [(None, True)], ""),
    (f"I see {BOX} cat", [("cat", False)], "I see"),
    (f"{BOX} cat ; and a dog ; {BOX} hat", [("cat", False), ("hat", False)], "and a dog"),
    ("no object here", [], "no object here"),
    ("<loc0001><loc0002><loc0003> cat", [], "<loc0001> <loc0002> <loc0003> cat"),
    (f"{BOX} cat ; <loc0001><loc0002>", [("cat", False)], "<loc0001> <loc0002>"),
    (f"{BOX}<seg000><seg001> cat", [("cat", False)], "<seg000> <seg001>"),
    (f"{BOX}{MASK}<seg099> cat", [("cat", True)], "<seg099>"),
    (f"{BOX} cat <seg005>", [("cat", False)], "<seg005>"),
    (f"<seg005>{BOX} cat", [("cat", False)], "<seg005>"),
    (f"{BOX}<loc0005> cat", [(None, False)], "<loc0005> cat"),
    ("<loc0010> <loc0020> <loc0300>\n<loc0400> cat", [("cat", False)], ""),
    ("", [], ""),
    (" ; ; ", [], ""),
]


@pytest.mark.parametrize(("text", "objects", "rest"), CASES)
def test_texts_become_objects_and_a_rest(
    text: str, objects: list[tuple[str | None, bool]], rest: str
) -> None:
    parsed = parse_objects(text)
    assert [(o.label, o.seg is not None) for o in parsed.objects] == objects
    assert all(o.loc == LOC and o.seg in (None, SEG) for o in parsed.objects)
    assert parsed.rest == rest
    assert parsed.text == text


@pytest.mark.parametrize(("text", "objects", "rest"), CASES)
def test_ids_and_their_text_are_parsed_alike(
    text: str, objects: list[tuple[str | None, bool]], rest: str
) -> None:
    parsed = parse_tokens(record(encode(text)), VOCAB, decode)
    assert [(o.label, o.seg is not None) for o in parsed.objects] == objects
    assert (parsed.rest, parsed.text) == (rest, text)


def test_the_worked_example_of_the_paper_parses() -> None:
    seg = (93, 106, 114, 78, 64, 12, 31, 55, 50, 12, 83, 118, 84, 78, 127, 121)
    text = "<loc0347><loc0553><loc0788><loc0749>" + "".join(f"<seg{c:03d}>" for c in seg)
    assert parse_objects(text).objects == (ParsedObject(loc=(347, 553, 788, 749), seg=seg),)


def test_numbers_beyond_the_vocabulary_are_plain_text() -> None:
    parsed = parse_objects("<loc0001><loc0002><loc0003><loc1024> <seg128> ; <loc1>")
    assert parsed.objects == ()
    assert parsed.rest == "<loc0001> <loc0002> <loc0003> <loc1024> <seg128> <loc1>"


@pytest.mark.parametrize(
    "loc", [(300, 20, 10, 400), (10, 400, 300, 20), (10, 20, 10, 400), (5, 5, 5, 5)]
)
def test_swapped_and_empty_boxes_are_kept_and_flagged(loc: tuple[int, int, int, int]) -> None:
    (item,) = parse_objects("".join(f"<loc{b:04d}>" for b in loc) + " cat").objects
    assert item.loc == loc
    assert not item.is_valid
    assert ParsedObject(loc=LOC).is_valid


@pytest.mark.parametrize("end", [0, 1])
def test_everything_from_the_end_token_on_is_ignored(end: int) -> None:
    ids = [*encode(f"{BOX} cat"), end, *encode(f" ; {BOX} dog")]
    assert [o.label for o in parse_tokens(record(ids), VOCAB, decode).objects] == ["cat"]


def test_ids_that_no_tokenizer_knows_are_passed_over() -> None:
    def strict(ids: Sequence[int]) -> str:
        assert all(0 <= i < VOCAB.size for i in ids)
        return decode(ids)

    ids = [VOCAB.size + 5, *encode(f"{BOX} cat"), -3]
    parsed = parse_tokens(record(ids), VOCAB, strict)
    assert [o.label for o in parsed.objects] == ["cat"]


def test_a_vocabulary_without_locations_yields_only_text() -> None:
    plain = Vocab(size=300, pad=0, eos=1, bos=2, sep=10, loc0=-1, seg0=-1)
    parsed = parse_tokens(record([72, 105]), plain, decode)
    assert (parsed.objects, parsed.rest) == ((), "Hi")


PIECES = st.one_of(
    st.integers(0, 1100).map(lambda n: f"<loc{n:04d}>"),
    st.integers(0, 140).map(lambda n: f"<seg{n:03d}>"),
    st.just(BOX),
    st.just(BOX + MASK),
    st.sampled_from([" ; ", ";", " cat", "<loc", ">", "\n", "<loc00٣٤>"]),
    st.text(max_size=8),
)


def spelt(objects: Sequence[ParsedObject]) -> str:
    """The text of objects, as training writes it."""
    boxes = decode_boxes([o.loc for o in objects])
    return format_detections(boxes, [o.label for o in objects], [o.seg for o in objects])


@settings(deadline=None, max_examples=150)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_no_text_raises_and_nothing_is_lost(text: str) -> None:
    parsed = parse_objects(text)
    said = spelt([replace(o, label=None) for o in parsed.objects]) + "".join(
        o.label or "" for o in parsed.objects
    )

    def characters(*texts: str) -> list[str]:
        return sorted(c for t in texts for c in t if not c.isspace() and c != ";")

    assert characters(said, parsed.rest) == characters(text)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(-5, VOCAB.size + 5), max_size=60))
def test_no_id_sequence_raises(ids: list[int]) -> None:
    parsed = parse_tokens(record(ids), VOCAB, decode)
    assert all(o.scores is not None and 0 <= o.scores.score <= 1 for o in parsed.objects)


LABELS = st.none() | st.text(min_size=1, max_size=12).filter(
    lambda s: s == s.strip() and ";" not in s and "<" not in s
)
OBJECTS = st.lists(
    st.builds(
        ParsedObject,
        loc=st.tuples(*[st.integers(0, 1023)] * 4),
        seg=st.none() | st.tuples(*[st.integers(0, 127)] * 16),
        label=LABELS,
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=150)
@given(OBJECTS)
def test_parse_inverts_format(objects: list[ParsedObject]) -> None:
    parsed = parse_objects(spelt(objects))
    assert parsed.objects == tuple(objects)
    assert parsed.rest == ""


def test_a_long_hostile_text_is_parsed_in_linear_time() -> None:
    text = (BOX + "<seg001> a;b<loc0001>" + "<loc" * 5) * 2000
    start = time.perf_counter()
    assert len(parse_objects(text).objects) == 2000
    assert time.perf_counter() - start < 2


def test_a_long_hostile_id_sequence_is_parsed_quickly() -> None:
    ids = encode((BOX + "a;b<seg001>") * 500 + BOX + "a" * 2000 + ";" * 2000)
    start = time.perf_counter()
    assert len(parse_tokens(record(ids), VOCAB, decode).objects) == 501
    assert time.perf_counter() - start < 2
