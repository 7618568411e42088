"""Certified robustness: classifications that no small change of the input can alter.

A network of 1-Lipschitz layers moves its logits by no more than its input is moved (Tsuzuku et al., "Lipschitz-margin
training", 2018). Where a layer is steeper on small inputs than on large ones, as those that scale to a norm are, what
counts is how steep it is near the example.
"""

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks
from deel.lipdp.layers import DP_ClipGradient

__all__ = ["CertifiedAccuracy", "certified_accuracy"]

# Rounding of the logits in single precision, relative to the largest: more than was ever seen, not proved.
_ROUNDING = 1e-5


@keras.saving.register_keras_serializable(package="deel-lipdp")
class CertifiedAccuracy(keras.metrics.Metric):
    """Share of examples that are classified right, whatever is added to the input within a radius; from logits alone.

    Bounds: the difference of two logits moves by at most `sqrt(2) lipschitz_constant radius`, Euclidean norms, so an
    example counts if the true logit leads every other by more. `certified_accuracy` knows the model and certifies more.

    Args:
        radius: float >= 0, Euclidean norm of the perturbation of one input, in the units of the model's input.
        lipschitz_constant: float > 0, of the model from input to logits: 1 if all its layers are 1-Lipschitz.
        name, dtype: as in Keras.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """

    def __init__(self, radius, lipschitz_constant=1.0, name="certified_accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        who = type(self).__name__
        self.radius = _checks.number(who, "radius", radius, at_least=0.0)
        self.lipschitz_constant = _checks.number(who, "lipschitz_constant", lipschitz_constant, above=0.0)
        self._mean = keras.metrics.Mean(dtype=self.dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = ops.cast(y_true, self.dtype), ops.cast(y_pred, self.dtype)
        true = ops.sum(y_true * y_pred, axis=-1)
        lead = true - ops.max(ops.where(y_true > 0.5, -np.inf, y_pred), axis=-1)
        certain = lead > 2**0.5 * self.lipschitz_constant * self.radius
        self._mean.update_state(ops.cast(certain, self.dtype), sample_weight)

    def result(self):
        return self._mean.result()

    def reset_state(self):
        self._mean.reset_state()

    def get_config(self):
        return {**super().get_config(), "radius": self.radius, "lipschitz_constant": self.lipschitz_constant}


def certified_accuracy(model, x, y, radii, batch_size=256):
    """Share of examples that the model classifies right whatever is added to them, for each radius of the perturbation.

    Bounds: Euclidean norm, one example. Each layer says how far its output moves at most when its input moves by so
    much, near this example (`DPLayer.perturbation_bound`). Behind a dense last layer the difference of two logits moves
    by the norm of the difference of their columns times that; else by `sqrt(2)` times what the logits move. Rounding of
    the network is allowed for by 1e-5 of the largest logit, more than was seen, and not proved.

    Args:
        model: a built `DP_Sequential` or `DP_Model` with one logit for each class.
        x, y: arrays (n, ...) and (n, classes), inputs and one-hot labels, read in the clear: for private data the
            result is not covered by epsilon.
        radii: sequence of float >= 0, Euclidean norms in the units of `x`.
        batch_size: int.

    Returns:
        array of float, one share for each radius. At radius 0 it is the accuracy, but for ties.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """
    who = "certified_accuracy"
    radii = [_checks.number(who, "radii", radius, at_least=0.0) for radius in radii]
    y = np.asarray(y)
    if y.ndim != 2 or len(y) != len(x) or not len(y):
        received = f"shapes {np.shape(x)} and {y.shape}"
        raise ValueError(_checks.message(who, "one row of one-hot labels for each of at least one input", received, ""))
    certain = np.zeros(len(radii))
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        certain += _certain(model, x[rows], y[rows] > 0.5, radii)
    return certain / len(x)


def _certain(model, x, y, radii):
    """Number of examples of one batch that are certified, for each radius."""
    calls = list(model.layer_calls())
    while isinstance(calls[-1].layer, DP_ClipGradient):  # the identity
        calls.pop()
    values = {}
    for call in calls:
        inputs = [values.get(name, x) for name in call.inputs]
        outputs = call.layer(_single(inputs), training=False)
        values.update(zip(call.outputs, _several(outputs), strict=True))
    [end] = calls[-1].outputs
    logits = np.asarray(values[end], "float64")
    lead = logits[y][:, None] - np.where(y, -np.inf, logits) - _ROUNDING * np.abs(logits).max(axis=1, keepdims=True)
    counts = []
    for radius in radii:
        moved = {}
        for call in calls:
            inputs = [values.get(name, x) for name in call.inputs]
            before = [moved.get(name, np.full(len(x), radius)) for name in call.inputs]
            after = call.layer.perturbation_bound(_single(inputs), _single(before))
            moved.update(zip(call.outputs, _several(after), strict=True))
        last = calls[-1].layer
        if isinstance(last, keras.layers.Dense) and last.activation is keras.activations.linear:
            kernel = np.asarray(last.kernel, "float64")
            apart = np.linalg.norm(kernel[:, :, None] - kernel[:, None, :], axis=0)
            pairs = before[0][:, None] * apart[np.argmax(y, axis=1)]
        else:
            pairs = 2**0.5 * moved[end][:, None]
        counts.append(np.sum(np.all(lead > pairs, axis=1)))
    return np.array(counts)


def _single(values):
    return values[0] if len(values) == 1 else tuple(values)


def _several(value):
    return value if isinstance(value, (tuple, list)) else (value,)
