"""Activations: those that keep norms (sorting, absolute value, modulus, reflections), and rectifiers."""

import math
from typing import Any

import keras
from keras import ops

from deel.lipdp import _checks
from deel.lipdp._per_example import half_squares, root
from deel.lipdp._types import Bound, Shape, Tensor
from deel.lipdp.layers._base import DPLayer, NonExpansive

__all__ = ["DP_Abs", "DP_FullSort", "DP_GroupSort", "DP_Householder", "DP_LeakyReLU", "DP_Modulus", "DP_ReLU"]


def _descending(inputs, axis):
    """Sorted along one axis, the largest first."""
    return -ops.sort(-inputs, axis=axis)


def _check_channels(layer, input_shape, size, name=""):
    """Refuses channels that do not form groups of that size."""
    if input_shape[-1] is None or input_shape[-1] % size:
        raise ValueError(
            _checks.message(
                f"{type(layer).__name__} '{layer.name}'",
                f"a number of channels that is a multiple of {name}{size}",
                f"input shape {tuple(input_shape)}",
                "Change the number of channels of the layer before.",
            )
        )


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_GroupSort(NonExpansive, keras.layers.Layer):
    """Sorts channels within groups of `n`, in descending order.

    The group of channel i of C is `i, i + C/n, i + 2 C/n, ...`; which channels share a group is a fixed permutation of
    those before it, and contiguous slices are fast. The largest of a group goes to the first of these channels.

    Args:
        n: int >= 2, size of a group; the number of channels must be a multiple of it.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ..., channels)`.
    Output shape: the same.

    Bounds: Euclidean norm, one example; `input_bound` and `gradient_bound`. Sorting permutes the entries of a group,
    and so does its Jacobian, at ties too: each output takes its gradient from one input, a different one for each.
    (Computing the pair by `maximum` and `minimum` sends both gradients of a tie to one input: 1.41 times too much.)

    Raises:
        ValueError: if the channels are not a multiple of `n`, at build.

    References:
        Anil, Lucas, Grosse: Sorting out Lipschitz function approximation. ICML 2019.
    """

    def __init__(self, n: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n = _checks.integer(f"DP_GroupSort '{self.name}'", "n", n, at_least=2)

    def build(self, input_shape: Shape) -> None:
        _check_channels(self, input_shape, self.n, "n=")

    def call(self, inputs: Tensor) -> Tensor:
        if self.n == 2:
            first, second = ops.split(inputs, 2, axis=-1)  # slicing is far slower, there and back
            # At a tie the derivative of relu is 0 and the pair is passed on crossed over: a permutation.
            excess = ops.relu(first - second)
            return ops.concatenate([second + excess, first - excess], axis=-1)
        shape = ops.shape(inputs)
        grouped = ops.reshape(inputs, (*shape[:-1], self.n, shape[-1] // self.n))
        return ops.reshape(_descending(grouped, axis=-2), shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "n": self.n}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_FullSort(NonExpansive, keras.layers.Layer):
    """Sorts all channels of each position, in descending order: `DP_GroupSort` with one group.

    (deel-lip's layer of that name sorts in ascending order, which is the same up to the order of the channels.)

    Args:
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ..., channels)`.
    Output shape: the same.

    Bounds: Euclidean norm, one example; `input_bound` and `gradient_bound`. A permutation of the channels of each
    position, and so is the Jacobian, at ties too.

    References:
        Anil, Lucas, Grosse: Sorting out Lipschitz function approximation. ICML 2019.
    """

    def call(self, inputs: Tensor) -> Tensor:
        return _descending(inputs, axis=-1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Abs(NonExpansive, keras.layers.Layer):
    """Absolute value of each entry: keeps the norm of activations and of gradients, at the price of a ReLU.

    Input shape: any.
    Output shape: the same.

    Bounds: output norm equals the input norm; the Jacobian is a diagonal of signs (0 at 0).
    """

    def call(self, inputs: Tensor) -> Tensor:
        return ops.abs(inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Modulus(NonExpansive, keras.layers.Layer):
    """Modulus of complex channels: the norm of each pair of adjacent channels, its real and imaginary part.

    After a convolution with waves, `FourierWaves`, it is the strength of a wave around a position, whatever its phase,
    and varies slowly with the position: it bears a large stride.

    Args:
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ..., channels)`, channels even.
    Output shape: `(batch, ..., channels / 2)`.

    Bounds: Euclidean norm, one example; `input_bound` and `gradient_bound`. The pairs share no entry, and the norm of
    each is 1-Lipschitz (its gradient at a pair of zeros is 0).

    Raises:
        ValueError: at build, for an odd number of channels.
    """

    def build(self, input_shape: Shape) -> None:
        _check_channels(self, input_shape, 2)

    def call(self, inputs: Tensor) -> Tensor:
        shape = ops.shape(inputs)
        pairs = ops.reshape(half_squares(inputs), (*shape[:-1], shape[-1] // 2, 2))
        return root(ops.sum(pairs, axis=-1), 2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], input_shape[-1] // 2)


class _Rectifier(DPLayer, keras.layers.Layer):
    """`x` where x is positive, `negative_slope * x` elsewhere, at most `max_value`; zero at zero."""

    negative_slope = 0.0
    max_value = None

    def call(self, inputs: Tensor) -> Tensor:
        return keras.activations.relu(inputs, negative_slope=self.negative_slope, max_value=self.max_value)

    def propagate_inputs(self, input_bound: float) -> float:
        return max(1.0, self.negative_slope) * input_bound

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return max(1.0, self.negative_slope) * gradient_bound

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ReLU(_Rectifier):
    """Rectified linear unit, as `keras.layers.ReLU` without a threshold.

    It loses the half of the signal that is negative, and with it the half of the gradient: `DP_GroupSort` loses none.

    Args:
        max_value: float >= 0 or None (no limit), the largest output.
        negative_slope: float >= 0, the slope for negative inputs. Above 1 it multiplies the bounds.
        threshold: 0. Keras's function jumps at any other.
        **kwargs: `name`, `dtype`.

    Input shape: any.
    Output shape: the same.

    Bounds: Euclidean norm, one example; `max(1, negative_slope)` times `input_bound` and `gradient_bound`. The function
    is applied entry by entry, is zero at zero, and no slope of it is larger.

    Raises:
        TypeError, ValueError: for an argument out of range.
    """

    def __init__(
        self, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        who = f"DP_ReLU '{self.name}'"
        if max_value is not None:
            self.max_value = _checks.number(who, "max_value", max_value, at_least=0.0)
        self.negative_slope = _checks.number(who, "negative_slope", negative_slope, at_least=0.0)
        remedy = "Leave it unset: Keras's function jumps at its threshold, so it has no Lipschitz constant."
        _checks.number(who, "threshold", threshold, at_least=0.0, at_most=0.0, remedy=remedy)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_value": self.max_value, "negative_slope": self.negative_slope}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_LeakyReLU(_Rectifier):
    """Leaky rectified linear unit, as `keras.layers.LeakyReLU`: `negative_slope * x` where x is negative.

    Args:
        negative_slope: float >= 0. Above 1 it multiplies the bounds.
        **kwargs: `name`, `dtype`.

    Input shape: any.
    Output shape: the same.

    Bounds: Euclidean norm, one example; `max(1, negative_slope)` times `input_bound` and `gradient_bound`, as for
    `DP_ReLU`.

    Raises:
        TypeError, ValueError: for a slope out of range.
    """

    def __init__(self, negative_slope: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        who = f"DP_LeakyReLU '{self.name}'"
        self.negative_slope = _checks.number(who, "negative_slope", negative_slope, at_least=0.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "negative_slope": self.negative_slope}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Householder(DPLayer, keras.layers.Layer):
    """Reflects pairs of channels that lie on one side of a trainable line. Channels i and i + C/2 are a pair.

    The line of a pair passes through 0 at angle `theta / 2`. It starts at `theta = pi / 2`, where a pair is sorted,
    the smaller first.

    Args:
        nm_coef: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ..., channels)`, an even number of channels.
    Output shape: the same.

    Bounds: Euclidean norms, one example, for every theta. With `n = (sin(theta/2), -cos(theta/2))`, the unit normal of
    the line, and t its direction, a pair z goes to `z - 2 relu(<n, z>) n`: z itself or its mirror image, and the
    Jacobian is the identity or that reflection. So the output is at most `input_bound` and the cotangent at most
    `gradient_bound`. The derivative by theta is 0 or `-<t, z> n - <n, z> t`, of norm `||z||`, so the gradient for pair
    c is at most the sum over positions of `||z_pc|| ||g_pc||`, and `input_bound * gradient_bound` for all pairs
    (Cauchy-Schwarz). Attained by one pair at one position.

    Raises:
        ValueError: for an odd number of channels, at build.
        TypeError, ValueError: for `nm_coef` out of range.

    References:
        Singla, Singla, Feizi: Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100. ICLR 2022.
    """

    def __init__(self, nm_coef: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nm_coef = _checks.number(f"DP_Householder '{self.name}'", "nm_coef", nm_coef, above=0.0)

    def build(self, input_shape: Shape) -> None:
        _check_channels(self, input_shape, 2)
        half_pi = keras.initializers.Constant(math.pi / 2)
        self.theta = self.add_weight(name="theta", shape=(input_shape[-1] // 2,), initializer=half_pi)

    def call(self, inputs: Tensor) -> Tensor:
        first, second = ops.split(inputs, 2, axis=-1)
        sine, cosine = ops.sin(self.theta / 2), ops.cos(self.theta / 2)
        excess = 2 * ops.relu(first * sine - second * cosine)
        return ops.concatenate([first - excess * sine, second + excess * cosine], axis=-1)

    def propagate_inputs(self, input_bound: float) -> float:
        return input_bound

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return gradient_bound

    def backpropagate_params(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return input_bound * gradient_bound

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "nm_coef": self.nm_coef}
