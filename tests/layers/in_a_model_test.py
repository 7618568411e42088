"""Layers at work in a private model: bounds of whole models, saving, and tokens."""

import doubles
import keras
import numpy as np
import pytest
from layer_cases import doubled_and_shifted

from deel.lipdp import layers
from deel.lipdp.model import DP_Model, DP_Sequential

TOKENS, WORDS = 6, 9


def stack():
    """Every kind of layer without a convolution."""
    return [
        layers.DP_BoundedInput(doubles.UPPER_BOUND, input_shape=doubles.SHAPE),
        layers.DP_SpaceToDepth(2),
        layers.DP_QuickFrobeniusDense(6, name="frobenius"),
        layers.DP_ContractiveDense(6, kernel_initializer="orthogonal", name="contractive"),
        layers.DP_AddBias(0.5, name="bias"),
        layers.DP_Householder(name="householder"),
        layers.DP_Lambda(doubled_and_shifted, lipschitz_constant=2.0, norm_at_zero=0.5 * (9 * 6) ** 0.5),
        layers.DP_MaxPool2D(2, strides=1),
        layers.DP_LeakyReLU(0.1),
        layers.DP_GNP_Factory(keras.layers.ZeroPadding2D)(1),
        layers.DP_AveragePooling2D(2, padding="same"),
        layers.DP_FullSort(),
        layers.DP_Dropout(0.1),
        layers.DP_ScaledGlobalL2NormPooling2D(),
        layers.DP_QuickSpectralDense(doubles.NUM_CLASSES, name="dense"),
    ]


@pytest.mark.parametrize("cls", [DP_Sequential, DP_Model])
def test_no_example_exceeds_the_bounds_of_a_model(cls, tmp_path):
    model = doubles.model(stack(), cls=cls, noise_multiplier=0.1)
    x, y = doubles.data()
    for _ in range(2):
        model.fit(x, y, epochs=1, verbose=0)
        ratios, _, _ = model.signal_to_noise_elementwise((x, y))
        assert set(ratios) == {
            "frobenius/kernel",
            "contractive/kernel",
            "bias/bias",
            "householder/theta",
            "dense/kernel",
        }
        assert all(0 < ratio.max() <= 1.0 for ratio in ratios.values())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (300, 10), (4, 1)])
def test_contractive_kernel_is_scaled_above_norm_one_and_left_alone_below(shape):
    layer = layers.DP_ContractiveDense(shape[1])
    layer.build((None, shape[0]))
    assert not np.any(layer.kernel)
    kernel = np.random.default_rng(0).normal(size=shape)
    kernel /= np.linalg.norm(kernel, 2)
    for norm in (0.01, 0.97):
        small = (norm * kernel).astype("float32")
        np.testing.assert_array_equal(layer.project(small), small)
    for norm in (1.0 - 1e-7, 1.0 + 1e-7, 1.01, 30.0, 1e30):
        projected = np.asarray(layer.project((norm * kernel).astype("float32")))
        assert np.linalg.norm(projected.astype("float64"), 2) <= 1.0 and layer.certified_norm(projected) <= 1.0
        # Each entry is rounded to single precision at most three times, half an eps each; so is the norm, on average.
        direction = projected.astype("float64") / np.linalg.norm(projected.astype("float64"))
        np.testing.assert_allclose(direction, kernel / np.linalg.norm(kernel), rtol=6 * 2.0**-24, atol=0.0)
        # The certificate of a norm is a few percent above it at most.
        assert np.linalg.norm(projected, 2) > 0.95


@pytest.mark.parametrize("kernel_size, strides", [(8, 4), (3, 1), (2, 2)])
def test_contractive_convolution_keeps_the_strengths_of_its_filters(kernel_size, strides):
    layer = layers.DP_ContractiveConv2D(12, kernel_size, strides=strides, padding="same")
    layer.build((None, 16, 16, 3))
    kernel = np.random.default_rng(0).normal(size=layer.kernel.shape) * np.geomspace(1e-3, 1.0, 12)
    kernel = (kernel / float(layer.certified_norm(kernel.astype("float32")))).astype("float32")
    for norm in (0.01, 0.97):
        np.testing.assert_array_equal(layer.project(norm * kernel), norm * kernel)
    for norm in (1.01, 30.0, 1e30):
        projected = np.asarray(layer.project(norm * kernel))
        assert 0.95 < layer.certified_norm(projected) <= 1.0
        # As above: each entry is rounded to single precision a few times, half an eps each.
        direction = projected.astype("float64") / np.linalg.norm(projected.astype("float64"))
        np.testing.assert_allclose(direction, kernel / np.linalg.norm(kernel.astype("float64")), rtol=6 * 2.0**-24)


def test_contractive_kernel_in_double_precision_is_scaled_from_any_size():
    layer = layers.DP_ContractiveDense(3, dtype="float64")
    layer.build((None, 5))
    layer.set_weights([np.full((5, 3), 1e200)])
    projected = np.asarray(layer.project(layer.kernel))
    assert 0.95 < np.linalg.norm(projected, 2) <= 1.0 and layer.certified_norm(projected) <= 1.0


def token_model(upper_bound=(WORDS - 1) * TOKENS**0.5, **kwargs):
    embedding = layers.DP_Embedding(WORDS, 4, name="embedding")
    stack = [layers.DP_BoundedInput(upper_bound, input_shape=(TOKENS,)), embedding, layers.DP_Flatten()]
    model = DP_Sequential(
        [*stack, layers.DP_QuickSpectralDense(doubles.NUM_CLASSES, name="dense")],
        dp_parameters=doubles.parameters(**kwargs),
        dataset_metadata=doubles.metadata(shape=(TOKENS,)),
    )
    model.compile(keras.optimizers.SGD(0.1), doubles.DP_TauCategoricalCrossentropy(2.0))
    return model, embedding


def token_data():
    rng = np.random.default_rng(0)
    return rng.integers(0, WORDS, (40, TOKENS)), np.eye(doubles.NUM_CLASSES)[rng.integers(0, doubles.NUM_CLASSES, 40)]


def test_the_guard_leaves_tokens_alone():
    model, embedding = token_model()
    x = np.vstack([np.full((1, TOKENS), WORDS - 1), token_data()[0]])
    guarded = model.layers[0](x.astype("float32"))
    np.testing.assert_array_equal(embedding(guarded).numpy(), embedding.embeddings.numpy()[x])


def test_tokens_are_trained_on_and_every_row_gets_noise():
    model, embedding = token_model()
    x, y = token_data()
    x[x == WORDS - 1] = 0
    before = embedding.embeddings.numpy()
    model.fit(x, y, epochs=1, verbose=0)
    after = embedding.embeddings.numpy()
    assert (after != before).any(axis=1).all()
    assert (np.linalg.norm(after.astype("float64"), axis=1) <= 1.0).all()
    ratios, _, bounds = model.signal_to_noise_elementwise((x, y))
    assert 0 < ratios["embedding/embeddings"].max() <= 1.0
    assert bounds["embedding/embeddings"] == pytest.approx(TOKENS**0.5 * 2**0.5, rel=2e-3)


@pytest.mark.parametrize("value", [-3.0, 1e9, 2.4, np.nan, np.inf, -np.inf])
def test_what_is_no_token_stays_in_its_example(value):
    model, embedding = token_model(noise_multiplier=0.0)
    x, _ = token_data()
    odd = x.astype("float32")
    odd[3, 2] = value
    expected, found = (model.predict(batch, verbose=0) for batch in (x, odd))
    assert np.isfinite(found).all()
    others = np.arange(len(x)) != 3
    np.testing.assert_array_equal(found[others], expected[others])


def test_nothing_before_tokens_can_be_trained():
    stack = [layers.DP_BoundedInput(9.0, input_shape=(TOKENS,)), layers.DP_QuickSpectralDense(3)]
    model = DP_Sequential(
        [*stack, layers.DP_Embedding(WORDS, 4), layers.DP_Flatten()],
        dp_parameters=doubles.parameters(),
        dataset_metadata=doubles.metadata(shape=(TOKENS,)),
    )
    model.compile(keras.optimizers.SGD(0.1), doubles.DP_TauCategoricalCrossentropy(2.0))
    x, y = token_data()
    with pytest.raises(ValueError, match="positive and finite gradient bound"):
        model.fit(x, np.zeros((40, 12)), verbose=0)


@pytest.mark.parametrize("constraint", [None, keras.constraints.MaxNorm(2.0)])
def test_another_constraint_of_a_table_is_refused(constraint):
    layer = layers.DP_Embedding(WORDS, 4)
    layer.build((None, TOKENS))
    layer.check()
    layer.embeddings.constraint = constraint
    with pytest.raises(ValueError, match="DP_Embedding.*Make a new layer"):
        layer.check()


def test_a_table_starts_and_stays_in_the_balls_of_its_rows():
    layer = layers.DP_Embedding(WORDS, 4, norm_max=0.5, embeddings_initializer="ones")
    layer.build((None, TOKENS))
    for values in (None, np.full((WORDS, 4), 1e30), np.linspace(-1, 1, WORDS * 4).reshape(WORDS, 4)):
        if values is not None:
            layer.set_weights([values.astype("float32")])
        norms = np.linalg.norm(layer.embeddings.numpy().astype("float64"), axis=1)
        assert (norms <= 0.5).all()
        assert norms.max() > 0.499
