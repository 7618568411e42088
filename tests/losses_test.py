"""Losses: value, gradient at the logits, and the constant they state. One table of losses, common tests, and traps."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable

import deel.lip.losses
import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import SHAPE, UPPER_BOUND, RecordingSGD, data, model, summed_gradients

from deel.lipdp import losses
from deel.lipdp._training.tensorflow import per_example_losses
from deel.lipdp.layers import DP_BoundedInput, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.losses import (
    DP_KCosineSimilarity,
    DP_MeanAbsoluteError,
    DP_MulticlassHinge,
    DP_MulticlassHKR,
    DP_MulticlassKR,
    DP_TauBCE,
    DP_TauCategoricalCrossentropy,
)
from deel.lipdp.model import compute_gradient_bounds

# The norm of at most 10 entries, each off by a few roundings in single precision.
TOLERANCE = 1e-6

RARE = [0.5, 0.3, 0.15, 0.05]


# -- labels of a loss's domain, its vertices first ------------------------------------------------------------------


def simplex(rng, count, outputs):
    y = np.eye(outputs)[rng.integers(outputs, size=count)]
    y[1::3] = 0.9 * y[1::3] + 0.1 / outputs
    y[2::3] = rng.dirichlet(np.ones(outputs), size=len(y[2::3]))
    return y


def cube(rng, count, outputs):
    y = rng.integers(2, size=(count, outputs)).astype("float64")
    y[1::3] = rng.uniform(size=(len(y[1::3]), outputs))
    return y


def sphere(rng, count, outputs):
    y = rng.normal(size=(count, outputs))
    y[1::3] = np.eye(outputs)[rng.integers(outputs, size=len(y[1::3]))]
    return y / np.linalg.norm(y, axis=1, keepdims=True)


def reals(rng, count, outputs):
    return 2.0 * rng.normal(size=(count, outputs))


# -- references in double precision, from the definitions -------------------------------------------------------------


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def crossentropy(loss, y, z):
    return -(y * log_softmax(loss.tau * z)).sum(-1) / loss.tau


def binary_crossentropy(loss, y, z):
    x = loss.tau * z
    return (y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x)).mean(-1) / loss.tau


def absolute_error(loss, y, z):
    return np.abs(z - y).mean(-1)


def cosine(loss, y, z):
    return -np.array([label @ logits / max(np.linalg.norm(logits), loss.K) for label, logits in zip(y, z, strict=True)])


def expected_over_labels(one_label):
    """The mean of `one_label(loss, k, z)` over a random class k with distribution y."""
    return lambda loss, y, z: sum(y[:, k] * one_label(loss, k, z) for k in range(y.shape[1]))


def hinge(loss, k, z):
    others = np.delete(z, k, axis=1)
    own = others.shape[1] * np.maximum(loss.min_margin / 2 - z[:, k], 0)
    return (own + np.maximum(loss.min_margin / 2 + others, 0).sum(1)) / z.shape[1]


def kr(loss, k, z):
    slopes = np.array([-1 / f if c == k else 1 / (1 - f) for c, f in enumerate(loss.class_frequencies)])
    return (z * slopes).mean(1)


def hkr(loss, k, z):
    return kr(loss, k, z) + loss.alpha * hinge(loss, k, z)


# -- the table --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to use one loss.

    Args:
        name: str, the test's id.
        make: callable, takes keyword arguments and returns the loss.
        outputs: int, C.
        labels: callable (rng, count, outputs) -> labels of the domain.
        reference: callable (loss, labels, logits) -> values, from the definition in double precision.
        constant: float, what `get_L()` must be.
        tightness: float, largest gradient norm found / constant.
        any_label: bool, whether the constant holds for labels outside the domain too.
    """

    name: str
    make: Callable
    outputs: int
    labels: Callable
    reference: Callable
    constant: float
    tightness: float = 1.0
    any_label: bool = False


def case(cls, text, outputs, labels, reference, constant, tightness=1.0, any_label=False, **arguments):
    make = functools.partial(cls, **arguments)
    return Case(f"{cls.__name__}-{text}", make, outputs, labels, reference, constant, tightness, any_label)


def ce(tau, outputs=5):
    text = f"tau{tau}-{outputs}"
    return case(DP_TauCategoricalCrossentropy, text, outputs, simplex, crossentropy, math.sqrt(2.0), tau=tau)


_bce = functools.partial(case, DP_TauBCE, labels=cube, reference=binary_crossentropy, any_label=True)
_mae = functools.partial(case, DP_MeanAbsoluteError, labels=reals, reference=absolute_error, any_label=True)
_cosine = functools.partial(case, DP_KCosineSimilarity, labels=sphere, reference=cosine, any_label=True)
_hinge = functools.partial(case, DP_MulticlassHinge, labels=simplex, reference=expected_over_labels(hinge))
_kr = functools.partial(case, DP_MulticlassKR, labels=simplex, reference=expected_over_labels(kr))
_hkr = functools.partial(case, DP_MulticlassHKR, labels=simplex, reference=expected_over_labels(hkr))

# For the frequencies RARE: 1 / pi for the rarest class, 1 / (1 - pi) for the others.
RARE_KR = math.hypot(1 / 0.05, 1 / 0.5, 1 / 0.7, 1 / 0.85) / 4
RARE_HKR = math.hypot(1 / 0.05 + 3 * 3, 1 / 0.5 + 3, 1 / 0.7 + 3, 1 / 0.85 + 3) / 4

CASES = [
    *(ce(tau) for tau in (0.1, 1.0, 10.0, 60.0)),
    ce(1.0, outputs=2),
    ce(1.0, outputs=10),
    _bce("one_output", 1, constant=1.0, tau=3.0),
    _bce("stated", 4, constant=0.5, tau=0.1, num_outputs=4),
    _bce("steep", 10, constant=0.1**0.5, tau=60.0, num_outputs=10),
    _bce("not_stated", 4, constant=1.0, tightness=0.5),
    _mae("one_output", 1, constant=1.0),
    _mae("stated", 9, constant=1 / 3, num_outputs=9),
    _mae("not_stated", 4, constant=1.0, tightness=0.5),
    _cosine("K0.5", 4, constant=2.0, K=0.5),
    _cosine("K2", 4, constant=0.5, K=2),
    _cosine("one_output", 1, constant=1.0),
    _hinge("two", 2, constant=0.5**0.5, num_outputs=2),
    _hinge("wide", 10, constant=0.9**0.5, num_outputs=10, min_margin=20.0),
    _hinge("not_stated", 5, constant=1.0, tightness=0.8**0.5),
    _kr("balanced", 5, constant=1.25**0.5, num_outputs=5),
    _kr("two", 2, constant=2**0.5, num_outputs=2),
    _kr("rare", 4, constant=RARE_KR, class_frequencies=RARE),
    _hkr("balanced", 5, constant=1.25**0.5 + 10 * 0.8**0.5, num_outputs=5),
    _hkr("rare", 4, constant=RARE_HKR, class_frequencies=RARE, alpha=3.0, min_margin=0.3),
]

EPS = float(np.finfo("float32").eps)

all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
any_label_cases = pytest.mark.parametrize("case", [c for c in CASES if c.any_label], ids=lambda case: case.name)
one_output_cases = pytest.mark.parametrize("case", [c for c in CASES if c.outputs == 1], ids=lambda case: case.name)


def batch(case, count=9, scale=1.0, seed=0):
    """Labels of the domain, with logits."""
    rng = np.random.default_rng(seed)
    y = case.labels(rng, count, case.outputs)
    return y.astype("float32"), (scale * rng.normal(size=(count, case.outputs))).astype("float32")


def gradients(loss, y, z):
    """Gradient of each example's loss at its logits."""
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss.call(tf.constant(y), z)
    return tape.gradient(value, z).numpy()


def norms(loss, y, z):
    return np.linalg.norm(gradients(loss, y, z), axis=1)


def ascend(loss, y, z, steps=12):
    """Logits moved to where the gradient of their loss is larger."""

    @tf.function
    def steeper(y, z):
        with tf.GradientTape() as outer:
            outer.watch(z)
            with tf.GradientTape() as inner:
                inner.watch(z)
                value = loss.call(y, z)
            energy = tf.reduce_sum(inner.gradient(value, z) ** 2)
        direction = outer.gradient(energy, z, unconnected_gradients="zero")
        length = tf.norm(direction, axis=1, keepdims=True)
        return z + 0.5 * (0.1 + tf.norm(z, axis=1, keepdims=True)) * tf.math.divide_no_nan(direction, length)

    z = tf.constant(z)
    for _ in range(steps):
        z = steeper(tf.constant(y), z)
    return z.numpy()


def largest_norm(loss, case):
    """Largest gradient found: random logits, certain and wrong ones, and what ascent makes of them."""
    ys, zs = [], []
    for seed, scale in enumerate([0.0, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6]):
        y, z = batch(case, 60, scale, seed)
        ys += [y, y]
        zs += [z, scale * (1.0 - 2.0 * y)]
    y, z = np.concatenate(ys), np.concatenate(zs)
    return max(norms(loss, y, z).max(), norms(loss, y, ascend(loss, y, z)).max())


# -- common tests -----------------------------------------------------------------------------------------------------


def test_every_public_loss_has_a_case():
    tested = {case.name.split("-")[0] for case in CASES}
    assert tested == set(losses.__all__) - {"DP_Loss"}


@all_cases
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
def test_agrees_with_reference(case, scale):
    y, z = batch(case, scale=scale)
    loss = case.make()
    expected = case.reference(loss, y.astype("float64"), z.astype("float64"))
    np.testing.assert_allclose(loss.call(y, z).numpy(), expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(float(loss(y, z)), expected.mean(), rtol=1e-5, atol=2e-6)


@all_cases
def test_gradient_is_that_of_the_reference(case):
    y, z = (a.astype("float64") for a in batch(case))
    loss, step, expected = case.make(), 1e-6, np.empty_like(z)
    for c, shift in enumerate(step * np.eye(case.outputs)):
        expected[:, c] = (case.reference(loss, y, z + shift) - case.reference(loss, y, z - shift)) / (2 * step)
    np.testing.assert_allclose(gradients(loss, y, z), expected, rtol=1e-5, atol=1e-5)
    single = gradients(loss, y.astype("float32"), z.astype("float32"))
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5)


@all_cases
def test_gradient_norm_reaches_the_recorded_share_of_the_constant_and_stays_below(case):
    loss = case.make()
    assert isinstance(loss.get_L(), float)
    assert loss.get_L() == pytest.approx(case.constant, rel=1e-12)
    ratio = largest_norm(loss, case) / loss.get_L()
    assert 0.99 * case.tightness <= ratio <= (1.0 + TOLERANCE) * case.tightness


@all_cases
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-30, 1e15, 1e30])
def test_finite_and_bounded_at_extreme_logits(case, scale):
    loss = case.make()
    y, z = batch(case, scale=scale)
    for logits in (z, np.full_like(z, scale), np.full_like(z, -scale)):
        assert np.isfinite(loss.call(y, logits).numpy()).all()
        found = gradients(loss, y, logits)
        assert np.isfinite(found).all()
        assert (np.linalg.norm(found, axis=1) <= (1.0 + TOLERANCE) * loss.get_L()).all()


@any_label_cases
@pytest.mark.parametrize("label", [-1.0, 0.0, 1.0, 5.0, -1e30, 1e30])
def test_losses_that_promise_it_keep_the_constant_for_every_label(case, label):
    loss = case.make()
    _, z = batch(case, 60)
    for scale in (0.0, 0.01, 1.0, 100.0):
        assert norms(loss, np.full_like(z, label), scale * z).max() <= (1.0 + TOLERANCE) * loss.get_L()


@all_cases
def test_right_logits_cost_less_than_wrong_ones(case):
    y, _ = batch(case, 60)
    right, wrong = (2.0 * sign * (y if case.labels is reals else y - y.mean()) for sign in (1, -1))
    loss = case.make()
    assert float(loss(y, right)) < float(loss(y, wrong))


@all_cases
def test_one_value_for_each_example(case):
    """Each is that of the example alone, in value and gradient."""
    y, z = batch(case)
    loss = case.make()
    whole, slopes = loss.call(y, z).numpy(), gradients(loss, y, z)
    assert whole.shape == (9,)
    for i in range(9):
        np.testing.assert_allclose(loss.call(y[i : i + 1], z[i : i + 1]).numpy()[0], whole[i], rtol=1e-6, atol=1e-6)
    y2, z2 = y.copy(), z.copy()
    y2[4], z2[4] = y[5], z[4] + 100.0
    np.testing.assert_array_equal(np.delete(loss.call(y2, z2).numpy(), 4), np.delete(whole, 4))
    np.testing.assert_array_equal(np.delete(gradients(loss, y2, z2), 4, axis=0), np.delete(slopes, 4, axis=0))
    assert loss.call(y[:0], z[:0]).shape == (0,)


@all_cases
@pytest.mark.parametrize("others", [math.nan, -1e30])
def test_the_step_takes_each_row_by_itself(case, others):
    """As mapped over batches of one, and nothing in other rows, labels included, reaches a row."""
    loss = case.make(reduction="sum")
    y, z = batch(case)

    def row(loss, y, z):
        z = tf.constant(z)
        with tf.GradientTape() as tape:
            tape.watch(z)
            values = per_example_losses(loss, tf.constant(y), z)
        return values[4].numpy(), tape.gradient(values, z)[4].numpy()

    value, gradient = row(loss, y, z)
    mapped, mapped_gradient = row(lambda *pair: loss(*pair), y, z)
    # The same operations on batches of another size: vectorised functions may round differently.
    np.testing.assert_allclose(value, mapped, rtol=4 * EPS)
    np.testing.assert_allclose(gradient, mapped_gradient, rtol=0, atol=4 * EPS * loss.get_L())
    y[np.arange(9) != 4] = z[np.arange(9) != 4] = others
    for got, expected in zip(row(loss, y, z), (value, gradient), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=lambda case: case.name)
def test_the_step_refuses_more_or_fewer_labels_than_outputs(case, jit_compile):
    """One label would be broadcast, and then move the gradients of all examples."""
    y, z = batch(case)
    unknown = tf.TensorSpec((None, case.outputs))

    @tf.function(input_signature=[unknown, unknown], jit_compile=jit_compile)
    def step(y, z):
        return per_example_losses(case.make(), y, z)

    assert step(y, z).shape == (9,)
    for labels, outputs in [(y[:1], z), (y, z[:1])]:
        with pytest.raises(tf.errors.InvalidArgumentError):
            step(labels, outputs)


def test_a_loss_of_ones_own_is_mapped_also_where_it_is_derived_from_one_of_these():
    class Coupled(losses.DP_TauCategoricalCrossentropy):
        def call(self, y_true, y_pred):
            return super().call(y_true, y_pred) * tf.reduce_sum(y_pred)

    loss, (y, z) = Coupled(1.0), batch(CASES[0])
    alone = [float(loss(y[i : i + 1], z[i : i + 1])) for i in range(len(z))]
    np.testing.assert_allclose(per_example_losses(loss, tf.constant(y), tf.constant(z)), alone, rtol=4 * EPS)


@all_cases
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", None])
def test_config_round_trip(case, reduction):
    loss = case.make(reduction=reduction, name="mine")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert (again.name, again.reduction, again.get_L()) == ("mine", reduction, loss.get_L())
    y, z = batch(case)
    np.testing.assert_array_equal(again(y, z).numpy(), loss(y, z).numpy())


@all_cases
def test_trains_in_a_model_within_its_bounds(case):
    """The guarded step computes the plain gradient, so the guard cuts nothing; each example is within the bound."""
    dense = DP_QuickSpectralDense(case.outputs, name="dense")
    private = model(
        [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten(), dense],
        loss=case.make(),
        noise_multiplier=0.0,
        optimizer=RecordingSGD(0.1),
    )
    x, _ = data(8)
    y, _ = batch(case, 8)
    bound = compute_gradient_bounds(private)["dense/kernel"]
    with tf.GradientTape() as tape:
        value = private.loss_function(y, private(x))
    plain = 8 * tape.gradient(value, dense.kernel.value).numpy()
    before = dense.kernel.numpy()
    (summed,) = summed_gradients(private, x, y)
    np.testing.assert_allclose(summed, plain, rtol=1e-4, atol=1e-5)
    assert np.abs(dense.kernel.numpy() - before).max() > 0
    for i in (0, 1):  # a vertex of the domain, and a label inside
        (alone,) = summed_gradients(private, x[i : i + 1], y[i : i + 1])
        assert 0 < np.linalg.norm(alone) <= bound


# -- one output -------------------------------------------------------------------------------------------------------


@one_output_cases
def test_labels_without_an_axis_for_one_output(case):
    """(B,) against (B, 1) must not become (B, B), where each value depends on all labels."""
    y, z = batch(case)
    loss = case.make()
    np.testing.assert_array_equal(loss.call(y[:, 0], z).numpy(), loss.call(y, z).numpy())
    np.testing.assert_array_equal(gradients(loss, y[:, 0], z), gradients(loss, y, z))
    np.testing.assert_array_equal(loss(y[:, 0] > 0, z).numpy(), loss((y > 0).astype("int64"), z).numpy())


@one_output_cases
def test_a_task_with_one_output_trains_and_evaluates(case):
    x, _ = data(8)
    y, _ = batch(case, 8)
    found = []
    for labels in (y[:, 0], y):
        private = model(
            [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten(), DP_QuickSpectralDense(1)],
            loss=case.make(),
            noise_multiplier=0.0,
            n=8,
        )
        private.layers[-1].kernel.assign(np.full((36, 1), 1 / 6, "float32"))
        private.fit(x, labels, verbose=0)
        expected = float(private.loss_function(y, private(x)))
        assert private.evaluate(x, labels, verbose=0) == pytest.approx(expected, rel=1e-5)
        found.append(private.get_weights()[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


class BroadcastError(DP_MeanAbsoluteError):
    """(B,) minus (B, 1): one value for each example all the same, of all labels."""

    def call(self, y_true, y_pred):
        return tf.reduce_mean(tf.abs(y_pred - y_true), axis=-1)


def test_broadcasting_labels_against_outputs_mixes_examples():
    rng = np.random.default_rng(0)
    y, z = rng.normal(size=9).astype("float32"), rng.normal(size=(9, 1)).astype("float32")
    other = y.copy()
    other[4] += 10.0
    for loss, mixes in ((BroadcastError(), True), (DP_MeanAbsoluteError(), False)):
        moved = loss.call(y, z).numpy() != loss.call(other, z).numpy()
        assert moved[4]
        assert np.delete(moved, 4).all() == np.delete(moved, 4).any() == mixes


# -- what users of Keras and deel-lip know ----------------------------------------------------------------------------


def test_agrees_with_keras():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(9, 4)).astype("float32")
    one_hot, binary, unit, any_real = (f(rng, 9, 4).astype("float32") for f in (simplex, cube, sphere, reals))
    pairs = [
        (DP_TauCategoricalCrossentropy(3.0), keras.losses.CategoricalCrossentropy(from_logits=True), one_hot, 3.0),
        (DP_TauBCE(3.0), keras.losses.BinaryCrossentropy(from_logits=True), binary, 3.0),
        (DP_MeanAbsoluteError(), keras.losses.MeanAbsoluteError(), any_real, 1.0),
        (DP_KCosineSimilarity(1e-6), keras.losses.CosineSimilarity(), unit, 1.0),
    ]
    for ours, theirs, y, tau in pairs:
        assert float(ours(y, z)) == pytest.approx(float(theirs(y, tau * z)) / tau, rel=1e-5)


def test_agrees_with_deel_lip_where_the_frequencies_are_those_of_the_batch():
    """KR is a gap to maximise there, and a loss to minimise here."""
    rng = np.random.default_rng(0)
    y = np.eye(4, dtype="float32")[np.repeat([0, 1, 2, 3], [10, 6, 3, 1])]
    z = rng.normal(size=(20, 4)).astype("float32")
    arguments = {"reduction": "sum_over_batch_size"}
    kr_gap = deel.lip.losses.MulticlassKR(**arguments)(y, z)
    assert float(DP_MulticlassKR(RARE)(y, z)) == pytest.approx(-float(kr_gap), rel=1e-5)
    for margin in (0.3, 2.0):
        theirs = deel.lip.losses.MulticlassHinge(margin, **arguments)(y, z)
        assert float(DP_MulticlassHinge(margin)(y, z)) == pytest.approx(float(theirs), rel=1e-5)
        theirs = deel.lip.losses.MulticlassHKR(7.0, margin, **arguments)(y, z)
        assert float(DP_MulticlassHKR(7.0, margin, RARE)(y, z)) == pytest.approx(float(theirs), rel=1e-5)


# -- constants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2, 10, 100])
def test_the_constant_without_a_number_of_outputs_holds_for_every_number(outputs):
    for cls in (DP_TauBCE, DP_MeanAbsoluteError):
        assert cls(num_outputs=outputs).get_L() == pytest.approx(outputs**-0.5)
        assert cls(num_outputs=outputs).get_L() <= cls().get_L() == 1.0
    if outputs > 1:
        assert DP_MulticlassHinge(num_outputs=outputs).get_L() < DP_MulticlassHinge().get_L() == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_kr_and_hkr_constants_for_random_frequencies(seed):
    """Against the formula label by label, and against the triangle inequality."""
    rng = np.random.default_rng(seed)
    frequencies = rng.dirichlet(np.ones(6))
    count, alpha = 6, 10.0 ** rng.uniform(-1, 2)
    vectors = np.where(np.eye(count) > 0, 1 / frequencies, 1 / (1 - frequencies)) / count
    hinges = np.where(np.eye(count) > 0, count - 1, 1) / count
    kr_loss, hkr_loss = DP_MulticlassKR(frequencies), DP_MulticlassHKR(alpha, 1.0, frequencies)
    assert kr_loss.get_L() == pytest.approx(np.linalg.norm(vectors, axis=1).max(), rel=1e-12)
    assert hkr_loss.get_L() == pytest.approx(np.linalg.norm(vectors + alpha * hinges, axis=1).max(), rel=1e-12)
    hinge_constant = DP_MulticlassHinge(num_outputs=count).get_L()
    assert hkr_loss.get_L() <= (kr_loss.get_L() + alpha * hinge_constant) * (1 + 1e-12)
    found = norms(hkr_loss, np.eye(count, dtype="float32"), np.zeros((count, count), "float32")).max()
    assert found == pytest.approx(hkr_loss.get_L(), rel=TOLERANCE)


def test_balanced_hkr_is_the_sum_of_its_parts():
    for count in (2, 3, 10, 1000):
        parts = DP_MulticlassKR(num_outputs=count).get_L() + 10.0 * DP_MulticlassHinge(num_outputs=count).get_L()
        assert DP_MulticlassHKR(num_outputs=count).get_L() == pytest.approx(parts, rel=1e-12)
        assert DP_MulticlassKR([1 / count] * count).get_L() == DP_MulticlassKR(num_outputs=count).get_L()
        assert DP_MulticlassKR(num_outputs=count).get_L() == pytest.approx((count / (count - 1)) ** 0.5, rel=1e-12)


# -- traps: mistakes found in published code for this method --------------------------------------------------------


class BatchCounts:
    """Class frequencies counted on the batch, as in deel-lip."""

    def call(self, y_true, y_pred):
        self.class_frequencies = np.clip(np.mean(y_true, axis=0), 1e-6, 1 - 1e-6)
        return super().call(y_true, y_pred)


class BatchKR(BatchCounts, DP_MulticlassKR):
    pass


class BatchHKR(BatchCounts, DP_MulticlassHKR):
    pass


@pytest.mark.parametrize(("count", "at_least"), [(2, 181.0), (10, 36.0)])
@pytest.mark.parametrize(
    ("wrong", "right"), [(BatchKR, DP_MulticlassKR), (BatchHKR, DP_MulticlassHKR)], ids=["KR", "HKR"]
)
def test_class_counts_of_the_batch_have_no_bound_and_mix_examples(wrong, right, count, at_least):
    alone = np.eye(count, dtype="float32")[[0] + [1] * 255]  # the only one of its class in a batch of 256
    paired = np.eye(count, dtype="float32")[[0, 0] + [1] * 254]
    z = np.zeros((256, count), "float32")
    double, ours = wrong(num_outputs=count), right(num_outputs=count)
    assert norms(double, alone, z)[0] > at_least
    assert norms(double, alone, z)[0] > 1.5 * norms(double, paired, z)[0]  # another example's label changed
    assert norms(ours, alone, z)[0] <= (1 + TOLERANCE) * ours.get_L()
    np.testing.assert_array_equal(gradients(ours, alone, z)[0], gradients(ours, paired, z)[0])


@pytest.mark.parametrize("cls", [DP_MulticlassKR, DP_MulticlassHKR])
@pytest.mark.parametrize("request_for_counts", [{}, {"class_frequencies": "batch"}, {"class_frequencies": None}])
def test_class_counts_of_the_batch_are_refused_with_the_reason(cls, request_for_counts):
    with pytest.raises(ValueError, match=f"{cls.__name__}: expected class_frequencies.*depend on all others.*public"):
        cls(**request_for_counts)


class SquaredK(DP_KCosineSimilarity):
    def get_L(self):
        return 1.0 / self.K**2


def test_k_cosine_has_the_constant_one_over_k():
    ratios = {
        cls: largest_norm(cls(2.0), next(c for c in CASES if c.name == "DP_KCosineSimilarity-K2")) / cls(2.0).get_L()
        for cls in (SquaredK, DP_KCosineSimilarity)
    }
    assert ratios[SquaredK] == pytest.approx(2.0, rel=1e-6)
    assert ratios[DP_KCosineSimilarity] == pytest.approx(1.0, rel=1e-6)


class UnclippedBCE(DP_TauBCE):
    def call(self, y_true, y_pred):
        return tf.reduce_mean(tf.nn.softplus(self.tau * y_pred) - y_true * self.tau * y_pred, axis=-1) / self.tau


@pytest.mark.parametrize("outputs", [1, 4])
def test_labels_of_plus_and_minus_one_stand_for_one_and_zero(outputs):
    signs = np.where(np.arange(8 * outputs).reshape(8, outputs) % 3, -1.0, 1.0).astype("float32")
    z = -1e3 * signs
    wrong, right = (cls(num_outputs=outputs) for cls in (UnclippedBCE, DP_TauBCE))
    minus, at = -np.ones((1, outputs), "float32"), np.full((1, outputs), 1e3, "float32")
    assert norms(wrong, minus, at)[0] == pytest.approx(2.0 * wrong.get_L(), rel=1e-6)
    assert norms(right, signs, z).max() == pytest.approx(right.get_L(), rel=1e-6)
    np.testing.assert_array_equal(right.call(signs, z).numpy(), right.call((signs + 1) / 2, z).numpy())


class UnscaledCosine(DP_KCosineSimilarity):
    """Takes labels as they are."""

    def call(self, y_true, y_pred):
        length = tf.maximum(tf.norm(y_pred, axis=-1), self.K)
        return -tf.reduce_sum(y_true * y_pred, axis=-1) / length


def test_long_labels_have_the_direction_of_their_unit_vector():
    y, z = np.ones((1, 4), "float32"), np.array([[0.1, 0.0, 0.0, 0.0]], "float32")
    assert norms(UnscaledCosine(), y, z)[0] == pytest.approx(2.0)
    assert norms(DP_KCosineSimilarity(), y, z)[0] == pytest.approx(1.0)
    np.testing.assert_allclose(DP_KCosineSimilarity().call(5 * y, z), DP_KCosineSimilarity().call(y / 2, z), rtol=1e-6)


def test_a_zero_label_or_zero_logits_cost_nothing_in_k_cosine():
    loss, zero, one = DP_KCosineSimilarity(), np.zeros((1, 3), "float32"), np.eye(3, dtype="float32")[:1]
    for y, z in ((zero, one), (zero, zero), (one, zero)):
        assert loss.call(y, z).numpy() == 0.0
    assert not gradients(loss, zero, zero).any()


def test_crossentropy_is_for_labels_on_the_simplex():
    """Multi-hot labels exceed the constant: the training step projects their gradient, the loss does not."""
    y, z = np.ones((1, 5), "float32"), np.zeros((1, 5), "float32")
    y[0, 0], z[0, 0] = 0.0, 100.0
    loss = DP_TauCategoricalCrossentropy()
    assert norms(loss, y, z)[0] > 2.2 * loss.get_L()


@pytest.mark.parametrize("positives", [1, 2, 4, 5])
def test_hinge_and_kr_are_for_labels_on_the_simplex(positives):
    """With p ones the hinge reaches `sqrt(p (C - 1)^2 + C - p) / C`."""
    y, z = np.zeros((1, 5), "float32"), np.zeros((1, 5), "float32")
    y[0, :positives] = 1.0
    loss = DP_MulticlassHinge(num_outputs=5)
    expected = math.sqrt(positives * 16 + 5 - positives) / 5
    assert norms(loss, y, z)[0] == pytest.approx(expected, rel=1e-6)
    kr_loss = DP_MulticlassKR(num_outputs=5)
    for found in (loss, kr_loss):
        assert (norms(found, y, z)[0] > 1.3 * found.get_L()) == (positives > 1)


# -- refusals ---------------------------------------------------------------------------------------------------------

KR, HKR, Hinge = DP_MulticlassKR, DP_MulticlassHKR, DP_MulticlassHinge
CE, Cosine = DP_TauCategoricalCrossentropy, DP_KCosineSimilarity

BAD_TAU = [(v, ValueError) for v in (0, -1.0, math.inf, math.nan)] + [(v, TypeError) for v in ("1", None, True)]

REFUSED = [
    *(
        (functools.partial(cls, value), error, f"{cls.__name__}: expected tau.*Received: tau={value!r}")
        for cls in (CE, DP_TauBCE)
        for value, error in BAD_TAU
    ),
    (lambda: DP_TauBCE(num_outputs=0), ValueError, "DP_TauBCE.*num_outputs=0"),
    (lambda: DP_TauBCE(num_outputs=2.0), TypeError, "DP_TauBCE.*num_outputs=2.0"),
    (lambda: DP_MeanAbsoluteError(0), ValueError, "DP_MeanAbsoluteError.*num_outputs=0"),
    (lambda: DP_MeanAbsoluteError("3"), TypeError, "DP_MeanAbsoluteError.*num_outputs='3'"),
    (lambda: Cosine(0), ValueError, "DP_KCosineSimilarity.*K=0"),
    (lambda: Cosine(math.nan), ValueError, "DP_KCosineSimilarity.*K=nan"),
    (lambda: Cosine(None), TypeError, "DP_KCosineSimilarity.*K=None"),
    (lambda: Hinge(0), ValueError, "DP_MulticlassHinge.*min_margin=0"),
    (lambda: Hinge("1"), TypeError, "DP_MulticlassHinge.*min_margin='1'"),
    (lambda: Hinge(num_outputs=1), ValueError, "DP_MulticlassHinge.*num_outputs=1"),
    (lambda: KR(num_outputs=1), ValueError, "DP_MulticlassKR.*num_outputs=1"),
    (lambda: KR(num_outputs="3"), TypeError, "DP_MulticlassKR.*num_outputs='3'"),
    (lambda: KR([0.5, 0.5], num_outputs=3), ValueError, r"DP_MulticlassKR.*\[0.5, 0.5\], num_outputs=3"),
    (lambda: KR([0.0, 1.0]), ValueError, "DP_MulticlassKR.*class_frequencies=0.0"),
    (lambda: KR([1.0]), ValueError, "DP_MulticlassKR.*class_frequencies=1.0"),
    (lambda: KR([0.2, 0.2]), ValueError, r"DP_MulticlassKR.*sum to 1.*\[0.2, 0.2\].*Divide"),
    (lambda: KR([500, 500]), ValueError, "DP_MulticlassKR.*class_frequencies=500"),
    (lambda: KR(["a", "b"]), TypeError, "DP_MulticlassKR.*class_frequencies='a'"),
    (lambda: KR([]), ValueError, "DP_MulticlassKR.*sum to 1"),
    (lambda: KR(0.5), ValueError, "DP_MulticlassKR.*class_frequencies=0.5.*public"),
    (lambda: HKR(-1.0, num_outputs=3), ValueError, "DP_MulticlassHKR.*alpha=-1.0"),
    (lambda: HKR(math.inf, num_outputs=3), ValueError, "DP_MulticlassHKR.*alpha=inf.*DP_MulticlassHinge"),
    (lambda: HKR(min_margin=0, num_outputs=3), ValueError, "DP_MulticlassHKR.*min_margin=0"),
    (lambda: HKR(class_frequencies=[0.2, 0.2]), ValueError, "DP_MulticlassHKR.*sum to 1"),
]


@pytest.mark.parametrize(("make", "error", "pattern"), REFUSED, ids=[pattern[:60] for *_, pattern in REFUSED])
def test_bad_arguments_are_refused_with_the_class_and_the_value(make, error, pattern):
    with pytest.raises(error, match=pattern):
        make()


def test_frequencies_may_be_an_array_and_rounded():
    loss = DP_MulticlassKR(np.array([0.33, 0.33, 0.33]))
    assert loss.class_frequencies == [0.33, 0.33, 0.33]
    assert loss.get_config()["num_outputs"] == 3
    assert DP_MulticlassKR(loss.class_frequencies, num_outputs=3).get_L() == loss.get_L()


@all_cases
def test_labels_of_another_shape_are_refused_with_a_remedy(case):
    y, z = batch(case)
    loss = case.make()
    shapes = [(9, case.outputs + 1), (9, case.outputs, 1), (1, case.outputs), (8, case.outputs), ()]
    shapes += [(9,), (9, 1)] if case.outputs > 1 else [(8,), (1,)]
    for shape in shapes:
        name = type(loss).__name__
        with pytest.raises(ValueError, match=rf"{name}: expected .*labels of the shape.*(to_categorical|one label)"):
            loss.call(np.zeros(shape, "float32"), z)


@pytest.mark.parametrize("case", [c for c in CASES if "Crossentropy" not in c.name], ids=lambda case: case.name)
def test_outputs_of_another_shape_are_refused_with_a_remedy(case):
    loss = case.make()
    shapes = [(9,), (9, 2, 3)]
    if getattr(loss, "num_outputs", None):
        shapes.append((9, case.outputs + 1))
    if case.labels is simplex:
        shapes.append((9, 1))
    for shape in shapes:
        outputs = np.zeros(shape, "float32")
        with pytest.raises(ValueError, match=rf"{type(loss).__name__}: expected outputs of shape \(batch, .*dense"):
            loss.call(outputs, outputs)


def test_a_loss_without_a_constant_says_so():
    class Silent(losses.DP_Loss):
        pass

    with pytest.raises(NotImplementedError, match=r"Silent: expected a method get_L\(\)"):
        Silent().get_L()
