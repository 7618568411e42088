"""The contract of every layer in `layer_cases.CASES`: the checker, a reference in NumPy, bad arguments."""

import collections
import inspect
import math

import keras
import layer_cases
import numpy as np
import pytest
from layer_cases import CALLABLE, CASES, WITH_KERNEL

from deel.lipdp import layers
from deel.lipdp.testing import check_dp_layer, search_worst_case

# The search is seeded, but another machine's order of summation can end in another local maximum. A bound looser by
# 1 % is seen.
FALL_TOLERANCE = 0.01

# Single precision against a double-precision reference; sums have at most a few hundred terms.
CLOSE = {"rtol": 1e-4, "atol": 2e-6}

BOUNDS = ("output", "input_gradient", "parameter_gradient")

callable_cases = pytest.mark.parametrize("case", CALLABLE, ids=lambda case: case.name)
kernel_cases = pytest.mark.parametrize("case", WITH_KERNEL, ids=lambda case: case.name)


def build(layer, input_shape):
    layer.build((None, *input_shape))
    return layer


def examples(case, count, seed=0):
    """Random examples of norms near the bound; a list of arrays for a layer with several inputs."""
    rng = np.random.default_rng(seed)

    def normal(shape, bound):
        return (rng.normal(size=(count, *shape)) * bound / np.sqrt(np.prod(shape))).astype("float32")

    if not isinstance(case.input_shape, list):
        return normal(case.input_shape, case.input_bound)
    bounds = np.broadcast_to(case.input_bound, len(case.input_shape))
    return [normal(shape, bound) for shape, bound in zip(case.input_shape, bounds, strict=True)]


def is_layer(value):
    return inspect.isclass(value) and issubclass(value, keras.layers.Layer)


def test_every_public_layer_has_a_case():
    public = {name for name in layers.__all__ if is_layer(getattr(layers, name))}
    assert public == {type(case.make()).__name__ for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


def checked(case, **search):
    bounds = {"input_bound": case.input_bound, "gradient_bound": case.gradient_bound}
    return check_dp_layer(case.make(), case.input_shape, **bounds, **search)


def sample(cases):
    """All cases as parameters. In `make test` every third one of a class with a kernel, every second one of another.

    The full run has them all. The checker takes seconds for each; a class lists its kinds of windows in order.
    """
    seen, parameters = collections.Counter(), []
    for case in cases:
        name = case.name.split("-")[0]
        marks = [pytest.mark.full] if seen[name] % (3 if case in WITH_KERNEL else 2) else []
        seen[name] += 1
        parameters.append(pytest.param(case, marks=marks, id=case.name))
    return parameters


@pytest.mark.parametrize("case", sample(CALLABLE))
def test_layer_passes_the_checker_and_no_recorded_ratio_falls(case):
    found = checked(case, restarts=2, steps=6)
    for name, recorded in zip(BOUNDS, case.ratios, strict=True):
        ratio = getattr(found, name)
        assert (ratio is None) == (recorded is None)
        assert recorded is None or ratio > recorded - FALL_TOLERANCE, f"{name} fell from {recorded} to {ratio}"


@pytest.mark.full
@callable_cases
def test_long_search_stays_under_the_bounds(case):
    checked(case, restarts=8, steps=30, seed=1)


@pytest.mark.full
@callable_cases
@pytest.mark.parametrize("scale", [1e-10, 1e3, 1e15])
def test_search_at_other_scales_stays_under_the_bounds(case, scale):
    found = search_worst_case(
        case.make(), case.input_shape, input_bound=scale, gradient_bound=1 / scale, restarts=2, steps=6
    )
    assert found.violations() == []


@kernel_cases
def test_the_exact_norm_is_at_most_one_after_updates_that_leave_the_set(case):
    """Singular values, where the checker's search approaches the norm from below."""
    layer = case.build()
    rng = np.random.default_rng(2)
    optimizer = keras.optimizers.SGD(1.0)
    for size in (0.1, 10.0, 1e4):
        step = (size * rng.normal(size=layer.kernel.shape)).astype("float32")
        optimizer.apply([step], [layer.kernel])
        assert float(layer.certified_norm()) <= 1.0
        assert exact_norm(layer, case.input_shape) <= 1.0


def exact_norm(layer, input_shape):
    if hasattr(layer, "kernel_size"):
        return np.linalg.norm(layer_cases.layer_operator(layer, input_shape[:-1]), 2)
    return np.linalg.norm(layer.kernel.numpy().astype("float64"), 2)


@callable_cases
def test_agrees_with_reference(case):
    layer = case.build()
    x = examples(case, 3)
    for part in x if isinstance(x, list) else [x]:
        part *= np.array([0.01, 1.0, 3.0], "float32").reshape(3, *[1] * (part.ndim - 1))
    found, expected = layer(x), case.expected(layer, x)
    if not isinstance(found, (list, tuple)):
        found, expected = [found], [expected]
    for y, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(y.numpy(), reference, **CLOSE)


@callable_cases
def test_outputs_move_no_further_than_the_perturbation_bound(case):
    """Steps of all sizes, random, towards the origin, and of single entries: where layers are steepest."""
    layer, rng = case.build(), np.random.default_rng(0)
    several = isinstance(case.input_shape, list)
    for size in (0.01, 1.0, 10.0):
        x = [size * part for part in as_list(examples(case, 60))]
        for radius in (0.03 * size, size):
            steps = []
            for part in x:
                step = rng.normal(size=part.shape)
                step[20:40] = -part[20:40]
                step[40:] *= rng.random(size=step[40:].shape) < 2.0 / part[0].size
                steps.append(scaled_to(step, radius))
            there = [(part + step).astype("float32") for part, step in zip(x, steps, strict=True)]
            radii = [norms_of(b.astype("float64") - a) for a, b in zip(x, there, strict=True)]
            here, moved = (as_list(layer(points if several else points[0])) for points in (x, there))
            bounds = layer.perturbation_bound(tuple(x) if several else x[0], tuple(radii) if several else radii[0])
            for a, b, bound in zip(here, moved, as_list(bounds), strict=True):
                a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
                # Single precision, of what goes in as of what comes out.
                rounding = 1e-6 * (norms_of(a) + sum(norms_of(part) for part in x))
                assert (norms_of(b - a) <= np.asarray(bound) * (1.0 + 1e-5) + rounding * slope(bound, radii)).all()


def as_list(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]


def norms_of(x):
    return np.linalg.norm(np.asarray(x, "float64").reshape(len(x), -1), axis=1)


def scaled_to(step, radius):
    return step * (radius / np.maximum(norms_of(step), 1e-9)).reshape(-1, *[1] * (step.ndim - 1))


def slope(bound, radii):
    """What the layer may make of rounding: how steep its bound says that it is, and at least 1."""
    return np.maximum(1.0, np.asarray(bound) / np.maximum(np.max(radii, axis=0), 1e-9))


def test_a_layer_that_says_nothing_is_refused():
    class Silent(layers.DPLayer, keras.layers.Layer):
        pass

    for method, count in (("propagate_inputs", 1), ("backpropagate_inputs", 2), ("backpropagate_params", 2)):
        with pytest.raises(TypeError, match=rf"Silent 'silent.*': expected a method {method}\("):
            getattr(Silent(), method)(*[1.0] * count)


def test_a_layer_without_parameters_refuses_to_bound_their_gradient():
    with pytest.raises(TypeError, match="DP_Abs '.*': expected a method backpropagate_params"):
        layers.DP_Abs().backpropagate_params(1.0, 1.0)


def test_input_layer_states_a_shape_and_bounds_nothing():
    for layer in (layers.DP_InputLayer((3, 2)), layers.DP_InputLayer(input_shape=(3, 2))):
        assert layer.batch_shape == (None, 3, 2)
        assert layer.propagate_inputs(math.inf) == math.inf
        assert layer.backpropagate_inputs(math.inf, 0.3) == 0.3


def test_input_layer_is_saved_and_loaded_in_a_model(tmp_path):
    model = keras.Sequential([layers.DP_InputLayer((3, 2)), layers.DP_Flatten()])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded._layers[0]
    assert type(again) is layers.DP_InputLayer
    assert again.batch_shape == (None, 3, 2)


Dense, Conv = layers.DP_QuickSpectralDense, layers.DP_QuickSpectralConv2D
Pool, Ball = layers.DP_ScaledL2NormPooling2D, layers.DP_NormalizeToBall
Conv1D, Depthwise, Patches = layers.DP_Conv1D, layers.DP_DepthwiseConv2D, layers.DP_PatchEmbedding

REFUSED = [
    (lambda: Dense(3, use_bias=True), ValueError, "DP_QuickSpectralDense.*use_bias=True"),
    (lambda: Dense(3, activation="gelu"), ValueError, "DP_QuickSpectralDense.*activation='gelu'.*DP_GroupSort"),
    (lambda: Dense(3, activation=keras.layers.ReLU()), ValueError, "DP_QuickSpectralDense.*activation"),
    (lambda: Dense(3, kernel_constraint="unit_norm"), ValueError, "DP_QuickSpectralDense.*kernel_constraint"),
    (lambda: Dense(3, activity_regularizer="l2"), ValueError, "DP_QuickSpectralDense.*activity_regularizer"),
    (lambda: Dense(3, lora_rank=2), ValueError, "DP_QuickSpectralDense.*lora_rank"),
    (lambda: Dense(3, nm_coef=0), ValueError, "DP_QuickSpectralDense.*nm_coef=0"),
    (lambda: Dense(3, nm_coef="1", name="out"), TypeError, "DP_QuickSpectralDense 'out'.*nm_coef='1'"),
    (lambda: layers.DP_SpectralDense(3, use_bias=True), ValueError, "DP_SpectralDense.*use_bias=True"),
    (lambda: Conv(3, 3, use_bias=True), ValueError, "DP_QuickSpectralConv2D.*use_bias=True"),
    (lambda: Conv(4, 3, groups=2), ValueError, "DP_QuickSpectralConv2D.*groups=2"),
    (lambda: Conv(3, 3, data_format="channels_first"), ValueError, "DP_QuickSpectralConv2D.*'channels_first'"),
    (lambda: Conv(3, 3, activation="exponential"), ValueError, "DP_QuickSpectralConv2D.*activation='exponential'"),
    (
        lambda: layers.DP_SpectralConv2D(3, 3, kernel_constraint="unit_norm"),
        ValueError,
        "DP_SpectralConv2D.*constraint",
    ),
    (lambda: build(Conv(3, 3), (None, 8, 1)), ValueError, r"DP_QuickSpectralConv2D.*\(None, None, 8, 1\)"),
    (lambda: build(Conv(3, 3), (8, 1)), ValueError, r"DP_QuickSpectralConv2D.*\(None, 8, 1\)"),
    (lambda: build(Conv(3, 5), (3, 8, 1)), ValueError, r"DP_QuickSpectralConv2D.*kernel_size=\(5, 5\).*same"),
    (lambda: Conv1D(3, 3, use_bias=True), ValueError, "DP_Conv1D.*use_bias=True.*DP_AddBias"),
    (lambda: Conv1D(4, 3, groups=2), ValueError, "DP_Conv1D.*groups=2"),
    (lambda: Conv1D(4, 3, data_format="channels_first"), ValueError, "DP_Conv1D.*'channels_first'"),
    (lambda: build(Conv1D(3, 3), (None, 2)), ValueError, r"DP_Conv1D.*\(batch, steps, channels\).*\(None, None, 2\)"),
    (lambda: build(Conv1D(3, 3), (8, 8, 2)), ValueError, r"DP_Conv1D.*\(None, 8, 8, 2\)"),
    (lambda: build(Conv1D(3, 5), (4, 1)), ValueError, r"DP_Conv1D.*kernel_size=\(5,\).*same"),
    (lambda: Depthwise(3, use_bias=True), ValueError, "DP_DepthwiseConv2D.*use_bias=True"),
    (lambda: Depthwise(3, depthwise_constraint="unit_norm"), ValueError, "DP_DepthwiseConv2D.*depthwise_constraint"),
    (lambda: Depthwise(3, depth_multiplier=0), ValueError, "DP_DepthwiseConv2D.*depth_multiplier=0"),
    (lambda: Depthwise(3, depth_multiplier=1.5), TypeError, "DP_DepthwiseConv2D.*depth_multiplier=1.5"),
    (lambda: build(Depthwise(3), (None, 8, 1)), ValueError, r"DP_DepthwiseConv2D.*\(None, None, 8, 1\)"),
    (lambda: Patches(3, 2, strides=1), ValueError, "DP_PatchEmbedding.*strides=1"),
    (lambda: Patches(3, 2, padding="same", name="cut"), ValueError, "DP_PatchEmbedding 'cut'.*padding='same'"),
    (lambda: Patches(3, 2, groups=3), ValueError, "DP_PatchEmbedding.*groups=3"),
    (lambda: Patches(3, 0), ValueError, "DP_PatchEmbedding.*patch_size=0"),
    (lambda: Patches(3, (2, 2, 2)), ValueError, r"DP_PatchEmbedding.*patch_size=\(2, 2, 2\)"),
    (lambda: build(Patches(3, 4), (3, 8, 1)), ValueError, r"DP_PatchEmbedding.*\(None, 3, 8, 1\)"),
    (lambda: build(layers.DP_GroupSort(2), (5,)), ValueError, r"DP_GroupSort.*n=2.*\(None, 5\)"),
    (lambda: layers.DP_GroupSort(1), ValueError, "DP_GroupSort.*n=1"),
    (lambda: layers.DP_GroupSort(2.0), TypeError, "DP_GroupSort.*n=2.0"),
    (lambda: layers.DP_BoundedInput(0.0), ValueError, "DP_BoundedInput.*upper_bound=0.0"),
    (lambda: layers.DP_BoundedInput(-1), ValueError, "DP_BoundedInput.*upper_bound=-1"),
    (lambda: layers.DP_BoundedInput(1e16), ValueError, r"DP_BoundedInput.*upper_bound=1e\+16"),
    (lambda: layers.DP_BoundedInput(math.nan), ValueError, "DP_BoundedInput.*upper_bound=nan"),
    (lambda: layers.DP_BoundedInput("1"), TypeError, "DP_BoundedInput.*upper_bound='1'"),
    (lambda: layers.DP_ClipGradient(0), ValueError, "DP_ClipGradient.*clip_value=0"),
    (lambda: layers.DP_ClipGradient(math.inf), ValueError, "DP_ClipGradient.*clip_value=inf"),
    (lambda: layers.DP_ClipGradient(None), TypeError, "DP_ClipGradient.*clip_value=None"),
    (lambda: Ball(radius=0), ValueError, "DP_NormalizeToBall.*radius=0"),
    (lambda: Ball(minimum_norm=0), ValueError, "DP_NormalizeToBall.*minimum_norm=0"),
    (lambda: Ball(radius="big"), TypeError, "DP_NormalizeToBall.*radius='big'"),
    (lambda: layers.DP_GroupNormalization(0), ValueError, "DP_GroupNormalization.*groups=0"),
    (lambda: layers.DP_GroupNormalization(2.0), TypeError, "DP_GroupNormalization.*groups=2.0"),
    (lambda: layers.DP_GroupNormalization(2, radius=0), ValueError, "DP_GroupNormalization.*radius=0"),
    (lambda: layers.DP_GroupNormalization(2, minimum_norm=0), ValueError, "DP_GroupNormalization.*minimum_norm=0"),
    (lambda: build(layers.DP_GroupNormalization(2), (4, 5)), ValueError, r"DP_GroupNormalization.*2 groups.*4, 5\)"),
    (lambda: layers.DP_Scattering2D(0), ValueError, "DP_Scattering2D.*scales=0"),
    (lambda: layers.DP_Scattering2D(angles=0), ValueError, "DP_Scattering2D.*angles=0"),
    (lambda: layers.DP_Scattering2D(order=3), ValueError, "DP_Scattering2D.*order=3"),
    (lambda: layers.DP_Scattering2D(order="2"), TypeError, "DP_Scattering2D.*order='2'"),
    (lambda: build(layers.DP_Scattering2D(), (8, 8)), ValueError, r"DP_Scattering2D.*\(None, 8, 8\)"),
    (lambda: build(layers.DP_Scattering2D(), (8, None, 1)), ValueError, r"DP_Scattering2D.*\(None, 8, None, 1\)"),
    (lambda: build(layers.DP_LayerCentering(0), (3, 2)), ValueError, r"DP_LayerCentering.*axis=\(0,\).*batch"),
    (lambda: build(layers.DP_LayerCentering((1, 3)), (3, 2)), ValueError, r"DP_LayerCentering.*axis=\(1, 3\)"),
    (lambda: build(layers.DP_LayerCentering((1, 1)), (3, 2)), ValueError, r"DP_LayerCentering.*axis=\(1, 1\)"),
    (lambda: layers.DP_LayerCentering("1"), TypeError, "DP_LayerCentering.*axis='1'"),
    (lambda: layers.DP_LayerCentering(1.5), TypeError, "DP_LayerCentering.*axis=1.5"),
    (lambda: Pool(0), ValueError, "DP_ScaledL2NormPooling2D.*pool_size=0"),
    (lambda: Pool((2, 2, 2)), ValueError, r"DP_ScaledL2NormPooling2D.*pool_size.*\(2, 2, 2\)"),
    (lambda: Pool(2, strides=(1, 0)), ValueError, "DP_ScaledL2NormPooling2D.*strides=0"),
    (lambda: Pool(2.5), TypeError, "DP_ScaledL2NormPooling2D.*pool_size=2.5"),
    (lambda: Pool(2, padding="reflect"), ValueError, "DP_ScaledL2NormPooling2D.*padding='reflect'"),
    (lambda: build(Pool(4), (3, 8, 1)), ValueError, r"DP_ScaledL2NormPooling2D.*\(None, 3, 8, 1\).*same"),
    (lambda: build(Pool(2), (None, 8, 1)), ValueError, r"DP_ScaledL2NormPooling2D.*\(None, None, 8, 1\)"),
    (lambda: build(Pool(2), (8, 1)), ValueError, r"DP_ScaledL2NormPooling2D.*\(None, 8, 1\)"),
    (lambda: layers.DP_Permute((2, 1)).compute_output_shape((None, 4, 4, 3)), ValueError, "DP_Permute.*DP_Reshape"),
    (lambda: layers.DP_Permute((1, 3)), ValueError, r"DP_Permute.*dims=\(1, 3\)"),
    (lambda: layers.DP_Permute((0, 1)), ValueError, "DP_Permute.*dims=0"),
    (lambda: layers.DP_Permute(1.0, name="p"), TypeError, "DP_Permute 'p'.*dims=1.0"),
    (lambda: layers.DP_SpaceToDepth(1), ValueError, "DP_SpaceToDepth.*block_size=1"),
    (lambda: build(layers.DP_SpaceToDepth(2), (4, 3, 1)), ValueError, r"DP_SpaceToDepth.*\(None, 4, 3, 1\)"),
    (lambda: build(layers.DP_SpaceToDepth(2), (4, None, 1)), ValueError, r"DP_SpaceToDepth.*\(None, 4, None, 1\)"),
    (lambda: layers.DP_Lambda(abs), TypeError, "DP_Lambda.*lipschitz_constant"),
    (lambda: layers.DP_Lambda(abs, lipschitz_constant=None), TypeError, "DP_Lambda.*lipschitz_constant=None"),
    (lambda: layers.DP_Lambda(abs, lipschitz_constant=0), ValueError, "DP_Lambda.*lipschitz_constant=0"),
    (lambda: layers.DP_Lambda(abs, lipschitz_constant=math.inf), ValueError, "DP_Lambda.*lipschitz_constant=inf"),
    (lambda: layers.DP_Lambda(abs, lipschitz_constant=1, norm_at_zero=-1), ValueError, "DP_Lambda.*norm_at_zero=-1"),
    (lambda: layers.DP_Lambda(keras.layers.ReLU(), lipschitz_constant=1), TypeError, "DP_Lambda.*DP_GNP_Factory"),
    (lambda: layers.DP_Lambda("relu", lipschitz_constant=1), TypeError, "DP_Lambda.*'relu'"),
    (lambda: layers.DP_ReLU(threshold=0.5), ValueError, "DP_ReLU.*threshold=0.5.*jumps"),
    (lambda: layers.DP_ReLU(max_value=-1), ValueError, "DP_ReLU.*max_value=-1"),
    (lambda: layers.DP_ReLU(negative_slope=math.nan), ValueError, "DP_ReLU.*negative_slope=nan"),
    (lambda: layers.DP_LeakyReLU(None), TypeError, "DP_LeakyReLU.*negative_slope=None"),
    (lambda: layers.DP_LeakyReLU(-0.1), ValueError, "DP_LeakyReLU.*negative_slope=-0.1"),
    (lambda: build(layers.DP_Householder(), (5,)), ValueError, r"DP_Householder.*\(None, 5\)"),
    (lambda: layers.DP_Householder(nm_coef=0), ValueError, "DP_Householder.*nm_coef=0"),
    (lambda: layers.DP_MaxPool2D(0), ValueError, "DP_MaxPool2D.*pool_size=0"),
    (lambda: build(layers.DP_MaxPool2D(3), (2, 8, 1)), ValueError, r"DP_MaxPool2D.*\(None, 2, 8, 1\).*same"),
    (lambda: layers.DP_AveragePooling2D(padding="full"), ValueError, "DP_AveragePooling2D.*padding='full'"),
    (lambda: build(layers.DP_AveragePooling2D(), (8, None, 1)), ValueError, r"DP_AveragePooling2D.*None, 1\)"),
    (lambda: layers.DP_ScaledL2NormPooling1D((2, 2)), ValueError, r"DP_ScaledL2NormPooling1D.*\(2, 2\)"),
    (lambda: build(layers.DP_ScaledL2NormPooling1D(), (None, 2)), ValueError, "DP_ScaledL2NormPooling1D.*steps"),
    (lambda: layers.DP_GlobalAveragePooling2D("yes"), ValueError, "DP_GlobalAveragePooling2D.*keepdims='yes'"),
    (lambda: build(layers.DP_GlobalAveragePooling2D(), (None, 4, 1)), ValueError, "DP_GlobalAveragePooling2D.*rows"),
    (lambda: build(layers.DP_ScaledGlobalL2NormPooling2D(), (4, 1)), ValueError, "DP_ScaledGlobalL2NormPooling2D.*4"),
    (lambda: layers.DP_QuickFrobeniusDense(3, use_bias=True), ValueError, "DP_QuickFrobeniusDense.*use_bias=True"),
    (lambda: layers.DP_AddBias(0), ValueError, "DP_AddBias.*norm_max=0"),
    (lambda: layers.DP_AddBias(math.inf), ValueError, "DP_AddBias.*norm_max=inf"),
    (lambda: layers.DP_AddBias(nm_coef=-1), ValueError, "DP_AddBias.*nm_coef=-1"),
    (lambda: build(layers.DP_AddBias(), (None, 3)), ValueError, r"DP_AddBias.*\(None, None, 3\)"),
    (lambda: layers.DP_Embedding(0, 2), ValueError, "DP_Embedding.*input_dim=0"),
    (lambda: layers.DP_Embedding(2**24 + 1, 2), ValueError, "DP_Embedding.*input_dim=16777217"),
    (lambda: layers.DP_Embedding(5, 2.0), TypeError, "DP_Embedding.*output_dim=2.0"),
    (lambda: layers.DP_Embedding(5, 2, norm_max=-1), ValueError, "DP_Embedding.*norm_max=-1"),
    (lambda: build(layers.DP_Embedding(5, 2), (None,)), ValueError, r"DP_Embedding.*\(None, None\).*tokens"),
    (lambda: layers.DP_Dropout(1.0), ValueError, "DP_Dropout.*rate=1.0"),
    (lambda: layers.DP_Dropout("0.5"), TypeError, "DP_Dropout.*rate='0.5'"),
    (lambda: layers.DP_Dropout(0.5, seed=0), ValueError, "DP_Dropout.*seed=0.*nobody knows the masks"),
    (lambda: layers.DP_Dropout(0.5, noise_shape=(1, 4)), ValueError, r"DP_Dropout.*noise_shape=\(1, 4\)"),
]


@pytest.mark.parametrize(("make", "error", "pattern"), REFUSED, ids=[pattern[:60] for *_, pattern in REFUSED])
def test_bad_arguments_are_refused_with_the_class_and_the_value(make, error, pattern):
    with pytest.raises(error, match=pattern):
        make()


@pytest.mark.parametrize("integer", [np.int64(2), np.int32(2)], ids=["int64", "int32"])
def test_numpy_integers_are_integers(integer):
    assert Pool(integer).pool_size == (2, 2)
    assert layers.DP_LayerCentering(integer).axis == (2,)
    assert layers.DP_GroupSort(integer).n == 2
