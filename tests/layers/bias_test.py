"""`DP_AddBias`: the stored bias stays in its ball, whatever is done to it."""

import doubles
import keras
import numpy as np
import pytest

from deel.lipdp import layers
from deel.lipdp._linalg import euclidean_norm_bound
from deel.lipdp.layers.bias import NormBall


def built(norm_max=1.0, shape=(4, 3)):
    layer = layers.DP_AddBias(norm_max)
    layer.build((None, *shape))
    return layer


def norm(layer):
    return np.linalg.norm(layer.bias.numpy().astype("float64"))


@pytest.mark.parametrize("norm_max", [1.0, 1e-12, 0.3, 1e15])
@pytest.mark.parametrize("scale", [1e-38, 1e-3, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("channels", [1, 3, 1000])
def test_projection_lands_inside_and_stays_there(norm_max, scale, channels):
    raw = (scale * np.random.default_rng(0).uniform(-1, 1, size=channels)).astype("float32")
    projected = np.asarray(NormBall(norm_max)(raw))
    length = np.linalg.norm(projected.astype("float64"))
    assert length <= norm_max
    np.testing.assert_array_equal(np.asarray(NormBall(norm_max)(projected)), projected)
    if np.linalg.norm(raw.astype("float64")) < norm_max * (1 - 1e-9):
        np.testing.assert_array_equal(projected, raw)
    else:
        assert length == pytest.approx(norm_max, rel=1e-6)
        # Some roundings to single precision, of the quotient and of the weight itself.
        np.testing.assert_allclose(projected / length, raw / np.linalg.norm(raw.astype("float64")), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-37, 1e-20, 1.0, 3e38])
def test_norm_is_bounded_from_above_and_closely(scale):
    x = np.full(777, scale, "float32")
    exact = np.sqrt(np.longdouble(777)) * np.longdouble(x[0])
    bound = float(euclidean_norm_bound(x))
    assert exact <= bound <= exact * (1 + 1e-12)


def test_bias_is_projected_after_updates_and_when_set_or_loaded(tmp_path):
    layer = built()
    assert norm(layer) == 0.0
    optimizer = keras.optimizers.SGD(1.0)
    for size in (0.1, 10.0, 1e30):
        optimizer.apply([np.full(3, -size, "float32")], [layer.bias])
        assert 0 < norm(layer) <= 1.0
    layer.set_weights([np.full(3, 7.0, "float32")])
    assert norm(layer) <= 1.0
    model = keras.Sequential([keras.Input((4, 3)), layer])
    layer.bias.assign(np.full(3, 7.0))
    model.save_weights(tmp_path / "m.weights.h5")
    layer.bias.assign(np.zeros(3))
    model.load_weights(tmp_path / "m.weights.h5")
    assert 0.99 < norm(layer) <= 1.0
    inside = np.float32([0.1, -0.2, 0.3])
    layer.set_weights([inside])
    np.testing.assert_array_equal(layer.bias.numpy(), inside)


def test_a_model_restores_a_bias_assigned_from_outside():
    bias = layers.DP_AddBias(0.5)
    stack = doubles.layer_list()
    stack.insert(-1, bias)
    model = doubles.model(stack)
    bias.bias.assign(np.full(bias.bias.shape, 9.0))
    x, y = doubles.data()
    model.fit(x, y, epochs=1, verbose=0)
    assert 0 < norm(bias) <= 0.5
    ratios, _, bounds = model.signal_to_noise_elementwise((x, y))
    assert all((ratio <= 1.0).all() for ratio in ratios.values())
    assert f"{bias.name}/bias" in bounds


@pytest.mark.parametrize("constraint", [None, keras.constraints.MaxNorm(5.0), NormBall(5.0)])
def test_another_constraint_is_refused_before_training(constraint):
    layer = built()
    layer.check()
    layer.bias.constraint = constraint
    with pytest.raises(ValueError, match="DP_AddBias.*constraint.*Make a new layer"):
        layer.check()


def test_another_norm_max_is_refused_before_training():
    layer = built()
    layer.norm_max = 0.1
    with pytest.raises(ValueError, match="DP_AddBias.*norm_max=0.1"):
        layer.check()


@pytest.mark.parametrize(("shape", "positions"), [((3,), 1), ((4, 3), 4), ((4, 5, 3), 20), ((2, 3, 4, 3), 24)])
def test_bounds_count_positions(shape, positions):
    layer = built(0.5, shape)
    assert layer.propagate_inputs(2.0) == pytest.approx(2.0 + 0.5 * positions**0.5)
    assert layer.backpropagate_inputs(2.0, 3.0) == 3.0
    assert layer.backpropagate_params(2.0, 3.0) == pytest.approx(3.0 * positions**0.5)
