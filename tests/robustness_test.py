"""Certified accuracy: no attack succeeds where a certificate says so, and certificates are near what attacks reach."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import metadata, parameters

from deel.lipdp import DP_Model, DP_Sequential, layers
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.robustness import CertifiedAccuracy, certified_accuracy

SHAPE, CLASSES = (4, 4, 1), 4

# Networks whose layers all state other things about perturbations: plain, scaling, a front end, and branches.
NETWORKS = {
    "dense": lambda: [layers.DP_Flatten(), layers.DP_QuickSpectralDense(8), layers.DP_Abs()],
    "scaled": lambda: [layers.DP_LayerCentering(), layers.DP_NormalizeToBall(), layers.DP_Flatten()],
    "scattered": lambda: [layers.DP_Scattering2D(1, 2), layers.DP_GroupNormalization(3), layers.DP_Flatten()],
    "residual": lambda: [
        layers.DP_Flatten(),
        *layers.make_residuals("1-lip-add", [layers.DP_QuickSpectralDense(16), layers.DP_GroupSort(2)]),
    ],
}


def network(name, last=True):
    # Always the same weights: a certificate allows for rounding, some 4e-5 here, and one in forty draws of them has an
    # example whose lead is over a threshold by less, certain in exact arithmetic only.
    keras.utils.set_random_seed(1)
    head = [layers.DP_QuickSpectralDense(CLASSES), layers.DP_ClipGradient(0.5)]
    stack = [layers.DP_BoundedInput(3.0, input_shape=SHAPE), *NETWORKS[name](), *(head if last else head[:1])]
    data = metadata(shape=SHAPE)
    if name == "residual":
        model = DP_Model(stack, dp_parameters=parameters(), dataset_metadata=data)
    else:
        model = DP_Sequential(stack, dp_parameters=parameters(), dataset_metadata=data)
    model.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
    return model


def images(count=24, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype("float32")


def margins(model, x, y):
    logits = model(tf.constant(x)).numpy().astype("float64")
    return logits[y > 0.5] - np.where(y > 0.5, -np.inf, logits).max(axis=1)


def attacked(model, x, y, radius, steps=60):
    """Smallest margin found for each example within the radius, by projected gradient steps from the surface."""
    rng = np.random.default_rng(1)
    smallest = margins(model, x, y)
    rival = tf.constant(y < 0.5)
    for _ in range(2):
        moved = rng.normal(size=x.shape)
        for step in range(steps):
            moved *= radius / np.linalg.norm(moved.reshape(len(x), -1), axis=1).reshape(-1, 1, 1, 1)
            point = tf.constant((x + moved).astype("float32"))
            smallest = np.minimum(smallest, margins(model, point.numpy(), y))
            with tf.GradientTape() as tape:
                tape.watch(point)
                logits = model(point)
                lead = tf.reduce_sum(y * logits, -1) - tf.reduce_max(tf.where(rival, logits, -1e9), -1)
            slope = tape.gradient(lead, point).numpy().astype("float64")
            size = np.linalg.norm(slope.reshape(len(x), -1), axis=1).reshape(-1, 1, 1, 1)
            moved -= radius * 2.0 / (1 + step) ** 0.5 * slope / np.maximum(size, 1e-12)
    return smallest


def labels(model, x):
    """The classes that the model finds, so that it is right about all examples."""
    return np.eye(model.output_shape[-1], dtype="float32")[model.predict(x, verbose=0).argmax(axis=1)]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_attack_succeeds_on_a_certified_example(name):
    model, x = network(name), images()
    y = labels(model, x)
    certified = broken = 0
    for radius in (0.03, 0.1, 0.3):
        certain = [certified_accuracy(model, x[i : i + 1], y[i : i + 1], [radius])[0] == 1.0 for i in range(len(x))]
        found = attacked(model, x, y, radius)
        assert (found[certain] > 0).all()
        certified, broken = certified + sum(certain), broken + np.sum(found <= 0)
    assert certified > 0 and broken > 0  # both sides were put to the test


def test_a_linear_model_is_certified_up_to_its_true_radius():
    """There the smallest perturbation is known: the margin over the norm of the difference of two columns."""
    model = DP_Sequential(
        [
            layers.DP_BoundedInput(100.0, input_shape=(6,)),
            layers.DP_QuickSpectralDense(CLASSES, kernel_initializer="glorot_uniform"),
        ],
        dp_parameters=parameters(),
        dataset_metadata=metadata(shape=(6,)),
    )
    model.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
    x = np.random.default_rng(0).normal(size=(30, 6)).astype("float32")
    y = labels(model, x)
    kernel = model.layers[-1].kernel.numpy().astype("float64")
    logits = x.astype("float64") @ kernel
    true = y.argmax(axis=1)
    exact = []
    for row, own in zip(logits, true, strict=True):
        others = [c for c in range(CLASSES) if c != own]
        exact.append(min((row[own] - row[c]) / np.linalg.norm(kernel[:, own] - kernel[:, c]) for c in others))
    exact = np.array(exact)
    for radius in np.quantile(exact, (0.2, 0.5, 0.8)):
        for near, share in ((0.999, "at least"), (1.001, "at most")):
            found = certified_accuracy(model, x, y, [near * radius])[0]
            expected = np.mean(exact > radius)
            assert found >= expected if share == "at least" else found <= expected


def test_certified_accuracy_falls_with_the_radius_from_the_accuracy():
    model, x = network("scaled"), images(70)
    y = np.eye(CLASSES, dtype="float32")[np.random.default_rng(3).integers(CLASSES, size=70)]
    shares = certified_accuracy(model, x, y, [0.0, 0.1, 0.4, 1.0, 10.0], batch_size=32)
    assert shares[0] == np.mean(margins(model, x, y) > 0)
    assert (np.diff(shares) <= 0).all() and shares[0] > shares[2] > shares[-1] == 0.0


@pytest.mark.parametrize("name", ["dense", "residual"])
def test_metric_is_certain_of_no_more_than_the_model_knows(name):
    model, x = network(name), images(60)
    y = labels(model, x)
    for radius in (0.0, 0.05, 0.2):
        metric = CertifiedAccuracy(radius)
        metric.update_state(y[:25], model(x[:25]))
        metric.update_state(y[25:], model(x[25:]))
        share = float(metric.result())
        assert share == pytest.approx(np.mean(margins(model, x, y) > math.sqrt(2) * radius))
        assert share <= certified_accuracy(model, x, y, [radius])[0] + 1e-7
        metric.reset_state()
        metric.update_state(y[:2], model(x[:2]), sample_weight=[1.0, 0.0])
        assert float(metric.result()) == float(margins(model, x[:1], y[:1])[0] > math.sqrt(2) * radius)
    again = CertifiedAccuracy.from_config(CertifiedAccuracy(0.3, lipschitz_constant=2.0).get_config())
    assert (again.radius, again.lipschitz_constant) == (0.3, 2.0)


def test_metric_in_compile():
    model = network("dense")
    model.compile("sgd", DP_TauCategoricalCrossentropy(1.0), metrics=[CertifiedAccuracy(0.1), "accuracy"])
    x = images(20)
    logs = model.evaluate(x, labels(model, x), batch_size=8, verbose=0, return_dict=True)
    assert 0.0 <= logs["certified_accuracy"] <= logs["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("make", "inputs", "tight"),
    [
        (lambda: layers.DP_NormalizeToBall(2.0, minimum_norm=0.5), (5,), 0.9),
        (lambda: layers.DP_GroupNormalization(2, 2.0, minimum_norm=0.5), (6,), 0.5),
        (lambda: layers.DP_LeakyReLU(negative_slope=3.0), (5,), 0.5),
        (lambda: layers.DP_ClipGradient(0.1), (5,), 0.99),
    ],
    ids=["ball", "groups", "leaky", "clip"],
)
def test_perturbation_bounds_hold_and_are_nearly_reached(make, inputs, tight):
    """Random pairs at all distances, many of them towards the origin, where layers are steepest."""
    rng = np.random.default_rng(0)
    layer, best = make(), 0.0
    for size, radius in itertools.product((0.1, 0.6, 1.0, 3.0), (0.01, 0.3, 2.0)):
        x = rng.normal(size=(400, *inputs))
        x *= size / np.linalg.norm(x, axis=1, keepdims=True)
        step = rng.normal(size=x.shape) * rng.choice([0.0, 1.0], size=x.shape)
        step -= rng.choice([0.0, 1.0], size=(400, 1)) * x
        step *= radius / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)
        moved = np.linalg.norm(layer((x + step).astype("float32")) - layer(x.astype("float32")), axis=1)
        bound = layer.perturbation_bound(tf.constant(x.astype("float32")), np.full(400, radius))
        assert (moved <= bound * (1 + 1e-4) + 1e-6).all()
        best = max(best, (moved / bound).max())
    assert best > tight


def test_another_token_is_not_near():
    layer = layers.DP_Embedding(3, 2)
    np.testing.assert_array_equal(layer.perturbation_bound(None, np.array([0.0, 0.1])), [0.0, math.inf])


def test_layers_of_several_inputs_say_what_they_do():
    rng = np.random.default_rng(0)
    two = np.abs(rng.normal(size=(2, 7)))
    x = tf.zeros((7, 4))
    np.testing.assert_allclose(layers.DP_Add().perturbation_bound((x, x), tuple(two)), two.sum(0))
    np.testing.assert_allclose(layers.DP_Concatenate().perturbation_bound((x, x), tuple(two)), np.hypot(*two))
    np.testing.assert_allclose(layers.DP_MergeResidual().perturbation_bound((x, x), tuple(two)), two.sum(0) / 2)
    for part in layers.DP_SplitResidual().perturbation_bound(x, two[0]):
        np.testing.assert_array_equal(part, two[0])
    wrapped = layers.DP_WrappedResidual(layers.DP_LeakyReLU(negative_slope=2.0))
    np.testing.assert_allclose(wrapped.perturbation_bound((x, x), tuple(two)), two * [[2.0], [1.0]])

    class Silent(layers.DPLayer, keras.layers.Layer):
        def backpropagate_inputs(self, input_bound, gradient_bound):
            return gradient_bound

    with pytest.raises(TypeError, match="Silent.*perturbation_bound"):
        Silent().perturbation_bound((x, x), tuple(two))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": np.ones((3, CLASSES))}, ValueError, "certified_accuracy.*one-hot"),
        ({"y": np.zeros((3, CLASSES))}, ValueError, "certified_accuracy.*one-hot"),
        ({"y": np.eye(CLASSES + 1)[:3]}, ValueError, r"certified_accuracy.*labels of shape \(5,\).*\(4,\)"),
        ({"y": np.ones((3, 1))}, ValueError, "certified_accuracy.*at least two logits"),
        ({"radii": [-1.0]}, ValueError, "certified_accuracy.*radii=-1.0"),
        ({"radii": ["1"]}, TypeError, "certified_accuracy.*radii='1'"),
        ({"y": np.zeros(3)}, ValueError, r"certified_accuracy.*one-hot.*\(3,\)"),
        ({"y": np.zeros((2, CLASSES))}, ValueError, "certified_accuracy.*one-hot"),
    ],
)
def test_bad_arguments(arguments, error, message):
    given = {"x": images(3), "y": np.eye(CLASSES)[:3], "radii": [0.1], **arguments}
    with pytest.raises(error, match=message):
        certified_accuracy(network("dense"), **given)


@pytest.mark.parametrize(("labels", "logits"), [((2, 1), (2, 1)), ((2, 1), (2, 4)), ((2,), (2,)), ((2, 3), (2, 4))])
def test_metric_refuses_what_is_not_one_hot_over_classes(labels, logits):
    with pytest.raises(ValueError, match="CertifiedAccuracy.*at least two logits"):
        CertifiedAccuracy(0.1).update_state(np.ones(labels), np.ones(logits))


def test_metric_counts_rows_without_one_label_and_infinite_leads_as_wrong():
    metric = CertifiedAccuracy(0.1)
    infinite = [[0.0, np.inf, 0.0], [-np.inf, 1.0, -np.inf], [np.nan, 1.0, 0.0]]
    metric.update_state([[0, 0, 0], [1, 1, 0], [1, 0, 1]], [[-5.0, -4.0, -3.0], [9.0, 9.0, 0.0], [9.0, 0.0, 9.0]])
    metric.update_state([[0, 1, 0]] * 3, infinite)
    assert float(metric.result()) == 0.0
    metric.reset_state()
    metric.update_state([[-1, 1, -1]], [[0.0, 1.0, 0.0]])
    assert float(metric.result()) == 1.0


def test_rounding_is_taken_for_a_perturbation():
    """Large activations behind small logits: single precision flips classes nearer than exact arithmetic would."""
    model = DP_Sequential(
        [layers.DP_BoundedInput(28.0, input_shape=(784,)), layers.DP_QuickSpectralDense(2)],
        dp_parameters=parameters(),
        dataset_metadata=metadata(shape=(784,)),
    )
    model.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
    kernel = model.layers[-1].kernel.numpy().astype("float64")
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(50, 784))
    # Logits of 1e-4, behind inputs of norm 16.
    x += (1e-4 * rng.normal(size=(50, 2)) - x @ kernel) @ np.linalg.pinv(kernel)
    x = x.astype("float32")
    y = labels(model, x)
    logits = x.astype("float64") @ kernel
    apart = np.linalg.norm(kernel[:, 0] - kernel[:, 1])
    exact = np.abs(logits[:, 0] - logits[:, 1]) / apart
    for row in range(50):
        assert certified_accuracy(model, x[row : row + 1], y[row : row + 1], [exact[row]])[0] == 0.0
        if exact[row] > 1e-4:  # what is left of the true radius when rounding is allowed for
            assert certified_accuracy(model, x[row : row + 1], y[row : row + 1], [exact[row] - 1e-4])[0] == 1.0
    assert np.mean(exact > 1e-4) > 0.2


class Louder(layers.DP_QuickSpectralDense):
    """Five times a dense layer, with bounds that say so."""

    def call(self, inputs, training=None):
        return 5.0 * super().call(inputs)

    def propagate_inputs(self, input_bound):
        return 5.0 * input_bound

    def backpropagate_inputs(self, input_bound, gradient_bound):
        return 5.0 * gradient_bound


def test_a_subclass_of_a_dense_layer_is_not_taken_for_one():
    def make(cls):
        model = DP_Sequential(
            [layers.DP_BoundedInput(10.0, input_shape=(6,)), cls(CLASSES)],
            dp_parameters=parameters(),
            dataset_metadata=metadata(shape=(6,)),
        )
        model.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
        return model

    x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    louder, plain = make(Louder), make(layers.DP_QuickSpectralDense)
    plain.set_weights(louder.get_weights())
    y, radii = labels(plain, x), [0.05, 0.2, 0.4]
    assert (certified_accuracy(louder, x, y, radii) <= certified_accuracy(plain, x, y, radii)).all()
    assert certified_accuracy(plain, x, y, radii)[1] > 0


@pytest.mark.parametrize("shape", [(40, 40, 2), (2, 2, 3), (2, 2)])
def test_inputs_of_another_size_than_the_model_was_built_for_are_refused(shape):
    """This convolution has norm 1 on images of 2x2 and 1.46 on those of 40x40: the zero image would be a tie."""
    model = DP_Sequential(
        [
            layers.DP_BoundedInput(1e3, input_shape=(2, 2, 2)),
            layers.DP_ContractiveConv2D(1, 3, padding="same", kernel_initializer="ones"),
            layers.DP_ScaledGlobalL2NormPooling2D(),
            layers.DP_ContractiveDense(2),
        ],
        dp_parameters=parameters(),
        dataset_metadata=metadata(shape=(2, 2, 2)),
    )
    with pytest.raises(ValueError, match=r"certified_accuracy: expected inputs of shape \(None, 2, 2, 2\)"):
        certified_accuracy(model, np.ones((1, *shape), "float32"), np.eye(2)[:1], [1.0])


def test_a_model_whose_bounds_do_not_hold_is_refused():
    model, x = network("dense"), images(4)
    y = labels(model, x)
    dense = model.layers[2]
    dense.kernel.assign(5.0 * dense.kernel)
    with pytest.raises(ValueError, match="certified norm at most 1.*restore_constraints"):
        certified_accuracy(model, x, y, [0.1])
    dense.restore_constraints()
    assert 0.0 <= certified_accuracy(model, x, y, [0.1])[0] <= 1.0
    dense.activation = lambda t: 5.0 * t
    with pytest.raises(ValueError, match="activation"):
        certified_accuracy(model, x, y, [0.1])


def test_numbers_that_lose_their_digits_are_not_certified():
    """L2 pooling is steeper than its gradient at 1e-15, and a layer that scales to a norm makes that large."""
    model = DP_Sequential(
        [
            layers.DP_BoundedInput(1.0, input_shape=(1, 1, 2)),
            layers.DP_ScaledL2NormPooling2D(1),
            layers.DP_Flatten(),
            layers.DP_LayerCentering(),
            layers.DP_NormalizeToBall(1.0, minimum_norm=1e-15),
        ],
        dp_parameters=parameters(),
        dataset_metadata=metadata(shape=(1, 1, 2)),
    )
    model.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
    x = np.array([[[[0.95e-15, 1.0e-15]]]], "float32")
    y = labels(model, x)
    near = np.array([[[[0.98e-15, 0.97e-15]]]], "float32")
    assert labels(model, near).argmax() != y.argmax()
    assert certified_accuracy(model, x, y, [1.01 * np.linalg.norm((near - x).astype("float64"))])[0] == 0.0


def test_a_small_part_of_a_large_input_is_not_certified():
    """Centring leaves of a mean of 100 what rounding makes of it, and scaling to a norm makes that large."""
    model = DP_Sequential(
        [
            layers.DP_BoundedInput(1e4, input_shape=(8, 8, 4)),
            layers.DP_GroupNormalization(1),
            layers.DP_Flatten(),
            layers.DP_QuickSpectralDense(CLASSES),
        ],
        dp_parameters=parameters(),
        dataset_metadata=metadata(shape=(8, 8, 4)),
    )
    model.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
    x = (100.0 + 1e-4 * np.random.default_rng(0).normal(size=(20, 8, 8, 4))).astype("float32")
    assert certified_accuracy(model, x, labels(model, x), [0.0])[0] == 0.0
