"""The established entry point agrees with the accountants and with autodp."""

import copy
import math
import pickle

import pytest

from deel.lipdp.accounting import DPGD_Mechanism, GaussianStep, PoissonSampling, compute_epsilon

DELTA = 1e-5
# SciPy divides infinities while it brackets autodp's minimum; the accountants silence that, autodp itself does not.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def test_global_is_the_rdp_epsilon():
    mechanism = DPGD_Mechanism("global", 250 / 60000, 1.3, 3600, DELTA)
    assert mechanism.delta == DELTA
    assert mechanism.noise_multiplier == 1.3
    assert mechanism.epsilon == pytest.approx(0.9422, abs=1e-4)
    assert mechanism.epsilon == compute_epsilon([(GaussianStep(PoissonSampling(250 / 60000), 1.3), 3600)], DELTA)


@pytest.mark.parametrize("mode", ["per-layer", "local"])
def test_layers_are_one_joint_gaussian(mode):
    layers = DPGD_Mechanism(mode, 0.01, [3.0, 4.0, 12.0], 100, DELTA)
    joint = (1 / 9 + 1 / 16 + 1 / 144) ** -0.5
    assert layers.noise_multiplier == pytest.approx(joint, rel=1e-14)
    assert layers.epsilon == pytest.approx(DPGD_Mechanism("global", 0.01, joint, 100, DELTA).epsilon, rel=1e-12)
    assert DPGD_Mechanism(mode, 0.01, (2.0 for _ in range(4)), 100, DELTA).noise_multiplier == pytest.approx(1.0)


def test_limits():
    assert DPGD_Mechanism("global", 0.1, 0.0, 5, DELTA).epsilon == math.inf
    assert DPGD_Mechanism("local", 0.1, [1.0, 0.0], 5, DELTA).epsilon == math.inf
    assert DPGD_Mechanism("global", 0.1, 0.0, 0, DELTA).epsilon == 0.0


@pytest.mark.parametrize("probability", [0.01, 1.0])
def test_stands_in_for_an_autodp_mechanism(probability):
    from autodp.autodp_core import Mechanism
    from autodp.transformer_zoo import Composition

    mechanism = DPGD_Mechanism("global", probability, 2.0, 10, DELTA, name="mine")
    assert isinstance(mechanism.as_autodp(), Mechanism)
    assert mechanism.neighboring == "add_remove"
    assert mechanism.get_approxDP(DELTA) == pytest.approx(mechanism.epsilon, rel=1e-9)
    twice = Composition()([mechanism], [2])
    assert twice.name == "Compose:{mine: 2}"
    assert twice.get_RDP(8.0) == pytest.approx(2 * mechanism.get_RDP(8.0))
    longer = DPGD_Mechanism("global", probability, 2.0, 20, DELTA)
    assert twice.get_approxDP(DELTA) == pytest.approx(longer.epsilon, rel=1e-9)


@pytest.mark.parametrize(("multiplier", "steps", "epsilon"), [(0.0, 3, math.inf), (1e-200, 3, math.inf), (1.0, 0, 0.0)])
@pytest.mark.parametrize("probability", [0.1, 1.0])
def test_autodp_at_the_limits(probability, multiplier, steps, epsilon):
    mechanism = DPGD_Mechanism("global", probability, multiplier, steps, DELTA)
    assert mechanism.epsilon == mechanism.get_approxDP(DELTA) == mechanism.get_RDP(3.0) == epsilon


def test_curve_is_that_of_autodp():
    from autodp.mechanism_zoo import GaussianMechanism
    from autodp.transformer_zoo import AmplificationBySampling

    autodp = AmplificationBySampling(PoissonSampling=True)(GaussianMechanism(2.0), 0.01, improved_bound_flag=True)
    mine = DPGD_Mechanism("global", 0.01, 2.0, 1, DELTA)
    for order in (1.0, 1.5, 2, 2.0, 2.25, 7.9, 99.5, 100.5, 300.0):
        assert mine.get_RDP(order) == pytest.approx(autodp.get_RDP(order), rel=1e-9)
    assert mine.get_RDP(math.inf) == math.inf


def test_copies_and_pickles_before_use():
    mechanism = DPGD_Mechanism("global", 0.01, 2.0, 10, DELTA)
    for twin in (copy.deepcopy(mechanism), pickle.loads(pickle.dumps(mechanism))):
        assert twin.epsilon == mechanism.epsilon
    for name in ("no_such_attribute", "_private"):
        with pytest.raises(AttributeError, match=name):
            getattr(mechanism, name)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (dict(mode="optimal"), TypeError, "'global', 'per-layer', 'local'"),
        (dict(mode=None), TypeError, "mode"),
        (dict(prob=0.0), ValueError, "prob"),
        (dict(prob=1.5), ValueError, "prob"),
        (dict(noise_multipliers=-1.0), ValueError, "noise_multipliers"),
        (dict(noise_multipliers=[1.0]), TypeError, "noise_multipliers"),
        (dict(mode="local", noise_multipliers=1.0), TypeError, "one per layer"),
        (dict(mode="local", noise_multipliers=[]), TypeError, "one per layer"),
        (dict(mode="local", noise_multipliers=[1.0, -1.0]), ValueError, "noise_multipliers"),
        (dict(num_grad_steps=1.5), TypeError, "num_grad_steps"),
        (dict(num_grad_steps=-1), ValueError, "num_grad_steps"),
        (dict(delta=0.0), ValueError, "delta"),
    ],
)
def test_bad_arguments(arguments, error, match):
    good = dict(mode="global", prob=0.1, noise_multipliers=1.0, num_grad_steps=3, delta=DELTA)
    with pytest.raises(error, match=match):
        DPGD_Mechanism(**{**good, **arguments})
