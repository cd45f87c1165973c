"""Start of the embedded model `tiny`: architecture, tokenizer and first weights."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from paligemma.config import PaliGemmaConfig, TextConfig, VisionConfig
from paligemma.model.paligemma import PaliGemmaModel, init_weights
from paligemma.model.siglip import Block as SigLIPBlock
from paligemma.model.siglip import SelfAttention
from paligemma.processing.resize import to_unit_range
from paligemma.processing.sentencepiece_model import train_tokenizer
from paligemma.scenes import THINGS, SceneOptions, draw_scene, plural, scene_examples
from paligemma.tasks.scenes.rows import scene_prefix
from paligemma.vocab import NUM_LOC, Vocab
from paligemma.whole_file import require_writable

PATCH_PX = 16
# The position table starts in the last dimensions of the tower's width, apart from the content; its
# shortest wave spans two patches of a grid of fourteen.
_POSITION_WIDTH = 64
_POSITION_OCTAVES = 3.6
# Seeds of training scenes; `paligemma.tasks.scenes.rows.EVAL_SEED` lies far above.
TRAIN_SEED = 0


def tiny_config(vocab: Vocab, image_size_px: int = 224) -> PaliGemmaConfig:
    """Config of about ten million parameters: PaliGemma 2's post-norms, soft-cap, grouped heads."""
    return PaliGemmaConfig(
        vision=VisionConfig(
            image_size_px=image_size_px,
            patch_size_px=PATCH_PX,
            width=256,
            depth=6,
            mlp_dim=1024,
            num_heads=4,
        ),
        text=TextConfig(
            width=256,
            depth=4,
            mlp_dim=1024,
            num_heads=4,
            num_kv_heads=1,
            head_dim=64,
            query_scale=64**-0.5,
            attn_softcap=50.0,
            final_softcap=None,
            post_norms=True,
            sliding_window=None,
            norm_eps=1e-6,
            rope_theta=10_000.0,
        ),
        vocab=vocab,
    )


def init_tiny(model: PaliGemmaModel, seed: int = 0) -> None:
    """Draw the first weights, with structure instead of noise where the structure is known.

    The original starts from SigLIP and Gemma. Here patches start whitened, so that strokes weigh
    as much as surfaces. The position table starts as waves in two dimensions, by which each head
    of the first two blocks attends to one neighbour. The embeddings of neighbouring location
    tokens start close to each other, so that what is learnt about one coordinate holds for those
    beside it. All of these weights stay free to change.
    """
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    vision, text = model.config.vision, model.config.text
    content = vision.width - _POSITION_WIDTH
    with torch.no_grad():
        embed = model.vision.patch_embed.proj
        embed.weight.zero_()
        weight, bias = _whitening(vision.patch_size_px, content)
        embed.weight[:content] = 0.8 * weight
        embed.bias[:content] = 0.8 * bias
        model.vision.pos_embedding.zero_()
        model.vision.pos_embedding[..., content:] = _waves_2d(vision.grid, _POSITION_WIDTH)
        for block in list(model.vision.blocks)[:2]:
            assert isinstance(block, SigLIPBlock)
            _look_at_neighbours(block.attn, vision)
        rotation = torch.linalg.qr(torch.randn(text.width, text.width, generator=generator)).Q
        loc = _waves(torch.linspace(0, 1, NUM_LOC), text.width, octaves=8.0) @ rotation
        start = model.config.vocab.loc0
        model.text.embed.weight[start : start + NUM_LOC] = loc / loc.norm(dim=1, keepdim=True)
        nn.init.trunc_normal_(model.projector.weight, std=vision.width**-0.5, generator=generator)


def _look_at_neighbours(attn: SelfAttention, vision: VisionConfig) -> None:
    """Set queries and keys so that head h attends the patch left, right, above or below.

    A key picks the waves of the position table, a query the same waves moved by one patch; their
    product peaks where the two positions are one patch apart.
    """
    quarter = _POSITION_WIDTH // 4
    angles = _frequencies(_POSITION_WIDTH // 2, _POSITION_OCTAVES) / (vision.grid - 1)
    first = vision.width - _POSITION_WIDTH
    query = torch.zeros(vision.num_heads, vision.width // vision.num_heads, vision.width)
    key = torch.zeros_like(query)
    wave = torch.arange(quarter)
    for head in range(vision.num_heads):
        for axis, move in enumerate(((0, -1), (0, 1), (-1, 0), (1, 0))[head % 4]):
            sine, cosine = (
                first + wave + 2 * axis * quarter,
                first + wave + (2 * axis + 1) * quarter,
            )
            to_sine, to_cosine = sine - first, cosine - first
            key[head, to_sine, sine] = key[head, to_cosine, cosine] = 1.0
            query[head, to_sine, sine] = query[head, to_cosine, cosine] = (angles * move).cos()
            query[head, to_sine, cosine] = (angles * move).sin()
            query[head, to_cosine, sine] = -(angles * move).sin()
    attn.q.weight.copy_(1.3 * query.flatten(0, 1))
    attn.k.weight.copy_(key.flatten(0, 1))


def _whitening(patch_px: int, width: int, num_scenes: int = 300) -> tuple[Tensor, Tensor]:
    """Weight float[width, 3*P*P] and bias that give patches of training scenes unit covariance.

    Args:
        width: number of directions that are kept, those of the largest variance.
    """
    side = 7 * patch_px
    pictures = [
        to_unit_range(draw_scene(TRAIN_SEED + k, SceneOptions(size_px=side)).image)
        for k in range(num_scenes)
    ]
    grid = np.stack(pictures).reshape(num_scenes, 7, patch_px, 7, patch_px, 3)
    patches = torch.from_numpy(grid.transpose(0, 1, 3, 2, 4, 5).reshape(num_scenes * 49, -1))
    mean = patches.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T).double())
    # Directions of the smallest variance are noise; the floor keeps them small.
    scale = (values[-width:] + 0.05).rsqrt()
    weight = (vectors[:, -width:] * scale).T.float()
    return weight, -weight @ mean


def _frequencies(width: int, octaves: float) -> Tensor:
    """Frequencies float[width/2], from half a period over [0, 1] to 2^octaves half periods."""
    return math.pi * 2 ** torch.linspace(0, octaves, width // 2)


def _waves(x: Tensor, width: int, octaves: float) -> Tensor:
    """Sines, then cosines, of places x in [0, 1]: float[len(x), width]."""
    angle = x[:, None] * _frequencies(width, octaves)
    return torch.cat((angle.sin(), angle.cos()), dim=1)


def _waves_2d(grid: int, width: int) -> Tensor:
    """Waves down, then waves across: float[grid*grid, width], raster order."""
    line = _waves(torch.linspace(0, 1, grid), width // 2, _POSITION_OCTAVES)
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None].expand(grid, grid, -1)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)


def make_tokenizer(path: Path, *, num_scenes: int = 6000, vocab_size: int = 768) -> None:
    """Train the small SentencePiece vocabulary on prompts and answers of training scenes.

    Args:
        num_scenes: number of scenes whose prompts and answers are the text.
        vocab_size: number of pieces before the location and mask pieces are appended.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    require_writable(path.parent)
    lines: list[str] = []
    rng = np.random.default_rng(TRAIN_SEED)
    for seed in range(TRAIN_SEED, TRAIN_SEED + num_scenes):
        # Every second picture shows things.
        options = SceneOptions(size_px=224, thing_share=0.7 * (seed % 2))
        for example in scene_examples(draw_scene(seed, options), rng):
            if example.kind not in ("ocr", "reading"):
                lines += [scene_prefix(example), example.suffix or " ; ".join(example.labels)]
    # A name is one piece wherever it stands.
    lines += [name for thing in THINGS for name in (thing, plural(thing), f"a {thing}")] * 20
    # Words on signs are spelled letter by letter: the model is to read, not to recall.
    lines = [line for line in lines if line and not any(c.isupper() for c in line)]
    train_tokenizer(lines, vocab_size=vocab_size, out_path=path)
