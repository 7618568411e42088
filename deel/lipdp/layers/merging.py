"""Layers that merge several branches of a functional model into one."""

import functools
import math
import operator
from collections.abc import Sequence

import keras
import numpy as np

from deel.lipdp import _checks
from deel.lipdp._types import Bound, Shape, Tensor
from deel.lipdp.layers._base import DPLayer

__all__ = ["DP_Add", "DP_Concatenate"]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Add(DPLayer, keras.layers.Add):
    """Adds tensors of one shape, as `keras.layers.Add`.

    Two branches of full norm add up to twice the norm; where that is unwanted, `DP_MergeResidual("1-lip-add")` takes
    their mean.

    Input shape: list of at least two equal shapes `(batch, ...)`.
    Output shape: the same shape, once.

    Bounds: Euclidean norms, one example. Output at most the sum of the input bounds (triangle inequality). The
    cotangent at each input is that of the output, so each is at most `gradient_bound`.

    Raises:
        ValueError: at build, for fewer than two inputs or shapes that differ: broadcasting would repeat values.
    """

    def build(self, input_shape: Sequence[Shape]) -> None:
        super().build(input_shape)
        if len({tuple(shape)[1:] for shape in input_shape}) > 1:
            raise ValueError(
                _checks.message(
                    f"DP_Add '{self.name}'",
                    "inputs of one shape",
                    f"{[tuple(shape) for shape in input_shape]}",
                    "Reshape them first: broadcasting would repeat values.",
                )
            )

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        # Keras's own sum takes an empty batch for a bias, and fails.
        return functools.reduce(operator.add, inputs)

    def propagate_inputs(self, input_bound: tuple[float, ...]) -> float:
        return sum(input_bound)

    def backpropagate_inputs(self, input_bound: tuple[float, ...], gradient_bound: Bound) -> tuple[Bound, ...]:
        return tuple(gradient_bound for _ in input_bound)

    def perturbation_bound(self, inputs: tuple[Tensor, ...], radius: tuple[np.ndarray, ...]) -> np.ndarray:
        return functools.reduce(operator.add, radius)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Concatenate(DPLayer, keras.layers.Concatenate):
    """Concatenates tensors, as `keras.layers.Concatenate`.

    Args:
        axis: int, axis of the inputs to concatenate over, never 0 (the batch).
        **kwargs: `name`, `dtype`.

    Input shape: list of at least two shapes `(batch, ...)` that agree but for `axis`.
    Output shape: the same, with the sum of their sizes on `axis`.

    Bounds: Euclidean norms, one example. Output norm at most the root of the sum of the squared input bounds, since the
    entries are those of all inputs. The cotangent at each input is a part of the output's, so each is at most
    `gradient_bound`, and all of them together are too (`joint_gradient`): branches that start from one tensor and end
    here send back at most `sqrt(sum of c_i^2) gradient_bound`, c_i the factor of branch i.

    Raises:
        ValueError: at build, if the axis is the batch axis.
    """

    joint_gradient = True

    def build(self, input_shape: Sequence[Shape]) -> None:
        super().build(input_shape)
        if self.axis % len(input_shape[0]) == 0:
            raise ValueError(
                _checks.message(
                    f"DP_Concatenate '{self.name}'",
                    "an axis of the example",
                    f"axis={self.axis}",
                    "Axis 0 is the batch: concatenating over it makes two examples of one.",
                )
            )

    def propagate_inputs(self, input_bound: tuple[float, ...]) -> float:
        return math.hypot(*input_bound)

    def backpropagate_inputs(self, input_bound: tuple[float, ...], gradient_bound: Bound) -> tuple[Bound, ...]:
        return tuple(gradient_bound for _ in input_bound)

    def perturbation_bound(self, inputs: tuple[Tensor, ...], radius: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.linalg.norm(radius, axis=0)
