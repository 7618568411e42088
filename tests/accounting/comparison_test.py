"""The two accountants agree as far as they can, and a broken one is caught."""

import dataclasses
import math

import pytest

from deel.lipdp.accounting import (
    GaussianStep,
    LaplaceStep,
    PLDAccountant,
    PoissonSampling,
    RDPAccountant,
    ShuffledSampling,
    UndeclaredSampling,
    compare_accountants,
    compute_epsilon,
)

DELTA = 1e-5


def poisson(probability, multiplier):
    return GaussianStep(PoissonSampling(probability), multiplier)


USUAL = [
    [(poisson(250 / 60000, 1.3), 3600)],
    [(poisson(256 / 60000, 1.1), 14_040)],
    [(poisson(512 / 50000, 1.0), 9700)],
    [(poisson(0.01, 4.0), 1000)],
    [(poisson(0.034, 4.0), 900), (LaplaceStep(UndeclaredSampling(), 50.0), 3)],
    [(GaussianStep(ShuffledSampling(), 4.0), 10)],
    [(GaussianStep(UndeclaredSampling(), 30.0), 100)],
]


class Halved:
    """An accountant that forgets half of the epsilon."""

    def __init__(self, accountant, factor=0.5):
        self._accountant, self._factor = accountant, factor

    def epsilon(self, entries, delta, relation=None):
        return self._factor * self._accountant.epsilon(entries, delta, relation)


@pytest.fixture(scope="module")
def accountants():
    return RDPAccountant(), PLDAccountant()


@pytest.mark.parametrize("entries", USUAL)
def test_usual_plans_agree(accountants, entries):
    found = compare_accountants(entries, DELTA)
    assert found.warning is None and found.epsilon_pld < found.epsilon_rdp < 1.2 * found.epsilon_pld
    rdp, pld = accountants
    assert (found.epsilon_rdp, found.epsilon_pld) == (rdp.epsilon(entries, DELTA), pld.epsilon(entries, DELTA))


@pytest.mark.parametrize("entries", USUAL)
def test_a_halved_epsilon_is_caught(accountants, entries):
    rdp, pld = accountants
    assert "less than PLD" in compare_accountants(entries, DELTA, rdp=Halved(rdp), pld=pld).warning
    assert "Trust the larger" in compare_accountants(entries, DELTA, rdp=rdp, pld=Halved(pld)).warning
    assert compare_accountants(entries, DELTA, rdp=Halved(rdp, 1.0), pld=Halved(pld, 1.0)).warning is None


def test_relation_that_only_one_can_price(accountants):
    entries = [(poisson(0.01, 1.0), 100)]
    found = compare_accountants(entries, DELTA, "replace_one")
    assert found.epsilon_rdp is None and found.warning is None
    assert found.epsilon_pld == compute_epsilon(entries, DELTA, "pld", "replace_one")
    shuffled = compare_accountants([(GaussianStep(ShuffledSampling(), 4.0), 10)], DELTA, "replace_one")
    assert shuffled.epsilon_rdp > shuffled.epsilon_pld > 7.5 and shuffled.warning is None


def test_nothing_and_everything(accountants):
    assert compare_accountants([], DELTA) == compare_accountants([(poisson(0.1, 1.0), 0)], DELTA)
    assert compare_accountants([], DELTA).epsilon_rdp == 0.0
    without_noise = compare_accountants(iter([(poisson(0.1, 0.0), 1)]), DELTA)
    assert without_noise.epsilon_rdp == without_noise.epsilon_pld == math.inf and without_noise.warning is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        without_noise.warning = "none"
    with pytest.raises(TypeError, match="str"):
        compare_accountants([("step", 1)], DELTA)


def test_rare_events_widen_the_gap_and_are_no_alarm(accountants):
    rdp, pld = accountants
    found = compare_accountants([(poisson(1e-4, 0.5), 100)], DELTA, rdp=rdp, pld=pld)
    assert found.epsilon_rdp > 10 * found.epsilon_pld > 1.0 and found.warning is None


@pytest.mark.full
@pytest.mark.parametrize("probability", [1e-3, 0.02, 0.3, 1.0])
def test_no_alarm_in_a_sweep(accountants, probability):
    rdp, pld = accountants
    for multiplier in (0.6, 1.4, 6.0):
        for steps in (1, 30, 900):
            for delta in (1e-4, 1e-8):
                release = (LaplaceStep(PoissonSampling(probability), 10 * multiplier), max(1, steps // 10))
                for entries in ([(poisson(probability, multiplier), steps)], [release]):
                    assert compare_accountants(entries, delta, rdp=rdp, pld=pld).warning is None, (entries, delta)
