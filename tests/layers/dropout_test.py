"""`DP_Dropout`: bounds in training, and masks that nobody can know."""

import copy
import os
import random
import zipfile

import doubles
import keras
import numpy as np
import pytest
import tensorflow as tf

from deel.lipdp import layers
from deel.lipdp.model import DP_Model, DP_Sequential

ONES = np.ones((200, 50), "float32")


def kept(layer, x=ONES):
    """Which entries the layer keeps, in one call in training."""
    return layer(x, training=True).numpy() != 0


def state_of(layer):
    return layer._secret.generator.state.numpy()


def test_entries_are_dropped_or_divided():
    y = layers.DP_Dropout(0.25)(ONES, training=True).numpy()
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.75], rtol=1e-6)
    # 10,000 independent entries: five standard deviations.
    assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / y.size)


@pytest.mark.parametrize("training", [False, None])
def test_without_training_it_is_the_identity(training):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    np.testing.assert_array_equal(layers.DP_Dropout(0.9)(x, training=training).numpy(), x)


def test_a_rate_of_zero_is_the_identity():
    np.testing.assert_array_equal(layers.DP_Dropout(0.0)(ONES, training=True).numpy(), ONES)


def test_masks_differ_between_examples_calls_and_layers():
    layer = layers.DP_Dropout(0.5)
    first, second, other = kept(layer), kept(layer), kept(layers.DP_Dropout(0.5))
    assert len(np.unique(first, axis=0)) == len(first)
    for mask in (second, other, np.roll(first, 1, axis=0)):
        # Independent masks of probability 1/2 agree in half of their entries: five standard deviations.
        assert abs((first == mask).mean() - 0.5) < 5 * 0.5 / np.sqrt(first.size)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_masks_differ_between_calls_of_a_graph(jit_compile):
    layer = layers.DP_Dropout(0.5)
    function = tf.function(lambda x: layer(x, training=True), jit_compile=jit_compile)
    assert (function(ONES).numpy() != function(ONES).numpy()).any()


def test_the_gradient_has_the_mask_of_the_output():
    layer, x = layers.DP_Dropout(0.5), tf.constant(ONES)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), y.numpy())


def test_the_global_seed_neither_gives_nor_takes():
    masks = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        masks.append(kept(layers.DP_Dropout(0.5)))
    assert (masks[0] != masks[1]).any()
    keras.utils.set_random_seed(0)
    expected = random.random()
    keras.utils.set_random_seed(0)
    kept(layers.DP_Dropout(0.5))
    assert random.random() == expected


def test_the_state_is_64_bits_of_the_operating_system(monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(0xF1, 0xF1 + count)))
    np.testing.assert_array_equal(state_of(layers.DP_Dropout(0.5)), [0xF4F3F2F1, 0xF8F7F6F5])


def test_the_state_is_in_no_variable_config_or_file(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.DP_Dropout(0.5), layers.DP_QuickSpectralDense(2)])
    layer, path = model.layers[0], tmp_path / "model.keras"
    assert layer.variables == layer.weights == []
    assert len(model.variables) == 1
    assert set(layer.get_config()) == {"name", "trainable", "dtype", "rate"}
    model.save(path)
    loaded = keras.models.load_model(path)
    for again in (loaded.layers[0], keras.models.clone_model(model).layers[0], copy.deepcopy(layer)):
        assert isinstance(again, layers.DP_Dropout)
        assert (state_of(again) != state_of(layer)).all()
    tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    with zipfile.ZipFile(path) as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    contents += [file.read_bytes() for file in tmp_path.glob("checkpoint*")]
    for word in state_of(layer):
        for secret in (word.astype("<u4").tobytes(), str(word).encode()):
            assert not any(secret in content for content in contents)
        assert str(word) not in repr(layer) + str(layer.get_config())


@pytest.mark.parametrize("cls", [DP_Sequential, DP_Model])
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_training_drops_and_prediction_does_not(cls, run_eagerly):
    called = []

    class Spy(layers.DP_Dropout):
        def call(self, inputs, training=False):
            called.append(bool(training))
            return super().call(inputs, training=training)

    dropout = Spy(0.5)
    model = doubles.model(
        [layers.DP_BoundedInput(3.0, input_shape=doubles.SHAPE), layers.DP_Flatten(), dropout]
        + [layers.DP_QuickSpectralDense(doubles.NUM_CLASSES)],
        cls=cls,
        compile_arguments={"run_eagerly": run_eagerly},
    )
    x, y = doubles.data()
    before = state_of(dropout)
    called.clear()
    model.fit(x, y, epochs=1, verbose=0)
    assert all(called)
    assert (state_of(dropout) - before).tolist() == [0, 5]  # one draw for each of the 40 / 8 steps
    called.clear()
    np.testing.assert_array_equal(model.predict(x, verbose=0), model.predict(x, verbose=0))
    assert not any(called)
    ratios, _, _ = model.signal_to_noise_elementwise((x, y))
    assert max(ratios[f"{model.layers_forward_order()[-1].name}/kernel"]) <= 1.0
