"""A small SentencePiece tokenizer, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from paligemma.processing.sentencepiece_model import train_tokenizer
from paligemma.processing.tokenizer import Tokenizer

LINES = [
    "detect cat ; dog ; red circle",
    "segment blue square",
    "answer en how many red circles are there?",
    "caption en",
    "ocr",
    "<loc0012><loc0034><loc0900><loc1023> cat ; <loc0001><loc0002><loc0003><loc0004> dog",
    "a red circle and the number 42 on sand\nand another line",
] * 20


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(LINES, vocab_size=300, out_path=folder / "tokenizer.model")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(tokenizer_file)
