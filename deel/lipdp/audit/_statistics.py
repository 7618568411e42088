"""Statistics of privacy audits: from right guesses to lower bounds, and how often a broken mechanism is found."""

import math

import numpy as np
from scipy import optimize, special, stats

from deel.lipdp import _checks

__all__ = [
    "epsilon_lower_bound",
    "gaussian_distance",
    "gaussian_epsilon",
    "guess_p_value",
    "mechanism_power",
    "one_run_power",
]

_LARGEST_EPSILON = 50.0


def guess_p_value(canaries, guesses, correct, epsilon, delta):
    """Largest probability of so many right guesses, over all (epsilon, delta)-private mechanisms.

    For independent fair coins, one for each canary, and guesses made from the output, W right ones out of r satisfy
    `P[W >= v] <= P[B >= v] + 2 m delta max over i of P[v - i <= B < v] / i`, with B binomial of r trials and success
    probability `e^epsilon / (1 + e^epsilon)` (Steinke, Nasr and Jagielski, 2023, the theorem for delta > 0).

    Args:
        canaries: int m, number of coins.
        guesses: int r in [1, m], number of canaries that were guessed.
        correct: int v in [0, r], number of right guesses.
        epsilon: float >= 0, `delta`: float in [0, 1): the claim.

    Returns:
        float in [0, 1].
    """
    if correct == 0:
        return 1.0
    success = special.expit(epsilon)
    tail = stats.binom.sf(correct - 1, guesses, success)
    widths = np.arange(1, correct + 1)
    below = np.cumsum(stats.binom.pmf(correct - widths, guesses, success))
    return float(min(1.0, tail + 2.0 * canaries * delta * np.max(below / widths)))


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Lower bound on epsilon from the guesses of a one-run audit.

    Args:
        canaries, guesses, correct: int, as in `guess_p_value`.
        delta: float in [0, 1), that of the claim.
        confidence: float in (0, 1): the bound exceeds the true epsilon in at most a share `1 - confidence` of audits.

    Returns:
        float >= 0; no (epsilon, delta) with a smaller epsilon is compatible with the guesses. Where one epsilon is
        refuted every smaller one is too, since being private with less implies being private with more.

    Raises:
        TypeError, ValueError: for arguments out of range.

    Example:

    >>> round(epsilon_lower_bound(canaries=100, guesses=100, correct=100, delta=0.0), 2)
    3.49
    """
    who = "epsilon_lower_bound"
    canaries = _checks.integer(who, "canaries", canaries)
    guesses = _checks.integer(who, "guesses", guesses, at_most=canaries)
    correct = _checks.integer(who, "correct", correct, at_least=0, at_most=guesses)
    delta = _checks.number(who, "delta", delta, at_least=0.0, below=1.0)
    confidence = _checks.number(who, "confidence", confidence, above=0.0, below=1.0)

    def refuted(epsilon):
        return guess_p_value(canaries, guesses, correct, epsilon, delta) <= 1.0 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def gaussian_epsilon(distance: float, delta: float) -> float:
    """Epsilon of telling N(0, 1) from N(distance, 1), exactly (Balle and Wang, 2018, theorem 8).

    Args:
        distance: float, sensitivity over stddev; that of T steps taken by everyone is sqrt(T) times that of one. At or
            below 0 there is nothing to tell, and epsilon is 0.
        delta: float in (0, 1).

    Raises:
        TypeError, ValueError: for a delta out of range.

    Example:

    >>> round(gaussian_epsilon(1.0, delta=1e-5), 3)
    4.377
    """
    delta = _checks.number("gaussian_epsilon", "delta", delta, above=0.0, below=1.0)
    if distance <= 0:
        return 0.0

    def excess(epsilon):
        near, far = epsilon / distance - distance / 2, epsilon / distance + distance / 2
        return stats.norm.sf(near) - math.exp(epsilon + stats.norm.logsf(far)) - delta

    if excess(0.0) <= 0:
        return 0.0
    largest = distance * (distance + 40.0)
    return float(optimize.brentq(excess, 0.0, largest, xtol=1e-9))


def gaussian_distance(epsilon, delta):
    """The distance whose `gaussian_epsilon` is `epsilon`; the inverse in its first argument."""
    if epsilon <= 0:
        return 0.0
    return float(optimize.brentq(lambda distance: gaussian_epsilon(distance, delta) - epsilon, 1e-6, 2 * epsilon + 10))


def best_guesses(scores, guesses):
    """Guesses from scores centred at 0: +1 for the highest half, -1 for the lowest, 0 for the canaries in between."""
    order = np.argsort(scores, kind="stable")
    answers = np.zeros(len(scores), int)
    answers[order[: guesses // 2]] = -1
    answers[order[len(order) - (guesses - guesses // 2) :]] = 1
    return answers


def one_run_power(
    epsilon: float,
    declared_epsilon: float,
    delta: float,
    canaries: int,
    guesses: int,
    confidence: float = 0.95,
    *,
    products: np.ndarray | None = None,
    trials: int = 200,
    seed: int = 0,
) -> float:
    """How often a one-run audit finds out a Gaussian mechanism that spends more than it declares.

    Simulated, with every canary in every step. At `epsilon` equal to `declared_epsilon` it is the rate of false alarms,
    at most `1 - confidence`.

    Args:
        epsilon, declared_epsilon: floats > 0, what is really spent and what is said to be spent, both at `delta`.
        delta: float in (0, 1).
        canaries, guesses: int, as in `audit_one_run`.
        confidence: float in (0, 1), of the lower bound.
        products: array (m, m) of the inner products of the gradients of the m canaries of one training, in units of the
            declared noise; then `canaries` is a multiple of m. None: the auditor's best case, canaries that are
            orthogonal and attain their bound.
        trials: int, number of simulated audits.
        seed: int.

    Returns:
        float in [0, 1], share of the audits whose lower bound exceeds `declared_epsilon`.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """
    who = "one_run_power"
    epsilon, declared_epsilon = (
        _checks.number(who, name, value, above=0.0)
        for name, value in (("epsilon", epsilon), ("declared_epsilon", declared_epsilon))
    )
    delta = _checks.number(who, "delta", delta, above=0.0, below=1.0)
    canaries = _checks.integer(who, "canaries", canaries)
    guesses = _checks.integer(who, "guesses", guesses, at_most=canaries)
    confidence = _checks.number(who, "confidence", confidence, above=0.0, below=1.0)
    trials = _checks.integer(who, "trials", trials)
    if products is not None and canaries % len(products):
        expected = f"canaries to be a multiple of the {len(products)} of one training"
        raise ValueError(_checks.message(who, expected, f"canaries={canaries}", "Count the canaries of all trainings."))
    rng = np.random.default_rng(seed)
    declared = gaussian_distance(declared_epsilon, delta)
    noise = declared / gaussian_distance(epsilon, delta)
    if products is None:
        products = np.full((1, 1), declared**2)
    runs = canaries // len(products)
    roots, axes = np.linalg.eigh(products)
    half = axes * np.sqrt(np.maximum(roots, 0.0))
    # The refutation of the declared epsilon itself, without the search for the bound: the same event.
    least = next(
        (
            v
            for v in range(guesses + 1)
            if guess_p_value(canaries, guesses, v, declared_epsilon, delta) <= 1.0 - confidence
        ),
        guesses + 1,
    )
    found = 0
    for _ in range(trials):
        coins = rng.integers(0, 2, canaries) * 2 - 1
        shares = coins.reshape(runs, -1) / 2
        correlations = shares @ products + noise * rng.normal(size=shares.shape) @ half.T
        scores = np.linalg.solve(products + 4.0 * np.eye(len(products)), correlations.T).T
        found += int(np.sum(best_guesses(scores.ravel(), guesses) == coins) >= least)
    return found / trials


def distance_lower_bound(trials, false_positives, false_negatives, false_alarm):
    """Lower bound on the distance of a Gaussian mechanism from the errors of a test with a threshold fixed in advance.

    A mechanism whose outputs are no easier to tell apart than N(0, 1) and N(mu, 1) has
    `Phi^-1(1 - FPR) - Phi^-1(FNR) <= mu` (Dong, Roth and Su, 2019). Each error rate gets a Clopper-Pearson upper bound
    at half of the false alarm rate, as in Nasr et al., 2023.

    Args:
        trials: int, number of trials with the canary, and as many without.
        false_positives, false_negatives: int or arrays.
        false_alarm: float in (0, 1), rate at which the bound may exceed the truth.
    """
    errors = np.stack(np.broadcast_arrays(false_positives, false_negatives)).astype("float64")
    with np.errstate(invalid="ignore"):
        upper = stats.beta.ppf(1.0 - false_alarm / 2, errors + 1, trials - errors)
    upper = np.where(errors >= trials, 1.0, upper)
    return -stats.norm.ppf(upper).sum(axis=0)


def mechanism_power(distance: float, declared_distance: float, trials: int, false_alarm: float = 1e-3) -> float:
    """How often `audit_mechanism` finds out a Gaussian mechanism with less noise than declared; exact.

    Args:
        distance: float > 0, that between the outputs with and without the canary in units of the real noise. With
            halved noise and a canary that attains its bound it is twice the declared one.
        declared_distance: float > 0, largest one declared: sqrt(steps) over the noise multiplier.
        trials: int, number of trials with the canary, and as many without.
        false_alarm: float in (0, 1).

    Returns:
        float in [0, 1].

    Raises:
        TypeError, ValueError: for arguments out of range.
    """
    who = "mechanism_power"
    distance, declared_distance = (
        _checks.number(who, name, value, above=0.0)
        for name, value in (("distance", distance), ("declared_distance", declared_distance))
    )
    trials = _checks.integer(who, "trials", trials)
    false_alarm = _checks.number(who, "false_alarm", false_alarm, above=0.0, below=1.0)
    counts = np.arange(trials + 1)
    probability = stats.binom.pmf(counts, trials, stats.norm.sf(distance / 2))
    bounds = distance_lower_bound(trials, counts[:, None], counts[None, :], false_alarm)
    return float(np.sum(probability[:, None] * probability[None, :] * (bounds > declared_distance)))
