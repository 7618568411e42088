"""Convolutions whose operator norm, on the inputs they are built for, is certified to be at most 1."""

from typing import Any

import keras
from keras import ops

from deel.lipdp import _checks, _frequencies
from deel.lipdp._convolution import window_positions
from deel.lipdp._traced import traced_once
from deel.lipdp._types import Activation, Bound, Initializer, Ints, Shape, Tensor
from deel.lipdp.layers._base import who_is_made
from deel.lipdp.layers._kernel import ContractiveKernel, SpectralKernel, UnitBall, orthogonalize

__all__ = [
    "DP_ContractiveConv2D",
    "DP_Conv1D",
    "DP_DepthwiseConv2D",
    "DP_PatchEmbedding",
    "DP_QuickSpectralConv2D",
    "DP_SpectralConv2D",
]

_conv_norm_bound = traced_once(_frequencies.conv_norm_bound)
_orthogonalize_convolution = traced_once(_frequencies.orthogonalize_convolution)

#: Names of the spatial axes, by their number.
_AXES = {1: "steps", 2: "rows, cols"}


class _SpectralConvolution(SpectralKernel):
    """Mixin: checks, certificate and bounds of a convolution over `self.rank` axes, with zeros as padding."""

    #: What Keras's arguments for the kernel begin with.
    _kernel_argument = "kernel"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **self._check_arguments(kwargs))
        setattr(self, f"{self._kernel_argument}_constraint", UnitBall(self))
        groups = getattr(self, "groups", 1)
        self._refuse(groups != 1, "groups=1", f"groups={groups}", "Use full convolutions.")
        self._refuse(
            self.data_format != "channels_last",
            "data_format='channels_last'",
            f"data_format={self.data_format!r}",
            "Move the channels to the last axis.",
        )

    def _refuse(self, condition, expected, received, remedy):
        if condition:
            who = f"{type(self).__name__} '{self.name}'"
            raise ValueError(_checks.message(who, expected, received, remedy))

    def build(self, input_shape: Shape) -> None:
        axes = _AXES[self.rank]
        self._refuse(
            len(input_shape) != self.rank + 2 or None in input_shape[1:],
            f"an input of shape (batch, {axes}, channels), all known but the batch",
            f"input shape {tuple(input_shape)}",
            "State the input shape of the model: the norm is certified for one size.",
        )
        self._geometry = _frequencies.ConvGeometry(
            image_size=tuple(input_shape[1:-1]),
            kernel_size=tuple(self.kernel_size),
            strides=tuple(self.strides),
            dilations=tuple(self.dilation_rate),
            padding=self.padding,
        )
        self._refuse(
            self._geometry.window_count == 0,
            "an input at least as large as the kernel",
            f"input shape {tuple(input_shape)}, kernel_size={self.kernel_size}",
            "Use a smaller kernel, or padding='same'.",
        )
        super().build(input_shape)

    def _operator_norm_bound(self, kernel):
        return _conv_norm_bound(kernel, self._geometry)

    def backpropagate_params(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return self._geometry.kernel_gradient_factor * input_bound * gradient_bound


class _OrthogonalConvolution(_SpectralConvolution):
    """Mixin: a convolution over all channels, kept close to an isometry as an operator, wherever its windows overlap.

    (A matrix that is orthogonal on windows is far from one on images when pixels are in several windows.)
    """

    #: An update moves a kernel little, and the certificate makes up for what is missing.
    orthogonalization_steps = 1
    #: Singular values are then within 10 % of each other, from the start that `"orthogonal"` stands for.
    _steps_at_build = 30

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if self._windows_overlap():
            self.kernel.assign(self.project(self._start(ops.convert_to_tensor(self.kernel))))

    def _start(self, kernel):
        """The initialiser's kernel, moved to an isometry as far as it goes."""
        if isinstance(getattr(self, f"{self._kernel_argument}_initializer"), keras.initializers.Orthogonal):
            kernel = _frequencies.centred_convolution(kernel, self._geometry)
        for _ in range(self._steps_at_build // max(1, self.orthogonalization_steps)):
            kernel = _orthogonalize_convolution(kernel, self._geometry.strides, self.orthogonalization_steps)
        return kernel

    def _windows_overlap(self):
        return any(k > s for k, s in zip(self._geometry.kernel_size, self._geometry.strides, strict=True))

    def _orthogonalize(self, kernel):
        if not self._windows_overlap():
            return super()._orthogonalize(kernel)
        return _orthogonalize_convolution(kernel, self._geometry.strides, self.orthogonalization_steps)


class _FullConvolution(_OrthogonalConvolution):
    """Mixin: the constructor of convolutions whose filters see all channels."""

    def __init__(
        self,
        filters: int,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: str = "valid",
        *,
        activation: Activation = None,
        kernel_initializer: Initializer = "orthogonal",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            activation=activation,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_QuickSpectralConv2D(_FullConvolution, keras.layers.Conv2D):
    """2-D convolution without bias, 1-Lipschitz as an operator on images of the size it is built for.

    Args:
        filters, kernel_size, strides, padding, dilation_rate: as in `keras.layers.Conv2D`; padding is zeros.
        activation: None or the name of a 1-Lipschitz activation that is zero at zero (`"relu"`, `"tanh"`, ...).
        kernel_initializer: as in Keras; `"orthogonal"` starts close to an isometry of images, with most of its weight
            in the middle of the window.
        kernel_regularizer: as in Keras. Its gradient does not depend on data and is added after the noise.
        nm_coef: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
        **kwargs: other arguments of `keras.layers.Conv2D`; `use_bias=True`, `groups` above 1 and `channels_first` are
            refused.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, new rows, new cols, filters)`.

    Bounds: Euclidean norms, one example. Output at most `input_bound` and cotangent at most `gradient_bound`, since the
    certified operator norm is at most 1. Kernel gradient at most `f * input_bound * gradient_bound`, f at most
    `sqrt(m)`, m the largest number of windows one pixel is in (at most the product of `ceil(kernel / stride)` over the
    axes): the gradient at kernel offset p is `sum_i x_(is+p)^T g_i`, of squared norm at most
    `(sum_i ||x_(is+p)||^2) ||g||^2`, and summed over p each pixel is counted m times at most. Borders make f less than
    that, on small images by a good part: `_convolution.kernel_gradient_factor` has the certificate and its proof.
    Assumes zero padding; reflection repeats values and breaks it.

    Raises:
        ValueError: for a bias, groups, an activation without a known constant, a constraint of one's own, or, at build,
            an image of unknown size.
    """


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_SpectralConv2D(DP_QuickSpectralConv2D):
    """`DP_QuickSpectralConv2D` with more orthogonalisation steps after each update.

    Its singular values stay closer together, at a higher price per step. The bounds and their proof are the same.
    """

    orthogonalization_steps = 10


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ContractiveConv2D(ContractiveKernel, DP_QuickSpectralConv2D):
    """`DP_QuickSpectralConv2D` whose kernel is left as it is while its certified norm is at most 1, else divided by it.

    For a first layer that starts from filters worth keeping, weak ones beside strong ones, such as
    `deel.lipdp.initializers.FourierWaves`: the other convolutions make them equally strong. Small singular values
    shrink signal and gradient, and the bounds do not: prefer `DP_QuickSpectralConv2D` elsewhere.

    Args, input shape, output shape: those of `DP_QuickSpectralConv2D`, but that the kernel starts as the initialiser
    gives it: `"orthogonal"` is close to an isometry of windows then, and not of images whose windows overlap.

    Bounds, Raises: those of `DP_QuickSpectralConv2D`, since the operator norm is at most 1.
    """

    def _start(self, kernel):
        return kernel


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Conv1D(_FullConvolution, keras.layers.Conv1D):
    """Convolution over the steps of a sequence, without bias, 1-Lipschitz on sequences of the length it is built for.

    Args:
        filters, kernel_size, strides, dilation_rate: as in `keras.layers.Conv1D`.
        padding: `"valid"`, `"same"` or `"causal"` (output t sees no input after step t), with zeros.
        activation: None or the name of a 1-Lipschitz activation that is zero at zero (`"relu"`, `"tanh"`, ...).
        kernel_initializer: as in Keras; `"orthogonal"` starts close to an isometry of sequences, with most of its
            weight in the middle of the window.
        kernel_regularizer: as in Keras. Its gradient does not depend on data and is added after the noise.
        nm_coef: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
        **kwargs: other arguments of `keras.layers.Conv1D`; `use_bias=True`, `groups` above 1 and `channels_first` are
            refused.

    Input shape: `(batch, steps, channels)`, steps known.
    Output shape: `(batch, new steps, filters)`.

    Bounds: Euclidean norms, one example. Output at most `input_bound` and cotangent at most `gradient_bound`, since the
    certified operator norm is at most 1: wherever the zeros stand, the operator is a block of the circular one. Kernel
    gradient at most `f * input_bound * gradient_bound`, f at most the root of the largest number of windows one step is
    in (at most `ceil(kernel / stride)`), by the proof in `DP_QuickSpectralConv2D`.

    Raises:
        ValueError: for a bias, groups, an activation without a known constant, a constraint of one's own, or, at build,
            a sequence of unknown length.
    """


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_DepthwiseConv2D(_OrthogonalConvolution, keras.layers.DepthwiseConv2D):
    """2-D convolution of every channel on its own, without bias, 1-Lipschitz on images of the size it is built for.

    Cheap beside a full convolution; a `DP_QuickSpectralConv2D` of kernel size 1 after it mixes the channels. Each
    channel is projected by its own certificate, so none is held back by another. With a `depth_multiplier` above 1 the
    filters of a channel are kept close to an isometry together; a single filter is only divided by its certificate,
    since its isometries are the shifts of an image: smoothing loses norm, and has to be allowed to.

    Args:
        kernel_size, strides, padding, dilation_rate: as in `keras.layers.DepthwiseConv2D`; padding is zeros.
        depth_multiplier: int >= 1, filters for each channel.
        activation: None or the name of a 1-Lipschitz activation that is zero at zero (`"relu"`, `"tanh"`, ...).
        depthwise_initializer: as in Keras; `"orthogonal"` starts close to an isometry of images, with most of its
            weight in the middle of the window, and others are moved towards one.
        depthwise_regularizer: as in Keras. Its gradient does not depend on data and is added after the noise.
        nm_coef: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
        **kwargs: other arguments of `keras.layers.DepthwiseConv2D`; `use_bias=True` and `channels_first` are refused.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, new rows, new cols, channels * depth_multiplier)`.

    Bounds: Euclidean norms, one example. Output at most `input_bound` and cotangent at most `gradient_bound`: channels
    share no input and no output, so the operator norm is the largest of the channels' norms, each certified to be at
    most 1. Kernel gradient at most `f * input_bound * gradient_bound`, f as for `DP_QuickSpectralConv2D`: for channel c
    alone it is at most `f ||x_c|| ||g_c||`, and `sum_c ||x_c||^2 ||g_c||^2 <= ||x||^2 ||g||^2`.

    Raises:
        TypeError, ValueError: for a bias, an activation without a known constant, a constraint of one's own, a
            `depth_multiplier` that is no positive integer, or, at build, an image of unknown size.

    References:
        Howard et al.: MobileNets: Efficient convolutional neural networks for mobile vision applications. 2017.
    """

    _kernel_argument = "depthwise"

    def __init__(
        self,
        kernel_size: Ints,
        strides: Ints = (1, 1),
        padding: str = "valid",
        depth_multiplier: int = 1,
        *,
        activation: Activation = None,
        depthwise_initializer: Initializer = "orthogonal",
        **kwargs: Any,
    ) -> None:
        who = who_is_made(self, kwargs)
        super().__init__(
            kernel_size,
            strides=strides,
            padding=padding,
            depth_multiplier=_checks.integer(who, "depth_multiplier", depth_multiplier),
            activation=activation,
            depthwise_initializer=depthwise_initializer,
            **kwargs,
        )

    def call(self, inputs: Tensor) -> Tensor:
        strides, padding = self.strides, self.padding
        if strides[0] != strides[1]:
            # TensorFlow has no kernel for this on most devices, so every window is computed and the others are left.
            axes = zip(inputs.shape[1:3], self.kernel_size, strides, self.dilation_rate, strict=True)
            positions = [window_positions(n, k, s, padding, d) for n, k, s, d in axes]
            margins = [
                (max(-p.min(), 0), max(p.max() + 1 - n, 0)) for p, n in zip(positions, inputs.shape[1:3], strict=True)
            ]
            inputs, strides, padding = ops.pad(inputs, [(0, 0), *margins, (0, 0)]), (1, 1), "valid"
        outputs = ops.depthwise_conv(
            inputs,
            _finite_gradient(self.kernel, ops.shape(inputs)[0]),
            strides=strides,
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if strides != self.strides:
            outputs = outputs[:, :: self.strides[0], :: self.strides[1]]
        return outputs if self.activation is None else self.activation(outputs)

    def _start(self, kernel):
        return _from_channels(super()._start(_channels(kernel)))

    def _orthogonalize(self, kernel):
        # The isometries with one filter are the shifts of an image.
        if self.depth_multiplier == 1:
            return kernel
        return _from_channels(super()._orthogonalize(_channels(kernel)))

    def _operator_norm_bound(self, kernel):
        return ops.expand_dims(_conv_norm_bound(_channels(kernel), self._geometry), axis=-1)


def _finite_gradient(kernel, num_examples):
    """The kernel, with gradient zero where there is no example: TensorFlow leaves that memory as it was."""

    @ops.custom_gradient
    def identity(kernel):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return ops.where(num_examples > 0, upstream, ops.zeros_like(upstream))

        return kernel, gradient

    return identity(ops.convert_to_tensor(kernel))


def _channels(kernel):
    """(rows, cols, channels, multiplier) as a batch of full kernels, each with one input channel."""
    return ops.expand_dims(ops.transpose(kernel, (2, 0, 1, 3)), axis=-2)


def _from_channels(kernels):
    """Inverse of `_channels`."""
    return ops.transpose(ops.squeeze(kernels, axis=-2), (1, 2, 0, 3))


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_PatchEmbedding(_SpectralConvolution, keras.layers.Conv2D):
    """Cuts an image into patches and maps each by the same matrix, whose singular values are 1 to within 1e-4.

    The first layer of a vision transformer or an MLP mixer: a convolution whose stride is its kernel. The matrix W,
    (patch area * channels, filters), is orthogonalised at build and after each update. The layer is an isometry,
    `||y|| = ||x||`, when `filters >= patch area * channels` and the patches tile the image; with fewer filters it is a
    co-isometry: it keeps `filters` orthonormal directions of every patch whole, drops the rest, and sends every
    cotangent back at full norm. (Directions in which an update leaves less than about 1e-4 of the largest singular
    value stay short.) Rows and cols left over at the end, where the patch does not divide the image, are ignored.

    Args:
        filters: int, size of a patch's embedding.
        patch_size: int or pair, side of a patch.
        activation: None or the name of a 1-Lipschitz activation that is zero at zero (`"relu"`, `"tanh"`, ...).
        kernel_initializer: as in Keras; all directions have to be in it.
        kernel_regularizer: as in Keras. Its gradient does not depend on data and is added after the noise.
        nm_coef: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
        **kwargs: other arguments of `keras.layers.Conv2D`; `use_bias=True`, `groups` above 1, `channels_first` and
            what the patches settle (`strides`, `padding`, `dilation_rate`) are refused.

    Input shape: `(batch, rows, cols, channels)`, rows and cols known.
    Output shape: `(batch, rows // patch rows, cols // patch cols, filters)`; `DP_Reshape((-1, filters))` makes it a
    sequence.

    Bounds: Euclidean norms, one example. Output at most `input_bound` and cotangent at most `gradient_bound`: each
    pixel is in one patch at most, so the layer is a dense one on patches, of norm `||W|| <= 1` (certified, whether or
    not W is orthogonal). Kernel gradient at most `input_bound * gradient_bound`: it is the sum over patches of
    `x_p^T g_p`, of norm at most `sum ||x_p|| ||g_p||`, then Cauchy-Schwarz.

    Raises:
        TypeError, ValueError: for a bias, groups, strides or padding, an activation without a known constant, a
            constraint of one's own, or, at build, an image of unknown size or smaller than a patch.

    References:
        Dosovitskiy et al.: An image is worth 16x16 words: Transformers for image recognition at scale. ICLR 2021.
    """

    orthogonalization_steps = 15

    def __init__(
        self,
        filters: int,
        patch_size: Ints,
        *,
        activation: Activation = None,
        kernel_initializer: Initializer = "orthogonal",
        **kwargs: Any,
    ) -> None:
        who = who_is_made(self, kwargs)
        patch_size = _checks.integers(who, "patch_size", patch_size, length=2)
        for name in _SETTLED_BY_PATCHES & kwargs.keys():
            raise ValueError(
                _checks.message(who, f"no {name}: windows are the patches", f"{name}={kwargs[name]!r}", "Leave it out.")
            )
        super().__init__(
            filters,
            patch_size,
            strides=patch_size,
            activation=activation,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )

    def _orthogonalize(self, kernel):
        matrix = ops.reshape(kernel, (-1, kernel.shape[-1]))
        # In single precision the first Gram matrix hides singular values below about 1e-3 of the largest; the first
        # pass lifts them, the second sees them.
        for _ in range(2):
            matrix = orthogonalize(matrix, self.orthogonalization_steps)
        return ops.reshape(matrix, kernel.shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        settled = {name: config.pop(name) for name in _SETTLED_BY_PATCHES}
        return {**config, "patch_size": settled["kernel_size"]}


_SETTLED_BY_PATCHES = {"kernel_size", "strides", "padding", "dilation_rate"}
