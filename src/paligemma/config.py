"""Architecture of the model family and the table of releases; every number is written once, here.

Sources: big_vision models/vit.py, models/ppp/gemma.py, models/proj/paligemma; arXiv:2407.07726 and
arXiv:2412.03555.
"""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass, replace
from numbers import Integral, Real

from paligemma.errors import ConfigError, ModelNotFoundError
from paligemma.vocab import GEMMA_VOCAB, Vocab

MAX_IMAGE_SIZE_PX = 4096
# Bounds far above every release. A larger size comes from a damaged or hostile file, and would cost
# time and memory.
_LARGEST = {
    "image_size_px": MAX_IMAGE_SIZE_PX,
    "patch_size_px": MAX_IMAGE_SIZE_PX,
    "width": 1 << 16,
    "depth": 256,
    "mlp_dim": 1 << 20,
    "num_heads": 1024,
    "num_kv_heads": 1024,
    "head_dim": 1 << 14,
}


def _require_sizes(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 < value <= _LARGEST[name]:
            raise ConfigError(
                f"{name} must be positive and at most {_LARGEST[name]}, got {value}; state the "
                "size the checkpoint has"
            )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of a SigLIP image tower without pooling.

    Attributes:
        image_size_px: side of the square input.
        patch_size_px: side of a patch.
        width: size of a patch's features.
        depth: number of blocks.
        mlp_dim: hidden size of the MLPs.
        num_heads: number of attention heads.
    """

    image_size_px: int
    patch_size_px: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int

    def __post_init__(self) -> None:
        _require_sizes(
            self, "image_size_px", "patch_size_px", "width", "depth", "mlp_dim", "num_heads"
        )
        if self.image_size_px % self.patch_size_px:
            below = self.grid * self.patch_size_px
            above = below + self.patch_size_px
            raise ConfigError(
                f"image_size_px must be a multiple of patch_size_px, got {self.image_size_px} and "
                f"{self.patch_size_px}; the nearest "
                + (f"are {below} and {above}" if below else f"is {above}")
            )
        if self.width % self.num_heads:
            raise ConfigError(
                f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}"
            )

    @property
    def grid(self) -> int:
        """Number of patches along one side of the image."""
        return self.image_size_px // self.patch_size_px

    @property
    def num_tokens(self) -> int:
        """Number of soft tokens of one image."""
        return self.grid**2


_CAP = (Real, 1e-3, 1e6, "a number in [0.001, 1e6]")
_WINDOW = (Integral, 1, 2**31 - 1, "a whole number below 2^31")


def require_attention_value(name: str, value: float, *, off: str) -> None:
    """Raise ConfigError unless float32 can divide by a soft-cap, or an index hold a window."""
    kind, low, high, wanted = _WINDOW if name == "sliding_window" else _CAP
    if type(value) is bool or not issubclass(type(value), kind) or not low <= value <= high:
        raise ConfigError(f"{name} must be positive{off}, got {value!r:.100}; state {wanted}")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes and conventions of a Gemma or Gemma 2 decoder.

    Attributes:
        width: size of a token's features.
        depth: number of blocks.
        mlp_dim: hidden size of the gated MLPs.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads.
        head_dim: size of a head; not always width / num_heads.
        query_scale: factor on the queries.
        attn_softcap: bound of attention scores, or None.
        final_softcap: bound of the logits of decoding steps after the first and of the complete
            forward, or None. Logits of training and of prefill are never capped, as in big_vision.
            Its transfers switch the cap off, and so do the releases here.
        post_norms: whether norms follow attention and MLP, as in Gemma 2.
        sliding_window: number of positions that even layers look back, or None, as in big_vision;
            transformers uses 4096 for Gemma 2.
        norm_eps: constant under the root of every norm.
        rope_theta: base of the rotary angles.
        tied_head: whether the embedding table is the output head too, as in every release.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float
    attn_softcap: float | None
    final_softcap: float | None
    post_norms: bool
    sliding_window: int | None
    norm_eps: float
    rope_theta: float
    tied_head: bool = True

    def __post_init__(self) -> None:
        _require_sizes(self, "width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        for name in ("attn_softcap", "final_softcap", "sliding_window"):
            value = getattr(self, name)
            if value is not None:
                require_attention_value(name, value, off=" or None (off)")
        for name, bound in (("query_scale", math.inf), ("rope_theta", math.inf), ("norm_eps", 1)):
            value = getattr(self, name)
            if not 0 < value < bound:
                raise ConfigError(
                    f"{name} must be positive and less than {bound}, got {value}; state what the "
                    "checkpoint was trained with"
                )


@dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig:
    """The whole model; the two widths are the sizes of the linear projector.

    Attributes:
        vision: the image tower.
        text: the decoder.
        vocab: ids with a meaning.
        weigh_locations: default of the option of that name in `AnswerOptions`.
    """

    vision: VisionConfig
    text: TextConfig
    vocab: Vocab
    weigh_locations: bool = False

    @property
    def num_image_tokens(self) -> int:
        return self.vision.num_tokens

    @property
    def generation(self) -> int:
        """1 for PaliGemma (Gemma decoder), 2 for PaliGemma 2 (Gemma 2 decoder, with post-norms)."""
        return 2 if self.text.post_norms else 1

    def with_resolution(self, image_size_px: int) -> PaliGemmaConfig:
        """The same model for square images of another side."""
        return replace(self, vision=replace(self.vision, image_size_px=image_size_px))


SO400M_14 = VisionConfig(
    image_size_px=224, patch_size_px=14, width=1152, depth=27, mlp_dim=4304, num_heads=16
)


def _gemma2(
    *, width: int, depth: int, mlp_dim: int, heads: int, kv_heads: int, head_dim: int, scale: float
) -> TextConfig:
    return TextConfig(
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        query_scale=scale,
        attn_softcap=50.0,
        final_softcap=None,
        post_norms=True,
        sliding_window=None,
        norm_eps=1e-6,
        rope_theta=10_000.0,
    )


GEMMA_2B = TextConfig(
    width=2048,
    depth=18,
    mlp_dim=16384,
    num_heads=8,
    num_kv_heads=1,
    head_dim=256,
    query_scale=256**-0.5,
    attn_softcap=None,
    final_softcap=None,
    post_norms=False,
    sliding_window=None,
    norm_eps=1e-6,
    rope_theta=10_000.0,
)
GEMMA2_2B = _gemma2(
    width=2304, depth=26, mlp_dim=9216, heads=8, kv_heads=4, head_dim=256, scale=256**-0.5
)
GEMMA2_9B = _gemma2(
    width=3584, depth=42, mlp_dim=14336, heads=16, kv_heads=8, head_dim=256, scale=256**-0.5
)
# The 27B scales queries by its width per head (4608/32), not by its head dimension.
GEMMA2_27B = _gemma2(
    width=4608,
    depth=46,
    mlp_dim=36864,
    heads=32,
    kv_heads=16,
    head_dim=128,
    scale=(4608 / 32) ** -0.5,
)

TEXT_CONFIGS: dict[str, TextConfig] = {
    "gemma_2b": GEMMA_2B,
    "gemma2_2b": GEMMA2_2B,
    "gemma2_9b": GEMMA2_9B,
    "gemma2_27b": GEMMA2_27B,
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """One row of the table of releases: a pattern of hub ids that share an architecture.

    Attributes:
        pattern: shell pattern of the hub id; `{res}` stands for one of `resolutions_px`.
        size: number of parameters in words: "3b", "10b" or "28b".
        text: key of `TEXT_CONFIGS`.
        resolutions_px: published resolutions.
        kind: training of the checkpoint: "pt" (pre-trained), "mix", or "ft" (one transfer).
        dtypes: dtypes published as files or revisions.
        num_parameters_224: number of parameters at 224 px.
    """

    pattern: str
    size: str
    text: str
    resolutions_px: tuple[int, ...]
    kind: str
    dtypes: tuple[str, ...]
    num_parameters_224: int

    @property
    def family(self) -> str:
        """Name of the model family, as published tables print it."""
        return "PaliGemma 2" if "paligemma2" in self.pattern else "PaliGemma"


_ALL_PX = (224, 448, 896)
_V1_DTYPES = ("float32", "bfloat16", "float16")
_V2_DTYPES = ("bfloat16",)


def _v2(size: str, text: str, count: int) -> tuple[Release, ...]:
    return tuple(
        Release(
            pattern=f"google/paligemma2-{size}-{kind}-{{res}}",
            size=size,
            text=text,
            resolutions_px=resolutions,
            kind=kind.split("-")[0],
            dtypes=_V2_DTYPES,
            num_parameters_224=count,
        )
        for kind, resolutions in (
            ("pt", _ALL_PX),
            ("mix", (224, 448)),
            *((("ft-docci", (448,)),) if size != "28b" else ()),
        )
    )


def _v1(kind: str, pattern: str, resolutions: tuple[int, ...]) -> Release:
    return Release(
        pattern=pattern,
        size="3b",
        text="gemma_2b",
        resolutions_px=resolutions,
        kind=kind,
        dtypes=_V1_DTYPES,
        num_parameters_224=2_923_335_408,
    )


RELEASES: tuple[Release, ...] = (
    _v1("pt", "google/paligemma-3b-pt-{res}", _ALL_PX),
    _v1("mix", "google/paligemma-3b-mix-{res}", (224, 448)),
    _v1("ft", "google/paligemma-3b-ft-*-{res}", _ALL_PX),
    *_v2("3b", "gemma2_2b", 3_032_094_960),
    *_v2("10b", "gemma2_9b", 9_662_409_456),
    *_v2("28b", "gemma2_27b", 27_650_192_112),
)


def published_ids() -> list[str]:
    """Hub ids of every release that is no pattern, smallest first."""
    return [
        release.pattern.format(res=resolution)
        for release in RELEASES
        for resolution in release.resolutions_px
        if "*" not in release.pattern
    ]


def release_of(config: PaliGemmaConfig) -> Release | None:
    """The first release with the sizes of a model, or None.

    The resolution is ignored, and so are soft-caps and window, with which a model may be run.
    """

    def size(text: TextConfig) -> tuple[int | bool, ...]:
        return text.width, text.depth, text.mlp_dim, text.num_heads, text.post_norms

    if replace(config.vision, image_size_px=SO400M_14.image_size_px) != SO400M_14:
        return None
    return next(
        (one for one in RELEASES if size(TEXT_CONFIGS[one.text]) == size(config.text)), None
    )


def release_config(text: str, image_size_px: int) -> PaliGemmaConfig:
    """Config of a released size.

    Args:
        text: key of `TEXT_CONFIGS`.
        image_size_px: side of the square input.

    Raises:
        ConfigError: unknown decoder name, or a side that is no multiple of 14.
    """
    if text not in TEXT_CONFIGS:
        raise ConfigError(f"the decoder must be one of {', '.join(TEXT_CONFIGS)}, got {text!r}")
    return PaliGemmaConfig(
        vision=replace(SO400M_14, image_size_px=image_size_px),
        text=TEXT_CONFIGS[text],
        vocab=GEMMA_VOCAB,
    )


_VANITY = (
    # big_vision: pt_224, pt_3b_224, pt_10b_448.
    # Keras: pali_gemma_3b_mix_224, pali_gemma2_mix_3b_448.
    (re.compile(r"^(pt|mix)_(\d+)$"), r"google/paligemma-3b-\1-\2"),
    (re.compile(r"^(pt|mix)_(3b|10b|28b)_(\d+)$"), r"google/paligemma2-\2-\1-\3"),
    (re.compile(r"^pali_gemma_(3b)_(pt|mix)_(\d+)$"), r"google/paligemma-\1-\2-\3"),
    (re.compile(r"^pali_gemma2_(pt|mix)_(3b|10b|28b)_(\d+)$"), r"google/paligemma2-\2-\1-\3"),
    (re.compile(r"^pali_gemma2_ft_docci_(3b|10b)_448$"), r"google/paligemma2-\1-ft-docci-448"),
    (re.compile(r"^(paligemma2?-.*)$"), r"google/\1"),
)


def canonical_name(name: str) -> str:
    """The hub id of a released model that is named as by big_vision, by Keras or without owner."""
    for pattern, target in _VANITY:
        if pattern.match(name):
            return pattern.sub(target, name)
    return name


def find_release(name: str) -> tuple[Release, int]:
    """The release and the resolution in pixels that a name stands for.

    Raises:
        ModelNotFoundError: the name follows no published pattern.
    """
    name = canonical_name(name)
    for release in RELEASES:
        for resolution in release.resolutions_px:
            if fnmatch.fnmatchcase(name, release.pattern.format(res=resolution)):
                return release, resolution
    known = ", ".join(
        release.pattern.format(res="{" + ",".join(map(str, release.resolutions_px)) + "}")
        for release in RELEASES
    )
    raise ModelNotFoundError(f"no release is named {name!r}; published names are {known}")


def named_release(name: str) -> tuple[Release, int] | None:
    """As `find_release`, without a revision after "@"; None for a model that is not a release."""
    try:
        return find_release(name.partition("@")[0])
    except ModelNotFoundError:
        return None
