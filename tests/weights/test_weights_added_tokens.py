"""Fine-tunes with tokens of their own: loaded, converted and saved, never dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import EMBEDDED, VOCAB, write_random_tiny
from torch import Tensor

from paligemma import PaliGemma
from paligemma.errors import PaliGemmaError
from paligemma.weights.doctor import diagnose, worst
from paligemma.weights.load import load_model
from paligemma.weights.save import convert

EMBED = "language_model.model.embed_tokens.weight"
NAMES = ("<s_total>", "<s_date>", "</s>")
SIZE = VOCAB.size


def fine_tune(folder: Path, *, rows: int, names: tuple[str, ...] = NAMES) -> Tensor:
    """A random small model whose table grew behind `<image>`; returns the new rows."""
    write_random_tiny(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    new = torch.randn(rows, tensors[EMBED].shape[1]).to(tensors[EMBED].dtype)
    tensors[EMBED] = torch.cat((tensors[EMBED], new))
    save_file(tensors, path)
    body = json.loads((folder / "config.json").read_text())
    body["vocab_size"] = body["text_config"]["vocab_size"] = SIZE + rows
    (folder / "config.json").write_text(json.dumps(body))
    if names:
        ids = {"<image>": SIZE, **{name: SIZE + 1 + i for i, name in enumerate(names)}}
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    return new


@pytest.mark.parametrize("rows", [4, 51, 64, 128, 300])
def test_their_rows_are_read_whatever_the_table_was_padded_to(tmp_path: Path, rows: int) -> None:
    new = fine_tune(tmp_path / "a", rows=rows)
    pg = PaliGemma.from_pretrained(tmp_path / "a")
    vocab = pg.model.config.vocab
    assert (vocab.size, vocab.image) == (SIZE + 4, SIZE)
    assert torch.equal(pg.model.text.embed.weight[SIZE:], new[:4].float())
    ids = pg.processor.tokenizer.encode("<s_date>42</s>")
    assert (ids[0], ids[-1]) == (SIZE + 2, SIZE + 3)
    assert pg.processor.tokenizer.decode(ids) == "<s_date>42</s>"
    findings = diagnose(tmp_path / "a", hash_files=False, read_weights=False)
    assert any(
        f"3 tokens of a fine-tune from {SIZE + 1} on: <s_total>" in f.message for f in findings
    )


@pytest.mark.parametrize("layout", ["hf", "npz"])
def test_they_survive_there_and_back(tmp_path: Path, layout: str) -> None:
    fine_tune(tmp_path / "a", rows=51)
    convert(tmp_path / "a", tmp_path / "b", layout=layout)
    convert(tmp_path / "b", tmp_path / "c", pad_rows=True)
    first = load_model(tmp_path / "a")
    for name in ("b", "c"):
        again = PaliGemma.from_pretrained(tmp_path / name)
        assert again.model.config == first.config
        assert torch.equal(again.model.text.embed.weight, first.text.embed.weight.float())
        assert again.processor.tokenizer.encode("</s>") == [SIZE + 3]
    (tmp_path / "c" / "added_tokens.json").unlink()
    assert load_model(tmp_path / "c").config == first.config  # config.json states the number


def test_rows_without_a_name_are_said_or_refused(tmp_path: Path, caplog) -> None:
    fine_tune(tmp_path / "a", rows=11, names=())
    assert load_model(tmp_path / "a").config.vocab.size == SIZE
    assert "10 rows of the embedding table behind the last token have no name" in caplog.text
    findings = diagnose(tmp_path / "a", hash_files=False)
    assert worst(findings) == "warning"
    assert any("10 rows of the embedding table" in f.message for f in findings)
    fine_tune(tmp_path / "b", rows=101, names=())
    with pytest.raises(PaliGemmaError, match=rf"should be \({SIZE}, \d+\), is \({SIZE + 101}"):
        load_model(tmp_path / "b")
    caplog.clear()
    for rows in (1, 64):  # `<image>` alone, and its padding to 1,984 rows
        fine_tune(tmp_path / f"c{rows}", rows=rows, names=())
        load_model(tmp_path / f"c{rows}")
    assert not caplog.text


def test_a_table_without_their_rows_is_refused(tmp_path: Path) -> None:
    fine_tune(tmp_path / "a", rows=3)
    with pytest.raises(PaliGemmaError, match=rf"should be \({SIZE + 4}, \d+\), is \({SIZE + 3}"):
        load_model(tmp_path / "a")
    assert worst(diagnose(tmp_path / "a", hash_files=False, read_weights=False)) == "error"


def test_the_embedded_model_has_none() -> None:
    assert load_model(EMBEDDED).config.vocab.image is None
