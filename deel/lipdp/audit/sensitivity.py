"""Neighbouring runs: how far one example moves what a training step really releases."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from deel.lipdp import _checks
from deel.lipdp._training.tensorflow import per_example_gradient_norms
from deel.lipdp._types import Tensor
from deel.lipdp.audit._recording import Recorder, declared_scales, fresh_model
from deel.lipdp.audit._report import AuditError, Report
from deel.lipdp.bounds import output_gradient_bound
from deel.lipdp.sampling import poisson_batches

__all__ = ["SensitivityAudit", "SensitivityReport", "audit_sensitivity"]

_logger = logging.getLogger(__name__)

# A bound already leaves room for single precision; this is for the audit's own arithmetic.
_TOLERANCE = 1e-5

# With which noise that is too small by `noise_shortfalls` is found.
_NOISE_POWER = 0.999


@dataclasses.dataclass(frozen=True)
class SensitivityReport(Report):
    """What `audit_sensitivity` measured. Distances are those of summed gradients, for one example.

    Args:
        pairs: int, number of neighbouring steps compared.
        distances, bounds: dicts by variable key, largest distance measured and the declared bound.
        noise_stddevs, declared_noise_stddevs: dicts by variable key, on the sum.
        noise_quantiles: dict by variable key, share of the declared stddev below which the noise is called too small.
        noise_shortfalls: dict by variable key, share by which the noise must be too small to be called so with
            probability 0.999.
        joint_distance, declared_joint_distance: floats, of all variables together in units of the noise as measured (a
            lower confidence limit), and one over the joint noise multiplier that the ledger counted.
        attained: float, largest joint distance in units of the declared noise, over the declared distance: how near the
            examples came to the worst case. Far below 1, a pass says little.
        false_alarm: float, largest probability that the noise of a sound model is called too small.
        failures: tuple of str.
    """

    pairs: int
    distances: dict[str, float]
    bounds: dict[str, float]
    noise_stddevs: dict[str, float]
    declared_noise_stddevs: dict[str, float]
    noise_quantiles: dict[str, float]
    noise_shortfalls: dict[str, float]
    joint_distance: float
    declared_joint_distance: float
    attained: float
    false_alarm: float
    failures: tuple[str, ...]

    @property
    def summary(self) -> str:
        """str, the figures in one clause."""
        return (
            f"of {self.pairs} pairs of neighbouring steps one differs by {self.joint_distance:.4g} stddevs of the "
            f"measured noise or more, declared {self.declared_joint_distance:.4g} "
            f"({self.attained:.0%} of it by the declared noise)"
        )


def audit_sensitivity(
    build_model: Callable[[], keras.Model],
    x: np.ndarray,
    y: np.ndarray,
    *,
    steps: int = 5,
    pairs_per_step: int = 4,
    suspects: ArrayLike | None = None,
    noise_draws: int = 20,
    false_alarm: float = 1e-3,
    seed: int = 0,
) -> SensitivityReport:
    """Trains twice with the same noise, batches and weights, with and without one example, and compares the releases.

    Each step of a Poisson sampler is taken from the same weights by two models: by one with the whole batch, by the
    other with every row of one example weighted 0. The noise cancels; what is left is that example's share of what the
    optimizer is handed, which may exceed neither its bound for a variable nor, all together, one over the joint noise
    multiplier that the ledger counts. Then the noise itself is measured, in steps on nobody. A division by a wrong
    batch size, a bound or a noise too small, and an example that is twice in a batch are all found this way. It reads
    `x` and `y` without noise: the report is not covered by epsilon.

    Args:
        build_model: callable without arguments that returns a new compiled model with `noise_seed` set.
        x, y: arrays, the data, at least one batch of them. `hard_examples` makes some that come near their bounds.
        steps: int, training steps. The weights move from one to the next.
        pairs_per_step: int, examples that are left out of each batch, one at a time.
        suspects: array of int or None, rows of `x` to be left out, of those in the batch the first ones; None for any,
            drawn at random. `hard_examples` returns the hardest first.
        noise_draws: int >= 2, pairs of steps by which the noise is measured.
        false_alarm: float in (0, 1), for the measured noise; what is compared otherwise is exact up to rounding.
        seed: int, of the sampler and of the choice of examples.

    Returns:
        A `SensitivityReport`; its `check()` raises `AuditError` if something is wrong.

    Raises:
        TypeError, ValueError: for arguments out of range, a model without noise or one with secret noise.
    """
    who = "audit_sensitivity"
    steps = _checks.integer(who, "steps", steps)
    pairs_per_step = _checks.integer(who, "pairs_per_step", pairs_per_step)
    noise_draws = _checks.integer(who, "noise_draws", noise_draws, at_least=2)
    false_alarm = _checks.number(who, "false_alarm", false_alarm, above=0.0, below=1.0)
    whole, without = (fresh_model(who, build_model) for _ in range(2))
    if whole.dp_parameters.noise_seed is None:
        raise ValueError(
            _checks.message(
                who,
                "a model with noise_seed, so that two trainings get the same noise",
                "noise_seed=None",
                "Audit a copy: DPParameters(..., noise_seed=0) changes nothing else.",
            )
        )
    rng = np.random.default_rng(seed)
    runs = [Recorder(model) for model in (whole, without)]
    state = runs[0].state()
    rows_of_batches = poisson_batches(
        np.arange(len(x)), np.arange(len(x)), whole.dataset_metadata.batch_size, steps=steps, seed=seed
    )
    found = []
    for rows, _ in rows_of_batches.as_numpy_iterator():
        order = rng.permutation(len(x)) if suspects is None else np.asarray(suspects)
        present = order[np.isin(order, rows)]
        for pair, suspect in enumerate(present[:pairs_per_step]):
            for run in runs:
                run.restore(state, certify=pair == 0)
            declared = declared_scales(whole)
            kept = (np.ones(len(rows), "float32"), (rows != suspect).astype("float32"))
            releases = [run.step(x[rows], y[rows], keep) for run, keep in zip(runs, kept, strict=True)]
            found.append((declared, _distances(*releases)))
        if len(present):
            state = runs[0].state()
    if not found:
        raise ValueError(_checks.message(who, "a suspect in some batch", "none", "Raise steps, or name more suspects."))
    multiplier = max(event.noise_multiplier for event, _ in whole.ledger.entries())
    noise, declared, freedom = _measured_noise(runs[0], x, y, noise_draws)
    return _report(found, multiplier, noise, declared, freedom, false_alarm)


def _distances(release, other):
    """Distance for each variable, less what subtracting two noisy numbers in single precision can add."""
    distance = np.array([np.linalg.norm(a - b) for a, b in zip(release, other, strict=True)])
    scale = np.array([np.linalg.norm(a) + np.linalg.norm(b) for a, b in zip(release, other, strict=True)])
    return np.maximum(0.0, distance - np.finfo("float32").eps * scale)


def _measured_noise(run, x, y, draws):
    """Stddev of the noise for each variable, the declared scales, and the degrees of freedom of each estimate."""
    start, squares = run.state(), 0.0
    size = min(len(x), run.model.dataset_metadata.batch_size)
    nobody = (x[:size], y[:size], np.zeros(size, "float32"))
    for _ in range(draws):
        releases = []
        for _ in range(2):  # from the same weights, so that weight regularisers cancel
            run.restore(start)
            releases.append(run.step(*nobody))
        squares = squares + np.array([np.sum((a - b) ** 2) for a, b in zip(*releases, strict=True)]) / 2
    freedom = draws * np.array([v.value.shape.num_elements() for v in run.model.trainable_variables])
    return np.sqrt(squares / freedom), declared_scales(run.model), freedom


def _report(found, multiplier, noise, declared, freedom, false_alarm):
    keys, failures = declared.keys, []
    ratios = np.array([distances / scales.bounds for scales, distances in found])
    for k, key in enumerate(keys):
        worst = int(ratios[:, k].argmax())
        if ratios[worst, k] > 1.0 + _TOLERANCE:
            scales, distances = found[worst]
            failures.append(
                f"one example moves the gradient of {key} by {distances[k]:.6g}, declared {scales.bounds[k]:.6g}"
            )
    # One-sided, shared out over the variables: a sound model falls below with at most this probability.
    quantile = np.sqrt(stats.chi2.ppf(false_alarm / len(keys), freedom) / freedom)
    shortfall = 1.0 - quantile / np.sqrt(stats.chi2.ppf(_NOISE_POWER, freedom) / freedom)
    for k, key in enumerate(keys):
        if noise[k] < quantile[k] * declared.stddevs[k]:
            failures.append(f"noise on {key} has stddev {noise[k]:.6g}, declared {declared.stddevs[k]:.6g}")
    # Where a clip value moves, noise and bounds move together: compare at the scales of each pair.
    inflation = np.maximum(noise / quantile, 0.0) / declared.stddevs
    joint = max(scales.distance(distances, scales.stddevs * inflation) for scales, distances in found)
    largest = 1.0 / multiplier
    if joint > largest * (1.0 + _TOLERANCE):
        failures.append(f"one example moves a step by {joint:.6g} noise units, the ledger counts {largest:.6g}")
    worst = [int(ratios[:, k].argmax()) for k in range(len(keys))]
    return SensitivityReport(
        pairs=len(found),
        distances={key: float(found[w][1][k]) for k, (key, w) in enumerate(zip(keys, worst, strict=True))},
        bounds={key: float(found[w][0].bounds[k]) for k, (key, w) in enumerate(zip(keys, worst, strict=True))},
        noise_stddevs=dict(zip(keys, noise.tolist(), strict=True)),
        declared_noise_stddevs=dict(zip(keys, declared.stddevs.tolist(), strict=True)),
        noise_quantiles=dict(zip(keys, quantile.tolist(), strict=True)),
        noise_shortfalls=dict(zip(keys, shortfall.tolist(), strict=True)),
        joint_distance=float(joint),
        declared_joint_distance=largest,
        attained=float(max(scales.distance(distances) for scales, distances in found) * multiplier),
        false_alarm=false_alarm,
        failures=tuple(failures),
    )


class SensitivityAudit(keras.callbacks.Callback):
    """Checks during `fit` that no example of a held batch has a gradient above its declared bound.

    The norms are those of single examples at the weights of the moment, computed by the guarded backward pass that
    trains. It takes no step and adds nothing to the ledger, so it sees neither the noise nor the batches that training
    draws: `audit_sensitivity` does. The norms are of private data if the batch is, and are not covered by epsilon.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, a batch of any size.
        every: int, steps between two checks. A check costs one backward pass for each example of the batch, and a
            second to compile it.
        on_failure: `"raise"` stops training with `AuditError`, `"log"` logs an error and goes on.

    Attributes:
        worst: dict by variable key, largest norm over bound so far.
        worst_joint: float, largest joint distance so far over the one that the ledger counts.
        checks: int, number of checks made.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """

    def __init__(
        self, data: tuple[Tensor, ...], every: int = 10, on_failure: Literal["raise", "log"] = "raise"
    ) -> None:
        super().__init__()
        self.data = data
        self.every = _checks.integer("SensitivityAudit", "every", every)
        self._fail = _checks.choice(
            "SensitivityAudit", "on_failure", on_failure, {"raise": self._raise, "log": _logger.error}
        )
        self.worst: dict[str, float] = {}
        self.worst_joint, self.checks = 0.0, 0
        self._next = 0

    @staticmethod
    def _raise(text):
        raise AuditError(text)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        _logger.warning("SensitivityAudit reads gradient norms of single examples, which epsilon does not cover.")
        self._next = self._steps()

    def _steps(self):
        # The ledger may count by the pass.
        return int(self.model.optimizer.iterations.numpy())

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._steps() >= self._next:
            self._next = self._steps() + self.every
            self._check()

    def _check(self):
        model = self.model
        declared = declared_scales(model)
        norms, _ = per_example_gradient_norms(model, model.loss_function, output_gradient_bound(model), self.data)
        self.checks += 1
        ratios = norms.max(axis=0) / declared.bounds
        for key, ratio in zip(declared.keys, ratios, strict=True):
            self.worst[key] = max(self.worst.get(key, 0.0), float(ratio))
            if ratio > 1.0 + _TOLERANCE:
                self._fail(f"SensitivityAudit: one example's gradient of {key} is {ratio:.6g} times its bound")
        counted = model.event_in_force.noise_multiplier
        if counted > 0:
            joint = float(declared.distance(norms).max()) * counted
            self.worst_joint = max(self.worst_joint, joint)
            if joint > 1.0 + _TOLERANCE:
                self._fail(f"SensitivityAudit: one example moves a step by {joint:.6g} times what the ledger counts")
