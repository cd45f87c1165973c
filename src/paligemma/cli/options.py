"""Options that several commands share; each decorator hands its command one object."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from paligemma.cli.sections import ModelName
from paligemma.cli.start import without_garbage_collection
from paligemma.errors import ImageError
from paligemma.json_file import read_json

if TYPE_CHECKING:
    from paligemma.pipeline.paligemma import PaliGemma

DEFAULT_MODEL = "tiny"

Command = TypeVar("Command", bound=Callable[..., Any])


class Probability(click.FloatRange):
    """A number in [0, 1]; NaN, which no comparison finds outside, is refused too."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, checked."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{number} is not in the range 0<=x<=1.", param, ctx)
        return number


class Choices(click.ParamType):
    """Answers separated by ";", or the whole numbers from one to another, as 0..100."""

    name = "choices"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str] | range:
        """The answers."""
        numbers = re.fullmatch(r"\s*(-?\d{1,99})\.\.(-?\d{1,99})\s*", value)
        if numbers is not None:
            low, high = int(numbers[1]), int(numbers[2])
            if low > high:
                self.fail(f"{value} is empty; write the smaller number first", param, ctx)
            return range(low, high + 1)
        answers = [answer.strip() for answer in value.split(";")]
        if not all(answers):
            self.fail(f"{value!r:.100} has an empty answer; write 'yes ; no'", param, ctx)
        return answers


class NamedPath(click.Path):
    """A path that is not empty, which would silently be the current folder."""

    def __init__(self, **kind: Any) -> None:
        super().__init__(path_type=Path, **kind)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, checked."""
        if value == "":
            self.fail("an empty name; name a file or folder, '.' for this one", param, ctx)
        return super().convert(value, param, ctx)


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model, and the keywords of `PaliGemma.from_pretrained`."""

    name: str
    options: dict[str, Any]
    is_default: bool = False

    @property
    def label(self) -> str:
        """What a record calls it: its name, and its adapter if it has one."""
        adapter = self.options.get("adapter")
        return self.name if adapter is None else f"{self.name} with {adapter}"

    def load(self) -> PaliGemma:
        """Load the model; torch is imported here and not before."""
        with without_garbage_collection():
            from paligemma.pipeline.paligemma import PaliGemma

            return PaliGemma.from_pretrained(self.name, **self.options)


@dataclass(frozen=True, kw_only=True)
class OutputChoice:
    """Where an answer goes: text or one JSON object on standard output, and an overlay."""

    as_json: bool
    overlay: Path | None
    overwrite: bool


def gathered_options(
    name: str, options: list[Callable[..., Any]], make: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """A decorator that adds options and passes their values on as one argument."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gathered(**values: Any) -> Any:
            mine = {key: values.pop(key) for key in keys}
            return command(**values, **{name: make(mine)})

        before = set(_parameter_names(gathered))
        result: Any = gathered
        for option in reversed(options):
            result = option(result)
        keys = [key for key in _parameter_names(gathered) if key not in before]
        return result

    return decorate


def _parameter_names(command: Any) -> list[str]:
    return [parameter.name for parameter in getattr(command, "__click_params__", [])]


def _choose_model(values: dict[str, Any]) -> ModelChoice:
    model = _stated_model(values)
    tell_default(model)
    return model


def _stated_model(values: dict[str, Any]) -> ModelChoice:
    name = values.pop("model_name")
    stated = {key: value for key, value in values.items() if value is not None}
    chosen = DEFAULT_MODEL if name is None else name
    return ModelChoice(name=chosen, options=stated, is_default=name is None)


def tell_default(model: ModelChoice) -> None:
    """Name the embedded model on standard error, where nobody chose it."""
    if model.is_default:
        click.echo(
            "paligemma: using the small embedded model, which knows drawn pictures only; "
            "choose another with --model or PALIGEMMA_MODEL",
            err=True,
        )


_NAME = [
    click.option(
        "--model",
        "model_name",
        envvar="PALIGEMMA_MODEL",
        type=ModelName(),
        metavar="MODEL",
        help='"tiny" (default), a hub id, a folder, or an .npz file.',
    ),
    click.option("--adapter", metavar="DIR", help="LoRA adapter, or a run of `train`."),
]
# How a model is loaded, whichever it is.
LOADING = [
    click.option("--revision", metavar="NAME", help="Branch of the hub, such as bfloat16."),
    click.option(
        "--mode",
        type=click.Choice(["exact", "mixed", "bf16"]),
        help="Precision; by default bf16 for a bfloat16 file, else exact (float32).",
    ),
    click.option(
        "--quant",
        metavar="NAME",
        help="Weights in fewer bits: int4, int8, fp8 or bf16, packed for a CPU; or nf4.",
    ),
    click.option(
        "--device",
        metavar="NAME,NAME",
        help="By default cuda if there is one, else cpu; cuda:0,cuda:1 divides the model.",
    ),
    click.option(
        "--image-size",
        "image_size_px",
        type=click.IntRange(1, 4096),
        metavar="PX",
        help="Another resolution than the model's.",
    ),
    click.option(
        "--resize",
        "resize_method",
        type=click.Choice(["bicubic", "bilinear", "bilinear-antialias"]),
        help="How pictures are resized; bicubic by default.",
    ),
    click.option(
        "--conventions",
        type=click.Choice(["big_vision", "transformers"]),
        help="Whom to follow where the two differ; big_vision by default.",
    ),
    click.option(
        "--kv-cache",
        "kv_cache_dtype",
        type=click.Choice(["bfloat16", "float32", "int8"]),
        help="Precision of keys and values while decoding.",
    ),
    click.option(
        "--attn-softcap", type=float, metavar="X", help="Cap of attention scores; 0 is off."
    ),
    click.option("--final-softcap", type=float, metavar="X", help="Cap of logits; 0 is off."),
    click.option("--sliding-window", type=int, metavar="N", help="Of every other layer; 0 is off."),
    click.option("--tokenizer", metavar="PATH", help="By default the one beside the weights."),
    click.option("--mask-codec", metavar="PATH", help="vae-oid.npz, for masks."),
    click.option(
        "--background",
        metavar="COLOR",
        help="Seen through transparent parts; white by default. none drops transparency, as "
        "the original does.",
    ),
]
_ALLOW_URL = click.option("--allow-url", is_flag=True, help="Let IMAGE be an http(s) address.")

model_options = gathered_options("model", [*_NAME, *LOADING, _ALLOW_URL], _choose_model)
# Of commands that may need no PaliGemma: these call `tell_default` where they load it.
optional_model_options = gathered_options("model", [*_NAME, *LOADING, _ALLOW_URL], _stated_model)
# Of a server of one model, which is asked for pictures by others.
served_model_options = gathered_options("model", [*_NAME, *LOADING], _choose_model)

_DRAWING = ("temperature", "top_k", "top_p", "best_of")


def say_idle(options: Iterable[str], reason: str) -> None:
    """One line on standard error that names options without effect; none where there are none."""
    if names := " and ".join(options):
        click.echo(f"paligemma: {names} had no effect: {reason}", err=True)


def _choose_decoding(values: dict[str, Any]) -> dict[str, Any]:
    stated = {key: value for key, value in values.items() if value is not None}
    draws = stated.get("temperature") != 0 and any(name in stated for name in _DRAWING)
    if not draws:
        idle = {"top_k": "--top-k", "top_p": "--top-p", "seed": "--seed"}
        say_idle(
            [option for key, option in idle.items() if key in stated],
            "at temperature 0 nothing is sampled"
            if stated.get("temperature") == 0
            else "nothing is sampled; state --temperature, --top-k or --top-p",
        )
    if "json_schema" in stated:
        stated["json_schema"] = _read_schema(stated["json_schema"])
    if stated.get("weigh_locations") and (draws or stated.get("num_beams", 1) != 1):
        say_idle(["--weigh-locations"], "it is for greedy answers, without beams and draws")
    return stated


def _read_schema(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise click.BadParameter(
            f"{click.format_filename(path)} is no JSON: {error}", param_hint="--json-schema"
        ) from error


decoding_options = gathered_options(
    "decoding",
    [
        click.option("--max-new-tokens", type=int, metavar="N", help="Longest answer, in tokens."),
        click.option(
            "--temperature",
            type=float,
            metavar="T",
            help="Sample at temperature T; by default the likeliest token is taken.",
        ),
        click.option("--top-k", type=int, metavar="K", help="Sample among the K likeliest tokens."),
        click.option("--top-p", type=float, metavar="P", help="Sample from the nucleus of mass P."),
        click.option("--beams", "num_beams", type=int, metavar="B", help="Beam search."),
        click.option(
            "--length-penalty", type=float, metavar="A", help="Divide beam scores by length^A."
        ),
        click.option(
            "--best-of", type=int, metavar="N", help="Sample N answers, keep the likeliest."
        ),
        click.option(
            "--probabilities",
            type=click.Choice(["vocabulary", "allowed"]),
            help="Of a constrained answer among all tokens, or among the allowed ones (faster).",
        ),
        click.option(
            "--choices",
            type=Choices(),
            metavar="LIST",
            help='The only answers allowed: "yes ; no", or whole numbers as 0..100.',
        ),
        click.option(
            "--json-schema",
            type=NamedPath(dir_okay=False, exists=True),
            metavar="FILE",
            help="The answer is JSON that obeys this schema; needs paligemma[json].",
        ),
        click.option("--seed", type=int, metavar="S", help="Seed of sampling; 0 by default."),
        click.option(
            "--weigh-locations/--no-weigh-locations",
            default=None,
            help="Weigh all locations together against any other token; as the model asks.",
        ),
    ],
    _choose_decoding,
)


def _choose_objects(values: dict[str, Any]) -> dict[str, Any]:
    if not values["constrain"]:
        for name, option in _RULES.items():
            if values[name]:
                raise click.UsageError(
                    f"{option} is a rule of a constrained answer; state --constrain too"
                )
    return values


_RULES = {"max_objects": "--max-objects", "no_repeats": "--no-repeats"}

object_options = gathered_options(
    "objects",
    [
        click.option(
            "--max-objects",
            type=click.IntRange(1, 1024),
            metavar="N",
            help="With --constrain: at most so many objects; 100 by default.",
        ),
        click.option(
            "--no-repeats",
            is_flag=True,
            help="With --constrain: no box twice with one label.",
        ),
        click.option(
            "--threshold",
            type=Probability(),
            metavar="P",
            help="Leave out objects with a lower confidence.",
        ),
        click.option(
            "--max-overlap",
            type=Probability(),
            metavar="IOU",
            help="Of boxes of one label that overlap more, keep the likeliest.",
        ),
        click.option(
            "--constrain", is_flag=True, help="Allow well-formed objects of these labels only."
        ),
        click.option(
            "--calibration",
            type=NamedPath(),
            metavar="PATH",
            help="calibration.json, or the model's folder with it: honest confidences, and what "
            "reaches its label's threshold.",
        ),
    ],
    _choose_objects,
)


class ChosenFrame(click.ParamType):
    """Frames of a file, as `parse_frames` reads them."""

    name = "frame"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Read the text of the option."""
        from paligemma.processing.frames import parse_frames

        try:
            return parse_frames(value) if isinstance(value, str) else value
        except ImageError as error:
            self.fail(str(error), param, ctx)


frame_option = click.option(
    "--frame",
    type=ChosenFrame(),
    metavar="N",
    help="Frame of a video or animation, or page of a TIFF, from 0; the first by default. Several "
    "are one example: 0,5,9, or 1.5s,3s by time, or even:8 for so many evenly spaced, or all.",
)

overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace files that this program did not write."
)

output_options = gathered_options(
    "output",
    [
        click.option("--json", "as_json", is_flag=True, help="One object on standard output."),
        click.option(
            "--output",
            "-o",
            "overlay",
            type=NamedPath(),
            metavar="PNG",
            help="Write the picture with the answer drawn on it; a folder for several pictures.",
        ),
        overwrite_option,
    ],
    lambda values: OutputChoice(**values),
)
