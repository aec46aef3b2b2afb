"""Where the packaged data lies, what a study is asked to do, the constants its verdict rests on, the openers of a screen.

The registry of models, the presets, the protocol, the openers and the prompts have one source each, in the clone; the wheel carries
copies under `resources/`. What this module does not know: models, the meaning of prompts, statistics.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from crystallized_safety.errors import InputError
from crystallized_safety.records import Positions

__all__ = [
    "Openers",
    "Preset",
    "Protocol",
    "load_openers",
    "load_preset",
    "load_protocol",
    "preset_names",
    "protocol_sha256",
    "resource",
]

_PACKAGE = Path(__file__).parent
_Model = TypeVar("_Model", bound=BaseModel)
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=2)]
_Kappa = Annotated[float, Field(gt=0, le=64)]
_Opener = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]


class Preset(BaseModel):
    """How much of each split is used, which layers and doses are tried, and how completions are generated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    extract_pairs: _Count
    select_pairs: _Count
    calibrate_pairs: _Count
    test_pairs: _Count
    null_pairs: _Count
    n_nulls: Annotated[int, Field(ge=0)]
    layer_shares: tuple[_Share, ...] = Field(min_length=1)
    """Layers of the sweep as shares of the depth, so that one preset serves every model."""
    kappas: tuple[_Kappa, ...] = Field(min_length=1)
    """Doses of the sweep in gap units; the sign is that of the side."""
    curve_kappas: tuple[_Kappa, ...]
    """Further doses at the chosen layer, for the dose–response curve only."""
    positions: Positions
    operator: Literal["add"]
    """Studies add; ablate and clamp have no dose of two signs, and are reached by `steer` so far."""
    max_new_tokens: Annotated[int, Field(ge=4, le=4096)]

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """The 0-based layers of the sweep in a model of `n_layers` blocks."""
        return tuple(sorted({round(share * (n_layers - 1)) for share in self.layer_shares}))


class Protocol(BaseModel):
    """The thresholds of the decision rule; the meaning of each stands beside it in configs/protocol.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    readable_low: _Share
    readable_partial_low: _Share
    readable_high: _Share
    smallest_effect: _Share
    equivalence: _Share
    headroom: _Share
    null_p: _Share
    specific_share: _Share
    degenerate_gain: _Share
    parsimony: _Share


class Openers(BaseModel):
    """How answers begin that refuse, and how answers begin that comply; none empty, none twice, no space at the ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refusal: tuple[_Opener, ...] = Field(min_length=6)
    compliance: tuple[_Opener, ...] = Field(min_length=6)

    @field_validator("refusal", "compliance")
    @classmethod
    def _once(cls, openers: tuple[str, ...], before: ValidationInfo) -> tuple[str, ...]:
        every = (*before.data.get("refusal", ()), *openers)
        if twice := [one for index, one in enumerate(every) if one in every[:index]]:
            raise ValueError(f"{twice[0]!r} stands twice")
        return openers

    def sha256(self) -> str:
        """SHA-256 of the openers in their order, whatever the comments beside them."""
        return sha256(self.model_dump_json().encode()).hexdigest()


def resource(*parts: str) -> Path:
    """Path of a packaged data file or folder, for example `resource("configs", "models.yaml")`.

    Looks in the wheel first, then in the clone that an editable install points to. Raises InputError if neither has it.
    """
    for root in (_PACKAGE / "resources", _PACKAGE.parent.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    name = "/".join(parts)
    raise InputError(f"The packaged file '{name}' must exist, but it is missing. Install crystallized-safety again.")


def preset_names() -> tuple[str, ...]:
    """Names of the packaged presets."""
    return tuple(sorted(path.stem for path in resource("configs", "sweeps").glob("*.yaml")))


def load_preset(name: str) -> Preset:
    """A packaged preset by name, or one from a YAML file of the same form. Raises InputError for anything else."""
    if name in preset_names():
        return _load(resource("configs", "sweeps", f"{name}.yaml"), Preset)
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return _load(path, Preset)
    raise InputError(
        f"A preset must be one of {', '.join(preset_names())} or a YAML file, but '{name}' came. Choose one of them."
    )


def load_protocol() -> Protocol:
    """The packaged protocol."""
    return _load(resource("configs", "protocol.yaml"), Protocol)


def load_openers(path: Path | None = None) -> Openers:
    """The packaged openers, or those of a YAML file of the same form. Raises InputError for anything else."""
    return _load(path or resource("configs", "openers.yaml"), Openers)


def protocol_sha256() -> str:
    """SHA-256 of the values of the protocol, whatever the comments beside them."""
    return sha256(load_protocol().model_dump_json().encode()).hexdigest()


def _load(path: Path, model: type[_Model]) -> _Model:
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(held, Mapping):
            raise InputError(
                f"'{path}' must hold one 'key: value' a line, but holds {type(held).__name__}. Compare it with configs/."
            )
        return model.model_validate(held)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"'{path}' must be a YAML file, but: {error}. Compare it with the files in configs/."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"'{key}' in '{path}' is not right: {first['msg']}, but {first['input']!r} came. Compare it with configs/."
        ) from error
