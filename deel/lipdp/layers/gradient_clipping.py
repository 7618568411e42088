"""Clipping of the gradient of each example with respect to an activation: cheap, and it lowers the noise."""

import keras
from keras import ops

from deel.lipdp import _checks, _linalg
from deel.lipdp.layers._base import NonExpansive

__all__ = ["DP_ClipGradient"]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ClipGradient(NonExpansive, keras.layers.Layer):
    """Identity whose backward pass clips the cotangent of each example to norm `clip_value`.

    As the last layer it lets any Keras loss be used, since the loss's own bound no longer matters. A value below the
    loss's constant lowers the noise of every layer in proportion.

    Args:
        clip_value: float > 0, largest Euclidean norm of one example's cotangent.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ...)`.
    Output shape: the same.

    Bounds: Euclidean norm, one example. Output at most `input_bound`; cotangent at most
    `min(gradient_bound, clip_value)`: it is made finite and projected on that ball.

    Raises:
        TypeError, ValueError: if `clip_value` is not a positive number.
    """

    def __init__(self, clip_value, **kwargs):
        super().__init__(**kwargs)
        self.clip_value = _checks.number(f"DP_ClipGradient '{self.name}'", "clip_value", clip_value, above=0.0)

    def call(self, inputs):
        @ops.custom_gradient
        def identity(x):
            def grad(*args, upstream=None):
                cotangent = args[0] if upstream is None else upstream
                return _linalg.project_on_ball(_linalg.finite_or_zero(cotangent), self.clip_value)

            return x, grad

        return identity(inputs)

    def backpropagate_inputs(self, input_bound, gradient_bound):
        return min(gradient_bound, self.clip_value)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "clip_value": self.clip_value}
