"""A clip value that moves: the noise follows it within the same run, in one graph."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import SHAPE, RecordingSGD, data, layer_list, model, summed_gradients

from deel.lipdp.bounds import ROUNDING_SLACK
from deel.lipdp.layers import (
    DP_BoundedInput,
    DP_ClipGradient,
    DP_Flatten,
    DP_QuickSpectralDense,
    make_residuals,
)
from deel.lipdp.model import DP_Model, compute_gradient_bounds
from deel.lipdp.sampling import poisson_batches


def clipped_model(clip_value=1.0, dynamic=True, cls_layers=(), **kwargs):
    layers = [
        DP_BoundedInput(3.0, input_shape=SHAPE),
        DP_Flatten(),
        DP_QuickSpectralDense(60, name="wide"),
        *cls_layers,
        DP_QuickSpectralDense(4, name="logits"),
        DP_ClipGradient(clip_value, dynamic=dynamic, name="clip"),
    ]
    return model(layers, **kwargs)


class Moves(keras.callbacks.Callback):
    """Sets the clip value before each step."""

    def __init__(self, values):
        super().__init__()
        self.values = list(values)

    def on_train_batch_begin(self, batch, logs=None):
        self.model.get_layer("clip").clip_value = self.values[batch]


class RecordingNorms(keras.optimizers.SGD):
    """Keeps the norm of each noisy gradient, inside the graph."""

    def __init__(self, steps, variables):
        super().__init__(0.0)
        self.norms = tf.Variable(tf.zeros([steps, variables]), trainable=False)

    def apply(self, grads, trainable_variables=None):
        row = tf.stack([tf.norm(g) for g in grads])
        self.norms.assign(tf.tensor_scatter_nd_update(self.norms, [[tf.cast(self.iterations.value, "int32")]], [row]))
        super().apply(grads, trainable_variables)


@pytest.mark.parametrize("strategy", ["per-layer", "global", "optimal"])
def test_the_noise_follows_the_clip_value_within_a_fit(strategy):
    values = [1.0, 0.1, 1e-3, 0.5, 1e-6, 1.0]
    x, y = data(48)
    optimizer = RecordingNorms(6, 2)
    private = clipped_model(n=48, strategy=strategy, noise_multiplier=2.0, optimizer=optimizer)
    weights = np.zeros(48)  # what the optimizer gets is the noise alone
    private.fit(x, y, sample_weight=weights, verbose=0, callbacks=[Moves(values)])
    found = optimizer.norms.numpy()
    stddevs = {}
    for value in values:
        twin = clipped_model(value, dynamic=False, n=48, strategy=strategy, noise_multiplier=2.0)
        stddevs[value] = np.array(twin.scales_in_force().noise_stddevs) / 8
    sizes = np.array([36 * 60, 60 * 4])
    for row, value in zip(found, values, strict=True):
        # The norm of n normals is within 6 / sqrt(2 n) of sqrt(n), but for once in 10^8 times.
        expected = stddevs[value] * np.sqrt(sizes)
        assert (np.abs(row / expected - 1) < 6 / np.sqrt(2 * sizes)).all()
    assert private.ledger.steps == 6 and len(private.ledger.entries()) == 1


@pytest.mark.parametrize("value", [1e-4, 0.3, 1.2, 50.0])
def test_gradients_stay_under_the_moving_bound(value):
    x, y = data(8)
    private = clipped_model(1.0, n=8, noise_multiplier=0.0, optimizer=RecordingSGD(0.0))
    private.get_layer("clip").clip_value = value
    bounds = compute_gradient_bounds(private)
    slack = 1 + ROUNDING_SLACK
    assert bounds["logits/kernel"] == pytest.approx(3.0 * min(value, math.sqrt(2.0)) * slack)
    for i in range(8):
        found = summed_gradients(private, x[i : i + 1], y[i : i + 1])
        for gradient, bound in zip(found, list(bounds.values())[::-1], strict=True):
            assert np.linalg.norm(gradient) <= bound


def test_a_moving_clip_inside_the_network():
    inner = DP_ClipGradient(1.0, dynamic=True, name="inner")
    private = clipped_model(1.0, cls_layers=[inner])
    inner.clip_value = 0.01
    bounds = compute_gradient_bounds(private)
    assert bounds["wide/kernel"] == pytest.approx(3.0 * 0.01 * (1 + ROUNDING_SLACK))
    assert bounds["logits/kernel"] == pytest.approx(3.0 * 1.0 * (1 + ROUNDING_SLACK))


def test_a_moving_clip_inside_a_residual_block():
    """Wrapped in another layer, it still makes the noise follow."""
    inner = DP_ClipGradient(1.0, dynamic=True, name="inner")
    layers = [
        DP_BoundedInput(3.0),
        DP_Flatten(),
        DP_QuickSpectralDense(60, name="wide"),
        *make_residuals("1-lip-add", [inner]),
        DP_QuickSpectralDense(4, name="logits"),
    ]
    optimizer = RecordingNorms(2, 2)
    private = model(layers, cls=DP_Model, n=16, noise_multiplier=2.0, optimizer=optimizer)

    class MovesInner(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            inner.clip_value = (1e-6, 100.0)[batch]

    x, y = data(16)
    private.fit(x, y, sample_weight=np.zeros(16), verbose=0, callbacks=[MovesInner()])
    low, high = optimizer.norms.numpy()[:, 0]
    # Half of the gradient takes the skip connection, whatever the clip value of the branch.
    assert high / low == pytest.approx(2.0, rel=0.2)


def test_one_graph_serves_all_values():
    x, y = data(40)
    private = clipped_model(n=40)
    traces = []
    inner = private.train_step
    private.train_step = lambda batch: traces.append(1) or inner(batch)
    private.fit(x, y, verbose=0, callbacks=[Moves([1.0, 0.5, 0.2, 0.1, 0.05])])
    private.get_layer("clip").clip_value = 2.0
    private.fit(x, y, verbose=0)
    assert len(traces) == 1 and private.ledger.steps == 10


def test_fixed_and_moving_values_train_alike():
    x, y = data(32)
    weights = []
    start = None
    for dynamic in (False, True):
        private = clipped_model(0.2, dynamic, n=32, noise_multiplier=0.0, optimizer=keras.optimizers.SGD(0.5))
        trainable = [v.numpy() for v in private.trainable_variables]
        start = start or trainable
        for variable, value in zip(private.trainable_variables, start, strict=True):
            variable.assign(value)
        private.restore_constraints()
        private.fit(x, y, shuffle=False, verbose=0)
        weights.append([v.numpy() for v in private.trainable_variables])
    for fixed, moving in zip(*weights, strict=True):
        np.testing.assert_allclose(fixed, moving, atol=1e-6)


@pytest.mark.parametrize(("assigned", "counts_as"), [(np.nan, 1e-9), (-1.0, 1e-9), (0.0, 1e-9), (np.inf, 1e9)])
def test_values_assigned_past_the_setter_cannot_void_the_bound(assigned, counts_as):
    private = clipped_model()
    layer = private.get_layer("clip")
    layer._clip_variable.assign(assigned)
    assert layer.clip_value == pytest.approx(counts_as)
    bound = compute_gradient_bounds(private)["logits/kernel"]
    assert bound == pytest.approx(3.0 * min(counts_as, math.sqrt(2.0)) * (1 + ROUNDING_SLACK))
    x, y = data(40)
    private.fit(poisson_batches(x, y, 8), verbose=0)
    assert all(np.isfinite(w).all() for w in private.get_weights()[:2])


def test_setting_the_value():
    layer = DP_ClipGradient(0.5)
    with pytest.raises(AttributeError, match="dynamic=True"):
        layer.clip_value = 0.1
    moving = DP_ClipGradient(0.5, dynamic=True)
    for value in (0.0, -1.0, math.nan, math.inf, 1e10):
        with pytest.raises(ValueError, match="clip_value"):
            moving.clip_value = value
    with pytest.raises(TypeError, match="clip_value"):
        moving.clip_value = "1"
    moving.clip_value = 0.25
    assert moving.clip_value == 0.25 and not moving.has_parameters()


def test_a_resumed_run_goes_on_with_the_value_it_had(tmp_path):
    private = clipped_model()
    private.get_layer("clip").clip_value = 0.125
    private.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("clip").clip_value == 0.125
    assert compute_gradient_bounds(loaded) == compute_gradient_bounds(private)


def test_debug_logs_the_bounds_in_force(caplog):
    private = model(
        layer_list(last=[DP_ClipGradient(0.5, dynamic=True)]), debug=True, compile_arguments={"run_eagerly": True}
    )
    with caplog.at_level("DEBUG", logger="deel.lipdp"):
        private.train_on_batch(*data(8))
    assert "noise stddev" in caplog.text
