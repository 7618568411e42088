"""What is done with gradients after the noise, free of any cost in privacy."""

import keras

from deel.lipdp import _checks

__all__ = ["LayerwiseSGD"]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class LayerwiseSGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` with a factor on the learning rate of some layers.

    A convolution has few weights and a large gradient bound: at the rate of the last layer, its noise would wipe out
    what it starts from. Give such a layer `nm_coef=1 / factor` too: the strategy `"optimal"` then leaves the budget to
    the layers that move.

    Args:
        learning_rate: as in Keras.
        factors: dict, name of a layer -> float > 0. Layers that it does not name have factor 1.
        **kwargs: other arguments of `keras.optimizers.SGD`.

    Raises:
        TypeError, ValueError: for a factor that is no positive number; when built, if no variable belongs to a layer
            that `factors` names.
    """

    def __init__(self, learning_rate=0.01, *, factors, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.factors = {
            name: _checks.number("LayerwiseSGD", f"factors[{name!r}]", factor, above=0.0)
            for name, factor in factors.items()
        }

    def build(self, variables):
        super().build(variables)
        layers = [_layer_name(variable) for variable in variables]
        unknown = sorted(set(self.factors) - set(layers))
        if unknown:
            raise ValueError(
                _checks.message(
                    "LayerwiseSGD",
                    f"factors of layers with variables {sorted(set(layers))}",
                    f"{unknown}",
                    "Name the layers when you make them.",
                )
            )

    def apply(self, grads, trainable_variables=None):
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        factors = [self.factors.get(_layer_name(variable), 1.0) for variable in variables]
        super().apply([g * factor for g, factor in zip(grads, factors, strict=True)], trainable_variables)

    def get_config(self):
        return {**super().get_config(), "factors": self.factors}


def _layer_name(variable):
    return variable.path.split("/")[-2]
