"""Activations that keep norms: sorting within groups of channels, and the absolute value."""

import keras
from keras import ops

from deel.lipdp import _checks
from deel.lipdp.layers._base import NonExpansive

__all__ = ["DP_Abs", "DP_GroupSort"]


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

    def __init__(self, n=2, **kwargs):
        super().__init__(**kwargs)
        self.n = _checks.integer(f"DP_GroupSort '{self.name}'", "n", n, at_least=2)

    def build(self, input_shape):
        if input_shape[-1] is None or input_shape[-1] % self.n:
            raise ValueError(
                _checks.message(
                    f"DP_GroupSort '{self.name}'",
                    f"a number of channels that is a multiple of n={self.n}",
                    f"input shape {tuple(input_shape)}",
                    "Change n or the number of channels of the layer before.",
                )
            )

    def call(self, inputs):
        if self.n == 2:
            first, second = ops.split(inputs, 2, axis=-1)  # slicing is far slower, there and back
            # At a tie the derivative of relu is 0 and the pair is passed on crossed over: a permutation.
            excess = ops.relu(first - second)
            return ops.concatenate([second + excess, first - excess], axis=-1)
        shape = ops.shape(inputs)
        grouped = ops.reshape(inputs, (*shape[:-1], self.n, shape[-1] // self.n))
        return ops.reshape(-ops.sort(-grouped, axis=-2), shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "n": self.n}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Abs(NonExpansive, keras.layers.Layer):
    """Absolute value of each entry: keeps the norm of activations and of gradients, at the price of a ReLU.

    Input shape: any.
    Output shape: the same.

    Bounds: output norm equals the input norm; the Jacobian is a diagonal of signs (0 at 0).
    """

    def call(self, inputs):
        return ops.abs(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape
