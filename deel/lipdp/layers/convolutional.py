"""Convolutions whose operator norm, on the images they are built for, is certified to be at most 1."""

import math

import keras

from deel.lipdp import _checks, _linalg
from deel.lipdp.layers._kernel import SpectralKernel, UnitBall

__all__ = ["DP_QuickSpectralConv2D", "DP_SpectralConv2D"]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_QuickSpectralConv2D(SpectralKernel, keras.layers.Conv2D):
    """2-D convolution without bias, 1-Lipschitz as an operator on images of the size it is built for.

    Args:
        filters, kernel_size, strides, padding, dilation_rate: as in `keras.layers.Conv2D`; padding is zeros.
        activation: None or the name of a 1-Lipschitz activation that is zero at zero (`"relu"`, `"tanh"`, ...).
        kernel_initializer: as in Keras; `"orthogonal"` is orthogonal as a (kernel area * channels, filters) matrix.
        kernel_regularizer: as in Keras. Its gradient does not depend on data and is added after the noise.
        nm_coef: float > 0, weight of this layer's noise multiplier under the `per-layer` strategy.
        **kwargs: other arguments of `keras.layers.Conv2D`; `use_bias=True`, `groups` above 1 and `channels_first` are
            refused.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, new rows, new cols, filters)`.

    Bounds: Euclidean norms, one example. Output at most `input_bound` and cotangent at most `gradient_bound`, since the
    certified operator norm is at most 1. Kernel gradient at most `sqrt(m) * input_bound * gradient_bound`, m the
    largest number of windows one pixel is in (at most the product of `ceil(kernel / stride)` over the axes): the
    gradient at kernel offset p is `sum_i x_(is+p)^T g_i`, of squared norm at most `(sum_i ||x_(is+p)||^2) ||g||^2`,
    and summed over p each pixel is counted m times at most. Assumes zero padding; reflection repeats values and breaks
    it.

    Raises:
        ValueError: for a bias, groups, an activation without a known constant, a constraint of one's own, or, at build,
            an image of unknown size.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        *,
        activation=None,
        kernel_initializer="orthogonal",
        **kwargs,
    ):
        kwargs = self._check_arguments({"activation": activation, **kwargs})
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )
        self.kernel_constraint = UnitBall(self)
        self._refuse(self.groups != 1, "groups=1", f"groups={self.groups}", "Use full convolutions.")
        self._refuse(
            self.data_format != "channels_last",
            "data_format='channels_last'",
            f"data_format={self.data_format!r}",
            "Transpose the images.",
        )

    def _refuse(self, condition, expected, received, remedy):
        if condition:
            who = f"{type(self).__name__} '{self.name}'"
            raise ValueError(_checks.message(who, expected, received, remedy))

    def build(self, input_shape):
        self._refuse(
            len(input_shape) != 4 or None in input_shape[1:],
            "an input of shape (batch, rows, cols, channels) with known rows, cols and channels",
            f"input shape {tuple(input_shape)}",
            "State the input shape of the model: the norm is certified for one image size.",
        )
        self._geometry = _linalg.ConvGeometry(
            image_size=tuple(input_shape[1:3]),
            kernel_size=tuple(self.kernel_size),
            strides=tuple(self.strides),
            dilations=tuple(self.dilation_rate),
            padding=self.padding,
        )
        self._refuse(
            self._geometry.window_count == 0,
            "an image at least as large as the kernel",
            f"input shape {tuple(input_shape)}, kernel_size={self.kernel_size}",
            "Use a smaller kernel, or padding='same'.",
        )
        super().build(input_shape)

    def _operator_norm_bound(self, kernel):
        return _linalg.conv_norm_bound(kernel, self._geometry)

    def backpropagate_params(self, input_bound, gradient_bound):
        return math.sqrt(self._geometry.window_count) * input_bound * gradient_bound


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_SpectralConv2D(DP_QuickSpectralConv2D):
    """`DP_QuickSpectralConv2D` with more orthogonalisation steps after each update.

    Its singular values stay closer together, at a higher price per step. The bounds and their proof are the same.
    """

    orthogonalization_steps = 10
