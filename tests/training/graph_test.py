"""Functional models and residual blocks: bounds that follow the graph, and training that equals plain Keras."""

import math

import keras
import numpy as np
import pytest
from doubles import NUM_CLASSES, SHAPE, UPPER_BOUND, RecordingSGD, data, metadata, parameters, summed_gradients

from deel.lipdp import layers as dp
from deel.lipdp.bounds import ROUNDING_SLACK
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Model, DP_Sequential, compute_gradient_bounds, get_noise_multiplier_coefs

SQRT2 = math.sqrt(2.0)


def entrance():
    """Symbolic input, and the guarded and flattened signal."""
    inputs = keras.Input(SHAPE)
    return inputs, dp.DP_Flatten()(dp.DP_BoundedInput(UPPER_BOUND)(inputs))


def graph_model(inputs, outputs, loss=None, optimizer=None, n=40, batch_size=8, compile_arguments=None, **kwargs):
    model = DP_Model(
        inputs=inputs,
        outputs=outputs,
        dp_parameters=parameters(**kwargs),
        dataset_metadata=metadata(n, batch_size),
    )
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(0.1),
        loss=loss or DP_TauCategoricalCrossentropy(2.0),
        **(compile_arguments or {}),
    )
    return model


def branches(merge, **kwargs):
    """One dense layer, two that take its output, merged, and the logits."""
    inputs, x = entrance()
    x = dp.DP_QuickSpectralDense(8, name="trunk")(x)
    x = merge()([dp.DP_QuickSpectralDense(8, name=name)(x) for name in ("left", "right")])
    return graph_model(inputs, dp.DP_QuickSpectralDense(NUM_CLASSES, name="logits")(x), **kwargs)


def layer_norms(model, gradients):
    """Norm of each variable's gradient, by the name of its layer."""
    return {
        variable.path.split("/")[-2]: np.linalg.norm(gradient)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
    }


# Output norm of the merge over that of the trunk, and cotangent at the trunk over that of the merge.
MERGES = {
    "add": (dp.DP_Add, 2.0, 2.0, 1.0),
    "mean": (dp.DP_MergeResidual, 1.0, 1.0, 0.5),
    "concatenate": (dp.DP_Concatenate, SQRT2, SQRT2, 1.0),
}


@pytest.mark.parametrize("name", MERGES)
def test_bounds_follow_the_graph(name):
    merge, forward, backward, branch = MERGES[name]
    bounds = compute_gradient_bounds(branches(merge))
    slack = 1 + ROUNDING_SLACK
    assert list(bounds) == ["logits/kernel", "right/kernel", "left/kernel", "trunk/kernel"]
    assert bounds["logits/kernel"] == pytest.approx(forward * UPPER_BOUND * SQRT2 * slack)
    assert bounds["left/kernel"] == bounds["right/kernel"] == pytest.approx(branch * UPPER_BOUND * SQRT2 * slack)
    assert bounds["trunk/kernel"] == pytest.approx(backward * UPPER_BOUND * SQRT2 * slack)


@pytest.mark.parametrize("name", MERGES)
def test_bounds_of_branches_are_attained(name):
    """Equal branches and the steepest label: every bound is reached, so none of them can be lower."""
    model = branches(MERGES[name][0], optimizer=RecordingSGD(0.0), noise_multiplier=0.0, n=1, batch_size=1)
    get = {layer.name: layer for layer in model.layers}
    get["left"].kernel.assign(np.eye(8))
    get["right"].kernel.assign(np.eye(8))
    get["trunk"].kernel.assign(np.eye(36, 8))
    logits = np.zeros(get["logits"].kernel.shape, "float32")
    # One direction of the input drives the logits of the wrong class up and those of the true class down.
    copies = len(logits) // 8
    for copy in range(copies):
        logits[8 * copy, :2] = np.array([1.0, -1.0]) / math.sqrt(2 * copies)
    get["logits"].kernel.assign(logits)
    model.loss.tau = 1e3
    x, y = np.zeros((1, *SHAPE), "float32"), np.eye(NUM_CLASSES, dtype="float32")[1:2]
    x[0, 0, 0, 0] = UPPER_BOUND
    norms, bounds = layer_norms(model, summed_gradients(model, x, y)), compute_gradient_bounds(model)
    if name == "concatenate":  # the branches share the gradient: one of them alone could have all of it
        norms["left"] = norms["right"] = math.hypot(norms["left"], norms["right"])
    for layer, norm in norms.items():
        assert 0.99 * bounds[f"{layer}/kernel"] < norm <= bounds[f"{layer}/kernel"], layer


def test_concatenated_branches_with_a_clip_inside():
    """A clipped branch is not linear: its slope at 0 counts, not its value at the full gradient."""
    inputs, x = entrance()
    x = dp.DP_QuickSpectralDense(8, name="trunk")(x)
    clipped = [dp.DP_ClipGradient(0.1)(dp.DP_QuickSpectralDense(8, name=name)(x)) for name in ("a", "b")]
    model = graph_model(inputs, dp.DP_QuickSpectralDense(NUM_CLASSES)(dp.DP_Concatenate()(clipped)))
    bounds = compute_gradient_bounds(model)
    # Both can be at their clip value at once: 0.2, not sqrt(2) * 0.1.
    assert bounds["trunk/kernel"] == pytest.approx(0.2 * UPPER_BOUND * (1 + ROUNDING_SLACK))
    assert bounds["a/kernel"] == pytest.approx(0.1 * UPPER_BOUND * (1 + ROUNDING_SLACK))


def test_a_branch_used_on_both_sides_of_a_concatenation_adds_up():
    inputs, x = entrance()
    x = dp.DP_QuickSpectralDense(8, name="trunk")(x)
    x = dp.DP_Concatenate()([dp.DP_Add()([x, x]), x])
    model = graph_model(inputs, dp.DP_QuickSpectralDense(NUM_CLASSES)(x))
    expected = math.hypot(2.0, 1.0) * UPPER_BOUND * SQRT2 * (1 + ROUNDING_SLACK)
    assert compute_gradient_bounds(model)["trunk/kernel"] == pytest.approx(expected)


def shared_model(**kwargs):
    inputs, x = entrance()
    shared = dp.DP_QuickSpectralDense(36, name="shared")
    x = dp.DP_Abs()(shared(x))
    return graph_model(inputs, dp.DP_QuickSpectralDense(NUM_CLASSES, name="logits")(shared(x)), **kwargs)


def test_a_shared_layer_has_the_sum_of_the_bounds_of_its_uses():
    model = shared_model()
    assert compute_gradient_bounds(model)["shared/kernel"] == pytest.approx(
        2 * UPPER_BOUND * SQRT2 * (1 + ROUNDING_SLACK)
    )
    names = [layer.name for layer in model.layers_forward_order()]
    assert (names[2], names[4], len(names)) == ("shared", "logits", 5)


def test_a_shared_layer_exceeds_the_bound_of_one_use():
    model = shared_model(optimizer=RecordingSGD(0.0), noise_multiplier=0.0, n=1, batch_size=1)
    shared, logits = model.get_layer("shared"), model.get_layer("logits")
    shared.kernel.assign(np.eye(36))
    kernel = np.zeros((36, NUM_CLASSES), "float32")
    kernel[0, :2] = np.array([1.0, -1.0]) / SQRT2
    logits.kernel.assign(kernel)
    model.loss.tau = 1e3
    x = np.zeros((1, *SHAPE), "float32")
    x[0, 0, 0, 0] = UPPER_BOUND
    norms = layer_norms(model, summed_gradients(model, x, np.eye(NUM_CLASSES, dtype="float32")[1:2]))
    bound = compute_gradient_bounds(model)["shared/kernel"]
    assert 0.99 * bound < norms["shared"] <= bound


def test_a_list_may_use_a_layer_twice_too():
    square = dp.DP_QuickSpectralDense(36, name="square")
    layers = [dp.DP_BoundedInput(UPPER_BOUND), dp.DP_Flatten(), square, dp.DP_Abs(), square]
    model = DP_Model(
        [*layers, dp.DP_QuickSpectralDense(NUM_CLASSES)],
        dp_parameters=parameters(),
        dataset_metadata=metadata(),
    )
    model.compile(loss=DP_TauCategoricalCrossentropy())
    assert compute_gradient_bounds(model)["square/kernel"] == pytest.approx(
        2 * UPPER_BOUND * SQRT2 * (1 + ROUNDING_SLACK)
    )


def residual_layers():
    """Convolutions with a residual block, tokens, and a Mixer block."""
    conv = [dp.DP_QuickSpectralConv2D(4, 3, padding="same", name="conv_in"), dp.DP_GroupSort(2)]
    return [
        dp.DP_BoundedInput(UPPER_BOUND),
        dp.DP_QuickSpectralConv2D(4, 2, strides=2, name="patches"),
        *dp.make_residuals("1-lip-add", conv),
        *dp.make_residuals("add", [dp.DP_Abs(), dp.DP_QuickSpectralConv2D(4, 1, name="mix")]),
        dp.DP_Reshape((9, 4)),
        *dp.make_mixer_block(9, 4, token_units=10, activation=dp.DP_Abs),
        dp.DP_Flatten(),
        dp.DP_QuickSpectralDense(NUM_CLASSES, name="logits"),
    ]


def list_model(layers, optimizer=None, n=40, batch_size=8, compile_arguments=None, **kwargs):
    model = DP_Model(layers, dp_parameters=parameters(**kwargs), dataset_metadata=metadata(n, batch_size))
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(0.1),
        loss=DP_TauCategoricalCrossentropy(2.0),
        **(compile_arguments or {}),
    )
    return model


def test_residual_blocks_have_the_bounds_written_out():
    bounds = compute_gradient_bounds(list_model(residual_layers()))
    # From the logits back: both mixings are means, the "add" block doubles forward and backward, the first halves.
    gradient, signal = SQRT2 * (1 + ROUNDING_SLACK), UPPER_BOUND
    assert bounds["logits/kernel"] == pytest.approx(2 * signal * gradient)
    assert bounds["mix_residual/kernel"] == pytest.approx(signal * gradient)
    windows = dp.DP_QuickSpectralConv2D(4, 3, padding="same")
    windows.build((None, 3, 3, 4))
    factor = windows.backpropagate_params(1.0, 1.0)
    assert bounds["conv_in_residual/kernel"] == pytest.approx(factor * signal * gradient)  # 2 from "add", half of it
    assert bounds["patches/kernel"] == pytest.approx(2 * signal * gradient)


@pytest.mark.parametrize("make", [lambda **k: list_model(residual_layers(), **k), shared_model], ids=["list", "shared"])
def test_gradients_of_examples_stay_under_the_bounds(make):
    x, y = data(12)
    model = make()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        model.set_weights([w + rng.normal(size=w.shape) for w in model.get_weights()])
        ratios, _, _ = model.signal_to_noise_elementwise((x, y))
        assert all((0 < ratio).all() and (ratio <= 1).all() for ratio in ratios.values())


@pytest.mark.parametrize(
    "make",
    [lambda **k: list_model(residual_layers(), **k), shared_model, lambda **k: branches(dp.DP_Concatenate, **k)],
    ids=["residuals", "shared", "branches"],
)
def test_noise_off_equals_plain_keras(make):
    x, y = data(32)
    model = make(noise_multiplier=0.0, optimizer=keras.optimizers.SGD(0.5, momentum=0.9), n=32)
    twin = keras.models.clone_model(keras.Model(model.inputs, model.outputs[0]))
    twin.set_weights(model.get_weights())
    twin.compile(keras.optimizers.SGD(0.5, momentum=0.9), DP_TauCategoricalCrossentropy(2.0), jit_compile=False)
    before = model.get_weights()
    for m in (model, twin):
        m.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for start, ours, theirs in zip(before, model.get_weights(), twin.get_weights(), strict=True):
        assert np.abs(ours - start).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    "make",
    [lambda: list_model(residual_layers()), shared_model, lambda: branches(dp.DP_Add)],
    ids=["list", "shared", "add"],
)
def test_save_and_load(make, tmp_path):
    x, y = data(40)
    model = make()
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, DP_Model)
    assert loaded.ledger.entries() == model.ledger.entries()
    assert compute_gradient_bounds(loaded) == compute_gradient_bounds(model)
    assert get_noise_multiplier_coefs(loaded) == get_noise_multiplier_coefs(model)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    loaded.fit(x, y, verbose=0)
    assert loaded.ledger.steps == 10
    loaded.save_weights(tmp_path / "all.weights.h5")
    model.load_weights(tmp_path / "all.weights.h5")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_functional_models_harm_no_other_model():
    branches(dp.DP_Add)
    assert list_model(residual_layers()).layers_backward_order()[0].name == "logits"
    assert DP_Sequential(
        [dp.DP_BoundedInput(1.0, input_shape=SHAPE), dp.DP_Flatten(), dp.DP_QuickSpectralDense(NUM_CLASSES)],
        dp_parameters=parameters(),
        dataset_metadata=metadata(),
    ).layers
    assert type(keras.Model(*[keras.Input((3,))] * 2)).__name__ == "Functional"


def test_a_mixer_block_on_an_image_names_the_remedy():
    for shape, error in [((9, 4), None), ((3, 3, 4), ValueError)]:
        layers = [
            dp.DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE),
            dp.DP_Reshape((3, 3, 4)),
            dp.DP_Reshape(shape),
            *dp.make_mixer_block(9, 4, activation=dp.DP_Abs),
            dp.DP_Flatten(),
            dp.DP_QuickSpectralDense(NUM_CLASSES),
        ]
        if error is None:
            list_model(layers)
        else:
            with pytest.raises(error, match=r"DP_Permute .*2 axes.*\(None, 3, 3, 4\).*DP_Reshape"):
                list_model(layers)


def functional(inputs, outputs, **kwargs):
    return DP_Model(inputs=inputs, outputs=outputs, dp_parameters=parameters(), dataset_metadata=metadata(**kwargs))


def test_what_a_graph_may_not_hold():
    inputs, x = entrance()
    dense = dp.DP_QuickSpectralDense
    with pytest.raises(TypeError, match="DP_Add"):
        functional(inputs, dense(4)(x + x))
    with pytest.raises(TypeError, match="Dropout 'drop'.*DPLayer"):
        functional(inputs, dense(4)(keras.layers.Dropout(0.5, name="drop")(x)))
    inner = keras.Model(*[keras.Input((36,))] * 2, name="inner")
    with pytest.raises(TypeError, match="Functional 'inner'.*DPLayer"):
        functional(inputs, dense(4)(inner(x)))
    with pytest.raises(ValueError, match="one input and one output"):
        functional(inputs, [dense(4)(x), dense(4)(x)])
    with pytest.raises(ValueError, match="one input and one output"):
        other, z = entrance()
        functional([inputs, other], dp.DP_Add()([x, z]))


def test_the_output_is_that_of_a_layer_with_one():
    """The bound on the gradient enters there: at one of two outputs it would be put on the wrong one."""
    for output in (0, 1):
        inputs, x = entrance()
        pair = dp.DP_SplitResidual()(dp.DP_QuickSpectralDense(4)(x))
        with pytest.raises(ValueError, match="DP_SplitResidual.*Merge the branches"):
            functional(inputs, pair[output])
    with pytest.raises(ValueError, match="one input and one output|one output, that of the model"):
        list_model(residual_layers()[:3])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"dp_layers": [], "inputs": 1, "outputs": 2}, {"inputs": keras.Input((3,))}, {"outputs": keras.Input((3,))}],
)
def test_a_list_or_a_graph(arguments):
    with pytest.raises(TypeError, match="DP_Model: expected a list of layers, or inputs and outputs"):
        DP_Model(**arguments, dp_parameters=parameters(), dataset_metadata=metadata())


def test_every_use_of_the_input_is_guarded():
    inputs, x = entrance()
    x = dp.DP_Add()([dp.DP_QuickSpectralDense(4)(x), dp.DP_QuickSpectralDense(4)(dp.DP_Flatten()(inputs))])
    with pytest.raises(ValueError, match="DP_BoundedInput as the first layer.*DP_Flatten"):
        graph_model(inputs, x)


def test_the_input_has_the_shape_of_the_metadata():
    inputs = keras.Input((5, 5, 1))
    x = dp.DP_QuickSpectralDense(NUM_CLASSES)(dp.DP_Flatten()(dp.DP_BoundedInput(1.0)(inputs)))
    with pytest.raises(ValueError, match=r"\(None, 6, 6, 1\).*\(None, 5, 5, 1\)"):
        graph_model(inputs, x)


def test_a_layer_shared_at_two_image_sizes():
    """A convolution is certified for the size of its first use."""
    inputs = keras.Input(SHAPE)
    conv = dp.DP_QuickSpectralConv2D(1, 3, padding="same", name="conv")
    x = dp.DP_ScaledL2NormPooling2D(2)(conv(dp.DP_BoundedInput(1.0)(inputs)))
    outputs = dp.DP_QuickSpectralDense(NUM_CLASSES)(dp.DP_Flatten()(conv(x)))
    with pytest.raises(ValueError, match=r"conv.*\(None, 3, 3, 1\).*built for \(None, 6, 6, 1\)"):
        graph_model(inputs, outputs)
