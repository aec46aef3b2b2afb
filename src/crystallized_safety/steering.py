"""Steer one chat model by hand: one prompt or a batch, each with its own alpha.

What this module does not know: sweeps, judges, where the vector came from.
"""

from collections.abc import Sequence
from math import inf

from torch import Tensor

from crystallized_safety.engines import Generated, Row, TransformersEngine
from crystallized_safety.errors import InputError, ModelError, VectorError
from crystallized_safety.interventions import Edit, edit
from crystallized_safety.models import LanguageModel, chat_tokens, decode, load
from crystallized_safety.records import Operator, Positions
from crystallized_safety.vectors import SteeringVector

__all__ = ["ActivationSteerer", "check_sampling"]


def check_sampling(temperature: float, seed: int) -> None:
    """Raise InputError for a temperature or a seed that nothing can be drawn by."""
    if not 0 <= temperature < inf or seed < 0:
        raise InputError(
            f"A temperature must be finite and 0 or more, and a seed 0 or more, but {temperature} and {seed} came. "
            "Pass 0 for greedy answers."
        )


class ActivationSteerer:
    """Apply a steering vector at the output of block `layer` (0-based) during generation; the promised face of this module.

    `model` is a Hub id, a registry alias, a local folder, a GGUF file, or a model that is already loaded.
    """

    def __init__(self, model: str | LanguageModel, layer: int) -> None:
        self._asked = model
        self._layer = layer
        self._lm: LanguageModel | None = None
        self._vector: Tensor | None = None

    def load_model(self) -> "ActivationSteerer":
        """Load the weights. Raises ModelError where they cannot be had, or the model has no such layer."""
        lm = load(self._asked) if isinstance(self._asked, str) else self._asked
        if not 0 <= self._layer < lm.n_layers:
            raise ModelError(
                f"A layer of '{lm.name}' must be within 0 to {lm.n_layers - 1}, but {self._layer} came. Choose another layer."
            )
        self._lm = lm
        return self

    def set_steering_vector(self, vector: SteeringVector | Tensor, *, any_layer: bool = False) -> None:
        """Use this vector from now on.

        Raises VectorError where its width is not the model's, or it was read at another layer and `any_layer` is false:
        directions of neighbouring layers look alike, so a wrong layer would pass unseen.
        """
        lm = self._loaded()
        if isinstance(vector, SteeringVector) and vector.layer != self._layer and not any_layer:
            raise VectorError(
                f"The vector must come from layer {self._layer}, but it was read at layer {vector.layer}. "
                "Extract it there, or pass any_layer=True if you mean it."
            )
        if len(vector) != lm.d_model:
            raise VectorError(
                f"The vector must have width {lm.d_model} for '{lm.name}', but it has {len(vector)}. Extract it from this model."
            )
        self._vector = vector.tensor if isinstance(vector, SteeringVector) else vector

    def generate(
        self,
        prompt: str,
        alpha: float = 0.0,
        *,
        operator: Operator = "add",
        positions: Positions = "all",
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The model's answer while alpha times the vector is applied; negative alpha suppresses refusal, 0 changes nothing.

        Greedy at temperature 0; above, tokens are drawn by `seed`.
        """
        return self.generate_batch(
            [prompt],
            [alpha],
            operator=operator,
            positions=positions,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )[0]

    def generate_batch(
        self,
        prompts: Sequence[str],
        alphas: Sequence[float],
        *,
        operator: Operator = "add",
        positions: Positions = "all",
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """One answer per (prompt, alpha), all decoded together, in the order asked, each as it would be alone.

        Every answer draws by the same `seed`, so that answers under two alphas differ by alpha and not by luck.

        Raises InputError where the two lists differ in length or no token may be generated, VectorError where alpha is not
        0 and no vector is set.
        """
        lm = self._loaded()
        if max_new_tokens < 1:
            raise InputError(
                f"An answer must have room for a token, but max_new_tokens is {max_new_tokens}. Pass 1 or more."
            )
        check_sampling(temperature, seed)
        if len(prompts) != len(alphas):
            raise InputError(
                f"There must be one alpha per prompt, but {len(prompts)} prompts and {len(alphas)} alphas came."
            )
        if self._vector is None and (any(alphas) or operator == "clamp"):
            raise VectorError(
                "A vector must be set before steering, but there is none. Call set_steering_vector(vector)."
            )
        rows = [
            Row(
                str(index),
                chat_tokens(lm, prompt),
                self._edits(operator, alpha, positions),
                max_new_tokens,
                temperature,
                seed,
            )
            for index, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True))
        ]
        done = TransformersEngine(lm).generate(rows)
        texts = {int(one.key): decode(lm, one.tokens) for one in done if isinstance(one, Generated)}
        return [texts[index] for index in range(len(prompts))]

    def _edits(self, operator: Operator, alpha: float, positions: Positions) -> tuple[Edit, ...]:
        if self._vector is None:
            return ()
        one = edit(self._vector, layer=self._layer, operator=operator, dose=alpha, positions=positions)
        return (one,) if one.acts else ()

    def _loaded(self) -> LanguageModel:
        if self._lm is None:
            raise ModelError(f"The model '{self._asked}' must be loaded first, but it is not. Call load_model().")
        return self._lm
