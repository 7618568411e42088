"""Clipping of the gradient of each example with respect to an activation: cheap, and it lowers the noise."""

from typing import Any

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks, _per_example, _scalars
from deel.lipdp._types import Bound, Shape, Tensor
from deel.lipdp.layers._base import NonExpansive

__all__ = ["DP_ClipGradient"]

# A moving clip value counts as the nearest of these beyond them, so that no assignment makes a bound infinite or zero.
_SMALLEST_CLIP, _LARGEST_CLIP = 1e-9, 1e9


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ClipGradient(NonExpansive, keras.layers.Layer):
    """Identity whose backward pass clips the cotangent of each example to norm `clip_value`.

    As the last layer it lets any Keras loss be used, since the loss's own bound no longer matters. A value below the
    loss's constant lowers the noise of every layer before it in proportion.

    Args:
        clip_value: float > 0, largest Euclidean norm of one example's cotangent.
        dynamic: bool. False: the value is a constant. True: `layer.clip_value = c` may change it at any time, between
            two steps of `fit` too, and the noise of the steps that follow is scaled to it. A value chosen by looking at
            private data is a release of its own: the callbacks of `deel.lipdp.dynamic` count theirs.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ...)`.
    Output shape: the same.

    Bounds: Euclidean norm, one example. Output at most `input_bound`; cotangent at most
    `min(gradient_bound, clip_value)`: it is made finite and projected on that ball. Where the value moves, the
    projection and the bound read the same variable in the same step.

    Raises:
        TypeError, ValueError: if `clip_value` is not a positive number (between 1e-9 and 1e9 where it moves).
        AttributeError: for setting `clip_value` where it is a constant.
    """

    def __init__(self, clip_value: float, dynamic: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dynamic = bool(dynamic)
        self._clip_value = self._checked(clip_value)
        if self.dynamic:
            # A weight, so that a resumed run goes on with the value it had.
            self._clip_variable = self.add_weight(
                name="clip_value",
                shape=(),
                initializer=keras.initializers.Constant(self._clip_value),
                trainable=False,
            )

    @property
    def clip_limits(self) -> tuple[float, float]:
        """(smallest, largest) value that a moving clip value can have."""
        return _SMALLEST_CLIP, _LARGEST_CLIP

    def _checked(self, value):
        limits = {"at_least": _SMALLEST_CLIP, "at_most": _LARGEST_CLIP} if self.dynamic else {"above": 0.0}
        return _checks.number(f"DP_ClipGradient '{self.name}'", "clip_value", value, **limits)

    @property
    def clip_value(self) -> float:
        """float, the norm to which cotangents are clipped."""
        return float(self._effective_clip()) if self.dynamic else self._clip_value

    @clip_value.setter
    def clip_value(self, value: float) -> None:
        if not self.dynamic:
            raise AttributeError(
                _checks.message(
                    f"DP_ClipGradient '{self.name}'",
                    "dynamic=True for a clip value that moves",
                    f"clip_value={value!r} for a constant one",
                    "Make the layer with dynamic=True: the noise is then scaled anew at each step.",
                )
            )
        self._clip_variable.assign(self._checked(value))

    def _effective_clip(self):
        """The value in force: a float, or a float64 scalar tensor where it moves. NaN counts as the smallest."""
        if not self.dynamic:
            return self._clip_value
        value = ops.cast(self._clip_variable, "float64")
        return ops.where(value >= _SMALLEST_CLIP, ops.minimum(value, _LARGEST_CLIP), _SMALLEST_CLIP)

    def call(self, inputs: Tensor) -> Tensor:
        # Read outside the function below: a custom gradient reads no variable inside of it.
        radius = ops.cast(self._effective_clip(), self.compute_dtype)

        @ops.custom_gradient
        def identity(x):
            def grad(*args, upstream=None):
                cotangent = args[0] if upstream is None else upstream
                return _per_example.project_on_ball(_per_example.finite_or_zero(cotangent), radius)

            return x, grad

        return identity(inputs)

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return _scalars.minimum(gradient_bound, self._effective_clip())

    def perturbation_bound(self, inputs: Tensor, radius: np.ndarray) -> np.ndarray:
        return radius

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "clip_value": self.clip_value, "dynamic": self.dynamic}
