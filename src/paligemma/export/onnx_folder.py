"""A folder of ONNX graphs that transformers.js and onnxruntime run, checked before it appears."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from paligemma.errors import ConfigError
from paligemma.export import onnx_example
from paligemma.export.card import write_card
from paligemma.export.new_folder import new_folder
from paligemma.export.onnx_check import Difference, OnnxModel, compare
from paligemma.export.onnx_graphs import require_onnx, write_graphs
from paligemma.export.onnx_quant import SUFFIXES, quantise
from paligemma.export.opening import open_for_export, require_close
from paligemma.export.side_files import model_config
from paligemma.whole_file import write_json

logger = logging.getLogger(__name__)

CHECK_NAME = "check.json"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was measured of one precision.

    Attributes:
        precision: "float32", "int8" or "int4".
        differences: by situation; empty where none were measured.
    """

    precision: str
    differences: tuple[Difference, ...]

    @property
    def largest(self) -> float:
        """Largest difference of a logit."""
        return max((one.largest for one in self.differences), default=0.0)

    @property
    def same_choice(self) -> float:
        """Smallest share of positions with the same largest logit."""
        return min((one.same_choice for one in self.differences), default=1.0)


def export_onnx(
    source: str,
    folder: Path,
    *,
    kinds: Sequence[str] = (),
    revision: str | None = None,
    image_size_px: int | None = None,
    check: bool = True,
    on_step: Callable[[str], None] = lambda words: None,
) -> list[Checked]:
    """Write a model as ONNX graphs with all that other programs read beside them.

    Args:
        source: a model, as `paligemma.weights.catalog.resolve` finds it.
        folder: must not exist.
        kinds: precisions beside float32, keys of `SUFFIXES`.
        revision: branch of the hub.
        image_size_px: another resolution than the file's.
        check: whether to run the graphs beside the model; takes memory for both.
        on_step: called with a few words before each step.

    Returns:
        What was measured of float32 and of each kind.

    Raises:
        RunError: float32 logits differ by more than `opening.MAX_DIFFERENCE`; no folder is left.
        ConfigError: the folder exists, or a kind is unknown.
        MissingExtraError: a package of the extra `onnx` is missing.
    """
    unknown = sorted(set(kinds) - set(SUFFIXES))
    if unknown:
        raise ConfigError(f"ONNX weights are {', '.join(SUFFIXES)}, got {', '.join(unknown)}")
    require_onnx()
    with new_folder(folder) as staging:
        model, name = open_for_export(
            source, staging, revision=revision, image_size_px=image_size_px, on_step=on_step
        )
        graphs = staging / "onnx"
        graphs.mkdir()
        on_step("tracing the three graphs")
        write_graphs(model, graphs)
        for kind in kinds:
            on_step(f"quantising to {kind}")
            quantise(graphs, kind)
        found = []
        for precision in ("float32", *kinds):
            differences: tuple[Difference, ...] = ()
            if check:
                on_step(f"comparing {precision} with the model")
                exported = OnnxModel(graphs, SUFFIXES.get(precision, ""))
                differences = tuple(compare(model, exported))
            found.append(Checked(precision=precision, differences=differences))
        require_close(found[0].largest, source, "onnxruntime")
        body = model_config(model.config, **_external_data(graphs))
        (staging / "config.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        if check:
            write_json(staging / CHECK_NAME, [asdict(one) for one in found])
        shutil.copyfile(onnx_example.__file__, staging / "example.py")
        write_card(staging, name=name, config=model.config, kind="onnx", measured=_table(found))
    return found


def _external_data(graphs: Path) -> dict[str, object]:
    """What transformers.js must know of weights that lie beside their graph."""
    beside = sorted(path.name.removesuffix("_data") for path in graphs.glob("*.onnx_data"))
    if not beside:
        return {}
    return {"transformers.js_config": {"use_external_data_format": dict.fromkeys(beside, 1)}}


def _table(found: Sequence[Checked]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "Logits beside those of the model, which was computed in float32 by PyTorch; random "
        "pictures and prompts.",
        "",
        "| precision | situation | largest difference | same choice |",
        "|---|---|---|---|",
    ]
    for one in found:
        for each in one.differences:
            share = f"{each.same_choice:.0%}"
            lines.append(f"| {one.precision} | {each.situation} | {each.largest:.1e} | {share} |")
    return lines if any(one.differences for one in found) else []
