"""`paligemma export --to onnx`, run by onnxruntime as a user would."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from example_answers import require_the_models_answer
from PIL import Image
from tiny_folder import DESK, VOCAB

from paligemma import PaliGemma
from paligemma.cli.export import export_command
from paligemma.export import onnx_check, onnx_folder, onnx_graphs, onnx_quant
from paligemma.export.onnx_check import OnnxModel
from paligemma.export.onnx_graphs import EMBEDDING, GRAPHS
from paligemma.model import PaliGemmaModel
from paligemma.weights.load import load_model

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MODULES = Path(__file__).parents[2] / "build" / "js" / "node_modules"
needs_javascript = pytest.mark.skipif(
    not (MODULES / "@huggingface" / "transformers").is_dir() or shutil.which("node") is None,
    reason="transformers.js is not installed, make test-js does it",
)

Run = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Told:
    """An export, and what the program said of it."""

    folder: Path
    lines: list[str]


@pytest.fixture(scope="session")
def told(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A small model exported by the program in three precisions; once for all tests."""
    folder = tmp_path_factory.mktemp("onnx") / small.name
    options = ["--to", "onnx", "--quant", "int8", "--quant", "int4"]
    done = CliRunner().invoke(export_command, [str(small), str(folder), *options])
    assert done.exit_code == 0, done.output
    return Told(folder, done.output.splitlines())


@pytest.fixture
def exported(told: Told) -> Path:
    return told.folder


def test_every_situation_of_both_generations_is_within_a_ten_thousandth(
    small: Path, exported: Path
) -> None:
    model = load_model(small)
    found = onnx_check.compare(model, OnnxModel(exported / "onnx"))
    assert [one.situation for one in found] == [
        "a picture and a prompt",
        "a picture and a prompt: 3 steps more",
        "a prompt alone",
        "a prompt alone: 3 steps more",
        "rows padded on the left",
        "rows padded on the left: 3 steps more",
        "rows padded on the right",
        "rows padded on the right: 3 steps more",
    ]
    assert max(one.largest for one in found) <= 1e-4
    assert all(one.same_choice == 1 for one in found)


def test_the_check_sees_a_graph_of_another_model(small: Path, exported: Path) -> None:
    model = load_model(small)
    model.text.norm.scale.data.add_(0.01)
    found = onnx_check.compare(model, OnnxModel(exported / "onnx"))
    assert min(one.largest for one in found) > 1e-3


def test_files_and_inputs_have_the_names_that_transformers_js_feeds(exported: Path) -> None:
    names = {path.name for path in (exported / "onnx").iterdir()}
    assert names == {f"{g}{s}.onnx" for g in GRAPHS for s in ("", "_quantized", "_q4")}
    sessions = [onnxruntime.InferenceSession(exported / "onnx" / f"{g}.onnx") for g in GRAPHS]
    inputs = [{one.name: one.shape for one in each.get_inputs()} for each in sessions]
    outputs = [[one.name for one in each.get_outputs()] for each in sessions]
    assert inputs[0] == {"pixel_values": ["batch_size", 3, 28, 28]}
    assert inputs[1] == {"input_ids": ["batch_size", "sequence_length"]}
    # An unknown name is taken for 0 where transformers.js makes the first, empty cache.
    cache = ["batch_size", 2, "past_sequence_length", 16]
    assert inputs[2] == {
        "inputs_embeds": ["batch_size", "sequence_length", 48],
        "attention_mask": ["batch_size", "total_length"],
        "position_ids": ["batch_size", "sequence_length"],
        "num_logits_to_keep": [],
        **{f"past_key_values.{n}.{kind}": cache for n in (0, 1) for kind in ("key", "value")},
    }
    assert outputs[:2] == [["image_features"], ["inputs_embeds"]]
    assert outputs[2] == [
        "logits",
        *(f"present.{n}.{kind}" for n in (0, 1) for kind in ("key", "value")),
    ]


def test_new_tokens_behind_a_cache_do_not_see_what_follows_them(exported: Path) -> None:
    graphs = OnnxModel(exported / "onnx")
    past = [np.zeros((1, 2, 0, 16), np.float32)] * 4
    first = graphs.embed(np.array([[2, 9, 4]]))
    mask = np.ones((1, 3), np.int64)
    _, past = graphs.decode(first, mask, past)
    later = [graphs.embed(np.array([[20, last]])) for last in (21, 22)]
    told = [graphs.decode(one, np.ones((1, 5), np.int64), past)[0] for one in later]
    np.testing.assert_array_equal(told[0][:, 0], told[1][:, 0])
    assert np.abs(told[0][:, 1] - told[1][:, 1]).max() > 1e-3
    # The prompt itself does: its first token sees its last.
    empty = [np.zeros((1, 2, 0, 16), np.float32)] * 4
    both = [graphs.embed(np.array([[2, 9, last]])) for last in (21, 22)]
    seen = [graphs.decode(one, mask, empty)[0] for one in both]
    assert np.abs(seen[0][:, 0] - seen[1][:, 0]).max() > 1e-3


def test_only_the_last_logits_are_computed_where_so_many_are_asked_for(exported: Path) -> None:
    graphs = OnnxModel(exported / "onnx")
    empty = [np.zeros((1, 2, 0, 16), np.float32)] * 4
    embeds, mask = graphs.embed(np.array([[2, 9, 11, 4]])), np.ones((1, 4), np.int64)
    whole, _ = graphs.decode(embeds, mask, empty)
    for keep in (1, 3, 4):
        some, _ = graphs.decode(embeds, mask, empty, keep=keep)
        np.testing.assert_allclose(some, whole[:, -keep:], atol=1e-5)
    assert whole.shape == (1, 4, VOCAB.size)


def test_fewer_bits_are_smaller_and_say_how_far_they_are_off(exported: Path) -> None:
    sizes = {
        suffix: (exported / "onnx" / f"decoder_model_merged{suffix}.onnx").stat().st_size
        for suffix in ("", "_quantized", "_q4")
    }
    assert sizes["_quantized"] < 0.6 * sizes[""]
    assert sizes["_q4"] < 0.6 * sizes[""]
    sizes = [(exported / "onnx" / f"embed_tokens{s}.onnx").stat().st_size for s in ("", "_q4")]
    assert sizes[1] < 0.25 * sizes[0]
    checked = json.loads((exported / "check.json").read_text())
    assert [one["precision"] for one in checked] == ["float32", "int8", "int4"]
    worst = [max(each["largest"] for each in one["differences"]) for one in checked]
    assert worst[0] <= 1e-4 < worst[1]
    assert worst[0] <= 1e-4 < worst[2]
    card = (exported / "README.md").read_text()
    assert "| int4 | rows padded on the left: 3 steps more |" in card


def test_large_weights_lie_beside_their_graph_under_the_name_that_is_looked_for(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small.name != "pg2":
        pytest.skip("the same for both generations")
    some = {EMBEDDING: onnx_graphs._graphs(load_model(small))[EMBEDDING]}
    monkeypatch.setattr(onnx_graphs, "_graphs", lambda _: some)
    monkeypatch.setattr(onnx_quant, "GRAPHS", (EMBEDDING,))
    for module in (onnx_graphs, onnx_quant):
        monkeypatch.setattr(module, "MAX_INLINE_BYTES", 1000)
    onnx_graphs.write_graphs(load_model(small), tmp_path)
    for kind in ("int8", "int4"):
        onnx_quant.quantise(tmp_path, kind)
    files = [f"{EMBEDDING}{suffix}.onnx" for suffix in ("", "_q4", "_quantized")]
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        [*files, *(f"{name}_data" for name in files)]
    )
    stated = onnx_folder._external_data(tmp_path)
    assert stated == {
        "transformers.js_config": {"use_external_data_format": dict.fromkeys(files, 1)}
    }
    for name in files:
        session = onnxruntime.InferenceSession(tmp_path / name)
        assert session.run(None, {"input_ids": np.array([[2, VOCAB.size]])})[0].shape == (1, 2, 48)


@needs_javascript
@pytest.mark.parametrize("dtype", ["fp32", "q8", "q4"])
def test_transformers_js_answers_by_the_code_of_the_card(
    dtype: str, small: Path, exported: Path, tmp_path: Path
) -> None:
    answer = told_in_javascript(exported, tmp_path, dtype)
    own = PaliGemma.from_pretrained(small, kv_cache_dtype="float32")
    assert len(answer) > 5
    if dtype == "fp32":
        picture = tmp_path / "photo.png"
        assert answer == own.generate(picture, "caption en", max_new_tokens=12).text


@needs_javascript
def test_transformers_js_finds_large_weights_beside_their_graphs(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (onnx_graphs, onnx_quant):
        monkeypatch.setattr(module, "MAX_INLINE_BYTES", 1000)
    onnx_folder.export_onnx(str(small), tmp_path / "out", kinds=("int8", "int4"))
    assert len(list((tmp_path / "out" / "onnx").glob("*.onnx_data"))) == 9
    own = PaliGemma.from_pretrained(small, kv_cache_dtype="float32")
    answers = [told_in_javascript(tmp_path / "out", tmp_path, one) for one in ("fp32", "q8", "q4")]
    picture = tmp_path / "photo.png"
    assert answers[0] == own.generate(picture, "caption en", max_new_tokens=12).text
    assert all(len(one) > 5 for one in answers)


def told_in_javascript(folder: Path, scratch: Path, dtype: str) -> str:
    """Run the code of a card under Node.js for 12 tokens, on a folder of this machine.

    The picture, photo.png, has the model's size: libraries shrink pictures each in its own way.
    """
    Image.open(DESK).convert("RGB").resize((28, 28)).save(scratch / "photo.png")
    (code,) = re.findall(r"^```js\n(.*?)^```", (folder / "README.md").read_text(), re.M | re.S)
    changes = {
        '"OWNER/NAME"': json.dumps(str(folder)),
        '"photo.jpg"': json.dumps(str(scratch / "photo.png")),
        '"fp32"': json.dumps(dtype),
        "max_new_tokens: 64": "max_new_tokens: 12",
        "\n\nconst name": '\nimport { env } from "@huggingface/transformers";\n'
        'env.allowRemoteModels = false;\nenv.localModelPath = "/";\nconst name',
    }
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    (scratch / "ask.mjs").write_text(code)
    (scratch / "node_modules").unlink(missing_ok=True)
    (scratch / "node_modules").symlink_to(MODULES)
    done = subprocess.run(
        ["node", scratch / "ask.mjs"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_the_example_beside_the_graphs_answers_as_the_model(
    small: Path, exported: Path, tmp_path: Path
) -> None:
    require_the_models_answer(shutil.copytree(exported, tmp_path / "copy"), small)


def test_the_program_tells_the_largest_difference_it_measured(told: Told) -> None:
    shown = [re.match(r"(\w+): logits differ by (\S+) at most", line) for line in told.lines]
    checked = json.loads((told.folder / "check.json").read_text())
    assert [found.groups() for found in shown if found] == [
        (one["precision"], f"{max(each['largest'] for each in one['differences']):.1e}")
        for one in checked
    ]
    assert "paligemma: comparing int4 with the model" in told.lines


def test_an_export_that_differs_leaves_no_folder(
    small: Path, exported: Path, tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(model: PaliGemmaModel, folder: Path) -> None:
        shutil.copytree(exported / "onnx", folder, dirs_exist_ok=True)
        model.text.norm.scale.data.add_(0.01)

    monkeypatch.setattr(onnx_folder, "write_graphs", write_another)
    status, out, err = program("export", small, tmp_path / "out", "--to", "onnx")
    assert (status, out) == (1, "")
    assert "float32 logits of an export may differ by 1e-04, those of" in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(small: Path, tmp_path: Path, program: Run) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for target in ("onnx", "hub"):
        status, _, err = program("export", small, tmp_path, "--to", target)
        assert status == 2
        assert "goes to a folder that is not there yet" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "hub", "--quant", "int8"), "--quant does not go with --to hub"),
        (("--to", "hub", "--image-size", "448"), "--image-size does not go with --to hub"),
        (("--to", "onnx", "--dtype", "float16"), "--dtype does not go with --to onnx"),
        (("--to", "onnx", "--quant", "int2"), "'int2' is not one of 'int8', 'int4'"),
        ((), "Missing option '--to'"),
    ],
)
def test_an_option_of_another_target_is_refused(
    options: tuple[str, ...], said: str, tmp_path: Path, program: Run
) -> None:
    status, _, err = program("export", "tiny", tmp_path / "out", *options)
    assert status == 2
    assert said in err
