"""The statistics of the audits, against other ways to compute them and against mechanisms whose epsilon is known."""

import functools
import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from deel.lipdp.accounting import GaussianStep, PoissonSampling, compute_epsilon
from deel.lipdp.audit import epsilon_lower_bound, gaussian_epsilon, mechanism_power, one_run_power
from deel.lipdp.audit._statistics import best_guesses, distance_lower_bound, gaussian_distance, guess_p_value

# Simulations are seeded, so that a test fails always or never. Their tolerances are those of a test that would be wrong
# once in a million seeds.
UNLIKELY = 1e-6


def at_most(rate, found, trials):
    """Whether so many of the trials are compatible with a probability of at most `rate`."""
    return stats.binom.sf(found - 1, trials, rate) > UNLIKELY


def published_p_value(m, r, v, eps, delta):
    """The loop of Steinke, Nasr and Jagielski's appendix, written from the theorem, in its notation."""
    q = 1 / (1 + math.exp(-eps))

    def f(k):
        return sum(math.comb(r, j) * q**j * (1 - q) ** (r - j) for j in range(max(k, 0), r + 1))

    return min(1.0, f(v) + 2 * m * delta * max((f(v - i) - f(v)) / i for i in range(1, m + 1)))


@pytest.mark.parametrize(
    "m, r, v, eps, delta",
    [
        (1, 1, 1, 0.0, 0.0),
        (20, 20, 15, 0.5, 0.0),
        (20, 20, 15, 0.5, 1e-2),
        (50, 10, 9, 1.0, 1e-3),
        (50, 10, 10, 3.0, 1e-3),
        (50, 10, 2, 1.0, 1e-3),
        (60, 30, 29, 2.0, 1e-5),
    ],
)
def test_p_value_is_that_of_the_theorem(m, r, v, eps, delta):
    assert guess_p_value(m, r, v, eps, delta) == pytest.approx(published_p_value(m, r, v, eps, delta), rel=1e-9)


def test_p_value_of_no_right_guess_is_one():
    assert guess_p_value(10, 10, 0, 0.0, 0.0) == 1.0


@pytest.mark.parametrize("correct, canaries, guesses", [(100, 100, 100), (40, 1000, 40), (70, 300, 80)])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_lower_bound_without_delta_is_clopper_pearson(correct, canaries, guesses, confidence):
    """Then a guess is right with probability `expit(epsilon)` at most, and unguessed canaries cost nothing."""
    accuracy = stats.beta.ppf(1 - confidence, correct, guesses - correct + 1)
    bound = epsilon_lower_bound(canaries, guesses, correct, 0.0, confidence)
    assert bound == pytest.approx(special.logit(accuracy), abs=2e-6)  # the search stops at 1e-6


def test_lower_bound_is_where_the_p_value_is_the_error():
    bound = epsilon_lower_bound(1000, 100, 95, 1e-6, 0.95)
    assert guess_p_value(1000, 100, 95, bound, 1e-6) <= 0.05 < guess_p_value(1000, 100, 95, bound + 2e-6, 1e-6)


def test_lower_bound_moves_the_right_way():
    bound = epsilon_lower_bound(1000, 100, 90, 1e-6)
    assert bound < epsilon_lower_bound(1000, 100, 91, 1e-6)
    assert bound > epsilon_lower_bound(1000, 100, 90, 1e-5)  # more of the luck may be delta's
    assert bound > epsilon_lower_bound(2000, 100, 90, 1e-6)
    assert bound > epsilon_lower_bound(1000, 100, 90, 1e-6, 0.99)
    assert epsilon_lower_bound(1000, 100, 50, 1e-6) == 0.0  # half right is chance
    assert epsilon_lower_bound(1000, 100, 100, 0.1) == 0.0  # so is everything, at such a delta


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("confidence", [0.6, 0.95])
def test_lower_bound_covers_randomized_response(epsilon, confidence):
    """The mechanism for which the theorem is tight: each coin is told rightly with probability `expit(epsilon)`."""
    trials, canaries = 20_000, 200
    right = np.random.default_rng(0).binomial(canaries, special.expit(epsilon), trials)
    bounds = {v: epsilon_lower_bound(canaries, canaries, v, 0.0, confidence) for v in set(right.tolist())}
    exceeded = sum(bounds[v] > epsilon for v in right.tolist())
    assert at_most(1 - confidence, exceeded, trials)
    # Tight: the error is used up, but for the steps of a binomial of 200.
    assert exceeded > 0.6 * (1 - confidence) * trials


@pytest.mark.parametrize("delta", [0.02, 0.2])
def test_lower_bound_covers_a_mechanism_that_uses_its_delta(delta):
    """With probability delta it gives all coins away, else it answers each at random: (epsilon, delta) in all.

    What happens to all canaries at once is what the theorem's second term is for. With the p-value for delta = 0 the
    same guesses would refute the truth.
    """
    canaries, epsilon, trials = 60, 1.0, 20_000
    rng = np.random.default_rng(0)
    right = rng.binomial(canaries, special.expit(epsilon), trials)
    right[rng.random(trials) < delta] = canaries
    for confidence in (0.9, 0.99):
        bounds = {v: epsilon_lower_bound(canaries, canaries, v, delta, confidence) for v in set(right.tolist())}
        assert at_most(1 - confidence, sum(bounds[v] > epsilon for v in right.tolist()), trials)
    p_value = functools.cache(guess_p_value)
    blind = sum(p_value(canaries, canaries, v, epsilon, 0.0) <= 0.01 for v in right.tolist())
    assert not at_most(0.01, blind, trials)


@pytest.mark.parametrize("distance", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-2])
def test_gaussian_epsilon_is_the_hockey_stick(distance, delta):
    epsilon = gaussian_epsilon(distance, delta)

    def excess(z):
        return max(0.0, stats.norm.pdf(z, distance) - math.exp(epsilon) * stats.norm.pdf(z))

    from_here = epsilon / distance + distance / 2  # where the densities' ratio is e^epsilon
    integral, _ = integrate.quad(excess, from_here, from_here + 12, epsabs=1e-14, epsrel=1e-9)
    assert integral == pytest.approx(delta, rel=1e-6)
    assert gaussian_distance(epsilon, delta) == pytest.approx(distance, rel=1e-6)


def test_gaussian_epsilon_is_that_of_the_accountant():
    exact = gaussian_epsilon(math.sqrt(10) / 4.0, 1e-5)
    event = GaussianStep(PoissonSampling(1.0), 4.0)
    # The accountant rounds its loss distribution up.
    assert exact <= compute_epsilon([(event, 10)], 1e-5, "pld") <= exact * 1.001


def test_gaussian_epsilon_of_nothing_is_zero():
    assert gaussian_epsilon(0.0, 1e-5) == gaussian_epsilon(-1.0, 1e-5) == gaussian_epsilon(1e-9, 0.1) == 0.0
    assert gaussian_epsilon(-math.inf, 1e-5) == gaussian_distance(0.0, 1e-5) == 0.0


def test_best_guesses():
    answers = best_guesses(np.array([0.3, -2.0, 5.0, 0.0, -0.1, 1.0]), 3)
    np.testing.assert_array_equal(answers, [0, -1, 1, 0, 0, 1])
    assert abs(best_guesses(np.zeros(10), 7)).sum() == 7  # as many as promised, ties or not


@pytest.mark.parametrize("errors", [(0, 0), (3, 10), (200, 0), (200, 200)])
def test_distance_bound_is_that_of_clopper_pearson(errors):
    def upper(k):
        return stats.binomtest(k, 200, alternative="less").proportion_ci(1 - 0.01 / 2, method="exact").high

    expected = -sum(stats.norm.ppf(upper(k)) for k in errors)
    assert float(distance_lower_bound(200, *errors, 0.01)) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_distance_bound_covers_a_gaussian(distance):
    trials, false_alarm, simulations = 100, 0.1, 20_000
    errors = np.random.default_rng(0).binomial(trials, stats.norm.sf(distance / 2), (2, simulations))
    exceeded = int(np.sum(distance_lower_bound(trials, *errors, false_alarm) > distance))
    assert at_most(false_alarm, exceeded, simulations)
    # `mechanism_power` of a sound mechanism is its rate of false alarms.
    rate = mechanism_power(distance, distance, trials, false_alarm)
    assert rate <= false_alarm
    assert abs(exceeded - rate * simulations) < 5 * math.sqrt(simulations * rate + 1)


@pytest.mark.parametrize("distance", [1.0, 1.5, 2.0])
def test_power_of_the_mechanism_audit_is_what_a_simulation_says(distance):
    trials, simulations = 200, 5000
    errors = np.random.default_rng(0).binomial(trials, stats.norm.sf(distance / 2), (2, simulations))
    found = np.mean(distance_lower_bound(trials, *errors, 1e-3) > 0.5)
    power = mechanism_power(distance, 0.5, trials)
    assert found == pytest.approx(power, abs=5 * math.sqrt(power * (1 - power) / simulations) + 1e-3)


def simulated_one_run(real, declared, delta, canaries, guesses, simulations, seed=1):
    """Share of the audits that exceed `declared`, by the bound itself, on coordinates of a Gaussian."""
    rng, found, bound = np.random.default_rng(seed), 0, functools.cache(epsilon_lower_bound)
    noise = 1 / gaussian_distance(real, delta)
    for _ in range(simulations):
        coins = rng.integers(0, 2, canaries)
        scores = coins + noise * rng.normal(size=canaries)
        order = np.argsort(scores)
        right = np.sum(coins[order[: guesses // 2]] == 0) + np.sum(coins[order[-(guesses - guesses // 2) :]] == 1)
        found += bound(canaries, guesses, int(right), delta) > declared
    return found / simulations


@pytest.mark.parametrize("real", [1.0, 2.2, 3.0])
def test_power_of_the_one_run_audit_is_what_a_simulation_says(real):
    setting = {"delta": 1e-4, "canaries": 2000, "guesses": 200}
    power = one_run_power(real, 1.0, trials=400, **setting)
    found = simulated_one_run(real, 1.0, simulations=200, **setting)
    # Two simulations, of 400 and of 200.
    spread = math.sqrt(max(power * (1 - power), 0.01) * (1 / 400 + 1 / 200))
    assert found == pytest.approx(power, abs=5 * spread)
    assert (power <= 0.05) if real == 1.0 else (power > 0.3)


def test_canaries_that_are_alike_take_power_away():
    setting = {"epsilon": 3.0, "declared_epsilon": 1.0, "delta": 1e-4, "canaries": 2000, "guesses": 200}
    length = gaussian_distance(1.0, 1e-4) ** 2
    apart = one_run_power(**setting)
    assert one_run_power(**setting, products=length * np.eye(10)) == pytest.approx(apart, abs=0.15)
    assert one_run_power(**setting, products=length * (0.1 * np.eye(10) + 0.9)) < apart / 3
    assert one_run_power(**setting, products=length / 9 * np.eye(10)) < apart / 3  # of a third of the length
    assert apart > 0.9


@pytest.mark.parametrize(
    "function, arguments, word",
    [
        (epsilon_lower_bound, {"canaries": 0, "guesses": 0, "correct": 0, "delta": 0.0}, "canaries"),
        (epsilon_lower_bound, {"canaries": 5, "guesses": 6, "correct": 0, "delta": 0.0}, "guesses"),
        (epsilon_lower_bound, {"canaries": 5, "guesses": 5, "correct": 6, "delta": 0.0}, "correct"),
        (epsilon_lower_bound, {"canaries": 5, "guesses": 5, "correct": 5, "delta": 1.0}, "delta"),
        (epsilon_lower_bound, {"canaries": 5, "guesses": 5, "correct": 5, "delta": 0, "confidence": 1}, "confidence"),
        (gaussian_epsilon, {"distance": 1.0, "delta": 0.0}, "delta"),
        (mechanism_power, {"distance": 0.0, "declared_distance": 1.0, "trials": 9}, "distance"),
        (mechanism_power, {"distance": 1.0, "declared_distance": 1.0, "trials": 0}, "trials"),
        (mechanism_power, {"distance": 1.0, "declared_distance": 1.0, "trials": 9, "false_alarm": 0}, "false_alarm"),
        (one_run_power, {"epsilon": 0, "declared_epsilon": 1, "delta": 0.1, "canaries": 9, "guesses": 9}, "epsilon"),
        (one_run_power, {"epsilon": 1, "declared_epsilon": 1, "delta": 0.1, "canaries": 9, "guesses": 10}, "guesses"),
    ],
)
def test_arguments_out_of_range_are_refused(function, arguments, word):
    with pytest.raises(ValueError, match=f"{function.__name__}: expected {word} to be"):
        function(**arguments)


def test_power_of_runs_that_do_not_add_up_is_refused():
    with pytest.raises(ValueError, match="multiple of the 4 of one training. Received: canaries=10"):
        one_run_power(2.0, 1.0, 1e-4, 10, 5, products=np.eye(4))
