"""What is easily got wrong in convolutions over sequences, single channels and patches; each wrong formula fails."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from layer_cases import conv_operator, layer_operator

from deel.lipdp import _frequencies, layers
from deel.lipdp.testing import search_worst_case


def search(layer, input_shape, **kwargs):
    return search_worst_case(layer, input_shape, **{"restarts": 1, "steps": 8, **kwargs})


def built(layer, input_shape):
    layer.build((None, *input_shape))
    return layer


def moved(layer, size, seed=0):
    """The layer after an update of random direction and an entry size of `size`."""
    step = size * np.random.default_rng(seed).normal(size=layer.kernel.shape)
    keras.optimizers.SGD(1.0).apply([step.astype("float32")], [layer.kernel])
    return layer


def singular_values(matrix):
    return np.linalg.svd(np.asarray(matrix, "float64"), compute_uv=False)


@pytest.mark.parametrize(("strides", "wrong"), [(2, 2.0), (3, 3.0)])
def test_one_axis_has_the_root_of_its_stride(strides, wrong):
    """Dividing by the stride, as on images, claims less than the norm of the operator."""
    kernel = np.random.default_rng(0).normal(size=(4, 2, 3))
    truth = np.linalg.norm(conv_operator(kernel, (24,), (strides,), "same", (1,)), 2)
    geometry = _frequencies.ConvGeometry((24,), (4,), (strides,), (1,), "same")
    bound = float(_frequencies.conv_norm_bound(ops.convert_to_tensor(kernel), geometry))
    assert bound * math.sqrt(strides) / wrong < truth <= bound < 1.01 * truth


class OneWindow(layers.DP_Conv1D):
    """Every step in one window only."""

    def backpropagate_params(self, input_bound, gradient_bound):
        return input_bound * gradient_bound


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_a_step_is_in_as_many_windows_as_the_kernel_has_taps(padding):
    wrong = search(OneWindow(2, 3, padding=padding), (40, 1))
    assert wrong.violations() == ["parameter_gradient"]
    assert wrong.parameter_gradient == pytest.approx(math.sqrt(3.0), rel=0.02)


@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (1, 3), (2, 1)])
def test_causal_outputs_see_no_later_step(strides, dilation):
    layer = built(layers.DP_Conv1D(2, 3, strides=strides, dilation_rate=dilation, padding="causal"), (12, 2))
    seen = layer_operator(layer, (12,)).reshape(-1, 2, 12, 2).any(axis=(1, 3))
    for output, inputs in enumerate(seen):
        assert not inputs[output * strides + 1 :].any()
        assert inputs[output * strides]
    x = np.zeros((1, 12, 2), "float32")
    x[:, 7:] = 1.0
    assert not layer(x).numpy()[:, : -(-7 // strides)].any()


def test_strides_and_dilation_together():
    """Keras refuses both in a full convolution and has both in a depthwise one."""
    for make in (layers.DP_Conv1D, layers.DP_QuickSpectralConv2D):
        with pytest.raises(ValueError, match="strides.*dilation_rate"):
            make(2, 3, strides=2, dilation_rate=2)
    # Windows start at even pixels and reach even ones: 3 x 3 of them, not ceil(3 / 2)^2.
    layer = built(layers.DP_DepthwiseConv2D(3, strides=2, dilation_rate=2, padding="same"), (13, 13, 1))
    assert layer._geometry.window_count == 9
    assert np.linalg.norm(layer_operator(layer, (13, 13)), 2) <= 1.0

    class TwoWindows(layers.DP_DepthwiseConv2D):
        def backpropagate_params(self, input_bound, gradient_bound):
            return 2.0 * input_bound * gradient_bound

    wrong = search(TwoWindows(3, strides=2, dilation_rate=2, padding="same"), (13, 13, 1))
    assert wrong.violations() == ["parameter_gradient"]


class MeanOverChannels(layers.DP_DepthwiseConv2D):
    """Parameter bound as if norms were spread evenly over the channels."""

    def backpropagate_params(self, input_bound, gradient_bound):
        return super().backpropagate_params(input_bound, gradient_bound) / math.sqrt(self.kernel.shape[-2])


def test_one_channel_can_carry_the_whole_example():
    arguments = {"kernel_size": 2, "strides": 2}
    wrong = search(MeanOverChannels(**arguments), (6, 6, 4))
    assert wrong.violations() == ["parameter_gradient"]
    assert wrong.parameter_gradient == pytest.approx(2.0, rel=1e-3)
    right = search(layers.DP_DepthwiseConv2D(**arguments), (6, 6, 4))
    assert right.violations() == []
    assert right.parameter_gradient > 0.99


@pytest.mark.parametrize("depth_multiplier", [1, 3])
@pytest.mark.parametrize(("size", "strides"), [((7, 6), 1), ((8, 8), 2)])
def test_no_channel_is_held_back_by_another(size, strides, depth_multiplier):
    layer = layers.DP_DepthwiseConv2D(3, strides=strides, padding="same", depth_multiplier=depth_multiplier)
    built(layer, (*size, 4))
    scales = np.array([1e-12, 1.0, 1e12, 0.0]).reshape(4, 1)
    raw = np.random.default_rng(1).normal(size=layer.kernel.shape) * scales
    layer.set_weights([raw.astype("float32")])
    kernel = layer.kernel.numpy()
    certified = layer._operator_norm_bound(kernel).numpy().ravel()
    assert (certified <= 1.0).all()
    assert (certified[:3] >= 1.0 - 1e-5).all()
    assert certified[3] == 0.0
    for channel in range(3):
        alone = kernel[:, :, channel : channel + 1]
        norm = np.linalg.norm(conv_operator(alone, size, (strides,) * 2, "same"), 2)
        # The certificate embeds the image in a larger circle; a third or less is lost on images this small.
        assert 0.67 < norm <= 1.0


@pytest.mark.parametrize("depth_multiplier", [1, 4])
def test_channels_are_projected_each_as_if_alone(depth_multiplier):
    rng = np.random.default_rng(2)
    raw = rng.normal(size=(3, 3, 5, depth_multiplier)).astype("float32")
    together = built(layers.DP_DepthwiseConv2D(3, depth_multiplier=depth_multiplier), (8, 8, 5))
    alone = built(layers.DP_DepthwiseConv2D(3, depth_multiplier=depth_multiplier), (8, 8, 1))
    kernel = together.project(raw).numpy()
    for channel in range(5):
        expected = alone.project(raw[:, :, channel : channel + 1]).numpy()
        # Entries are at most 1, after some dozens of products in single precision.
        np.testing.assert_allclose(kernel[:, :, channel : channel + 1], expected, atol=5e-6)


def test_a_single_filter_is_only_divided():
    """The isometries with one filter are shifts: a projection that went there would forbid to smooth."""
    layer = built(layers.DP_DepthwiseConv2D(3, padding="same"), (24, 24, 2))
    smoothing = np.ones((3, 3, 2, 1), "float32")
    kernel = layer.project(smoothing).numpy()
    # The certificate's own slack for rounding in single precision is in the divisor.
    np.testing.assert_allclose(kernel, smoothing / 9.0, rtol=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"strides": 2}, {"depth_multiplier": 2}, {"depth_multiplier": 4}], ids=str)
def test_depthwise_layers_start_close_to_isometries(arguments):
    """Divided by their certificates alone, random filters would keep half of the norm."""
    keras.utils.set_random_seed(3)
    layer = built(layers.DP_DepthwiseConv2D(3, padding="same", **arguments), (8, 8, 3))
    assert np.sqrt((singular_values(layer_operator(layer, (8, 8))) ** 2).mean()) > 0.93


PATCHES = {
    "wide": ((6, 4, 2), 20, 2),
    "square": ((8, 8, 3), 48, 4),
    "narrow": ((8, 8, 3), 20, 4),
    "one_filter": ((6, 6, 1), 1, 3),
    "one_pixel": ((3, 2, 4), 6, 1),
    "left_over": ((8, 7, 2), 30, (3, 3)),
}


@pytest.mark.parametrize("name", PATCHES)
def test_patch_embeddings_have_singular_values_of_one(name):
    shape, filters, patch_size = PATCHES[name]
    layer = built(layers.DP_PatchEmbedding(filters, patch_size), shape)
    for size in (0.0, 0.01, 0.3, 10.0, 1e4):
        matrix = moved(layer, size).kernel.numpy().reshape(-1, filters)
        values = singular_values(matrix)
        assert 1.0 - 1e-4 <= values.min()
        assert values.max() <= 1.0
        assert float(layer.certified_norm()) <= 1.0


@pytest.mark.parametrize("name", PATCHES)
def test_patch_embeddings_keep_images_or_cotangents(name):
    shape, filters, patch_size = PATCHES[name]
    layer = moved(built(layers.DP_PatchEmbedding(filters, patch_size), shape), 0.3)
    rng = np.random.default_rng(4)
    x = tf.constant(rng.normal(size=(5, *shape)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    g = rng.normal(size=y.shape).astype("float32")
    back = tape.gradient(y, x, tf.constant(g)).numpy()
    area = math.prod(layer.kernel_size) * shape[-1]
    sides = [n // k * k for n, k in zip(shape[:2], layer.kernel_size, strict=True)]
    inside = x.numpy()[:, : sides[0], : sides[1]]
    # Singular values lie within 1e-4 of 1: the test above.
    if filters >= area:
        np.testing.assert_allclose(norms(y.numpy()), norms(inside), rtol=1e-4)
    if filters <= area:
        np.testing.assert_allclose(norms(back), norms(g), rtol=1e-4)
    outside = back.copy()
    outside[:, : sides[0], : sides[1]] = 0.0
    assert not outside.any()


def norms(x):
    return np.linalg.norm(x.reshape(len(x), -1).astype("float64"), axis=1)


def test_a_patch_embedding_is_a_dense_layer_on_patches():
    layer = built(layers.DP_PatchEmbedding(5, (2, 3)), (4, 6, 2))
    x = np.random.default_rng(5).normal(size=(3, 4, 6, 2)).astype("float32")
    patches = x.reshape(3, 2, 2, 2, 3, 2).transpose(0, 1, 3, 2, 4, 5).reshape(3, 2, 2, 12)
    # Sums of 12 products of numbers of some units, in single precision.
    np.testing.assert_allclose(layer(x).numpy(), patches @ layer.kernel.numpy().reshape(12, 5), atol=1e-5)


@pytest.mark.parametrize("kernel", ["zeros", "ones", "one_entry"])
def test_the_bounds_of_a_patch_embedding_do_not_rest_on_its_singular_values(kernel):
    layer = built(layers.DP_PatchEmbedding(6, 2), (4, 4, 2))
    value = {"zeros": np.zeros(48), "ones": np.ones(48), "one_entry": np.eye(48)[5]}[kernel]
    layer.set_weights([3.0 * value.reshape(2, 2, 2, 6).astype("float32")])
    norm = np.linalg.norm(layer.kernel.numpy().reshape(8, 6).astype("float64"), 2)
    assert norm <= float(layer.certified_norm()) <= 1.0
    assert norm == 0.0 if kernel == "zeros" else norm > 1.0 - 1e-5


def test_a_patch_embedding_states_patches_and_nothing_else_in_its_config():
    config = layers.DP_PatchEmbedding(6, 2).get_config()
    assert tuple(config["patch_size"]) == (2, 2)
    assert not {"kernel_size", "strides", "padding", "dilation_rate", "kernel_constraint"} & config.keys()
    again = layers.DP_PatchEmbedding.from_config(config)
    assert again.strides == again.kernel_size == (2, 2)


MAKE = {
    "conv1d": lambda **kwargs: layers.DP_Conv1D(3, 3, **kwargs),
    "depthwise": lambda **kwargs: layers.DP_DepthwiseConv2D(3, **kwargs),
    "patches": lambda **kwargs: layers.DP_PatchEmbedding(3, 2, **kwargs),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("use_bias", True),
        ("activation", "softplus"),
        ("activation", lambda x: 10.0 * x),
        ("kernel_constraint", "max_norm"),
        ("depthwise_constraint", "max_norm"),
        ("activity_regularizer", "l2"),
        ("lora_rank", 2),
        ("data_format", "channels_first"),
        ("nm_coef", 0.0),
    ],
)
def test_arguments_that_void_the_bounds_are_refused(make, argument, value):
    with pytest.raises(ValueError, match=f"DP_(Conv1D|DepthwiseConv2D|PatchEmbedding).*{argument}"):
        make(**{argument: value})


@pytest.mark.parametrize("name", MAKE)
def test_a_regularizer_of_the_kernel_and_a_known_activation_are_fine(name):
    prefix = "depthwise" if name == "depthwise" else "kernel"
    layer = MAKE[name](activation="relu", **{f"{prefix}_regularizer": "l2"})
    shape = (8, 2) if name == "conv1d" else (8, 8, 2)
    layer = built(layer, shape)
    layer.check()
    assert layer.kernel.regularizer is not None
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize("name", MAKE)
def test_another_constraint_is_noticed(name):
    layer = built(MAKE[name](), (8, 2) if name == "conv1d" else (8, 8, 2))
    layer.kernel.constraint = None
    with pytest.raises(ValueError, match="constraint None"):
        layer.check()
