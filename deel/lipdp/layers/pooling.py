"""Pooling by the Euclidean norm of each window."""

import math

import keras
from keras import ops

from deel.lipdp import _checks, _linalg
from deel.lipdp.layers._base import DPLayer

__all__ = ["DP_ScaledL2NormPooling2D"]

# Below this energy of a window, its norm and gradient are divided by the root of this instead of the norm, which makes
# both smaller. Squares below about 1e-38 lose their digits in float32, and a gradient x / ||x|| made of them could have
# any norm; above it they are at most 1e-8 of the window's energy.
_SMALLEST_ENERGY = 1e-30


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ScaledL2NormPooling2D(DPLayer, keras.layers.Layer):
    """Replaces each window by its Euclidean norm, channel by channel. Keeps the whole signal where windows tile the
    image.

    Args:
        pool_size: int or pair, side of a window.
        strides: int, pair or None (= `pool_size`, windows that do not overlap).
        padding: `"valid"` or `"same"` (zeros).
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, pooled rows, pooled cols, channels)`.

    Bounds: Euclidean norm, one example, m the largest number of windows one pixel is in (1 without overlap). Output
    norm at most `sqrt(m) input_bound`: each square is counted m times at most. Cotangent at most
    `sqrt(m) gradient_bound`: window w sends back `g_w x_w / ||x_w||`, of norm `|g_w|`, and a pixel adds up at most m of
    them (Cauchy-Schwarz). At a zero window the gradient is 0.

    Raises:
        TypeError, ValueError: for arguments out of range.

    References:
        Boureau, Ponce, LeCun: A theoretical analysis of feature pooling in visual recognition. ICML 2010.
    """

    def __init__(self, pool_size=(2, 2), strides=None, padding="valid", **kwargs):
        super().__init__(**kwargs)
        who = f"DP_ScaledL2NormPooling2D '{self.name}'"
        self.pool_size = _checks.integers(who, "pool_size", pool_size, length=2)
        self.strides = self.pool_size if strides is None else _checks.integers(who, "strides", strides, length=2)
        self.padding = _checks.choice(who, "padding", padding, {"valid": "valid", "same": "same"})

    def build(self, input_shape):
        who = f"DP_ScaledL2NormPooling2D '{self.name}'"
        if len(input_shape) != 4 or None in input_shape[1:3]:
            raise ValueError(
                _checks.message(
                    who,
                    "an input of shape (batch, rows, cols, channels) with known rows and cols",
                    f"{tuple(input_shape)}",
                    "State the input shape of the model.",
                )
            )
        if min(self.compute_output_shape(input_shape)[1:3]) < 1:
            raise ValueError(
                _checks.message(
                    who,
                    "an image at least as large as a window",
                    f"input shape {tuple(input_shape)}, pool_size={self.pool_size}",
                    "Use a smaller pool_size, or padding='same'.",
                )
            )
        self._overlap = math.prod(
            _linalg.window_count(n, k, s, self.padding)
            for n, k, s in zip(input_shape[1:3], self.pool_size, self.strides, strict=True)
        )

    def call(self, inputs):
        # Half of the derivative of the square is left out here, and so is the half that the root would bring below: the
        # gradient is x / ||x|| all the same, two passes over the image are saved, and no root is differentiated.
        squares = inputs * ops.stop_gradient(inputs)
        if self.padding == "same":
            # Padded here, since average pooling with "same" divides by the number of real entries.
            amounts = [
                max((-(-n // s) - 1) * s + k - n, 0)
                for n, k, s in zip(inputs.shape[1:3], self.pool_size, self.strides, strict=True)
            ]
            squares = ops.pad(squares, [(0, 0), *((a // 2, a - a // 2) for a in amounts), (0, 0)])
        window = math.prod(self.pool_size)
        energy = window * ops.average_pool(squares, self.pool_size, self.strides, padding="valid")
        return energy * ops.stop_gradient(ops.rsqrt(ops.maximum(energy, _SMALLEST_ENERGY)))

    def propagate_inputs(self, input_bound):
        return math.sqrt(self._overlap) * input_bound

    def backpropagate_inputs(self, input_bound, gradient_bound):
        return math.sqrt(self._overlap) * gradient_bound

    def compute_output_shape(self, input_shape):
        sizes = [
            -(-n // s) if self.padding == "same" else (n - k) // s + 1
            for n, k, s in zip(input_shape[1:3], self.pool_size, self.strides, strict=True)
        ]
        return (input_shape[0], *sizes, input_shape[3])

    def get_config(self):
        return {
            **super().get_config(),
            "pool_size": self.pool_size,
            "strides": self.strides,
            "padding": self.padding,
        }
