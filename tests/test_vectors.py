import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crystallized_safety.errors import VectorError
from crystallized_safety.vectors import SteeringVector, load_vector, save_vector


@pytest.fixture
def vector() -> SteeringVector:
    return SteeringVector(
        tensor=torch.tensor([3.0, 4.0, 0.0]),
        layer=7,
        position=-1,
        gap_norm=2.5,
        residual_norm=50.0,
        method="difference-in-means",
        model="a model",
        provenance={"n_harmful": "4"},
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_saved_vector_comes_back_bit_for_bit_with_everything_it_knew(
    vector: SteeringVector, tmp_path: Path, suffix: str
):
    path = save_vector(vector, tmp_path / f"v{suffix}")
    back = load_vector(path)
    assert torch.equal(back.tensor, vector.tensor)
    assert replace(back, tensor=vector.tensor) != back  # eq is identity: compare fields
    fields = ("layer", "position", "gap_norm", "residual_norm", "method", "model", "site", "sign", "provenance")
    assert {name: getattr(back, name) for name in fields} == {name: getattr(vector, name) for name in fields}
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_the_dose_is_told_in_gap_units_and_as_a_share_of_the_residual_norm(vector: SteeringVector):
    assert vector.kappa(-3.0) == pytest.approx(-3.0 * 5 / 2.5)
    assert vector.delta(2.0) == pytest.approx(2.0 * 5 / 50)


def test_it_stands_for_a_tensor_where_torch_and_numpy_expect_one(vector: SteeringVector):
    other = torch.tensor([1.0, 0.0, 0.0])
    assert torch.nn.functional.cosine_similarity(vector, other, dim=0) == pytest.approx(0.6)
    assert torch.equal(torch.stack([vector, other])[0], vector.tensor)
    assert torch.equal(2 * vector, torch.tensor([6.0, 8.0, 0.0]))
    assert torch.equal(vector / vector.norm(), torch.tensor([0.6, 0.8, 0.0]))
    assert torch.equal(-vector, torch.tensor([-3.0, -4.0, 0.0]))
    assert np.asarray(vector).tolist() == [3.0, 4.0, 0.0]
    assert vector.shape == (3,)
    assert len(vector) == 3


@pytest.mark.parametrize(
    "bad", [torch.zeros(3), torch.tensor([1.0, float("nan")]), torch.ones(2, 2), torch.tensor([1, 2])]
)
def test_a_vector_that_is_none_is_refused_at_once(vector: SteeringVector, bad: torch.Tensor):
    with pytest.raises(VectorError, match="steering vector must"):
        replace(vector, tensor=bad)


@pytest.mark.parametrize("name", ["v.bin", "v", "v.pkl"])
def test_another_suffix_is_refused_and_nothing_is_written(vector: SteeringVector, tmp_path: Path, name: str):
    with pytest.raises(VectorError, match=r"\.safetensors or \.pt"):
        save_vector(vector, tmp_path / name)
    assert not list(tmp_path.iterdir())


class _Evil:
    """Unpickling this would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path):
    trace = tmp_path / "ran"
    torch.save({"direction.1": torch.ones(3), "x": _Evil(trace)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Evil(trace)))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(VectorError, match="plain tensors"):
            load_vector(tmp_path / name)
    assert not trace.exists()


def test_files_that_are_no_vectors_are_one_sentence(vector: SteeringVector, tmp_path: Path):
    whole = save_vector(vector, tmp_path / "v.safetensors").read_bytes()
    cases = {
        "cut.safetensors": whole[: len(whole) // 2],
        "text.safetensors": b"hello",
        "empty.safetensors": b"",
        "text.pt": b"hello",
        "empty.pt": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VectorError, match=name.replace(".", r"\.")):
            load_vector(tmp_path / name)
    torch.save(torch.ones(3), tmp_path / "bare.pt")
    with pytest.raises(VectorError, match="bare Tensor"):
        load_vector(tmp_path / "bare.pt")
    with pytest.raises(VectorError, match="must exist"):
        load_vector(tmp_path / "none.pt")
    save_file({"direction.1": torch.ones(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(VectorError, match="no description"):
        load_vector(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer", 8),
        ("site", "block_input"),
        ("sign", "harmless - harmful"),
        ("gap_norm", 0.0),
        ("gap_norm", None),
        ("extra", 1),
    ],
)
def test_a_description_that_contradicts_the_file_or_our_convention_is_refused(
    vector: SteeringVector, tmp_path: Path, key: str, value: object
):
    from safetensors import safe_open

    path = save_vector(vector, tmp_path / "v.safetensors")
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["steering_vector"])
    save_file({"direction.7": vector.tensor}, path, metadata={"steering_vector": json.dumps({**about, key: value})})
    with pytest.raises(VectorError):
        load_vector(path)


def test_a_folder_that_cannot_be_written_is_one_sentence(vector: SteeringVector, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VectorError, match="must be written"):
        save_vector(vector, tmp_path / "file" / "v.pt")
