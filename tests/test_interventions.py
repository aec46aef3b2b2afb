import pytest
import torch

from crystallized_safety.errors import InputError, VectorError
from crystallized_safety.interventions import Coefficients, coefficients, edit, edit_stream

D = 6


def _stream(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _apply(
    stream: torch.Tensor, vector: torch.Tensor, operator: str, dose: float, applies: torch.Tensor | None = None
) -> torch.Tensor:
    one = edit(vector, layer=0, operator=operator, dose=dose, positions="all")
    rows = len(stream)
    return edit_stream(
        stream,
        direction=one.direction.double().repeat(rows, 1),
        a=torch.full((rows,), one.coefficients.a, dtype=torch.float64),
        b=torch.full((rows,), one.coefficients.b, dtype=torch.float64),
        applies=torch.ones(stream.shape[:2], dtype=torch.bool) if applies is None else applies,
    )


VECTOR = torch.tensor([3.0, 0, 0, 4.0, 0, 0], dtype=torch.float64)


def test_add_moves_the_stream_by_dose_times_the_vector():
    stream = _stream()
    torch.testing.assert_close(_apply(stream, VECTOR, "add", -1.5), stream - 1.5 * VECTOR, atol=1e-12, rtol=0)


def test_ablate_removes_the_projection_and_nothing_else():
    stream = _stream()
    out = _apply(stream, VECTOR, "ablate", 1.0)
    unit = VECTOR / 5
    torch.testing.assert_close(out @ unit, torch.zeros(3, 4, dtype=torch.float64), atol=1e-12, rtol=0)
    other = torch.tensor([4.0, 0, 0, -3.0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(out @ other, stream @ other, atol=1e-12, rtol=0)


def test_clamp_sets_the_projection_to_dose_times_the_length():
    out = _apply(_stream(), VECTOR, "clamp", 0.5)
    torch.testing.assert_close(out @ (VECTOR / 5), torch.full((3, 4), 2.5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_dose_then_minus_dose_is_the_identity():
    stream = _stream()
    torch.testing.assert_close(
        _apply(_apply(stream, VECTOR, "add", 2.0), VECTOR, "add", -2.0), stream, atol=1e-12, rtol=0
    )


def test_positions_that_do_not_apply_keep_every_bit():
    stream, applies = _stream(), torch.zeros(3, 4, dtype=torch.bool)
    applies[:, -1] = True
    out = _apply(stream, VECTOR, "add", 2.0, applies)
    assert torch.equal(out[:, :-1], stream[:, :-1])
    assert not torch.equal(out[:, -1], stream[:, -1])


@pytest.mark.parametrize(
    ("operator", "dose", "acts"),
    [("add", 0.0, False), ("ablate", 0.0, False), ("clamp", 0.0, True), ("add", 1.0, True)],
)
def test_a_dose_of_zero_acts_only_for_clamp(operator: str, dose: float, acts: bool):
    assert edit(VECTOR, layer=0, operator=operator, dose=dose, positions="all").acts is acts


def test_coefficients_use_the_length_of_the_vector():
    assert coefficients("add", 2.0, 5.0) == Coefficients(10.0, 0.0)
    assert coefficients("ablate", 1.0, 5.0) == Coefficients(0.0, -1.0)
    assert coefficients("clamp", 2.0, 5.0) == Coefficients(10.0, -1.0)


@pytest.mark.parametrize(
    "bad", [torch.zeros(4), torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")]), torch.ones(2, 2)]
)
def test_a_vector_that_cannot_steer_is_one_sentence(bad: torch.Tensor):
    with pytest.raises(VectorError, match="steering vector must"):
        edit(bad, layer=0, operator="add", dose=1.0, positions="all")


def test_unknown_operator_and_positions_name_the_choices():
    with pytest.raises(InputError, match="add, ablate, clamp"):
        coefficients("push", 1.0, 1.0)
    with pytest.raises(InputError, match="last-prompt-token-on"):
        edit(VECTOR, layer=0, operator="add", dose=1.0, positions="first")
