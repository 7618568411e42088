"""The levers of the ablation: that each makes the change it is named for, and what comes after the noise."""

import dataclasses
import pathlib
import sys

import keras
import numpy as np
import pytest

from deel.lipdp.parameters import DatasetMetadata, DPParameters

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "ablation"


@pytest.fixture
def post_processing(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import post_processing

    return post_processing


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    import run

    return run


def one_step(optimizer, gradient, start=None):
    """Where one gradient moves a variable."""
    variable = keras.Variable(np.zeros_like(gradient) if start is None else start, name="kernel")
    before = variable.numpy()
    optimizer.build([variable])
    optimizer.apply([keras.ops.convert_to_tensor(gradient)])
    return variable.numpy() - before


def matrix(shape=(30, 6), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_an_orthogonal_step_keeps_directions_and_no_lengths(post_processing):
    gradient = matrix()
    step = one_step(post_processing.OrthogonalMomentum(1.0, factors={}, momentum=0.9), gradient)
    left, _, right = np.linalg.svd(gradient.astype("float64"), full_matrices=False)
    # A decomposition in single precision; the condition of the matrix is below 4.
    np.testing.assert_allclose(step, -left @ right, rtol=0.0, atol=30 * 2.0**-23)


def test_noise_alone_is_shrunk_to_nothing_and_a_signal_is_not(post_processing):
    stddev, momentum = 0.1, 0.9

    def step(gradient):
        optimizer = post_processing.ShrunkMomentum(1.0, factors={}, momentum=momentum, stddevs=[stddev])
        return one_step(optimizer, gradient.astype("float32"))

    # The first gradient is all there is of the momentum, whose noise the optimizer takes to be that of many.
    assert not step(stddev * matrix()).any()
    signal = 1e3 * np.outer(np.ones(30), np.ones(6))
    np.testing.assert_allclose(step(signal), -signal, rtol=1e-5)


def test_corrected_adam_takes_the_noise_out_of_the_second_moment(post_processing):
    gradient, variance = np.full((4, 2), 2.0, "float32"), 3.0

    def step(stddev):  # decays that are exact in binary
        return one_step(post_processing.CorrectedAdam(1.0, beta_1=0.5, beta_2=0.5, stddevs=[stddev]), gradient)

    np.testing.assert_array_equal(step(0.0), -1.0)  # Adam's first step
    # The variance is the square of a root, rounded twice, and 1 is left of 4.
    np.testing.assert_allclose(step(variance**0.5), -2.0 / (4.0 - variance) ** 0.5, rtol=4 * 2.0**-23)


def test_a_tangent_step_leaves_the_singular_values_of_an_isometry(post_processing):
    isometry = np.linalg.qr(matrix((12, 5)))[0].astype("float32").reshape(3, 4, 1, 5)
    rate = 1e-3
    step = one_step(post_processing.TangentSGD(rate, factors={}), matrix((3, 4, 1, 5), seed=1), isometry)
    moved = (isometry + step).reshape(12, 5)
    # The first order vanishes; what is left is the square of a step of length 0.01.
    assert np.linalg.norm(step) > 5 * rate
    np.testing.assert_allclose(np.linalg.svd(moved)[1], 1.0, rtol=0.0, atol=np.linalg.norm(step) ** 2)
    plain = (isometry - rate * matrix((3, 4, 1, 5), seed=1)).reshape(12, 5)
    assert abs(np.linalg.svd(plain)[1] - 1.0).max() > 5 * np.linalg.norm(step) ** 2


@pytest.mark.full
def test_every_lever_trains_a_network_of_its_own(ablation):
    metadata = DatasetMetadata((28, 28, 1), 64, 16, 28.0, nb_classes=10)
    x = np.random.default_rng(0).uniform(size=(16, 28, 28, 1)).astype("float32")
    seen = {}
    for name, lever in ablation.LEVERS.items():
        recipe = dataclasses.replace(ablation.RECIPE, **lever.recipe)
        model = ablation.builder(lever)(recipe, DPParameters(lever.strategy, 1.0, 1e-5), metadata)
        before = [w.copy() for w in model.get_weights()]
        model.fit(x, np.eye(10, dtype="float32")[np.arange(16) % 10], verbose=0)
        after = model.get_weights()
        assert all(np.isfinite(w).all() for w in after), name
        assert any(not np.array_equal(*pair) for pair in zip(before, after, strict=True)), name
        for layer in model.layers_forward_order():
            assert not hasattr(layer, "certified_norm") or layer.certified_norm() <= 1.0, name
        callbacks = [layer.get_config() for layer in model.layers if getattr(layer, "dynamic", False)]
        optimizer = type(model.optimizer).__name__, model.optimizer.get_config()
        layers = [(type(layer).__name__, {**layer.get_config(), "name": ""}) for layer in model.layers]
        change = repr((layers, optimizer, lever.recipe, lever.strategy, callbacks))
        assert change not in seen, (name, seen.get(change))
        seen[change] = name
