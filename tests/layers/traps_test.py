"""Mistakes found in published code for this method, each shown to be one and shown to be absent here."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from layer_cases import conv_operator, windows

from deel.lipdp import _frequencies, _linalg, layers
from deel.lipdp.testing import search_worst_case


def search(layer, input_shape, **kwargs):
    return search_worst_case(layer, input_shape, **{"restarts": 2, "steps": 8, **kwargs})


def mean_window_count(size, kernel_size, strides, padding):
    """Windows per pixel, averaged over the image."""
    pairs = [p for _, p in windows((size, size), (kernel_size, kernel_size), (strides, strides), padding)]
    return sum(map(len, pairs)) / size**2


class ConvTimesCoefficient(layers.DP_QuickSpectralConv2D):
    """Parameter bound multiplied by the coefficient that normalises the reshaped kernel."""

    def backpropagate_params(self, input_bound, gradient_bound):
        bound = super().backpropagate_params(input_bound, gradient_bound)
        windows_per_pixel = math.prod(k / s for k, s in zip(self.kernel_size, self.strides, strict=True))
        return bound / math.sqrt(windows_per_pixel)


class ConvMeanWindows(layers.DP_QuickSpectralConv2D):
    """Parameter bound from the mean number of windows in place of the largest."""

    def backpropagate_params(self, input_bound, gradient_bound):
        mean = math.prod(k / s for k, s in zip(self.kernel_size, self.strides, strict=True))
        return math.sqrt(mean) * input_bound * gradient_bound


@pytest.mark.parametrize(
    ("kernel_size", "strides", "at_least"), [(3, 1, 2.9), (5, 1, 4.5), (3, 2, 1.3)], ids=["3x3", "5x5", "3x3_stride2"]
)
def test_conv_parameter_bound_has_no_other_factor(kernel_size, strides, at_least):
    arguments = {"kernel_size": kernel_size, "strides": strides, "padding": "same", "filters": 1}
    wrong = search(ConvTimesCoefficient(**arguments), (24, 24, 1), restarts=1)
    assert "parameter_gradient" in wrong.violations()
    assert wrong.parameter_gradient > at_least


@pytest.mark.parametrize(("kernel_size", "strides"), [(3, 2), (4, 3), (5, 2)])
def test_conv_parameter_bound_counts_the_most_covered_pixel(kernel_size, strides):
    """The mean over pixels is less than the count at the pixels that an adversary uses."""
    arguments = {"kernel_size": kernel_size, "strides": strides, "filters": 1}
    wrong = search(ConvMeanWindows(**arguments), (16, 16, 1), restarts=1)
    right = search(layers.DP_QuickSpectralConv2D(**arguments), (16, 16, 1), restarts=1)
    assert wrong.violations() == ["parameter_gradient"]
    assert right.violations() == []


@pytest.mark.parametrize(("size", "kernel_size", "strides"), [(4, 5, 1), (3, 3, 1), (8, 3, 1), (7, 3, 2)])
def test_conv_norm_is_not_bounded_by_the_mean_number_of_windows(size, kernel_size, strides):
    # Each window is copied into the channels of its output, so a pixel counts as often as it is in a window.
    kernel = np.eye(kernel_size**2).reshape(kernel_size, kernel_size, 1, kernel_size**2)
    truth = np.linalg.norm(conv_operator(kernel, (size, size), (strides, strides), "same"), 2)
    assert truth > 1.02 * math.sqrt(mean_window_count(size, kernel_size, strides, "same"))
    geometry = _frequencies.ConvGeometry((size, size), (kernel_size,) * 2, (strides,) * 2, (1, 1), "same")
    assert truth * (1.0 - 1e-13) <= float(_frequencies.conv_norm_bound(ops.convert_to_tensor(kernel), geometry))


def power_iteration(matrix, steps):
    v = np.ones(matrix.shape[1])
    for _ in range(steps):
        v = matrix.T @ (matrix @ v)
        v /= np.linalg.norm(v)
    return np.linalg.norm(matrix @ v)


def test_power_iteration_is_no_certificate():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(30, 30))
    truth = np.linalg.norm(matrix, 2)
    assert truth > 1.02 * power_iteration(matrix, 3)
    assert truth <= float(_linalg.matrix_norm_bound(ops.convert_to_tensor(matrix))) < 1.06 * truth
    # From a start orthogonal to the top singular vector it never gets there.
    missed = np.diag([1.0, 1.0, 1.26]) @ np.array([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    assert np.linalg.norm(missed, 2) > 1.25 * power_iteration(missed, 50)
    assert np.linalg.norm(missed, 2) <= float(_linalg.matrix_norm_bound(ops.convert_to_tensor(missed)))


@pytest.mark.parametrize(
    ("make", "input_shape"),
    [(lambda: layers.DP_QuickSpectralDense(4), (4,)), (lambda: layers.DP_QuickSpectralConv2D(2, 3), (6, 6, 2))],
    ids=["dense", "conv"],
)
def test_the_gradient_is_that_of_the_applied_kernel(make, input_shape):
    """Differentiating through `W / norm(W)` is not 1-Lipschitz: the smaller W, the larger its gradient."""
    layer = make()
    layer.build((None, *input_shape))
    x = tf.constant(np.random.default_rng(1).normal(size=(1, *input_shape)).astype("float32"))
    variable = layer.kernel.value
    with tf.GradientTape() as tape:
        y = layer(x)
    applied = tape.gradient(y, variable, y)
    variable.assign(0.1 * variable)
    # Linear in its variable, so nothing is normalised on the way.
    np.testing.assert_allclose(layer(x).numpy(), 0.1 * y.numpy(), rtol=1e-5, atol=1e-7)
    with tf.GradientTape() as tape:
        again = layer(x)
    np.testing.assert_allclose(tape.gradient(again, variable, y).numpy(), applied.numpy(), rtol=1e-5)
    with tf.GradientTape() as tape:
        scaled = layer(x) / tf.stop_gradient(tf.norm(variable))
    assert tf.norm(tape.gradient(scaled, variable, y)) > 4.0 * tf.norm(applied)


class SortByMaximum(layers.NonExpansive, keras.layers.Layer):
    """At a tie both outputs take their gradient from the same input."""

    def call(self, inputs):
        half = inputs.shape[-1] // 2
        first, second = inputs[..., :half], inputs[..., half:]
        # TensorFlow's maximum and minimum both choose the first at a tie.
        return ops.concatenate([ops.maximum(first, second), ops.minimum(first, second)], axis=-1)


def test_sorting_by_maximum_and_minimum_is_wrong_at_ties():
    wrong = search(SortByMaximum(), (2, 4))
    assert wrong.violations() == ["input_gradient"]
    assert wrong.input_gradient == pytest.approx(math.sqrt(2.0), rel=1e-3)


@pytest.mark.parametrize(("channels", "n"), [(4, 2), (8, 4), (6, 3), (5, 5)])
@pytest.mark.parametrize("pattern", ["black", "equal", "pairs"])
def test_group_sort_is_a_permutation_at_ties(channels, n, pattern):
    values = {"black": np.zeros(channels), "equal": np.ones(channels), "pairs": np.arange(channels) // 2}[pattern]
    x = tf.constant(values[None].astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layers.DP_GroupSort(n)(x)
    jacobian = tape.jacobian(y, x).numpy()[0, :, 0]
    np.testing.assert_array_equal(np.sort(jacobian.sum(0)), np.ones(channels))
    np.testing.assert_array_equal(np.sort(jacobian.sum(1)), np.ones(channels))
    assert set(np.unique(jacobian)) == {0.0, 1.0}


@pytest.mark.parametrize("shape", [(3,), (4, 3), (4, 5, 3)], ids=["rank2", "rank3", "rank4"])
def test_centring_never_averages_over_the_batch(shape):
    layer = layers.DP_LayerCentering()
    x = np.random.default_rng(2).normal(size=(5, *shape)).astype("float32")
    np.testing.assert_allclose(layer(x).numpy()[2:3], layer(x[2:3]).numpy(), rtol=1e-6, atol=1e-6)
    for axis in (0, -len(shape) - 1, (1, 0)):
        with pytest.raises(ValueError, match="DP_LayerCentering.*batch"):
            layers.DP_LayerCentering(axis).build((None, *shape))


ZEROS = [
    (lambda: layers.DP_ScaledL2NormPooling2D(2), (4, 4, 2)),
    (lambda: layers.DP_ScaledL2NormPooling2D(3, strides=1, padding="same"), (4, 4, 2)),
    (lambda: layers.DP_NormalizeToBall(), (4,)),
    (lambda: layers.DP_NormalizeToBall(minimum_norm=1e-15, radius=100.0), (4,)),
    (lambda: layers.DP_GroupNormalization(2, minimum_norm=1e-15, radius=100.0), (3, 4)),
    (lambda: layers.DP_Scattering2D(2, 3), (4, 4, 2)),
    (lambda: layers.DP_BoundedInput(1.0), (4,)),
    (lambda: layers.DP_GroupSort(2), (4,)),
    (lambda: layers.DP_Abs(), (4,)),
    (lambda: layers.DP_ScaledL2NormPooling1D(2), (4, 2)),
    (lambda: layers.DP_ScaledGlobalL2NormPooling2D(), (4, 4, 2)),
    (lambda: layers.DP_MaxPool2D(3, strides=1, padding="same"), (4, 4, 2)),
    (lambda: layers.DP_FullSort(), (2, 4)),
    (lambda: layers.DP_Householder(), (2, 4)),
    (lambda: layers.DP_ReLU(max_value=1.0, negative_slope=0.5), (4,)),
]


@pytest.mark.parametrize(("make", "shape"), ZEROS, ids=[type(make()).__name__ for make, _ in ZEROS])
def test_no_nan_at_zero(make, shape):
    """Keras differentiates `sqrt` and `norm` at 0 to NaN; one black window would end a training."""
    x = tf.zeros((2, *shape))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = make()(x)
    assert not y.numpy().any()
    assert np.isfinite(tape.gradient(y, x, tf.ones_like(y)).numpy()).all()
    with tf.GradientTape() as tape:
        tape.watch(x)
        norm = ops.sqrt(ops.sum(x * x))
    assert not np.isfinite(tape.gradient(norm, x).numpy()).all()


class OverlappingPool(layers.DP_ScaledL2NormPooling2D):
    """Bounds of windows that tile the image, claimed for windows that overlap."""

    def propagate_inputs(self, input_bound):
        return input_bound

    def backpropagate_inputs(self, input_bound, gradient_bound):
        return gradient_bound


def test_overlapping_windows_count_pixels_several_times():
    wrong = search(OverlappingPool(3, strides=1), (7, 7, 1))
    assert wrong.violations() == ["output", "input_gradient"]
    assert wrong.output == pytest.approx(3.0, rel=1e-4)


def test_scaling_to_the_ball_divides_the_cotangent_by_the_smallest_norm():
    class Claim(layers.DP_NormalizeToBall):
        def backpropagate_inputs(self, input_bound, gradient_bound):
            return gradient_bound

    assert search(Claim(minimum_norm=0.1), (5,)).input_gradient == pytest.approx(10.0, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_one_bad_feature_stays_in_its_example_and_in_the_ball(value):
    x = np.full((3, 4), 0.25, "float32")
    x[1, 2] = value
    y = layers.DP_BoundedInput(1.0)(x).numpy()
    assert np.isfinite(y).all()
    assert (np.linalg.norm(y, axis=1) <= 1.0 + 1e-6).all()
    np.testing.assert_array_equal(y[[0, 2]], x[[0, 2]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_one_bad_cotangent_is_clipped(value):
    layer, x = layers.DP_ClipGradient(0.5), tf.zeros((2, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    gradient = tape.gradient(y, x, tf.constant([[1.0, value, 1.0], [0.1, 0.2, 0.0]])).numpy()
    assert np.isfinite(gradient).all()
    assert np.linalg.norm(gradient[0]) <= 0.5 * (1 + 1e-6)
    np.testing.assert_array_equal(gradient[1], np.float32([0.1, 0.2, 0.0]))


KERNEL_LAYERS = [
    lambda **kwargs: layers.DP_QuickSpectralDense(3, **kwargs),
    lambda **kwargs: layers.DP_SpectralDense(3, **kwargs),
    lambda **kwargs: layers.DP_QuickSpectralConv2D(3, 3, **kwargs),
    lambda **kwargs: layers.DP_SpectralConv2D(3, 3, **kwargs),
]


def pretender(x):
    return 10.0 * x


pretender.__name__ = "relu"


@pytest.mark.parametrize("make", KERNEL_LAYERS, ids=["dense", "dense+", "conv", "conv+"])
@pytest.mark.parametrize(
    "activation",
    ["exponential", "gelu", "softplus", "sigmoid", "no_such_thing", lambda x: x, pretender, keras.layers.ReLU(), 3, []],
    ids=lambda activation: getattr(activation, "__name__", str(activation)),
)
def test_an_activation_without_a_known_constant_is_refused(make, activation):
    with pytest.raises(ValueError, match="(Dense|Conv2D).*activation"):
        make(activation=activation)


@pytest.mark.parametrize("make", KERNEL_LAYERS, ids=["dense", "dense+", "conv", "conv+"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sigmoid"])
def test_an_activation_of_the_output_is_to_be_left_out(make, name):
    with pytest.raises(ValueError, match="Leave it out: the losses take logits") as refusal:
        make(activation=name)
    assert "''" not in str(refusal.value)  # the layer has no name yet
    with pytest.raises(ValueError, match="(Dense|Conv2D) 'last': expected activation"):
        make(activation=name, name="last")


@pytest.mark.parametrize("name", ["relu", "tanh", "softsign", "hard_tanh", "linear"])
def test_accepted_activations_are_zero_at_zero_and_never_steeper_than_one(name):
    function = keras.activations.get(name)
    x = np.linspace(-6.0, 6.0, 4001)
    y = function(ops.convert_to_tensor(x)).numpy()
    assert abs(float(function(ops.convert_to_tensor(0.0)))) == 0.0
    assert (np.abs(np.diff(y)) <= np.diff(x) * (1 + 1e-9)).all()
    for make in KERNEL_LAYERS:
        make(activation=name)
        make(activation=function)


@pytest.mark.parametrize("make", KERNEL_LAYERS, ids=["dense", "dense+", "conv", "conv+"])
@pytest.mark.parametrize(
    ("argument", "value"),
    [("use_bias", True), ("kernel_constraint", "max_norm"), ("activity_regularizer", "l2"), ("lora_rank", 2)],
)
def test_arguments_that_void_the_bounds_are_refused(make, argument, value):
    with pytest.raises(ValueError, match=f"(Dense|Conv2D).*{argument}"):
        make(**{argument: value})
    make(**{argument: False if argument == "use_bias" else None})


@pytest.mark.parametrize("dilation", [(2, 2), (3, 1), (1, 2)])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_dilated_convolutions_use_every_tap(dilation, padding):
    """A dilated kernel of k taps puts a pixel in k windows per axis, wherever the image is large enough."""
    layer = layers.DP_QuickSpectralConv2D(2, 3, dilation_rate=dilation, padding=padding)
    layer.build((None, 15, 15, 1))
    assert 2.5 < layer.backpropagate_params(1.0, 1.0) <= 3.0  # the root of 9 windows, less what borders take off
    operator = conv_operator(layer.kernel.numpy(), (15, 15), (1, 1), padding, dilation)
    assert np.linalg.norm(operator, 2) <= 1.0

    class OneWindow(layers.DP_QuickSpectralConv2D):
        def backpropagate_params(self, input_bound, gradient_bound):
            return math.sqrt(4.0) * input_bound * gradient_bound  # ceil(3 / 2) on each axis

    wrong = search(OneWindow(2, 3, dilation_rate=dilation, padding=padding), (15, 15, 1), restarts=1)
    assert wrong.violations() == ["parameter_gradient"]


def test_a_small_image_is_in_fewer_windows():
    layer = layers.DP_QuickSpectralConv2D(2, 5, padding="same")
    layer.build((None, 3, 3, 1))
    assert 2.0 < layer.backpropagate_params(1.0, 1.0) < 3.0  # not 5: an axis of 3 has 3 windows, and two borders


@pytest.mark.parametrize("percent", [1.0, 0.1])
@pytest.mark.parametrize(
    ("cls", "arguments", "input_shape"),
    [
        (layers.DP_QuickSpectralDense, {"units": 4}, (5,)),
        (layers.DP_QuickSpectralConv2D, {"filters": 4, "kernel_size": 2, "strides": 2}, (6, 6, 1)),
    ],
    ids=["dense", "conv"],
)
def test_a_bound_one_percent_too_low_is_found(cls, arguments, input_shape, percent):
    class TooLow(cls):
        def backpropagate_params(self, input_bound, gradient_bound):
            return (1.0 - percent / 100.0) * super().backpropagate_params(input_bound, gradient_bound)

    assert search(TooLow(**arguments), input_shape).violations() == ["parameter_gradient"]


class SteepReLU(layers.NonExpansive, keras.layers.ReLU):
    """A ReLU is taken to be 1-Lipschitz, whatever its arguments."""


def test_the_slope_of_a_relu_counts():
    wrong = search(SteepReLU(negative_slope=3.0), (5,))
    assert wrong.violations() == ["output", "input_gradient"]
    assert wrong.output == pytest.approx(3.0, rel=1e-4)
    assert search(layers.DP_ReLU(negative_slope=3.0), (5,)).violations() == []
    assert search(layers.DP_LeakyReLU(3.0), (5,)).violations() == []


def test_a_threshold_makes_a_relu_jump():
    below, above = SteepReLU(threshold=1.0)(np.float32([[1.0 - 1e-6], [1.0 + 1e-6]])).numpy()
    assert above - below > 0.99
    with pytest.raises(ValueError, match="DP_ReLU.*threshold=1.0"):
        layers.DP_ReLU(threshold=1.0)


def test_a_false_claim_for_a_function_is_found():
    def ten_times(x):
        return 10.0 * x

    wrong = search(layers.DP_Lambda(ten_times, lipschitz_constant=1.0), (5,))
    assert wrong.violations() == ["output", "input_gradient"]
    assert wrong.input_gradient == pytest.approx(10.0, rel=1e-4)
    assert search(layers.DP_Lambda(ten_times, lipschitz_constant=10.0), (5,)).violations() == []


def test_what_a_function_adds_at_zero_counts():
    def shift(x):
        return x + 1.0

    wrong = search(layers.DP_Lambda(shift, lipschitz_constant=1.0), (4,))
    assert wrong.violations() == ["output"]
    assert wrong.output == pytest.approx(3.0, rel=1e-4)  # an input of norm 1, and 1 in each of 4 entries
    assert search(layers.DP_Lambda(shift, lipschitz_constant=1.0, norm_at_zero=2.0), (4,)).violations() == []


class OverlappingMaxPool(layers.DP_MaxPool2D):
    """Bounds of windows that tile the image, claimed for windows that overlap."""

    def _lipschitz_constant(self, covers):
        return 1.0


def test_overlapping_maxima_count_pixels_several_times():
    wrong = search(OverlappingMaxPool(3, strides=1), (6, 6, 1))
    assert wrong.violations() == ["output", "input_gradient"]
    assert wrong.output == pytest.approx(3.0, rel=1e-4)


class MaxPoolByMask(layers.NonExpansive, keras.layers.Layer):
    """Every entry equal to the largest gets the gradient: in a black window that is all of them."""

    def call(self, inputs):
        largest = ops.max(inputs, axis=-1, keepdims=True)
        return ops.sum(inputs * ops.cast(inputs == largest, inputs.dtype), axis=-1)


def test_a_maximum_by_mask_is_wrong_at_ties():
    wrong = search(MaxPoolByMask(), (1, 4))
    assert "input_gradient" in wrong.violations()
    assert wrong.input_gradient == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("size", "pool_size", "strides"), [(4, 2, 2), (5, 3, 2), (6, 3, 1), (3, 2, 1)])
@pytest.mark.parametrize("pattern", ["black", "negative", "two_values", "random"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_max_pool_sends_each_gradient_to_one_entry(size, pool_size, strides, padding, pattern, compiled):
    """At ties, in windows of negative entries and beside the padding too; TensorFlow takes the first of equals.

    The Jacobian, row by row: the search differentiates twice, and TensorFlow 2.21's second derivative of a max pooling
    whose output has the shape of its input is wrong in a graph. Training uses the first only.
    """
    layer = layers.DP_MaxPool2D(pool_size, strides, padding)
    layer.build((None, size, size, 1))
    rng = np.random.default_rng(0)
    image = {
        "black": np.zeros((size, size)),
        "negative": -np.ones((size, size)),
        "two_values": rng.integers(0, 2, (size, size)),
        "random": rng.normal(size=(size, size)),
    }[pattern]
    outputs = layer.compute_output_shape((1, size, size, 1))[1:]
    cotangents = np.eye(math.prod(outputs), dtype="float32").reshape(-1, *outputs)
    x = tf.constant(np.broadcast_to(image[None, :, :, None], (len(cotangents), size, size, 1)), "float32")

    def gradient(x, g):
        x = 1.0 * x  # an activation like those in a model, not an input
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, x, g)

    jacobian = (tf.function(gradient) if compiled else gradient)(x, tf.constant(cotangents)).numpy()
    jacobian = jacobian.reshape(len(cotangents), -1)
    assert set(np.unique(jacobian)) == {0.0, 1.0}
    np.testing.assert_array_equal(jacobian.sum(1), 1.0)
    np.testing.assert_array_equal(jacobian @ image.ravel().astype("float32"), layer(x)[0].numpy().ravel())
    assert np.linalg.norm(jacobian, 2) <= layer.backpropagate_inputs(1.0, 1.0) * (1 + 1e-6)


class AverageOfWholeWindows(layers.DP_AveragePooling2D):
    """A mean of w entries is bounded by `1 / sqrt(w)`: not where TensorFlow leaves out the padding."""

    def _lipschitz_constant(self, covers):
        return math.prod(self.pool_size) ** -0.5


def test_averages_beside_the_padding_have_fewer_entries():
    wrong = search(AverageOfWholeWindows(2, padding="same"), (5, 5, 1))
    assert wrong.violations() == ["output", "input_gradient"]
    assert wrong.output == pytest.approx(2.0, rel=1e-4)  # the corner is a window of its own
    assert search(layers.DP_AveragePooling2D(2, padding="same"), (5, 5, 1)).violations() == []
    assert search(AverageOfWholeWindows(2), (6, 6, 1)).violations() == []


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("size", "pool_size", "strides"), [(8, 2, 2), (7, 3, 2), (9, 3, 1), (5, 2, 2), (11, 5, 3), (6, 5, 1)]
)
def test_average_pooling_is_bounded_by_the_norm_of_its_matrix(size, pool_size, strides, padding):
    """And never by more than the square root of windows per pixel over entries per window."""
    layer = layers.DP_AveragePooling2D(pool_size, strides, padding)
    layer.build((None, size, size, 1))
    pixels = np.eye(size**2, dtype="float32").reshape(-1, size, size, 1)
    matrix = layer(pixels).numpy().reshape(size**2, -1).astype("float64")
    norm = np.linalg.norm(matrix, 2)
    assert norm <= layer.propagate_inputs(1.0) * (1 + 1e-6)
    assert layer.propagate_inputs(1.0) <= norm * (1 + 1e-6)
    most_windows, fewest_entries = (matrix > 0).sum(1).max(), (matrix > 0).sum(0).min()
    assert layer.propagate_inputs(1.0) <= math.sqrt(most_windows / fewest_entries) * (1 + 1e-9)


class BiasOfOnePosition(layers.DP_AddBias):
    """Forgets that the bias is added, and its gradient summed, at every position."""

    def build(self, input_shape):
        super().build(input_shape)
        self._root_positions = 1.0


def test_the_bias_layer_counts_every_position():
    wrong = search(BiasOfOnePosition(), (28, 28, 2), restarts=1, steps=4)
    assert wrong.violations() == ["output", "parameter_gradient"]
    assert wrong.parameter_gradient == pytest.approx(28.0, rel=1e-3)
    assert wrong.output == pytest.approx((1.0 + 28.0) / 2.0, rel=1e-3)
    right = search(layers.DP_AddBias(), (28, 28, 2), restarts=1, steps=4)
    assert right.violations() == []
    assert right.parameter_gradient == pytest.approx(1.0, rel=1e-3)


class TrainedDropout(layers.DP_Dropout):
    """In training always, as the search calls layers without."""

    def call(self, inputs):
        return super().call(inputs, training=True)


class DropoutClaimedToShrink(layers.NonExpansive, TrainedDropout):
    """Dropping entries makes no norm larger, but dividing the others by `1 - rate` does."""


def test_dropout_divides_what_it_keeps():
    wrong = search(DropoutClaimedToShrink(0.75), (6,))
    assert wrong.violations() == ["output", "input_gradient"]
    assert wrong.output == pytest.approx(4.0, rel=1e-4)
    right = search(TrainedDropout(0.75), (6,))
    assert right.violations() == []
    assert right.output == pytest.approx(1.0, rel=1e-4)


def test_known_masks_move_to_other_examples_when_one_is_added():
    """Why `DP_Dropout` takes no seed: with known masks the sum over a batch changes by far more than one example."""
    x = np.ones((400, 4), "float32")
    x[::2] = -1.0
    whole, without = (keras.random.dropout(part, 0.5, seed=0).numpy().sum(0) for part in (x, x[1:]))
    of_one_example = np.linalg.norm(x[0]) / (1 - 0.5)
    assert np.linalg.norm(whole - without) > 5 * of_one_example
    with pytest.raises(ValueError, match="DP_Dropout.*seed=0"):
        layers.DP_Dropout(0.5, seed=0)
