"""A packed model on disk: panels as the kernels read them, mapped without a copy.

A safetensors file under the parameter names of a plain model. A packed weight is a tensor of bytes,
whose panels are filled up to a multiple of 64 so that every one begins at such an address, and its
scales, if its kind has any, are `NAME.scale`. All else is float32. The kinds stand in the metadata
and in config.json, and sizes follow from config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paligemma.adapt.quant import Quant, place_quantised
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError, ConfigError
from paligemma.kernels.packed_layers import PackedWeight, packed_weights
from paligemma.kernels.packed_matrix import ALIGNMENT, LAYOUT, PackedMatrix
from paligemma.model import PaliGemmaModel
from paligemma.weights.dtypes import cast, require_numbers
from paligemma.weights.hf_config import BITS
from paligemma.weights.model_files import PACKED_NAME
from paligemma.weights.safetensors_file import SafetensorsFile, open_safetensors
from paligemma.weights.shapes import compare_shapes, parameter_shapes

_METHOD = "paligemma-panels"
_REMEDY = "convert the original again"
_MAX_SHOWN = 100


def packed_field(quant: Quant) -> dict[str, Any]:
    """What config.json states about packed weights."""
    return {"quant_method": _METHOD, "layout": LAYOUT, "quant": str(quant)}


def empty_packed_model(config: PaliGemmaConfig, quant: Quant) -> PaliGemmaModel:
    """A model without values whose layers are packed ones."""
    with torch.device("meta"):
        model = PaliGemmaModel(config)
    place_quantised(model, quant, torch.float32)
    return model


def _entries(model: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of everything in the file, panels first."""
    weights = packed_weights(model)
    panels = {name: (torch.uint8, (w.num_bytes,)) for name, w in weights.items()}
    scales = {
        f"{name}.scale": (torch.float32, (w.num_scales,))
        for name, w in weights.items()
        if w.num_scales
    }
    rest = {name: (torch.float32, tuple(p.shape)) for name, p in model.named_parameters()}
    return {**panels, **scales, **rest}


def write_packed(
    folder: Path, config: PaliGemmaConfig, quant: Quant, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Pack the parameters of a plain model into a file, one at a time.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    model = empty_packed_model(config, quant)
    weights = packed_weights(model)
    metadata = {"format": "pt"} | {name: str(value) for name, value in packed_field(quant).items()}
    with SafetensorsFile(folder / PACKED_NAME, _entries(model), metadata) as file:
        for name, tensor in tensors:
            if name not in weights:
                file.write(name, cast(tensor.detach(), torch.float32, name))
                continue
            require_numbers(name, tensor)
            matrix = weights[name].new_matrix()
            matrix.pack(tensor.detach())
            file.write(name, matrix.data)
            if matrix.num_scales:
                file.write(f"{name}.scale", matrix.scale)
            del tensor, matrix


class PackedReader:
    """A packed file; its panels stay in the file, which the system maps into memory.

    Attributes:
        quant: how the weights are packed.

    Raises:
        CheckpointError: a truncated or foreign file, or one of another layout.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = open_safetensors(path)
        stated = self._file.metadata() or {}
        layout, quant = (str(stated.get(key, ""))[:_MAX_SHOWN] for key in ("layout", "quant"))
        if stated.get("quant_method") != _METHOD or layout != str(LAYOUT):
            raise CheckpointError(
                f"packed weights must be of layout {LAYOUT}, {path} is of {layout or 'none'!r}; "
                f"{_REMEDY} with this version"
            )
        try:
            self.quant = Quant.parse(quant)
            if not self.quant.is_packed:
                raise ConfigError(f"{quant} is no kind of packed weights")
        except ConfigError as error:
            raise CheckpointError(
                f"packed weights must state their kinds, {path} does not ({error}); {_REMEDY}"
            ) from error

    def __enter__(self) -> PackedReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def table_dtype(self) -> torch.dtype:
        return torch.float32

    def dtypes(self) -> set[torch.dtype]:
        return {torch.float32}

    def plain_config(self, raw: dict[str, Any]) -> dict[str, Any]:
        """config.json as it would be of plain weights.

        Raises:
            CheckpointError: it states other kinds than the file.
        """
        if raw.get(BITS) != packed_field(self.quant):
            raise CheckpointError(
                f"{BITS} of config.json must be that of {self.name}, {self.quant}, got "
                f"{str(raw.get(BITS))[:_MAX_SHOWN]}; copy both from one place, or {_REMEDY}"
            )
        return {key: value for key, value in raw.items() if key != BITS}

    def problems(self, config: PaliGemmaConfig) -> list[str]:
        """Every missing, unexpected and misshaped tensor, one sentence each."""
        wanted = _entries(empty_packed_model(config, self.quant))
        found = {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118
        faults = compare_shapes(
            {key: shape for key, (_, shape) in wanted.items()},
            {key: tuple(part.get_shape()) for key, part in found.items()},
        )
        codes = {torch.uint8: "U8", torch.float32: "F32"}
        for key, part in found.items():
            if key in wanted and part.get_dtype() != codes[wanted[key][0]]:
                faults.append(
                    f"dtype: {key} should be {codes[wanted[key][0]]}, is {part.get_dtype()}"
                )
        return faults

    def matrix(self, name: str, weight: PackedWeight) -> PackedMatrix:
        """A packed weight, mapped.

        Raises:
            CheckpointError: it lies at an odd address, or its scales are no numbers.
        """
        data = self._file.get_tensor(name)
        if data.data_ptr() % ALIGNMENT:
            raise CheckpointError(
                f"packed weights must begin at multiples of {ALIGNMENT} bytes, {name} of "
                f"{self.name} does not; {_REMEDY}"
            )
        scale = torch.empty(0, dtype=torch.float32)
        if weight.num_scales:
            scale = self._file.get_tensor(f"{name}.scale").clone()
            if not bool((scale.isfinite() & (scale >= 0)).all()):
                raise CheckpointError(
                    f"scales must be positive numbers, those of {name} in {self.name} are not; "
                    f"{_REMEDY}"
                )
        return PackedMatrix(weight.kind, weight.n, weight.k, data, scale)

    def fill(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Give a model that is packed like the file its matrices, and yield all else by name."""
        for name, weight in packed_weights(model).items():
            weight.hold(self.matrix(name, weight))
        for name, _ in list(model.named_parameters()):
            yield name, self._file.get_tensor(name)

    def get(self, torch_name: str, config: PaliGemmaConfig) -> Tensor:
        """The values that one parameter of a plain model has here, float32."""
        weight = packed_weights(empty_packed_model(config, self.quant)).get(torch_name)
        if weight is None:
            return self._file.get_tensor(torch_name)
        return self.matrix(torch_name, weight).unpack()

    def tensors(self, config: PaliGemmaConfig) -> Iterator[tuple[str, Tensor]]:
        """(torch name, values) of every parameter of a plain model, one at a time."""
        weights = packed_weights(empty_packed_model(config, self.quant))
        for name in parameter_shapes(config):
            if name in weights:
                yield name, self.matrix(name, weights[name]).unpack()
            else:
                yield name, self._file.get_tensor(name)
