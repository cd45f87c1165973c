"""Examining a checkpoint: what it holds, what is wrong with it, and what to do, in plain words."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from paligemma.config import (
    SO400M_14,
    TEXT_CONFIGS,
    PaliGemmaConfig,
    TextConfig,
    named_release,
)
from paligemma.errors import CheckpointError, PaliGemmaError
from paligemma.kernels.native import describe
from paligemma.model import PaliGemmaModel
from paligemma.outputs.vqvae import load_mask_codec
from paligemma.processing.tokenizer import load_tokenizer
from paligemma.vocab import NUM_LOC, NUM_SEG
from paligemma.weights import statistics
from paligemma.weights.catalog import resolve
from paligemma.weights.dtypes import dtype_name
from paligemma.weights.hashes import sha256, stated_hashes
from paligemma.weights.hf import HFReader
from paligemma.weights.load import Reader, load_model, open_weights, read_config, unnamed_rows
from paligemma.weights.model_files import Checkpoint
from paligemma.weights.packed_file import PackedReader
from paligemma.weights.shapes import few

Level = Literal["ok", "warning", "error"]
_MAX_PER_CHECK = 20
_PROMPT_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing seen.

    Attributes:
        level: "error" where the model will not work, "warning" where it may not be what was meant.
        check: "files", "hashes", "config", "shapes", "dtype", "statistics", "tokenizer",
            "embeddings", "codec", "kernels" or "forward".
        message: a sentence.
    """

    level: Level
    check: str
    message: str


def diagnose(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    hash_files: bool = True,
    read_weights: bool = True,
) -> list[Finding]:
    """Examine a checkpoint; what is wrong with it becomes findings, not errors.

    Args:
        source: as in `catalog.resolve`.
        hash_files: whether to read every file for its SHA-256.
        read_weights: whether to look at values and run the model, or at headers only.

    Returns:
        Findings in the order of the checks; a check that passes leaves one of level "ok".

    Raises:
        ModelNotFoundError, AccessError, MissingExtraError: there is nothing to examine.
    """
    try:
        checkpoint = resolve(source, revision=revision)
    except CheckpointError as error:
        return [Finding(level="error", check="files", message=str(error))]
    examination = _Examination(checkpoint)
    examination.run("files", _check_files)
    if hash_files:
        examination.run("hashes", _check_hashes)
    examination.run("codec", _check_codec)
    examination.add("ok", "kernels", f"quantised weights are multiplied by {describe()}")
    try:
        with open_weights(checkpoint) as weights:
            examination.weights = weights
            examination.config, examination.raw = read_config(checkpoint, weights)
            examination.run("config", _check_config)
            examination.run("shapes", _check_shapes)
            examination.run("dtype", _check_dtype)
            if read_weights and not examination.failed("shapes"):
                examination.run("statistics", _check_statistics)
            examination.run("tokenizer", _check_tokenizer)
            if read_weights and not examination.failed("shapes"):
                examination.run("embeddings", _check_embeddings)
    except PaliGemmaError as error:
        examination.add("error", "config" if examination.weights else "files", str(error))
    else:
        if read_weights and not examination.failed("shapes", "statistics"):
            examination.run("forward", _check_forward)
    return examination.findings


class _Examination:
    """What is known so far."""

    weights: Reader | None = None
    config: PaliGemmaConfig
    raw: dict[str, Any]

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.findings: list[Finding] = []

    def add(self, level: Level, check: str, message: str) -> None:
        self.findings.append(Finding(level=level, check=check, message=message))

    def failed(self, *checks: str) -> bool:
        return any(f.level == "error" and f.check in checks for f in self.findings)

    def run(
        self, check: str, function: Callable[[_Examination], Iterator[tuple[Level, str]]]
    ) -> None:
        """Add what a check sees; its own failure is a finding too."""
        seen = []
        try:
            for number, item in enumerate(function(self)):
                if number == _MAX_PER_CHECK:
                    seen.append(("warning", "there is more; mend these first"))
                    break
                seen.append(item)
        except PaliGemmaError as error:
            seen.append(("error", str(error)))
        except OSError as error:
            seen.append(("error", _unreadable(error)))
        for level, message in seen:
            self.add(level, check, message)  # type: ignore[arg-type]

    @property
    def reader(self) -> Reader:
        assert self.weights is not None
        return self.weights


def _unreadable(error: OSError) -> str:
    return (
        f"{error.filename or 'a file of the model'} cannot be read ({error.strerror}); change its "
        "rights or copy it"
    )


def _check_files(seen: _Examination) -> Iterator[tuple[Level, str]]:
    checkpoint = seen.checkpoint
    size = sum(path.stat().st_size for path in checkpoint.weights)
    what = {"hf": "safetensors", "npz": "big_vision npz"}.get(checkpoint.layout, "packed weights")
    count = len(checkpoint.weights)
    yield "ok", f"{what}, {count} file{'s' * (count > 1)}, {size / 1e9:.3f} GB, {checkpoint.folder}"
    if checkpoint.mask_codec is None:
        yield (
            "ok",
            "no mask codec (mask_codec.safetensors or vae-oid.npz); segmentation needs one",
        )


def _check_hashes(seen: _Examination) -> Iterator[tuple[Level, str]]:
    checkpoint = seen.checkpoint
    stated = stated_hashes(checkpoint.folder, checkpoint.files)
    for path in checkpoint.files:
        try:
            digest = sha256(path)
        except OSError as error:
            yield "error", _unreadable(error)
            continue
        if path not in stated:
            yield "ok", f"{path.name} {digest}, nothing here states what it should be"
        elif stated[path][0] == digest:
            yield "ok", f"{path.name} {digest}, as {stated[path][1]} states"
        else:
            yield (
                "error",
                f"{path.name} has SHA-256 {digest}, {stated[path][1]} states {stated[path][0]}; "
                "the file was damaged or changed, fetch it again",
            )


def _check_codec(seen: _Examination) -> Iterator[tuple[Level, str]]:
    path = seen.checkpoint.mask_codec
    if path is not None:
        codewords = load_mask_codec(path).config.num_codes
        yield "ok", f"{path.name} decodes masks of {codewords} codewords"


def _check_config(seen: _Examination) -> Iterator[tuple[Level, str]]:
    config, name = seen.config, seen.checkpoint.name
    nearest = _nearest_release(config.text)
    if nearest is None:
        yield "ok", f"a decoder of its own size, PaliGemma {config.generation}'s kind"
    else:
        different = _differences(config.text, TEXT_CONFIGS[nearest])
        yield (
            ("ok", f"decoder {nearest}, {config.vision.image_size_px} px")
            if not different
            else (
                "error",
                f"the decoder has the size of {nearest} but {different}; correct config.json",
            )
        )
        vision = _differences(config.with_resolution(SO400M_14.image_size_px).vision, SO400M_14)
        if vision:
            yield "warning", f"the tower is not So400m/14 as in every release: {vision}"
    release = named_release(name) or named_release(seen.checkpoint.folder.name)
    if release is not None:
        row, size_px = release
        if (nearest, config.vision.image_size_px) != (row.text, size_px):
            yield (
                "error",
                f"a model of this name is {row.text} at {size_px} px, this is "
                f"{nearest or 'another'} at {config.vision.image_size_px} px; is it the right "
                "folder?",
            )
    theirs = seen.raw.get("text_config")
    if (
        isinstance(theirs, dict)
        and theirs.get("model_type") == "gemma2"
        and any(theirs.get(key, "absent") for key in ("final_logit_softcapping", "sliding_window"))
    ):
        yield (
            "ok",
            "config.json asks for transformers' final soft-cap or sliding window; big_vision has "
            'neither, so they are off unless conventions="transformers"',
        )


def _nearest_release(text: TextConfig) -> str | None:
    """The released decoder of the same width and generation."""
    return next(
        (
            name
            for name, release in TEXT_CONFIGS.items()
            if (release.width, release.post_norms) == (text.width, text.post_norms)
        ),
        None,
    )


def _differences(found: Any, expected: Any) -> str:
    different = []
    for field in fields(expected):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        if value != wanted and not (
            isinstance(value, float) and isinstance(wanted, float) and math.isclose(value, wanted)
        ):
            different.append(f"{field.name} {value} instead of {wanted}")
    return ", ".join(different)


def _check_shapes(seen: _Examination) -> Iterator[tuple[Level, str]]:
    problems = seen.reader.problems(seen.config)
    if not problems:
        yield "ok", "every tensor is there, none too many, all of the right shape"
    for problem in problems:
        if "pos" in problem and problem.startswith("shape:"):
            side = seen.config.vision.image_size_px
            yield (
                "error",
                f"{problem}: the position table is of another resolution than the {side} px that "
                "config.json states; correct image_size there, and resize when loading",
            )
        else:
            yield "error", problem


def _check_dtype(seen: _Examination) -> Iterator[tuple[Level, str]]:
    if isinstance(seen.reader, PackedReader):
        yield "ok", f"packed as {seen.reader.quant}, all else float32"
        return
    names = sorted(dtype_name(dtype) for dtype in seen.reader.dtypes())
    if len(names) > 1:
        yield "warning", f"tensors are of several dtypes: {', '.join(names)}"
    elif (
        names == ["float16"] and seen.config.generation == 2 and _nearest_release(seen.config.text)
    ):
        yield (
            "warning",
            "PaliGemma 2 was trained and published in bfloat16, this is float16; activations "
            "overflow when it is computed in float16, load it as bfloat16 or float32",
        )
    elif names:
        yield "ok", names[0]


def _check_statistics(seen: _Examination) -> Iterator[tuple[Level, str]]:
    measured = statistics.measure_all(seen.reader.tensors(seen.config))
    wrong, odd = statistics.broken(measured), statistics.suspicious(measured)
    for message in wrong:
        yield "error", message
    for message in odd:
        yield "warning", message
    if not wrong and not odd:
        values = sum(m.num_values for m in measured.values())
        largest = max(measured, key=lambda name: measured[name].largest)
        yield (
            "ok",
            f"{values:,} values, all finite, no tensor of zeros, no layer far from the others; "
            f"the largest magnitude is {measured[largest].largest:.4g} in {largest}",
        )


def _check_tokenizer(seen: _Examination) -> Iterator[tuple[Level, str]]:
    path = seen.checkpoint.tokenizer
    if path is None:
        yield (
            "error",
            "a model cannot be asked without tokenizer.model or tokenizer.json; put the published "
            "one beside the weights, or name one when loading",
        )
        return
    tokenizer = load_tokenizer(path)
    tokenizer.check(seen.config.vocab)
    vocab = tokenizer.vocab
    ids = f"pad {vocab.pad}, eos {vocab.eos}, bos {vocab.bos}, separator {vocab.sep}"
    yield (
        "ok",
        f"{vocab.size:,} pieces, {ids}, locations from {vocab.loc0}, masks from {vocab.seg0}",
    )
    if vocab.image is not None:
        first = vocab.image + 1
        names = [tokenizer.piece(token) for token in range(first, vocab.size)]
        yield "ok", f"{len(names)} tokens of a fine-tune from {first} on: {few(names)}"
    if vocab.size < seen.config.vocab.size:
        spare = seen.config.vocab.size - vocab.size
        yield "warning", f"{spare} embedding rows have no piece; the model could answer with them"


def _check_embeddings(seen: _Examination) -> Iterator[tuple[Level, str]]:
    vocab = seen.config.vocab
    table = _table(seen)
    unnamed = unnamed_rows(seen.reader, seen.config)
    if unnamed:
        yield "warning", unnamed
    elif isinstance(seen.reader, HFReader) and seen.reader.num_rows > vocab.size:
        extra = seen.reader.num_rows - vocab.size
        yield "ok", f"{extra} rows after the vocabulary are transformers' padding and are not used"
    if not seen.config.text.tied_head:
        yield "ok", "the output head was trained apart from the embedding table and is used"
    if vocab.has_objects:
        for what, first, count in (
            ("location", vocab.loc0, NUM_LOC),
            ("mask", vocab.seg0, NUM_SEG),
        ):
            rows = table[first : first + count].float()
            if torch.unique(rows, dim=0).shape[0] < count // 2:
                yield (
                    "error",
                    f"most of the {count} {what} tokens share an embedding; they were added but "
                    "never trained, use the published table",
                )
                return
    yield "ok", f"{table.shape[0]:,} rows of width {table.shape[1]}"


def _table(seen: _Examination) -> Tensor:
    if isinstance(seen.reader, HFReader | PackedReader):
        return seen.reader.get("text.embed.weight", seen.config)
    return seen.reader.read("text.embed.weight")


def _check_forward(seen: _Examination) -> Iterator[tuple[Level, str]]:
    stored = seen.reader.table_dtype()
    dtype = torch.float32 if stored == torch.float16 else stored
    model = load_model(seen.checkpoint, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    side = model.config.vision.image_size_px
    images = torch.rand(2, side, side, 3, generator=generator) * 2 - 1
    tokens = torch.randint(model.config.vocab.size, (1, _PROMPT_LENGTH), generator=generator)
    first, again, other = (_logits(model, images[i : i + 1], tokens) for i in (0, 0, 1))
    if not bool(first.isfinite().all()):
        yield "error", f"a forward pass in {dtype_name(dtype)} gives NaN or infinite logits"
        return
    if not torch.equal(first, again):
        yield "warning", "two equal forward passes differ; the machine computes unreproducibly"
    if torch.equal(first, other):
        yield "error", "the picture does not change the logits; the projector or tower is dead"
        return
    low, high = first.min().item(), first.max().item()
    yield (
        "ok",
        f"a forward pass in {dtype_name(dtype)} gives finite logits, {low:.1f} to {high:.1f}",
    )


@torch.no_grad()
def _logits(model: PaliGemmaModel, image: Tensor, tokens: Tensor) -> Tensor:
    return model(model.encode_image(image), tokens, torch.zeros_like(tokens))


def worst(findings: list[Finding]) -> Level:
    """The gravest level among findings."""
    levels: tuple[Level, ...] = ("error", "warning", "ok")
    return next((level for level in levels if any(f.level == level for f in findings)), "ok")
