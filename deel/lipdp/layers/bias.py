"""A bias as a layer of its own, kept in a ball so that activations stay bounded."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks, _linalg
from deel.lipdp._types import Bound, Shape, Tensor
from deel.lipdp.layers._base import DPLayer

__all__ = ["DP_AddBias", "NormBall", "check_ball", "check_known_shape"]

_EPS32 = float(np.finfo("float32").eps)


class NormBall(keras.constraints.Constraint):
    """Projects a variable on the Euclidean ball of a radius; inside it is left as it is, bit for bit.

    The norm is bounded from above, and what is projected lands inside by a relative `eps` of single precision, so
    that rounding the result leaves it inside, and a second projection changes nothing.

    Args:
        radius: float > 0.
        axis: int or None; an axis makes it a ball for each slice along it.
    """

    def __init__(self, radius: float, axis: int | None = None) -> None:
        self.radius = radius
        self.axis = axis

    def __call__(self, variable: Tensor) -> Tensor:
        variable = ops.convert_to_tensor(variable)
        norm = _linalg.euclidean_norm_bound(variable, self.axis)
        projected = ops.cast(variable, "float64") / (norm / self.radius * (1.0 + 2.0 * _EPS32))
        return ops.where(norm > self.radius, ops.cast(projected, variable.dtype), variable)


def check_ball(layer: keras.layers.Layer, variable: keras.Variable, axis: int | None = None) -> None:
    """Refuses a layer whose variable is not kept in the ball of radius `layer.norm_max` any more."""
    constraint = variable.constraint
    if not isinstance(constraint, NormBall) or (constraint.radius, constraint.axis) != (layer.norm_max, axis):
        raise ValueError(
            _checks.message(
                f"{type(layer).__name__} '{layer.name}'",
                "the constraint and the norm_max it was made with",
                f"norm_max={layer.norm_max}, constraint {getattr(constraint, 'radius', constraint)!r}",
                "Make a new layer instead of changing one: its bounds rest on them.",
            )
        )


def check_known_shape(layer: keras.layers.Layer, input_shape: Shape, axes: str, why: str) -> None:
    """Refuses an input of unknown shape, where the bounds count what is in it."""
    if len(input_shape) < 2 or None in input_shape[1:]:
        raise ValueError(
            _checks.message(
                f"{type(layer).__name__} '{layer.name}'",
                f"an input of shape (batch, {axes}), all but the batch known",
                f"input shape {tuple(input_shape)}",
                f"State the input shape of the model: {why}.",
            )
        )


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_AddBias(DPLayer, keras.layers.Layer):
    """Adds one trainable number to each channel, the vector of them kept at norm at most `norm_max`.

    What a bias adds to the bounds is paid for by every layer behind it, and on an image its own gradient is `sqrt(P)`
    times that of a dense layer's: use it late in a network, after pooling, or not at all.

    Args:
        norm_max: float in [1e-15, 1e15], largest Euclidean norm of the bias.
        nm_coef: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ..., channels)`, all but the batch known.
    Output shape: the same.

    Bounds: Euclidean norms, one example, P the number of positions (the product of the axes between batch and channels,
    1 for a vector). Output at most `input_bound + sqrt(P) * norm_max`: the bias is repeated P times. Cotangent at most
    `gradient_bound`. Gradient of the bias at most `sqrt(P) * gradient_bound`: it is the sum of g over positions
    (Cauchy-Schwarz). Attained by cotangents that are equal at all positions. The stored bias obeys its bound at build,
    after each update, and after weights are loaded or set.

    Raises:
        TypeError, ValueError: for an argument out of range, or, at build, an unknown number of positions or channels.
    """

    def __init__(self, norm_max: float = 1.0, nm_coef: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        who = f"DP_AddBias '{self.name}'"
        self.norm_max = _checks.number(who, "norm_max", norm_max, at_least=1e-15, at_most=1e15)
        self.nm_coef = _checks.number(who, "nm_coef", nm_coef, above=0.0)

    def build(self, input_shape: Shape) -> None:
        check_known_shape(self, input_shape, "..., channels", "the bias is added at every position")
        self._root_positions = math.sqrt(math.prod(input_shape[1:-1]))
        self.bias = self.add_weight(
            name="bias", shape=(input_shape[-1],), initializer="zeros", constraint=NormBall(self.norm_max)
        )

    def check(self) -> None:
        check_ball(self, self.bias)

    def call(self, inputs: Tensor) -> Tensor:
        return inputs + self.bias

    def propagate_inputs(self, input_bound: float) -> float:
        return input_bound + self._root_positions * self.norm_max

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return gradient_bound

    def backpropagate_params(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return self._root_positions * gradient_bound

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "norm_max": self.norm_max, "nm_coef": self.nm_coef}
