"""Entrance and shape layers: the input guard, and maps that only rearrange entries."""

import keras
from keras import ops

from deel.lipdp import _checks, _linalg
from deel.lipdp.layers._base import NonExpansive

__all__ = ["DP_BoundedInput", "DP_Flatten", "DP_InputLayer", "DP_Reshape"]

# Squares of entries must stay finite in float32, with room for a sum over a large image.
_LARGEST_BOUND = 1e15


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_BoundedInput(NonExpansive, keras.layers.Layer):
    """Input guard: makes each example finite and of bounded norm. The first layer of every model.

    Non-finite entries become 0, then the example is projected on the ball of radius `upper_bound`, so that no data,
    whatever they hold, can exceed what the later bounds assume.

    Args:
        upper_bound: float in (0, 1e15], largest Euclidean norm of one example. A smaller bound means less noise; an
            example beyond it is scaled down to it.
        input_shape: tuple of int or None, shape of one example, so that a model is built at construction.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ...)`.
    Output shape: the same.

    Bounds: Euclidean norm, one example. Output at most `min(input_bound, upper_bound)`; cotangent at most
    `gradient_bound`, since projection on a convex set is non-expansive.

    Raises:
        TypeError, ValueError: if `upper_bound` is not a number in range.
    """

    def __init__(self, upper_bound, input_shape=None, **kwargs):
        super().__init__(**kwargs)
        self.upper_bound = _checks.number(
            f"DP_BoundedInput '{self.name}'",
            "upper_bound",
            upper_bound,
            above=0.0,
            at_most=_LARGEST_BOUND,
            remedy="Pass the largest Euclidean norm one example may have.",
        )
        # Where Keras's Sequential looks for it; passing it to Layer.__init__ would warn.
        if input_shape is not None:
            self._input_shape_arg = tuple(input_shape)

    def call(self, inputs):
        inputs = ops.cast(inputs, self.compute_dtype)
        return _linalg.project_on_ball(_linalg.finite_or_zero(inputs), self.upper_bound)

    def propagate_inputs(self, input_bound):
        return min(input_bound, self.upper_bound)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "upper_bound": self.upper_bound,
            "input_shape": getattr(self, "_input_shape_arg", None),
        }


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_InputLayer(NonExpansive, keras.layers.InputLayer):
    """States the shape of one example, as `keras.layers.InputLayer`. It bounds nothing: `DP_BoundedInput` follows it.

    Args:
        shape: tuple of int, shape of one example.
        input_shape: the same under its older name.
        **kwargs: arguments of `keras.layers.InputLayer`.

    Bounds: identity.
    """

    def __init__(self, shape=None, *, input_shape=None, **kwargs):
        super().__init__(shape=input_shape if shape is None else shape, **kwargs)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Flatten(NonExpansive, keras.layers.Flatten):
    """Flattens each example, as `keras.layers.Flatten`.

    Input shape: `(batch, ...)`.
    Output shape: `(batch, number of entries)`.
    Bounds: the entries are the same, so are both norms.
    """


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Reshape(NonExpansive, keras.layers.Reshape):
    """Reshapes each example, as `keras.layers.Reshape(target_shape)`.

    Input shape: `(batch, ...)`.
    Output shape: `(batch, *target_shape)`.
    Bounds: the entries are the same, so are both norms.
    """
