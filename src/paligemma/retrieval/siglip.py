"""SigLIP whole, with its text tower: pictures by words, where its files are given.

PaliGemma's own tower has been trained on since it was SigLIP's, and lost its pooling head; so text
is compared with what SigLIP's own image tower sees, from the same folder.

Axes: N pictures or texts, T tokens, D width.
Source: big_vision models/proj/image_text/two_towers.py; transformers models/siglip.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from paligemma.config import VisionConfig
from paligemma.errors import CheckpointError, ConfigError, PromptError
from paligemma.json_file import read_json
from paligemma.kernels.linear import Linear
from paligemma.model.siglip import MLP, Block, SigLIP
from paligemma.processing.image import ImageSource, load_image
from paligemma.weights.safetensors_file import open_safetensors

MAX_QUERY_CHARS = 2000
_EPS = 1e-6
_MAX_TOKENS = 1024
# Of config.json, where it leaves them out, as the files of the hub do.
_DEFAULTS = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_DEFAULTS |= {"num_attention_heads": 12, "image_size": 224, "patch_size": 16}
_DEFAULTS |= {"vocab_size": 32000, "max_position_embeddings": 64}
# Names of the files -> ours.
_NAMES = (
    (r"^(text|vision)_model\.encoder\.layers\.", r"\1.blocks."),
    (r"^(text|vision)_model\.", r"\1."),
    (r"\.embeddings\.token_embedding\.weight$", ".tokens.weight"),
    (r"^text\.embeddings\.position_embedding\.weight$", "text.positions"),
    (r"^vision\.embeddings\.position_embedding\.weight$", "vision.pos_embedding"),
    (r"^vision\.embeddings\.patch_embedding\.", "vision.patch_embed.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.(q|k|v|out)_proj\.", r".attn.\1."),
    (r"^vision\.post_layernorm\.", "vision.norm."),
    (r"^text\.final_layer_norm\.", "text.norm."),
    (r"^vision\.head\.", "head."),
    (r"^head\.layernorm\.", "head.norm."),
)


class TextTower(nn.Module):
    """A text to one vector: what the last token's place gathered; every token sees all."""

    def __init__(self, config: VisionConfig, num_pieces: int, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_pieces, config.width)
        self.positions = nn.Parameter(torch.empty(num_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.head = Linear(config.width, dim)

    def forward(self, ids: Tensor) -> Tensor:
        """int64[N, T] -> float[N, D]."""
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, -1])


class PoolingHead(nn.Module):
    """Patches to one vector: a learnt probe attends to them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.attention = nn.MultiheadAttention(config.width, config.num_heads, batch_first=True)
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.mlp = MLP(config)

    def forward(self, patches: Tensor) -> Tensor:
        """float[N, I, D] -> float[N, D]."""
        probe = self.probe.expand(len(patches), -1, -1)
        x = self.attention(probe, patches, patches, need_weights=False)[0]
        return (x + self.mlp(self.norm(x)))[:, 0]


class TwoTowers(nn.Module):
    """Both towers and the line that makes a probability of a cosine."""

    def __init__(self, vision: VisionConfig, text: TextTower) -> None:
        super().__init__()
        self.vision, self.head, self.text = SigLIP(vision), PoolingHead(vision), text
        self.logit_scale, self.logit_bias = (nn.Parameter(torch.empty(1)) for _ in range(2))


class Siglip:
    """SigLIP from its files; computes in float32 on the CPU.

    Args:
        towers: with weights.
        pieces: SentencePiece processor of its text.
        image_size_px: side of the square input.
    """

    def __init__(self, towers: TwoTowers, pieces: Any, image_size_px: int) -> None:
        self.towers, self._pieces, self.image_size_px = towers.eval(), pieces, image_size_px
        self._num_tokens = len(towers.text.positions)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Siglip:
        """Load config.json, model.safetensors and spiece.model of a folder as the hub has them.

        Raises:
            CheckpointError: a file is missing or damaged, or tensors do not fit.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "spiece.model"):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"SigLIP needs config.json, model.safetensors and spiece.model, {folder} has "
                    f"no {name}; fetch a folder such as google/siglip-so400m-patch14-384"
                )
        towers, size_px = _towers_of(folder / "config.json")
        _load(towers, folder / "model.safetensors")
        return cls(towers, _pieces_of(folder / "spiece.model"), size_px)

    @torch.inference_mode()
    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """float32[N, D] of texts, unit length.

        Raises:
            PromptError: an empty text, or one of more than 2,000 characters.
        """
        return normalize(self.towers.text(torch.tensor([self._ids(one) for one in texts])), dim=-1)

    def picture_vectors(self, pictures: Sequence[ImageSource]) -> Tensor:
        """float32[N, D] of pictures, unit length.

        Raises:
            ImageError: a bad picture.
        """
        return self.pixel_vectors([self.pixels(one) for one in pictures])

    @torch.inference_mode()
    def pixel_vectors(self, pixels: Sequence[Tensor]) -> Tensor:
        """float32[N, D] of prepared pictures, unit length; see `pixels`."""
        return normalize(self.towers.head(self.towers.vision(torch.stack([*pixels]))), dim=-1)

    def probabilities(self, cosines: Tensor) -> Tensor:
        """How sure SigLIP is that a text belongs to a picture, each pair by itself."""
        towers = self.towers
        return torch.sigmoid(cosines * towers.logit_scale.exp() + towers.logit_bias).detach()

    def pixels(self, picture: ImageSource) -> Tensor:
        """float32[R, R, 3] in [-1, 1] of a picture.

        Raises:
            ImageError: a bad picture.
        """
        side = (self.image_size_px,) * 2
        small = Image.fromarray(load_image(picture)).resize(side, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(small, np.float32) / 127.5 - 1.0)

    def _ids(self, text: str) -> list[int]:
        """Pieces of the text as SigLIP learnt it, then its end until all places are full."""
        if not text.strip() or len(text) > MAX_QUERY_CHARS:
            raise PromptError(
                f"a text to search with has 1 to {MAX_QUERY_CHARS} characters, got {len(text)}; "
                "state what the picture shows"
            )
        plain = text.lower().translate(str.maketrans("", "", string.punctuation))
        ids = self._pieces.encode(" ".join(plain.split()))[: self._num_tokens - 1]
        end = self._pieces.piece_to_id("</s>")
        return [*ids, *[end] * (self._num_tokens - len(ids))]


def _towers_of(path: Path) -> tuple[TwoTowers, int]:
    try:
        stated = read_json(path)
        parts = [stated.get(f"{name}_config") for name in ("text", "vision")]
        if stated.get("model_type") != "siglip" or not all(isinstance(one, dict) for one in parts):
            raise ValueError("its model_type is not siglip")
        text, vision = ({**_DEFAULTS, **one} for one in parts)
        num_tokens, num_pieces = text["max_position_embeddings"], text["vocab_size"]
        dim = text.get("projection_size", text["hidden_size"])
        sizes = (num_tokens, num_pieces, dim)
        if not all(type(one) is int and one > 0 for one in sizes) or num_tokens > _MAX_TOKENS:
            raise ValueError("its text tower has sizes that are none")
        tower = _config(text, 1, 1)  # of the sizes of pictures a text has none
        configs = _config(vision, vision["image_size"], vision["patch_size"])
    except (ValueError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path} is no config of SigLIP: {error!s:.200}") from None
    with torch.device("meta"):
        towers = TwoTowers(configs, TextTower(tower, num_pieces, num_tokens, dim))
    return towers, configs.image_size_px


def _config(one: Mapping[str, Any], image_size_px: int, patch_size_px: int) -> VisionConfig:
    return VisionConfig(
        image_size_px=image_size_px,
        patch_size_px=patch_size_px,
        width=one["hidden_size"],
        depth=one["num_hidden_layers"],
        mlp_dim=one["intermediate_size"],
        num_heads=one["num_attention_heads"],
    )


def _load(towers: TwoTowers, path: Path) -> None:
    wanted = {name: tuple(one.shape) for name, one in towers.state_dict().items()}
    found = dict(_tensors(path))
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is not known" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} is {list(found[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if faults:
        raise CheckpointError(
            f"tensors of {path} do not fit SigLIP's config: {'; '.join(sorted(faults)[:10])}"
        )
    towers.load_state_dict(found, assign=True)
    towers.requires_grad_(False)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118
            name = key
            for pattern, ours in _NAMES:
                name = re.sub(pattern, ours, name)
            if name.endswith("position_ids"):
                continue  # a row of numbers that older files carry
            tensor = file.get_tensor(key).float()
            if name == "vision.patch_embed.proj.weight" and tensor.ndim == 4:
                tensor = tensor.permute(0, 2, 3, 1).flatten(1)
            yield name, tensor[None] if name == "vision.pos_embedding" else tensor


def _pieces_of(path: Path) -> Any:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is no SentencePiece model ({error!s:.100})") from None
    if pieces.piece_to_id("</s>") == pieces.unk_id():
        raise CheckpointError(f"{path} is not SigLIP's: it has no piece </s>")
    return pieces
