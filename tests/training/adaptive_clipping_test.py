"""Adaptive clipping: what an update looks at, the noise it adds, when it happens, and that each one is counted."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import SHAPE, UPPER_BOUND, data, model
from scipy import stats

from deel.lipdp import sampling
from deel.lipdp.accounting import calibrate_noise
from deel.lipdp.bounds import ROUNDING_SLACK
from deel.lipdp.callbacks import DP_BackupAndRestore
from deel.lipdp.dynamic import AdaptiveQuantileClipping, LaplaceAdaptiveLossGradientClipping
from deel.lipdp.layers import (
    DP_BoundedInput,
    DP_ClipGradient,
    DP_Flatten,
    DP_MergeResidual,
    DP_QuickSpectralDense,
    make_residuals,
)
from deel.lipdp.ledger import Ledger
from deel.lipdp.losses import DP_KCosineSimilarity, DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Model, DP_Sequential, compute_gradient_bounds, get_eps_delta
from deel.lipdp.privacy import planned_entries
from deel.lipdp.sampling import AugmultConfig, poisson_batches, shuffled_batches

# Noise without a seed differs in every run, so each check may be wrong once in 10^12 runs: the suite never is.
FALSE_ALARM = 1e-12

X, Y = data(40)
CLIP = 0.25

BOTH_MODELS = pytest.mark.parametrize("cls", [DP_Sequential, DP_Model])


def quantile(patience=1, batches=None, **kwargs):
    return AdaptiveQuantileClipping(batches or poisson_batches(X, Y, 8), patience, **{"log_fn": ignore, **kwargs})


def laplace(patience=1, batches=None, **kwargs):
    batches = batches or poisson_batches(X, Y, 8)
    return LaplaceAdaptiveLossGradientClipping(batches, patience, **{"log_fn": ignore, **kwargs})


BOTH = pytest.mark.parametrize("make", [quantile, laplace])


def ignore(values):
    pass


def clipped(inner=False, **kwargs):
    """A small model with one moving clip value, at its end or before its last layer."""
    layers = [
        DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE),
        DP_Flatten(),
        DP_QuickSpectralDense(6),
        DP_QuickSpectralDense(4, name="logits"),
    ]
    layers.insert(3 if inner else 4, DP_ClipGradient(CLIP, dynamic=True, name="clip"))
    return model(layers, **{"sampling": "poisson", "noise_multiplier": 3.0, **kwargs})


def attached(callback, private):
    """The callback as at the beginning of a `fit` of the model."""
    callback.set_model(private)
    callback.on_train_begin()
    return callback


def clip_of(private):
    return private.get_layer("clip").clip_value


def releases(private, callback):
    """How often the ledger has counted the event of a callback."""
    return dict(private.ledger.entries()).get(callback.event, 0)


def without_noise(monkeypatch, private):
    monkeypatch.setattr(private, "add_noise", lambda gradients, stddevs: gradients)


def released(callback, clip_before, clip_after):
    """The noisy sum from which an update has computed the clip value: its formula, solved for the sum."""
    batch_size = callback._sampler.batch_size
    if isinstance(callback, LaplaceAdaptiveLossGradientClipping):
        return clip_after * batch_size / callback.factor
    return batch_size * (callback.quantile - 0.5 - math.log(clip_after / clip_before) / callback.learning_rate)


# -- what it looks at ------------------------------------------------------------------------------------------------


def coupled(y_true, y_pred):
    """A loss whose gradient of one example depends on the others of its batch."""
    return tf.reduce_sum((y_pred - tf.reduce_mean(y_pred, axis=0)) ** 2, axis=-1)


@BOTH_MODELS
@pytest.mark.parametrize("inner", [False, True])
def test_norms_are_those_of_the_gradients_before_they_are_clipped(cls, inner):
    loss = DP_KCosineSimilarity(0.7)
    private = clipped(inner, cls=cls, loss=loss)
    # With B = n each example is in each batch, in the order of the data.
    norms = attached(quantile(batches=poisson_batches(X, Y, 40)), private)._norms()
    z = private.predict(X, verbose=0).astype("float64")
    length = np.linalg.norm(z, axis=1, keepdims=True)
    along = z / length
    gradients = -np.where(length > 0.7, (Y - along * (along * Y).sum(1, keepdims=True)) / length, Y / 0.7)
    if inner:
        gradients = gradients @ private.get_layer("logits").kernel.numpy().astype("float64").T
    # Single precision, in a product of two matrices of norm 1.
    np.testing.assert_allclose(norms, np.linalg.norm(gradients, axis=1), rtol=1e-4)
    assert norms.max() > CLIP  # else clipping first would go unnoticed


def test_no_loss_couples_examples():
    private = clipped(loss=coupled)
    norms = attached(quantile(batches=poisson_batches(X, Y, 40)), private)._norms()
    np.testing.assert_allclose(norms, 0.0, atol=1e-6)  # of one example alone it is constant


def test_gradients_arrive_where_nothing_before_the_layer_is_trained():
    clip = DP_ClipGradient(CLIP, dynamic=True)
    private = model([DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), clip, DP_Flatten(), DP_QuickSpectralDense(4)])
    norms = attached(quantile(batches=poisson_batches(X, Y, 40)), private)._norms()
    assert (norms > 0).all() and (norms <= math.sqrt(2.0)).all()


def test_views_are_no_examples():
    """A regression test: a statistic of m views as if of m examples changes by m times its sensitivity."""
    batches = poisson_batches(X, Y, 40, augmult=AugmultConfig(4, augment=lambda views: views))
    assert attached(quantile(batches=batches), clipped())._norms().shape == (40,)


BAD_X = np.concatenate([X[:2], np.full((1, *SHAPE), np.nan, "float32"), np.full((1, *SHAPE), np.inf, "float32"), X[4:]])
BAD_Y = np.concatenate([Y[:4], [[np.nan] * 4, [np.inf, 0, 0, 0], [1e30, 0, 0, -1e30], [5.0, 0, 0, 0]], Y[8:]])


@BOTH
def test_one_example_changes_the_sum_by_the_sensitivity_at_most(make, monkeypatch):
    """Added or removed, whatever it holds, and it is attained. (A null record adds nothing: `zero_out` is the same.)"""
    private = clipped(loss=keras.losses.MeanSquaredError())
    callback = attached(make(**({"largest_norm": 2.0} if make is laplace else {})), private)
    sensitivity = 2.0 if make is laplace else 0.5
    without_noise(monkeypatch, private)

    def total(rows):
        batch = tf.constant(BAD_X[rows]), tf.constant(BAD_Y[rows].astype("float32"))
        monkeypatch.setattr(callback._sampler, "draw_batch", lambda: batch)
        private.get_layer("clip").clip_value = CLIP
        callback.on_epoch_begin(0)
        return released(callback, CLIP, clip_of(private))

    everyone = list(range(8))
    with_all = total(everyone)
    changes = [with_all - total([row for row in everyone if row != left_out]) for left_out in everyone]
    # The clip value is kept in single precision; it is multiplied by the batch size here.
    assert max(np.abs(changes)) <= sensitivity * (1 + 1e-5)
    assert max(np.abs(changes)) >= sensitivity * (1 - 1e-5)
    # Replaced by another: two sensitivities.
    assert max(changes) - min(changes) <= 2 * sensitivity * (1 + 1e-5)
    assert total([]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (quantile, [[], [0.1, 9.0], [0.1, 9.0, 0.25, 0.2, 7.0, 0.3]]),
        (quantile, [[0.1], [0.1, 0.2, 9.0], [0.1] * 20 + [9.0] * 19]),
        (laplace, [[], [0.0], [0.0] * 30]),
        (laplace, [[1.4], [0.7, 0.7], [0.05] * 28, [0.0] * 9 + [1.4]]),
    ],
)
def test_the_clip_value_depends_on_the_noisy_sum_alone(make, batches, monkeypatch):
    """Not on how many examples arrived, which is private too: batches with the same sum lead to the same value."""
    private = clipped()
    callback = attached(make(), private)
    monkeypatch.setattr(private, "add_noise", lambda values, stddevs: [values[0] + 0.125])
    values = [callback._next_clip(CLIP, np.array(norms)) for norms in batches]
    np.testing.assert_allclose(values, values[0], rtol=1e-12)


# -- noise -----------------------------------------------------------------------------------------------------------


def check_scale(noise, law):
    """Fails, wrongly at most once in 10^12 calls, for a sample that is not of a law: "norm" or "laplace", scale 1."""
    if law == "norm":
        size, spread = np.sum(noise**2), stats.chi2(noise.size)
    else:
        size, spread = np.sum(np.abs(noise)), stats.gamma(noise.size)  # |Laplace| is exponential
    assert min(spread.cdf(size), spread.sf(size)) > FALSE_ALARM / 4, "scale"
    assert stats.kstest(noise, law).pvalue > FALSE_ALARM / 2, "shape"


@pytest.mark.parametrize("law", ["norm", "laplace"])
def test_check_scale_rejects(law):
    noise = getattr(stats, law).rvs(size=1000, random_state=0)
    check_scale(noise, law)
    for wrong in (noise * 2 / 3, noise * 3 / 2, np.abs(noise)):
        with pytest.raises(AssertionError):
            check_scale(wrong, law)


@pytest.mark.parametrize(
    ("callback", "sensitivity", "multiplier", "law"),
    [
        # Of so many examples that the fraction stays between 0 and 1.
        (lambda: quantile(batches=poisson_batches(X, Y, 40), noise_multiplier=2.0), 0.5, 2.0, "norm"),
        (lambda: laplace(epsilon=0.5, largest_norm=0.2), 0.2, 2.0, "laplace"),
        (lambda: laplace(epsilon=4.0, factor=3.0), math.sqrt(2.0), 0.25, "laplace"),  # of the loss
    ],
)
def test_noise_has_the_scale_of_the_event(callback, sensitivity, multiplier, law, monkeypatch):
    private = clipped()
    # One large draw of the model's noise, handed out bit by bit: a draw of one number takes as long.
    normals = iter(private.add_noise([tf.zeros([4000])], [1.0])[0].numpy())

    def add_noise(values, stddevs):
        return [value + stddev * [next(normals) for _ in value] for value, stddev in zip(values, stddevs, strict=True)]

    monkeypatch.setattr(private, "add_noise", add_noise)
    callback = attached(callback(), private)
    assert callback.event.noise_multiplier == multiplier
    sums = [released(callback, CLIP, callback._next_clip(CLIP, np.zeros(0))) for _ in range(1000)]
    check_scale(np.array(sums) / (sensitivity * multiplier), law)


def test_secure_noise_is_added_in_integers(monkeypatch):
    """The sum is handed to the noise source, which rounds it before the noise: it is not added to a float of noise."""
    private = clipped()
    handed = []
    monkeypatch.setattr(private, "add_noise", lambda *arguments: handed.append(arguments) or arguments[0])
    attached(quantile(noise_multiplier=3.0), private)._next_clip(CLIP, np.array([0.1, 0.2, 0.3, 0.1]))
    [([values], [stddev])] = handed
    assert values.dtype == stddev.dtype == "float64"
    assert values.numpy().tolist() == [1.0] and float(stddev) == 1.5


# -- when, and that it is counted ------------------------------------------------------------------------------------


class Noted(AdaptiveQuantileClipping):
    """Notes the epochs in which it looks at norms, here of nobody, and the clip values that it goes on from."""

    def __init__(self, patience):
        super().__init__(poisson_batches(X, Y, 8), patience, log_fn=ignore)
        self.looked, self.found = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        super().on_epoch_begin(epoch, logs)

    def _norms(self):
        self.looked.append(self._epoch)
        return np.full(3, 0.1)

    def _next_clip(self, clip_value, norms):
        self.found.append(clip_value)
        return super()._next_clip(clip_value, norms)


def test_every_update_is_planned_made_and_counted():
    """A regression test: with patience p, E // p were counted and ceil(E / p) made, the first one for nothing."""
    private, before, batches = clipped(), 0, poisson_batches(X, Y, 8, steps=1)
    for epochs, patience, initial_epoch in [(3, 1, 0), (3, 2, 0), (4, 2, 3), (5, 3, 1), (2, 5, 0)]:
        callback = Noted(patience)
        last = initial_epoch + epochs
        private.fit(batches, epochs=last, initial_epoch=initial_epoch, verbose=0, callbacks=[callback])
        assert callback.looked == list(range(initial_epoch, last, patience))
        assert callback.planned_releases(epochs) == [(callback.event, math.ceil(epochs / patience))]
        assert releases(private, callback) == before + len(callback.looked)
        before += len(callback.looked)
    assert callback.planned_releases(0) == [(callback.event, 0)]


@pytest.mark.parametrize(
    ("make", "patience", "cls", "declared", "batches"),
    [
        (quantile, 2, DP_Sequential, "poisson", poisson_batches),
        (laplace, 3, DP_Model, "shuffled", shuffled_batches),
    ],
)
def test_the_plan_is_what_the_ledger_holds_afterwards(make, patience, cls, declared, batches):
    private, callback = clipped(cls=cls, sampling=declared), make(patience)
    plan = planned_entries(private, 4, [callback])
    planned = get_eps_delta(private, 4, callbacks=[callback])
    assert planned > get_eps_delta(private, 4)
    private.fit(batches(X, Y, 8), epochs=4, verbose=0, callbacks=[callback])
    assert private.ledger.entries() == plan
    assert get_eps_delta(private) == planned
    assert clip_of(private) != CLIP
    bound = compute_gradient_bounds(private)["logits/kernel"]
    assert bound == pytest.approx(UPPER_BOUND * min(clip_of(private), math.sqrt(2.0)) * (1 + ROUNDING_SLACK))


@pytest.mark.parametrize("callback", [lambda: quantile(2, noise_multiplier=3.0), lambda: laplace(2, epsilon=0.5)])
def test_calibration_makes_room_for_the_updates(callback):
    callback, target = callback(), 2.0
    arguments = (target, 1e-5, 8, 40, 3)
    multiplier = calibrate_noise(*arguments, accountant="rdp", releases=callback.planned_releases(3))
    private = clipped(strategy="global", noise_multiplier=multiplier)
    assert 0.99 * target < get_eps_delta(private, 3, callbacks=[callback])[0] <= target
    assert multiplier > 1.002 * calibrate_noise(*arguments, accountant="rdp")  # twice the tolerance of the search


def test_what_an_update_costs_when_an_example_is_replaced():
    private = clipped()
    one_replaced = get_eps_delta(private, 1, "pld", relation="replace_one", callbacks=[quantile()])[0]
    assert get_eps_delta(private, 1, "pld", callbacks=[quantile()])[0] < one_replaced < math.inf
    with pytest.raises(ValueError, match="LaplaceStep.*replace_one"):
        get_eps_delta(private, 1, "pld", relation="replace_one", callbacks=[laplace()])


@BOTH
def test_an_update_is_counted_before_it_looks_at_the_data(make, tmp_path, monkeypatch):
    private = clipped()
    private.ledger.open_journal(tmp_path / "ledger.json")
    callback = attached(make(), private)
    monkeypatch.setattr(callback._sampler, "draw_batch", lambda: 1 / 0)  # stands for a kill
    with pytest.raises(ZeroDivisionError):
        callback.on_epoch_begin(0)
    on_disk = Ledger()
    on_disk.merge_file(tmp_path / "ledger.json")
    assert private.ledger.entries() == on_disk.entries() == [(callback.event, 1)]
    assert clip_of(private) == CLIP


@BOTH
def test_a_batch_without_examples_is_released_and_counted(make, monkeypatch):
    private = clipped()
    callback = attached(make(), private)
    monkeypatch.setattr(callback._sampler, "draw_batch", lambda: (tf.constant(X[:0]), tf.constant(Y[:0])))
    callback.on_epoch_begin(0)
    assert releases(private, callback) == 1 and clip_of(private) != CLIP


@pytest.mark.parametrize("seed", [None, 3])
def test_no_batch_is_shared_with_a_training_step(seed, monkeypatch):
    """Also where the callback is given the very data set of the training."""
    batches = poisson_batches(X, Y, 8, seed=seed)
    keys, generator = [], sampling._generator
    monkeypatch.setattr(sampling, "_generator", lambda *key: keys.append(key) or generator(*key))
    callback = attached(quantile(batches=batches), clipped())
    monkeypatch.setattr(callback, "_norms", lambda: callback._sampler.draw_batch() and np.zeros(0))
    for epoch in range(3):
        callback.on_epoch_begin(epoch)
        assert len(list(batches)) == 5
    assert len(keys) == len(set(keys)) == 6
    if seed is None:  # each generator has a secret key of its own anyway
        assert generator(None, 0).bytes(16) != generator(None, 0).bytes(16)


class Crash(keras.callbacks.Callback):
    """Stops at the beginning of the second epoch, as a killed process would."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_a_resumed_run_counts_its_updates(tmp_path):
    """Its patience starts anew, so that it makes one update more than an unbroken run."""
    batches = poisson_batches(X, Y, 8, steps=2)
    private, callback = clipped(), Noted(2)
    with pytest.raises(KeyboardInterrupt):
        callbacks = [callback, DP_BackupAndRestore(tmp_path), Crash()]
        private.fit(batches, epochs=4, verbose=0, callbacks=callbacks)
    assert callback.looked == [0]
    resumed, again = clipped(), Noted(2)
    resumed.fit(batches, epochs=4, verbose=0, callbacks=[again, DP_BackupAndRestore(tmp_path)])
    assert again.looked == [1, 3]
    assert again.found[0] == clip_of(private) != CLIP  # of the checkpoint, not of the model that was made anew
    counts = dict(resumed.ledger.entries())
    assert counts.pop(again.event) == 3
    # Of the second epoch the first run had reserved the steps, and had not taken them.
    assert 8 <= sum(counts.values()) <= 8 + 5


def test_a_known_seed_voids_epsilon():
    seeded_batches = quantile(batches=poisson_batches(X, Y, 8, seed=1))
    private = clipped()
    assert get_eps_delta(private, 1, callbacks=[quantile()])[0] < math.inf
    assert get_eps_delta(private, 1, callbacks=iter([seeded_batches]))[0] == math.inf
    attached(seeded_batches, private).on_epoch_begin(0)
    assert get_eps_delta(private)[0] == math.inf
    seeded_noise = clipped(noise_seed=1)
    attached(quantile(), seeded_noise).on_epoch_begin(0)
    assert get_eps_delta(seeded_noise)[0] == math.inf


def test_log(caplog):
    seen, private = [], clipped()
    attached(quantile(log_fn=seen.append), private).on_epoch_begin(2)
    assert seen == [{"clip_value": clip_of(private), "epoch": 2}]
    with caplog.at_level("INFO", logger="deel.lipdp"):
        attached(quantile(log_fn="logging"), private).on_epoch_begin(2)
    assert "'clip_value'" in caplog.text


# -- where it leads --------------------------------------------------------------------------------------------------


def test_quantile_clipping_finds_the_quantile():
    """Synthetic log-normal norms, sampled by Poisson batches, from above and from below.

    Near the quantile the logarithm of the value is a random walk that is pulled back: with B = 200, multiplier 2 and
    rate 0.3, one update moves it by 0.3 sqrt(0.25 / 200 + 1 / 200^2) = 0.011, and it stays within a stddev of
    0.011 / sqrt(2 * 0.3 * slope), slope >= 0.27 being the density of log norms there: 0.027, or less than 0.011 in the
    share of norms below it. 0.08 is seven of these.
    """
    norms = np.random.default_rng(0).lognormal(size=2000)
    batches = poisson_batches(np.zeros((2000, 1)), norms, 200)
    private = clipped(n=2000, batch_size=200)
    for target, start in [(0.5, 5.0), (0.75, 0.2)]:
        callback = quantile(batches=batches, quantile=target, learning_rate=0.3, noise_multiplier=2.0)
        callback._norms = lambda callback=callback: callback._sampler.draw_batch()[1].numpy()
        attached(callback, private)
        private.get_layer("clip").clip_value = start
        for epoch in range(60):
            callback.on_epoch_begin(epoch)
        assert np.mean(norms <= clip_of(private)) == pytest.approx(target, abs=0.08)


def test_laplace_clipping_finds_the_mean():
    """Stddev of the value: sqrt(B * E min(norm, 3)^2) / B = 0.11 of sampling, 3 sqrt(2) / 2 / B = 0.01 of noise."""
    norms = np.random.default_rng(0).lognormal(size=2000)
    callback = laplace(batches=poisson_batches(np.zeros((2000, 1)), norms, 200), epsilon=2.0, largest_norm=3.0)
    callback._norms = lambda: callback._sampler.draw_batch()[1].numpy()
    private = clipped(n=2000, batch_size=200)
    attached(callback, private).on_epoch_begin(0)
    assert clip_of(private) == pytest.approx(np.minimum(norms, 3.0).mean(), abs=0.8)


# -- what is refused -------------------------------------------------------------------------------------------------


def graph(*, twice):
    """A graph with a moving clip value in a branch, used once or twice."""
    inputs = keras.Input(SHAPE)
    x = DP_QuickSpectralDense(4)(DP_Flatten()(DP_BoundedInput(UPPER_BOUND)(inputs)))
    clip = DP_ClipGradient(CLIP, dynamic=True, name="clip")
    merged = DP_MergeResidual("1-lip-add")([clip(x), clip(x) if twice else x])
    return inputs, DP_QuickSpectralDense(4)(merged)


def graph_model(*, twice):
    inputs, outputs = graph(twice=twice)
    return model(
        cls=lambda layers, **kwargs: DP_Model(inputs=inputs, outputs=outputs, **kwargs),
        sampling="poisson",
    )


def test_a_clip_value_in_a_branch():
    private = graph_model(twice=False)
    callback = attached(quantile(batches=poisson_batches(X, Y, 40)), private)
    norms = callback._norms()
    assert norms.shape == (40,) and (norms > 0).all() and (norms <= math.sqrt(2.0) / 2).all()


@pytest.mark.parametrize(
    ("layers", "layer_name", "received"),
    [
        (lambda: [DP_ClipGradient(1.0)], None, "0 of them"),
        (lambda: [DP_ClipGradient(1.0, dynamic=True), DP_ClipGradient(1.0, dynamic=True)], None, "2 of them"),
        (lambda: [DP_ClipGradient(1.0, dynamic=True, name="other")], "clip", "0 of them named 'clip'"),
        # Wrapped, two tensors go through the layer: which of them, it could not tell.
        (lambda: make_residuals("1-lip-add", [DP_ClipGradient(1.0, dynamic=True)]), None, "0 of them"),
    ],
    ids=["none", "two", "name", "residual"],
)
def test_models_without_the_one_layer_are_refused(layers, layer_name, received):
    first = [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten(), DP_QuickSpectralDense(4)]
    private = model([*first, *layers()], cls=DP_Model, sampling="poisson")
    with pytest.raises(ValueError, match=f"AdaptiveQuantileClipping: .*Received: {received}"):
        private.fit(poisson_batches(X, Y, 8), verbose=0, callbacks=[quantile(layer_name=layer_name)])
    assert private.ledger.entries() == []


def test_a_layer_that_is_used_twice_is_refused_before_anything_is_counted():
    private = graph_model(twice=True)
    with pytest.raises(ValueError, match="2 of them"):
        private.fit(poisson_batches(X, Y, 8), verbose=0, callbacks=[quantile()])
    assert private.ledger.entries() == []


def test_one_of_two_layers_can_be_named():
    layers = [DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE), DP_Flatten()]
    for name in ("first", "second"):
        layers += [DP_QuickSpectralDense(4), DP_ClipGradient(CLIP, dynamic=True, name=name)]
    private = model(layers)
    attached(quantile(layer_name="first"), private).on_epoch_begin(0)
    assert private.get_layer("first").clip_value != CLIP == private.get_layer("second").clip_value


@pytest.mark.parametrize(
    "batches",
    [
        lambda: poisson_batches(X, Y, 8).take(2),
        lambda: shuffled_batches(X, Y, 8),
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
        lambda: (X, Y),
    ],
)
@BOTH
def test_only_poisson_batches_can_be_looked_at(make, batches):
    with pytest.raises(ValueError, match="poisson_batches"):
        make(batches=batches())


def test_the_data_set_has_to_be_that_of_the_model():
    with pytest.raises(ValueError, match="40 examples.*Received: 30"):
        attached(quantile(batches=poisson_batches(X[:30], Y[:30], 8)), clipped())


def test_the_bound_of_the_loss_is_that_of_the_model_in_training(monkeypatch):
    """One callback, two models: norms are cut where the loss of each says; a foreign loss has to be told."""
    callback = laplace()
    for loss, bound in [(DP_TauCategoricalCrossentropy(2.0), math.sqrt(2.0)), (DP_KCosineSimilarity(0.5), 2.0)]:
        private = clipped(loss=loss)
        without_noise(monkeypatch, private)
        assert attached(callback, private)._next_clip(CLIP, np.array([100.0])) == pytest.approx(bound / 8)
    foreign = clipped(loss=keras.losses.MeanSquaredError())
    with pytest.raises(ValueError, match="largest_norm for a loss without a known bound"):
        attached(callback, foreign)
    attached(laplace(largest_norm=1.0), foreign)


@pytest.mark.parametrize(
    ("make", "arguments", "error"),
    [
        (quantile, {"patience": 0}, ValueError),
        (quantile, {"patience": 1.5}, TypeError),
        (quantile, {"noise_multiplier": 0.0}, ValueError),
        (quantile, {"noise_multiplier": math.inf}, ValueError),
        (quantile, {"quantile": 1.0}, ValueError),
        (quantile, {"learning_rate": -1.0}, ValueError),
        (quantile, {"log_fn": "print"}, ValueError),
        (laplace, {"patience": -1}, ValueError),
        (laplace, {"epsilon": 0.0}, ValueError),
        (laplace, {"epsilon": "1"}, TypeError),
        (laplace, {"largest_norm": math.nan}, ValueError),
        (laplace, {"factor": 0.0}, ValueError),
    ],
)
def test_arguments(make, arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        make(**arguments)
