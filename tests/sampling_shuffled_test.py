"""What `shuffled_batches` emits, and that the ledger counts every pass that was started."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import NUM_CLASSES, SHAPE, UPPER_BOUND, data, model
from scipy import stats

from deel.lipdp import sampling
from deel.lipdp.accounting import GaussianStep, ShuffledSampling
from deel.lipdp.layers import DP_BoundedInput, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.sampling import sampling_of, shuffled_batches

# Chance that a correct sampler fails one given check of the three below.
FALSE_ALARM = 1e-6


def numbers(n):
    return np.arange(n, dtype=np.float32)[:, None], np.zeros(n, np.float32)


def orders(dataset, passes):
    """Returns an array (passes, n): the examples in the order in which each pass emits them."""
    rows = [x.numpy().astype(int).ravel() for x, _ in dataset.repeat(passes)]
    return np.concatenate(rows).reshape(passes, -1)


def departures_from_uniform_orders(found):
    """Returns the names of the properties of independent uniform permutations that the passes fail."""
    passes, n = found.shape
    failed = []

    def check(name, p_value):
        if p_value < FALSE_ALARM:
            failed.append(name)

    # How often example i is at position t. Rows and columns of the table sum to the number of passes, so the statistic
    # of Pearson, times (n - 1) / n, is chi-square with (n - 1)^2 degrees of freedom.
    table = np.zeros((n, n))
    np.add.at(table, (found, np.arange(n)), 1)
    spread = (n - 1) / n * ((table - passes / n) ** 2).sum() / (passes / n)
    check("position", 2 * min(stats.chi2.cdf(spread, (n - 1) ** 2), stats.chi2.sf(spread, (n - 1) ** 2)))
    # The first two of a pass are one of n (n - 1) pairs.
    pairs = np.bincount(n * found[:, 0] + found[:, 1], minlength=n * n).reshape(n, n)
    check("neighbours", stats.chisquare(pairs[~np.eye(n, dtype=bool)]).pvalue)
    # Two independent permutations agree at as many positions as one has fixed points: mean 1, variance 1.
    agree = (found[1:] == found[:-1]).sum()
    check("next pass", 2 * stats.norm.sf(abs(agree - (passes - 1)) / np.sqrt(passes - 1)))
    return failed


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"), [(20, 6, [6, 6, 6, 2]), (12, 4, [4] * 3), (5, 5, [5]), (3, 1, [1] * 3)]
)
@pytest.mark.parametrize("seed", [None, 0])
def test_each_example_is_in_one_batch_of_a_pass(n, batch_size, sizes, seed):
    dataset = shuffled_batches(*numbers(n), batch_size, seed=seed)
    assert len(dataset) == len(sizes)
    for _ in range(2):
        batches = [x.numpy().ravel() for x, _ in dataset]
        assert [len(batch) for batch in batches] == sizes
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(n))


@pytest.mark.parametrize("seed", [None, 0])
def test_orders_are_uniform_and_independent(seed):
    found = orders(shuffled_batches(*numbers(12), 5, seed=seed), 600)
    assert departures_from_uniform_orders(found) == []


def test_the_statistics_reject_other_orders():
    source = tf.data.Dataset.from_tensor_slices(numbers(12))
    buffer = orders(source.shuffle(10, seed=0).batch(1), 600)  # ten batches, of twelve
    assert "position" in departures_from_uniform_orders(buffer)
    rng = np.random.default_rng(0)
    rotated = (np.arange(12) + rng.integers(12, size=(600, 1))) % 12
    failed = departures_from_uniform_orders(rotated)
    assert "neighbours" in failed and "position" not in failed
    replayed = rng.permuted(np.tile(np.arange(12), (300, 1)), axis=1).repeat(2, axis=0)
    assert "next pass" in departures_from_uniform_orders(replayed)
    fixed = orders(shuffled_batches(*numbers(12), 5, seed=0).cache(), 600)
    assert {"position", "neighbours", "next pass"} <= set(departures_from_uniform_orders(fixed))


def test_seeds_reproduce_passes_and_global_seeds_do_not():
    def run(seed):
        keras.utils.set_random_seed(0)
        return orders(shuffled_batches(*numbers(50), 5, seed=seed), 3)

    assert np.array_equal(run(5), run(5))
    assert not np.array_equal(run(5), run(6))
    assert not np.array_equal(run(None), run(None))


def test_two_iterators_at_once_are_two_passes():
    dataset = shuffled_batches(*numbers(50), 10, seed=0)
    pairs = [[x.numpy().ravel() for x, _ in both] for both in zip(dataset, dataset, strict=True)]
    one, two = (np.concatenate(batches) for batches in zip(*pairs, strict=True))
    assert np.array_equal(np.sort(one), np.sort(two)) and not np.array_equal(one, two)


def test_the_mark_says_what_is_sampled():
    dataset = shuffled_batches(*numbers(50), 8)
    sampler = sampling_of(dataset)
    assert sampler.sampling == ShuffledSampling()
    assert (sampler.num_examples, sampler.batch_size, sampler.steps) == (50, 8, 7)
    assert (sampler.unit, sampler.steps_per_count, sampler.seeded) == ("pass", 7, False)
    assert sampling_of(dataset.repeat(2)) is None and sampling_of(dataset.take(7)) is None


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (dict(batch_size=51), ValueError, "batch_size=51"),
        (dict(seed=-1), ValueError, "seed=-1"),
        (dict(map_fn=3), TypeError, "map_fn=3"),
        (dict(y=np.zeros(3)), ValueError, "len\\(y\\)=3"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, text):
    with pytest.raises(error, match=f"shuffled_batches.*{text}"):
        shuffled_batches(**(dict(zip(("x", "y"), numbers(50), strict=True), batch_size=8) | arguments))


# -- the ledger ------------------------------------------------------------------------------------------------------


class StopsAfter(keras.callbacks.Callback):
    """Ends a fit after a number of batches, in the middle of a pass."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        self.model.stop_training = self.left <= 0


def small(**kwargs):
    layers = [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten(), DP_QuickSpectralDense(NUM_CLASSES)]
    return model(layers, **kwargs)


@pytest.fixture
def started(monkeypatch):
    """List with one entry for each pass that a sampler was asked for."""
    passes, draw = [], sampling._Draws.__call__

    def noted(self):
        passes.append(self)
        yield from draw(self)

    monkeypatch.setattr(sampling._Draws, "__call__", noted)
    return passes


def test_every_started_pass_is_counted_once(started):
    private, batches = small(n=36), shuffled_batches(*data(36), 8)  # four batches of 8 and one of 4

    def passes_after(**kwargs):
        private.fit(batches, verbose=0, **kwargs)
        [(event, count)] = private.ledger.entries()
        assert event == GaussianStep(ShuffledSampling(), 1.0)
        assert count == len(started)
        return count

    assert passes_after(epochs=2) == 2
    assert passes_after(callbacks=[StopsAfter(2)]) == 3  # broken off
    assert passes_after(epochs=2, callbacks=[StopsAfter(6)]) == 5  # broken off in its second pass
    assert passes_after() == 6
    assert passes_after(epochs=4, initial_epoch=3) == 7
    assert int(private.optimizer.iterations) == 10 + 2 + 6 + 5 + 5


# Keras keeps one iterator over several epochs where steps_per_epoch says how long they are.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_passes_are_counted_whatever_an_epoch_is(started, steps_per_execution):
    private = small(compile_arguments={"steps_per_execution": steps_per_execution})
    batches = shuffled_batches(*data(40), 8)
    counts = []
    for steps_per_epoch in (None, 2, 3, 5):
        private.fit(batches, epochs=4, steps_per_epoch=steps_per_epoch, verbose=0)
        counts.append(private.ledger.steps)
        # Never fewer counts than passes with a step in them.
        assert private.ledger.steps == len(started)
    assert counts[0] == 4 and counts[-1] - counts[-2] == 4
