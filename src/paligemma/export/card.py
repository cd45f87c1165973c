"""README.md of an exported model: what it is, how it is run, what was measured.

Begins with the metadata that the hub reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma.config import PaliGemmaConfig, canonical_name, named_release, release_of

_LIBRARIES = {"hub": "transformers", "onnx": "transformers.js", "aoti": "pytorch"}
_TINY = "tiny"
_JAVASCRIPT = (
    "import {",
    "  AutoProcessor, PaliGemmaForConditionalGeneration, RawImage,",
    '} from "@huggingface/transformers";',
    "",
    'const name = "OWNER/NAME";',
    "const processor = await AutoProcessor.from_pretrained(name);",
    "const model = await PaliGemmaForConditionalGeneration.from_pretrained(name, {",
    '  dtype: "fp32",',
    "});",
    'const image = await RawImage.read("photo.jpg");',
    'const asked = await processor(image, "<image>caption en");',
    "const ids = await model.generate({ ...asked, max_new_tokens: 64 });",
    "const answer = ids.slice(null, [asked.input_ids.dims.at(-1), null]);",
    "console.log(processor.batch_decode(answer, { skip_special_tokens: true })[0]);",
)
# How the code of a card names the model until it has a repository.
_PLACES = (
    ('from_pretrained("FOLDER")', 'from_pretrained("{}")'),
    ("--model FOLDER", "--model {}"),
    ("--adapter FOLDER", "--adapter {}"),
    ('const name = "OWNER/NAME";', 'const name = "{}";'),
)
_TASK, _TAGS = "image-text-to-text", ("paligemma",)


def card_text(
    *, name: str, config: PaliGemmaConfig, kind: str, measured: Sequence[str] = ()
) -> str:
    """The text of a card.

    Args:
        name: of the model that was exported.
        kind: "hub", "onnx" or "aoti".
        measured: lines of Markdown about the export.
    """
    lines = [
        *_metadata(name, config, kind),
        f"# {_title(name)}",
        "",
        _sentence(name, config),
        "",
        *_usage(kind),
        *([] if not measured else ["", "## Checked", "", *measured]),
        "",
    ]
    return "\n".join(lines)


def adapter_card_text(*, name: str, base: str) -> str:
    """The text of the card of an adapter.

    Args:
        base: name of the model that it changes, as adapter_config.json has it.
    """
    terms = _terms_of_release(base)
    fields = {"pipeline_tag": _TASK, "library_name": "peft", **terms}
    # Readers do not have the folder of whoever trained it.
    model = terms.get("base_model", "BASE")
    return "\n".join(
        [
            *_front(fields, _TAGS),
            f"# {_title(name)}",
            "",
            f"An adapter for `{_title(base)}`.",
            "",
            *("## Use", "", "```bash"),
            f'paligemma run photo.jpg "caption en" --model {model} --adapter FOLDER',
            *("```", ""),
        ]
    )


def addressed(card: str, hub_id: str) -> str:
    """A card whose code names a repository where an export left the name open."""
    for left_open, named in _PLACES:
        card = card.replace(left_open, named.format(hub_id))
    return card


def write_card(folder: Path, **fields: Any) -> Path:
    """Write README.md; `fields` as for `card_text`."""
    path = folder / "README.md"
    path.write_text(card_text(**fields), encoding="utf-8")
    return path


def _title(name: str) -> str:
    """The last part of a name, on one line."""
    return " ".join(Path(name).name.split())[:100] or "PaliGemma"


def _metadata(name: str, config: PaliGemmaConfig, kind: str) -> list[str]:
    fields = {"pipeline_tag": _TASK, "library_name": _LIBRARIES[kind], **_terms_of_release(name)}
    if name == _TINY:
        fields["license"] = "apache-2.0"
    elif release_of(config):
        fields["license"] = "gemma"
    return _front(fields, [*_TAGS, *(["onnx"] if kind == "onnx" else [])])


def _terms_of_release(name: str) -> dict[str, str]:
    """What is stated of a model that is a release, or made of one; nothing of others."""
    if named_release(name) is None:
        return {}
    return {"license": "gemma", "base_model": canonical_name(name.partition("@")[0])}


def _front(fields: Mapping[str, str], tags: Sequence[str]) -> list[str]:
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return ["---", *lines, "tags:", *(f"- {one}" for one in tags), "---", ""]


def _sentence(name: str, config: PaliGemmaConfig) -> str:
    family = "PaliGemma 2" if config.generation == 2 else "PaliGemma"
    text, vision = config.text, config.vision
    return (
        f"A model of the architecture of {family}: pictures of {vision.image_size_px} px as "
        f"{vision.num_tokens} soft tokens, a decoder of {text.depth} blocks and width "
        f"{text.width}, a vocabulary of {config.vocab.size:,} tokens. Exported from "
        f"`{_title(name)}`."
    )


def _usage(kind: str) -> list[str]:
    if kind == "onnx":
        return [
            "## Use",
            "",
            "`onnx/` holds the graphs `vision_encoder`, `embed_tokens` and "
            "`decoder_model_merged`, for onnxruntime and transformers.js. `example.py` runs them:",
            "",
            "```bash",
            "pip install onnxruntime numpy pillow tokenizers",
            'python example.py photo.jpg "caption en"',
            "```",
            "",
            "Text embeddings are scaled in `embed_tokens`, image features are not scaled. With an "
            "empty cache all tokens see each other, as image and prompt do; behind a cache a new "
            "token sees what is before it. `num_logits_to_keep` is the number of last positions "
            "whose logits are computed, 0 for all. Weights of eight bits are `*_quantized.onnx` "
            '(dtype "q8"), of four `*_q4.onnx`.',
            "",
            "In JavaScript, with `@huggingface/transformers`:",
            "",
            "```js",
            *_JAVASCRIPT,
            "```",
        ]
    if kind == "aoti":
        return [
            "## Use",
            "",
            "`prefill.pt2` and `step.pt2` are native code that AOTInductor compiled for one kind "
            "of CPU, `weights.safetensors` the weights of both. Loading a package runs its code. "
            "`example.py` shows how:",
            "",
            "```bash",
            "pip install torch safetensors numpy pillow tokenizers",
            'python example.py photo.jpg "caption en"',
            "```",
        ]
    return [
        "## Use",
        "",
        "```python",
        "from transformers import AutoProcessor, PaliGemmaForConditionalGeneration",
        "",
        'processor = AutoProcessor.from_pretrained("FOLDER")',
        'model = PaliGemmaForConditionalGeneration.from_pretrained("FOLDER")',
        "```",
        "",
        "```bash",
        'paligemma run photo.jpg "caption en" --model FOLDER',
        "```",
    ]
