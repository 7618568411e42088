"""Losses that know their Lipschitz constant with respect to the logits, for one example."""

import math

import keras
from keras import ops

from deel.lipdp import _checks

__all__ = ["DP_Loss", "DP_TauCategoricalCrossentropy"]


class DP_Loss(keras.losses.Loss):
    """A Keras loss that states `get_L()`: the largest Euclidean norm of one example's gradient at the model's output.

    The training step projects each example's gradient on the ball of that radius, so a label outside the loss's domain
    cannot exceed it; within the domain the projection changes nothing.
    """

    def get_L(self):
        """float, the Lipschitz constant in the model's output, for one example and a label in the domain."""
        raise NotImplementedError(
            _checks.message(
                type(self).__name__,
                "a method get_L()",
                "a loss without one",
                "Return the largest norm of one example's gradient at the model's output.",
            )
        )


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_TauCategoricalCrossentropy(DP_Loss):
    """Categorical cross-entropy with temperature: `CE(softmax(tau z), y) / tau`.

    A 1-Lipschitz network has small logits; the temperature decides how much margin the loss asks for. Large values
    behave like a hinge at 0, small ones keep pushing correct examples.

    Args:
        tau: float > 0, temperature.
        reduction: as in `keras.losses.Loss`; it concerns `evaluate` and the reported loss, not the private gradient.
        name: str.

    Call arguments:
        y_true: tensor (batch, classes), one-hot or on the simplex.
        y_pred: tensor (batch, classes), logits.

    Bounds: gradient of one example at its logits `softmax(tau z) - y`, a difference of two points of the simplex: norm
    at most `sqrt(2)`, approached when the wrong class is certain.

    Raises:
        TypeError, ValueError: if `tau` is not a positive number; when called, for labels that are not one-hot.
    """

    def __init__(
        self,
        tau=1.0,
        reduction="sum_over_batch_size",
        name="DP_TauCategoricalCrossentropy",
        **kwargs,
    ):
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.tau = _checks.number("DP_TauCategoricalCrossentropy", "tau", tau, above=0.0)

    def call(self, y_true, y_pred):
        if len(y_true.shape) != len(y_pred.shape) or y_true.shape[-1] != y_pred.shape[-1]:
            raise ValueError(
                _checks.message(
                    "DP_TauCategoricalCrossentropy",
                    f"one-hot labels of the shape of the logits, {tuple(y_pred.shape)}",
                    f"labels of shape {tuple(y_true.shape)}",
                    "Encode the labels with keras.utils.to_categorical.",
                )
            )
        log_probabilities = ops.log_softmax(self.tau * y_pred, axis=-1)
        return -ops.sum(y_true * log_probabilities, axis=-1) / self.tau

    def get_L(self):
        return math.sqrt(2.0)

    def get_config(self):
        return {**super().get_config(), "tau": self.tau}
