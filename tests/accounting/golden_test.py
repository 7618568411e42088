"""Values that papers and other libraries print."""

import math

import pytest

from deel.lipdp.accounting import (
    DPGD_Mechanism,
    GaussianStep,
    LaplaceStep,
    PoissonSampling,
    UndeclaredSampling,
    compute_epsilon,
    compute_search_epsilon,
)

DELTA = 1e-5

# (sampling probability, noise multiplier, steps, epsilon printed, half of its last digit, source). All at delta 1e-5,
# by the conversion epsilon = min over integer orders of RDP + log(1 / delta) / (order - 1) (Mironov, 2017, proposition
# 3), which both accountants improve on.
BY_THE_OLD_CONVERSION = [
    (0.01, 4.0, 10_000, 1.26, 5e-3, "Abadi et al., CCS 2016, section 3: moments accountant, E = 100"),
    (256 / 60000, 1.3, 15 * 235, 1.19, 5e-3, "TensorFlow Privacy, tutorials/README.md, MNIST, first row"),
    (256 / 60000, 1.1, 60 * 235, 3.01, 5e-3, "TensorFlow Privacy, tutorials/README.md, MNIST, second row"),
    (256 / 60000, 1.12, 14_062, 2.92, 5e-3, "TensorFlow Privacy, compute_dp_sgd_privacy with N=60000, 60 epochs"),
    (250 / 60000, 1.3, 3_600, 1.18, 5e-3, "TensorFlow Privacy, classification tutorial, 15 epochs"),
]


@pytest.mark.parametrize("row", BY_THE_OLD_CONVERSION, ids=lambda row: row[-1].split(",")[0])
def test_moments_accountant(row):
    probability, multiplier, steps, printed, tolerance, _ = row
    run = DPGD_Mechanism("global", probability, multiplier, steps, DELTA)
    found = min(run.get_RDP(order) + math.log(1 / DELTA) / (order - 1) for order in range(2, 257))
    assert found == pytest.approx(printed, abs=tolerance)
    entries = [(GaussianStep(PoissonSampling(probability), multiplier), steps)]
    rdp, pld = (compute_epsilon(entries, DELTA, name) for name in ("rdp", "pld"))
    assert 0.7 * printed < pld < rdp < printed


def test_analytic_gaussian():
    # Balle and Wang, ICML 2018, algorithm 1: the least stddev for epsilon 1 and delta 1e-5 is 3.730632 sensitivities.
    # The classical calibration, sqrt(2 log(1.25 / delta)), asks for 4.845.
    def price(multiplier, accountant):
        return compute_epsilon([(GaussianStep(UndeclaredSampling(), multiplier), 1)], DELTA, accountant)

    assert price(3.730632, "pld") == pytest.approx(1.0, abs=1e-6)
    assert 1.0 < price(3.730632, "rdp") < 1.1
    assert price(math.sqrt(2 * math.log(1.25 / DELTA)), "rdp") < 1.0


def test_laplace_is_purely_private():
    # Dwork, McSherry, Nissim and Smith, TCC 2006: n releases of scale b cost at most n / b, whatever delta.
    for count, multiplier in ((1, 0.5), (1, 2.0), (3, 6.0)):
        entries = [(LaplaceStep(UndeclaredSampling(), multiplier), count)]
        for accountant in ("rdp", "pld"):
            # The grid of privacy losses and the largest Renyi order leave about 1e-3.
            assert compute_epsilon(entries, 1e-9, accountant) == pytest.approx(count / multiplier, rel=2e-3)


@pytest.mark.parametrize(("distribution", "factor"), [("geometric", 3), ("logarithmic", 2), (0.5, 2.5)])
def test_search_over_purely_private_runs(distribution, factor):
    # Liu and Talwar, STOC 2019, theorem 1.3, for the geometric distribution; Papernot and Steinke, ICLR 2022, corollary
    # 3, for all of them: 2 + shape times the epsilon of a run. The largest order of dp-accounting leaves 1 %.
    entries = [(LaplaceStep(UndeclaredSampling(), 1.0), 1)]
    found = compute_search_epsilon(entries, DELTA, 10, distribution)
    assert found == pytest.approx(factor, rel=1e-2)
