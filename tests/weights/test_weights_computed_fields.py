"""What config.json asks for is computed or refused by name, never passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma2Config, GemmaConfig, SiglipVisionConfig
from transformers import PaliGemmaConfig as TheirConfig

from paligemma.cli import main
from paligemma.errors import ConfigError
from paligemma.weights.doctor import diagnose, worst
from paligemma.weights.hf_config import config_from_hf, hf_config
from paligemma.weights.save import save_model

REFUSED = [
    ("", "quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "absent"),
    ("text_config", "quantization_config", {"quant_method": "awq"}, "absent"),
    ("text_config", "hidden_activation", "relu", "'gelu_pytorch_tanh'"),
    ("text_config", "hidden_act", "silu", "'gelu_pytorch_tanh'"),
    ("text_config", "attention_bias", True, "False"),
    ("text_config", "use_bidirectional_attention", False, "True"),
    ("text_config", "rope_scaling", {"type": "linear", "factor": 8.0}, "'default'"),
    ("text_config", "rope_scaling", {"factor": 8.0}, "absent"),
    ("text_config", "rope_scaling", 8, "absent"),
    ("text_config", "rope_parameters", {"rope_type": "yarn", "factor": 4.0}, "'default'"),
    ("text_config", "rope_parameters", {"partial_rotary_factor": 0.5}, "absent"),
    ("text_config", "rope_parameters", {"full_attention": {"rope_theta": 1e6}}, "absent"),
    ("text_config", "layer_types", ["full_attention", "sliding_attention"], "in turn"),
    ("text_config", "layer_types", "sliding_attention", "in turn"),
    ("text_config", "layer_types", True, "in turn"),
    ("vision_config", "layer_norm_eps", 0.1, "1e-06"),
    ("vision_config", "layer_norm_eps", True, "1e-06"),
    ("vision_config", "hidden_act", "gelu", "'gelu_pytorch_tanh'"),
    ("vision_config", "num_channels", 4, "3"),
    ("vision_config", "model_type", "clip_vision_model", "'siglip_vision_model'"),
]


def with_field(raw: dict[str, Any], where: str, name: str, value: Any) -> dict[str, Any]:
    return raw | ({where: raw[where] | {name: value}} if where else {name: value})


@pytest.mark.parametrize(("where", "name", "value", "computed"), REFUSED)
@pytest.mark.parametrize("generation", [1, 2])
def test_a_value_that_is_not_computed_is_refused_with_the_one_that_is(
    make_config, generation: int, where: str, name: str, value: Any, computed: str
) -> None:
    raw = hf_config(make_config(generation))
    with pytest.raises(ConfigError) as caught:
        config_from_hf(with_field(raw, where, name, value))
    assert f"{where}.{name}".lstrip(".") in str(caught.value)
    assert computed in str(caught.value)


def test_their_own_defaults_are_what_is_computed() -> None:
    for text in (GemmaConfig(), Gemma2Config()):
        raw = TheirConfig(text_config=text, vision_config=SiglipVisionConfig()).to_dict()
        raw |= {"image_token_index": 257152}
        raw["text_config"] |= {"vocab_size": 257216}
        config_from_hf(raw)
    legacy = {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}
    config_from_hf(raw | {"text_config": raw["text_config"] | legacy})


def test_layers_that_are_all_full_have_no_window(make_config) -> None:
    raw = hf_config(make_config(2, sliding_window=8))
    assert config_from_hf(raw, conventions="transformers").text.sliding_window == 8
    full = with_field(raw, "text_config", "layer_types", ["full_attention"] * 3)
    assert config_from_hf(full, conventions="transformers").text.sliding_window is None


def test_the_refusal_reaches_the_command_line_and_the_doctor(
    make_config, make_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(make_model(make_config(2)), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    raw = with_field(json.loads(path.read_text()), "vision_config", "layer_norm_eps", 0.1)
    path.write_text(json.dumps(raw))
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "m"), str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "vision_config.layer_norm_eps of config.json must be 1e-06" in capsys.readouterr().err
    findings = diagnose(tmp_path / "m")
    assert worst(findings) == "error"
    assert any("layer_norm_eps" in found.message for found in findings)
