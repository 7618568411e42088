"""Mistakes of whole models found in published code for this method: each is shown to be one, and to be absent here."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import (
    NUM_CLASSES,
    SHAPE,
    UPPER_BOUND,
    RecordingSGD,
    data,
    layer_list,
    metadata,
    model,
    parameters,
    summed_gradients,
)

from deel.lipdp import layers
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Sequential, compute_gradient_bounds


def bounds_in_order(private):
    return list(compute_gradient_bounds(private).values())[::-1]


def plain_gradients(private, x, y, loss):
    """Gradients of a batch loss as Keras computes them, without the guard between loss and network."""
    with tf.GradientTape() as tape:
        value = loss(tf.constant(y), private(x, training=True)) + sum(private.losses)
    return [g.numpy() for g in tape.gradient(value, [v.value for v in private.trainable_variables])]


def one_example():
    """An example that uses the whole input bound, and its label."""
    x, y = data(1)
    return x * (UPPER_BOUND / np.linalg.norm(x)), y


class ConvTimesCoefficient(layers.DP_QuickSpectralConv2D):
    """Kernel gradient bound multiplied by the coefficient that normalises the reshaped kernel."""

    def backpropagate_params(self, input_bound, gradient_bound):
        return super().backpropagate_params(input_bound, gradient_bound) / math.prod(self.kernel_size) ** 0.5


def constant_image_model(conv, n=24):
    """A network that turns a constant image into logits without losing any of its norm."""
    private = model_on_images(conv(1, 3, padding="same", name="conv"), n)
    kernel = np.zeros((3, 3, 1, 1), "float32")
    kernel[1, 1] = 1.0
    private.layers[1].kernel.assign(kernel)
    logits = np.zeros((n * n, NUM_CLASSES), "float32")
    logits[:, :2] = np.array([1.0, -1.0]) / (n * math.sqrt(2.0))
    private.layers[3].kernel.assign(logits)
    return private


def model_on_images(conv, n):
    private = DP_Sequential(
        [
            layers.DP_BoundedInput(1.0, input_shape=(n, n, 1)),
            conv,
            layers.DP_Flatten(),
            layers.DP_QuickSpectralDense(NUM_CLASSES, name="logits"),
        ],
        dp_parameters=parameters(noise_multiplier=0.0),
        dataset_metadata=metadata(1, 1, shape=(n, n, 1)),
    )
    private.compile(RecordingSGD(0.0), DP_TauCategoricalCrossentropy(1e3))
    return private


def test_a_whole_model_exceeds_the_conv_bound_with_the_coefficient():
    """Found / claimed 2.8 for a model with its loss: the worst input is a constant image with a wrong label."""
    n = 24
    x, y = np.full((1, n, n, 1), 1.0 / n, "float32"), np.eye(NUM_CLASSES, dtype="float32")[1:2]
    ratios = {}
    for conv in (ConvTimesCoefficient, layers.DP_QuickSpectralConv2D):
        private = constant_image_model(conv, n)
        found = np.linalg.norm(summed_gradients(private, x, y)[0])
        ratios[conv] = found / compute_gradient_bounds(private)["conv/kernel"]
    assert ratios[ConvTimesCoefficient] > 2.8
    assert 0.9 < ratios[layers.DP_QuickSpectralConv2D] <= 1.0


class BatchCentring(layers.NonExpansive, keras.layers.Layer):
    """Subtracts a mean in which the batch axis takes part."""

    def call(self, inputs):
        return inputs - keras.ops.mean(inputs, axis=0, keepdims=True)


def test_centring_over_the_batch_lets_examples_mix():
    x = np.zeros((4, 3), "float32")
    x[0] = 1.0
    changed = x.copy()
    changed[0] = -1.0
    wrong, right = BatchCentring(), layers.DP_LayerCentering()
    assert not np.array_equal(wrong(x).numpy()[1:], wrong(changed).numpy()[1:])
    np.testing.assert_array_equal(right(x).numpy()[1:], right(changed).numpy()[1:])


def test_a_partial_batch_divided_by_its_own_size():
    """The last batch of an epoch may hold one example: divided by 1 and not by B = 256 it counts 256 times."""
    private = model(n=256, batch_size=256, noise_multiplier=0.0, optimizer=RecordingSGD(0.0))
    x, y = one_example()
    loss = DP_TauCategoricalCrossentropy(2.0)
    wrong, bounds = plain_gradients(private, x, y, loss), bounds_in_order(private)
    right = [g / 256 for g in summed_gradients(private, x, y)]  # what the optimizer gets
    for ours, theirs, bound in zip(right, wrong, bounds, strict=True):
        np.testing.assert_allclose(256 * ours, theirs, atol=1e-5)
        assert np.linalg.norm(ours) <= bound / 256


@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size"])
def test_a_summed_loss_divided_by_the_batch_size_once(reduction):
    """A sum over 64 examples fed to a step that takes it for a mean is 64 times too large."""
    x, y = data(64)
    loss = DP_TauCategoricalCrossentropy(2.0, reduction=reduction)
    private = model(n=64, batch_size=64, noise_multiplier=0.0, loss=loss, optimizer=RecordingSGD(0.0))
    mean = plain_gradients(private, x, y, DP_TauCategoricalCrossentropy(2.0))
    theirs = plain_gradients(private, x, y, loss)
    ours = [g / 64 for g in summed_gradients(private, x, y)]  # last: a step projects the weights again
    for a, b, c in zip(ours, mean, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert reduction != "sum" or np.linalg.norm(c) == pytest.approx(64 * np.linalg.norm(a), rel=1e-3)


def test_a_loss_weight_of_ten():
    x, y = one_example()
    weighted = plain_gradients(model(), x, y, lambda t, p: 10.0 * DP_TauCategoricalCrossentropy(2.0)(t, p))
    private = model(noise_multiplier=0.0, optimizer=RecordingSGD(0.0))
    bounds = bounds_in_order(private)
    assert any(np.linalg.norm(g) > b for g, b in zip(weighted, bounds, strict=True))
    found = summed_gradients(private, x, y, np.float32([10.0]))
    assert all(np.linalg.norm(g) <= b for g, b in zip(found, bounds, strict=True))
    with pytest.raises(ValueError, match="loss_weights"):
        private.compile(loss=DP_TauCategoricalCrossentropy(), loss_weights=[10])


def test_an_activity_regulariser_adds_an_unbounded_gradient():
    x, y = one_example()
    dense = layers.DP_QuickSpectralDense(NUM_CLASSES, name="dense")
    private = model([layers.DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), layers.DP_Flatten(), dense])
    [bound] = bounds_in_order(private)
    dense.activity_regularizer = keras.regularizers.L2(100.0)
    dense.kernel.assign(np.linalg.qr(x.reshape(-1, 1) + 1e-3 * np.eye(36, NUM_CLASSES))[0])
    [wrong] = plain_gradients(private, x, y, DP_TauCategoricalCrossentropy(2.0))
    assert np.linalg.norm(wrong) > 100 * bound
    with pytest.raises(ValueError, match="activity_regularizer"):
        private.train_on_batch(x, y)


@pytest.mark.parametrize("where", ["feature", "label"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_number_ends_a_training_in_plain_keras(where, value):
    x, y = data(8)
    (x if where == "feature" else y)[3].flat[0] = value
    twin = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(NUM_CLASSES)])
    twin.compile(keras.optimizers.SGD(0.1), DP_TauCategoricalCrossentropy(2.0))
    twin.train_on_batch(x, y)
    assert not np.isfinite(twin.get_weights()[1]).any()
    private = model()
    private.train_on_batch(x, y)
    assert all(np.isfinite(w).all() for w in private.get_weights())


@pytest.mark.parametrize("clip_value", [0.1, 0.01])
def test_lowering_the_clip_value_lowers_the_noise(clip_value):
    """A clip value not divided by B where the bound is removes signal and no noise: 14 times too much at 0.1."""
    full, clipped = model(), model(layer_list(last=[layers.DP_ClipGradient(clip_value)]))
    for large, small in zip(full.scales_in_force().noise_stddevs, clipped.scales_in_force().noise_stddevs, strict=True):
        assert large / small == pytest.approx(math.sqrt(2.0) / clip_value)


@pytest.mark.parametrize("argument", ["k_coef_lip", "enforce_clipping", "eps_spectral", "beta_bjorck"])
@pytest.mark.parametrize(
    "make", [lambda **k: layers.DP_QuickSpectralDense(3, **k), lambda **k: layers.DP_QuickSpectralConv2D(3, 3, **k)]
)
def test_arguments_that_would_change_the_constant_are_no_arguments(make, argument):
    with pytest.raises((ValueError, TypeError), match=argument):
        make(**{argument: 5.0})
