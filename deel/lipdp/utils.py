"""Metrics and reports beside training: robust AUROC, membership inference, signal to noise.

What the callbacks report is computed on private data and is not covered by epsilon.
"""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from deel.lipdp import _charts, _checks, _reporting
from deel.lipdp._training.tensorflow import per_example_losses
from deel.lipdp._types import LogFn, PathLike, Tensor

__all__ = [
    "CertifiableAUROC",
    "PrivacyMetrics",
    "ScaledAUC",
    "SignaltoNoiseAverage",
    "SignaltoNoiseHistogram",
    "membership_inference",
]

_logger = logging.getLogger(__name__)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class ScaledAUC(keras.metrics.AUC):
    """Area under the ROC curve of scores in logits, for binary or anomaly detection.

    Keras's AUC wants probabilities and compares them with evenly spaced thresholds, between which the small scores of a
    1-Lipschitz network would all fall together. Scores are multiplied by `scale` and pass a sigmoid first: a growing
    function changes no ROC curve, only how finely it is sampled. Labels above 0.5 are positive: those in {-1, 1} too.

    Args:
        scale: float > 0, one over a typical size of a score.
        name: str.
        **kwargs: as in `keras.metrics.AUC`, for instance `num_thresholds`.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """

    def __init__(self, scale: float = 1.0, name: str = "scaled_auc", **kwargs: Any) -> None:
        kwargs.pop("from_logits", None)
        super().__init__(name=name, **kwargs)
        self.scale = _checks.number(type(self).__name__, "scale", scale, above=0.0)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        positive = ops.cast(y_true, self.dtype) > 0.5  # Keras takes whatever is not 0
        super().update_state(positive, ops.sigmoid(self.scale * ops.cast(y_pred, self.dtype)), sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="deel-lipdp")
class CertifiableAUROC(ScaledAUC):
    """AUROC that no adversary can push lower by moving each input by at most `radius`, for 1-Lipschitz scores.

    Bounds: a score moves by at most `radius`, so positives are counted at their score less `radius` and negatives at
    theirs plus `radius`. All pairs of a positive and a negative that are still in order stay so under any attack. For
    scores with another Lipschitz constant pass the product of the two. Scores between the same two thresholds count as
    out of order, so that sampling the curve cannot raise the result: with too few thresholds, or another `scale` than
    that of the scores, it is far below the true area, and never above it. At radius 0 it is the plain AUROC, but for
    that.

    Args:
        radius: float >= 0, Euclidean norm of the perturbation of one input, in the units of the model's input.
        scale: float > 0, as in `ScaledAUC`.
        name: str.
        **kwargs: as in `keras.metrics.AUC`; `curve` and `summation_method` have one legal value.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """

    def __init__(self, radius: float, scale: float = 1.0, name: str = "certifiable_auroc", **kwargs: Any) -> None:
        who = type(self).__name__
        # "interpolation", Keras's default, takes scores between two thresholds for half in order.
        for key, only in (("curve", "ROC"), ("summation_method", "minoring")):
            _checks.choice(who, key, kwargs.setdefault(key, only), {only: None}, remedy="Leave it out.")
        super().__init__(scale=scale, name=name, **kwargs)
        self.radius = _checks.number(who, "radius", radius, at_least=0.0)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        y_pred = ops.cast(y_pred, self.dtype)
        y_true = ops.reshape(ops.cast(y_true, self.dtype), ops.shape(y_pred))
        super().update_state(y_true, ops.where(y_true > 0.5, y_pred - self.radius, y_pred + self.radius), sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "radius": self.radius}


def membership_inference(
    members: tuple[npt.ArrayLike, npt.ArrayLike],
    non_members: tuple[npt.ArrayLike, npt.ArrayLike],
    labels: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Attacks that tell training examples from others, by the loss alone and by all features together.

    The threshold attack calls the examples of smaller loss members (Yeom et al., 2018). The logistic regression is
    fitted on the features of one part of the examples and tested on the others, in turn, so that it is scored on none
    it has seen.

    These are weak attacks: an AUC near 0.5 does not show privacy, one far above shows the lack of it. If members and
    others cannot be told apart, the AUC of m against n examples is above `0.5 + 3.29 sqrt((m + n + 1) / (12 m n))` with
    probability 5e-4; epsilon allows more than 0.5, the more the larger it is. The tests attack models with more weights
    than the 200 random labels that they remember, with noise for epsilon 1. Noise divided by the batch size of 100
    gives an AUC of 0.8. Half of the noise, or a convolution's bound divided by 3, stays below that limit of 0.595, as
    the sound model does: for such faults there are the audits of `deel.lipdp.audit`.

    Args:
        members, non_members: pairs (losses, features) of arrays of shapes (n,) and (n, width), for instance the logits.
        labels: pair of int arrays (n,), the classes of members and non-members, or None for no report by class.
        folds: int >= 2, parts of the examples in turn tested.
        seed: int, of the partition.

    Returns:
        dict, `"all"` or `"class <label>"` -> dict of floats `threshold_auc`, `threshold_advantage`, `logistic_auc` and
        `logistic_advantage`. An advantage is the largest difference of true and false positive rates, in [0, 1]; it is
        the best over thresholds for these very examples, so a little above 0 where there is nothing to find. Classes
        with fewer than `folds` examples on either side are left out.

    Raises:
        ImportError: without scikit-learn.
        TypeError, ValueError: for arrays that do not match, or fewer than `folds` examples on either side.
    """
    who = "membership_inference"
    folds = _checks.integer(who, "folds", folds, at_least=2)
    both_losses = [np.asarray(losses, "float64").reshape(-1) for losses, _ in (members, non_members)]
    both_features = [np.asarray(features, "float64") for _, features in (members, non_members)]
    sizes = [len(side) for side in both_losses]
    if [len(side) for side in both_features] != sizes or min(sizes) < folds:
        received = f"{sizes} losses and {[len(side) for side in both_features]} rows of features"
        raise ValueError(_checks.message(who, f"one row of features for each loss, at least {folds}", received, ""))
    member = np.repeat([1, 0], sizes)
    losses = np.concatenate(both_losses)
    features = np.column_stack([losses, np.concatenate([side.reshape(len(side), -1) for side in both_features])])
    groups = {"all": np.ones(len(member), bool)}
    if labels is not None:
        both_labels = [np.asarray(side).reshape(-1) for side in labels]
        if [len(side) for side in both_labels] != sizes:
            received = f"{sizes} losses and {[len(side) for side in both_labels]} labels"
            raise ValueError(_checks.message(who, "one label for each loss", received, "Pass the classes of both."))
        classes = np.concatenate(both_labels)
        groups |= {f"class {label}": classes == label for label in np.unique(classes)}
    return {
        name: _attack(losses[rows], features[rows], member[rows], folds, seed)
        for name, rows in groups.items()
        if min(np.sum(member[rows]), np.sum(1 - member[rows])) >= folds
    }


def _attack(losses, features, member, folds, seed):
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score, roc_curve
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("membership_inference needs scikit-learn: pip install scikit-learn") from error

    attacker = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    scores = {
        "threshold": -losses,
        "logistic": cross_val_predict(attacker, features, member, cv=splits, method="decision_function"),
    }
    result = {}
    for name, score in scores.items():
        false_positives, true_positives, _ = roc_curve(member, score)
        result[f"{name}_auc"] = float(roc_auc_score(member, score))
        result[f"{name}_advantage"] = float(np.max(true_positives - false_positives))
    return result


class PrivacyMetrics(keras.callbacks.Callback):
    """Attacks the model by membership inference at the end of training, or every few epochs, and logs the result.

    Reads private data, and its report is not covered by epsilon.

    Args:
        np_dataset: `(x_train, y_train, x_test, y_test)`, arrays; labels as the loss takes them. The test examples must
            not have been trained on; take as many of the training examples as you like.
        log_fn: `"all"`, `"logging"`, `"wandb"` or a callable that gets a dict: `"<group>/<measure>"` -> float (see
            `membership_inference`), and `epoch`.
        every: int or None, epochs between two attacks; None: only when training ends.
        batch_size: int, of prediction.

    Attributes:
        results: dict, what the last attack returned.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """

    def __init__(
        self,
        np_dataset: Sequence[npt.ArrayLike],
        log_fn: LogFn = "all",
        every: int | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        who = "PrivacyMetrics"
        if not isinstance(np_dataset, (tuple, list)) or len(np_dataset) != 4:
            raise ValueError(
                _checks.message(
                    who, "(x_train, y_train, x_test, y_test)", f"{type(np_dataset).__name__}", "Pass four arrays."
                )
            )
        x_train, y_train, x_test, y_test = (np.asarray(array) for array in np_dataset)
        self._sides = (x_train, y_train), (x_test, y_test)
        self._log = _reporting.resolve_log_fn(log_fn)
        self.every = None if every is None else _checks.integer(who, "every", every)
        self.batch_size = _checks.integer(who, "batch_size", batch_size)
        self.results: dict[str, dict[str, float]] = {}
        self._epoch = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch + 1
        if self.every is not None and self._epoch % self.every == 0:
            self.attack()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.every is None:
            self.attack()

    def attack(self) -> dict[str, dict[str, float]]:
        """Runs the attacks on the present model, logs and returns what `membership_inference` found."""
        _logger.warning("PrivacyMetrics reads losses of single training examples, which epsilon does not cover.")
        (x_train, y_train), (x_test, y_test) = self._sides
        outputs = [self.model.predict(x, batch_size=self.batch_size, verbose=0) for x in (x_train, x_test)]
        losses = self._losses(np.concatenate([y_train, y_test]), np.concatenate(outputs))
        members, others = zip(np.split(losses, [len(y_train)]), outputs, strict=True)
        self.results = membership_inference(members, others, labels=(_classes(y_train), _classes(y_test)))
        flat = {f"{group}/{name}": value for group, part in self.results.items() for name, value in part.items()}
        self._log({**flat, "epoch": self._epoch})
        return self.results

    def _losses(self, y, outputs):
        loss = keras.losses.get(self.model.loss)
        return per_example_losses(loss, ops.convert_to_tensor(y), ops.convert_to_tensor(outputs)).numpy()


def _classes(y):
    """Class of each label: one-hot, one score in [0, 1] or {-1, 1}, or an integer."""
    y = y.reshape(len(y), -1)
    return y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0].astype(int)


class _SignalToNoise(keras.callbacks.Callback):
    """Measures at the end of each epoch, and reports: to `log_fn`, to the Keras logs, and as a chart."""

    def __init__(self, batch: tuple[Tensor, ...], log_fn: LogFn, png: PathLike | None) -> None:
        super().__init__()
        self.batch = batch
        self.png = None if png is None else self._checked_path(png)
        self._log = _reporting.resolve_log_fn(log_fn)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        _logger.warning("%s reads gradients of examples, which epsilon does not cover.", type(self).__name__)

    def _checked_path(self, png):
        path = pathlib.Path(png)
        if path.suffix.lower() != ".png" or not path.parent.is_dir():
            expected, remedy = "png to end in .png, in a folder that exists", "Name another file, or make the folder."
            raise ValueError(_checks.message(type(self).__name__, expected, f"png='{path}'", remedy))
        return path

    def _report(self, epoch, values, scalars, logs):
        """Args: values for `log_fn`; those of them that belong into the Keras logs."""
        if logs is not None:
            logs.update(scalars)
        self._log({**values, "epoch": epoch + 1})


class SignaltoNoiseAverage(_SignalToNoise):
    """Logs at the end of each epoch how long the mean gradient of a batch is beside the bound for one example.

    Reads private data, and its report is not covered by epsilon; see `signal_to_noise_average` of the model. The ratios
    are in the Keras logs too, for TensorBoard, CSVLogger and other callbacks listed after this one.

    Args:
        batch: `(x, y)` or `(x, y, sample_weight)`, exactly `batch_size` examples.
        log_fn: `"all"`, `"logging"`, `"wandb"` or a callable that gets a dict: `"signal_to_noise/<variable>"` -> float,
            and `epoch`.
        png: str or path of a chart, drawn anew at the end of each epoch: the ratios of all epochs, a line for each
            variable. None: no chart.

    Raises:
        ValueError: for another `log_fn`, and for a chart that cannot be written.
    """

    def __init__(self, batch: tuple[Tensor, ...], log_fn: LogFn = "all", png: PathLike | None = None) -> None:
        super().__init__(batch, log_fn, png)
        self._history: dict[str, dict[int, float]] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._history = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        ratios, _, _ = self.model.signal_to_noise_average(self.batch, warn=False)
        values = {f"signal_to_noise/{key}": float(ratio) for key, ratio in ratios.items()}
        self._report(epoch, values, values, logs)
        for key, ratio in ratios.items():
            self._history.setdefault(key, {})[epoch + 1] = float(ratio)
        if self.png is not None:
            self._draw()

    def _draw(self):
        axes = _charts.new_axes()
        for key, ratios in self._history.items():
            axes.plot(list(ratios), list(ratios.values()), "o-", ms=3, label=_charts.plain(key))
        if any(ratio > 0.0 for ratios in self._history.values() for ratio in ratios.values()):
            axes.set_yscale("log", nonpositive="mask")
        axes.set_xlabel("epoch")
        axes.set_ylabel("norm of the mean gradient over the bound")
        _charts.add_legend(axes)
        _charts.save_png(axes, self.png)


class SignaltoNoiseHistogram(_SignalToNoise):
    """Logs at the end of each epoch how the gradient norms of single examples, over their bounds, are spread out.

    That is how tight the bounds are: at a ratio of 1 an example causes the largest gradient that the noise is made for.
    Reads private data, and its report is not covered by epsilon; see `signal_to_noise_elementwise` of the model. The
    medians are in the Keras logs too, for TensorBoard, CSVLogger and other callbacks listed after this one.

    Args:
        batch: `(x, y)` or `(x, y, sample_weight)`, any number of examples.
        log_fn: `"all"`, `"logging"`, `"wandb"` or a callable that gets a dict:
            `"signal_to_noise/<variable>/q<percent>"` -> float for the quantiles 5, 25, 50, 75 and 95 percent,
            `"signal_to_noise/<variable>/max"` -> float, `"signal_to_noise/<variable>/histogram"` -> list of counts in
            `bins` equal parts of [0, 1] (wandb gets what it draws as a histogram), and `epoch`.
        bins: int in [1, 512], parts of the histogram.
        png: str or path of a chart, drawn anew at the end of each epoch: a bar for each variable, from the 5 to the 95
            percent quantile, with the median and the largest ratio. None: no chart.

    Raises:
        TypeError, ValueError: for arguments out of range, another `log_fn`, and a chart that cannot be written.
    """

    def __init__(
        self, batch: tuple[Tensor, ...], log_fn: LogFn = "all", bins: int = 20, png: PathLike | None = None
    ) -> None:
        super().__init__(batch, log_fn, png)
        self.bins = _checks.integer("SignaltoNoiseHistogram", "bins", bins, at_most=512)  # as many as wandb takes

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        ratios, _, _ = self.model.signal_to_noise_elementwise(self.batch, warn=False)
        spreads = {key: _reporting.spread(ratio) for key, ratio in ratios.items()}
        values: dict[str, Any] = {}
        medians = {}
        for key, ratio in ratios.items():
            name = f"signal_to_noise/{key}"
            values |= {f"{name}/{quantile}": value for quantile, value in spreads[key].items()}
            values[f"{name}/histogram"] = np.histogram(np.clip(ratio, 0, 1), self.bins, (0, 1))[0].tolist()
            medians[f"{name}/q50"] = spreads[key]["q50"]
        self._report(epoch, values, medians, logs)
        if self.png is not None:
            _charts.save_png(_charts.draw_tightness(spreads, "an example"), self.png)
