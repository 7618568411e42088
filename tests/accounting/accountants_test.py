"""One contract for every accountant, then published values, exact formulas, and the traps of the libraries beneath."""

import json
import math
import pathlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from deel.lipdp.accounting import (
    ACCOUNTANTS,
    GaussianStep,
    LaplaceStep,
    PLDAccountant,
    PoissonSampling,
    RDPAccountant,
    ShuffledSampling,
    UndeclaredSampling,
    accountants,
    compute_epsilon,
    get_accountant,
    neighboring_relation,
)

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "epsilons.json").read_text())["rows"]
DELTA = 1e-5


def poisson(multiplier, probability=0.01):
    return GaussianStep(PoissonSampling(probability), multiplier)


def undeclared(multiplier):
    return GaussianStep(UndeclaredSampling(), multiplier)


def shuffled(multiplier):
    return GaussianStep(ShuffledSampling(), multiplier)


def laplace(multiplier, probability=0.01):
    return LaplaceStep(PoissonSampling(probability), multiplier)


def undeclared_laplace(multiplier):
    return LaplaceStep(UndeclaredSampling(), multiplier)


EVERY_EVENT = [poisson, shuffled, undeclared, laplace, undeclared_laplace]


@pytest.fixture(scope="module", params=list(ACCOUNTANTS))
def accountant(request):
    return get_accountant(request.param)


class TestContract:
    @pytest.mark.parametrize("entries", [[], [(poisson(1.0), 0)], [(undeclared(0.0), 0), (poisson(0.0), 0)]])
    def test_nothing_composed_costs_nothing(self, accountant, entries):
        assert accountant.epsilon(entries, DELTA) == 0.0

    @pytest.mark.parametrize("multiplier", [0.0, 1e-200])
    @pytest.mark.parametrize("make", [*EVERY_EVENT, lambda m: poisson(m, probability=1.0)])
    def test_no_noise_costs_infinity(self, accountant, make, multiplier):
        assert accountant.epsilon([(poisson(1.0), 10), (make(multiplier), 1)], DELTA) == math.inf

    def test_unknown_event_is_refused_by_name(self, accountant):
        class TruncatedStep(GaussianStep):
            pass

        class BlockSampling(PoissonSampling):
            pass

        unknown_sampling = GaussianStep(BlockSampling(0.1), 1.0)
        unknown_laplace = LaplaceStep(BlockSampling(0.1), 1.0)
        for event in ("gaussian", None, TruncatedStep(PoissonSampling(0.1), 1.0), unknown_sampling, unknown_laplace):
            for entries in ([(event, 3)], [(event, 0)]):  # even one that would cost nothing
                with pytest.raises(TypeError, match=type(event).__name__):
                    accountant.epsilon(entries, DELTA)

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
    def test_delta_out_of_range_is_refused(self, accountant, delta):
        with pytest.raises(ValueError, match="delta"):
            accountant.epsilon([(poisson(1.0), 1)], delta)

    @pytest.mark.parametrize(("steps", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError)])
    def test_steps_must_be_a_count(self, accountant, steps, error):
        with pytest.raises(error, match="steps"):
            accountant.epsilon([(poisson(1.0), steps)], DELTA)

    @pytest.mark.parametrize("make", EVERY_EVENT)
    def test_many_entries_equal_one_with_their_count(self, accountant, make):
        once = accountant.epsilon([(make(2.0), 60)], DELTA)
        parts = [(make(2.0), 1) for _ in range(10)] + [(make(2.0), np.int64(50))]
        assert accountant.epsilon(iter(parts), DELTA) == pytest.approx(once, rel=1e-12)

    @pytest.mark.parametrize("make", EVERY_EVENT)
    def test_grows_with_steps(self, accountant, make):
        costs = [accountant.epsilon([(make(1.0), steps)], DELTA) for steps in (1, 2, 10, 100, 101, 1000, 30000)]
        assert costs == sorted(costs) and costs[-1] > costs[2] > 0.0

    def test_falls_with_noise_and_delta(self, accountant):
        noise = [accountant.epsilon([(poisson(m), 500)], DELTA) for m in (0.7, 1.0, 1.01, 3.0, 30.0, 1e8)]
        delta = [accountant.epsilon([(poisson(1.0), 500)], d) for d in (1e-13, 1e-9, 1e-5, 1e-2, 0.9)]
        assert noise == sorted(noise, reverse=True) and noise[0] > noise[-1] >= 0.0
        assert delta == sorted(delta, reverse=True) and delta[0] > 1.0 and delta[-1] < 1e-9

    def test_adding_another_event_costs_more(self, accountant):
        base = accountant.epsilon([(poisson(1.0), 500)], DELTA)
        for extra in (poisson(1.2), undeclared(20.0), shuffled(20.0), laplace(1.0), undeclared_laplace(40.0)):
            assert base < accountant.epsilon([(poisson(1.0), 500), (extra, 5)], DELTA) < 2 * base

    @pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['noise_multiplier']}x{row['steps']}")
    def test_published_values(self, request, accountant, row):
        name = request.node.callspec.params["accountant"]
        if name not in row:
            pytest.skip("the source gives no value for this accountant")
        entries = [(poisson(row["noise_multiplier"], np.divide(*row["probability"])), row["steps"])]
        assert accountant.epsilon(entries, row["delta"]) == pytest.approx(row[name], abs=row["tolerance"])

    @pytest.mark.parametrize("probability", [1e-4, 0.01, 0.5, 0.999])
    @pytest.mark.parametrize("multiplier", [0.6, 5.0])
    def test_one_poisson_step_is_at_least_its_exact_cost(self, accountant, probability, multiplier):
        for delta in (1e-3, 1e-7):
            exact = epsilon_of_one_poisson_step(probability, multiplier, delta)
            found = accountant.epsilon([(poisson(multiplier, probability), 1)], delta)
            assert found >= exact
            if isinstance(accountant, PLDAccountant):  # tight: two percent, or two grid points where epsilon is tiny
                assert found <= 1.02 * exact + 2e-4

    @pytest.mark.parametrize(("steps", "multiplier"), [(1, 0.05), (1, 1.0), (10, 4.0), (10**6, 2000.0), (3, 900.0)])
    def test_unamplified_steps_are_at_least_their_exact_cost(self, accountant, steps, multiplier):
        for delta in (1e-3, 1e-9):
            exact = epsilon_of_gaussian(math.sqrt(steps) / multiplier, delta)
            found = accountant.epsilon([(undeclared(multiplier), steps)], delta)
            assert found >= exact
            assert accountant.epsilon([(poisson(multiplier, 1.0), steps)], delta) == found
            if isinstance(accountant, PLDAccountant):
                assert found == pytest.approx(exact, rel=1e-7, abs=1e-12)

    @pytest.mark.parametrize(
        "entries",
        [
            [(poisson(0.3, 0.01), 1000)],
            [(poisson(0.1, 1e-3), 100)],
            [(poisson(100.0, 1e-3), 1_100_000)],
            [(poisson(1e-4, 0.5), 1)],
            [(poisson(1e6, 1e-8), 10**6)],
            [(poisson(1.0, 0.999999), 5), (undeclared(1e-3), 2), (poisson(50.0, 1e-3), 7)],
            [(undeclared_laplace(1e-4), 3)],
            [(laplace(1e-3, 0.5), 3)],
            [(laplace(1e6, 1e-8), 10**6)],
            [(laplace(0.1, 1e-3), 10), (undeclared_laplace(1e6), 10), (poisson(0.3, 0.01), 100)],
        ],
    )
    def test_extremes_stay_finite_and_silent(self, accountant, entries):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert 0.0 <= accountant.epsilon(entries, DELTA) < math.inf

    def test_one_instance_keeps_the_curve_of_each_event(self, monkeypatch):
        from deel.lipdp.accounting import accountants

        made = []
        for name in ("amplified_mechanism", "loss_distribution"):
            original = getattr(accountants, name)
            monkeypatch.setattr(accountants, name, lambda *args, f=original: made.append(args) or f(*args))
        for accountant in (RDPAccountant(), PLDAccountant()):
            made.clear()
            for epoch in range(1, 6):
                entries = [(poisson(1.1, 256 / 60000), 235 * epoch), (laplace(5.0), epoch)]
                accountant.epsilon(entries, DELTA)
            assert len(made) == len(set(made)) == 2


def delta_of_gaussian(mu, epsilon):
    """Balle and Wang, ICML 2018, theorem 8: means `mu` standard deviations apart."""
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))


def epsilon_of_gaussian(mu, delta):
    if delta_of_gaussian(mu, 0.0) <= delta:
        return 0.0
    return brentq(lambda e: delta_of_gaussian(mu, e) - delta, 0.0, mu**2 / 2 + 10 * mu, xtol=1e-13)


def epsilon_of_one_poisson_step(probability, multiplier, delta):
    """Hockey-stick divergences of mixture and Gaussian, both ways; the ratio of the two is monotone in the output."""

    def excess(epsilon):
        worst = 0.0
        for sign in (1, -1):  # 1: mixture over Gaussian, above a threshold; -1: Gaussian over mixture, below one
            ratio = (math.expm1(sign * epsilon) + probability) / probability
            if ratio > 0:
                x = multiplier**2 * math.log(ratio) + 0.5
                plain = norm.sf(sign * x / multiplier)
                mixture = probability * norm.sf(sign * (x - 1) / multiplier) + (1 - probability) * plain
                first, second = (mixture, plain) if sign == 1 else (plain, mixture)
                worst = max(worst, first - math.exp(epsilon) * second)
        return worst - delta

    return 0.0 if excess(0.0) <= 0.0 else brentq(excess, 0.0, 300.0, xtol=1e-13)


def test_pld_resolves_delta_or_leaves_it_to_rdp():
    # 10,000 steps by Fourier transform know delta to about 1e-12. For the Gaussian of multiplier 1 at delta 1e-12, of
    # epsilon 7.2385, dp-accounting alone returns 7.2168.
    ledger = [(poisson(1.0, 0.01), 10_000)]
    rdp, pld = RDPAccountant(), PLDAccountant()
    assert pld.epsilon(ledger, 1e-12) == rdp.epsilon(ledger, 1e-12)
    assert pld.epsilon(ledger, 1e-9) < rdp.epsilon(ledger, 1e-9)


@pytest.mark.parametrize("steps", [100, 10_000])
def test_pld_composition_is_at_least_the_exact_gaussian(steps):
    # Probability 1 - 1e-9 takes the numerical path that probability 1 avoids, for nearly the same mechanism.
    accountant = PLDAccountant()
    for delta in (1e-4, 1e-7, 1e-10):
        exact = epsilon_of_gaussian(0.5, delta)
        found = accountant.epsilon([(poisson(2 * math.sqrt(steps), 1 - 1e-9), steps)], delta)
        assert exact < found < 1.05 * exact


@pytest.mark.parametrize("steps", [200, 20_000])
@pytest.mark.parametrize(("probability", "multiplier"), [(0.005, 0.6), (512 / 50_000, 1.0), (0.1, 1.0)])
def test_a_grid_coarser_than_usual_costs_at_most_one_in_ten_thousand(probability, multiplier, steps, monkeypatch):
    entries = [(GaussianStep(PoissonSampling(probability), multiplier), steps)]
    epsilon = PLDAccountant().epsilon(entries, DELTA)
    width = accountants.loss_width
    assert width({("gaussian", probability, multiplier): steps}) > 1e-4
    monkeypatch.setattr(accountants, "loss_width", lambda terms: width(terms) / 4)
    fine = PLDAccountant().epsilon(entries, DELTA)
    assert fine * (1 - 1e-8) <= epsilon <= fine * (1 + 1e-4)


def test_grid_follows_small_probabilities():
    # On the default grid of 1e-4 dp-accounting gives 0.085 here, more than twice what a fine one gives.
    assert PLDAccountant().epsilon([(poisson(1.0, 1e-5), 200_000)], DELTA) < 0.02


def test_relation_of_a_ledger():
    assert neighboring_relation([(poisson(1.0), 3)]) == "add_or_remove_one"
    assert neighboring_relation([(undeclared(1.0), 3)]) == "zero_out"
    assert neighboring_relation(iter([(poisson(1.0), 3), (undeclared(1.0), 1)])) == "zero_out"
    assert neighboring_relation([(poisson(1.0), 3), (undeclared(1.0), 0)]) == "add_or_remove_one"
    assert neighboring_relation([(undeclared(1.0), 0)]) == "zero_out"
    assert neighboring_relation([(shuffled(1.0), 1), (poisson(1.0), 3)]) == "zero_out"
    assert neighboring_relation([(laplace(1.0), 3), (poisson(1.0), 3)]) == "add_or_remove_one"
    assert neighboring_relation([(undeclared_laplace(1.0), 1)]) == "zero_out"
    assert neighboring_relation([]) == "add_or_remove_one"
    with pytest.raises(TypeError, match="object"):
        neighboring_relation([(object(), 1)])


def test_zero_out_prices_a_mixed_ledger_between_its_bounds():
    # Pricing the Poisson steps as if unamplified can only cost more.
    mixed = compute_epsilon([(poisson(2.0, 0.1), 50), (undeclared(4.0), 4)], DELTA, "pld")
    assert compute_epsilon([(undeclared(4.0), 4)], DELTA, "pld") < mixed
    assert mixed < compute_epsilon([(undeclared(2.0), 50), (undeclared(4.0), 4)], DELTA, "pld")


def test_why_fixed_size_batches_have_no_literal_add_remove():
    """Removing an example moves every later one to another batch, so one Gaussian step is not what is released.

    B = 2, D = (1, -1, -1, -1), D' = (-1, -1, -1), noise 1 on each of the two sums, claimed sensitivity 1.
    """
    claimed = delta_of_gaussian(1.0, 3.0)
    assert claimed == pytest.approx(0.0015, abs=5e-5)
    # In this order: sums (0, -2) against (-2, -1), sqrt(5) apart.
    assert delta_of_gaussian(math.sqrt(5.0), 3.0) > 170 * claimed
    # In random order: the 1 is in either batch, sums (0, -2) or (-2, 0). Integrated on a grid: error below 1e-4.
    first, second = np.meshgrid(axis := np.arange(-9.0, 9.0, 0.02), axis, indexing="ij")

    def density(a, b):
        return norm.pdf(first - a) * norm.pdf(second - b)

    loss = 0.5 * density(0, -2) + 0.5 * density(-2, 0) - math.exp(3.0) * density(-2, -1)
    assert np.sum(np.maximum(loss, 0.0)) * 0.02**2 == pytest.approx(0.092, abs=5e-4)


def test_table_and_lookup():
    assert type(get_accountant("pld")) is PLDAccountant and type(get_accountant()) is RDPAccountant
    mine = RDPAccountant()
    assert get_accountant(mine) is mine
    for wrong in ("moments", None, RDPAccountant):
        with pytest.raises(ValueError, match="'rdp', 'pld'"):
            get_accountant(wrong)


def test_import_is_cheap():
    code = (
        "import sys, deel.lipdp.accounting as a; "
        "heavy = {'autodp', 'dp_accounting', 'matplotlib', 'keras', 'tensorflow'} & set(sys.modules); "
        "assert not heavy, heavy; assert all(hasattr(a, name) for name in a.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
