"""How many epochs fit in a budget: exact, with all that callbacks release, whatever was spent before."""

import math

import numpy as np
import pytest
from doubles import SHAPE, UPPER_BOUND, data, model

from deel.lipdp.accounting import GaussianStep, compute_epsilon
from deel.lipdp.dynamic import AdaptiveQuantileClipping, LaplaceAdaptiveLossGradientClipping
from deel.lipdp.layers import DP_BoundedInput, DP_ClipGradient, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.model import get_eps_delta
from deel.lipdp.privacy import planned_entries
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.sensitivity import get_max_epochs

X, Y = data(40)


def private_model(**kwargs):
    layers = [
        DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE),
        DP_Flatten(),
        DP_QuickSpectralDense(4),
        DP_ClipGradient(0.25, dynamic=True),
    ]
    return model(layers, **{"noise_multiplier": 4.0, **kwargs})


def quantile(patience, noise_multiplier=2.0):
    return AdaptiveQuantileClipping(poisson_batches(X, Y, 8), patience, noise_multiplier)


def laplace(patience, epsilon=0.5):
    return LaplaceAdaptiveLossGradientClipping(poisson_batches(X, Y, 8), patience, epsilon)


class KnownCurve:
    """Each count of a training step costs 1; an update costs 7, or 0.25 where it is Laplace."""

    def epsilon(self, entries, delta):
        def cost(event):
            return 0.25 if not isinstance(event, GaussianStep) else 1.0 if event.noise_multiplier == 4.0 else 7.0

        return math.fsum(count * cost(event) for event, count in entries)


@pytest.mark.parametrize("sampling", ["poisson", "shuffled", None])
def test_exact_on_a_known_curve(sampling):
    private = private_model(sampling=sampling)
    per_epoch = 1 if sampling == "shuffled" else 5
    event = planned_entries(private, 1)[0][0]
    for spent in (0, 3):
        private.ledger.counter(event).assign(spent)
        for first in (1, 3, 4):
            callbacks = [quantile(first), laplace(2)]
            for epochs in (1, 2, 3, 4, 9):
                cost = spent + per_epoch * epochs + 7 * math.ceil(epochs / first) + 0.25 * math.ceil(epochs / 2)
                for budget, expected in ((cost, epochs), (np.nextafter(cost, 0), epochs - 1)):
                    assert get_max_epochs(budget, private, 100, KnownCurve(), callbacks=iter(callbacks)) == expected


@pytest.mark.parametrize(
    ("accountant", "sampling"), [("rdp", "poisson"), ("pld", "poisson"), ("rdp", "shuffled"), ("rdp", None)]
)
def test_one_epoch_more_would_exceed_the_budget(accountant, sampling):
    private = private_model(sampling=sampling)
    callbacks = [quantile(2), laplace(3)]

    def price(epochs):
        spent = private.ledger.entries()
        return compute_epsilon([*spent, *planned_entries(private, epochs, callbacks)], 1e-5, accountant)

    assert price(7) == get_eps_delta(private, 7, accountant, callbacks=callbacks)[0]
    assert get_max_epochs(price(7), private, 20, accountant, callbacks=callbacks) == 7
    assert get_max_epochs(np.nextafter(price(7), 0), private, 20, accountant, callbacks=callbacks) == 6
    private.ledger.counter(callbacks[0].event).assign(3)
    budget = 1.1 * price(4)
    epochs = get_max_epochs(budget, private, 20, accountant, callbacks=callbacks)
    assert epochs >= 4 and price(epochs) <= budget < price(epochs + 1)


def test_releases_leave_less_for_epochs():
    private = private_model(sampling="poisson")
    budget = get_eps_delta(private, 10)[0]
    assert get_max_epochs(budget, private) == 10
    assert get_max_epochs(budget, private, callbacks=[quantile(1)]) < 10
    assert get_max_epochs(budget, private, 4) == 4
    # Not even the update before the first step fits.
    assert get_max_epochs(budget, private, callbacks=[quantile(5, noise_multiplier=0.2)]) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"epsilon_max": 0.0}, ValueError, "epsilon_max=0.0"),
        ({"epsilon_max": math.nan}, ValueError, "epsilon_max=nan"),
        ({"epsilon_max": "1"}, TypeError, "epsilon_max='1'"),
        ({"epochs_max": 0}, ValueError, "epochs_max=0"),
        ({"epochs_max": 1.5}, TypeError, "epochs_max=1.5"),
        ({"accountant": "gdp"}, ValueError, "accountant='gdp'"),
    ],
)
def test_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        get_max_epochs(**{"epsilon_max": 1.0, "model": private_model(), **arguments})
