"""What a folder without a readable model holds instead, and what to do with it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from paligemma.weights.shapes import few

_PUBLISHED = "take the published safetensors or npz of the same model"
# Patterns of names, case ignored, and what files of such names are; the first that fits counts.
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("*.crdownload", "*.part", "*.partial", "*.incomplete", "*.aria2", "*.download"),
        "a file whose download was not finished; finish it",
    ),
    (
        ("*.distcp",),
        "shards of torch.distributed.checkpoint, which are not read; merge them into safetensors "
        "with accelerate merge-weights",
    ),
    (
        ("*zero_to_fp32.py", "*mp_rank_*_model_states.pt"),
        "shards of DeepSpeed, which are not read; merge them with the zero_to_fp32.py that lies "
        "beside them and --safe_serialization",
    ),
    (("openvino*.xml", "openvino*.bin"), f"an OpenVINO export, which is not read; {_PUBLISHED}"),
    (("*.gguf",), f"GGUF weights of llama.cpp, which are not read; {_PUBLISHED}"),
    (("*.h5", "*.keras"), f"weights of Keras, which are not read; {_PUBLISHED}"),
    (("*.onnx",), f"an ONNX export, which is not read; {_PUBLISHED}"),
    (
        ("*_checkpoint_metadata", "*manifest.ocdbt"),
        f"an Orbax checkpoint, which is not read; {_PUBLISHED}",
    ),
    (("*.sbs",), f"weights of gemma.cpp, which are not read; {_PUBLISHED}"),
    (("*.msgpack",), f"weights of Flax, which are not read; {_PUBLISHED}"),
    (("*.tflite", "*.task", "*.litertlm"), f"a LiteRT export, which is not read; {_PUBLISHED}"),
    (("*saved_model.pb",), f"a model of TensorFlow, which is not read; {_PUBLISHED}"),
    (("*.mlpackage/*", "*.mlmodel"), f"a Core ML export, which is not read; {_PUBLISHED}"),
    (("*.engine", "*.plan"), f"an engine of TensorRT, which is not read; {_PUBLISHED}"),
    (
        ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
        "pickled weights, which can run code and are not read; load them with transformers and "
        "save them as safetensors with save_pretrained",
    ),
    (
        ("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z", "*.rar"),
        "an archive, which is not read; unpack it and name the folder inside",
    ),
)
# What a training keeps beside weights.
_BESIDE_WEIGHTS = ("optimizer*", "scheduler*", "rng_state*", "training_args*", "scaler*")
_MAX_NAMES = 5000
_MAX_DEPTH = 3


def kind_of(names: Iterable[str]) -> str | None:
    """What files of these names are, relative and with "/", and the remedy; None if unknown."""
    lower = [name.lower() for name in names]
    lower = [
        name
        for name in lower
        if not any(fnmatchcase(name.rpartition("/")[2], one) for one in _BESIDE_WEIGHTS)
    ]
    for patterns, sentence in _KINDS:
        if any(fnmatchcase(name, pattern) for pattern in patterns for name in lower):
            return sentence
    return None


def contents(folder: Path) -> str:
    """What a folder holds in place of a model, for a message.

    Raises:
        OSError: it cannot be read.
    """
    names = list(itertools.islice(_names_below(folder), _MAX_NAMES))
    if kind := kind_of(names):
        return kind
    broken = sorted(one.name for one in folder.iterdir() if one.is_symlink() and not one.exists())
    if broken:
        return (
            f"links to files that are not there, {few(broken, 3)}; copy the folder with the files "
            "that its links name (cp -rL)"
        )
    held = f"none of them but {few(sorted(names), 5)}" if names else "none"
    return f"{held}; is it the right folder, and was the download complete?"


def _names_below(folder: Path) -> Iterator[str]:
    """Names of the files in and below a folder; links to folders are not followed."""
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        if len(inside.parts) == _MAX_DEPTH:
            folders.clear()
        folders.sort()
        for name in files:
            yield (inside / name).as_posix()
