"""A mask codec on disk: read with bounds and without pickle, written whole or not at all."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.errors import CheckpointError
from paligemma.whole_file import whole_file

_MAX_FILE_BYTES = 256 * 2**20


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an `.npz` or `.safetensors` file, without unpickling; or CheckpointError."""
    remedy = "use the published vae-oid.npz or a file written by MaskCodec.save"
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            _check_size(path, size)
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            # Of a member that is no .npy, NumPy returns the bytes.
            if other := [name for name, one in arrays.items() if not isinstance(one, np.ndarray)]:
                raise ValueError(f"{other[0]!r:.80} is no array")
            return arrays
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            _check_size(path, path.stat().st_size)
            return load_file(path)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, numpy and safetensors raise many kinds for a broken file
        raise CheckpointError(
            f"a mask codec must be a readable {path.suffix} file of plain arrays, {path} is not "
            f"({type(error).__name__}: {str(error)[:200]}); {remedy}"
        ) from error
    raise CheckpointError(
        f"a mask codec file must end in .npz or .safetensors, got {path.name}; {remedy}"
    )


def _check_size(path: Path, num_bytes: int) -> None:
    if num_bytes > _MAX_FILE_BYTES:
        raise CheckpointError(
            f"a mask codec may hold at most {_MAX_FILE_BYTES} bytes, {path} holds {num_bytes}; "
            "check that this is a mask codec and not a model"
        )


def require_codec_suffix(path: Path) -> None:
    """Raise CheckpointError unless the path ends as a file that `write_arrays` writes."""
    if path.suffix not in (".npz", ".safetensors"):
        raise CheckpointError(
            f"a mask codec file must end in .npz or .safetensors, got {path.name}; rename it"
        )


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays, whole or not at all; or CheckpointError."""
    require_codec_suffix(path)
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with whole_file(path) as partial:
            if path.suffix == ".npz":
                stored: dict[str, Any] = arrays
                np.savez(partial, **stored)
            else:
                save_file(arrays, partial)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"a mask codec needs a place with room and rights, {path} could not be written "
            f"({error}); name another"
        ) from error
