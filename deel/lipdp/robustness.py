"""Certified robustness: classifications that no small change of the input can alter.

A network of 1-Lipschitz layers moves its logits by no more than its input is moved (Tsuzuku et al., "Lipschitz-margin
training", 2018). Where a layer is steeper on small inputs than on large ones, as those that scale to a norm are, what
counts is how steep it is near the example.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from deel.lipdp import _checks
from deel.lipdp._types import Tensor
from deel.lipdp.bounds import check_model, several, single
from deel.lipdp.layers import DP_ClipGradient

__all__ = ["CertifiedAccuracy", "certified_accuracy"]

# Rounding is taken for a perturbation of this size, relative to the norm of what goes into and comes out of each layer:
# eight units of single precision. The absolute one is for numbers so small that they lose their digits. Not proved.
_ROUNDING, _UNDERFLOW = 1e-6, 1e-12


@keras.saving.register_keras_serializable(package="deel-lipdp")
class CertifiedAccuracy(keras.metrics.Metric):
    """Share of examples that are classified right, whatever is added to the input within a radius; from logits alone.

    Bounds: the difference of two logits moves by at most `sqrt(2) lipschitz_constant radius`, Euclidean norms, so an
    example counts if the true logit leads every other by more, in exact arithmetic: leads that are as small as the
    rounding of the network mean nothing. `certified_accuracy` knows the model, allows for rounding and certifies more.

    Args:
        radius: float >= 0, Euclidean norm of the perturbation of one input, in the units of the model's input.
        lipschitz_constant: float > 0, of the model from input to logits: 1 for a chain of 1-Lipschitz layers.
        name, dtype: as in Keras.

    Labels are one-hot, one for each of at least two logits; an example with another number of labels counts as wrong.

    Raises:
        TypeError, ValueError: for arguments out of range, and for labels or logits of another shape.
    """

    def __init__(
        self,
        radius: float,
        lipschitz_constant: float = 1.0,
        name: str = "certified_accuracy",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        who = type(self).__name__
        self.radius = _checks.number(who, "radius", radius, at_least=0.0)
        self.lipschitz_constant = _checks.number(who, "lipschitz_constant", lipschitz_constant, above=0.0)
        self._mean = keras.metrics.Mean(dtype=self.dtype)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        y_true, y_pred = ops.cast(y_true, self.dtype) > 0.5, ops.cast(y_pred, self.dtype)
        _check_classes(f"{type(self).__name__} '{self.name}'", y_true.shape[1:], y_pred.shape[1:])
        own = ops.sum(ops.where(y_true, y_pred, 0.0), axis=-1)
        lead = own - ops.max(ops.where(y_true, -np.inf, y_pred), axis=-1)
        one_label = ops.sum(ops.cast(y_true, "int32"), axis=-1) == 1
        certain = one_label & ops.isfinite(lead) & (lead > 2**0.5 * self.lipschitz_constant * self.radius)
        self._mean.update_state(ops.cast(certain, self.dtype), sample_weight)

    def result(self) -> Tensor:
        return self._mean.result()

    def reset_state(self) -> None:
        self._mean.reset_state()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "radius": self.radius, "lipschitz_constant": self.lipschitz_constant}


def certified_accuracy(
    model: keras.Model, x: np.ndarray, y: ArrayLike, radii: Iterable[float], batch_size: int = 256
) -> np.ndarray:
    """Share of examples that the model classifies right whatever is added to them, for each radius of the perturbation.

    Bounds: Euclidean norm, one example. Each layer says how far its output moves at most when its input moves by so
    much, near this example (`DPLayer.perturbation_bound`). Behind a dense last layer the difference of two logits moves
    by the norm of the difference of their columns times that; else by `sqrt(2)` times what the logits move. Rounding in
    single precision is taken for a perturbation of what goes into and comes out of each layer, by 1e-6 of its norm and
    1e-12; that is an allowance, not a proof.

    Args:
        model: a built `DP_Sequential` or `DP_Model` with one logit for each class.
        x, y: arrays (n, ...) and (n, classes), inputs and one-hot labels, read in the clear: for private data the
            result is not covered by epsilon.
        radii: sequence of float >= 0, Euclidean norms in the units of `x`.
        batch_size: int.

    Returns:
        array of float, one share for each radius. At radius 0 it is the accuracy, but for leads within rounding.

    Raises:
        TypeError: for a layer without bounds.
        ValueError: for arguments out of range, inputs of another shape than the model was built for, labels that are
            not one-hot, and a model that `check_model` refuses or
            whose weights were moved out of their sets (`restore_constraints` brings them back).
    """
    who = "certified_accuracy"
    radii = [_checks.number(who, "radii", radius, at_least=0.0) for radius in radii]
    y = np.asarray(y) > 0.5
    if y.ndim != 2 or len(y) != len(x) or not len(y) or (y.sum(axis=1) != 1).any():
        received = f"shapes {np.shape(x)} and {y.shape}, or rows with another number of labels than one"
        raise ValueError(_checks.message(who, "one row of one-hot labels for each of at least one input", received, ""))
    check_model(model)
    # Kernels are certified for the size they were built for; many layers would take another.
    built_for = tuple(model.inputs[0].shape[1:])
    if len(np.shape(x)) != 1 + len(built_for) or any(
        side not in (None, given) for side, given in zip(built_for, np.shape(x)[1:], strict=True)
    ):
        raise ValueError(_checks.message(who, f"inputs of shape {(None, *built_for)}", f"shape {np.shape(x)}", ""))
    for layer in model.layers_forward_order():
        if hasattr(layer, "certified_norm") and not layer.certified_norm() <= 1.0:
            received = f"{float(layer.certified_norm()):g} for {type(layer).__name__} '{layer.name}'"
            remedy = "Its kernel was assigned by hand: call restore_constraints() of the layer."
            raise ValueError(_checks.message(who, "kernels of certified norm at most 1", received, remedy))
    certain = np.zeros(len(radii))
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        certain += _certain(model, x[rows], y[rows], radii)
    return certain / len(x)


def _check_classes(who, labels, logits):
    if labels != logits or len(logits) != 1 or logits[0] is None or logits[0] < 2:
        expected = "one-hot labels for each of at least two logits"
        raise ValueError(_checks.message(who, expected, f"labels of shape {labels} for logits of shape {logits}", ""))


def _certain(model, x, true, radii):
    """Number of examples of one batch that are certified, for each radius."""
    calls = list(model.layer_calls())
    while isinstance(calls[-1].layer, DP_ClipGradient):  # the identity
        calls.pop()
    last = calls[-1]
    values = {}
    for call in calls:
        outputs = call.layer(single([values.get(name, x) for name in call.inputs]), training=False)
        values.update(zip(call.outputs, several(outputs), strict=True))
    logits = np.asarray(values[last.outputs[0]], "float64")
    _check_classes("certified_accuracy", true.shape[1:], logits.shape[1:])
    lead = logits[true][:, None] - np.where(true, -np.inf, logits)
    rounding = {name: _rounding(value) for name, value in values.items()}
    counts = []
    for radius in radii:
        moved = {}
        for call in calls:
            inputs = [values.get(name, x) for name in call.inputs]
            before = [moved.get(name, radius) + rounding.get(name, _rounding(x)) for name in call.inputs]
            after = several(call.layer.perturbation_bound(single(inputs), single(before)))
            moved.update((name, far + rounding[name]) for name, far in zip(call.outputs, after, strict=True))
        # Keras's own call: a subclass may do anything with its kernel.
        if type(last.layer).call is keras.layers.Dense.call and last.layer.activation is keras.activations.linear:
            kernel = np.asarray(last.layer.kernel, "float64")
            apart = np.linalg.norm(kernel[:, :, None] - kernel[:, None, :], axis=0)[np.argmax(true, axis=1)]
            pairs = before[0][:, None] * apart + 2**0.5 * rounding[last.outputs[0]][:, None]
        else:
            pairs = 2**0.5 * moved[last.outputs[0]][:, None]
        counts.append(np.sum(np.all(lead > pairs, axis=1)))
    return np.array(counts)


def _rounding(value):
    """What rounding may move each example by, (examples,)."""
    rows = np.asarray(value, "float64").reshape(len(value), -1)
    return _ROUNDING * np.linalg.norm(rows, axis=1) + _UNDERFLOW
