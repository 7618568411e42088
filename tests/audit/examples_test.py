"""The hard examples and weights, and the gradients that audits compute: against the model's own."""

import keras
import numpy as np
import pytest
from doubles import RecordingSGD, layer_list, model, summed_gradients
from faulty import LABELS, build, build_whole_image

from deel.lipdp.audit import hard_examples, hard_weights
from deel.lipdp.audit._recording import ExampleGradients, Recorder, declared_scales
from deel.lipdp.audit.recipe import audited_model
from deel.lipdp.bounds import compute_gradient_bounds
from deel.lipdp.parameters import DatasetMetadata, DPParameters


@pytest.mark.full
def test_gradient_of_an_example_is_what_training_releases():
    eager = {"optimizer": RecordingSGD(0.0), "compile_arguments": {"run_eagerly": True}}
    built = model(layer_list(), noise_multiplier=1e-6, **eager)
    x, y = hard_examples(built, LABELS, 3, tries=20)
    gradients_of, stddevs = ExampleGradients(built), declared_scales(built).stddevs
    for i in range(3):
        [computed] = gradients_of(x[i : i + 1], y[i : i + 1])  # anew: a step orthogonalises the weights, moved or not
        released = summed_gradients(built, x[i : i + 1], y[i : i + 1])
        scaled = np.concatenate([np.ravel(g) / s for g, s in zip(released, stddevs, strict=True)])
        # The noise has stddev 1 in these units, the gradient a length near 10^6.
        np.testing.assert_allclose(computed, scaled, atol=1e-5 * np.linalg.norm(scaled))


def test_declared_scales_are_in_the_order_of_the_variables():
    built = build(noise_multiplier=3.0)
    declared, bounds = declared_scales(built), compute_gradient_bounds(built)
    assert declared.keys == ("conv/kernel", "dense/kernel")
    assert [bounds[key] for key in declared.keys] == declared.bounds.tolist()
    assert declared.noise_multiplier == 3.0
    assert declared.distance(declared.bounds) == pytest.approx(1 / 3)
    assert declared.distance(declared.bounds, 2 * declared.stddevs) == pytest.approx(1 / 6)


def test_hard_examples_are_ordered_and_inside_the_input_bound():
    built = build_whole_image()
    x, y = hard_examples(built, LABELS, 10, tries=40)
    assert x.shape == (10, 6, 6, 1) and y.shape == (10, 4)
    norms = np.linalg.norm(x.reshape(10, -1), axis=1)
    np.testing.assert_allclose(norms, 3.0, rtol=1e-5)
    lengths = np.linalg.norm(ExampleGradients(built)(x, y), axis=1)
    assert np.all(np.diff(lengths) <= 1e-6)  # of one variable there is one ranking


def test_distinct_examples_are_nearly_orthogonal():
    built = build_whole_image()
    x, y = hard_examples(built, LABELS, 30, distinct=True)
    gradients = ExampleGradients(built)(x, y)
    left = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    # What is left of the last one when the others are taken away: nearly all, where 30 random ones of 144 dimensions
    # would have less in common still, but four labels and repeated patterns far more.
    rest, _, _, _ = np.linalg.lstsq(left[:-1].T, left[-1], rcond=None)
    assert np.linalg.norm(left[-1] - rest @ left[:-1]) > 0.8


def test_candidates_are_tried():
    built = build()
    # Constant, the hardest for this model; beyond the input bound, on which the model projects it.
    x = np.full((1, 6, 6, 1), 100.0, "float32")
    found, _ = hard_examples(built, LABELS[:1], 3, tries=3, candidates=x)
    assert any(np.array_equal(one, x[0]) for one in found)


@pytest.mark.parametrize(
    "function, arguments, word",
    [
        (hard_examples, {"count": 0}, "count"),
        (hard_examples, {"count": 5, "tries": 4}, "tries"),
        (hard_weights, {"steps": 0}, "steps"),
        (hard_weights, {"restarts": 0}, "restarts"),
        (hard_weights, {"tries": 2}, "tries"),
    ],
)
def test_arguments_out_of_range_are_refused(function, arguments, word):
    with pytest.raises(ValueError, match=f"hard_examples|hard_weights: expected {word} to be"):
        function(build_whole_image(), LABELS, **arguments)


@pytest.mark.full
def test_hard_weights_lengthen_the_shortest_gradient():
    """At the initial weights of the audited network no example gets the convolution to half of its bound."""
    keras.utils.set_random_seed(0)
    metadata = DatasetMetadata((8, 8, 1), 40, 40, 1.0, nb_classes=10)
    built, labels = audited_model(DPParameters("optimal", 2.0, 1e-4), metadata), np.eye(10, dtype="f4")
    before = built.get_weights()

    def shares(x, y):
        return np.array([ratio.max() for ratio in built.signal_to_noise_elementwise((x, y))[0].values()])

    initial = shares(*hard_examples(built, labels, 16))
    weights, x, y = hard_weights(built, labels)
    for one, other in zip(built.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    built.set_weights(weights)
    for one, other in zip(built.get_weights(), weights, strict=True):  # inside the constraint sets
        np.testing.assert_allclose(one, other, atol=1e-5)
    found = shares(x, y)
    assert initial.min() < 0.5 and found.min() > 0.7
    assert found.max() <= 1.0


def test_a_last_kernel_of_zeros_is_left():
    """Nothing comes back through it, and the ascent alone would stay where no ratio is above 0."""
    built = build(noise_multiplier=1.0)
    weights = built.get_weights()
    start = [*weights[:-1], np.zeros_like(weights[-1])]
    built.set_weights(start)
    hard, *example = hard_weights(built, LABELS, steps=5, restarts=1, tries=5)
    np.testing.assert_array_equal(built.get_weights()[-1], 0.0)
    built.set_weights(hard)
    assert min(ratio.max() for ratio in built.signal_to_noise_elementwise(tuple(example))[0].values()) > 0.0


@pytest.mark.full
def test_recorder_restores_all_state():
    recorder = Recorder(build_whole_image(optimizer="adam"))
    x, y = hard_examples(recorder.model, LABELS, 8, tries=20)
    start = recorder.state()
    ones = np.ones(8, "float32")
    first = recorder.step(x, y, ones)
    assert not np.array_equal(recorder.state()[0], start[0])
    recorder.restore()
    for one, other in zip(recorder.state(), start, strict=True):
        np.testing.assert_array_equal(one, other)
    second = recorder.step(x, y, ones)
    assert not np.array_equal(first[0], second[0])  # but never the noise, which goes on
