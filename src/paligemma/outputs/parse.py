"""From the model's text or tokens to objects; total: no text and no ids raise an error.

    output = (free text | object)*
    object = loc loc loc loc  [seg x 16]  [label]  (";" | next object | end)

What fits this grammar goes into `objects` and everything else into `rest`, so that nothing is lost:
free text, one to three location tokens, a run of codewords that is not sixteen long, text between
";" and the next box. Swapped and empty boxes stay objects whose `is_valid` is false. Source of the
grammar: PaliGemma, arXiv:2407.07726, section 3.2.1 and appendix B, read tolerantly.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paligemma.outputs.boxes import format_loc, format_seg
from paligemma.outputs.confidence import DEFAULT_TOLERANCE, clean_logprobs, score_object
from paligemma.outputs.types import (
    ObjectScores,
    ParsedObject,
    ParsedOutput,
    TextAnswer,
    TokenRecord,
)
from paligemma.vocab import NUM_LOC, NUM_SEG, SEG_PER_MASK, Vocab

Decode = Callable[[Sequence[int]], str]

_TOKEN = re.compile(r"<loc([0-9]{4})>|<seg([0-9]{3})>")


def parse_objects(text: str) -> ParsedOutput:
    """Objects of a text.

    Args:
        text: any text; `<locNNNN>` above 1023 and `<segNNN>` above 127 count as plain text.

    Returns:
        The objects without scores, and the rest.
    """
    found, rest = _parse(_TextSource(text))
    return ParsedOutput(objects=tuple(f.to_object() for f in found), rest=rest, text=text)


def parse_tokens(
    record: TokenRecord,
    vocab: Vocab,
    decode: Decode,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
) -> ParsedOutput:
    """Objects of emitted tokens, with confidences; tokens from the first end token on are ignored.

    Args:
        decode: function from ids in [0, vocab.size) to text, such as `tokenizer.decode`.

    Returns:
        The objects with scores, and the rest.
    """
    ids = _before_end(record.ids, vocab)
    found, rest = _parse(_IdSource(ids, vocab, decode))
    objects = tuple(f.scored(record, tolerance) for f in found)
    return ParsedOutput(objects=objects, rest=rest, text=_decode_known(ids, vocab, decode))


def text_answer(record: TokenRecord, vocab: Vocab, decode: Decode) -> TextAnswer:
    """The decoded answer with the probability of exactly this text, its end token included."""
    ids = _before_end(record.ids, vocab)
    ended = record.ids[len(ids) : len(ids) + 1].tolist() == [vocab.eos]
    logprobs = clean_logprobs(record.logprobs[: len(ids) + ended])
    score = float(np.exp(logprobs.sum())) if len(logprobs) else None
    text = _decode_known(ids, vocab, decode)
    return TextAnswer(text=text, score=score, token_logprobs=tuple(logprobs.tolist()))


@dataclass(frozen=True)
class _Item:
    """A location token, a codeword or a stretch of text, from start to end in its source."""

    kind: str  # "loc", "seg" or "text"
    value: int
    start: int
    end: int


class _TextSource:
    """Items of the characters of a text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def items(self) -> list[_Item]:
        items, at = [], 0
        for match in _TOKEN.finditer(self._text):
            loc, seg = match.groups()
            kind, value, bound = ("loc", loc, NUM_LOC) if loc else ("seg", seg, NUM_SEG)
            if int(value) >= bound:
                continue
            if match.start() > at:
                items.append(_Item("text", 0, at, match.start()))
            items.append(_Item(kind, int(value), match.start(), match.end()))
            at = match.end()
        if at < len(self._text):
            items.append(_Item("text", 0, at, len(self._text)))
        return items

    def read(self, item: _Item) -> str:
        return self._text[item.start : item.end]

    def cut_label(self, item: _Item) -> tuple[int, str, str]:
        """End position of the label, the label, and the text after its first ";"."""
        label, _, after = self.read(item).partition(";")
        return item.start + len(label), label.strip(), after


class _IdSource:
    """Items of token ids."""

    def __init__(self, ids: list[int], vocab: Vocab, decode: Decode) -> None:
        self._ids, self._vocab = ids, vocab
        self._decode = lambda part: _decode_known(part, vocab, decode)

    def items(self) -> list[_Item]:
        items: list[_Item] = []
        for at, token in enumerate(self._ids):
            if self._vocab.is_loc(token):
                items.append(_Item("loc", token - self._vocab.loc0, at, at + 1))
            elif self._vocab.is_seg(token):
                items.append(_Item("seg", token - self._vocab.seg0, at, at + 1))
            elif items and items[-1].kind == "text":
                items[-1] = _Item("text", 0, items[-1].start, at + 1)
            else:
                items.append(_Item("text", 0, at, at + 1))
        return items

    def read(self, item: _Item) -> str:
        return self._decode(self._ids[item.start : item.end])

    def cut_label(self, item: _Item) -> tuple[int, str, str]:
        start, end = item.start, item.end
        label, separator, after = self.read(item).partition(";")
        if not separator:
            return end, label.strip(), ""
        # The token that brings the ";" is the last of the shortest such head.
        low, high = start, end
        while high - low > 1:
            middle = (low + high) // 2
            if ";" in self._decode(self._ids[start:middle]):
                high = middle
            else:
                low = middle
        before = self._decode(self._ids[start : high - 1]).strip()
        return (high - 1 if before == label.strip() else high), label.strip(), after


_Source = _TextSource | _IdSource


@dataclass(frozen=True)
class _Found:
    loc: list[_Item]
    seg: list[_Item] | None
    label: str | None
    label_span: tuple[int, int] | None

    def scored(self, record: TokenRecord, tolerance: float) -> ParsedObject:
        scores = score_object(
            record,
            bins=[i.value for i in self.loc],
            loc=[i.start for i in self.loc],
            seg=None if self.seg is None else [i.start for i in self.seg],
            label=self.label_span,
            tolerance=tolerance,
        )
        return self.to_object(scores)

    def to_object(self, scores: ObjectScores | None = None) -> ParsedObject:
        y0, x0, y1, x1 = (i.value for i in self.loc)
        seg = None if self.seg is None else tuple(i.value for i in self.seg)
        return ParsedObject(loc=(y0, x0, y1, x1), seg=seg, label=self.label, scores=scores)


def _parse(source: _Source) -> tuple[list[_Found], str]:
    """One pass over the items; each branch consumes at least one."""
    # Blank text between two tokens means nothing; dropping it lets "<loc..> <loc..>" be one box.
    items = [i for i in source.items() if i.kind != "text" or source.read(i).strip()]
    found: list[_Found] = []
    rest: list[str] = []
    at = 0
    while at < len(items):
        loc = _run(items, at, "loc", 4)
        if len(loc) < 4:
            rest.append(_text_of(source, items[at]))
            at += 1
            continue
        at += 4
        seg: list[_Item] | None = _run(items, at, "seg", SEG_PER_MASK)
        at += len(seg or ())
        if seg is not None and len(seg) < SEG_PER_MASK:
            rest += [_token_text(i) for i in seg]
            seg = None
        while at < len(items) and items[at].kind == "seg":  # a seventeenth codeword and beyond
            rest.append(_token_text(items[at]))
            at += 1
        label, span = None, None
        if at < len(items) and items[at].kind == "text":
            start = items[at].start
            end, text, after = source.cut_label(items[at])
            if text:
                label, span = text, (start, end)
            rest.append(after)
            at += 1
        found.append(_Found(loc, seg, label, span))
    pieces = [p.strip() for fragment in rest for p in fragment.split(";")]
    return found, " ".join(p for p in pieces if p)


def _run(items: list[_Item], at: int, kind: str, most: int) -> list[_Item]:
    """The items of one kind from `at` on, at most so many."""
    end = at
    while end < len(items) and end - at < most and items[end].kind == kind:
        end += 1
    return items[at:end]


def _text_of(source: _Source, item: _Item) -> str:
    return source.read(item) if item.kind == "text" else _token_text(item)


def _token_text(item: _Item) -> str:
    return (format_loc if item.kind == "loc" else format_seg)([item.value])


def _before_end(ids: np.ndarray, vocab: Vocab) -> list[int]:
    """Ids up to the first end or padding token."""
    out = []
    for token in ids.tolist():
        if token in (vocab.eos, vocab.pad):
            break
        out.append(token)
    return out


def _decode_known(ids: Sequence[int], vocab: Vocab, decode: Decode) -> str:
    """Text of the ids that exist; a tokenizer raises on others, a model cannot emit them."""
    return decode([i for i in ids if 0 <= i < vocab.size])
