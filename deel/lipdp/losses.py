"""Losses that know their Lipschitz constant with respect to the logits, for one example."""

import math
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks, _per_example
from deel.lipdp._types import Tensor

__all__ = [
    "DP_KCosineSimilarity",
    "DP_Loss",
    "DP_MeanAbsoluteError",
    "DP_MulticlassHKR",
    "DP_MulticlassHinge",
    "DP_MulticlassKR",
    "DP_TauBCE",
    "DP_TauCategoricalCrossentropy",
]

ClassFrequencies: TypeAlias = list[float] | tuple[float, ...] | np.ndarray | None

_ONE_HOT = ("one-hot labels", "Encode the labels with keras.utils.to_categorical.")


class DP_Loss(keras.losses.Loss):
    """A Keras loss that states `get_L()`: the largest Euclidean norm of one example's gradient at the model's output.

    The training step projects each example's gradient on the ball of that radius, so a label outside the loss's domain
    cannot exceed it; within the domain the projection changes nothing.
    """

    def get_L(self) -> float:
        """float, the Lipschitz constant in the model's output, for one example and a label in the domain."""
        raise NotImplementedError(
            _checks.message(
                type(self).__name__,
                "a method get_L()",
                "a loss without one",
                "Return the largest norm of one example's gradient at the model's output.",
            )
        )


def _check_labels(who, y_true, y_pred, kind, remedy):
    """Refuses labels of another shape than the outputs: broadcasting would couple outputs or examples."""
    labels, outputs = tuple(y_true.shape), tuple(y_pred.shape)
    known = [pair for pair in zip(labels, outputs, strict=False) if None not in pair]
    if len(labels) != len(outputs) or labels[-1] != outputs[-1] or any(a != b for a, b in known):
        expected = f"{kind} of the shape of the logits, {outputs}"
        raise ValueError(_checks.message(who, expected, f"labels of shape {labels}", remedy))


class _VectorLoss(DP_Loss):
    """A loss of outputs (batch, C), whose labels have that shape too, or (batch,) where C is 1."""

    num_outputs: int | None = None  # C, where a constant depends on it and the user states it
    _fewest_outputs = 1
    _labels = ("labels", "Give one label for each output.")

    def _matched(self, y_true, y_pred):
        """The labels in the shape of the outputs; raises for other shapes."""
        who, outputs = type(self).__name__, tuple(y_pred.shape)
        count = outputs[1] if len(outputs) == 2 else None
        if count is None or count < self._fewest_outputs or self.num_outputs not in (None, count):
            expected = f"outputs of shape (batch, {self.num_outputs or f'at least {self._fewest_outputs}'})"
            remedy = "End the model with a dense layer of that many units" + (
                ", or correct num_outputs." if self.num_outputs else "."
            )
            raise ValueError(_checks.message(who, expected, f"outputs of shape {outputs}", remedy))
        if count == 1 and len(y_true.shape) == 1:
            y_true = ops.expand_dims(y_true, -1)
        _check_labels(who, y_true, y_pred, *self._labels)
        return y_true


class _MeanOverOutputs(_VectorLoss):
    """A mean over the outputs: its constant depends on how many there are."""

    def __init__(self, num_outputs: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_outputs is not None:
            who = type(self).__name__
            num_outputs = _checks.integer(who, "num_outputs", num_outputs, at_least=self._fewest_outputs)
        self.num_outputs = num_outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_outputs": self.num_outputs}


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
        TypeError, ValueError: if `tau` is not a positive number; when called, for labels that are not one-hot, and for
            one output.
    """

    def __init__(
        self,
        tau: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "DP_TauCategoricalCrossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.tau = _checks.number("DP_TauCategoricalCrossentropy", "tau", tau, above=0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        who, outputs = "DP_TauCategoricalCrossentropy", tuple(y_pred.shape)
        if outputs[-1] == 1:  # one class is always certain: the loss is 0, and nothing is learned
            raise ValueError(
                _checks.message(
                    who,
                    "one logit for each of two or more classes",
                    f"logits of shape {outputs}",
                    "Use DP_TauBCE, for one output and labels 0 or 1.",
                )
            )
        _check_labels(who, y_true, y_pred, *_ONE_HOT)
        log_probabilities = ops.log_softmax(self.tau * y_pred, axis=-1)
        return -ops.sum(y_true * log_probabilities, axis=-1) / self.tau

    def get_L(self) -> float:
        return math.sqrt(2.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "tau": self.tau}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_TauBCE(_MeanOverOutputs):
    """Binary cross-entropy with temperature, `BCE(sigmoid(tau z), y) / tau`, averaged over the outputs.

    For one yes-or-no question (one output), or several that do not exclude each other.

    Args:
        tau: float > 0, temperature.
        num_outputs: int >= 1 or None, C. State it where there are several outputs: without it the constant, and the
            noise with it, is `sqrt(C)` times what is needed.
        reduction, name: as in `DP_TauCategoricalCrossentropy`.

    Call arguments:
        y_true: tensor (batch, C), in [0, 1]; or (batch,) with one output. What is outside is clipped, so {-1, 1} stands
            for {0, 1}.
        y_pred: tensor (batch, C), logits.

    Bounds: gradient of one example at its logits `(sigmoid(tau z) - y) / C`: C differences of numbers in [0, 1], norm
    at most `1 / sqrt(C)`, approached when every output is certain and wrong. `get_L()` is that, or its largest value 1
    without `num_outputs`. Holds for all labels.

    Raises:
        TypeError, ValueError: for arguments out of range; when called, for another number of outputs or other shapes.
    """

    def __init__(
        self,
        tau: float = 1.0,
        num_outputs: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "DP_TauBCE",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_outputs, reduction=reduction, name=name, **kwargs)
        self.tau = _checks.number("DP_TauBCE", "tau", tau, above=0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true = ops.clip(self._matched(y_true, y_pred), 0.0, 1.0)
        losses = ops.binary_crossentropy(y_true, self.tau * y_pred, from_logits=True)
        return ops.mean(losses, axis=-1) / self.tau

    def get_L(self) -> float:
        return 1.0 / math.sqrt(self.num_outputs or 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "tau": self.tau}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_MeanAbsoluteError(_MeanOverOutputs):
    """Absolute error `|z - y|`, averaged over the outputs: for regression.

    Args:
        num_outputs, reduction, name: as in `DP_TauBCE`.

    Call arguments:
        y_true: tensor (batch, C); or (batch,) with one output.
        y_pred: tensor (batch, C).

    Bounds: gradient of one example at its outputs `sign(z - y) / C`, 0 where they are equal: norm at most
    `1 / sqrt(C)`, attained wherever no entry is exact. `get_L()` is that, or its largest value 1 without `num_outputs`.
    Holds for all labels.

    Raises:
        TypeError, ValueError: for arguments out of range; when called, for another number of outputs or other shapes.
    """

    def __init__(
        self,
        num_outputs: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "DP_MeanAbsoluteError",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_outputs, reduction=reduction, name=name, **kwargs)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return ops.mean(ops.abs(y_pred - self._matched(y_true, y_pred)), axis=-1)

    def get_L(self) -> float:
        return 1.0 / math.sqrt(self.num_outputs or 1)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_KCosineSimilarity(_VectorLoss):
    """Minus the cosine of logits and label, `-<y, z / max(||z||, K)>`, where short logits are not stretched to norm 1.

    Args:
        K: float >= 1e-15. Logits longer than K are judged by their direction alone.
        reduction, name: as in `DP_TauCategoricalCrossentropy`.

    Call arguments:
        y_true: tensor (batch, C) of norm 1, such as one-hot labels; or (batch,) with one output. Longer labels are
            scaled to norm 1, shorter ones used as they are; a zero label gives 0.
        y_pred: tensor (batch, C), logits.

    Bounds: gradient of one example at its logits `-y / K` where `||z|| < K`, and elsewhere `-P y / ||z||` with P the
    projection orthogonal to z. As `||y|| <= 1` its norm is at most `1 / K`, attained inside the ball. Holds for all
    labels.

    Raises:
        TypeError, ValueError: for arguments out of range; when called, for labels of another shape than the logits.
    """

    def __init__(
        self,
        K: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "DP_KCosineSimilarity",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.K = _checks.number("DP_KCosineSimilarity", "K", K, at_least=1e-15)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true = _per_example.project_on_ball(self._matched(y_true, y_pred), 1.0)
        unit, norm, scale = _per_example.unit_scale(y_pred)
        shortened = ops.where(scale >= self.K / norm, unit / norm, y_pred / self.K)
        return -ops.sum(y_true * shortened, axis=-1)

    def get_L(self) -> float:
        return 1.0 / self.K

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "K": self.K}


def _hinge(y_true, y_pred, min_margin):
    """Hinge of each example; the positive class weighs as much as the others together."""
    positive = (y_pred.shape[-1] - 1) * ops.relu(min_margin / 2 - y_pred)
    negative = ops.relu(min_margin / 2 + y_pred)
    return ops.mean(y_true * positive + (1 - y_true) * negative, axis=-1)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_MulticlassHinge(_MeanOverOutputs):
    """Asks the logit of the class to exceed `min_margin / 2` and those of all others to stay below `-min_margin / 2`.

    For one-hot labels it is deel-lip's `MulticlassHinge`: the mean over C classes of `(C - 1) relu(m/2 - z)` for the
    positive one and of `relu(m/2 + z)` for the others, with `m = min_margin`. Labels between are weighed linearly.

    Args:
        min_margin: float > 0.
        num_outputs: int >= 2 or None, the number of classes C.
        reduction, name: as in `DP_TauCategoricalCrossentropy`.

    Call arguments:
        y_true: tensor (batch, C), one-hot or on the simplex.
        y_pred: tensor (batch, C), logits.

    Bounds: gradient of one example at its logits at most `(C - 1) / C` in the entry of its class and `1 / C` in the
    others, all at once at `z = 0`: norm `sqrt((C - 1)^2 + C - 1) / C = sqrt((C - 1) / C)`. It is affine in the label,
    so on the simplex it is a mean of such gradients. `get_L()` is that, or 1 without `num_outputs`. Labels with p ones
    reach `sqrt(p (C - 1)^2 + C - p) / C`; the training step projects their gradient.

    Raises:
        TypeError, ValueError: for arguments out of range; when called, for another number of outputs or other shapes.

    References:
        Serrurier et al.: Achieving robustness in classification using optimal transport with hinge regularization.
        CVPR 2021.
    """

    _fewest_outputs = 2
    _labels = _ONE_HOT

    def __init__(
        self,
        min_margin: float = 1.0,
        num_outputs: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "DP_MulticlassHinge",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_outputs, reduction=reduction, name=name, **kwargs)
        self.min_margin = _checks.number("DP_MulticlassHinge", "min_margin", min_margin, above=0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return _hinge(self._matched(y_true, y_pred), y_pred, self.min_margin)

    def get_L(self) -> float:
        return math.sqrt((self.num_outputs - 1) / self.num_outputs) if self.num_outputs else 1.0

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "min_margin": self.min_margin}


def _public_frequencies(who, class_frequencies, num_outputs):
    """Frequencies of the classes as a list of float; balanced ones where only the number of classes is stated."""
    received = f"class_frequencies={class_frequencies!r}, num_outputs={num_outputs!r}"
    remedy = (
        "Class counts of the batch make one example's gradient depend on all others and have no bound: state the "
        "frequencies if they are public, or num_outputs for balanced classes."
    )
    if class_frequencies is None and num_outputs is not None:
        count = _checks.integer(who, "num_outputs", num_outputs, at_least=2)
        return [1.0 / count] * count
    if not isinstance(class_frequencies, (list, tuple, np.ndarray)):
        raise ValueError(_checks.message(who, "class_frequencies to be a list of float", received, remedy))
    values = [_checks.number(who, "class_frequencies", f, above=0.0, below=1.0) for f in class_frequencies]
    # The constant holds whatever the sum; 0.05 lets rounded frequencies pass and stops wrong ones.
    if abs(sum(values) - 1.0) > 0.05 or num_outputs not in (None, len(values)):
        expected = "class_frequencies that sum to 1, one for each of num_outputs classes"
        raise ValueError(_checks.message(who, expected, received, "Divide them by their sum."))
    return values


def _worst_label(positive, negative):
    """1 / C times the largest norm, over the classes y, of the vector of `positive[y]` and of `negative[c]`, c != y."""
    total = sum(n * n for n in negative)
    return math.sqrt(max(total - n * n + p * p for p, n in zip(positive, negative, strict=True))) / len(positive)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_MulticlassKR(_MeanOverOutputs):
    """Minus the mean gap between a logit on its own class and on the others (Kantorovich-Rubinstein).

    With `pi_c` the frequency of class c, the mean over c of `-z_c / pi_c` where c is the class of the example and of
    `z_c / (1 - pi_c)` elsewhere. Minimising it separates the classes as far as a 1-Lipschitz network can; it is
    deel-lip's `MulticlassKR`, a gap to maximise, with the sign of a loss. There the frequencies are those of the batch,
    which mixes examples and has no bound; here they are constants.

    Args:
        class_frequencies: list of float in (0, 1) that sum to 1, **public**: never counted on the private data. None:
            balanced classes.
        num_outputs: int >= 2, the number of classes C; not needed beside `class_frequencies`.
        reduction, name: as in `DP_TauCategoricalCrossentropy`.

    Call arguments:
        y_true: tensor (batch, C), one-hot or on the simplex.
        y_pred: tensor (batch, C), logits.

    Bounds: gradient of one example of class y at its logits `-1 / (C pi_y)` in entry y and `1 / (C (1 - pi_c))` in the
    others, whatever the logits: `get_L()` is the norm of that vector for the worst y, `sqrt(C / (C - 1))` for balanced
    classes, about `1 / (C pi)` for one rare class. It is affine in the label, so on the simplex it is a mean of such
    vectors. Multi-hot labels exceed it; the training step projects their gradient.

    Raises:
        TypeError, ValueError: for arguments out of range, and without any; when called, for another number of outputs
            or other shapes.

    References:
        Serrurier et al.: Achieving robustness in classification using optimal transport with hinge regularization.
        CVPR 2021.
    """

    _fewest_outputs = 2
    _labels = _ONE_HOT

    def __init__(
        self,
        class_frequencies: ClassFrequencies = None,
        num_outputs: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "DP_MulticlassKR",
        **kwargs: Any,
    ) -> None:
        frequencies = _public_frequencies(type(self).__name__, class_frequencies, num_outputs)
        super().__init__(len(frequencies), reduction=reduction, name=name, **kwargs)
        self.class_frequencies = frequencies

    def _slopes(self):
        """What a logit counts on its own class, and on another: two lists, one entry for each class."""
        return [1.0 / f for f in self.class_frequencies], [1.0 / (1.0 - f) for f in self.class_frequencies]

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true = self._matched(y_true, y_pred)
        positive, negative = (ops.convert_to_tensor(slopes, y_pred.dtype) for slopes in self._slopes())
        return ops.mean(((1 - y_true) * negative - y_true * positive) * y_pred, axis=-1)

    def get_L(self) -> float:
        return _worst_label(*self._slopes())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "class_frequencies": self.class_frequencies}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_MulticlassHKR(DP_MulticlassKR):
    """`DP_MulticlassKR` plus `alpha` times `DP_MulticlassHinge`: separates the classes, and asks for a margin.

    Args:
        alpha: float >= 0. Large values approach the hinge alone.
        min_margin: float > 0, as in `DP_MulticlassHinge`.
        class_frequencies, num_outputs, reduction, name: as in `DP_MulticlassKR`.

    Call arguments:
        y_true: tensor (batch, C), one-hot or on the simplex.
        y_pred: tensor (batch, C), logits.

    Bounds: in every entry the gradients of the two losses have the same sign, so at `z = 0`, where all hinges are
    active, their slopes add up: `get_L()` is the norm, for the worst class y, of `1 / pi_y + alpha (C - 1)` in entry y
    and `1 / (1 - pi_c) + alpha` in the others, divided by C. At most the sum `L_KR + alpha L_hinge`, and equal to it
    for balanced classes. Labels as in `DP_MulticlassKR`.

    Raises:
        TypeError, ValueError: as in `DP_MulticlassKR`.

    References:
        Serrurier et al.: Achieving robustness in classification using optimal transport with hinge regularization.
        CVPR 2021.
    """

    def __init__(
        self,
        alpha: float = 10.0,
        min_margin: float = 1.0,
        class_frequencies: ClassFrequencies = None,
        num_outputs: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "DP_MulticlassHKR",
        **kwargs: Any,
    ) -> None:
        super().__init__(class_frequencies, num_outputs, reduction=reduction, name=name, **kwargs)
        self.alpha = _checks.number(
            "DP_MulticlassHKR", "alpha", alpha, at_least=0.0, remedy="For the hinge alone use DP_MulticlassHinge."
        )
        self.min_margin = _checks.number("DP_MulticlassHKR", "min_margin", min_margin, above=0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return super().call(y_true, y_pred) + self.alpha * _hinge(y_true, y_pred, self.min_margin)

    def get_L(self) -> float:
        positive, negative = self._slopes()
        others = len(positive) - 1
        return _worst_label([p + self.alpha * others for p in positive], [n + self.alpha for n in negative])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "min_margin": self.min_margin}


#: Losses that take each row of a batch by itself. Their subclasses need not.
ROW_WISE_LOSSES = frozenset(
    {
        DP_KCosineSimilarity,
        DP_MeanAbsoluteError,
        DP_MulticlassHKR,
        DP_MulticlassHinge,
        DP_MulticlassKR,
        DP_TauBCE,
        DP_TauCategoricalCrossentropy,
    }
)
