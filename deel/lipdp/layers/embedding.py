"""Embedding of tokens in a table whose rows are kept in a ball."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks
from deel.lipdp._types import Bound, Initializer, Shape, Tensor
from deel.lipdp.layers._base import DPLayer
from deel.lipdp.layers.bias import NormBall, check_ball, check_known_shape

__all__ = ["DP_Embedding"]

# Integers up to this are exact in single precision, to which the input guard casts.
_LARGEST_TABLE = 2**24


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Embedding(DPLayer, keras.layers.Layer):
    """Replaces each token, an integer, by its row in a trainable table.

    It stands right behind `DP_BoundedInput`, which takes the tokens for a vector of numbers: give it
    `upper_bound=(input_dim - 1) * sqrt(T)`, T tokens in an example, and it leaves all of them as they are. What is no
    token (a fraction, a number below 0 or from `input_dim` on) becomes the nearest one, without an exception.

    The noise goes to every row in every step, and only rows of tokens in the batch have a signal: use small tables.

    Args:
        input_dim: int in [1, 2^24], number of rows.
        output_dim: int, length of a row.
        norm_max: float in [1e-15, 1e15], largest Euclidean norm of a row.
        embeddings_initializer: as in `keras.layers.Embedding`; rows beyond `norm_max` are projected.
        nm_coef: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ...)`, all but the batch known.
    Output shape: `(batch, ..., output_dim)`.

    Bounds: Euclidean norms, one example, T its number of tokens. Output at most `sqrt(T) * norm_max`, whatever the
    input. No cotangent goes back, so nothing before it can be trained. Gradient of the table at most
    `sqrt(T) * gradient_bound`: the row of a token gets the sum of the cotangents at its places (Cauchy-Schwarz).
    Attained by one token repeated T times with equal cotangents.

    Raises:
        TypeError, ValueError: for an argument out of range, or, at build, an unknown number of tokens.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        norm_max: float = 1.0,
        *,
        embeddings_initializer: Initializer = "uniform",
        nm_coef: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        who = f"DP_Embedding '{self.name}'"
        self.input_dim = _checks.integer(who, "input_dim", input_dim, at_most=_LARGEST_TABLE)
        self.output_dim = _checks.integer(who, "output_dim", output_dim)
        self.norm_max = _checks.number(who, "norm_max", norm_max, at_least=1e-15, at_most=1e15)
        self.nm_coef = _checks.number(who, "nm_coef", nm_coef, above=0.0)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, input_shape: Shape) -> None:
        check_known_shape(self, input_shape, "tokens", "the gradient grows with the tokens of an example")
        self._root_tokens = math.sqrt(math.prod(input_shape[1:]))
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.input_dim, self.output_dim),
            initializer=self.embeddings_initializer,
            constraint=NormBall(self.norm_max, axis=-1),
        )
        self.restore_constraints()

    def check(self) -> None:
        check_ball(self, self.embeddings, axis=-1)

    def call(self, inputs: Tensor) -> Tensor:
        tokens = ops.cast(ops.clip(ops.round(inputs), 0, self.input_dim - 1), "int32")
        return ops.take(self.embeddings, tokens, axis=0)

    def propagate_inputs(self, input_bound: float) -> float:
        return self._root_tokens * self.norm_max

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return 0.0 * gradient_bound

    def perturbation_bound(self, inputs: Tensor, radius: np.ndarray) -> np.ndarray:
        return np.where(radius > 0, math.inf, 0.0)  # another token

    def backpropagate_params(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return self._root_tokens * gradient_bound

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape, self.output_dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "norm_max": self.norm_max,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "nm_coef": self.nm_coef,
        }
