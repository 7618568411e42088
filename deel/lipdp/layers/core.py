"""The input guard, maps that only rearrange entries, and functions on the caller's word."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deel.lipdp import _checks, _per_example
from deel.lipdp._types import Bound, Ints, Shape, Tensor
from deel.lipdp.layers._base import DPLayer, NonExpansive, who_is_made

__all__ = [
    "DP_BoundedInput",
    "DP_Flatten",
    "DP_InputLayer",
    "DP_Lambda",
    "DP_Permute",
    "DP_Reshape",
    "DP_SpaceToDepth",
]

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

    def __init__(self, upper_bound: float, input_shape: Shape | None = None, **kwargs: Any) -> None:
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

    def call(self, inputs: Tensor) -> Tensor:
        inputs = ops.cast(inputs, self.compute_dtype)
        return _per_example.finite_in_ball(inputs, self.upper_bound)

    def propagate_inputs(self, input_bound: float) -> float:
        return min(input_bound, self.upper_bound)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
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

    def __init__(self, shape: Shape | None = None, *, input_shape: Shape | None = None, **kwargs: Any) -> None:
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


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Permute(NonExpansive, keras.layers.Permute):
    """Permutes the axes of each example, as `keras.layers.Permute(dims)`; axis 1 is the first after the batch.

    Args:
        dims: sequence of int, a permutation of 1, 2, ..., one number for each axis but the batch.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, ...)`.
    Output shape: the same sizes in the order of `dims`.
    Bounds: the entries are the same, so are both norms.

    Raises:
        TypeError, ValueError: if `dims` is no permutation; 0, the batch, is in none. For an input of another rank.
    """

    def __init__(self, dims: Ints, **kwargs: Any) -> None:
        who = who_is_made(self, kwargs)
        order = _checks.integers(who, "dims", dims)
        if sorted(order) != list(range(1, len(order) + 1)):
            raise ValueError(
                _checks.message(
                    who,
                    f"dims to be a permutation of {list(range(1, len(order) + 1))}",
                    f"dims={order}",
                    "Name each axis of one example once; the batch stays where it is.",
                )
            )
        super().__init__(order, **kwargs)
        self.input_spec = None  # its message has no remedy

    def build(self, input_shape: Shape) -> None:
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != len(self.dims) + 1:
            raise ValueError(
                _checks.message(
                    f"DP_Permute '{self.name}'",
                    f"an input of {len(self.dims)} axes beside the batch, one for each of dims={self.dims}",
                    f"input shape {tuple(input_shape)}",
                    "Put DP_Reshape before it, as DP_Reshape((positions, channels)) before a mixer block.",
                )
            )
        return super().compute_output_shape(input_shape)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_SpaceToDepth(NonExpansive, keras.layers.Layer):
    """Moves each block of pixels into the channels: an image of half the side has four times the channels.

    A downsampling that loses nothing, for use before a convolution or a dense layer over positions.

    Args:
        block_size: int >= 2, side of a block; rows and cols must be multiples of it.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, rows, cols, channels)`, all but the batch known.
    Output shape: `(batch, rows / block_size, cols / block_size, block_size^2 * channels)`; the channels are ordered by
        row in the block, then column, then channel.
    Bounds: the entries are the same, so are both norms.

    Raises:
        TypeError, ValueError: for a `block_size` out of range, or, at build, an image that blocks do not tile.
    """

    def __init__(self, block_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_size = _checks.integer(f"DP_SpaceToDepth '{self.name}'", "block_size", block_size, at_least=2)

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) != 4 or None in input_shape[1:] or any(n % self.block_size for n in input_shape[1:3]):
            raise ValueError(
                _checks.message(
                    f"DP_SpaceToDepth '{self.name}'",
                    f"an input of shape (batch, rows, cols, channels), rows and cols multiples of {self.block_size}",
                    f"input shape {tuple(input_shape)}",
                    "Change block_size, or state the input shape of the model.",
                )
            )

    def call(self, inputs: Tensor) -> Tensor:
        side = self.block_size
        _, rows, cols, channels = self.compute_output_shape(inputs.shape)
        blocks = ops.reshape(inputs, (-1, rows, side, cols, side, channels // side**2))
        return ops.reshape(ops.transpose(blocks, (0, 1, 3, 2, 4, 5)), (-1, rows, cols, channels))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, rows, cols, channels = input_shape
        side = self.block_size
        return (batch, rows // side, cols // side, channels * side**2)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "block_size": self.block_size}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Lambda(DPLayer, keras.layers.Lambda):
    """Any function of one example without parameters, **on the caller's word** that it has the constants stated here.

    Nothing in the library can prove them, and a constant too small voids epsilon. The constant holds for the gradient
    the framework computes too, which may be larger than the function's at kinks and ties (see `DP_GroupSort`), and in
    training as in inference. `deel.lipdp.testing.search_worst_case` tries to break it: run it in a test of your own.

    Args:
        function: callable, tensor -> tensor, that never mixes examples. A named one, registered with
            `keras.saving.register_keras_serializable`, can be saved and loaded; Keras does not load a `lambda` unless
            told to trust the file.
        lipschitz_constant: float > 0, `||f(x) - f(x')|| <= lipschitz_constant ||x - x'||` for all x and x', Euclidean
            norms of one example.
        norm_at_zero: float >= 0, `||f(0)||` for one example. A constant c added to n entries makes it
            `|c| sqrt(n)`.
        output_shape, arguments: as in `keras.layers.Lambda`.
        **kwargs: `name`, `dtype`.

    Input shape: any.
    Output shape: that of the function.

    Bounds: Euclidean norms, one example, on the caller's claim. Output at most
    `lipschitz_constant * input_bound + norm_at_zero`, by the triangle inequality from f(0). Cotangent at most
    `lipschitz_constant * gradient_bound`: no Jacobian has a larger norm.

    Raises:
        TypeError: if `function` is not a function, or a constant is missing or no number.
        ValueError: for a constant out of range.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *,
        lipschitz_constant: float,
        norm_at_zero: float = 0.0,
        **kwargs: Any,
    ) -> None:
        who = who_is_made(self, kwargs)
        if not callable(function) or isinstance(function, (type, keras.layers.Layer)):
            raise TypeError(
                _checks.message(
                    who,
                    "a function without parameters",
                    f"{function!r}",
                    "Pass a function; a layer has a counterpart in deel.lipdp.layers, or see DP_GNP_Factory.",
                )
            )
        self.lipschitz_constant = _checks.number(who, "lipschitz_constant", lipschitz_constant, above=0.0)
        self.norm_at_zero = _checks.number(who, "norm_at_zero", norm_at_zero, at_least=0.0)
        super().__init__(function, **kwargs)

    def propagate_inputs(self, input_bound: float) -> float:
        return self.lipschitz_constant * input_bound + self.norm_at_zero

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return self.lipschitz_constant * gradient_bound

    def get_config(self) -> dict[str, Any]:
        constants = {"lipschitz_constant": self.lipschitz_constant, "norm_at_zero": self.norm_at_zero}
        return {**super().get_config(), **constants}
