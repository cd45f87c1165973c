"""SigLIP's own towers from their files, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from paligemma.cli import main
from paligemma.errors import CheckpointError, PromptError
from paligemma.retrieval.siglip import Siglip
from paligemma.scenes import draw_scene

transformers = pytest.importorskip("transformers")

TEXTS = ["A red star!", "two  digits, on a desk", "z"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP of a few thousand parameters, as transformers writes it."""
    import sentencepiece

    found = tmp_path_factory.mktemp("siglip")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red star and two digits on a desk"] * 50),
        model_prefix=str(found / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3}
    config = transformers.SiglipConfig(
        text_config={**sizes, "vocab_size": 60, "max_position_embeddings": 9},
        vision_config={**sizes, "image_size": 42, "patch_size": 14},
    )
    torch.manual_seed(3)
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(found)
    return found


def test_both_towers_give_the_vectors_and_probabilities_of_transformers(folder: Path) -> None:
    pictures = [Image.fromarray(draw_scene(seed).image) for seed in range(3)]
    mine = Siglip.from_folder(folder)
    theirs = transformers.SiglipModel.from_pretrained(folder).eval()
    ids = torch.tensor([mine._ids(text) for text in TEXTS])
    assert ids.shape == (3, 9)
    pixels = torch.stack([mine.pixels(one) for one in pictures]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels)
    text, seen = mine.text_vectors(TEXTS), mine.picture_vectors(pictures)
    torch.testing.assert_close(text, expected.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen, expected.image_embeds, atol=1e-5, rtol=0)
    sure = mine.probabilities(seen @ text.T)
    torch.testing.assert_close(sure, expected.logits_per_image.sigmoid(), atol=1e-5, rtol=0)


def test_texts_lose_capitals_and_punctuation_and_end_until_all_places_are_full(
    folder: Path,
) -> None:
    mine = Siglip.from_folder(folder)
    assert mine._ids("A red,  STAR!") == mine._ids("a red star")
    pieces = mine._pieces.encode("a red")
    assert 0 < len(pieces) < 8
    assert mine._ids("a red") == [*pieces, *[1] * (9 - len(pieces))]
    assert len(mine._ids("a red star " * 20)) == 9
    assert mine._ids("a red star " * 20)[-1] == 1
    with pytest.raises(PromptError, match="1 to 2000 characters"):
        mine.text_vectors([" "])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("spiece.model", None, "has no spiece.model"),
        ("spiece.model", b"no model", "is no SentencePiece model"),
        ("config.json", b'{"model_type": "clip"}', "is no config of SigLIP"),
        ("config.json", b"[]", "is no config of SigLIP"),
        ("model.safetensors", b"no tensors", "must be complete"),
    ],
)
def test_files_that_are_not_siglips_are_refused(
    folder: Path, tmp_path: Path, name: str, data: bytes | None, words: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        Siglip.from_folder(tmp_path)


def test_tensors_of_another_size_are_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"vocab_size": 60', '"vocab_size": 61'))
    with pytest.raises(CheckpointError, match=r"text.tokens.weight is \[60, 24\], not \[61, 24\]"):
        Siglip.from_folder(tmp_path)


def test_the_command_finds_pictures_by_words(folder: Path, tmp_path: Path) -> None:
    pictures = []
    for seed in range(3):
        pictures.append(tmp_path / f"{seed}.png")
        Image.fromarray(draw_scene(seed).image).save(pictures[-1])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    mine = Siglip.from_folder(folder)
    seen = mine.picture_vectors([str(one) for one in pictures])
    cosines = seen @ mine.text_vectors(["a star"])[0]
    order = [pictures[k].name for k in np.argsort(-cosines.numpy(), kind="stable")]
    asked = ["similar", "--text", "a star", str(tmp_path), "--siglip", str(folder)]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.stderr
    assert [Path(line.split()[-1]).name for line in done.stdout.splitlines()] == order
    assert "broken.png is left out" in done.stderr
    assert "small embedded model" not in done.stderr  # SigLIP's towers are compared, not tiny's
    idle = CliRunner().invoke(main, [*asked, "--model", "tiny"]).stderr
    assert "--model had no effect: --siglip compares SigLIP's towers" in idle
    like = CliRunner().invoke(main, ["similar", *map(str, pictures), "--siglip", str(folder)])
    cosines = seen[1:] @ seen[0]
    assert [float(line.split()[0]) for line in like.stdout.splitlines()] == pytest.approx(
        sorted(cosines.tolist(), reverse=True), abs=1e-4
    )
    alone = CliRunner().invoke(main, asked[:-2])
    assert alone.exit_code == 2
    assert "no text tower" in alone.stderr


def test_texts_become_the_tokens_of_transformers(folder: Path) -> None:
    theirs = transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=9)
    mine = Siglip.from_folder(folder)
    for text in (*TEXTS, "two digits", "A  desk."):
        expected = theirs(text, padding="max_length", max_length=9, truncation=True).input_ids
        assert mine._ids(text) == expected, text
