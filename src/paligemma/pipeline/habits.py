"""Keywords of other libraries in the meaning that they have there, or refused by ours.

Nothing here needs torch: a client has it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paligemma.errors import ConfigError

# dtype of transformers -> our mode
_MODES = {"bfloat16": "bf16", "float32": "exact", "float": "exact", "auto": None}
_NO_EFFECT = ("low_cpu_mem_usage", "use_safetensors", "use_fast", "trust_remote_code")

_NO_EFFECT_ON_ANSWERS = ("use_cache", "pad_token_id")

_LOADING = {
    "token": "set HF_TOKEN, or log in with `hf auth login`",
    "use_auth_token": "set HF_TOKEN, or log in with `hf auth login`",
    "cache_dir": "set HF_HUB_CACHE, or HF_HOME, to that folder",
    "local_files_only": "set HF_HUB_OFFLINE=1; a model that is on this machine is not asked for",
    "force_download": "remove the model from the hub's cache",
    "subfolder": "name the folder itself",
    "variant": "name the folder or the revision that holds it",
    "proxies": "set HTTPS_PROXY",
    "load_in_4bit": "pass quant='int4' or quant='nf4'",
    "load_in_8bit": "pass quant='int8'",
    "quantization_config": "pass quant='int4', 'int8' or 'nf4'",
    "attn_implementation": "leave it out; every device has its fastest exact way",
    "use_flash_attention_2": "leave it out; every device has its fastest exact way",
    "offload_folder": "leave it out; pass quant='int4' where memory is short",
    "max_memory": "name the devices, as in device='cuda:0,cuda:1'",
}
_NO_REPEATS = "pass constrain=True and no_repeats=True for objects"
_ASKING = {
    "max_length": "pass max_new_tokens, which counts the answer alone",
    "min_new_tokens": "leave it out; an answer ends where the model ends it",
    "num_return_sequences": "ask again with another seed, or pass best_of",
    "return_dict_in_generate": "leave it out; an answer has score and token_logprobs",
    "output_scores": "leave it out; an answer has score and token_logprobs",
    "frames": "pass Frames([...]) in the place of the picture",
    "eos_token_id": "leave it out; an answer ends at the model's own <eos>",
    "early_stopping": "leave it out; beams end as in big_vision",
    "no_repeat_ngram_size": _NO_REPEATS,
    "stop_strings": "cut the text yourself, or bound it by max_new_tokens",
    "streamer": "call stream, or stream_events",
    "generation_config": "pass what it holds as keywords, such as max_new_tokens and num_beams",
    "n": "ask again with another seed, or pass best_of",
    "stop": "leave it out; an answer ends where the model ends it",
    "batch_size": "leave it out; a list of pictures is a batch, within the memory there is",
    "bos_token_id": "leave it out; it is the tokenizer's",
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), _NO_REPEATS),
    "repetition_penalty": _NO_REPEATS,
    **dict.fromkeys(
        ("conf", "confidence", "conf_threshold", "score_threshold", "box_threshold"),
        "pass threshold",
    ),
    **dict.fromkeys(("iou", "iou_threshold", "nms_threshold"), "pass max_overlap"),
}


def for_loading(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `from_pretrained` as fields of `LoadOptions`.

    Raises:
        ConfigError: one that has no such field, or a value without its meaning here.
    """
    found = _without(_LOADING, keywords)
    for name in _NO_EFFECT:
        found.pop(name, None)
    for name in ("torch_dtype", "dtype"):
        if name in found:
            value = found.pop(name)
            mode = str(value).removeprefix("torch.")
            if value is not None and mode not in _MODES:
                raise ConfigError(
                    f"{name} must be torch.bfloat16, torch.float32 or 'auto', got {value!r:.100}; "
                    "mode says it too: 'bf16', 'exact' or 'mixed'"
                )
            if value is not None:
                _put(found, "mode", _MODES[mode], name)
    if "device_map" in found:
        value = found.pop("device_map")
        if isinstance(value, Mapping) and set(value) == {""}:
            value = value[""]
        if isinstance(value, int) and not isinstance(value, bool):
            value = f"cuda:{value}"
        if isinstance(value, Mapping) or value in ("balanced", "balanced_low_0", "sequential"):
            raise ConfigError(
                f"device_map must be 'auto' or one device, got {value!r:.100}; over several name "
                "them, as in device='cuda:0,cuda:1'"
            )
        _put(found, "device", None if value == "auto" else value, "device_map")
    return found


def for_asking(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `generate` as fields of `AnswerOptions` and `ObjectOptions`.

    Raises:
        ConfigError: see `for_loading`.
    """
    found = _without(_ASKING, keywords)
    for name in _NO_EFFECT_ON_ANSWERS:
        found.pop(name, None)
    if "max_tokens" in found:
        _put(found, "max_new_tokens", found.pop("max_tokens"), "max_tokens")
    if "do_sample" in found:
        draws = found.pop("do_sample")
        if not isinstance(draws, bool):
            raise ConfigError(f"do_sample must be True or False, got {draws!r:.100}")
        names = ("temperature", "top_k", "top_p")
        if not draws:
            for name in names:  # transformers passes them over then
                found.pop(name, None)
        elif all(found.get(name) is None for name in names):
            found["temperature"] = 1.0
    return found


def _without(refused: Mapping[str, str], keywords: Mapping[str, Any]) -> dict[str, Any]:
    for name, remedy in refused.items():
        value = keywords.get(name)
        if value is not None and value is not False:
            raise ConfigError(f"{name} is no option here; {remedy}")
    return {name: value for name, value in keywords.items() if name not in refused}


def _put(found: dict[str, Any], ours: str, value: Any, theirs: str) -> None:
    if found.get(ours) not in (None, value):
        raise ConfigError(
            f"{theirs} and {ours} say the same, got {value!r:.100} and {found[ours]!r:.100}; leave "
            "one out"
        )
    if value is not None:
        found[ours] = value
