"""Adaptive clipping: callbacks that move the clip value of a `DP_ClipGradient` layer, and pay for what they look at.

A clip value lowers the noise in proportion, so it should be as small as the gradients are, which change while training
goes on. Each update draws a Poisson batch of its own, releases one noisy number about it, and is counted in the ledger
before it is made: the first one too. A budget without room for an update keeps the value as it is.
"""

import abc
import logging
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deel.lipdp import _checks, _per_example, _reporting
from deel.lipdp._training.tensorflow import per_example_losses
from deel.lipdp._types import LogFn
from deel.lipdp.accounting import GaussianStep, LaplaceStep, PoissonSampling
from deel.lipdp.accounting._types import Event
from deel.lipdp.layers import DP_ClipGradient
from deel.lipdp.sampling import sampling_of

__all__ = ["AdaptiveQuantileClipping", "LaplaceAdaptiveLossGradientClipping"]

_logger = logging.getLogger(__name__)


class _AdaptiveClipping(keras.callbacks.Callback, abc.ABC):
    """Moves a clip value at the beginning of every `patience`-th epoch, the first included."""

    def __init__(self, ds_train: tf.data.Dataset, patience: int, layer_name: str | None, log_fn: LogFn) -> None:
        super().__init__()
        who = type(self).__name__
        sampler = sampling_of(ds_train)
        if sampler is None or not isinstance(sampler.sampling, PoissonSampling):
            raise ValueError(
                _checks.message(
                    who,
                    "ds_train to be a data set of poisson_batches",
                    f"{type(ds_train).__name__}",
                    "The updates look at Poisson batches of the training set, or they could not be priced.",
                )
            )
        self._sampler, self._sampling = sampler, sampler.sampling
        self.patience = _checks.integer(who, "patience", patience)
        self.layer_name = layer_name
        self._log = _reporting.resolve_log_fn(log_fn)

    @property
    @abc.abstractmethod
    def event(self) -> Event:
        """The event of one update."""

    @abc.abstractmethod
    def _next_clip(self, clip_value, norms):
        """Returns the new clip value; the only place that looks at `norms`, one entry for each example."""

    def planned_releases(self, epochs: int) -> list[tuple[Event, int]]:
        """What this callback releases in so many epochs of one `fit`.

        Args:
            epochs: int >= 0.

        Returns:
            list of `(event, count)`, for `get_max_epochs`, `get_eps_delta` and `calibrate_noise`.
        """
        return [(self.event, math.ceil(epochs / self.patience))]

    @property
    def seeded(self) -> bool:
        """bool, whether the batches it looks at come from a seed that is not secret, which voids epsilon."""
        return self._sampler.seeded

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._layer = self._clip_layer()
        self._first_epoch: int | None = None
        if self.seeded:  # before a budget is asked: none has room for what cannot be priced
            self.model.ledger.seeded = True

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._first_epoch is None:
            self._first_epoch = epoch
        if (epoch - self._first_epoch) % self.patience:
            return
        if not self.model.release(self.event):
            _logger.info("%s: the budget has no room for another update of the clip value.", type(self).__name__)
            return
        before = self._layer.clip_value
        self._layer.clip_value = float(np.clip(self._next_clip(before, self._norms()), *self._layer.clip_limits))
        self._log({"clip_value": self._layer.clip_value, "epoch": epoch})

    def _clip_layer(self):
        who = type(self).__name__
        candidates = [
            call.layer  # once for each use: in a layer that is used twice, two gradients of one example arrive
            for call in self.model.layer_calls()
            if isinstance(call.layer, DP_ClipGradient)
            and call.layer.dynamic
            and self.layer_name in (None, call.layer.name)
        ]
        if len(candidates) != 1:
            raise ValueError(
                _checks.message(
                    who,
                    "one DP_ClipGradient layer with dynamic=True in the model",
                    f"{len(candidates)} of them" + (f" named '{self.layer_name}'" if self.layer_name else ""),
                    "Add DP_ClipGradient(value, dynamic=True), or pass layer_name.",
                )
            )
        if self._sampler.num_examples != self.model.dataset_metadata.nb_samples_train:
            raise ValueError(
                _checks.message(
                    who,
                    f"a sampler of {self.model.dataset_metadata.nb_samples_train} examples, as the metadata say",
                    f"{self._sampler.num_examples}",
                    "Pass the training data set of the model.",
                )
            )
        return candidates[0]

    def _norms(self):
        """Norms of the gradients that arrive at the layer, before it clips them: one for each example of a batch."""
        model = self.model
        x, y = self._sampler.draw_batch()
        if not len(x):
            return np.zeros(0)
        probe = keras.Model(model.inputs, [self._layer.output, model.outputs[0]])
        x = tf.cast(x, model.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)  # else nothing is recorded where no layer before the clip is trained
            arriving, y_pred = probe(x, training=True)
            losses = per_example_losses(model.loss_function, y, y_pred)
        cotangents = tape.gradient(losses, arriving, unconnected_gradients="zero")
        rows = tf.reshape(_per_example.finite_or_zero(cotangents), [len(x), -1])
        return tf.norm(rows, axis=1).numpy().astype("float64")

    def _noisy(self, values, stddev):
        """float64 values plus Gaussian noise of the model's source, which adds secure noise in integers."""
        values, stddev = tf.constant(values, "float64"), tf.constant(stddev, "float64")
        return self.model.add_noise([values], [stddev])[0].numpy()


class AdaptiveQuantileClipping(_AdaptiveClipping):
    """Moves the clip value towards a quantile of the gradient norms (Andrew et al., 2021, algorithm 1).

    An update releases the number of examples of a batch whose norm is at most the clip value, each counted as plus or
    minus one half: adding or removing an example changes it by one half. With the noisy fraction f of unclipped
    examples, the value becomes `clip_value * exp(-learning_rate * (f - quantile))`.

    Args:
        ds_train: data set of `poisson_batches` over the training examples. Only its examples and batch size are used:
            the batches are drawn apart from those of the training, without augmentation, so a view is never counted as
            an example.
        patience: int >= 1, epochs from one update to the next; the first comes before the first step.
        noise_multiplier: float > 0, stddev of the noise over the sensitivity of one half.
        quantile: float in (0, 1), the share of gradients to leave as they are.
        learning_rate: float > 0.
        layer_name: str or None, which `DP_ClipGradient(dynamic=True)`; None if the model has one.
        log_fn: `"all"`, `"logging"`, `"wandb"` or a callable, which gets `clip_value` and `epoch`.

    Raises:
        TypeError, ValueError: for arguments out of range; when training begins, for a model without such a layer.
    """

    def __init__(
        self,
        ds_train: tf.data.Dataset,
        patience: int = 1,
        noise_multiplier: float = 10.0,
        quantile: float = 0.9,
        learning_rate: float = 1.0,
        *,
        layer_name: str | None = None,
        log_fn: LogFn = "logging",
    ) -> None:
        super().__init__(ds_train, patience, layer_name, log_fn)
        who = type(self).__name__
        self.noise_multiplier = _checks.number(who, "noise_multiplier", noise_multiplier, above=0.0)
        self.quantile = _checks.number(who, "quantile", quantile, above=0.0, below=1.0)
        self.learning_rate = _checks.number(who, "learning_rate", learning_rate, above=0.0)

    @property
    def event(self) -> GaussianStep:
        """`GaussianStep` of one update."""
        return GaussianStep(self._sampling, self.noise_multiplier)

    def _next_clip(self, clip_value, norms):
        sensitivity = 0.5
        votes = np.where(norms <= clip_value, 0.5, -0.5).sum()
        [votes] = self._noisy([votes], self.noise_multiplier * sensitivity)
        fraction = 0.5 + votes / self._sampler.batch_size
        # The size of a Poisson batch is private too, so the fraction is one of its expected size.
        return clip_value * math.exp(-self.learning_rate * (np.clip(fraction, 0.0, 1.0) - self.quantile))


class LaplaceAdaptiveLossGradientClipping(_AdaptiveClipping):
    """Sets the clip value to a noisy mean of the gradient norms.

    An update releases the sum over a batch of the norms, each cut at `largest_norm`, with Laplace noise; the value
    becomes `factor` times that sum over the batch size.

    Args:
        ds_train, patience, layer_name, log_fn: see `AdaptiveQuantileClipping`.
        epsilon: float > 0, privacy of one update before amplification by sampling: the Laplace noise has scale
            `largest_norm / epsilon`.
        largest_norm: float > 0 or None, where norms are cut; None for the loss's own bound (`get_L()`).
        factor: float > 0.

    Raises:
        TypeError, ValueError: for arguments out of range; when training begins, for a model without such a layer, and
            for a loss without a known bound if `largest_norm` is None.
    """

    def __init__(
        self,
        ds_train: tf.data.Dataset,
        patience: int = 1,
        epsilon: float = 0.1,
        largest_norm: float | None = None,
        factor: float = 1.0,
        *,
        layer_name: str | None = None,
        log_fn: LogFn = "logging",
    ) -> None:
        super().__init__(ds_train, patience, layer_name, log_fn)
        who = type(self).__name__
        self.epsilon = _checks.number(who, "epsilon", epsilon, above=0.0)
        if largest_norm is not None:
            largest_norm = _checks.number(who, "largest_norm", largest_norm, above=0.0)
        self.largest_norm = largest_norm
        self.factor = _checks.number(who, "factor", factor, above=0.0)

    @property
    def event(self) -> LaplaceStep:
        """`LaplaceStep` of one update."""
        return LaplaceStep(self._sampling, 1.0 / self.epsilon)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._cut = self.largest_norm
        if self._cut is None:
            get_bound = getattr(self.model.loss_function, "get_L", None)
            if get_bound is None:
                raise ValueError(
                    _checks.message(
                        type(self).__name__,
                        "largest_norm for a loss without a known bound",
                        "largest_norm=None",
                        "Pass the norm at which gradients are cut before they are averaged.",
                    )
                )
            self._cut = get_bound()

    def _next_clip(self, clip_value, norms):
        # Z1^2 + Z2^2 over 2 is exponential, and the difference of two exponentials is Laplace of scale 1.
        squares = self._noisy(np.zeros(4), 1.0) ** 2
        laplace = (squares[0] + squares[1] - squares[2] - squares[3]) / 2
        total = np.minimum(norms, self._cut).sum() + laplace * self._cut / self.epsilon
        return self.factor * total / self._sampler.batch_size
