"""Centring and scaling of one example at a time. Nothing here looks across the batch."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks, _per_example
from deel.lipdp._types import Bound, Ints, Shape, Tensor
from deel.lipdp.layers._base import DPLayer, NonExpansive
from deel.lipdp.layers.bias import check_known_shape

__all__ = ["DP_GroupNormalization", "DP_LayerCentering", "DP_NormalizeToBall"]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_LayerCentering(NonExpansive, keras.layers.Layer):
    """Subtracts from each example its mean over some of its own axes.

    Args:
        axis: int, sequence of int or None. Axes of the input to average over, never 0 (the batch). None means all but
            the first and the last: for an image each channel is centred; for a vector its entries are.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ...)`, rank at least 2.
    Output shape: the same.

    Bounds: Euclidean norm, one example; `input_bound` and `gradient_bound`, since subtracting the mean is an orthogonal
    projection. It would mix examples, with no bound at all, if the batch axis were among its axes.

    Raises:
        ValueError: at build, if an axis is the batch axis or does not exist.
    """

    def __init__(self, axis: Ints | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if axis is not None:
            axis = _checks.integers(f"DP_LayerCentering '{self.name}'", "axis", axis, at_least=-32)
        self.axis = axis

    def _axes(self, rank):
        if self.axis is None:
            return tuple(range(1, max(rank - 1, 2)))
        axes = tuple(a % rank if -rank <= a < rank else 0 for a in self.axis)
        if 0 in axes or len(set(axes)) != len(axes) or not axes:
            raise ValueError(
                _checks.message(
                    f"DP_LayerCentering '{self.name}'",
                    f"different axes from 1 to {rank - 1}",
                    f"axis={self.axis} for an input of rank {rank}",
                    "Axis 0 is the batch: a mean over it mixes examples and has no bound.",
                )
            )
        return axes

    def build(self, input_shape: Shape) -> None:
        self._axes(len(input_shape))

    def call(self, inputs: Tensor) -> Tensor:
        return inputs - ops.mean(inputs, axis=self._axes(len(inputs.shape)), keepdims=True)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}


def _scaled(x, axes, radius, minimum_norm):
    """`radius x / max(||x||, minimum_norm)`, the norm being over `axes`."""
    unit, norm, scale = _per_example.unit_scale(x, axes)
    return ops.where(scale >= minimum_norm / norm, unit * (radius / norm), x * (radius / minimum_norm))


def _slope(norms, moved, radius, minimum_norm):
    """How many times further `_scaled` moves at most what has one of the `norms` and moves by up to `moved`.

    `|x/|x| - y/|y||^2 |x||y| = |x - y|^2 - (|x| - |y|)^2`, where neither is inside the ball of `minimum_norm`.
    """
    nearest = np.maximum(norms - moved, minimum_norm)
    return radius / np.where(norms - moved >= minimum_norm, np.sqrt(norms * nearest), minimum_norm)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_NormalizeToBall(DPLayer, keras.layers.Layer):
    """Scales each example to norm `radius`: `x -> radius x / max(||x||, minimum_norm)`.

    At the entrance of a network it makes every example use the whole input bound, so that none drowns in noise scaled
    to the largest. Further inside, it divides signal bounds by `minimum_norm` on the way back.

    Args:
        radius: float > 0, the norm of the output.
        minimum_norm: float > 0, examples of smaller norm are scaled by the constant `radius / minimum_norm`.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ...)`, finite entries.
    Output shape: the same.

    Bounds: Euclidean norm, one example. Output at most `min(radius, radius / minimum_norm * input_bound)`. Cotangent at
    most `radius / minimum_norm * gradient_bound`: outside the ball of radius `minimum_norm` the Jacobian is
    `radius / ||x||` times an orthogonal projection, inside it is that constant times the identity.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """

    def __init__(self, radius: float = 1.0, minimum_norm: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        who = f"DP_NormalizeToBall '{self.name}'"
        self.radius = _checks.number(who, "radius", radius, above=0.0, at_most=1e15)
        self.minimum_norm = _checks.number(who, "minimum_norm", minimum_norm, at_least=1e-15)

    def call(self, inputs: Tensor) -> Tensor:
        return _scaled(inputs, tuple(range(1, len(inputs.shape))), self.radius, self.minimum_norm)

    def propagate_inputs(self, input_bound: float) -> float:
        return min(self.radius, self.radius / self.minimum_norm * input_bound)

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return self.radius / self.minimum_norm * gradient_bound

    def perturbation_bound(self, inputs: Tensor, radius: np.ndarray) -> np.ndarray:
        rows = np.asarray(inputs, "float64").reshape(len(radius), -1)
        slope = _slope(np.linalg.norm(rows, axis=1), radius, self.radius, self.minimum_norm)
        return np.minimum(slope * radius, 2.0 * self.radius)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "radius": self.radius, "minimum_norm": self.minimum_norm}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_GroupNormalization(DPLayer, keras.layers.Layer):
    """Centres groups of channels and scales them to one norm, example by example: group normalisation with a bound.

    After a fixed front end such as `DP_Scattering2D` it lets weak groups count as much as strong ones, and makes every
    example use the whole bound. Behind trained layers a small `minimum_norm` makes their gradients' bounds large.

    Args:
        groups: int >= 1, groups of adjacent channels; the number of channels is a multiple of it.
        radius: float > 0, norm of the output; that of a group is `radius / sqrt(groups)`.
        minimum_norm: float > 0, a group whose norm, centred, is smaller is scaled by a constant instead.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ..., channels)`, finite entries.
    Output shape: the same.

    Bounds: Euclidean norm, one example, with `a = radius / (sqrt(groups) minimum_norm)`. Output at most
    `min(radius, a * input_bound)`, cotangent at most `a * gradient_bound`: centring is an orthogonal projection, and
    each group is then scaled as in `DP_NormalizeToBall`.

    Raises:
        TypeError, ValueError: for arguments out of range; at build if the channels cannot be shared out.
    """

    def __init__(self, groups: int, radius: float = 1.0, minimum_norm: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        who = f"DP_GroupNormalization '{self.name}'"
        self.groups = _checks.integer(who, "groups", groups)
        self.radius = _checks.number(who, "radius", radius, above=0.0, at_most=1e15)
        self.minimum_norm = _checks.number(who, "minimum_norm", minimum_norm, at_least=1e-15)

    def build(self, input_shape: Shape) -> None:
        check_known_shape(self, input_shape, "..., channels", "the mean of a group is over all its entries")
        if input_shape[-1] % self.groups:
            raise ValueError(
                _checks.message(
                    f"DP_GroupNormalization '{self.name}'",
                    f"channels in {self.groups} groups of one size",
                    f"an input of shape {tuple(input_shape)}",
                    "Choose groups that divide the number of channels.",
                )
            )

    def call(self, inputs: Tensor) -> Tensor:
        centred = self._centred_groups(inputs)
        scaled = _scaled(centred, (1, 3), self.radius / math.sqrt(self.groups), self.minimum_norm)
        return ops.reshape(scaled, (-1, *inputs.shape[1:]))

    def _centred_groups(self, inputs):
        """(batch, positions, groups, channels of a group)"""
        grouped = ops.reshape(inputs, (-1, math.prod(inputs.shape[1:-1]), self.groups, inputs.shape[-1] // self.groups))
        return grouped - ops.mean(grouped, axis=(1, 3), keepdims=True)

    def _largest_slope(self):
        return self.radius / (math.sqrt(self.groups) * self.minimum_norm)

    def propagate_inputs(self, input_bound: float) -> float:
        return min(self.radius, self._largest_slope() * input_bound)

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return self._largest_slope() * gradient_bound

    def perturbation_bound(self, inputs: Tensor, radius: np.ndarray) -> np.ndarray:
        groups = np.asarray(self._centred_groups(inputs), "float64")
        norms = np.sqrt((groups**2).sum(axis=(1, 3)))
        # However the perturbation is shared out, no group is steeper than the steepest one that takes all of it.
        slopes = _slope(norms, radius[:, None], self.radius / math.sqrt(self.groups), self.minimum_norm)
        return np.minimum(slopes.max(axis=1) * radius, 2.0 * self.radius)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "groups": self.groups,
            "radius": self.radius,
            "minimum_norm": self.minimum_norm,
        }
