"""Where the stream is read is where it is edited, at every layer of every architecture, and nowhere else."""

from collections.abc import Callable

import pytest
import torch

from conftest import ARCHITECTURES
from crystallized_safety.interventions import edit
from crystallized_safety.models import LanguageModel
from crystallized_safety.residual import batch_edits, edited, recorded

Tiny = Callable[[str], LanguageModel]
IDS = torch.tensor([[1, 17, 300, 42, 8], [1, 99, 7, 640, 23]])
EVERYWHERE = torch.ones(3, 2, 5, dtype=torch.bool)


def _vector(lm: LanguageModel, seed: int = 1) -> torch.Tensor:
    return torch.randn(lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _streams(
    lm: LanguageModel, layer: int | None, rows: list[list[float]], applies: torch.Tensor | None = None
) -> dict[int, torch.Tensor]:
    """The stream at every layer while the rows are edited at `layer` by `add` with these doses."""
    vector = _vector(lm)
    edits = [
        [edit(vector, layer=layer, operator="add", dose=dose, positions="all") for dose in doses]
        if layer is not None
        else []
        for doses in rows
    ]
    applies = EVERYWHERE if applies is None else applies
    with (
        torch.inference_mode(),
        edited(lm.blocks, batch_edits(edits, dtype=lm.dtype, device=lm.device), applies),
        recorded(lm.blocks, layers=range(lm.n_layers), positions=range(-5, 0)) as seen,
    ):
        lm.model(input_ids=IDS)
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layer", range(4))
def test_layers_below_are_bit_equal_and_the_layer_itself_differs_by_exactly_the_vector(
    tiny: Tiny, architecture: str, layer: int
):
    lm = tiny(architecture)
    plain, steered = _streams(lm, None, [[], []]), _streams(lm, layer, [[1.5], []])
    for below in range(layer):
        assert torch.equal(plain[below], steered[below])
    torch.testing.assert_close(
        steered[layer][0] - plain[layer][0], (1.5 * _vector(lm)).expand(5, -1), atol=1e-12, rtol=0
    )
    for every in range(lm.n_layers):
        assert torch.equal(plain[every][1], steered[every][1]), "the row without an edit must not change"
    if layer < lm.n_layers - 1:
        assert not torch.allclose(steered[layer + 1][0], plain[layer + 1][0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_edit_at_the_last_layer_changes_the_logits(tiny: Tiny, architecture: str):
    lm = tiny(architecture)
    last = batch_edits(
        [[edit(_vector(lm), layer=3, operator="add", dose=2.0, positions="all")], []], dtype=lm.dtype, device=lm.device
    )
    with torch.inference_mode():
        plain = lm.model(input_ids=IDS).logits
        with edited(lm.blocks, last, EVERYWHERE):
            steered = lm.model(input_ids=IDS).logits
    assert not torch.allclose(plain[0], steered[0])
    assert torch.equal(plain[1], steered[1])


def test_dose_zero_is_bit_equal_to_no_hook(tiny: Tiny):
    lm = tiny("llama")
    plain, zero = _streams(lm, None, [[], []]), _streams(lm, 1, [[0.0], [0.0]])
    assert all(torch.equal(plain[layer], zero[layer]) for layer in plain)


def test_dose_then_minus_dose_in_the_same_hook_is_the_identity(tiny: Tiny):
    lm = tiny("llama")
    plain, undone = _streams(lm, None, [[], []]), _streams(lm, 1, [[2.0, -2.0], [-1.0, 1.0]])
    for layer in plain:
        torch.testing.assert_close(plain[layer], undone[layer], atol=1e-12, rtol=0)


def test_edits_of_one_row_at_one_layer_compose_in_order(tiny: Tiny):
    lm = tiny("llama")
    vector = _vector(lm)
    parts = [("add", 3.0), ("ablate", 1.0)]
    after: dict[str, torch.Tensor] = {}
    for name, order in (("ablate last", parts), ("add last", parts[::-1])):
        edits = [[edit(vector, layer=2, operator=op, dose=dose, positions="all") for op, dose in order], []]
        with (
            torch.inference_mode(),
            edited(lm.blocks, batch_edits(edits, dtype=lm.dtype, device=lm.device), EVERYWHERE),
            recorded(lm.blocks, layers=[2], positions=[-1]) as seen,
        ):
            lm.model(input_ids=IDS)
        after[name] = seen[2][0, 0] @ (vector / vector.norm())
    torch.testing.assert_close(after["ablate last"], torch.tensor(0.0, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(after["add last"], 3.0 * vector.norm(), atol=1e-12, rtol=0)


def test_hooks_are_gone_after_an_exception(tiny: Tiny):
    lm = tiny("llama")
    edits = batch_edits(
        [[edit(_vector(lm), layer=1, operator="add", dose=1.0, positions="all")]], dtype=lm.dtype, device=lm.device
    )

    def fail() -> None:
        with (
            edited(lm.blocks, edits, EVERYWHERE[:, :1]),
            recorded(lm.blocks, layers=[0], positions=[-1]),
        ):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert all(not block._forward_hooks for block in lm.blocks)


def test_hooks_are_gone_when_one_cannot_be_registered(tiny: Tiny):
    lm = tiny("llama")
    with pytest.raises(IndexError), recorded(lm.blocks, layers=[0, 99], positions=[-1]):
        pass
    assert all(not block._forward_hooks for block in lm.blocks)


def test_the_last_layer_is_read_before_the_final_norm(tiny: Tiny):
    lm = tiny("llama")
    with torch.inference_mode(), recorded(lm.blocks, layers=[3], positions=[-1]) as seen:
        output = lm.model(input_ids=IDS, output_hidden_states=True)
    normed = output.hidden_states[-1][:, -1]
    assert not torch.allclose(seen[3][:, 0], normed)
    torch.testing.assert_close(lm.model.model.norm(seen[3][:, 0]), normed, atol=1e-12, rtol=0)
