"""Answers a prompt about a picture with the ONNX graphs of this folder.

    pip install onnxruntime numpy pillow tokenizers
    python example.py photo.jpg "caption en"
    python example.py photo.jpg "caption en" --dtype q8

--dtype is fp32 (the default), or q8 or q4 where the folder has these graphs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {"fp32": "", "q8": "_quantized", "q4": "_q4"}


def read_picture(path: str, side_px: int) -> Any:
    """float32[1, 3, R, R] in [-1, 1]; the picture is stretched to a square, as in training."""
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    square = picture.resize((side_px, side_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(square, np.float32) / 255 * 2 - 1
    return pixels.transpose(2, 0, 1)[None]


def main() -> None:
    """Print the answer."""
    import onnxruntime
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture")
    parser.add_argument("prompt")
    parser.add_argument("--dtype", choices=sorted(SUFFIXES), default="fp32")
    asked = parser.parse_args()

    folder = Path(__file__).parent
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "generation_config.json").read_text())
    preparing = json.loads((folder / "preprocessor_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    vision, embed, decoder = (
        onnxruntime.InferenceSession(str(folder / "onnx" / f"{name}{SUFFIXES[asked.dtype]}.onnx"))
        for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    )

    # <image> for each soft token, <bos>, the prompt, a line break: all of it sees all of it.
    prompt = tokenizer.encode(asked.prompt, add_special_tokens=False).ids
    end_of_prompt = tokenizer.encode("\n", add_special_tokens=False).ids
    image = config["image_token_index"]
    soft = [image] * preparing["image_seq_length"]
    ids = np.array([[*soft, config["bos_token_id"], *prompt, *end_of_prompt]])

    pixels = read_picture(asked.picture, preparing["size"]["height"])
    (features,) = vision.run(None, {"pixel_values": pixels})
    (embeds,) = embed.run(None, {"input_ids": ids})
    embeds[ids == image] = features[0]

    names = [one.name for one in decoder.get_inputs() if one.name.startswith("past_key_values")]
    text = config["text_config"]
    empty = np.zeros((1, text["num_key_value_heads"], 0, text["head_dim"]), np.float32)
    past = dict.fromkeys(names, empty)
    mask = np.ones((1, ids.shape[1]), np.int64)
    positions = np.arange(1, ids.shape[1] + 1)[None]

    answer: list[int] = []
    while len(answer) < settings["max_new_tokens"]:
        logits, *present = decoder.run(
            None,
            {
                "inputs_embeds": embeds,
                "attention_mask": mask,
                "position_ids": positions,
                "num_logits_to_keep": np.array(1),
                **past,
            },
        )
        chosen = int(logits[0, -1].argmax())
        if chosen == settings["eos_token_id"]:
            break
        answer.append(chosen)
        past = dict(zip(names, present, strict=True))
        (embeds,) = embed.run(None, {"input_ids": np.array([[chosen]])})
        mask = np.ones((1, mask.shape[1] + 1), np.int64)
        positions = positions[:, -1:] + 1
    sys.stdout.write(tokenizer.decode(answer) + "\n")


if __name__ == "__main__":
    main()
