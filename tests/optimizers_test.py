"""What is done with gradients after the noise."""

import functools

import keras
import numpy as np
import pytest

from deel.lipdp.optimizers import LayerwiseSGD


def small_model(optimizer):
    """All weights are 0, so that a factor that is a power of two scales each rounding too: moves are exact."""
    dense = functools.partial(keras.layers.Dense, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((3,)), dense(4, name="first"), dense(2, name="last")])
    model.compile(optimizer, "mse")
    return model


def moves(model, steps=3):
    """By variable, where constant gradients of 1 move it."""
    for _ in range(steps):
        model.optimizer.apply([keras.ops.ones_like(v) for v in model.trainable_variables], model.trainable_variables)
    values = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    for value in values:
        np.testing.assert_array_equal(value, value.flat[0])
    return [value.flat[0] for value in values]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_factor_is_a_learning_rate(momentum):
    plain = moves(small_model(keras.optimizers.SGD(0.1, momentum=momentum)))
    scaled = moves(small_model(LayerwiseSGD(0.1, momentum=momentum, factors={"first": 0.25})))
    np.testing.assert_array_equal(scaled, np.multiply(plain, [0.25, 0.25, 1.0, 1.0]))
    np.testing.assert_array_equal(moves(small_model(LayerwiseSGD(0.1, momentum=momentum, factors={}))), plain)
    assert max(plain) < -0.1


@pytest.mark.parametrize("clip", [{"clipnorm": 0.1}, {"clipvalue": 0.1}, {"global_clipnorm": 0.1}])
def test_gradients_are_clipped_before_the_factor(clip):
    plain = moves(small_model(keras.optimizers.SGD(0.1, **clip)))
    scaled = moves(small_model(LayerwiseSGD(0.1, factors={"first": 4.0}, **clip)))
    np.testing.assert_array_equal(scaled, np.multiply(plain, [4.0, 4.0, 1.0, 1.0]))
    assert max(plain) < 0.0


def test_gradients_of_an_embedding_are_sparse():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Embedding(5, 3, name="rows"), keras.layers.Flatten()])
    model.compile(LayerwiseSGD(0.1, factors={"rows": 0.5}), "mse")
    model.fit(np.array([[0, 1]]), np.ones((1, 6)), verbose=0)


def test_variables_may_be_left_out():
    model = small_model(LayerwiseSGD(0.1, factors={"last": 0.5}))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.apply([keras.ops.ones_like(v) for v in model.trainable_variables])
    named = small_model(LayerwiseSGD(0.1, factors={"last": 0.5}))
    assert moves(model, steps=0) == moves(named, steps=1)


def test_a_name_without_variables_is_refused():
    model = small_model(LayerwiseSGD(0.1, factors={"frist": 0.5}))
    for _ in range(2):  # as a cell of a notebook that is run again
        with pytest.raises(ValueError, match=r"LayerwiseSGD: expected factors of layers .*'first', 'last'.*frist"):
            model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    with pytest.raises(TypeError, match="dict of factors"):
        LayerwiseSGD(factors=None)
    with pytest.raises(ValueError, match=r"factors\['first'\]"):
        LayerwiseSGD(factors={"first": 0.0})
    with pytest.raises(TypeError, match=r"factors\['first'\]"):
        LayerwiseSGD(factors={"first": "slow"})


def test_it_is_saved_with_a_model(tmp_path):
    model = small_model(LayerwiseSGD(0.1, momentum=0.9, factors={"first": 0.25}))
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is LayerwiseSGD and loaded.optimizer.factors == {"first": 0.25}
    np.testing.assert_array_equal(moves(loaded), moves(model))
