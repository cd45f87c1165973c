"""`paligemma push` and `pull` against a stand-in of the hub on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_small
from huggingface_hub import ModelCard, constants
from stand_in_hub import READS, StandInHub

from paligemma.export.card import card_text
from paligemma.export.hub_card import BEGIN, END
from paligemma.one_writer import one_writer
from paligemma.weights.hf_config import config_from_hf, read_json

# Of httpx about huggingface_hub, in threads of the latter.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Run = Callable[..., tuple[int, str, str]]
NAME = "me/cards"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small(tmp_path_factory.mktemp("push") / "cards", 2)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "graph.onnx").write_bytes(bytes(range(256)) * 500)
    (folder / ".hidden").write_text("mine")
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What `paligemma eval` writes, as far as a card needs it."""
    folder = tmp_path / "run"
    folder.mkdir()
    figure = {"measure": "ap|50", "value": 88.02, "low": 87.1, "high": 89.4, "num": 1000}
    empty = {"measure": "miou", "value": None, "low": None, "high": None, "num": 0}
    body = {
        "task": "cards\x07🃏",
        "split": "heldout",
        "model": "runs/cards",
        "num_scored": 999,
        "num_asked": 1000,
        "figures": [figure, empty],
        "run": {
            "command": "paligemma eval cards --model runs/cards",
            "environment": {"paligemma": "0.1.0", "torch": "2.13.0", "python": "3.11"},
        },
    }
    (folder / "scores.json").write_text(json.dumps(body))
    return folder


def visible(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_what_is_pushed_comes_back_with_the_same_bytes(
    hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    status, out, err = program("push", model, NAME, "--message", "First of all")
    assert status == 0, err
    assert out == f"{hub.url}/{NAME}/commit/{1:040x}\n"
    assert hub.commits[NAME] == ["First of all"]
    assert hub.private == {NAME}
    sent = visible(model)
    kept = dict(hub.repositories[NAME])
    assert kept.pop("README.md").startswith(b"---\npipeline_tag:")
    assert kept == sent
    status, _, err = program("pull", NAME, tmp_path / "back")
    assert status == 0, err
    assert {**visible(tmp_path / "back"), "README.md": b""} == {**sent, "README.md": b""}
    assert not (tmp_path / "back.part").exists()
    assert not (tmp_path / "back" / ".cache").exists()
    assert program("doctor", tmp_path / "back", "--quick")[0] == 0


def test_a_public_repository_is_made_only_on_request(
    hub: StandInHub, model: Path, program: Run
) -> None:
    assert program("push", model, NAME, "--public")[0] == 0
    assert hub.private == set()


def test_the_card_carries_the_table_of_a_run_and_the_folder_stays(
    hub: StandInHub, model: Path, run_folder: Path, program: Run
) -> None:
    status, _, err = program("push", model, NAME, "--eval", run_folder)
    assert status == 0, err
    card = hub.repositories[NAME]["README.md"].decode()
    assert "| cards 🃏 | heldout | `ap\\|50` | 88.02 [87.10, 89.40] | 1,000 |" in card
    assert "| cards 🃏 | heldout | `miou` | - | 0 |" in card
    assert "999 of 1,000 examples; paligemma 0.1.0, torch 2.13.0;" in card
    # As the hub reads it, in YAML.
    (result,) = ModelCard(card).data.eval_results
    assert (result.metric_type, result.metric_value) == ("ap|50", 88.02)
    assert (result.dataset_name, result.dataset_split) == ("cards 🃏", "heldout")
    assert not (model / "README.md").exists()


@pytest.mark.parametrize("kind", ["hub", "onnx"])
def test_the_code_of_a_card_names_the_repository_that_it_was_pushed_to(
    kind: str, hub: StandInHub, tmp_path: Path, program: Run
) -> None:
    folder = write_small(tmp_path / "own", 1)
    config = config_from_hf(read_json(folder / "config.json"))
    exported = card_text(name="own", config=config, kind=kind)
    (folder / "README.md").write_text(exported)
    assert program("push", folder, NAME)[0] == 0
    card = hub.repositories[NAME]["README.md"].decode()
    left_open = {"hub": "FOLDER", "onnx": "OWNER/NAME"}[kind]
    assert left_open in exported
    assert card == exported.replace(left_open, NAME)
    assert (folder / "README.md").read_text() == exported


def test_a_card_of_the_folder_keeps_its_words_and_gets_one_table(
    hub: StandInHub, tmp_path: Path, run_folder: Path, program: Run
) -> None:
    folder = write_small(tmp_path / "own", 1)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nMy words.\n")
    for _ in range(2):
        status, _, err = program("push", folder, NAME, "--eval", run_folder)
        assert status == 0, err
        card = hub.repositories[NAME]["README.md"]
        (folder / "README.md").write_bytes(card)
    text = card.decode()
    assert text.startswith("---\nlicense: mit\nmodel-index: [{")
    assert "# Mine\n\nMy words.\n" in text
    for once in (BEGIN, END, "model-index:", "## Evaluation"):
        assert text.count(once) == 1


@pytest.mark.parametrize(
    "own",
    [
        "---\nlicense: mit\ntitle: cards ---\n---\n\nMy words.\n",
        "---\ntitle: cards ---\nlicense: mit\n---\n\nMy words.\n",
        "\n---\nlicense: mit\n--- \nMy words.",
        "\ufeff---\nlicense: mit\n---\nMy words.",
        "---\nlicense: mit\n---",
    ],
)
def test_metadata_of_a_card_stay_its_metadata(
    own: str, hub: StandInHub, tmp_path: Path, run_folder: Path, program: Run
) -> None:
    folder = write_small(tmp_path / "own", 1)
    (folder / "README.md").write_text(own)
    assert program("push", folder, NAME, "--eval", run_folder)[0] == 0
    text = hub.repositories[NAME]["README.md"].decode()
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.get("title") == ("cards ---" if "title" in own else None)
    assert len(card.data.eval_results) == 1
    assert card.text.strip().startswith("My words." if "words" in own else BEGIN)
    assert text.count("license: mit") == 1


@pytest.mark.parametrize(
    ("base", "terms"),
    [
        ("google/paligemma2-3b-pt-224", ("google/paligemma2-3b-pt-224", "gemma")),
        ("pt_3b_448", ("google/paligemma2-3b-pt-448", "gemma")),
        ("runs/first/model", (None, None)),
    ],
)
def test_the_card_of_an_adapter_names_its_base_and_its_terms(
    base: str, terms: tuple[str | None, str | None], hub: StandInHub, tmp_path: Path, program: Run
) -> None:
    (tmp_path / "king").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": base}
    (tmp_path / "king" / "adapter_config.json").write_text(json.dumps(config))
    assert program("push", tmp_path / "king", NAME)[0] == 0
    card = ModelCard(hub.repositories[NAME]["README.md"].decode())
    assert (card.data.base_model, card.data.license) == terms
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "image-text-to-text")
    assert f"An adapter for `{base.rpartition('/')[2]}`." in card.content
    assert f"--model {terms[0] or 'BASE'} --adapter {NAME}\n" in card.content


def test_a_dry_run_sends_nothing_and_shows_the_card(
    hub: StandInHub, model: Path, run_folder: Path, program: Run
) -> None:
    status, out, err = program("push", model, NAME, "--eval", run_folder, "--dry-run")
    assert status == 0, err
    assert "## Evaluation" in out
    assert "onnx/graph.onnx" in err
    assert hub.repositories == {}


def test_a_push_that_was_cut_off_sends_only_what_is_missing(
    hub: StandInHub, model: Path, program: Run
) -> None:
    seen: list[str] = []

    def fail_at_the_second(method: str, path: str) -> int | None:
        if method == "PUT":
            seen.append(path)
            return 500 if len(set(seen)) > 1 and path != seen[0] else None
        return None

    hub.fault = fail_at_the_second
    status, _, err = program("push", model, NAME)
    assert status == 2
    assert "what arrived is not sent again" in err
    assert hub.repositories[NAME] == {}
    first = list(hub.uploads)
    assert len(first) == 1
    hub.fault = lambda method, path: None
    assert program("push", model, NAME)[0] == 0
    assert len(hub.uploads) == len(set(hub.uploads)) == 2
    assert hub.uploads[0] == first[0]
    assert len(hub.repositories[NAME]) == len(visible(model)) + 1


def test_weights_of_an_earlier_push_are_not_left_beside_the_new_ones(
    hub: StandInHub, model: Path, program: Run
) -> None:
    assert program("push", model, NAME)[0] == 0
    outdated = {
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        "model.safetensors.index.json",
    }
    others = ("adapter_model.safetensors", "onnx/vision_encoder.onnx", "own.safetensors", "a.txt")
    for name in (*outdated, *others):
        hub.repositories[NAME][name] = b"old"
    status, _, err = program("push", model, NAME)
    assert status == 0, err
    assert hub.repositories[NAME].keys() == {*visible(model), *others, "README.md"}
    for name in outdated:
        assert f"removed {name}, weights of an earlier push" in err


def test_graphs_of_an_earlier_push_go_with_their_quantised_kinds(
    hub: StandInHub, tmp_path: Path, program: Run
) -> None:
    folder = write_small(tmp_path / "graphs", 1)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "embed_tokens.onnx").write_bytes(b"new")
    (folder / "mask_codec.npz").write_bytes(b"new")
    assert program("push", folder, NAME)[0] == 0
    old = {"mask_codec.safetensors", "onnx/embed_tokens_q4.onnx", "onnx/embed_tokens_q4.onnx_data"}
    for name in (*old, "onnx/model_of_mine.onnx"):
        hub.repositories[NAME][name] = b"old"
    assert program("push", folder, NAME)[0] == 0
    assert not old & hub.repositories[NAME].keys()
    assert hub.repositories[NAME]["onnx/model_of_mine.onnx"] == b"old"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the hub does not know the token"),
        (403, "the account of the token may not write to me/cards"),
        (412, "was changed meanwhile"),
        (429, "too many requests"),
        (503, "the hub answered 503"),
    ],
)
def test_each_refusal_of_a_push_is_a_sentence(
    status: int, said: str, hub: StandInHub, model: Path, program: Run
) -> None:
    hub.fault = lambda method, path: status if "/commit/" in path else None
    ended, out, err = program("push", model, NAME)
    assert (ended, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert hub.repositories[NAME] == {}


def test_a_push_without_a_token_or_without_rights_says_so(
    hub: StandInHub, model: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READS)
    status, _, err = program("push", model, NAME)
    assert status == 2
    assert "may not write to me/cards" in err
    monkeypatch.delenv("HF_TOKEN")
    status, _, err = program("push", model, NAME)
    assert status == 2
    assert "a push needs a token of the hub, none is set" in err
    assert hub.repositories == {}


def test_a_token_with_odd_characters_is_named_and_not_shown(
    hub: StandInHub, model: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\x1bpart")
    status, out, err = program("push", model, NAME)
    assert (status, out) == (2, "")
    assert "HF_TOKEN (or the stored login) holds other characters" in err
    assert "secret" not in err


def test_a_hub_that_is_not_there_is_a_sentence(
    hub: StandInHub, model: Path, tmp_path: Path, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for words in (("push", model, NAME), ("pull", NAME, tmp_path / "back")):
        status, _, err = program(*words)
        assert status == 2
        assert "the hub cannot be reached" in err
        assert "Traceback" not in err


def test_a_repository_that_is_not_there_is_a_sentence(
    hub: StandInHub, tmp_path: Path, program: Run
) -> None:
    status, _, err = program("pull", "me/nothing", tmp_path / "back")
    assert status == 2
    assert "does not (or is private" in err
    assert not (tmp_path / "back").exists()


def test_a_pull_that_broke_off_goes_on_and_appears_whole(
    hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    assert program("push", model, NAME)[0] == 0
    hub.fault = lambda method, path: 500 if path.endswith("graph.onnx") else None
    assert program("pull", NAME, tmp_path / "back")[0] == 2
    assert not (tmp_path / "back").exists()
    assert (tmp_path / "back.part" / "config.json").is_file()
    asked: list[str] = []

    def note(method: str, path: str) -> None:
        if method == "GET" and "/resolve/" in path:
            asked.append(path.rpartition("/")[2])

    hub.fault = note
    assert program("pull", NAME, tmp_path / "back")[0] == 0
    assert "graph.onnx" in asked
    assert "model.safetensors" not in asked
    assert visible(tmp_path / "back").keys() == {*visible(model), "README.md"}


def test_pickled_files_of_a_repository_stay_there(
    hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    assert program("push", model, NAME)[0] == 0
    hub.repositories[NAME] |= {"optimizer.pt": b"pickle", "OTHER.PKL": b"pickle"}
    asked: list[str] = []

    def note(method: str, path: str) -> None:
        asked.append(path)

    hub.fault = note
    status, _, err = program("pull", NAME, tmp_path / "back")
    assert status == 0
    assert "optimizer.pt stays on the hub: opening it runs code" in err
    assert "OTHER.PKL stays on the hub" in err
    assert visible(tmp_path / "back").keys() == {*visible(model), "README.md"}
    assert not [one for one in asked if one.endswith((".pt", ".PKL"))]
    hub.repositories[NAME] = {"optimizer.pt": b"pickle"}
    status, _, err = program("pull", NAME, tmp_path / "nothing")
    assert status == 2
    assert "me/cards has 1 that do" in err


def test_settings_of_git_and_the_notes_of_the_library_are_left_there(
    hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    assert program("push", model, NAME)[0] == 0
    for name in (".git/config", "onnx/.git/hooks/post-checkout", ".cache/huggingface/own"):
        hub.repositories[NAME][name] = b"evil"
    status, _, err = program("pull", NAME, tmp_path / "back")
    assert status == 0, err
    assert visible(tmp_path / "back").keys() == {*visible(model), "README.md"}
    assert not list((tmp_path / "back").rglob(".git"))


@pytest.mark.parametrize("path", ["onnx/graph.onnx", "config.json"])
def test_other_bytes_than_the_hub_states_are_refused(
    path: str,
    hub: StandInHub,
    model: Path,
    tmp_path: Path,
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert program("push", model, NAME)[0] == 0
    true = hub.repositories[NAME][path]
    serve = hub._file

    def serve_another(request: Any, data: bytes) -> None:
        serve(request, bytes([data[0] ^ 1]) + data[1:] if data == true else data)

    monkeypatch.setattr(hub, "_file", serve_another)
    status, _, err = program("pull", NAME, tmp_path / "back")
    assert status == 2
    assert f"{path} of me/cards did not arrive as the hub has it" in err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_of_the_user_that_is_named_like_half_a_pull_is_left_alone(
    is_link: bool, hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    assert program("push", model, NAME)[0] == 0
    own = tmp_path / ("own" if is_link else "back.part")
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    if is_link:
        (own / ".cache" / "huggingface").mkdir(parents=True)
        (tmp_path / "back.part").symlink_to(own)
    status, _, err = program("pull", NAME, tmp_path / "back")
    assert status == 2
    assert "back.part, which is there and not of one; move it away" in err
    assert (own / "thesis.txt").read_text() == "mine"


def test_a_second_pull_into_the_same_folder_is_refused_while_one_runs(
    hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    assert program("push", model, NAME)[0] == 0
    with one_writer(tmp_path, "back.part"):
        status, _, err = program("pull", NAME, tmp_path / "back")
    assert status == 2
    assert str(os.getpid()) in err
    assert program("pull", NAME, tmp_path / "back")[0] == 0
    assert not list(tmp_path.glob(".*writer"))


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/etc/evil", "a\\..\\b", "a\x1b[2J", "a//b", "./config.json", "a/"]
)
def test_names_that_leave_the_folder_are_refused(
    name: str, hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    assert program("push", model, NAME)[0] == 0
    hub.repositories[NAME][name] = b"evil"
    status, _, err = program("pull", NAME, tmp_path / "back")
    assert status == 2
    assert "the hub lists a file that cannot be kept" in err
    assert not (tmp_path / "back.part").exists()


def test_folders_that_hold_no_model_or_pickles_are_not_pushed(
    hub: StandInHub, tmp_path: Path, program: Run
) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = program("push", tmp_path / "empty", NAME)
    assert status == 2
    assert "has neither; name a folder that" in err
    folder = write_small(tmp_path / "pickled", 1)
    (folder / "training_args.bin").write_bytes(b"pickle")
    status, _, err = program("push", folder, NAME)
    assert status == 2
    assert "pickled and compiled files run code when they are opened" in err
    (folder / "training_args.bin").unlink()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "private").mkdir()
    (folder / "same").mkdir()
    for target in (
        *(tmp_path / "secret.txt", tmp_path / "private", tmp_path / "gone"),
        *(folder / "same", folder / "gone"),
    ):
        (folder / "notes.txt").symlink_to(target)
        status, _, err = program("push", folder, NAME)
        (folder / "notes.txt").unlink()
        assert status == 2
        assert "is a link that leads elsewhere or to a folder" in err
    assert hub.repositories == {}


@pytest.mark.parametrize(
    "name", ["cards", "me/", "me/a/b", "me/a--b", "me/" + "a" * 100, "m e/x", "mé/x"]
)
def test_an_impossible_name_is_a_sentence(
    name: str, hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    for words in (("push", model, name), ("pull", name, tmp_path / "back")):
        status, _, err = program(*words)
        assert status == 2
        assert "a repository of the hub is owner/name" in err


@pytest.mark.parametrize("text", ["", "[]", '{"figures": []}', '{"task": 3}'])
def test_a_run_without_scores_is_a_sentence(
    text: str, hub: StandInHub, model: Path, tmp_path: Path, program: Run
) -> None:
    status, _, err = program("push", model, NAME, "--eval", tmp_path)
    assert status == 2
    assert "cannot be read" in err
    (tmp_path / "scores.json").write_text(text)
    status, _, err = program("push", model, NAME, "--eval", tmp_path)
    assert status == 2
    assert "must be what paligemma eval writes" in err
