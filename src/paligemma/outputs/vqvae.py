"""The mask codec: a 64x64 mask as sixteen codewords and back, in both directions.

Layers, names and array layouts are those of `vae-oid.npz` (big_vision
`pp/proj/paligemma/segmentation.py`; trained with SwinTransformer/AiT `vae/`), so the released file
and a retrained, narrower one load the same way. Codewords are arbitrary: a retrained codec does
not understand the `<seg>` tokens of the released models.

Axes: B batch, S = 16 codewords (a 4x4 grid in raster order), D code width, K number of codewords.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paligemma.errors import CheckpointError, DataError
from paligemma.outputs.codec_file import read_arrays, write_arrays
from paligemma.outputs.masks import crop_mask
from paligemma.vocab import NUM_SEG, SEG_PER_MASK, SEG_PER_SIDE

logger = logging.getLogger(__name__)

_MAX_WIDTH = 4096
_EMA_NAMES = ("_vq_vae._ema_cluster_size", "_vq_vae._ema_w")


@dataclass(frozen=True, kw_only=True)
class MaskCodecConfig:
    """Widths of a mask codec; `RELEASED` are those of `vae-oid.npz`.

    Attributes:
        channels: widths of the three outer convolution stages, from 32x32 down to 8x8.
        hidden: width at 4x4, and of the residual blocks.
        num_codes: rows of the codebook; the vocabulary has 128 `<seg>` tokens.
    """

    channels: tuple[int, int, int]
    hidden: int
    code_dim: int
    num_codes: int

    def __post_init__(self) -> None:
        for name, value in [
            *((f"channels[{i}]", c) for i, c in enumerate(self.channels)),
            ("hidden", self.hidden),
            ("code_dim", self.code_dim),
            ("num_codes", self.num_codes),
        ]:
            if not 1 <= value <= _MAX_WIDTH:
                raise CheckpointError(
                    f"a mask codec's {name} must lie in 1..{_MAX_WIDTH}, got {value}; check the "
                    "codec file"
                )


RELEASED = MaskCodecConfig(channels=(16, 32, 64), hidden=128, code_dim=512, num_codes=NUM_SEG)


@dataclass(frozen=True, kw_only=True)
class MaskCodecOutput:
    """The result of a forward pass in training.

    Attributes:
        reconstruction: float[B, 64, 64] around [-1, 1]; its gradient passes straight to the
            encoder.
        commitment_loss: float[], mean squared distance of the latents to their codewords, which
            take no gradient from it.
        codes: int64[B, 16] in [0, K).
        latents: float[B, 16, D], the encoder's output without gradient, for `update_codebook`.
    """

    reconstruction: Tensor
    commitment_loss: Tensor
    codes: Tensor
    latents: Tensor


class ResidualBlock(nn.Module):
    """conv3x3, ReLU, conv3x3, ReLU, conv1x1, plus the input; nothing after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's correction to x, float[B, width, h, w]."""
        return x + self.net(x)


class Codebook(nn.Module):
    """K codewords and their running averages; moved by `update_codebook`, not by a gradient."""

    _embedding: Tensor
    _ema_cluster_size: Tensor
    _ema_w: Tensor

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.register_buffer("_embedding", torch.randn(num_codes, code_dim))
        # A count of one and a sum equal to the codeword start the average at the codeword.
        self.register_buffer("_ema_cluster_size", torch.ones(num_codes))
        self.register_buffer("_ema_w", self._embedding.clone())

    def nearest(self, latents: Tensor) -> Tensor:
        """Index of the codeword at least squared distance: float[..., D] -> int64[...]."""
        e = self._embedding
        # |x|^2 is the same for every codeword and cannot change the argmin.
        return (e.square().sum(-1) - 2 * latents @ e.T).argmin(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codewords of indices: int64[...] -> float[..., D]."""
        return F.embedding(codes, self._embedding)


class MaskCodec(nn.Module):
    """Segmentation VQ-VAE: `encode` masks into codewords, `decode` codewords into masks.

    Parameter names are those of `vae-oid.npz`, hence `_vq_vae`.
    """

    def __init__(self, config: MaskCodecConfig = RELEASED) -> None:
        super().__init__()
        self.config = config
        c0, c1, c2 = config.channels
        width = config.hidden
        self.encoder = nn.Sequential(
            nn.Conv2d(1, c0, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(c0, c1, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(c1, c2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(c2, width, 4, stride=2, padding=1),
            nn.ReLU(),
            ResidualBlock(width),
            ResidualBlock(width),
            nn.Conv2d(width, config.code_dim, 1),
        )
        self._vq_vae = Codebook(config.num_codes, config.code_dim)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_dim, width, 1),
            nn.ReLU(),
            ResidualBlock(width),
            ResidualBlock(width),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, c2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(c2, c1, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(c1, c0, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(c0, 1, 1),
        )

    def forward(self, masks: Tensor) -> MaskCodecOutput:
        """Reconstruct masks for training.

        Args:
            masks: float[B, 64, 64] in [0, 1].

        Returns:
            The reconstruction (its target is `2 * masks - 1`), commitment loss, codes and latents.
        """
        latents = self.latents(masks)  # [B, S, D]
        codes = self._vq_vae.nearest(latents.detach())
        codewords = self._vq_vae.lookup(codes)
        commitment = F.mse_loss(latents, codewords)
        straight_through = latents + (codewords - latents).detach()
        return MaskCodecOutput(
            reconstruction=self._decode_codewords(straight_through),
            commitment_loss=commitment,
            codes=codes,
            latents=latents.detach(),
        )

    def latents(self, masks: Tensor) -> Tensor:
        """Encoder output before quantisation: float[B, 64, 64] in [0, 1] -> float[B, 16, D]."""
        x = self.encoder(2.0 * (masks[:, None].float() - 0.5))  # [B, D, 4, 4]
        return x.flatten(2).transpose(1, 2)

    def codewords(self) -> Tensor:
        """The codebook float32[K, D], without gradient."""
        return self._vq_vae._embedding.detach().float()

    @torch.no_grad()
    def encode(self, masks: Tensor) -> Tensor:
        """Codewords of masks: int64[B, 16] in [0, K), raster order.

        Args:
            masks: float[B, 64, 64] in [0, 1], each the crop of one object's box.
        """
        return self._vq_vae.nearest(self.latents(masks))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Masks of codewords: float32[B, 64, 64] around [-1, 1], not clipped; foreground is > 0.

        Args:
            codes: int64[B, 16] in [0, K).

        Raises:
            DataError: codes have another shape or leave the codebook.
        """
        if codes.ndim != 2 or codes.shape[1] != SEG_PER_MASK:
            raise DataError(
                f"mask codes must have shape [B, {SEG_PER_MASK}], got {tuple(codes.shape)}; "
                f"pass one row of {SEG_PER_MASK} codes per mask"
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.num_codes:
            raise DataError(
                f"mask codes must lie in 0..{self.config.num_codes - 1}, got "
                f"{int(codes.min())}..{int(codes.max())}; pass `<seg>` numbers, not token ids"
            )
        return self._decode_codewords(self._vq_vae.lookup(codes.long()))

    def _decode_codewords(self, codewords: Tensor) -> Tensor:
        """float[B, 16, D] -> float[B, 64, 64]."""
        grid = codewords.transpose(1, 2).unflatten(2, (SEG_PER_SIDE, SEG_PER_SIDE))  # [B, D, 4, 4]
        return self.decoder(grid)[:, 0]

    @torch.no_grad()
    def update_codebook(
        self,
        latents: Tensor,
        codes: Tensor,
        *,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        reseed_below: float = 0.0,
    ) -> int:
        """One step of the codebook's moving averages (AiT `vae/`), after the optimiser's step.

        Args:
            latents: float[B, 16, D], from the forward pass.
            codes: int64[B, 16], from the same pass.
            decay: share of the old average that stays.
            epsilon: Laplace smoothing of the counts.
            reseed_below: codewords with a smaller average count per batch are moved onto random
                latents of this batch (torch's global generator); 0 never moves one, as in the
                original.

        Returns:
            Number of codewords that were moved.
        """
        book, latents = self._vq_vae, latents.reshape(-1, latents.shape[-1]).float()
        counts = book._ema_cluster_size
        one_hot = F.one_hot(codes.reshape(-1), len(counts)).float()  # [B*S, K]
        counts.lerp_(one_hot.sum(0), 1 - decay)
        book._ema_w.lerp_(one_hot.T @ latents, 1 - decay)
        dead = torch.nonzero(counts < reseed_below).flatten()
        if len(dead):
            chosen = torch.randint(len(latents), (len(dead),), device=latents.device)
            # The count of average use keeps a moved codeword long enough to be chosen.
            count = len(latents) / len(counts)
            book._ema_w[dead] = latents[chosen] * count
            counts[dead] = count
        total = counts.sum()
        smoothed = (counts + epsilon) / (total + len(counts) * epsilon)
        book._embedding.copy_(book._ema_w / (smoothed * total)[:, None])
        return len(dead)

    def save(
        self, path: str | Path, *, dtype: str = "float32", with_averages: bool = False
    ) -> None:
        """Write the codec, whole or not at all.

        Args:
            path: the file, which ends in `.npz` or `.safetensors`.
            dtype: "float32" or "float16", the type in the file; loading always gives float32.
            with_averages: whether to store the running averages too, which only training needs.

        Raises:
            CheckpointError: the suffix or the dtype is another one.
        """
        path = Path(path)
        if dtype not in ("float32", "float16"):
            raise CheckpointError(
                f"a mask codec is stored as float32 or float16, got {dtype!r}; choose one of them"
            )
        arrays = {
            name: np.ascontiguousarray(value.detach().cpu().numpy().astype(dtype))
            for name, value in self.state_dict().items()
            if with_averages or name not in _EMA_NAMES
        }
        write_arrays(path, arrays)


def load_mask_codec(path: str | Path) -> MaskCodec:
    """Read a codec whose widths follow from its arrays; never unpickles.

    Args:
        path: `.npz` (as `vae-oid.npz`) or `.safetensors`, float16 or float32. The two running
            averages may be absent.

    Returns:
        The codec in float32, in evaluation mode.

    Raises:
        CheckpointError: the file is unreadable or too large, holds objects, or its arrays are
            missing, unexpected, misshaped or not finite; one error names them all.
    """
    path = Path(path)
    return mask_codec_from_arrays(read_arrays(path), source=str(path))


def mask_codec_from_arrays(arrays: Mapping[str, np.ndarray], *, source: str) -> MaskCodec:
    """Build a codec from named arrays; `source` names them in errors. See `load_mask_codec`."""
    with torch.device("meta"):  # a hostile shape must not cost memory before it is refused
        codec = MaskCodec(_infer_config(arrays))
    own = codec.state_dict()
    missing = [n for n in own if n not in arrays and n not in _EMA_NAMES]
    unexpected = [n for n in arrays if n not in own]
    problems = [f"missing {n}" for n in missing]
    for name, value in arrays.items():
        if name not in own:
            continue
        expected = tuple(own[name].shape)
        if value.shape != expected:
            problems.append(f"{name} has shape {value.shape} instead of {expected}")
        elif value.dtype not in (np.float64, np.float32, np.float16):
            problems.append(f"{name} is {value.dtype} instead of a float")
        elif not np.isfinite(value).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        problems += [f"unexpected {n}" for n in unexpected]
        raise CheckpointError(
            f"a mask codec needs the arrays of vae-oid.npz, {source} differs: "
            f"{'; '.join(problems)}; use the published file or one written by MaskCodec.save"
        )
    if unexpected:
        # Which arrays the published file holds beside these is not documented.
        logger.warning("%s: arrays that no codec needs were left out: %s", source, unexpected)
    state = {n: torch.from_numpy(np.array(arrays[n], np.float32)) for n in own if n in arrays}
    embedding = state["_vq_vae._embedding"]
    if not all(n in state for n in _EMA_NAMES):
        state["_vq_vae._ema_cluster_size"] = torch.ones(len(embedding))
        state["_vq_vae._ema_w"] = embedding.clone()
    codec.load_state_dict(state, assign=True)
    return codec.eval()


def mask_to_codes(codec: MaskCodec, mask: np.ndarray, box_yxyx: np.ndarray) -> np.ndarray:
    """The sixteen codewords of an object (big_vision op `refcoco_mask2str`): int64[16] in [0, K).

    Args:
        mask: uint8[H, W] in 0..255, or bool[H, W].
        box_yxyx: float[4], the object's box normalised to [0, 1].
    """
    patch = torch.from_numpy(crop_mask(mask, box_yxyx))[None]
    return codec.encode(patch.to(codec._vq_vae._embedding.device))[0].cpu().numpy()


def _infer_config(arrays: Mapping[str, np.ndarray]) -> MaskCodecConfig:
    """Widths from the arrays' first axes; the released width where an array is absent."""

    def axis_of(name: str, axis: int, default: int) -> int:
        shape = arrays[name].shape if name in arrays else ()
        return shape[axis] if len(shape) > axis else default

    c0, c1, c2 = (axis_of(f"encoder.{2 * i}.weight", 0, RELEASED.channels[i]) for i in range(3))
    return MaskCodecConfig(
        channels=(c0, c1, c2),
        hidden=axis_of("encoder.6.weight", 0, RELEASED.hidden),
        code_dim=axis_of("_vq_vae._embedding", 1, RELEASED.code_dim),
        num_codes=axis_of("_vq_vae._embedding", 0, RELEASED.num_codes),
    )
