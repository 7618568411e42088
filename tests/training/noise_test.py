"""The noise: its scale under each strategy, its distribution, and that it is never repeated or known."""

import itertools
import math
import os
import pickle
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import SHAPE, RecordingSGD, data, layer_list, metadata, model
from scipy import signal, stats

from deel.lipdp._training import noise_source
from deel.lipdp._training.noise_source import NoiseSource, SecureNoiseSource
from deel.lipdp.layers import DP_BoundedInput, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import (
    DP_Sequential,
    DPParameters,
    compute_gradient_bounds,
    get_noise_multiplier_coefs,
    global_noisify,
    local_noisify,
)
from deel.lipdp.noise import joint_noise_multiplier, noise_multiplier_for

# Noise without a seed differs in every run, so each check may be wrong once in 10^12 runs: the suite never is.
FALSE_ALARM = 1e-12

# No single normal of TensorFlow's generator is larger: sqrt(-2 log 1e-7), for its uniforms are at least 1e-7.
LARGEST_SINGLE_DRAW = 5.678

BEYOND = (1.0, 2.0, 3.0, 4.0, 4.5, 5.0)

SOURCES = pytest.mark.parametrize("make_source", [NoiseSource, SecureNoiseSource])


def check_noise(samples, stddev):
    """Fails, wrongly at most once in 10^12 calls, for a sample that is not of independent N(0, stddev^2).

    Variance (chi-square), shape (Kolmogorov-Smirnov on at most 10^5 entries) and the number of entries in each tail
    beyond 1 to 5 stddev (binomial). From 1000 entries on, it tells 2/3 and 3/2 of the scale.
    """
    z = np.ravel(samples).astype("float64") / stddev
    level = FALSE_ALARM / (2 + 2 * len(BEYOND))
    low, high = stats.chi2.ppf([level / 2, 1 - level / 2], z.size)
    assert low <= np.sum(z * z) <= high, "variance"
    assert stats.kstest(z[:100_000], "norm").pvalue > level, "shape"
    for tail, threshold in itertools.product((z, -z), BEYOND):
        count, law = int((tail > threshold).sum()), stats.binom(z.size, stats.norm.sf(threshold))
        assert min(law.cdf(count), law.sf(count - 1)) > level / 2, f"tail beyond {threshold}"


def check_tail(samples, beyond):
    """Fails, wrongly at most once in 10^12 calls, for normals that are not distributed as those of norm > `beyond`."""
    shares = stats.norm.sf(np.abs(samples)) / stats.norm.sf(beyond)  # of the tail: uniform on [0, 1]
    level = FALSE_ALARM / 2
    assert stats.kstest(shares, "uniform").pvalue > level, "shape of the tail"
    assert stats.binomtest(int((samples > 0).sum()), samples.size).pvalue > level, "symmetry"


def check_independent(first, second):
    """Fails, wrongly at most once in 10^12 calls, for standard normals that depend on others, also if displaced.

    All cross-correlations are tested. A sum of m products of independent normals has
    log E exp(l S) = -m log(1 - l^2) / 2 <= m l^2 / (2 (1 - l)), so P(|S| > c + sqrt(c^2 + 2 m c)) <= 2 exp(-c)
    (Bernstein): a proved false-alarm rate, at every overlap m.
    """
    first, second = np.ravel(first).astype("float64"), np.ravel(second).astype("float64")
    sums = np.abs(signal.correlate(first, second))
    overlaps = signal.correlate(np.ones(first.size), np.ones(second.size)).round()
    c = math.log(2 * sums.size / FALSE_ALARM)
    assert np.all(sums <= c + np.sqrt(c * c + 2 * overlaps * c)), "correlated"


def check_all_independent(samples):
    """`check_independent` on every pair."""
    for first, second in itertools.combinations(samples, 2):
        check_independent(first, second)


def draw(source, *sizes, stddev=1.0):
    """One draw of a source for tensors of these sizes."""
    return [np.array(n) for n in source.add([np.zeros(size, "float32") for size in sizes], [stddev] * len(sizes))]


class StepRecordingSGD(keras.optimizers.SGD):
    """SGD that keeps the gradients of its first steps, also in a graph, and moves nothing."""

    def __init__(self, steps):
        super().__init__(0.0)
        self.steps = steps

    def build(self, variables):
        super().build(variables)
        self.kept = [tf.Variable(tf.zeros([self.steps, *v.shape])) for v in variables]

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        for kept, gradient in zip(self.kept, grads, strict=True):
            kept.scatter_nd_update([[self.iterations.value - 1]], gradient[None])


def wide_model(strategy, noise_multiplier=1.7, nm_coef=1.0, secure_noise=False, optimizer=None, **compile_arguments):
    """A model with some thousand parameters, so that a scale can be told from one sample of noise."""
    layers = [
        DP_BoundedInput(3.0, input_shape=SHAPE),
        DP_Flatten(),
        DP_QuickSpectralDense(60, name="wide", nm_coef=nm_coef),
        DP_QuickSpectralDense(50, name="narrow"),
        DP_QuickSpectralDense(4, name="logits"),
    ]
    parameters = DPParameters(strategy, noise_multiplier, 1e-5, secure_noise=secure_noise)
    private = DP_Sequential(layers, dp_parameters=parameters, dataset_metadata=metadata(32))
    private.compile(optimizer or "sgd", DP_TauCategoricalCrossentropy(2.0), **compile_arguments)
    return private


def noise_of_training(private, steps):
    """The noise of some steps in a graph, on examples of weight 0, in units of its stddev: list by step and variable.

    The optimizer must be a `StepRecordingSGD`. Variables too small for a test are left out.
    """
    x, y = data(8 * steps)
    private.fit(x, y, sample_weight=np.zeros(len(x)), verbose=0)
    stddevs = expected_stddevs(private)
    kept = [k.numpy() for k in private.optimizer.kept]
    return [kept[i][step] / (stddevs[i] / 8) for step in range(steps) for i in (0, 1)]


def expected_stddevs(private):
    """From the definitions of the strategies, written out: stddev on the sum, in the order of the layers."""
    bounds = list(compute_gradient_bounds(private).values())[::-1]
    sizes = [math.prod(v.shape) for v in private.trainable_variables]
    multiplier = private.dp_parameters.noise_multiplier
    strategy = private.dp_parameters.noisify_strategy
    if strategy == "per-layer":
        return [multiplier * layer.nm_coef * b for layer, b in zip(private.layers[2:], bounds, strict=True)]
    if strategy == "global":
        return [multiplier * math.sqrt(sum(b * b for b in bounds))] * len(bounds)
    weights = [b * math.sqrt(d) / layer.nm_coef for layer, b, d in zip(private.layers[2:], bounds, sizes, strict=True)]
    return [multiplier * b * math.sqrt(sum(weights) / w) for b, w in zip(bounds, weights, strict=True)]


# -- the checks can tell -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda z: z * 2 / 3, "variance"),
        (lambda z: z * 3 / 2, "variance"),
        (lambda z: np.where(np.arange(z.size) % 20, z, 0.0), "shape"),
        (lambda z: np.clip(z, -3.0, 3.0), "tail beyond 3.0"),
        (lambda z: np.where(z > 3.5, 3.5, z), "tail beyond 4.0"),
        (lambda z: np.sqrt(0.6) * stats.t.ppf(stats.norm.cdf(z), 5), "shape"),
    ],
)
def test_check_noise_rejects(wrong, words):
    z = np.random.default_rng(0).normal(size=2_000_000)
    check_noise(z, 1.0)
    with pytest.raises(AssertionError, match=words):
        check_noise(wrong(z), 1.0)


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2])
def test_check_noise_rejects_a_wrong_scale_of_a_thousand_entries(factor):
    z = np.random.default_rng(0).normal(size=1000)
    check_noise(z, 1.0)
    with pytest.raises(AssertionError, match="variance"):
        check_noise(z * factor, 1.0)


def test_check_tail_rejects_what_a_single_draw_cuts_off():
    z = -stats.norm.ppf(np.random.default_rng(0).uniform(0, stats.norm.sf(5.0), 100_000))
    z[::2] *= -1
    check_tail(z, 5.0)
    for wrong in (np.clip(z, -LARGEST_SINGLE_DRAW, LARGEST_SINGLE_DRAW), np.abs(z), z * 2 / 3, z * 3 / 2):
        with pytest.raises(AssertionError):
            check_tail(wrong, 5.0)


def test_check_independent_rejects():
    first, second = np.random.default_rng(0).normal(size=(2, 2000))
    check_independent(first, second)
    for related in (first, -first, np.roll(first, 300), first[::2], 0.6 * first + 0.8 * second):
        if related.size < first.size:  # every second entry: no displacement lines them up
            related = np.repeat(related, 2)
        with pytest.raises(AssertionError, match="correlated"):
            check_independent(first, related)


# -- scale ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure_noise", [False, True])
@pytest.mark.parametrize("strategy", ["per-layer", "local", "global", "optimal"])
def test_noise_of_a_training_step_has_the_right_scale(strategy, secure_noise):
    private = wide_model(
        strategy, nm_coef=2.0, secure_noise=secure_noise, optimizer=RecordingSGD(0.0), run_eagerly=True
    )
    x, y = data(8)
    private.train_on_batch(x, y, np.zeros(8))  # weights of zero: what the optimizer gets is the noise alone
    for noise, stddev in zip(private.optimizer.recorded[-1], expected_stddevs(private), strict=True):
        check_noise(noise, stddev / 8)


@pytest.mark.parametrize(("function", "strategy"), [(local_noisify, "per-layer"), (global_noisify, "global")])
def test_noisify_functions(function, strategy):
    private = wide_model(strategy)
    variables = private.trainable_variables[::-1]  # any order
    gradients = [keras.ops.full(v.shape, 5.0) for v in variables]
    noisy = function(private, compute_gradient_bounds(private), variables, gradients)
    for gradient, stddev in zip(noisy, expected_stddevs(private)[::-1], strict=True):
        check_noise(np.array(gradient) - 5.0, stddev / 8)
    again = function(private, compute_gradient_bounds(private), variables, gradients)
    assert not np.allclose(noisy[0], again[0])


@pytest.mark.parametrize("nm_coef", [1.0, 30.0])
def test_optimal_has_the_least_energy_for_the_same_privacy(nm_coef):
    energies = {}
    for strategy in ("per-layer", "global", "optimal"):
        private = wide_model(strategy, nm_coef=nm_coef)
        bounds = compute_gradient_bounds(private)
        coefs = get_noise_multiplier_coefs(private, bounds)
        multiplier = noise_multiplier_for(1.0, strategy, coefs)
        sizes = [math.prod(v.shape) for v in private.trainable_variables]
        stddevs = [multiplier * coefs[key] * bounds[key] for key in coefs]
        # The joint mechanism, from its definition: sensitivity after scaling each layer's noise to 1.
        assert math.sqrt(sum((bounds[k] / s) ** 2 for k, s in zip(coefs, stddevs, strict=True))) == pytest.approx(1.0)
        # Noise on a layer counts the less, the more of it its coefficient says that it bears.
        borne = [layer.nm_coef for layer in private.layers[2:]]
        energies[strategy] = sum(d * (s / c) ** 2 for d, s, c in zip(sizes, stddevs, borne, strict=True))
    assert energies["optimal"] < 0.95 * min(energies["per-layer"], energies["global"])


@pytest.mark.parametrize("nm_coef", [1e-308, 1e-300, 1e300])
def test_noise_that_is_no_number_or_no_single_precision_is_refused(nm_coef):
    private = wide_model("optimal", nm_coef=nm_coef)
    with pytest.raises(ValueError, match="expected noise of stddev between"):
        private.fit(*data(8), verbose=0)


def test_joint_multiplier_and_its_inverse():
    private = wide_model("per-layer", noise_multiplier=3.0, nm_coef=2.0)
    joint = joint_noise_multiplier(private)
    assert joint == pytest.approx(3.0 / math.sqrt(1 / 4 + 1 + 1))
    assert noise_multiplier_for(joint, "local", get_noise_multiplier_coefs(private)) == pytest.approx(3.0)
    assert joint_noise_multiplier(wide_model("optimal", noise_multiplier=3.0)) == 3.0
    with pytest.raises(TypeError, match="'per-layer', 'local', 'global', 'optimal'"):
        noise_multiplier_for(1.0, "best", {"a/kernel": 1.0})


def test_orders_of_the_dicts():
    private = model(layer_list())
    keys = ["conv_a/kernel", "conv_b/kernel", "dense/kernel"]
    assert list(get_noise_multiplier_coefs(private)) == keys
    assert list(compute_gradient_bounds(private)) == keys[::-1]


@pytest.mark.parametrize("secure_noise", [False, True])
def test_zero_multiplier_adds_nothing_and_costs_infinity(secure_noise):
    from deel.lipdp.model import get_eps_delta

    private = wide_model("per-layer", noise_multiplier=0.0, secure_noise=secure_noise)
    x, y = data(8)
    private.train_on_batch(x, y)
    assert get_eps_delta(private) == (math.inf, 1e-5)
    assert int(private._noise_source.draws) == 0


# -- distribution --------------------------------------------------------------------------------------------------


@SOURCES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_is_gaussian(make_source, dtype):
    sizes = [(200, 3000), (400_000,)]
    zeros = [np.zeros(size, dtype) for size in sizes]
    noisy = make_source().add(zeros, [0.01, tf.constant(100.0, "float64")])
    assert [(n.shape, n.dtype) for n in noisy] == [(size, dtype) for size in sizes]
    check_noise(noisy[0], 0.01)
    check_noise(noisy[1], 100.0)


def test_normals_in_pairs_follow_the_tail_to_nine_stddev():
    """What TensorFlow's own normals do not: they end at `LARGEST_SINGLE_DRAW`."""
    rng = np.random.default_rng(0)
    for beyond in (5.0, LARGEST_SINGLE_DRAW, 8.0):
        # Beyond are only pairs with a larger radius, and every word of those is as likely as another.
        words = rng.integers(0, int(math.exp(-(beyond**2) / 2) * 2.0**64), 200_000, dtype=np.uint64)
        angles = rng.integers(-(2**31), 2**31, words.size).astype("int32")
        z = noise_source._normals_in_pairs(tf.constant(words), tf.constant(angles)).numpy().reshape(2, -1)
        radius = np.sqrt(2 * (64 * math.log(2) - np.log(words + 0.5)))
        np.testing.assert_allclose(np.hypot(*z), radius, rtol=1e-6)
        tail = z[np.abs(z) > beyond]
        assert tail.size > 10_000
        check_tail(tail, beyond)
    ends = noise_source._normals_in_pairs(tf.constant([0, 2**64 - 1], tf.uint64), tf.constant([0, 0])).numpy()
    np.testing.assert_allclose(ends, [math.sqrt(130 * math.log(2)), 0.0, 0.0, 0.0], rtol=1e-6)


def test_words_of_the_generator_are_used_once(monkeypatch):
    """The first ones for the radii of the pairs, and halves of those after them for the angles."""
    words = np.array([2**62, 2**63, 2**61, (1 << 62) + (1 << 31), 3 << 29], np.uint64)

    def generator(shape, seed, minval, maxval, dtype, alg):
        assert (shape, minval, maxval, dtype, alg) == ([5], None, None, tf.uint64, "philox")
        return tf.constant(words)

    monkeypatch.setattr(tf.random, "stateless_uniform", generator)
    found = np.concatenate(draw(NoiseSource(), 2, 3))
    radius = np.sqrt(-2 * np.log(words[:3] / 2.0**64))
    angle = np.pi * np.array([-1.0, 0.5, 0.75])  # the lower half of a word comes first
    np.testing.assert_allclose(found, np.append(radius * np.cos(angle), radius * np.sin(angle))[:5], atol=1e-6)


@pytest.mark.full
def test_tails_reach_beyond_one_draw_of_the_generator():
    """Without stand-ins: of 6e8 entries of noise 8.2 are expected beyond the largest single draw."""
    source, size, passes = NoiseSource(seed=0), 2_000_000, 300
    zeros, beyond = [tf.zeros(size)], 0
    for _ in range(passes):
        beyond += int(tf.math.count_nonzero(tf.abs(source.add(zeros, [1.0])[0]) > LARGEST_SINGLE_DRAW))
    low, high = stats.poisson.interval(1 - 1e-3, 2 * size * passes * stats.norm.sf(LARGEST_SINGLE_DRAW))
    assert 0 < low <= beyond <= high


def test_secure_normals_follow_the_tail_to_nine_stddev():
    rng = np.random.default_rng(0)
    for beyond in (5.0, LARGEST_SINGLE_DRAW, 8.0):
        # Every 64-bit word of that tail is as likely as another: importance sampling.
        tail = rng.integers(0, int(stats.norm.sf(beyond) * 2.0**64), 20_000, dtype=np.uint64)
        signs = rng.integers(0, 2, 20_000, dtype=np.uint64)
        z = noise_source._normals(2 * tail + signs)
        check_tail(z, beyond)
        np.testing.assert_array_equal(noise_source._normals(2 * tail + (1 - signs)), -z)
    ends = noise_source._normals(np.array([0, 1, 2**64 - 2, 2**64 - 1], np.uint64))
    # By another function than the inverse: the share beyond the last value is half a step of 2^-64.
    np.testing.assert_allclose(stats.norm.logsf(np.abs(ends[:2])), -65 * math.log(2), rtol=1e-12)
    assert ends[0] == -ends[1] and np.all(np.abs(ends[2:]) < 1e-15)


def test_secure_source_sums_four_words_of_the_generator(monkeypatch):
    words = np.arange(12, dtype=np.uint64) << np.uint64(60)
    monkeypatch.setattr(noise_source, "_keystream", lambda size: words.tobytes()[:size])
    sign, share = np.where(words % 2, -1.0, 1.0), (words // 2) / 2.0**64 + 2.0**-65
    expected = (sign * stats.norm.ppf(share)).reshape(4, 3).sum(0) / 2
    np.testing.assert_allclose(noise_source._integer_noise(3) / 2.0**32, expected, rtol=1e-9)


def test_keystream_is_chacha20(monkeypatch):
    """First block of RFC 8439, appendix A.1, test vector 1: a key of zeros."""
    monkeypatch.setattr(os, "urandom", bytes)
    assert noise_source._keystream(16).hex() == "76b8e0ada0f13d90405d6ae55386bd28"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_secure_result_depends_on_the_sum_alone(monkeypatch, dtype):
    """The same exact sum of gradient and noise gives the same bits, however it splits: precision tells nothing."""
    rng = np.random.default_rng(0)
    stddev, unit = 2.0**-5, 2.0**-37
    total = np.rint(rng.normal(size=5000) * 2.0**32)
    total[:2500] = rng.integers(-1000, 1000, 2500)  # results near 0, where floats are finest
    results = []
    for gradient in (np.zeros(5000), np.full(5000, 0.03125), np.full(5000, -1.0), np.full(5000, 0.25 + 2.0**-20)):
        integers = gradient / unit
        monkeypatch.setattr(noise_source, "_integer_noise", lambda count, integers=integers: total - integers)
        results.append(np.array(SecureNoiseSource().add([gradient.astype(dtype)], [stddev])[0]))
    for result in results:
        np.testing.assert_array_equal(result, (total * unit).astype(dtype))
    # A gradient between the units is rounded to them before the noise, not after.
    between = np.array(SecureNoiseSource().add([np.full(5000, 1 / 3)], [stddev])[0]) / unit
    np.testing.assert_array_equal(between, np.rint(between))
    # A sum in floating point does tell: noise that is as fine as its own size lets it be, and a gradient of 1.
    noise = (total * unit - 1.0).astype("float32")
    assert not np.array_equal(noise + np.float32(1.0), (total * unit).astype("float32"))


def test_secure_noise_of_no_scale_releases_nothing():
    kept, lost = SecureNoiseSource().add([np.ones(3000, "float32")] * 2, [1.0, 0.0])
    check_noise(kept - 1.0, 1.0)
    np.testing.assert_array_equal(lost, np.zeros(3000))


# -- independence --------------------------------------------------------------------------------------------------


@SOURCES
def test_noise_is_never_repeated_nor_set_by_the_global_seed(make_source):
    draws = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        source = make_source()
        draws += [part for _ in range(3) for part in draw(source, 1500, 1000)]
    check_all_independent(draws)


@SOURCES
def test_noise_is_drawn_anew_in_a_graph(make_source):
    source = make_source()

    @tf.function
    def twice():
        zeros = [tf.zeros(1500), tf.zeros(1500)]
        return source.add(zeros, [1.0, 1.0]) + source.add(zeros, [1.0, 1.0])

    check_all_independent([part.numpy() for _ in range(3) for part in twice()])
    assert int(source.draws) == 6


@pytest.mark.parametrize("secure_noise", [False, True])
def test_steps_variables_and_models_have_independent_noise(secure_noise):
    """Two equal models in one process, two steps in one execution of the graph."""
    noise = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        private = wide_model("optimal", secure_noise=secure_noise, optimizer=StepRecordingSGD(4), steps_per_execution=2)
        noise += noise_of_training(private, steps=4)
    for part in noise:
        check_noise(part, 1.0)
    check_all_independent(noise)


@pytest.mark.parametrize("secure_noise", [False, True])
def test_a_restart_draws_anew(secure_noise, tmp_path):
    private = wide_model("optimal", secure_noise=secure_noise)
    private.fit(*data(16), verbose=0)
    private.save(tmp_path / "model.keras")
    noise = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        restarted = keras.models.load_model(tmp_path / "model.keras")
        assert restarted.dp_parameters == private.dp_parameters
        assert isinstance(restarted._noise_source, SecureNoiseSource) is secure_noise
        restarted.compile(StepRecordingSGD(1), DP_TauCategoricalCrossentropy(2.0))
        noise += noise_of_training(restarted, steps=1)
    check_all_independent(noise)


def test_only_a_seed_repeats():
    first, second = NoiseSource(seed=1), NoiseSource(seed=1)
    np.testing.assert_array_equal(draw(first, 1000), draw(second, 1000))
    with pytest.raises(AssertionError, match="correlated"):
        check_independent(draw(first, 1000), draw(second, 1000))


# -- secrets and refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure_noise", [False, True])
def test_key_is_in_no_pickle_repr_config_or_file(secure_noise, tmp_path, monkeypatch):
    keys, urandom = [], os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: keys.append(urandom(size)) or keys[-1])
    private = wide_model("global", secure_noise=secure_noise)
    private.fit(*data(16), verbose=0)
    keys = [key for key in keys if len(key) in (16, 32)]
    assert len(keys) == len(set(keys)) == (2 if secure_noise else 1)  # one for each step, or one for the model
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(private._noise_source)
    texts = [repr(private), str(private.get_config()), repr(vars(private)), private.to_json()]
    texts += [repr(vars(private._noise_source))] if secure_noise else []  # the other one's variable is its key
    private.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    for key in keys:
        for half in np.frombuffer(key, np.int64):
            assert not any(str(half) in text for text in texts)
            assert not any(half.tobytes() in content for content in contents)


def test_every_chunk_has_a_key_of_its_own(monkeypatch):
    keys, urandom = [], os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: keys.append(urandom(size)) or keys[-1])
    source = SecureNoiseSource()
    for _ in range(2):
        draw(source, noise_source._CHUNK + 1)
    assert [len(key) for key in keys] == [32] * 4 and len(set(keys)) == 4


def test_secure_noise_needs_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with pytest.raises(ImportError, match=r"pip install lipdp\[secure\]"):
        wide_model("global", secure_noise=True)
    wide_model("global")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"secure_noise": 1}, TypeError, "secure_noise=1"),
        ({"secure_noise": True, "noise_seed": 3}, ValueError, "noise_seed=3.*leave one of them out"),
    ],
)
def test_refusals(arguments, error, words):
    with pytest.raises(error, match=words):
        DPParameters("global", 1.0, 1e-5, **arguments)
