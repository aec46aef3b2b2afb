"""The one intervention that every operator is: an affine map of the residual stream along a direction.

    h ← h + (a + b · ⟨h, v̂⟩) · v̂

so that a batch needs two numbers per row and one forward pass can mix operators, doses and vectors. What this module does
not know: models, hooks, prompts, units of the dose other than the norm of the vector in hand.
"""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crystallized_safety.errors import InputError, VectorError
from crystallized_safety.records import Operator, Positions

__all__ = ["Coefficients", "Edit", "coefficients", "edit", "edit_stream"]


class Coefficients(NamedTuple):
    """`a` is the constant push along the unit direction, `b` the multiple of the projection that is added."""

    a: float
    b: float


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention at the output of block `layer` (0-based), along a unit `direction`, at some positions."""

    layer: int
    direction: Float[Tensor, " d_model"]
    coefficients: Coefficients
    positions: Positions

    @property
    def acts(self) -> bool:
        """Whether the edit changes anything: a dose of zero does not, except for clamp."""
        return self.coefficients != (0.0, 0.0)


def coefficients(operator: Operator, dose: float, norm: float) -> Coefficients:
    """The affine map of an operator at a dose, for a vector of length `norm`.

    add: the stream moves by `dose` times the vector (Turner et al. 2308.10248). ablate: the share `dose` of the projection
    is removed, 1 removes all of it (Arditi et al. 2406.11717). clamp: the projection becomes `dose` times `norm`, whatever
    it was (affine concept editing, Marshall et al. 2411.09003). Raises InputError for another operator.
    """
    if operator == "add":
        return Coefficients(dose * norm, 0.0)
    if operator == "ablate":
        return Coefficients(0.0, -dose)
    if operator == "clamp":
        return Coefficients(dose * norm, -1.0)
    raise InputError(
        f"An operator must be one of {', '.join(get_args(Operator))}, but '{operator}' came. Choose one of them."
    )


def edit(vector: Tensor, *, layer: int, operator: Operator, dose: float, positions: Positions) -> Edit:
    """An `Edit` from a vector [d_model] as the user holds it; its length is the unit of the dose.

    Raises VectorError for a vector that is not one-dimensional, holds NaN or infinity, or is zero, and InputError for
    positions that do not exist.
    """
    if positions not in get_args(Positions):
        raise InputError(
            f"Positions must be one of {', '.join(get_args(Positions))}, but '{positions}' came. Choose one of them."
        )
    if vector.ndim != 1:
        raise VectorError(
            f"A steering vector must have one axis, but shape {tuple(vector.shape)} came. Pass one vector."
        )
    norm = vector.double().norm()
    if not torch.isfinite(norm) or norm == 0:
        raise VectorError(
            f"A steering vector must be finite and not zero, but its length is {float(norm)}. Extract it again."
        )
    direction = (vector.double() / norm).to(torch.promote_types(vector.dtype, torch.float32))
    return Edit(layer, direction, coefficients(operator, dose, float(norm)), positions)


def edit_stream(
    stream: Float[Tensor, "row position d_model"],
    *,
    direction: Float[Tensor, "row d_model"],
    a: Float[Tensor, " row"],
    b: Float[Tensor, " row"],
    applies: Bool[Tensor, "row position"],
) -> Float[Tensor, "row position d_model"]:
    """Each row moved along its own direction by its own coefficients, where `applies`; elsewhere the stream as it was.

    The move is computed in float32 or wider and rounded once to the dtype of the stream.
    """
    wide = stream.to(torch.promote_types(stream.dtype, a.dtype))
    along = torch.einsum("rpd,rd->rp", wide, direction)
    amount = torch.where(applies, a[:, None] + b[:, None] * along, 0.0)
    return (wide + amount[:, :, None] * direction[:, None, :]).to(stream.dtype)
