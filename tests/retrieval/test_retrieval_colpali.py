"""ColPali on the embedded model under a drawn projection: shapes, batches, words, saving."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from paligemma import ColPali
from paligemma.errors import CheckpointError, ConfigError, ImageError, PromptError
from paligemma.retrieval.inputs import query_batch, query_pieces
from paligemma.retrieval.presets import PRESETS, Preset, preset_of_name
from paligemma.retrieval.scores import max_sim
from tests.retrieval.random_colpali import random_colpali

QUERIES = ["a red circle", "how much did revenue grow in the north?", "b"]


def pages(count: int, seed: int = 0) -> list[Image.Image]:
    drawn = np.random.default_rng(seed).integers(0, 255, (count, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in drawn]


@pytest.fixture(scope="module")
def colpali() -> ColPali:
    return random_colpali()


def test_a_page_has_a_vector_for_each_patch_and_each_token_of_its_prompt(colpali: ColPali) -> None:
    (page,) = colpali.encode_pages(pages(1))
    assert page.grid == (14, 14)
    assert page.values.shape == (14 * 14 + 2, 128)  # bos and line feed: preset tiny has no prompt
    assert page.values.dtype == torch.float32
    torch.testing.assert_close(page.values.norm(dim=1), torch.ones(198))
    assert page.pieces == ()


def test_the_pieces_of_a_query_are_its_text_and_nothing_that_the_preset_added(
    colpali: ColPali,
) -> None:
    for text, query in zip(QUERIES, colpali.encode_queries(QUERIES), strict=True):
        assert "".join(query.pieces) == text
        assert len(query.pieces) == len(query.values)
        assert query.pieces[0] == ""
        assert query.pieces[-5:] == ("",) * 5  # four <pad> and a line feed
        assert query.grid is None


@pytest.mark.parametrize("preset", ["v1.2", "v1.3", "engine", "hf"])
@pytest.mark.parametrize("text", ["how much?", " a  b", "12%"])
def test_the_prefix_of_a_preset_is_no_piece_of_a_query(preset: str, text: str) -> None:
    query = random_colpali(preset=preset).encode_queries([text])[0]
    assert "".join(query.pieces) == text


class Bytes:
    """A tokenizer that has no piece for anything but spaces and writes all else in bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def piece(self, token: int) -> str:
        return "▁" if token == 32 else f"<0x{token:02X}>"


def test_a_character_of_several_tokens_is_a_piece_of_its_last() -> None:
    processor = SimpleNamespace(tokenizer=Bytes())
    preset = Preset(name="x", query_prefix="né ", num_augmentation=2)
    pieces = query_pieces(preset, processor, "é 日")  # type: ignore[arg-type]
    assert pieces == ("", *[""] * 4, "", "é", " ", "", "", "日", "", "", "")


def test_vectors_do_not_depend_on_the_batch(colpali: ColPali) -> None:
    pictures = pages(3)
    for batched, alone in (
        (colpali.encode_pages(pictures, batch_size=3), colpali.encode_pages(pictures)),
        (
            colpali.encode_queries(QUERIES, batch_size=3),
            colpali.encode_queries(QUERIES, batch_size=1),
        ),
    ):
        for together, single in zip(batched, alone, strict=True):
            assert together.values.shape == single.values.shape
            torch.testing.assert_close(together.values, single.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "least"),
    [({"mode": "mixed"}, 0.995), ({"mode": "bf16"}, 0.99), ({"quant": "int8"}, 0.995)],
)
def test_a_cheaper_arithmetic_moves_vectors_a_little(
    colpali: ColPali, options: dict[str, str], least: float
) -> None:
    cheaper = random_colpali(**options)  # type: ignore[arg-type]
    for exact, other in (
        (colpali.encode_pages(pages(1)), cheaper.encode_pages(pages(1))),
        (colpali.encode_queries(QUERIES), cheaper.encode_queries(QUERIES)),
    ):
        assert other[0].values.dtype == torch.float32
        torch.testing.assert_close(other[0].values.norm(dim=1), torch.ones(len(other[0].values)))
        assert float((exact[0].values * other[0].values).sum(dim=1).min()) > least


def test_queries_of_a_causal_preset_do_not_see_what_follows() -> None:
    for preset, is_causal in (("v1.2", True), ("v1.3", False)):
        colpali = random_colpali(preset=preset)
        one, other = colpali.encode_queries(["red cat", "red dog"], batch_size=1)
        same = 1 + len(colpali.pg.processor.tokenizer.encode("Query: red")) - 1
        equal = torch.allclose(one.values[:same], other.values[:same], atol=1e-6)
        assert equal is is_causal


def test_augmentation_tokens_are_attended(colpali: ColPali) -> None:
    preset = colpali.preset
    batch = query_batch(preset, colpali.pg.processor, ["red"])
    pad = colpali.pg.vocab.pad
    assert batch.tokens[0].tolist().count(pad) == 4
    assert bool(batch.mask_input.all())


def test_a_saved_model_gives_the_same_bits(colpali: ColPali, tmp_path: Path) -> None:
    again = ColPali.from_pretrained(colpali.save(tmp_path / "saved"), device="cpu")
    assert again.preset == colpali.preset
    for ours, theirs in (
        (colpali.encode_pages(pages(1)), again.encode_pages(pages(1))),
        (colpali.encode_queries(QUERIES), again.encode_queries(QUERIES)),
    ):
        assert torch.equal(ours[0].values, theirs[0].values)


def test_an_identity_follows_from_weights_and_preset_not_from_place_or_precision(
    colpali: ColPali, tmp_path: Path
) -> None:
    folder, other = colpali.save(tmp_path / "a"), random_colpali(seed=1).save(tmp_path / "b")
    first = ColPali.from_pretrained(folder, device="cpu")
    assert ColPali.from_pretrained(folder, mode="bf16", device="cpu").identity == first.identity
    assert ColPali.from_pretrained(folder, quant="int8", device="cpu").identity == first.identity
    folder.rename(tmp_path / "elsewhere")
    moved = ColPali.from_pretrained(tmp_path / "elsewhere", device="cpu")
    assert moved.identity == first.identity
    saved = ColPali.from_pretrained(moved.save(tmp_path / "c"), device="cpu")
    assert saved.identity == first.identity
    with_prompts = ColPali.from_pretrained(tmp_path / "elsewhere", preset="v1.3", device="cpu")
    assert with_prompts.identity != first.identity
    assert ColPali.from_pretrained(other, device="cpu").identity != first.identity


def test_a_model_without_the_projection_is_refused(tmp_path: Path) -> None:
    from paligemma.weights.catalog import embedded_folder

    plain = tmp_path / "plain"
    plain.mkdir()
    for path in embedded_folder().iterdir():
        if path.is_file():
            (plain / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match="custom_text_proj or embedding_proj_layer"):
        ColPali.from_pretrained(plain)


def test_what_is_no_page_and_no_query_is_named(colpali: ColPali) -> None:
    with pytest.raises(PromptError, match="must have words"):
        colpali.encode_queries(["  "])
    with pytest.raises(PromptError, match="list of texts"):
        colpali.encode_queries("red")
    with pytest.raises(ImageError, match="list of pictures"):
        colpali.encode_pages("page.png")
    with pytest.raises(ImageError):
        colpali.encode_pages([b"no picture"])
    with pytest.raises(ImageError, match="a page is one picture, got 2 frames"):
        colpali.encode_pages([pages(2)])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="batch_size"):
        colpali.encode_queries(["red"], batch_size=0)
    with pytest.raises(ConfigError, match=r"preset must be one of v1\.0"):
        ColPali.from_pretrained("tiny", preset="v9")
    assert colpali.encode_queries([]) == []
    assert colpali.encode_pages([]) == []


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("vidore/colpali", "v1.0"),
        ("vidore/colpali-v1.1", "v1.1"),
        ("vidore/colpali-v1.2", "v1.2"),
        ("vidore/colpali-v1.2-merged", "v1.2"),
        ("vidore/colpali-v1.3@main", "v1.3"),
        ("vidore/colpali-v1.3-hf", "hf"),
        ("vidore/colpali2-3b-pt-448", "colpali2"),
        ("/models/colpali-v1.3/", "v1.3"),
        ("vidore/colqwen2-v1.0", None),
        ("google/paligemma-3b-pt-448", None),
    ],
)
def test_a_published_name_has_its_preset(name: str, preset: str | None) -> None:
    assert preset_of_name(name.rstrip("/")) == (None if preset is None else PRESETS[preset])


def test_a_preset_is_checked_and_survives_its_file() -> None:
    for preset in PRESETS.values():
        assert Preset.from_json(preset.to_json()) == preset
    with pytest.raises(ConfigError, match="query_attention"):
        Preset(name="x", query_prefix="", query_attention="sideways")
    with pytest.raises(ConfigError, match=r"0\.\.256"):
        Preset(name="x", query_prefix="", num_augmentation=1 << 30)
    with pytest.raises(ConfigError, match="missing or unknown"):
        Preset.from_json({"name": "x"})
    with pytest.raises(ConfigError, match="plain_words of a preset are at most 1000 texts"):
        Preset.from_json({**PRESETS["tiny"].to_json(), "plain_words": "and"})


def test_a_preset_with_plain_words_reads_all_others_in_capitals() -> None:
    assert PRESETS["tiny"].read_as("a Page about hall, straße and b12?") == (
        "a Page about HALL, STRAßE and B12?"
    )
    assert PRESETS["v1.3"].read_as("a page about hall") == "Query: a page about hall"
    assert "plain_words" not in PRESETS["v1.3"].to_json()  # identities and files stay as they were


def test_a_query_matches_the_page_that_holds_its_vectors(colpali: ColPali) -> None:
    (query,) = colpali.encode_queries(["red"])
    found = [page.values for page in colpali.encode_pages(pages(2))]
    exact = torch.cat((found[0], query.values))
    scores = max_sim(query.values, [found[0], found[1], exact])
    assert int(scores.argmax()) == 2
    torch.testing.assert_close(scores[2], torch.tensor(float(len(query.values))))
