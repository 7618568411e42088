"""Dropout, with masks that nobody knows."""

import os
import types
from typing import Any

import keras
import numpy as np

from deel.lipdp import _checks
from deel.lipdp._types import Bound, Shape, Tensor
from deel.lipdp.layers._base import DPLayer

__all__ = ["DP_Dropout"]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Dropout(DPLayer, keras.layers.Layer):
    """Inverted dropout: in training each entry is 0 with probability `rate`, else divided by `1 - rate`.

    It costs noise: the bounds grow by `1 / (1 - rate)` while the norm of a typical signal does not.

    **Masks and privacy.** Adding one example to a batch moves those behind it to other rows, hence to other masks, so
    the sum of gradients may change in all of them, not in one. The bounds are enough all the same, since the masks of
    different rows are independent of each other and of the data: attach them to examples in place of rows, and every
    output has the same distribution. For each fixed assignment of masks to examples, two neighbouring data sets differ
    by one bounded gradient; a mixture of such pairs over masks that both sides draw alike has no larger delta at any
    epsilon (joint convexity of the hockey-stick divergence). This fails where masks are known, so they come from the
    operating system's randomness, renewed in every process, and there is no `seed` argument: `set_random_seed` has no
    influence, and the generator's state is in no config, checkpoint or list of variables. The state has 64 bits, of
    which TensorFlow uses 62, so the argument is computational, as for the noise.

    Args:
        rate: float in [0, 1), the share of entries to drop.
        noise_shape, seed: None. Anything else is refused: masks shared by examples, and known ones, break the argument.
        **kwargs: `name`, `dtype`.

    Input shape: any.
    Output shape: the same.

    Bounds: Euclidean norm, one example, whatever the mask; `1 / (1 - rate)` times `input_bound` and `gradient_bound`.
    The map is diagonal with entries 0 and `1 / (1 - rate)`. Without training it is the identity.

    Raises:
        TypeError, ValueError: for a rate out of range, a seed or a noise shape.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov: Dropout. JMLR 2014.
    """

    def __init__(self, rate: float, noise_shape: None = None, seed: None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        who = f"DP_Dropout '{self.name}'"
        self.rate = _checks.number(who, "rate", rate, at_least=0.0, below=1.0)
        for name, value, remedy in (
            ("noise_shape", noise_shape, "Masks shared by several examples have no bound for one: leave it unset."),
            ("seed", seed, "Epsilon holds only if nobody knows the masks: leave it unset."),
        ):
            if value is not None:
                raise ValueError(_checks.message(who, f"no {name}", f"{name}={value!r}", remedy))
        # In a namespace, where Keras does not look for variables to list and to save.
        self._secret = types.SimpleNamespace(generator=keras.random.SeedGenerator(seed=0))
        state = self._secret.generator.state
        state.assign(np.frombuffer(os.urandom(8), "uint32").astype(state.dtype))

    @property
    def mask_state(self) -> keras.Variable:
        """The variable that the next masks come from. Secret: for audits, which need the same masks twice."""
        return self._secret.generator.state

    def call(self, inputs: Tensor, training: bool | None = False) -> Tensor:
        if not training:
            return inputs
        return keras.random.dropout(inputs, self.rate, seed=self._secret.generator)

    def propagate_inputs(self, input_bound: float) -> float:
        return 1.0 / (1.0 - self.rate) * input_bound

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return 1.0 / (1.0 - self.rate) * gradient_bound

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}
