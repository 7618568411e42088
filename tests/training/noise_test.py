"""The noise: its scale under each strategy, its distribution, and that it is never repeated or known."""

import math
import pickle

import keras
import numpy as np
import pytest
from doubles import SHAPE, RecordingSGD, data, layer_list, model
from scipy import stats

from deel.lipdp._training.tensorflow import NoiseSource
from deel.lipdp.layers import DP_BoundedInput, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.model import (
    compute_gradient_bounds,
    get_noise_multiplier_coefs,
    global_noisify,
    local_noisify,
)
from deel.lipdp.noise import joint_noise_multiplier, noise_multiplier_for

# Each test of a distribution is wrong once in a million runs.
FALSE_ALARM = 1e-6


def is_gaussian(sample, stddev):
    """Whether a sample agrees with N(0, stddev^2): its variance (chi-square) and its shape (Kolmogorov-Smirnov)."""
    sample = np.ravel(sample)
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], sample.size)
    variance_agrees = low <= np.sum((sample / stddev) ** 2) <= high
    return variance_agrees and stats.kstest(sample / stddev, "norm").pvalue > FALSE_ALARM


def wide_model(strategy, noise_multiplier=1.7, nm_coef=1.0, **kwargs):
    """A model with some thousand parameters, so that a scale can be told from one sample of noise."""
    layers = [
        DP_BoundedInput(3.0, input_shape=SHAPE),
        DP_Flatten(),
        DP_QuickSpectralDense(60, name="wide", nm_coef=nm_coef),
        DP_QuickSpectralDense(50, name="narrow"),
        DP_QuickSpectralDense(4, name="logits"),
    ]
    return model(layers, strategy=strategy, noise_multiplier=noise_multiplier, **kwargs)


def expected_stddevs(private):
    """From BOUNDS section 5, written out: stddev on the sum, in the order of the layers."""
    bounds = list(compute_gradient_bounds(private).values())[::-1]
    sizes = [math.prod(v.shape) for v in private.trainable_variables]
    multiplier = private.dp_parameters.noise_multiplier
    strategy = private.dp_parameters.noisify_strategy
    if strategy == "per-layer":
        return [multiplier * layer.nm_coef * b for layer, b in zip(private.layers[2:], bounds, strict=True)]
    if strategy == "global":
        return [multiplier * math.sqrt(sum(b * b for b in bounds))] * len(bounds)
    total = sum(b * math.sqrt(d) for b, d in zip(bounds, sizes, strict=True))
    return [multiplier * b * math.sqrt(total / (b * math.sqrt(d))) for b, d in zip(bounds, sizes, strict=True)]


@pytest.mark.parametrize("strategy", ["per-layer", "local", "global", "optimal"])
def test_noise_of_a_training_step_has_the_right_scale(strategy):
    private = wide_model(strategy, nm_coef=2.0, optimizer=RecordingSGD(0.0), compile_arguments={"run_eagerly": True})
    x, y = data(8)
    private.train_on_batch(x, y, np.zeros(8))  # weights of zero: what the optimizer gets is the noise alone
    for noise, stddev in zip(private.optimizer.recorded[-1], expected_stddevs(private), strict=True):
        assert is_gaussian(noise, stddev / 8)
        if noise.size > 1000:  # and the test can tell
            assert not is_gaussian(noise, stddev / 8 * 2 / 3)
            assert not is_gaussian(noise, stddev / 8 * 3 / 2)


@pytest.mark.parametrize(("function", "strategy"), [(local_noisify, "per-layer"), (global_noisify, "global")])
def test_noisify_functions(function, strategy):
    private = wide_model(strategy)
    variables = private.trainable_variables[::-1]  # any order
    gradients = [keras.ops.full(v.shape, 5.0) for v in variables]
    noisy = function(private, compute_gradient_bounds(private), variables, gradients)
    for gradient, stddev in zip(noisy, expected_stddevs(private)[::-1], strict=True):
        assert is_gaussian(np.array(gradient) - 5.0, stddev / 8)
    again = function(private, compute_gradient_bounds(private), variables, gradients)
    assert not np.allclose(noisy[0], again[0])


def test_optimal_has_the_least_energy_for_the_same_privacy():
    energies = {}
    for strategy in ("per-layer", "global", "optimal"):
        private = wide_model(strategy)
        bounds = compute_gradient_bounds(private)
        coefs = get_noise_multiplier_coefs(private, bounds)
        multiplier = noise_multiplier_for(1.0, strategy, coefs)
        sizes = [math.prod(v.shape) for v in private.trainable_variables]
        stddevs = [multiplier * coefs[key] * bounds[key] for key in coefs]
        # The joint mechanism, from its definition: sensitivity after scaling each layer's noise to 1.
        assert math.sqrt(sum((bounds[k] / s) ** 2 for k, s in zip(coefs, stddevs, strict=True))) == pytest.approx(1.0)
        energies[strategy] = sum(d * s * s for d, s in zip(sizes, stddevs, strict=True))
    assert energies["optimal"] < 0.95 * min(energies["per-layer"], energies["global"])


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


def test_noise_is_never_repeated_nor_set_by_the_global_seed():
    draws = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        source = NoiseSource()
        zeros = [np.zeros((50, 3), "float32"), np.zeros(70, "float32")]
        draws += [source.add(zeros, [1.0, 2.0]) for _ in range(3)]
    flat = [np.concatenate([np.ravel(part) for part in draw]) for draw in draws]
    correlations = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlations).max() < 0.5  # 220 independent numbers: 7 standard deviations
    first, second = NoiseSource(seed=1), NoiseSource(seed=1)
    np.testing.assert_array_equal(first.add(zeros, [1.0, 1.0])[0], second.add(zeros, [1.0, 1.0])[0])


def test_tails_reach_beyond_one_draw_of_the_generator():
    """A single TensorFlow normal stops at 5.68; the sum of two, scaled, has the Gaussian's share beyond 4.5."""
    n = 20_000_000
    noise = np.abs(NoiseSource().add([np.zeros(n, "float32")], [1.0])[0])
    beyond = int((noise > 4.5).sum())
    low, high = stats.poisson.interval(1 - FALSE_ALARM, 2 * n * stats.norm.sf(4.5))
    assert low <= beyond <= high


def test_zero_multiplier_adds_nothing_and_costs_infinity():
    from deel.lipdp.model import get_eps_delta

    private = model(noise_multiplier=0.0)
    x, y = data(8)
    private.train_on_batch(x, y)
    assert get_eps_delta(private) == (math.inf, 1e-5)


def test_key_is_in_no_pickle_repr_or_config():
    private = model()
    source = private._noise_source
    key = source._key.numpy()
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(source)
    texts = [repr(private), str(private.get_config()), repr(vars(private)), private.to_json()]
    assert not any(str(half) in text for half in key for text in texts)
