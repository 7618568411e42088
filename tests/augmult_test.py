"""Augmentation multiplicity: m views of one example are one example, in the gradient, the ledger and the metrics."""

import itertools
import os
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import NUM_CLASSES, SHAPE, UPPER_BOUND, RecordingSGD, data, model, summed_gradients
from scipy import stats

from deel.lipdp.layers import DP_BoundedInput, DP_ClipGradient, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.model import compute_gradient_bounds
from deel.lipdp.sampling import AugmultConfig, multiplicity_behind, poisson_batches, sampling_of, shuffled_batches

N, B = 24, 8
X, Y = data(N)

# Chance that a correct sampler fails one given check.
FALSE_ALARM = 1e-6


def same(images):
    """Views that are the image itself."""
    return images


def dense(*last, middle=()):
    layers = [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten(), DP_QuickSpectralDense(6, name="first")]
    return [*layers, *middle, DP_QuickSpectralDense(NUM_CLASSES, name="second"), *last]


def linear():
    return [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten(), DP_QuickSpectralDense(NUM_CLASSES)]


def noiseless(layers, n=N, batch_size=B, **kwargs):
    """A model that keeps the gradients it is given, always with the same first weights."""
    keras.utils.set_random_seed(0)
    eager = {"run_eagerly": True}
    optimizer = RecordingSGD(0.0)
    return model(
        layers, n=n, batch_size=batch_size, noise_multiplier=0.0, optimizer=optimizer, compile_arguments=eager, **kwargs
    )


# -- one example, m views --------------------------------------------------------------------------------------------

_HUGE = 1e3 * np.eye(NUM_CLASSES, dtype="float32")[:1]
# What makes a gradient attain its limit however small its weight: a clipping layer, or labels that the loss's constant
# does not cover.
SATURATED = [
    pytest.param(lambda: dense(DP_ClipGradient(1.0)), keras.losses.MeanSquaredError(), _HUGE, id="clipped loss"),
    pytest.param(lambda: dense(middle=[DP_ClipGradient(1e-3)]), None, _HUGE / 1e3, id="clipped inside"),
    pytest.param(dense, None, _HUGE, id="odd label"),
]


def share_of_bound(gradients, private):
    bounds = list(compute_gradient_bounds(private).values())[::-1]
    return np.array([np.linalg.norm(g) / b for g, b in zip(gradients, bounds, strict=True)])


@pytest.mark.parametrize(("layers", "loss", "label"), SATURATED)
def test_views_of_an_example_move_the_sum_no_more_than_the_example(layers, loss, label):
    """The trap: limits per row instead of per example, m times the bound."""
    m, x = 5, X[:1]
    private = noiseless(layers(), n=1, batch_size=1, loss=loss)
    alone = share_of_bound(summed_gradients(private, x, label), private)
    # All views equal, so that nothing cancels: the worst case.
    private.fit(poisson_batches(x, label, 1, augmult=AugmultConfig(m, same)), verbose=0)
    views = share_of_bound(private.optimizer.recorded[-1], private)
    np.testing.assert_allclose(views, alone, rtol=1e-4)
    assert views.max() <= 1.0
    # What rows do that the step takes for examples, also with the weight of a view.
    rows, labels = np.repeat(x, m, axis=0), np.repeat(label, m, axis=0)
    for weight in (np.ones(m), np.full(m, 1 / m)):
        unprotected = share_of_bound(summed_gradients(private, rows, labels, weight), private)
        np.testing.assert_allclose(unprotected[0], m * alone[0], rtol=1e-4)
        assert unprotected.max() > 2.0


def flip_second_view(images):
    """The image and its mirror image, for two views."""
    second = tf.range(tf.shape(images)[0]) % 2 == 1
    return tf.where(second[:, None, None, None], images[:, :, ::-1], images)


@pytest.mark.parametrize("padded", [False, True])
def test_the_gradient_is_the_mean_over_the_views(padded):
    x, y = X[:B], Y[:B]
    private = noiseless(dense(DP_ClipGradient(0.3)), n=B)
    views = AugmultConfig(2, flip_second_view)
    private.fit(poisson_batches(x, y, B, augmult=views, padded=padded), verbose=0)  # all examples: B is n
    found = [B * g for g in private.optimizer.recorded[-1]]
    both = [summed_gradients(private, images, y) for images in (x, x[:, :, ::-1])]
    for ours, one, other in zip(found, *both, strict=True):
        np.testing.assert_allclose(ours, (one + other) / 2, atol=1e-5)
        assert np.abs(one - other).max() > 1e-2


@pytest.mark.full
@pytest.mark.parametrize("make", [poisson_batches, shuffled_batches])
def test_equal_views_change_neither_training_nor_metrics_nor_the_ledger(make):
    def trained(augmult, **kwargs):
        keras.utils.set_random_seed(0)
        private = model(linear(), n=N - 3, metrics=["accuracy"], noise_seed=1)  # the last batch is smaller
        batches = make(X[:-3], Y[:-3], B, seed=2, augmult=augmult, **kwargs)
        history = private.fit(batches, epochs=2, verbose=0)
        return private, history.history

    plain, history = trained(None)
    viewed, viewed_history = trained(AugmultConfig(3, same), **({"padded": True} if make is poisson_batches else {}))
    for ours, theirs in zip(viewed.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)  # sums of other lengths round in another order
    assert viewed_history.keys() == history.keys()
    for name, values in history.items():  # batches of several sizes: a batch counts by its examples, not by its rows
        np.testing.assert_allclose(viewed_history[name], values, rtol=1e-4)
    assert viewed.ledger.entries() == plain.ledger.entries()


@pytest.mark.parametrize(
    "derive",
    [
        lambda d: d.take(2),
        lambda d: d.map(lambda x, y, w: (x, y)),
        lambda d: d.unbatch().batch(B),
        lambda d: d.concatenate(d),
        lambda d: tf.data.Dataset.zip((d, d)).map(lambda a, b: a).prefetch(1),
    ],
)
def test_views_of_unknown_sampling_are_refused(derive):
    """A step that does not know how many rows are one example would let each of them reach the bound."""
    derived = derive(poisson_batches(X, Y, B, augmult=AugmultConfig(3, same)))
    assert multiplicity_behind(derived) == 3
    private = model(linear(), n=N)
    with pytest.raises(ValueError, match="3 views of each.*data set of the sampler itself"):
        private.fit(derived, verbose=0)
    assert private.ledger.steps == 0
    assert multiplicity_behind(derive(poisson_batches(X, Y, B, padded=True))) == 1


# -- what is emitted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
def test_views_follow_each_other_and_share_a_weight(padded):
    m, calls = 3, itertools.count()

    def shifted(images):
        next(calls)
        return images + 100.0 * tf.cast(tf.range(tf.shape(images)[0]) % m, tf.float32)[:, None, None, None]

    viewed = poisson_batches(X, Y, B, steps=20, seed=0, padded=padded, augmult=AugmultConfig(m, shifted))
    plain = poisson_batches(X, Y, B, steps=20, seed=0)
    assert [tuple(spec.shape) for spec in viewed.element_spec] == [(None, *SHAPE), (None, NUM_CLASSES), (None,)]
    for (x, y, weight), (plain_x, plain_y) in zip(viewed, plain, strict=True):
        rows = m * len(plain_x)
        assert len(weight) == rows if not padded else len(weight) % m == 0 and len(weight) >= rows
        np.testing.assert_array_equal(weight, np.where(np.arange(len(weight)) < rows, np.float32(1 / m), 0))
        np.testing.assert_array_equal(y[:rows], np.repeat(plain_y, m, axis=0))
        for view in range(m):
            np.testing.assert_array_equal(x[view:rows:m], plain_x + np.float32(100 * view))
    assert sampling_of(viewed).sampling == sampling_of(plain).sampling and sampling_of(viewed).multiplicity == m
    assert next(calls) == 1  # traced once, when the data set was made


def test_map_fn_comes_before_the_views():
    dataset = poisson_batches(X, Y, N, map_fn=lambda x, y: (x[:, :3], y), augmult=AugmultConfig(2, same))
    x, _, _ = next(iter(dataset))
    np.testing.assert_array_equal(x, np.repeat(X[:, :3], 2, axis=0))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (dict(multiplicity=0), ValueError, "multiplicity=0"),
        (dict(multiplicity=2.0), TypeError, "multiplicity=2.0"),
        (dict(multiplicity=True), TypeError, "multiplicity=True"),
        (dict(multiplicity=2, augment="flip"), TypeError, "augment='flip'"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, text):
    with pytest.raises(error, match=f"AugmultConfig.*{text}"):
        AugmultConfig(**arguments)


def test_what_makes_no_views_is_refused():
    with pytest.raises(ValueError, match="AugmultConfig.*channels.*None, 36"):
        poisson_batches(X.reshape(N, 36), Y, N, augmult=AugmultConfig(2))
    one_more = AugmultConfig(2, lambda images: tf.concat([images, images[:1]], axis=0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="2 rows per example from augment"):
        next(iter(poisson_batches(X, Y, N, augmult=one_more)))


# -- the default views -----------------------------------------------------------------------------------------------

SIDES = (10, 20)  # shifted by at most 1 and 2
IMAGE = np.arange(1, 201, dtype="float32").reshape(*SIDES, 1)


def all_views(image):
    """Every view there is of an image of these sides, in NumPy: flipped or not, 3 shifts times 5 shifts."""
    views = []
    for flipped, down, right in itertools.product((False, True), (-1, 0, 1), (-2, -1, 0, 1, 2)):
        padded = np.pad(image[:, ::-1] if flipped else image, [(1, 1), (2, 2), (0, 0)])
        views.append(padded[1 - down : 11 - down, 2 - right : 22 - right])
    return np.array(views)


VIEWS = all_views(IMAGE)


def emitted_views(dataset):
    """Array (batches, rows): which of `VIEWS` each row is."""
    rows = []
    for x, *_ in dataset:
        matches = (x.numpy()[:, None] == VIEWS).all(axis=(2, 3, 4))
        assert (matches.sum(axis=1) == 1).all()
        rows.append(matches.argmax(axis=1))
    return np.array(rows)


def of_image(multiplicity=4, n=6, steps=1, seed=None, make=poisson_batches, **kwargs):
    x, y = np.repeat(IMAGE[None], n, axis=0), np.zeros(n, "float32")
    if make is poisson_batches:
        kwargs["steps"] = steps
    return make(x, y, n, seed=seed, augmult=AugmultConfig(multiplicity), **kwargs)  # batches of all n examples


def test_default_views_are_uniform_and_independent():
    found = emitted_views(of_image(steps=100, seed=0))  # 100 batches of 24 rows
    assert found.shape == (100, 24)
    # 80 expected of each of 30 views.
    assert stats.chisquare(np.bincount(found.ravel(), minlength=len(VIEWS))).pvalue > FALSE_ALARM
    # Independent views agree with probability 1/30: neighbouring rows, views of one example, successive batches.
    for one, other in ((found[:, 1:], found[:, :-1]), (found[:, ::4], found[:, 3::4]), (found[1:], found[:-1])):
        assert stats.binomtest(int((one == other).sum()), one.size, 1 / len(VIEWS)).pvalue > FALSE_ALARM
    flipped, down, right = (part.ravel() for part in np.unravel_index(found, (2, 3, 5)))
    for one, other in itertools.combinations((flipped, down, right), 2):
        table = np.histogram2d(one, other, (len(set(one)), len(set(other))))[0]
        assert stats.chi2_contingency(table).pvalue > FALSE_ALARM


def test_the_global_seed_neither_gives_nor_takes():
    """Known views break the argument for the bound of one example: they have to be as secret as the rows."""
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        found.append(emitted_views(of_image()))
    assert (found[0] != found[1]).any()  # equal by chance once in 30^24
    keras.utils.set_random_seed(0)
    expected = random.random(), float(tf.random.uniform([]))
    keras.utils.set_random_seed(0)
    emitted_views(of_image())
    assert (random.random(), float(tf.random.uniform([]))) == expected


def test_no_views_come_back():
    dataset = of_image(steps=3, seed=0)
    passes = [emitted_views(dataset) for _ in range(2)]
    one, two = iter(dataset), iter(dataset)  # interleaved
    mixed = [emitted_views([next(iterator)])[0] for _ in range(3) for iterator in (one, two)]
    assert len(np.unique(np.concatenate([*passes, mixed]), axis=0)) == 12


@pytest.mark.parametrize("make", [poisson_batches, shuffled_batches])
def test_a_seed_reproduces_views_and_a_resumed_study_goes_on_with_them(make):
    first, second = of_image(seed=5, make=make), of_image(seed=5, make=make)
    passes = [emitted_views(first) for _ in range(3)]
    sampling_of(second).seek(1)
    np.testing.assert_array_equal([emitted_views(second) for _ in range(2)], passes[1:])
    assert (emitted_views(of_image(seed=6, make=make)) != passes[0]).any()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64"])
def test_default_views_keep_type_and_pixels(dtype):
    x = np.repeat(IMAGE[None], 6, axis=0).astype(dtype)
    dataset = poisson_batches(x, np.zeros(6), 6, augmult=AugmultConfig(4))
    assert dataset.element_spec[0].dtype == dtype and dataset.element_spec[0].shape == (None, *SIDES, 1)
    emitted_views(dataset)  # each is one of the views, to the last bit


def test_small_images_are_flipped_only():
    x = np.arange(8.0).reshape(1, 2, 4, 1)
    dataset = poisson_batches(x, np.zeros(1), 1, seed=0, augmult=AugmultConfig(30))
    rows = np.unique(next(iter(dataset))[0].numpy().reshape(30, -1), axis=0)
    np.testing.assert_array_equal(rows, [x.ravel(), x[:, :, ::-1].ravel()])


def test_the_generator_of_the_documentation_is_secret():
    """What `AugmultConfig` recommends for an `augment` of one's own."""

    def run():
        keras.utils.set_random_seed(0)
        generator = tf.random.Generator.from_seed(int.from_bytes(os.urandom(8), "big") >> 1)
        noisy = AugmultConfig(2, lambda images: images + generator.normal(tf.shape(images)))
        dataset = poisson_batches(X, Y, N, steps=2, augmult=noisy)
        return np.array([x for x, _, _ in dataset])

    first, second = run(), run()
    assert (first != second).all() and (first[0] != first[1]).all() and (first[:, ::2] != first[:, 1::2]).all()
