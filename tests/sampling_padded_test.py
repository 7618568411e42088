"""Padded Poisson batches: the same examples in static shapes, none dropped, and the same training."""

import keras
import numpy as np
import pytest
from doubles import NUM_CLASSES, SHAPE, UPPER_BOUND, data, model
from scipy import stats

from deel.lipdp import sampling
from deel.lipdp.layers import DP_BoundedInput, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.sampling import poisson_batches, sampling_of

N = 40
X, Y = data(N)
B = 8


@pytest.fixture(params=[None, 8, 3], ids=["roomy", "as expected", "tiny"])
def capacity(request, monkeypatch):
    """The rows of a padded batch; the smaller two overflow in about half of the batches, and in almost all."""
    if request.param is not None:
        monkeypatch.setattr(sampling, "_capacity", lambda batch_size, n: request.param)
    return sampling._capacity(B, N)


def test_they_hold_the_rows_of_the_unpadded_batches(capacity):
    plain = poisson_batches(X, Y, B, steps=60, seed=0)
    padded = poisson_batches(X, Y, B, steps=60, seed=0, padded=True)
    sizes = []
    for _ in range(2):
        for (x, y), (padded_x, padded_y, weight) in zip(plain, padded, strict=True):
            rows = len(x)
            sizes.append(len(weight))
            assert len(weight) == capacity * max(1, -(-rows // capacity))
            np.testing.assert_array_equal(padded_x[:rows], x)
            np.testing.assert_array_equal(padded_y[:rows], y)
            np.testing.assert_array_equal(weight, np.arange(len(weight)) < rows)
            assert np.all(padded_x[rows:] == 0) and np.all(padded_y[rows:] == 0)
    assert (len(set(sizes)) > 1) == (capacity <= B)  # the small ones overflowed, the large one never


def test_an_empty_batch_is_padding():
    batches = list(poisson_batches(X, Y, 1, steps=30, seed=0, padded=True))
    assert {x.shape for x, _, _ in batches} == {(8, *SHAPE)}
    assert 0.0 in [float(np.sum(weight)) for _, _, weight in batches]  # 11 expected


def test_the_mark_and_the_shapes():
    plain, padded = poisson_batches(X, Y, B), poisson_batches(X, Y, B, padded=True)
    assert sampling_of(padded).sampling == sampling_of(plain).sampling
    assert [tuple(spec.shape) for spec in padded.element_spec] == [(None, *SHAPE), (None, NUM_CLASSES), (None,)]
    assert len(padded) == len(plain)


@pytest.mark.parametrize("n", [10, 100, 60_000])
def test_capacity_is_rarely_exceeded_and_never_above_the_whole_set(n):
    for batch_size in {1, 2, 4, 7, 10, n // 20 + 1, n // 2, n}:
        capacity = sampling._capacity(batch_size, n)
        assert capacity % 8 == 0 or capacity == n
        assert batch_size <= capacity <= n
        assert stats.binom.sf(capacity, n, batch_size / n) < 2e-6


# -- training --------------------------------------------------------------------------------------------------------


def trained(padded, jit_compile=False, noise_multiplier=1.0, epochs=2):
    """Weights, history and ledger of a model that starts from the same weights, on batches and noise of one seed."""
    keras.utils.set_random_seed(0)
    private = model(
        [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten(), DP_QuickSpectralDense(NUM_CLASSES)],
        metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(2, name="top")],
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9),
        noise_multiplier=noise_multiplier,
        noise_seed=1,
        compile_arguments={"jit_compile": jit_compile},
    )
    history = private.fit(poisson_batches(X, Y, B, steps=5, seed=3, padded=padded), epochs=epochs, verbose=0)
    return private.get_weights(), history.history, private.ledger.entries()


def assert_same_training(one, other):
    for got, expected in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)  # sums of other lengths round in another order
    assert one[1].keys() == other[1].keys()
    for name, values in one[1].items():
        np.testing.assert_allclose(values, other[1][name], rtol=1e-4)
    assert one[2] == other[2]


@pytest.fixture(scope="module")
def plain():
    return trained(False)


@pytest.mark.parametrize("capacity", [None, 3], ids=["roomy", "tiny"], indirect=True)
def test_training_is_the_same(capacity, plain):
    """Weights, logged loss and metrics: padding counts nowhere, and what overflows does not get lost."""
    assert_same_training(trained(True), plain)


@pytest.mark.full  # each shape is compiled
@pytest.mark.parametrize("capacity", [8], ids=["as expected"], indirect=True)
def test_training_is_the_same_under_xla(capacity):
    # XLA has another generator of noise, so both do without.
    compiled = trained(True, jit_compile=True, noise_multiplier=0.0, epochs=1)
    assert_same_training(compiled, trained(False, noise_multiplier=0.0, epochs=1))
