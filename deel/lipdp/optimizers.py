"""What is done with gradients after the noise, free of any cost in privacy."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from deel.lipdp import _checks
from deel.lipdp._types import Tensor

__all__ = ["LayerwiseSGD"]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class LayerwiseSGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` with a factor on the learning rate of some layers.

    A convolution has few weights and a large gradient bound: at the rate of the last layer, its noise would wipe out
    what it starts from. Give such a layer `nm_coef=1 / factor` too: the strategy `"optimal"` then leaves the budget to
    the layers that move.

    Args:
        learning_rate: as in Keras.
        factors: dict, name of a layer -> float > 0. Layers that it does not name have factor 1; those that share a name
            share the factor.
        **kwargs: other arguments of `keras.optimizers.SGD`. Weight decay knows nothing of factors.

    Raises:
        TypeError, ValueError: for factors that are no dict, and one that is no positive number; when built, if no
            variable belongs to a layer that `factors` names.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], float] = 0.01,
        *,
        factors: dict[str, float],
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        if not isinstance(factors, dict):
            received = f"factors={factors!r}"
            raise TypeError(_checks.message("LayerwiseSGD", "a dict of factors by layer", received, "Pass a dict."))
        self.factors = {
            name: _checks.number("LayerwiseSGD", f"factors[{name!r}]", factor, above=0.0)
            for name, factor in factors.items()
        }

    def build(self, variables: Sequence[keras.Variable]) -> None:
        names = [_layer_name(variable) for variable in variables]
        unknown = sorted(set(self.factors) - set(names))
        if unknown:
            raise ValueError(
                _checks.message(
                    "LayerwiseSGD",
                    f"factors of layers with variables {sorted(set(names))}",
                    f"{unknown}",
                    "Name the layers when you make them.",
                )
            )
        super().build(variables)
        self._factors = [self.factors.get(name, 1.0) for name in names]

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        factor = self._factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, factor * learning_rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factors": dict(self.factors)}


def _layer_name(variable):
    return "/".join(variable.path.split("/")[:-1]).rsplit("/", 1)[-1]
