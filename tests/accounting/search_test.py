"""The price of a search: the theorems evaluated by hand, its limits, and what it refuses."""

import math

import numpy as np
import pytest

from deel.lipdp.accounting import (
    GaussianStep,
    LaplaceStep,
    PoissonSampling,
    ShuffledSampling,
    UndeclaredSampling,
    compute_epsilon,
    compute_search_epsilon,
)

DELTA = 1e-5
GAUSSIAN = GaussianStep(UndeclaredSampling(), 5.0)
SAMPLED = GaussianStep(PoissonSampling(0.01), 1.0)
ORDERS = np.concatenate([np.arange(1.05, 40, 0.01), np.arange(40, 500)])


def to_epsilon(divergences):
    """Canonne, Kamath and Steinke, 2020, proposition 12."""
    return np.min(divergences + np.log1p(-1 / ORDERS) - np.log(DELTA * ORDERS) / (ORDERS - 1))


@pytest.mark.parametrize("mean", [2.0, 10.0, 100.0])
def test_geometric_is_theorem_2(mean):
    # Papernot and Steinke, 2022, theorem 2 with shape 1 and success probability 1 / mean.
    run = ORDERS / (2 * 5.0**2)
    constant = 2 * np.min((1 - 1 / ORDERS) * run + math.log(mean) / ORDERS)
    exact = to_epsilon(run + constant + math.log(mean) / (ORDERS - 1))
    # dp-accounting takes its orders from a coarser grid.
    assert exact * (1 - 1e-6) <= compute_search_epsilon([(GAUSSIAN, 1)], DELTA, mean) <= 1.02 * exact


def test_poisson_is_theorem_6():
    # With (epsilon_hat, delta_hat)-DP of a run, epsilon_hat = log(1 + 1 / (order - 1)), exact for a Gaussian.
    from scipy.stats import norm

    mu, mean = 1 / 5.0, 4.0
    hat = np.log1p(1 / (ORDERS - 1))
    delta_hat = norm.cdf(mu / 2 - hat / mu) - np.exp(hat) * norm.cdf(-mu / 2 - hat / mu)
    least = to_epsilon(mu**2 * ORDERS / 2 + mean * delta_hat + math.log(mean) / (ORDERS - 1))
    found = compute_search_epsilon([(GAUSSIAN, 1)], DELTA, mean, "poisson")
    assert least <= found <= 1.3 * least  # dp-accounting bounds delta_hat by Renyi divergences


@pytest.mark.parametrize("distribution", ["geometric", "logarithmic", "poisson", 0.5, 2])
@pytest.mark.parametrize("entries", [[(GAUSSIAN, 3)], [(SAMPLED, 1000)], [(SAMPLED, 100), (GAUSSIAN, 2)]])
def test_more_runs_cost_more_than_one(distribution, entries):
    one = compute_epsilon(entries, DELTA, "pld")
    costs = [compute_search_epsilon(entries, DELTA, mean, distribution) for mean in (1, 3, 30)]
    assert one < costs[0] < costs[1] < costs[2]


def test_shape_one_is_the_geometric_distribution():
    first, second = (compute_search_epsilon([(SAMPLED, 100)], DELTA, 7, shape) for shape in ("geometric", 1.0))
    assert first == second


def test_grows_with_what_a_run_releases():
    costs = [compute_search_epsilon([(SAMPLED, steps)], DELTA, 10) for steps in (1, 10, 1000, 10_000)]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    release = LaplaceStep(UndeclaredSampling(), 20.0)
    assert compute_search_epsilon([(SAMPLED, 1000), (release, 1)], DELTA, 10) > costs[2]


def test_limits():
    assert compute_search_epsilon([], DELTA, 10) == 0.0
    assert compute_search_epsilon([(SAMPLED, 0)], DELTA, 10) == 0.0
    assert compute_search_epsilon([(SAMPLED, 5), (GaussianStep(PoissonSampling(0.5), 0.0), 1)], DELTA, 10) == math.inf


def test_many_steps_of_almost_no_cost():
    # The divergence of such a step, 1e-12, is near what float64 resolves. So many compose to a Gaussian of multiplier
    # 1 / (1e-4 * sqrt(1e8 * (exp(1e-4) - 1))).
    run, composed = (
        [(GaussianStep(PoissonSampling(1e-4), 100.0), 10**8)],
        [(GaussianStep(UndeclaredSampling(), 100.0), 1)],
    )
    assert compute_search_epsilon(run, DELTA, 1) > compute_epsilon(composed, DELTA, "pld") > 0.02


def test_relations():
    shuffled, halved = (GaussianStep(ShuffledSampling(), multiplier) for multiplier in (4.0, 2.0))
    replaced = compute_search_epsilon([(shuffled, 2)], DELTA, 10, relation="replace_one")
    assert replaced == compute_search_epsilon([(halved, 2)], DELTA, 10)
    assert compute_search_epsilon([(SAMPLED, 9)], DELTA, 10, relation="zero_out") == compute_search_epsilon(
        [(SAMPLED, 9)], DELTA, 10
    )


@pytest.mark.parametrize(
    ("event", "relation", "match"),
    [
        (SAMPLED, "replace_one", "compute_search_epsilon.*'add_or_remove_one' or 'zero_out'"),
        (LaplaceStep(PoissonSampling(0.1), 1.0), None, "compute_search_epsilon.*UndeclaredSampling"),
        (GAUSSIAN, "add_or_remove_one", "compute_search_epsilon.*shifts every later one"),
        (SAMPLED, "swap", "compute_search_epsilon.*swap"),
    ],
)
def test_what_has_no_price_is_refused(event, relation, match):
    with pytest.raises(ValueError, match=match):
        compute_search_epsilon([(event, 3)], DELTA, 10, relation=relation)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (dict(delta=0.0), ValueError, "delta"),
        (dict(mean_runs=0.5), ValueError, "mean_runs"),
        (dict(mean_runs="10"), TypeError, "mean_runs"),
        (dict(distribution="uniform"), ValueError, "'poisson', 'geometric', 'logarithmic'"),
        (dict(distribution=0.0), ValueError, "distribution"),
        (dict(distribution=math.inf), ValueError, "distribution"),
        (dict(distribution=True), TypeError, "distribution"),
        (dict(entries=[("step", 1)]), TypeError, "str"),
        (dict(entries=[(SAMPLED, -1)]), ValueError, "steps"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        compute_search_epsilon(**{"entries": [(SAMPLED, 1)], "delta": DELTA, "mean_runs": 10, **arguments})
