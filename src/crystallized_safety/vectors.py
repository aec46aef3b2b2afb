"""Steering vectors as objects: a direction with its length, site, sign and where it came from; saved and read safely.

What this module does not know: models, prompts, how a vector was estimated, or how it is applied. A file is data: `.pt` is
only ever read with `weights_only=True`.
"""

import contextlib
import json
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from crystallized_safety.errors import VectorError

__all__ = ["SIGN", "SITE", "SteeringVector", "check_suffix", "load_vector", "save_vector"]

SITE = "block_output"
"""Where a vector is read and applied: the output of decoder block `layer` (0-based), before any final norm."""
SIGN = "harmful - harmless"
"""Adding the vector moves the stream towards harmful prompts, so it raises refusal; subtracting lowers it."""


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A vector of the residual stream and everything needed to use it again.

    `tensor` has shape [d_model], float32, and is what alpha multiplies. `gap_norm` is the distance between the two class
    means at this layer and position, `residual_norm` the median length of the stream there; they turn alpha into κ and δ.
    Wherever torch or NumPy expects a tensor, the vector stands for `tensor`.
    """

    tensor: Float[Tensor, " d_model"]
    layer: int
    position: int
    gap_norm: float
    residual_norm: float
    method: str
    model: str
    site: str = SITE
    sign: str = SIGN
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.tensor, "A steering vector")

    @property
    def shape(self) -> torch.Size:
        """[d_model]."""
        return self.tensor.shape

    def norm(self) -> Float[Tensor, ""]:
        """Length of the vector, in units of the residual stream."""
        norm: Tensor = self.tensor.norm()
        return norm

    def kappa(self, alpha: float) -> float:
        """Dose in gap units: κ = α·‖v‖ / ‖gap‖ (PROTOCOL §1.0)."""
        return alpha * float(self.norm()) / self.gap_norm

    def delta(self, alpha: float) -> float:
        """Dose as a share of the residual norm: δ = α·‖v‖ / median‖h‖ (PROTOCOL §1.0)."""
        return alpha * float(self.norm()) / self.residual_norm

    def fingerprint(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the values, layer and site."""
        return sha256(self.tensor.numpy().tobytes() + f"{self.layer}{self.site}".encode()).hexdigest()[:12]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Torch functions see the tensor."""
        del types
        plain = [
            pytree.tree_map(lambda one: one.tensor if isinstance(one, cls) else one, part)
            for part in (args, kwargs or {})
        ]
        return func(*plain[0], **plain[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:  # noqa: FBT001 - NumPy's protocol
        return np.array(self.tensor.numpy(), dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.tensor)

    def __mul__(self, factor: float) -> Tensor:
        return self.tensor * factor

    __rmul__ = __mul__

    def __neg__(self) -> Tensor:
        return -self.tensor

    def __truediv__(self, divisor: float | Tensor) -> Tensor:
        return self.tensor / divisor


def check_suffix(path: Path | str) -> Path:
    """The path, if a vector can be written there. Raises VectorError for another suffix."""
    path = Path(path)
    if path.suffix not in {".safetensors", ".pt"}:
        raise VectorError(
            f"A vector file must end in .safetensors or .pt, but '{path.name}' came. Choose one of the two."
        )
    return path


def save_vector(vector: SteeringVector, path: Path | str) -> Path:
    """Write a vector as `.safetensors` or `.pt`, by suffix; the file appears whole or not at all.

    Raises VectorError for another suffix, or where the folder cannot be written.
    """
    path = check_suffix(path)
    about = {key: value for key, value in asdict(vector).items() if key != "tensor"}
    written = path.with_name(f".{path.name}.partial")
    name = f"direction.{vector.layer}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(
                {name: vector.tensor.contiguous()},
                written,
                metadata={"steering_vector": json.dumps(about, sort_keys=True)},
            )
        else:
            torch.save({name: vector.tensor.clone(), "steering_vector": json.dumps(about, sort_keys=True)}, written)
        written.replace(path)
    except OSError as error:
        raise VectorError(
            f"The vector must be written to '{path}', but {error.strerror or error}. Choose another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)
    return path


def load_vector(path: Path | str) -> SteeringVector:
    """Read a vector written by `save_vector`. Raises VectorError for anything else, and runs no code from the file."""
    path = Path(path)
    if not path.is_file():
        raise VectorError(
            f"The vector file '{path}' must exist, but there is none. Make one: crystallized extract MODEL."
        )
    tensors, about = (_read_pt if check_suffix(path).suffix == ".pt" else _read_safetensors)(path)
    if len(tensors) != 1 or about is None:
        raise VectorError(
            f"'{path}' must hold one tensor direction.N and its description, but holds {sorted(tensors) or 'nothing'}"
            f"{'' if about else ' and no description'}. Make one with: crystallized extract MODEL --output FILE."
        )
    return _vector(path, next(iter(tensors.items())), about)


def _vector(path: Path, named: tuple[str, Tensor], about: str) -> SteeringVector:
    name, tensor = named
    try:
        vector = SteeringVector(tensor=tensor, **json.loads(about))
        known = name == f"direction.{vector.layer}" and (vector.site, vector.sign) == (SITE, SIGN)
        fits = known and vector.gap_norm > 0 and vector.residual_norm > 0
    except (TypeError, ValueError) as error:
        raise VectorError(
            f"The description in '{path}' must be that of a steering vector, but: {error}. Extract it again."
        ) from error
    if not fits:
        raise VectorError(
            f"'{path}' must hold direction.{vector.layer} at {SITE} with sign {SIGN} and positive norms, but it says "
            f"{name}, {vector.site}, {vector.sign}, {vector.gap_norm}, {vector.residual_norm}. Extract it again."
        )
    return vector


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, (file.metadata() or {}).get("steering_vector")  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise VectorError(f"'{path}' must be a safetensors file, but: {error}. Copy or extract it again.") from error


def _read_pt(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a foreign pickle, then refuses it
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        first = str(error).split("\n", maxsplit=1)[0]
        raise VectorError(
            f"'{path}' must be a .pt file of plain tensors and text, but: {first} Extract it again."
        ) from error
    if not isinstance(held, dict):
        raise VectorError(
            f"'{path}' must hold a tensor with its description, but holds a bare {type(held).__name__}. Extract it again."
        )
    about = held.get("steering_vector")
    return {key: one for key, one in held.items() if isinstance(one, Tensor)}, about if isinstance(about, str) else None


def _check(tensor: object, what: str) -> None:
    if not isinstance(tensor, Tensor) or tensor.ndim != 1 or not tensor.is_floating_point():
        came = f"shape {tuple(tensor.shape)}, {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise VectorError(f"{what} must be a floating-point tensor with one axis, but {came} came. Pass one vector.")
    if not bool(torch.isfinite(tensor).all()) or not bool(tensor.any()):
        raise VectorError(
            f"{what} must be finite and not zero, but NaN, infinity or only zeros came. Extract it again."
        )
