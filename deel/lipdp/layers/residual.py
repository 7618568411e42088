"""Residual blocks as lists of layers: split the signal in two, transform one half, merge them again.

Between `DP_SplitResidual` and `DP_MergeResidual` the layers of a list pass on a pair of tensors: the branch and the
skip connection.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from deel.lipdp import _checks
from deel.lipdp._types import Bound, Shape, Tensor
from deel.lipdp.layers._base import DPLayer
from deel.lipdp.layers.activations import DP_GroupSort
from deel.lipdp.layers.core import DP_Permute
from deel.lipdp.layers.dense import DP_QuickSpectralDense

__all__ = ["DP_MergeResidual", "DP_SplitResidual", "DP_WrappedResidual", "make_mixer_block", "make_residuals"]

MergePolicy: TypeAlias = Literal["1-lip-add", "add"]

# Factor of the sum of branch and skip connection.
_MERGE_POLICIES = {"add": 1.0, "1-lip-add": 0.5}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_SplitResidual(DPLayer, keras.layers.Layer):
    """Copies its input: the first copy goes through the branch, the second is the skip connection.

    Input shape: `(batch, ...)`.
    Output shape: the same, twice.

    Bounds: Euclidean norms, one example. Each output at most `input_bound`. The cotangent at the input is the sum of
    those of both copies, so it is at most the sum of their bounds.
    """

    def call(self, inputs: Tensor) -> list[Tensor]:
        return [inputs, inputs]

    def propagate_inputs(self, input_bound: float) -> tuple[float, float]:
        return input_bound, input_bound

    def backpropagate_inputs(self, input_bound: float, gradient_bound: tuple[Bound, Bound]) -> Bound:
        return sum(gradient_bound)

    def perturbation_bound(self, inputs: Tensor, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return radius, radius

    def compute_output_shape(self, input_shape: Shape) -> list[Shape]:
        return [tuple(input_shape), tuple(input_shape)]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_WrappedResidual(DPLayer, keras.layers.Wrapper):
    """Applies a layer to the branch and passes the skip connection on.

    Args:
        layer: a `DPLayer` with one input and one output.
        name: str or None, by default that of the layer with `_residual` after it. The layer's variable is found under
            `"<name>/<variable>"`.
        **kwargs: `dtype`.

    Input shape: a pair `(batch, ...)`, branch and skip connection.
    Output shape: a pair, the layer's output and the skip connection.

    Bounds: those of the layer for the branch; norm and cotangent of the skip connection stay as they are.

    Raises:
        TypeError: if `layer` is not a `DPLayer`.
    """

    def __init__(self, layer: DPLayer, name: str | None = None, **kwargs: Any) -> None:
        if not isinstance(layer, DPLayer):
            raise TypeError(
                _checks.message(
                    "DP_WrappedResidual",
                    "a layer with bounds (a DPLayer)",
                    f"{layer!r}",
                    "Use its counterpart in deel.lipdp.layers.",
                )
            )
        super().__init__(layer, name=name or f"{layer.name}_residual", **kwargs)

    @property
    def nm_coef(self) -> float:  # type: ignore[override]  # of the layer inside, so it cannot be set here
        """float, that of the layer."""
        return self.layer.nm_coef

    def build(self, input_shape: Sequence[Shape]) -> None:
        branch, _ = input_shape
        if not self.layer.built:
            self.layer.build(tuple(branch))
        self.built = True

    def call(self, inputs: Sequence[Tensor], training: bool | None = None) -> list[Tensor]:
        branch, skip = inputs
        arguments = {"training": training} if self.layer._call_has_training_arg else {}
        return [self.layer(branch, **arguments), skip]

    def check(self) -> None:
        self.layer.check()

    def propagate_inputs(self, input_bound: tuple[float, float]) -> tuple[float, float]:
        branch, skip = input_bound
        return self.layer.propagate_inputs(branch), skip

    def backpropagate_inputs(
        self, input_bound: tuple[float, float], gradient_bound: tuple[Bound, Bound]
    ) -> tuple[Bound, Bound]:
        branch, skip = gradient_bound
        return self.layer.backpropagate_inputs(input_bound[0], branch), skip

    def perturbation_bound(
        self, inputs: tuple[Tensor, Tensor], radius: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.layer.perturbation_bound(inputs[0], radius[0]), radius[1]

    def backpropagate_params(self, input_bound: tuple[float, float], gradient_bound: tuple[Bound, Bound]) -> Bound:
        return self.layer.backpropagate_params(input_bound[0], gradient_bound[0])

    def compute_output_shape(self, input_shape: Sequence[Shape]) -> list[Shape]:
        branch, skip = input_shape
        return [tuple(self.layer.compute_output_shape(tuple(branch))), tuple(skip)]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_MergeResidual(DPLayer, keras.layers.Layer):
    """Adds the branch to the skip connection.

    Args:
        merge_policy: `"1-lip-add"`, the mean of the two, which keeps a block 1-Lipschitz, or `"add"`, their sum, which
            doubles the bounds.
        **kwargs: `name`, `dtype`.

    Input shape: a pair of equal shapes `(batch, ...)`.
    Output shape: that shape.

    Bounds: Euclidean norms, one example, c = 1/2 for the mean and 1 for the sum. Output at most c times the sum of the
    input bounds (triangle inequality); the cotangent at each input is c times that of the output.

    Raises:
        ValueError: for another policy, or shapes that differ.
    """

    def __init__(self, merge_policy: MergePolicy = "1-lip-add", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._factor = _checks.choice(f"DP_MergeResidual '{self.name}'", "merge_policy", merge_policy, _MERGE_POLICIES)
        self.merge_policy = merge_policy

    def build(self, input_shape: Sequence[Shape]) -> None:
        shapes = [tuple(shape) for shape in input_shape]
        if len(shapes) != 2 or shapes[0][1:] != shapes[1][1:]:
            raise ValueError(
                _checks.message(
                    f"DP_MergeResidual '{self.name}'",
                    "a branch of the shape of the skip connection",
                    f"shapes {shapes}",
                    "Keep the shape inside the block, or split after the layer that changes it.",
                )
            )

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        branch, skip = inputs
        return self._factor * (branch + skip)

    def propagate_inputs(self, input_bound: tuple[float, float]) -> float:
        branch, skip = input_bound
        return self._factor * (branch + skip)

    def backpropagate_inputs(self, input_bound: tuple[float, float], gradient_bound: Bound) -> tuple[Bound, Bound]:
        return self._factor * gradient_bound, self._factor * gradient_bound

    def perturbation_bound(self, inputs: tuple[Tensor, Tensor], radius: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return self._factor * sum(radius)

    def compute_output_shape(self, input_shape: Sequence[Shape]) -> Shape:
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "merge_policy": self.merge_policy}


def make_residuals(merge_policy: MergePolicy, wrapped_layers: Iterable[DPLayer]) -> list[DPLayer]:
    """A residual block, as layers for the list of a `DP_Model`.

    Args:
        merge_policy: `"1-lip-add"` or `"add"`, see `DP_MergeResidual`.
        wrapped_layers: list of layers with bounds, the branch. It must keep the shape of its input.

    Returns:
        list of layers: a split, each layer wrapped, a merge.

    Example:

    >>> from deel.lipdp import layers
    >>> block = layers.make_residuals("1-lip-add", [layers.DP_QuickSpectralDense(8), layers.DP_GroupSort(2)])
    >>> [type(layer).__name__ for layer in block]
    ['DP_SplitResidual', 'DP_WrappedResidual', 'DP_WrappedResidual', 'DP_MergeResidual']
    """
    wrapped = [DP_WrappedResidual(layer) for layer in wrapped_layers]
    return [DP_SplitResidual(), *wrapped, DP_MergeResidual(merge_policy)]


def make_mixer_block(
    num_tokens: int,
    channels: int,
    *,
    token_units: int | None = None,
    channel_units: int | None = None,
    activation: Callable[[], DPLayer] = DP_GroupSort,
    merge_policy: MergePolicy = "1-lip-add",
) -> list[DPLayer]:
    """A block of an MLP-Mixer, as layers for the list of a `DP_Model`: mix the tokens, then the channels.

    Args:
        num_tokens, channels: int, the shape of one example, `(num_tokens, channels)`.
        token_units, channel_units: int or None, width of the hidden layer of either mixing; None is the size that is
            mixed, which loses no signal.
        activation: callable without arguments, returns a new activation layer with bounds.
        merge_policy: `"1-lip-add"` or `"add"`, see `DP_MergeResidual`.

    Returns:
        list of layers.

    References:
        Tolstikhin et al.: MLP-Mixer: An all-MLP architecture for vision. NeurIPS 2021.
    """

    def mixing(size, units):
        return [DP_QuickSpectralDense(units or size), activation(), DP_QuickSpectralDense(size)]

    tokens = [DP_Permute((2, 1)), *mixing(num_tokens, token_units), DP_Permute((2, 1))]
    return [
        *make_residuals(merge_policy, tokens),
        *make_residuals(merge_policy, mixing(channels, channel_units)),
    ]
