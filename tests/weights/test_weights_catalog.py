"""From names to files, with a hub that is not there."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from paligemma.config import named_release
from paligemma.errors import (
    AccessError,
    CheckpointError,
    ConfigError,
    MissingExtraError,
    ModelNotFoundError,
)
from paligemma.weights import catalog
from paligemma.weights.catalog import published_ids, resolve
from paligemma.weights.save import save_model


class Hub:
    """Stands in for `snapshot_download`; records the call."""

    def __init__(self, folder: Path | None = None, error: Exception | None = None) -> None:
        self.folder, self.error, self.calls = folder, error, []

    def __call__(self, **arguments: Any) -> str:
        self.calls.append(arguments)
        if self.error:
            raise self.error
        return str(self.folder)


@pytest.fixture
def folder(make_config, make_model, tmp_path: Path) -> Path:
    """A checkpoint with a tokenizer."""
    save_model(make_model(make_config(1)), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"")
    return tmp_path / "model"


def use(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def response(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("google/paligemma2-3b-mix-448", "google/paligemma2-3b-mix-448", None),
        ("pt_224", "google/paligemma-3b-pt-224", None),
        ("pt_10b_896", "google/paligemma2-10b-pt-896", None),
        ("pali_gemma2_mix_3b_448", "google/paligemma2-3b-mix-448", None),
        ("paligemma-3b-mix-224", "google/paligemma-3b-mix-224", None),
        ("google/paligemma-3b-mix-224@bfloat16", "google/paligemma-3b-mix-224", "bfloat16"),
        ("somebody/my-finetune@v2", "somebody/my-finetune", "v2"),
    ],
)
def test_names_of_every_habit_become_hub_ids(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, hub_id: str, revision: str | None
) -> None:
    hub = use(monkeypatch, Hub(folder))
    checkpoint = resolve(name)
    assert checkpoint.weights == (folder / "model.safetensors",)
    assert checkpoint.tokenizer == folder / "tokenizer.model"
    (call,) = hub.calls
    assert (call["repo_id"], call["revision"]) == (hub_id, revision)


def test_only_needed_files_are_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fnmatch

    hub = use(monkeypatch, Hub(folder))
    resolve("pt_224", revision="float16")
    patterns = hub.calls[0]["allow_patterns"]
    wanted = (
        "config.json",
        "model-00001-of-00003.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "tokenizer.json",
    )
    unwanted = ("pytorch_model.bin", "paligemma-3b-pt-224.npz", "x.npz.part0", "README.md")
    assert all(any(fnmatch.fnmatch(name, p) for p in patterns) for name in wanted)
    assert not any(fnmatch.fnmatch(name, p) for p in patterns for name in unwanted)
    assert hub.calls[0]["local_files_only"] is False
    resolve("pt_224", download=False)
    assert hub.calls[1]["local_files_only"] is True


@pytest.mark.parametrize("revision", ["float16", "bfloat16", "float32"])
def test_dtype_revisions_of_the_second_generation_are_refused(
    monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    hub = use(monkeypatch, Hub())
    with pytest.raises(
        ConfigError, match=r"published in bfloat16 without revisions.*choose the dt"
    ):
        resolve(f"google/paligemma2-3b-pt-224@{revision}")
    assert hub.calls == []


@pytest.mark.parametrize(
    "error",
    [
        errors.GatedRepoError("gated", response=response(403)),
        errors.RepositoryNotFoundError("who are you", response=response(401)),
        errors.HfHubHTTPError("forbidden", response=response(403)),
    ],
    ids=["gated", "no token", "forbidden"],
)
def test_a_refusal_names_the_licence_page_and_the_token(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    use(monkeypatch, Hub(error=error))
    with pytest.raises(
        AccessError, match=r"https://huggingface\.co/google/paligemma2-3b-pt-224 .*HF_TOKEN"
    ):
        resolve("google/paligemma2-3b-pt-224")


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("not cached"),
        errors.OfflineModeIsEnabled("offline"),
        ConnectionError("no route"),
        errors.HfHubHTTPError.__bases__[0]("no route"),
    ],
    ids=["not cached", "offline", "socket", "http client"],
)
def test_without_a_network_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    use(monkeypatch, Hub(error=error))
    with pytest.raises(AccessError, match=r"not on this machine.*HF_HUB_OFFLINE.*copy its folder"):
        resolve("google/paligemma2-3b-pt-224")


def test_a_misspelt_release_is_answered_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    typo = "google/paligemma2-3b-mxi-448"
    hint = r"; did you mean google/paligemma2-3b-mix-448\?$"
    use(monkeypatch, Hub(error=errors.OfflineModeIsEnabled("offline")))
    with pytest.raises(AccessError, match=r"not on this machine.*name that" + hint):
        resolve(typo)
    # Of a name that does not exist the hub says so only to those who are logged in.
    use(monkeypatch, Hub(error=errors.RepositoryNotFoundError("who", response=response(401))))
    with pytest.raises(AccessError, match=r"HF_TOKEN.*" + hint):
        resolve(typo)
    use(monkeypatch, Hub(error=errors.RepositoryNotFoundError("no", response=response(404))))
    with pytest.raises(ModelNotFoundError, match="check the spelling" + hint):
        resolve(typo)
    for other in ("somebody/paligemma2-mine", "google/paligemma2-3b-mix-448"):
        with pytest.raises((AccessError, ModelNotFoundError), match=other) as caught:
            resolve(other)
        assert "did you mean" not in str(caught.value)


def test_a_revision_of_what_is_no_hub_s_model_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = use(monkeypatch, Hub(folder))
    (folder / "m.npz").write_bytes(b"")
    for name in ("tiny", folder, folder / "m.npz"):
        with pytest.raises(ConfigError, match=r"is on this machine.*got 'bfloat16'; leave it out"):
            resolve(name, revision="bfloat16")
    with pytest.raises(ConfigError, match="one revision, got 'float16' in its name and 'bfloat16'"):
        resolve("pt_224@float16", revision="bfloat16")
    assert hub.calls == []


def test_a_hub_id_that_does_not_exist_is_not_a_matter_of_licence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = errors.RepositoryNotFoundError("no", response=response(404))
    use(monkeypatch, Hub(error=missing))
    with pytest.raises(ModelNotFoundError, match="somebody/nothing does not"):
        resolve("somebody/nothing")
    use(monkeypatch, Hub(error=errors.RevisionNotFoundError("no", response=response(404))))
    with pytest.raises(ModelNotFoundError, match="has no 'v9'; leave it out"):
        resolve("somebody/thing@v9")
    use(monkeypatch, Hub(error=errors.HFValidationError("two hyphens")))
    with pytest.raises(ModelNotFoundError, match="a model must be a folder"):
        resolve("somebody/thi--ng")


def test_a_failing_hub_is_reported_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Hub(error=errors.HfHubHTTPError("down", response=response(503))))
    with pytest.raises(AccessError, match=r"answered 503 .* try again later"):
        resolve("pt_224")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'paligemma\[hub\]'"):
        resolve("pt_224")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pallgemma2-3b-pt-224", "did you mean paligemma2-3b-pt-224"),
        ("", "a model must be a folder"),
        ("a\0b", "a model must be a folder"),
        ("x" * 10_000, "a model must be a folder"),
        ("~nobody/there", "there is no file"),
        ("./nowhere", "there is no file"),
        ("weights/pt_224.npz", "there is no file"),
        ("a/b/c", "there is no file"),
        ("has space/x", "a model must be a folder"),
    ],
)
def test_an_unknown_name_is_answered_with_what_a_name_can_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = use(monkeypatch, Hub())
    with pytest.raises(ModelNotFoundError, match=message):
        resolve(name)
    assert hub.calls == []


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors, .* an \.npz"):
        resolve(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"an adapter, not a model; .* adapter merge"):
        resolve(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "b.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"one \.npz, .* a\.npz, b\.npz; name the file"):
        resolve(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"must be a \.safetensors or a big_vis"):
        resolve(tmp_path / "notes.txt")


def test_pieces_are_put_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"m.npz.part{number}").write_bytes(b"")
    names = [path.name for path in resolve(tmp_path).weights]
    assert names == [f"m.npz.part{number}" for number in range(12)]


def test_a_mask_codec_beside_an_npz_is_not_taken_for_the_model(tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes(b"")
    (tmp_path / "vae-oid.npz").write_bytes(b"")
    checkpoint = resolve(tmp_path)
    assert checkpoint.weights == (tmp_path / "m.npz",)
    assert checkpoint.mask_codec == tmp_path / "vae-oid.npz"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}', "missing: model-00002"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "without folders"),
        ('{"weight_map": {}}', "must list its files"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        resolve(tmp_path)


def test_the_embedded_model_lies_inside_the_package() -> None:
    import paligemma

    assert Path(paligemma.__file__).parent in catalog.embedded_folder().parents


def test_every_published_id_is_a_row_of_the_table_of_releases() -> None:
    ids = published_ids()
    assert len(ids) == 5 + 6 + 6 + 5
    assert "google/paligemma2-28b-pt-896" in ids
    assert all(named_release(name) for name in ids)
    assert named_release("google/paligemma2-3b-ft-docci-448")
    assert named_release("somebody/else") is None
