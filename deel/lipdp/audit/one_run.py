"""One-run audit: canaries by the toss of a coin, and what the released gradients give away about the coins."""

import dataclasses
import itertools
from collections.abc import Callable

import keras
import numpy as np

from deel.lipdp import _checks
from deel.lipdp.accounting import PoissonSampling, compute_epsilon
from deel.lipdp.audit._recording import ExampleGradients, Recorder, declared_scales, flat, fresh_model
from deel.lipdp.audit._report import Report
from deel.lipdp.audit._statistics import best_guesses, epsilon_lower_bound
from deel.lipdp.sampling import poisson_batches

__all__ = ["OneRunReport", "audit_one_run"]


@dataclasses.dataclass(frozen=True)
class OneRunReport(Report):
    """What `audit_one_run` found.

    Args:
        epsilon_lower: float, lower bound on the epsilon that the training spends at `delta`.
        confidence: float, of that bound.
        canaries, guesses, correct: int, coins, coins guessed, and right guesses.
        declared_epsilon: float, what the ledger's steps of one training cost at `delta` by the PLD accountant, for
            adding or removing one example under the sampling that the audit used.
        delta: float.
        steps, runs: int, steps of each training as counted by the ledger, and trainings.
        failures: tuple of str.
    """

    epsilon_lower: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    declared_epsilon: float
    delta: float
    steps: int
    runs: int
    failures: tuple[str, ...]

    @property
    def summary(self) -> str:
        """str, the figures in one clause."""
        return (
            f"epsilon at least {self.epsilon_lower:.4g} with confidence {self.confidence:g}, declared "
            f"{self.declared_epsilon:.4g} at delta {self.delta:g} ({self.correct} of {self.guesses} guesses right, "
            f"{self.canaries} canaries, {self.steps} steps)"
        )


def audit_one_run(
    build_model: Callable[[], keras.Model],
    x: np.ndarray,
    y: np.ndarray,
    *,
    steps: int = 1,
    runs: int = 1,
    guesses: int | None = None,
    delta: float | None = None,
    confidence: float = 0.95,
    seed: int | None = None,
) -> OneRunReport:
    """Trains on canaries that a fair coin each lets in or keeps out, guesses the coins, and bounds epsilon from below.

    The canaries are all the data: a guarantee for every data set holds for this one, and nothing else hides them. Each
    one's coin is guessed from all released gradients, by the best linear estimate that knows every canary's gradient.
    The examples in each batch are Poisson-sampled at the rate `batch_size / len(x)`, and the weights of those that were
    kept out are 0, so that one coin is one example added or removed. With a batch size of `len(x)` every canary is in
    every step, which gives the audit the most power.

    Several trainings audit as one with as many more canaries: they are on disjoint canaries, so that all of them
    together are as private as one. The bound counts canaries times runs.

    Args:
        build_model: callable without arguments that returns a new compiled model.
        x, y: arrays, the canaries: public examples, for the weaker ones are those whose gradients are short or alike.
        steps: int, steps of each training.
        runs: int, trainings, each from the same initial weights with coins of its own.
        guesses: int >= 2 or None, coins to guess: half of them those most likely in, half those most likely out. It
            must be fixed in advance. None: a tenth of all.
        delta: float in (0, 1) or None for that of the model. The bound is useful for a delta far below 1 / canaries.
        confidence: float in (0, 1), of the lower bound: a sound model fails at most this rarely, `1 - confidence`.
        seed: int or None, of coins and sampler. None: from the operating system.

    Returns:
        A `OneRunReport`. It fails when the lower bound exceeds the declared epsilon. `one_run_power` says how often it
        does for a mechanism that spends more than it declares.

    Raises:
        TypeError, ValueError: for arguments out of range or a model without noise.

    References:
        Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", 2023.
    """
    who = "audit_one_run"
    steps, runs = (_checks.integer(who, name, value) for name, value in (("steps", steps), ("runs", runs)))
    total = runs * len(x)
    guesses = max(2, total // 10) if guesses is None else guesses
    guesses = _checks.integer(who, "guesses", guesses, at_least=2, at_most=total)
    confidence = _checks.number(who, "confidence", confidence, above=0.0, below=1.0)
    model = fresh_model(who, build_model)
    delta = model.dp_parameters.delta if delta is None else _checks.number(who, "delta", delta, above=0.0, below=1.0)
    recorder = Recorder(model)
    rng = np.random.default_rng(seed)
    coins, scores, canaries = [], [], _Canaries(model, x, y)
    numbers, batch_size = np.arange(len(x)), model.dataset_metadata.batch_size
    # One data set for all trainings: to make one takes longer than a step.
    batches = poisson_batches(numbers, numbers, batch_size, steps=steps * runs, seed=int(rng.integers(2**63)))
    rows_of_batches = (rows for rows, _ in batches.as_numpy_iterator())
    for _ in range(runs):
        recorder.restore()
        coins.append(rng.integers(0, 2, len(x)))
        scores.append(_train(recorder, x, y, coins[-1], itertools.islice(rows_of_batches, steps), canaries))
    answers = best_guesses(np.concatenate(scores), guesses)
    correct = int(np.sum(answers == 2 * np.concatenate(coins) - 1))
    lower = epsilon_lower_bound(total, guesses, correct, delta, confidence)
    sampling = PoissonSampling(batch_size / len(x))
    entries = [
        (dataclasses.replace(event, sampling=sampling), count // runs) for event, count in model.ledger.entries()
    ]
    declared = compute_epsilon(entries, delta, "pld")
    failures = () if lower <= declared else (f"epsilon is at least {lower:.4g}, the ledger says {declared:.4g}",)
    return OneRunReport(
        lower, confidence, total, guesses, correct, declared, delta, sum(n for _, n in entries), runs, failures
    )


class _Canaries:
    """Gradients of the canaries in units of the noise, at the weights of the moment.

    Steps that begin at the initial weights share one computation: the weights are the same in each run.
    """

    def __init__(self, model, x, y):
        self._model, self._gradients_of, self._data = model, ExampleGradients(model), (x, y)
        self._first = None

    def __call__(self, is_first):
        """(stddevs, gradients, products): the noise, array (canaries, parameters) and its inner products."""
        if is_first and self._first is not None:
            return self._first
        gradients = self._gradients_of(*self._data)
        found = declared_scales(self._model).stddevs, gradients, gradients @ gradients.T
        self._first = self._first or found
        return found


def _train(recorder, x, y, coins, rows_of_batches, canaries):
    """Scores of the canaries after one training, centred at 0."""
    n = len(x)
    rate = recorder.model.dataset_metadata.batch_size / n
    products, correlations = 0.0, 0.0
    for step, rows in enumerate(rows_of_batches):
        stddevs, gradients, step_products = canaries(is_first=step == 0)
        release = recorder.step(x[rows], y[rows], coins[rows].astype("float32"))
        products = products + step_products
        correlations = correlations + gradients @ flat(release, stddevs)
    # Least-squares estimate of the shares c = rate * coin, of prior mean rate / 2 and variance rate^2 / 4, from
    # release = sum of c_i gradient_i + noise of stddev 1.
    prior = np.full(n, rate / 2)
    return np.linalg.solve(products + 4.0 / rate**2 * np.eye(n), correlations - products @ prior)
