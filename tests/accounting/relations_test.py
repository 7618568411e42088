"""Every event under every relation: exact costs, independent integrals of the pairs of distributions, refusals."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from deel.lipdp.accounting import (
    RELATIONS,
    GaussianStep,
    LaplaceStep,
    PLDAccountant,
    PoissonSampling,
    RDPAccountant,
    ShuffledSampling,
    UndeclaredSampling,
    compute_epsilon,
)
from deel.lipdp.accounting._curves import amplified_mechanism, loss_distribution

DELTA = 1e-5
ADD, ZERO, REPLACE = "add_or_remove_one", "zero_out", "replace_one"


def poisson(multiplier, probability=0.01):
    return GaussianStep(PoissonSampling(probability), multiplier)


def shuffled(multiplier):
    return GaussianStep(ShuffledSampling(), multiplier)


def undeclared(multiplier):
    return GaussianStep(UndeclaredSampling(), multiplier)


def laplace(multiplier, probability=0.01):
    return LaplaceStep(PoissonSampling(probability), multiplier)


def undeclared_laplace(multiplier):
    return LaplaceStep(UndeclaredSampling(), multiplier)


@pytest.fixture(scope="module")
def accountants():
    return {"rdp": RDPAccountant(), "pld": PLDAccountant()}


def test_relations_are_named_and_explained():
    assert list(RELATIONS) == [ADD, ZERO, REPLACE] and all(RELATIONS.values())


def test_one_plan_under_every_relation(accountants):
    # Noise multiplier 4, batch 256, n = 60,000, 10 epochs. The figures of each relation were computed with
    # dp-accounting alone; 0.191 on its grid of orders, which autodp's continuous ones improve by 1 %.
    plan, passes = [(poisson(4.0, 256 / 60000), 2344)], [(shuffled(4.0), 10)]
    assert compute_epsilon(plan, DELTA, accountants["pld"]) == pytest.approx(0.170, abs=5e-4)
    assert 0.98 * 0.191 < compute_epsilon(plan, DELTA, accountants["rdp"]) < 0.191
    assert compute_epsilon(passes, DELTA, accountants["pld"]) == pytest.approx(3.34, abs=5e-3)
    assert compute_epsilon(passes, DELTA, accountants["rdp"]) == pytest.approx(3.62, abs=5e-3)
    assert compute_epsilon(passes, DELTA, accountants["pld"], REPLACE) == pytest.approx(7.51, abs=5e-3)
    assert compute_epsilon(plan, DELTA, accountants["pld"], REPLACE) == pytest.approx(0.352, abs=5e-3)


@pytest.mark.parametrize("name", ["rdp", "pld"])
class TestWithoutAmplification:
    def test_relation_that_is_the_default(self, accountants, name):
        price = accountants[name].epsilon
        for make in (shuffled, undeclared, undeclared_laplace):
            assert price([(make(3.0), 7)], DELTA) == price([(make(3.0), 7)], DELTA, ZERO)

    @pytest.mark.parametrize("make", [shuffled, undeclared, undeclared_laplace])
    def test_replacing_is_twice_as_far(self, accountants, name, make):
        price = accountants[name].epsilon
        assert price([(make(3.0), 7)], DELTA, REPLACE) == price([(make(1.5), 7)], DELTA)

    def test_a_pass_costs_what_a_step_costs(self, accountants, name):
        price = accountants[name].epsilon
        assert price([(shuffled(3.0), 4)], DELTA) == price([(undeclared(3.0), 4)], DELTA)
        mixed = [(shuffled(3.0), 4), (undeclared(3.0), 5)]
        assert price(mixed, DELTA) == pytest.approx(price([(undeclared(3.0), 9)], DELTA), rel=1e-12)

    @pytest.mark.parametrize("make", [shuffled, undeclared, undeclared_laplace])
    def test_a_literal_addition_is_refused(self, accountants, name, make):
        for entries in ([(make(3.0), 1)], [(poisson(1.0), 5), (make(3.0), 1)]):
            with pytest.raises(ValueError, match="'zero_out'.*add_or_remove_one.*shifts every later one"):
                accountants[name].epsilon(entries, DELTA, ADD)
        # Nothing was released under it.
        assert accountants[name].epsilon([(make(3.0), 0)], DELTA, ADD) == 0.0

    @pytest.mark.parametrize("multiplier", [0.2, 1.0, 8.0])
    def test_one_laplace_step_is_at_least_its_exact_cost(self, accountants, name, multiplier):
        for delta in (1e-3, 1e-7):
            exact = 1 / multiplier + 2 * math.log1p(-delta)  # delta = 1 - exp((epsilon - 1 / b) / 2)
            found = accountants[name].epsilon([(undeclared_laplace(multiplier), 1)], delta)
            assert exact * (1 - 1e-12) <= found <= (1 + 1e-3) * exact + 1e-4


@pytest.mark.parametrize("name", ["rdp", "pld"])
class TestPoisson:
    def test_a_null_record_costs_what_an_absent_one_does(self, accountants, name):
        entries = [(poisson(1.0), 100), (laplace(3.0), 10)]
        costs = {accountants[name].epsilon(entries, DELTA, relation) for relation in (None, ADD, ZERO)}
        assert len(costs) == 1 and costs.pop() > 0.1

    def test_replacing_a_record_of_a_laplace_step_is_refused(self, accountants, name):
        with pytest.raises(ValueError, match="LaplaceStep with PoissonSampling.*UndeclaredSampling"):
            accountants[name].epsilon([(laplace(3.0), 1)], DELTA, REPLACE)

    def test_everyone_in_every_batch_needs_no_sampling(self, accountants, name):
        price = accountants[name].epsilon
        assert price([(poisson(3.0, 1.0), 5)], DELTA, REPLACE) == price([(undeclared(1.5), 5)], DELTA)

    @pytest.mark.parametrize("relation", ["swap", "ADD_OR_REMOVE_ONE", 3, ["zero_out"]])
    def test_unknown_relation(self, accountants, name, relation):
        with pytest.raises(ValueError, match="'add_or_remove_one', 'zero_out', 'replace_one'"):
            accountants[name].epsilon([(poisson(1.0), 1)], DELTA, relation)


def test_rdp_leaves_replaced_poisson_steps_to_pld(accountants):
    with pytest.raises(ValueError, match="replace_one.*accountant='pld'"):
        accountants["rdp"].epsilon([(poisson(1.0), 5)], DELTA, REPLACE)


def hockey_stick(first, second, epsilon, points, breaks):
    """Integral of max(0, first - exp(epsilon) * second) by quadrature, which assumes nothing about where it is."""
    ends = [points[0], *breaks, points[1]]

    def excess(x):
        return max(0.0, first(x) - math.exp(epsilon) * second(x))

    return sum(
        quad(excess, low, high, epsabs=1e-13, epsrel=1e-9, limit=1000)[0]
        for low, high in zip(ends, ends[1:], strict=False)
    )


class TestPairOfReplacedRecords:
    @pytest.mark.parametrize(
        ("probability", "multiplier"),
        [(1e-3, 0.5), (0.1, 1.0), (0.7, 3.0)]
        + [
            pytest.param(*case, marks=pytest.mark.full)
            for case in [(0.1, 0.5), (0.7, 0.5), (1e-3, 1.0), (0.7, 1.0), (1e-3, 3.0), (0.1, 3.0)]
        ],
    )
    def test_one_step_against_an_integral_of_the_pair(self, probability, multiplier):
        def mixture(sign):
            return lambda x: (
                (1 - probability) * norm.pdf(x, 0.0, multiplier) + probability * norm.pdf(x, sign, multiplier)
            )

        loss = loss_distribution("gaussian_pair", probability, multiplier, 1e-4)
        for epsilon in (0.0, 0.05, 0.4, 2.0):
            ends, breaks = (-1 - 12 * multiplier, 1 + 12 * multiplier), np.linspace(-1 - 5 * multiplier, 6, 23)
            exact = [
                hockey_stick(mixture(sign), mixture(-sign), epsilon, ends, sorted(breaks[breaks < ends[1]]))
                for sign in (1, -1)
            ]
            assert exact[0] == pytest.approx(exact[1], rel=1e-6, abs=1e-11)  # the pair is its own mirror image
            # Quadrature is good to 1e-11; the grid costs nothing at its own points.
            assert loss.get_delta_for_epsilon(epsilon) == pytest.approx(max(exact), rel=1e-6, abs=1e-10)

    def test_no_other_pair_of_records_costs_more(self):
        # Records in the plane, both of norm at most 1: the opposite ones are the worst.
        q, sigma, axis = 0.3, 1.0, np.arange(-7.0, 7.0, 0.05)
        first, second = np.meshgrid(axis, axis, indexing="ij")

        def density(record):
            plain = norm.pdf(first, 0, sigma) * norm.pdf(second, 0, sigma)
            return (1 - q) * plain + q * norm.pdf(first, record[0], sigma) * norm.pdf(second, record[1], sigma)

        for epsilon in (0.0, 0.1, 0.5):

            def delta(u, v, epsilon=epsilon):
                return np.sum(np.maximum(density(u) - math.exp(epsilon) * density(v), 0.0)) * 0.05**2

            worst = delta((1, 0), (-1, 0))
            for angle in (0.0, 0.6, 1.5, 2.5, 3.0):
                for length in (0.0, 0.5, 1.0):
                    other = (length * math.cos(angle), length * math.sin(angle))
                    assert delta((1, 0), other) <= worst + 1e-6
                    assert delta(other, (1, 0)) <= worst + 1e-6

    @pytest.mark.parametrize("steps", [100, 10_000])
    def test_composition_is_at_least_the_exact_gaussian(self, accountants, steps):
        # Probability 1 - 1e-9 takes the numerical path that probability 1 avoids, for nearly the same mechanism.
        for delta in (1e-4, 1e-9):
            exact = accountants["pld"].epsilon([(undeclared(1.0), 1)], delta)
            found = accountants["pld"].epsilon([(poisson(2 * math.sqrt(steps), 1 - 1e-9), steps)], delta, REPLACE)
            assert exact < found < 1.05 * exact

    def test_between_removing_once_and_twice_as_far(self, accountants):
        price = accountants["pld"].epsilon
        for multiplier, probability, steps in ((1.0, 0.01, 500), (4.0, 0.1, 100), (0.6, 1e-3, 1000)):
            entries = [(poisson(multiplier, probability), steps)]
            far = [(poisson(multiplier / 2, probability), steps)]
            assert price(entries, DELTA) < price(entries, DELTA, REPLACE) < price(far, DELTA)

    def test_mixes_with_other_events(self, accountants):
        price = accountants["pld"].epsilon
        entries = [(poisson(1.0), 500), (shuffled(20.0), 2), (undeclared_laplace(50.0), 3)]
        assert price(entries, DELTA) < price(entries, DELTA, REPLACE)
        assert price(entries[:1], DELTA, REPLACE) < price(entries, DELTA, REPLACE)

    def test_where_delta_is_not_resolved_sampling_is_left_out(self, accountants):
        # 10,000 steps know delta to 4e-11 only.
        found = accountants["pld"].epsilon([(poisson(100.0, 0.1), 10_000)], 1e-12, REPLACE)
        assert found == accountants["rdp"].epsilon([(undeclared(50.0), 10_000)], 1e-12)


class TestSampledLaplace:
    @pytest.mark.parametrize("probability", [0.01, 0.5])
    @pytest.mark.parametrize("multiplier", [0.3, 5.0])
    def test_renyi_curve_is_at_least_both_divergences(self, probability, multiplier):
        def plain(x, centre=0.0):
            return math.exp(-abs(x - centre) / multiplier) / (2 * multiplier)

        def mixture(x):
            return (1 - probability) * plain(x) + probability * plain(x, 1.0)

        def divergence(first, second, order):
            ends = (-40 * multiplier, 0.0, 1.0, 1.0 + 40 * multiplier)
            moment = sum(
                quad(lambda x: (first(x) / second(x)) ** order * second(x), low, high, epsabs=0, epsrel=1e-10)[0]
                for low, high in zip(ends, ends[1:], strict=False)
            )
            return math.log(moment) / (order - 1)

        curve = amplified_mechanism("laplace", probability, multiplier).RenyiDP
        for order in (2, 2.5, 5, 12):
            with_over_without = divergence(mixture, plain, order)
            without_over_with = divergence(plain, mixture, order)
            assert without_over_with <= with_over_without <= curve(order) * (1 + 1e-7)
            if order == int(order):
                assert curve(order) == pytest.approx(with_over_without, rel=1e-6)

    @pytest.mark.parametrize("probability", [0.01, 0.5])
    @pytest.mark.parametrize("multiplier", [0.3, 5.0])
    def test_one_step_is_at_least_its_exact_cost(self, accountants, probability, multiplier):
        # Delta of "with over without" is q times that of plain Laplace noise at log(1 + (exp(epsilon) - 1) / q).
        for delta in (1e-3, 1e-7):
            plain = 1 / multiplier + 2 * math.log1p(-delta / probability)
            exact = math.log1p(probability * math.expm1(plain)) if plain > 0 else 0.0
            for name, accountant in accountants.items():
                found = accountant.epsilon([(laplace(multiplier, probability), 1)], delta)
                assert found >= exact * (1 - 1e-9)
                if name == "pld":
                    assert found <= 1.01 * exact + 2e-4
