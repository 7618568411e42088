"""What `poisson_batches` emits, tested as statistics, and what its mark says."""

import copy
import gc
import pickle
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from deel.lipdp.accounting.events import PoissonSampling
from deel.lipdp.sampling import AugmultConfig, poisson_batches, sampling_of, shuffled_batches

N, B, STEPS, PASSES = 200, 20, 100, 12
# Chance that a correct sampler fails one given check of the five below: a run without a seed fails once in 200,000.
FALSE_ALARM = 1e-6


def emitted(dataset, passes, n=N):
    """Returns a 0/1 matrix: does batch t contain example i? The x of the data set are the numbers 0..n-1."""
    rows = []
    for _ in range(passes):
        for x, _ in dataset:
            rows.append(np.bincount(x.numpy().astype(int).ravel(), minlength=n))
    return np.array(rows)


def departures_from_poisson(included, q):
    """Returns the names of the properties of Poisson sampling that the batches fail, each at level FALSE_ALARM."""
    steps, n = included.shape
    failed = []
    if included.max() > 1:
        failed.append("repeated example")

    def check(name, p_value):
        if p_value < FALSE_ALARM:
            failed.append(name)

    # Each example is in a Binomial(steps, q) number of batches. Two-sided: too even is no more Poisson than too uneven.
    counts = included.sum(axis=0)
    spread = ((counts - steps * q) ** 2).sum() / (steps * q * (1 - q))
    check("frequency", 2 * min(stats.chi2.cdf(spread, n), stats.chi2.sf(spread, n)))
    check("overall rate", stats.binomtest(int(counts.sum()), steps * n, q).pvalue)

    # Batch sizes are Binomial(n, q): cells with at least 5 expected batches, the tails pooled.
    sizes = included.sum(axis=1)
    low, high = (int(v) for v in stats.binom.ppf([10 / steps, 1 - 10 / steps], n, q))
    cdf = stats.binom.cdf(np.arange(low, high), n, q)
    expected = steps * np.diff(np.concatenate([[0.0], cdf, [1.0]]))
    observed = np.bincount(np.clip(sizes, low, high) - low, minlength=len(expected))
    check("batch size", stats.chisquare(observed, expected).pvalue)

    # Products of two independent centred inclusions are uncorrelated with mean 0 and variance (q (1 - q))^2.
    centred = included - q
    for name, products in (
        ("neighbours in a batch", centred[:, :-1] * centred[:, 1:]),
        ("next batch", centred[:-1] * centred[1:]),
    ):
        z = products.sum() / (q * (1 - q) * np.sqrt(products.size))
        check(name, 2 * stats.norm.sf(abs(z)))
    return failed


def numbers(n=N):
    return np.arange(n, dtype=np.float32)[:, None], np.zeros(n, np.float32)


def source(n=N):
    return tf.data.Dataset.from_tensor_slices(numbers(n))


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_batches_are_poisson(seed):
    included = emitted(poisson_batches(*numbers(), B, steps=STEPS, seed=seed), PASSES)
    assert included.shape == (STEPS * PASSES, N)
    assert departures_from_poisson(included, B / N) == []


@pytest.mark.parametrize("n, batch_size", [(50, 1), (30, 29)])
def test_extreme_probabilities_are_poisson(n, batch_size):
    included = emitted(poisson_batches(*numbers(n), batch_size, steps=2000, seed=0), 1, n)
    assert departures_from_poisson(included, batch_size / n) == []


def test_all_pairs_co_occur_as_independent_examples_do():
    # Sums of centred products, one for each pair of examples: normal with a known variance, and uncorrelated even for
    # pairs that share an example. Level 1e-6 for each assertion.
    n, batch_size, steps = 40, 10, 2000
    q = batch_size / n
    centred = emitted(poisson_batches(*numbers(n), batch_size, steps=steps, seed=0), 1, n) - q
    z = (centred.T @ centred)[np.triu_indices(n, 1)] / (q * (1 - q) * np.sqrt(steps))
    assert 1e-6 < stats.chi2.sf((z**2).sum(), len(z)) < 1 - 1e-6
    assert np.abs(z).max() < stats.norm.isf(1e-6 / len(z))


def test_the_statistics_reject_other_samplers():
    def failures(dataset, passes=60, n=N):
        return departures_from_poisson(emitted(dataset, passes, n), B / n)

    buffer = failures(source(1000).shuffle(10 * B).batch(B), passes=12, n=1000)
    assert {"frequency", "batch size", "neighbours in a batch"} <= set(buffer)
    full_shuffle = failures(source().shuffle(N).batch(B))
    assert {"frequency", "batch size", "next batch"} <= set(full_shuffle)
    rng = np.random.default_rng(0)  # TensorFlow's own generators follow a global seed that other tests set

    def fixed_size():
        for _ in range(10):
            yield rng.permutation(N)[:B, None].astype("float32"), np.zeros(B, "float32")

    signature = (tf.TensorSpec((B, 1), tf.float32), tf.TensorSpec((B,), tf.float32))
    fixed = tf.data.Dataset.from_generator(fixed_size, output_signature=signature)
    assert failures(fixed) == ["batch size"]  # drawn anew each time: only the size gives it away
    replay = poisson_batches(*numbers(), B, seed=0).cache()
    assert "frequency" in failures(replay)
    wrong_rate = poisson_batches(*numbers(), B + 1, steps=2000, seed=0)
    assert "overall rate" in failures(wrong_rate, 1)


def test_no_pass_replays_another():
    dataset = poisson_batches(*numbers(), B, seed=3)
    first, second = emitted(dataset, 1), emitted(dataset, 1)
    assert not np.array_equal(first, second)
    one, two = iter(dataset), iter(dataset)  # interleaved
    rows = [next(iterator)[0].numpy().ravel().tolist() for _ in range(5) for iterator in (one, two)]
    rows += [np.flatnonzero(row).tolist() for row in np.concatenate([first, second])]
    assert len({tuple(row) for row in rows}) == len(rows)  # sets of about 20 of 200: no chance coincidence


def test_repeat_and_two_unseeded_data_sets_draw_anew():
    dataset = poisson_batches(*numbers(), B, steps=5)
    rows = emitted(dataset.repeat(3), 1)
    other = emitted(poisson_batches(*numbers(), B, steps=5), 1)
    assert len(np.unique(np.concatenate([rows, other]), axis=0)) == 20


def test_unseeded_draws_ignore_the_global_seeds():
    def run():
        keras.utils.set_random_seed(0)
        return emitted(poisson_batches(*numbers(), B), 1)

    assert not np.array_equal(run(), run())


def test_a_seed_reproduces_all_passes():
    def run(seed):
        return emitted(poisson_batches(*numbers(), B, seed=seed), 3)

    assert np.array_equal(run(5), run(5))
    assert not np.array_equal(run(5), run(6))


def test_rows_and_labels_stay_together_and_shapes_are_declared():
    x = np.random.default_rng(0).normal(size=(30, 4, 3)).astype(np.float32)
    y = np.arange(30)
    original = x.copy()
    dataset = poisson_batches(x, y, 10)
    x[:] = 0  # the data set keeps its own copy
    assert [tuple(spec.shape) for spec in dataset.element_spec] == [(None, 4, 3), (None,)]
    assert [spec.dtype for spec in dataset.element_spec] == [tf.float32, tf.int64]
    assert len(dataset) == 3
    for some_x, some_y in dataset:
        np.testing.assert_array_equal(some_x, original[some_y.numpy()])


def test_whole_set_when_batch_size_is_n():
    assert all(len(x) == N for x, _ in poisson_batches(*numbers(), N, steps=5))


def test_empty_batches_are_emitted():
    sizes = [len(x) for x, _ in poisson_batches(*numbers(50), 1, steps=100, seed=0)]
    assert len(sizes) == 100 and 0 in sizes  # 36 expected


def test_map_fn_is_applied_to_each_batch():
    dataset = poisson_batches(*numbers(50), 1, steps=50, seed=0, map_fn=lambda x, y: (tf.cast(x, tf.int32), y + 1))
    plain = poisson_batches(*numbers(50), 1, steps=50, seed=0)
    for (x, y), (plain_x, _) in zip(dataset, plain, strict=True):
        np.testing.assert_array_equal(x, plain_x)
        assert x.dtype == tf.int32 and np.all(y.numpy() == 1)
    assert sampling_of(dataset).sampling == sampling_of(plain).sampling


def test_map_fn_must_keep_one_row_per_example():
    with pytest.raises(TypeError, match="map_fn to return a pair"):
        poisson_batches(*numbers(), B, map_fn=lambda x, y: x)
    doubled = poisson_batches(*numbers(), B, map_fn=lambda x, y: (tf.repeat(x, 2, axis=0), tf.repeat(y, 2)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="one row per example from map_fn"):
        next(iter(doubled))


def test_the_mark_says_what_is_sampled():
    dataset = poisson_batches(*numbers(), 30)
    sampler = sampling_of(dataset)
    assert sampler.sampling == PoissonSampling(0.15)
    assert (sampler.num_examples, sampler.batch_size, sampler.steps, sampler.multiplicity) == (200, 30, 7, 1)
    assert (sampler.unit, sampler.steps_per_count) == ("step", 1)
    assert sampler.seeded is False and sampling_of(poisson_batches(*numbers(), 30, seed=0)).seeded is True
    # A Python copy is the same data set under another name: it draws anew, as the original.
    assert sampling_of(copy.copy(dataset)) is sampler


def test_neither_seed_nor_data_leave_the_sampler():
    dataset = poisson_batches(*numbers(), 30, seed=12345)
    sampler = sampling_of(dataset)
    assert "key" not in repr(dataset) + repr(sampler) and "12345" not in repr(dataset) + repr(sampler)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="private data"):
            leave(sampler)


# -- passes by number, and batches besides them ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [poisson_batches, shuffled_batches])
def test_a_seeded_sampler_goes_on_from_any_pass(make):
    unbroken = make(*numbers(), B, seed=5)
    passes = [emitted(unbroken, 1) for _ in range(4)]
    resumed = make(*numbers(), B, seed=5)
    for first in (2, 0, 3):
        sampling_of(resumed).seek(first)
        for expected in passes[first:]:
            np.testing.assert_array_equal(emitted(resumed, 1), expected)


@pytest.mark.parametrize("make", [poisson_batches, shuffled_batches])
def test_without_a_seed_no_pass_comes_back(make):
    dataset = make(*numbers(), B)
    rows = []
    for _ in range(3):
        sampling_of(dataset).seek(0)
        rows.append(emitted(dataset, 1))
    assert len(np.unique(np.concatenate(rows), axis=0)) == 30


def single_draws(sampler, count):
    """Returns a 0/1 matrix as `emitted`, of batches drawn one by one."""
    rows = [sampler.draw_batch()[0].numpy().astype(int).ravel() for _ in range(count)]
    return np.array([np.bincount(examples, minlength=N) for examples in rows])


@pytest.mark.parametrize("seed", [None, 0])
def test_single_draws_are_poisson(seed):
    included = single_draws(sampling_of(poisson_batches(*numbers(), B, seed=seed)), 600)
    assert departures_from_poisson(included, B / N) == []


def test_single_draws_stand_beside_the_passes():
    plain, disturbed = (poisson_batches(*numbers(), B, seed=5) for _ in range(2))
    singles = single_draws(sampling_of(disturbed), 3)
    passes = emitted(disturbed, 2)
    singles = np.concatenate([singles, single_draws(sampling_of(disturbed), 3)])
    np.testing.assert_array_equal(passes, emitted(plain, 2))
    # Sets of about 20 of 200: no chance coincidence, neither with each other nor with a batch of a pass.
    assert len(np.unique(np.concatenate([singles, passes]), axis=0)) == 6 + 20
    np.testing.assert_array_equal(singles, single_draws(sampling_of(poisson_batches(*numbers(), B, seed=5)), 6))
    other = single_draws(sampling_of(poisson_batches(*numbers(), B, seed=6)), 6)
    assert not np.array_equal(singles, other)


def test_single_draws_are_examples_as_they_were_given():
    x, y = np.random.default_rng(0).normal(size=(30, 4, 4, 1)).astype("float32"), np.arange(30)
    dataset = poisson_batches(x, y, 15, map_fn=lambda x, y: (x + 1, y), augmult=AugmultConfig(3), padded=True)
    some_x, some_y = sampling_of(dataset).draw_batch()
    assert 0 < len(some_y) <= 30
    np.testing.assert_array_equal(some_x, x[some_y.numpy()])


def test_single_draws_need_a_poisson_sampler():
    with pytest.raises(ValueError, match="draw_batch.*Poisson.*'shuffled'.*poisson_batches"):
        sampling_of(shuffled_batches(*numbers(), B)).draw_batch()


# -- what has no mark, and training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "derive",
    [
        lambda d: d.map(lambda x, y: (x, y)),
        lambda d: d.take(3),
        lambda d: d.skip(1),
        lambda d: d.shuffle(3),
        lambda d: d.repeat(2),
        lambda d: d.cache(),
        lambda d: d.prefetch(1),
        lambda d: d.ragged_batch(2),
        lambda d: d.unbatch(),
        lambda d: d.rebatch(7),
        lambda d: d.filter(lambda x, y: True),
        lambda d: d.shard(2, 0),
        lambda d: d.concatenate(d),
        lambda d: d.enumerate(),
        lambda d: d.with_options(tf.data.Options()),
        lambda d: d.apply(lambda same: same.take(1)),
        lambda d: tf.data.Dataset.zip((d, d)),
        lambda d: iter(d),
    ],
)
def test_derived_data_sets_lose_the_mark(derive):
    assert sampling_of(derive(poisson_batches(*numbers(), B))) is None


@pytest.mark.parametrize("other", [source().batch(B), np.zeros(3), None, "poisson"])
def test_anything_else_has_no_mark(other):
    assert sampling_of(other) is None


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
@pytest.mark.parametrize("batch_size", [1, 20])
def test_keras_fit_takes_it(batch_size):
    # batch_size=1 of 40: a third of the batches are empty, and the model is built from the first batch.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=(40, 1)).astype(np.float32)
    dataset = poisson_batches(x, y, batch_size, steps=12, seed=0)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    history = model.fit(dataset, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 24
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert sampling_of(dataset) is not None


def test_the_examples_go_when_the_data_set_goes():
    """TensorFlow keeps every generator of a data set for ever: a study of many fits held as many copies of its data."""
    dataset = poisson_batches(np.zeros((N, 1), np.float32), np.zeros(N, np.float32), B)
    assert sum(1 for _ in dataset) == N // B
    sampler = sampling_of(dataset)
    examples = [weakref.ref(sampler), *map(weakref.ref, sampler._arrays)]
    del dataset, sampler
    gc.collect()
    assert [reference() for reference in examples] == [None] * 3


def test_sixty_thousand_images_are_sampled_fast():
    x = np.zeros((60000, 28, 28, 1), np.float32)
    dataset = poisson_batches(x, np.zeros((60000, 10), np.float32), 2048)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        batches = sum(1 for _ in dataset)
        times.append((time.perf_counter() - start) / batches)
    # 2 ms on two idle cores. The limit leaves room for a busy machine and none for tf.data work on single examples.
    assert min(times) < 0.05


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (dict(y=np.zeros(3)), ValueError, "len\\(y\\)=3"),
        (dict(x=np.zeros((0, 2)), y=np.zeros(0)), ValueError, "at least one"),
        (dict(batch_size=201), ValueError, "batch_size=201"),
        (dict(batch_size=0), ValueError, "batch_size=0"),
        (dict(batch_size=2.0), TypeError, "batch_size=2.0"),
        (dict(steps=0), ValueError, "steps=0"),
        (dict(seed=-1), ValueError, "seed=-1"),
        (dict(seed=2**64), ValueError, "seed="),
        (dict(map_fn=3), TypeError, "map_fn=3"),
        (dict(augmult=4), TypeError, "augmult=4"),
        (dict(x=np.array(["a"] * N)), TypeError, "x of dtype"),
        (dict(x=None), TypeError, "x of dtype object"),
        (dict(y=4), TypeError, "shape \\(\\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, text):
    good = dict(zip(("x", "y"), numbers(), strict=True), batch_size=B)
    with pytest.raises(error, match=f"poisson_batches.*{text}"):
        poisson_batches(**(good | arguments))
