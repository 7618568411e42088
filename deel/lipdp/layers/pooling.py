"""Pooling: by the Euclidean norm of each window, its largest entry or its mean."""

import math
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks
from deel.lipdp._convolution import window_positions
from deel.lipdp._per_example import half_squares, root
from deel.lipdp._types import Bound, Ints, Shape, Tensor
from deel.lipdp.layers._base import DPLayer, NonExpansive

__all__ = [
    "DP_AveragePooling2D",
    "DP_GlobalAveragePooling2D",
    "DP_MaxPool2D",
    "DP_ScaledGlobalL2NormPooling2D",
    "DP_ScaledL2NormPooling1D",
    "DP_ScaledL2NormPooling2D",
    "check_image",
]

# Rounding of a symmetric eigenvalue solver in double precision is a few n eps of the norm, n below 10,000.
_EIGENVALUE_SLACK = 1.0 + 1e-10

_SPATIAL_AXES = {1: "steps", 2: "rows, cols"}


def check_image(layer: keras.layers.Layer, input_shape: Shape, num_axes: int) -> None:
    """Refuses an input that is no image, or of unknown size."""
    if len(input_shape) != num_axes + 2 or None in input_shape[1:-1]:
        axes = _SPATIAL_AXES[num_axes]
        raise ValueError(
            _checks.message(
                f"{type(layer).__name__} '{layer.name}'",
                f"an input of shape (batch, {axes}, channels) with known {axes}",
                f"{tuple(input_shape)}",
                "State the input shape of the model.",
            )
        )


class _Pooling(DPLayer, keras.layers.Layer):
    """Windows along the axes between batch and channels. Subclasses define `call` and `_lipschitz_constant`."""

    num_axes = 2

    def __init__(
        self,
        pool_size: Ints = 2,
        strides: Ints | None = None,
        padding: Literal["valid", "same"] = "valid",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        who, length = f"{type(self).__name__} '{self.name}'", self.num_axes
        self.pool_size = _checks.integers(who, "pool_size", pool_size, length=length)
        self.strides = self.pool_size if strides is None else _checks.integers(who, "strides", strides, length=length)
        self.padding = _checks.choice(who, "padding", padding, {"valid": "valid", "same": "same"})

    def _axes(self, input_shape):
        """(size of the image, size of a window, stride, number of windows) along each axis."""
        for n, k, s in zip(input_shape[1:-1], self.pool_size, self.strides, strict=True):
            yield n, k, s, -(-n // s) if self.padding == "same" else (n - k) // s + 1

    def _amounts(self, input_shape):
        """(before, after) along each axis, the number of entries that "same" pads with."""
        totals = [max((windows - 1) * s + k - n, 0) for n, k, s, windows in self._axes(input_shape)]
        return [(total // 2, total - total // 2) for total in totals]

    def build(self, input_shape: Shape) -> None:
        check_image(self, input_shape, self.num_axes)
        if min(self.compute_output_shape(input_shape)[1:-1]) < 1:
            raise ValueError(
                _checks.message(
                    f"{type(self).__name__} '{self.name}'",
                    "an image at least as large as a window",
                    f"input shape {tuple(input_shape)}, pool_size={self.pool_size}",
                    "Use a smaller pool_size, or padding='same'.",
                )
            )
        self._constant = self._lipschitz_constant(list(self._covers(input_shape)))

    def _covers(self, input_shape):
        """For each axis a bool array (windows, entries): which window covers which entry."""
        for n, k, s, _ in self._axes(input_shape):
            positions = window_positions(n, k, s, self.padding)
            yield (positions[:, :, None] == np.arange(n)).any(axis=0)

    def _lipschitz_constant(self, covers):
        """Root of the largest number of windows that one entry is in."""
        return math.sqrt(math.prod(int(along.sum(0).max()) for along in covers))

    def propagate_inputs(self, input_bound: float) -> float:
        return self._constant * input_bound

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return self._constant * gradient_bound

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], *(windows for *_, windows in self._axes(input_shape)), input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "pool_size": self.pool_size,
            "strides": self.strides,
            "padding": self.padding,
        }


class _L2NormPooling(_Pooling):
    def call(self, inputs: Tensor) -> Tensor:
        squares = half_squares(inputs)
        if self.padding == "same":
            # Padded here, since average pooling with "same" divides by the number of real entries.
            squares = ops.pad(squares, [(0, 0), *self._amounts(inputs.shape), (0, 0)])
        window = math.prod(self.pool_size)
        mean = ops.average_pool(squares, self.pool_size, self.strides, padding="valid", data_format="channels_last")
        return root(window * mean, window)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ScaledL2NormPooling2D(_L2NormPooling):
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
        TypeError, ValueError: for arguments out of range, or, at build, an image of unknown size.

    References:
        Boureau, Ponce, LeCun: A theoretical analysis of feature pooling in visual recognition. ICML 2010.
    """


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ScaledL2NormPooling1D(_L2NormPooling):
    """Replaces each window of a sequence by its Euclidean norm, channel by channel.

    Args:
        pool_size: int, length of a window.
        strides: int or None (= `pool_size`, windows that do not overlap).
        padding: `"valid"` or `"same"` (zeros).
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, steps, channels)`, steps known.
    Output shape: `(batch, pooled steps, channels)`.

    Bounds: those of `DP_ScaledL2NormPooling2D`, by the same proof: `sqrt(m)` times `input_bound` and `gradient_bound`,
    m the largest number of windows one step is in.

    Raises:
        TypeError, ValueError: for arguments out of range, or, at build, a sequence of unknown length.

    References:
        Boureau, Ponce, LeCun: A theoretical analysis of feature pooling in visual recognition. ICML 2010.
    """

    num_axes = 1


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_MaxPool2D(_Pooling):
    """Replaces each window by its largest entry, channel by channel, as `keras.layers.MaxPool2D`.

    It drops what the other entries of a window hold, and their gradient: `DP_ScaledL2NormPooling2D` keeps the norm.

    Args:
        pool_size: int or pair, side of a window.
        strides: int, pair or None (= `pool_size`, windows that do not overlap).
        padding: `"valid"` or `"same"` (what is padded is never the largest).
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, pooled rows, pooled cols, channels)`.

    Bounds: Euclidean norm, one example; `sqrt(m)` times `input_bound` and `gradient_bound`, m the largest number of
    windows one pixel is in (1 without overlap). Each output is one entry of its window, at a tie too, where the
    gradient goes to the first of them: output and cotangent are made of squares that are counted m times at most, and
    of sums of at most m terms (Cauchy-Schwarz).

    Raises:
        TypeError, ValueError: for arguments out of range, or, at build, an image of unknown size.
    """

    def call(self, inputs: Tensor) -> Tensor:
        return ops.max_pool(inputs, self.pool_size, self.strides, self.padding, data_format="channels_last")


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_AveragePooling2D(_Pooling):
    """Replaces each window by its mean, channel by channel, as `keras.layers.AveragePooling2D`.

    A mean is smaller than the norm of its window, up to the root of its size. The bounds know that, so the noise of the
    layers behind it is smaller too.

    Args:
        pool_size: int or pair, side of a window.
        strides: int, pair or None (= `pool_size`, windows that do not overlap).
        padding: `"valid"` or `"same"`, which divides by the number of entries inside the image.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, pooled rows, pooled cols, channels)`.

    Bounds: Euclidean norm, one example; c times `input_bound` and `gradient_bound`, c the norm of the map, which is
    linear. It averages along the rows and then along the columns (a window's number of entries is a product too), so c
    is the product of the norms of two small matrices, computed at build with a slack of 1e-10. It is at most
    `sqrt(m / v)`, m the largest number of windows one pixel is in and v the fewest entries of a window: for a matrix
    the squared norm is at most its largest row sum, 1, times its largest column sum, m / v. With windows that tile the
    image c is `1 / sqrt(window size)`.

    Raises:
        TypeError, ValueError: for arguments out of range, or, at build, an image of unknown size.
    """

    def call(self, inputs: Tensor) -> Tensor:
        return ops.average_pool(inputs, self.pool_size, self.strides, self.padding, data_format="channels_last")

    def _lipschitz_constant(self, covers):
        means = [along / along.sum(1, keepdims=True) for along in covers]
        return math.sqrt(math.prod(np.linalg.eigvalsh(mean @ mean.T)[-1] * _EIGENVALUE_SLACK for mean in means))


class _GlobalPooling2D(DPLayer, keras.layers.Layer):
    def __init__(self, keepdims: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        who = f"{type(self).__name__} '{self.name}'"
        self.keepdims = _checks.choice(who, "keepdims", keepdims, {False: False, True: True})

    def build(self, input_shape: Shape) -> None:
        check_image(self, input_shape, 2)
        self._positions = math.prod(input_shape[1:3])

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], *((1, 1) if self.keepdims else ()), input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "keepdims": self.keepdims}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_GlobalAveragePooling2D(_GlobalPooling2D):
    """Replaces each channel by its mean over the image, as `keras.layers.GlobalAveragePooling2D`.

    Args:
        keepdims: bool, whether rows and cols stay as axes of size 1.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, channels)`, or `(batch, 1, 1, channels)`.

    Bounds: Euclidean norm, one example, P the number of pixels; `1 / sqrt(P)` times `input_bound` and `gradient_bound`:
    a mean of P entries is at most their norm over `sqrt(P)` (Cauchy-Schwarz), and g is sent back as g / P to each of P
    pixels. Attained by constant images.

    Raises:
        ValueError: for `keepdims`, or, at build, an image of unknown size.
    """

    def call(self, inputs: Tensor) -> Tensor:
        return ops.mean(inputs, axis=(1, 2), keepdims=self.keepdims)

    def propagate_inputs(self, input_bound: float) -> float:
        return self._positions**-0.5 * input_bound

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return self._positions**-0.5 * gradient_bound


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ScaledGlobalL2NormPooling2D(NonExpansive, _GlobalPooling2D):
    """Replaces each channel by its Euclidean norm over the image.

    Args:
        keepdims: bool, whether rows and cols stay as axes of size 1.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, channels)`, or `(batch, 1, 1, channels)`.

    Bounds: Euclidean norm, one example; `input_bound` and `gradient_bound`. The norm of the norms is that of the image,
    and channel c sends back `g_c x_c / ||x_c||`, of norm `|g_c|` (0 for a zero channel).

    Raises:
        ValueError: for `keepdims`, or, at build, an image of unknown size.

    References:
        Boureau, Ponce, LeCun: A theoretical analysis of feature pooling in visual recognition. ICML 2010.
    """

    def call(self, inputs: Tensor) -> Tensor:
        energy = ops.sum(half_squares(inputs), axis=(1, 2), keepdims=self.keepdims)
        return root(energy, self._positions)
