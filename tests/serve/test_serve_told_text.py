"""Text is told up to a stop, and never the beginning of one."""

from __future__ import annotations

import itertools
import random

from paligemma.serve.told_text import ToldText


def told(pieces: list[str], stops: list[str]) -> tuple[list[str], list[int], bool]:
    """What is told after every piece and at the end, the told tokens, and whether it stopped."""
    text = ToldText(stops)
    found = [text.push(piece, number) for number, piece in enumerate(pieces)]
    found.append(text.finish(""))
    return (
        [piece for piece, _ in found],
        [one for _, some in found for one in some],
        text.is_stopped,
    )


def test_without_stops_everything_is_told_at_once() -> None:
    assert told(["a", "", "bc"], []) == (["a", "", "bc", ""], [0, 1, 2], False)


def test_the_possible_beginning_of_a_stop_is_held_back() -> None:
    assert told(["one", " tw", "o"], [" two"]) == (["one", "", "", ""], [0], True)
    assert told(["one", " tw", "ig"], [" two"]) == (["one", "", " twig", ""], [0, 1, 2], False)
    assert told(["one", " tw"], [" two"]) == (["one", "", " tw"], [0, 1], False)


def test_the_first_stop_counts_and_nothing_behind_it_is_told() -> None:
    assert told(["abcabc", "abc"], ["ca", "b"]) == (["a", "", ""], [0], True)


def test_every_cut_into_pieces_tells_the_same_text() -> None:
    draw = random.Random(5)
    for _ in range(300):
        text = "".join(draw.choices("ab", k=12))
        size = draw.randint(2, 5)  # of different sizes, the one that is complete first counts
        stops = ["".join(draw.choices("ab", k=size)) for _ in range(2)]
        cuts = [0, *sorted(draw.sample(range(1, 12), 4)), 12]
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
        first = min((text.find(stop) for stop in stops if stop in text), default=12)
        assert "".join(told(pieces, stops)[0]) == text[:first]
