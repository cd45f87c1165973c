"""One page of ColPali through layers of PaliGemma 3B's widths, here and by transformers, in turns.

    pip install -e '.[dev]'
    python benchmarks/page_embedding.py --tower 3 --decoder 2 --rounds 3

Weights are random; both engines read the same files. The cosine is the lowest between the vectors
of a page and those of transformers in float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from paligemma import ColPali
from paligemma.bench.machine import describe
from paligemma.retrieval.inputs import page_batch

EMBEDDED = Path(str(resources.files("paligemma"))) / "models" / "tiny"


def write_checkpoint(folder: Path, num_tower: int, num_decoder: int) -> None:
    """A folder as transformers saves one, with the embedded model's small vocabulary."""
    from transformers import ColPaliConfig, ColPaliForRetrieval

    vocab = ColPali.from_pretrained("tiny").pg.processor.vocab
    text = {
        "model_type": "gemma",
        "vocab_size": vocab.size + 1,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": num_decoder,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": num_tower,
        "num_attention_heads": 16,
        "image_size": 448,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = ColPaliConfig(
        vlm_config={
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": vision,
            "image_token_index": vocab.size,
            "projection_dim": 2048,
        },
        embedding_dim=128,
    )
    ColPaliForRetrieval(config).save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    stored["vlm_config"]["paligemma"] = {
        "pad": vocab.pad,
        "sep": vocab.sep,
        "loc0": vocab.loc0,
        "seg0": vocab.seg0,
    }
    (folder / "config.json").write_text(json.dumps(stored))
    shutil.copy(EMBEDDED / "tokenizer.model", folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tower", type=int, default=3, help="layers of the tower, of 27")
    parser.add_argument("--decoder", type=int, default=2, help="layers of the decoder, of 18")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from transformers import ColPaliForRetrieval
    from transformers.utils import logging

    logging.disable_progress_bar()
    picture = np.random.default_rng(0).integers(0, 255, (600, 500, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder, options.tower, options.decoder)
        theirs = {
            name: ColPaliForRetrieval.from_pretrained(folder, dtype=getattr(torch, name)).eval()
            for name in ("float32", "bfloat16")
        }
        ours = {
            "here, float32": ColPali.from_pretrained(folder, device="cpu"),
            "here, bfloat16": ColPali.from_pretrained(folder, device="cpu", mode="bf16"),
            "here, int8": ColPali.from_pretrained(folder, device="cpu", quant="int8"),
            "here, int4": ColPali.from_pretrained(folder, device="cpu", quant="int4"),
        }
        first = ours["here, float32"]
        batch = page_batch(first.preset, first.pg.processor, [picture])
        assert batch.images is not None
        soft = torch.full(
            (1, first.pg.model.config.num_image_tokens), first.pg.processor.vocab.size
        )
        ids = torch.cat((soft, batch.tokens), dim=1)
        pixels = batch.images.permute(0, 3, 1, 2).contiguous()

        def of_transformers(name: str) -> torch.Tensor:
            found = theirs[name](
                input_ids=ids,
                pixel_values=pixels.to(getattr(torch, name)),
                attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),
            )
            return found.embeddings[0].float()

        calls: dict[str, Callable[[], torch.Tensor]] = {
            f"transformers, {name}": lambda name=name: of_transformers(name) for name in theirs
        }
        calls |= {
            name: lambda one=one: one.encode_pages([picture])[0].values
            for name, one in ours.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        cosines: dict[str, float] = {}
        with torch.inference_mode():
            reference = of_transformers("float32")
            for _ in range(options.rounds):
                for name, call in calls.items():
                    began = time.perf_counter()
                    values = call()
                    seconds[name].append(round(time.perf_counter() - began, 2))
                    cosines[name] = float((values * reference).sum(dim=1).min())
    record = {
        "machine": describe("torch", "transformers"),
        "threads": options.threads,
        "layers": [options.tower, options.decoder],
        "seconds": seconds,
        "best": {name: min(times) for name, times in seconds.items()},
        "lowest_cosine": {name: round(value, 5) for name, value in cosines.items()},
    }
    print(json.dumps(record, indent=1))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
