"""Direct audit of the mechanism: many short trainings, with and without one canary, told apart by their releases."""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from deel.lipdp import _checks
from deel.lipdp.audit._recording import ExampleGradients, Recorder, declared_scales, flat, fresh_model
from deel.lipdp.audit._report import Report
from deel.lipdp.audit._statistics import distance_lower_bound, gaussian_epsilon

__all__ = ["MechanismReport", "audit_mechanism"]


@dataclasses.dataclass(frozen=True)
class MechanismReport(Report):
    """What `audit_mechanism` found, for steps that the example takes part in for certain.

    Args:
        distance_lower, declared_distance: floats, lower bound on how far apart the two outputs are, in stddevs of the
            Gaussian mechanism they are claimed to be, and the largest distance declared: `sqrt(steps) / multiplier`.
        epsilon_lower, declared_epsilon: floats, what these distances cost at `delta`.
        delta: float.
        trials: int, trainings with the canary, and as many without.
        false_positives, false_negatives: int.
        steps: int, of each training.
        attained: float, length of the canary's gradients over the longest declared. Far below 1, a pass says little.
        false_alarm: float, largest probability that a sound model fails.
        failures: tuple of str.
    """

    distance_lower: float
    declared_distance: float
    epsilon_lower: float
    declared_epsilon: float
    delta: float
    trials: int
    false_positives: int
    false_negatives: int
    steps: int
    attained: float
    false_alarm: float
    failures: tuple[str, ...]

    @property
    def summary(self) -> str:
        """str, the figures in one clause."""
        return (
            f"epsilon at least {self.epsilon_lower:.4g}, declared {self.declared_epsilon:.4g} at delta {self.delta:g} "
            f"for {self.steps} step(s) taken for certain ({2 * self.trials} trainings, canary attains "
            f"{self.attained:.0%} of its bound)"
        )


def audit_mechanism(
    build_model: Callable[[], keras.Model],
    x: np.ndarray,
    y: np.ndarray,
    *,
    steps: int = 1,
    trials: int = 400,
    false_alarm: float = 1e-3,
) -> MechanismReport:
    """Trains many times from the same weights, with and without one canary, and tells the two apart.

    A step that declares the noise multiplier s claims that an example which takes part moves its output no further than
    a Gaussian of stddev 1 by 1 / s; so T steps by sqrt(T) / s. Any test then errs at the rates that two such Gaussians
    force on it, and fewer errors refute the claim. The test here, fixed in advance, projects all released gradients on
    those of the canary and asks on which side of the middle the result is.

    For one canary and a known mechanism this finds far smaller faults than `audit_one_run`, at the price of many
    (short) trainings. It does not look at sampling.

    Args:
        build_model: callable without arguments that returns a new compiled model.
        x, y: arrays of examples; the one with the longest gradient is the canary. `hard_examples` makes some.
        steps: int, steps of each training.
        trials: int, trainings with the canary, and as many without.
        false_alarm: float in (0, 1), largest probability that a sound model fails.

    Returns:
        A `MechanismReport`. `mechanism_power` says how often it fails for a mechanism with too little noise.

    Raises:
        TypeError, ValueError: for arguments out of range or a model without noise.

    References:
        Nasr, Hayes, Steinke, Balle, Tramer, Jagielski, Carlini and Terzis, "Tight auditing of differentially private
        machine learning", 2023; Dong, Roth and Su, "Gaussian differential privacy", 2019.
    """
    who = "audit_mechanism"
    steps, trials = (_checks.integer(who, name, value) for name, value in (("steps", steps), ("trials", trials)))
    false_alarm = _checks.number(who, "false_alarm", false_alarm, above=0.0, below=1.0)
    model = fresh_model(who, build_model)
    recorder = Recorder(model)
    recorder.restore()
    gradients_of = ExampleGradients(model)
    gradients = gradients_of(x, y)
    chosen = int(np.argmax(np.linalg.norm(gradients, axis=1)))
    canary = (x[chosen : chosen + 1], y[chosen : chosen + 1])
    first = gradients[chosen]
    errors, lengths = {0.0: 0, 1.0: 0}, []
    for trial in range(2 * trials):
        present = float(trial % 2)
        score, squared_length = _train(recorder, gradients_of, canary, present, steps, first)
        # Half way between the two means.
        guess = float(score > squared_length / 2)
        errors[present] += guess != present
        lengths.append(math.sqrt(squared_length))
    lower = float(distance_lower_bound(trials, errors[0.0], errors[1.0], false_alarm))
    # All trainings are alike, so each counts its share of the ledger; fewer steps counted than taken is a fault too.
    entries = model.ledger.entries()
    declared = math.sqrt(sum(n / event.noise_multiplier**2 for event, n in entries) / (2 * trials))
    delta = model.dp_parameters.delta
    failures: tuple[str, ...] = ()
    if lower > declared:
        failures = (f"the outputs are at least {lower:.4g} stddevs apart, the ledger says {declared:.4g}",)
    return MechanismReport(
        lower,
        declared,
        gaussian_epsilon(lower, delta),
        gaussian_epsilon(declared, delta),
        delta,
        trials,
        errors[0.0],
        errors[1.0],
        steps,
        max(lengths) / declared,
        false_alarm,
        failures,
    )


def _train(recorder, gradients_of, canary, present, steps, gradient):
    """Projection of the releases of one training on the canary's gradients, and the latter's squared length."""
    recorder.restore()
    x, y = canary
    weight = np.full(1, present, "float32")
    score, squared_length = 0.0, 0.0
    for step in range(steps):
        stddevs = declared_scales(recorder.model).stddevs
        if step:
            gradient = gradients_of(x, y)[0]
        score += gradient @ flat(recorder.step(x, y, weight), stddevs)
        squared_length += gradient @ gradient
    return score, squared_length
