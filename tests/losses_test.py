"""Losses: value, gradient at the logits, and the constant they state."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from deel.lipdp import losses
from deel.lipdp.losses import DP_TauCategoricalCrossentropy

TAUS = [0.1, 1.0, 10.0, 60.0]


def batch(count=9, classes=5, scale=1.0, seed=0):
    """One-hot and smoothed labels, with logits."""
    rng = np.random.default_rng(seed)
    y = np.eye(classes)[rng.integers(classes, size=count)]
    y[::3] = 0.9 * y[::3] + 0.1 / classes
    return y.astype("float32"), (scale * rng.normal(size=(count, classes))).astype("float32")


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def gradients(loss, y, z):
    """Gradient of each example's loss at its logits."""
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss.call(tf.constant(y), z)
    return tape.gradient(value, z).numpy()


@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("tau", TAUS)
def test_agrees_with_reference_and_with_keras(tau, scale):
    y, z = batch(scale=scale)
    loss = DP_TauCategoricalCrossentropy(tau)
    expected = -(y * log_softmax(tau * z.astype("float64"))).sum(-1) / tau
    np.testing.assert_allclose(loss.call(y, z).numpy(), expected, rtol=1e-5, atol=1e-6)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True)(y, tau * z) / tau
    np.testing.assert_allclose(float(loss(y, z)), float(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tau", TAUS)
def test_gradient_is_the_difference_of_two_distributions(tau):
    y, z = batch()
    expected = np.exp(log_softmax(tau * z.astype("float64"))) - y
    np.testing.assert_allclose(gradients(DP_TauCategoricalCrossentropy(tau), y, z), expected, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("tau", TAUS)
def test_gradient_norm_reaches_the_constant_and_stays_below(tau, classes):
    loss = DP_TauCategoricalCrossentropy(tau)
    found = 0.0
    for seed, scale in enumerate([0.0, 0.1, 1.0, 10.0, 1e3, 1e6]):
        y, z = batch(200, classes, scale / tau, seed)
        found = max(found, np.linalg.norm(gradients(loss, y, z), axis=1).max())
    # The wrong class certain: label 0, all the logit on another.
    y, z = np.eye(classes, dtype="float32")[:1], (20.0 / tau) * np.eye(classes, dtype="float32")[1:2]
    found = max(found, np.linalg.norm(gradients(loss, y, z)))
    assert loss.get_L() == math.sqrt(2.0)
    assert 0.99 * loss.get_L() <= found <= (1 + 1e-6) * loss.get_L()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e15, 1e30])
def test_finite_at_extreme_logits(scale):
    y, z = batch(scale=scale)
    for tau in (1e-3, 1.0, 60.0):
        loss = DP_TauCategoricalCrossentropy(tau)
        assert np.isfinite(loss.call(y, z).numpy()).all()
        found = gradients(loss, y, z)
        assert np.isfinite(found).all()
        assert (np.linalg.norm(found, axis=1) <= (1 + 1e-6) * loss.get_L()).all()


def test_the_constant_is_for_labels_on_the_simplex():
    """Multi-hot labels exceed it: the training step projects their gradient, the loss does not."""
    y, z = np.ones((1, 5), "float32"), np.zeros((1, 5), "float32")
    y[0, 0], z[0, 0] = 0.0, 100.0
    loss = DP_TauCategoricalCrossentropy()
    assert np.linalg.norm(gradients(loss, y, z)) > 2.2 * loss.get_L()


def test_one_value_for_each_example():
    y, z = batch()
    loss = DP_TauCategoricalCrossentropy(3.0)
    whole = loss.call(y, z).numpy()
    assert whole.shape == (9,)
    for i in range(9):
        np.testing.assert_allclose(loss.call(y[i : i + 1], z[i : i + 1]).numpy()[0], whole[i], rtol=1e-6, atol=1e-7)
    z2 = z.copy()
    z2[4] += 100.0
    np.testing.assert_array_equal(np.delete(loss.call(y, z2).numpy(), 4), np.delete(whole, 4))
    assert loss.call(y[:0], z[:0]).shape == (0,)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", None])
def test_config_round_trip(reduction):
    loss = DP_TauCategoricalCrossentropy(7.0, reduction=reduction, name="mine")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, DP_TauCategoricalCrossentropy)
    assert again.get_config() == loss.get_config()
    assert (again.tau, again.name, again.get_L()) == (7.0, "mine", loss.get_L())
    y, z = batch()
    np.testing.assert_array_equal(again(y, z).numpy(), loss(y, z).numpy())


@pytest.mark.parametrize("tau", [0, -1.0, math.inf, math.nan])
def test_tau_out_of_range_is_refused(tau):
    with pytest.raises(ValueError, match=f"DP_TauCategoricalCrossentropy: expected tau.*Received: tau={tau}"):
        DP_TauCategoricalCrossentropy(tau)


@pytest.mark.parametrize("tau", ["1", None, True])
def test_tau_of_another_type_is_refused(tau):
    with pytest.raises(TypeError, match=f"DP_TauCategoricalCrossentropy: expected tau.*Received: tau={tau!r}"):
        DP_TauCategoricalCrossentropy(tau)


def test_a_loss_without_a_constant_says_so():
    class Silent(losses.DP_Loss):
        pass

    with pytest.raises(NotImplementedError, match=r"Silent: expected a method get_L\(\)"):
        Silent().get_L()
