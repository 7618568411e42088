"""Certified AUROC, membership inference and the reports beside training: true on cases whose answer is known."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import NUM_CLASSES, data, metadata
from sklearn.metrics import roc_auc_score

from deel.lipdp.accounting import calibrate_noise
from deel.lipdp.layers import DP_BoundedInput, DP_Flatten, DP_GroupSort, DP_QuickSpectralConv2D, DP_QuickSpectralDense
from deel.lipdp.losses import DP_TauBCE, DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Sequential
from deel.lipdp.parameters import DatasetMetadata, DPParameters
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.utils import (
    CertifiableAUROC,
    PrivacyMetrics,
    ScaledAUC,
    SignaltoNoiseAverage,
    SignaltoNoiseHistogram,
    _classes,
    membership_inference,
)


def scored(n=2000, seed=0, gap=1.0):
    """Labels, and scores of unit variance whose two means are `gap` apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return y, (rng.normal(size=n) + gap * (y - 0.5)).astype("float32")


def value(metric, y, scores, sample_weight=None):
    metric.reset_state()
    metric.update_state(y, scores, sample_weight)
    return float(metric.result())


# -- AUROC ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [-2.0, 0.0, 0.5, 3.0])
def test_scaled_auc_is_that_of_scikit_learn(gap):
    y, scores = scored(gap=gap)
    # Of the pairs, those between the same two of 200 thresholds are taken for half in order.
    assert value(ScaledAUC(), y, scores) == pytest.approx(roc_auc_score(y, scores), abs=2e-3)
    weights = np.random.default_rng(1).uniform(size=len(y))
    expected = roc_auc_score(y, scores, sample_weight=weights)
    assert value(ScaledAUC(), y, scores, weights) == pytest.approx(expected, abs=2e-3)


def test_scale_makes_small_scores_visible():
    y, scores = scored()
    small, exact = 1e-4 * scores, roc_auc_score(y, scores)
    assert value(ScaledAUC(scale=1e4), y, small) == pytest.approx(exact, abs=2e-3)
    assert abs(value(ScaledAUC(), y, small) - exact) > 0.1  # what Keras's thresholds see of them


METRICS = [lambda: ScaledAUC(2.0), lambda: CertifiableAUROC(0.25, 2.0)]


@pytest.mark.parametrize("make", METRICS)
def test_auc_knows_every_way_to_write_labels(make):
    y, scores = scored(500)
    expected = value(make(), y, scores)
    for labels in (2 * y - 1, y.astype(bool), 0.9 * y + 0.05, y.astype("float64")):
        assert value(make(), labels, scores) == expected
    assert value(make(), y[:, None], scores[:, None]) == expected
    assert value(make(), y, scores[:, None]) == expected


@pytest.mark.parametrize("make", METRICS)
def test_auc_depends_on_the_set_of_examples_alone(make):
    y, scores = scored(500)
    metric = make()
    expected = value(metric, y, scores)
    order = np.random.default_rng(0).permutation(500)
    assert value(metric, y[order], scores[order]) == expected
    metric.reset_state()
    for part in np.split(np.arange(500), [10, 11, 300]):
        metric.update_state(y[part], scores[part])
    assert float(metric.result()) == expected


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.3, 2.0])
def test_certified_auroc_is_at_most_that_of_the_worst_scores(radius):
    for gap in (-1.0, 0.5, 2.0, 6.0):
        y, scores = scored(gap=gap)
        worst = roc_auc_score(y, np.where(y, scores - radius, scores + radius))
        certified = value(CertifiableAUROC(radius, num_thresholds=2000), y, scores)
        assert certified <= worst + 1e-6  # single precision of Keras's sums
        assert certified > worst - 0.01  # and not much less, with thresholds enough
        assert value(CertifiableAUROC(radius), y, scores) <= worst + 1e-6


def test_sampling_the_curve_cannot_raise_a_certificate():
    """Scores too close for the thresholds, and all in the wrong order: Keras's own sum says 0.5."""
    y = np.array([0, 1] * 50)
    scores = 1e-5 * (0.5 - y)
    assert roc_auc_score(y, scores) == 0.0
    assert value(ScaledAUC(), y, scores) == pytest.approx(0.5)
    for radius in (0.0, 1e-6):
        assert value(CertifiableAUROC(radius), y, scores) == 0.0
    # So do scores beyond what a sigmoid tells apart in single precision.
    assert value(CertifiableAUROC(0.0), y, 100.0 + scores) == 0.0


def test_certified_auroc_falls_with_the_radius():
    y, scores = scored(gap=2.0)
    values = [value(CertifiableAUROC(radius), y, scores) for radius in (0.0, 0.1, 0.5, 1.0, 3.0, 100.0)]
    assert values == sorted(values, reverse=True) and values[0] > 0.9 and values[-1] == 0.0


def binary_model(metrics=(), n=200, width=8):
    """A 1-Lipschitz score in logits, of two layers."""
    built = DP_Sequential(
        [
            DP_BoundedInput(100.0, input_shape=(width,)),
            DP_QuickSpectralDense(16),
            DP_GroupSort(2),
            DP_QuickSpectralDense(1),
        ],
        dp_parameters=DPParameters("optimal", 0.0, 1e-5),
        dataset_metadata=DatasetMetadata((width,), n, 50, 100.0),
    )
    built.compile(keras.optimizers.SGD(0.05), DP_TauBCE(4.0, num_outputs=1), metrics=list(metrics))
    return built


@pytest.fixture(scope="module")
def binary():
    """A trained score, its data, and the metrics of the last evaluation."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = (rng.normal(size=(200, 8)) + 0.6 * (2 * y - 1)[:, None]).astype("float32")
    model = binary_model([ScaledAUC(name="plain"), CertifiableAUROC(0.5, num_thresholds=1000)])
    model.fit(x, y[:, None], epochs=5, verbose=0)
    return model, x, y


def attacked(model, x, y, radius, steps=20):
    """Inputs moved by at most `radius` each, towards a score on the wrong side."""
    towards = tf.constant(np.where(y, -1.0, 1.0)[:, None], tf.float32)
    moved = tf.constant(x)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(moved)
            gain = tf.reduce_sum(towards * model(moved))
        direction = tape.gradient(gain, moved)
        moved += radius / 5 * direction / tf.maximum(tf.norm(direction, axis=1, keepdims=True), 1e-12)
        moved = x + tf.clip_by_norm(moved - x, radius, axes=[1])
    assert np.linalg.norm(moved - x, axis=1).max() <= radius * (1 + 1e-5)
    return moved


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0])
def test_no_attack_on_a_lipschitz_model_goes_below_the_certificate(binary, radius):
    model, x, y = binary
    clean = model(x).numpy()[:, 0]
    found = roc_auc_score(y, model(attacked(model, x, y, radius)).numpy()[:, 0])
    certified = value(CertifiableAUROC(radius, num_thresholds=1000), y, clean)
    assert certified <= found < roc_auc_score(y, clean) - 0.01
    # The attack is good enough to break a certificate for half of the radius.
    assert value(CertifiableAUROC(radius / 2, num_thresholds=1000), y, clean) > found


def test_metrics_in_a_compiled_model_are_saved_with_it(binary, tmp_path):
    model, x, y = binary
    before = model.evaluate(x, y[:, None], verbose=0, return_dict=True)
    assert before["plain"] == pytest.approx(roc_auc_score(y, model(x).numpy()[:, 0]), abs=5e-3)
    assert 0.0 < before["certifiable_auroc"] < before["plain"]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    after = loaded.evaluate(x, y[:, None], verbose=0, return_dict=True)
    assert after == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize(
    "metric", [ScaledAUC(3.0, name="a", num_thresholds=50), CertifiableAUROC(0.25, 3.0, name="b", num_thresholds=50)]
)
def test_metric_is_rebuilt_from_its_config(metric):
    rebuilt = type(metric).from_config(metric.get_config())
    assert rebuilt.get_config() == metric.get_config() and rebuilt.name == metric.name
    y, scores = scored(500)
    assert value(rebuilt, y, scores) == value(metric, y, scores)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ScaledAUC(scale=0.0), ValueError, "ScaledAUC.*scale=0.0"),
        (lambda: ScaledAUC(scale="1"), TypeError, "ScaledAUC.*scale='1'"),
        (lambda: CertifiableAUROC(-0.1), ValueError, "CertifiableAUROC.*radius=-0.1"),
        (lambda: CertifiableAUROC(math.inf), ValueError, "CertifiableAUROC.*radius=inf"),
        (lambda: CertifiableAUROC(math.nan), ValueError, "CertifiableAUROC.*radius=nan"),
        (lambda: CertifiableAUROC(0.1, summation_method="interpolation"), ValueError, "'minoring'.*'interpolation'"),
        (lambda: CertifiableAUROC(0.1, curve="PR"), ValueError, "'ROC'.*'PR'"),
        (lambda: SignaltoNoiseHistogram(data(4), bins=0), ValueError, "SignaltoNoiseHistogram.*bins=0"),
        (lambda: SignaltoNoiseHistogram(data(4), bins=513), ValueError, "SignaltoNoiseHistogram.*bins=513"),
        (lambda: SignaltoNoiseHistogram(data(4), png="chart.svg"), ValueError, "SignaltoNoiseHistogram.*chart.svg"),
        (
            lambda: SignaltoNoiseAverage(data(4), png="no/chart.png"),
            ValueError,
            "SignaltoNoiseAverage.*make the folder",
        ),
        (lambda: PrivacyMetrics(data(4)), ValueError, r"\(x_train, y_train, x_test, y_test\)"),
        (lambda: PrivacyMetrics((*data(4), *data(4)), every=0), ValueError, "PrivacyMetrics.*every=0"),
        (lambda: PrivacyMetrics((*data(4), *data(4)), batch_size=0.5), TypeError, "PrivacyMetrics.*batch_size=0.5"),
        (lambda: PrivacyMetrics((*data(4), *data(4)), log_fn="paper"), ValueError, "'wandb'.*'paper'"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()


# -- membership inference on known answers -------------------------------------------------------------------------

# One-sided, so that of ten thousand attacks on what cannot be told apart five exceed it.
_NORMAL_QUANTILE = 3.29


def largest_auc(members, non_members):
    """What an AUC exceeds with probability 5e-4 if members and others cannot be told apart (Mann-Whitney)."""
    return 0.5 + _NORMAL_QUANTILE * math.sqrt((members + non_members + 1) / (12 * members * non_members))


def sides(n=300, seed=0, loss_gap=0.0, feature_gap=0.0):
    """(losses, features) of members and of others."""
    rng = np.random.default_rng(seed)
    losses, features = rng.normal(size=(2, n)), rng.normal(size=(2, n, 3))
    losses[0] -= loss_gap
    features[0, :, 1] += feature_gap
    return list(zip(losses, features, strict=True))


def test_equal_distributions_are_not_told_apart():
    for seed in range(5):
        report = membership_inference(*sides(seed=seed))["all"]
        assert set(report) == {"threshold_auc", "threshold_advantage", "logistic_auc", "logistic_advantage"}
        assert max(report["threshold_auc"], report["logistic_auc"]) < largest_auc(300, 300)
        # Two-sided 1e-3 of the Kolmogorov-Smirnov distance: sqrt(-log(alpha / 2) / 2) * sqrt(2 / n).
        assert max(report["threshold_advantage"], report["logistic_advantage"]) < 1.95 * math.sqrt(2 / 300)


def test_smaller_losses_are_seen_by_both_attacks_and_features_by_one():
    report = membership_inference(*sides(loss_gap=1.0))["all"]
    # Two unit normals one apart: AUC Phi(1 / sqrt(2)) = 0.760, advantage 2 Phi(1 / 2) - 1 = 0.383.
    assert report["threshold_auc"] == pytest.approx(0.760, abs=0.06)
    assert report["threshold_advantage"] == pytest.approx(0.383, abs=0.11)
    assert report["logistic_auc"] == pytest.approx(0.760, abs=0.06)
    report = membership_inference(*sides(feature_gap=1.0))["all"]
    assert report["threshold_auc"] < largest_auc(300, 300) < report["logistic_auc"]
    # Larger losses of members are no sign of membership to the threshold, and one to the regression.
    report = membership_inference(*sides(loss_gap=-1.0))["all"]
    assert report["threshold_auc"] < 0.3 and report["logistic_auc"] > 0.7


def test_a_perfect_attack_scores_one():
    report = membership_inference(*sides(loss_gap=50.0))["all"]
    assert report == pytest.approx(dict.fromkeys(report, 1.0))


def test_regression_is_not_scored_on_what_it_was_fitted_on():
    """Features enough to tell any two sets of examples apart, and nothing in them."""
    rng = np.random.default_rng(0)
    report = membership_inference(*[(rng.normal(size=80), rng.normal(size=(80, 200))) for _ in range(2)])["all"]
    assert report["logistic_auc"] < largest_auc(80, 80)


def test_attack_does_not_depend_on_order_or_scale_of_the_losses():
    members, others = sides(loss_gap=0.5, feature_gap=0.5)
    expected = membership_inference(members, others)
    scaled = membership_inference(*[(100.0 * losses + 7.0, -3.0 * features) for losses, features in (members, others)])
    assert scaled["all"] == pytest.approx(expected["all"], abs=1e-6)
    shuffled = np.random.default_rng(1).permutation(300)
    report = membership_inference((members[0][shuffled], members[1][shuffled]), others)["all"]
    assert report["threshold_auc"] == pytest.approx(expected["all"]["threshold_auc"], abs=1e-12)
    assert report["logistic_auc"] == pytest.approx(expected["all"]["logistic_auc"], abs=0.02)  # other parts


def test_a_leak_of_one_class_shows_in_its_report():
    labels = np.repeat([0, 1, 2], 100)
    members, others = sides()
    members[0][labels == 1] -= 2.0
    report = membership_inference(members, others, (labels, labels))
    assert list(report) == ["all", "class 0", "class 1", "class 2"]
    assert report["class 1"]["threshold_auc"] > 0.8
    assert max(report[f"class {c}"]["threshold_auc"] for c in (0, 2)) < largest_auc(100, 100)
    rows = labels == 1
    alone = membership_inference(*[(losses[rows], features[rows]) for losses, features in (members, others)])
    assert report["class 1"] == alone["all"]


def test_a_class_too_small_for_the_folds_is_left_out():
    labels = np.repeat([0, 7], [296, 4])
    assert list(membership_inference(*sides(), (labels, labels))) == ["all", "class 0"]
    assert list(membership_inference(*sides(), (labels, labels), folds=4)) == ["all", "class 0", "class 7"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"folds": 1}, ValueError, "folds=1"),
        ({"labels": (np.zeros(300), np.zeros(299))}, ValueError, r"one label for each loss.*\[300, 299\] labels"),
        ({"labels": (np.zeros(299), np.zeros(301))}, ValueError, r"\[299, 301\] labels"),
        ({"members": (np.zeros(300), np.zeros((299, 3)))}, ValueError, r"\[300, 300\] losses.*\[299, 300\] rows"),
        ({"members": (np.zeros(4), np.zeros((4, 3)))}, ValueError, "at least 5"),
    ],
)
def test_arrays_that_do_not_match(arguments, error, words):
    members, others = sides()
    with pytest.raises(error, match=words):
        membership_inference(**{"members": members, "non_members": others, **arguments})


# -- membership inference on trained models ------------------------------------------------------------------------

MEMBERS, WIDTH, BATCH, EPOCHS, SIGMA = 200, 400, 100, 10, 5.9


def memorised(noise_factor=1.0, seed=0):
    """Attack on a model that has more weights than random labels to remember; its noise declares epsilon 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * MEMBERS, WIDTH)).astype("float32")
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.eye(2, dtype="float32")[rng.integers(0, 2, 2 * MEMBERS)]
    keras.utils.set_random_seed(seed)
    model = DP_Sequential(
        [DP_BoundedInput(1.0, input_shape=(WIDTH,)), DP_QuickSpectralDense(2)],
        dp_parameters=DPParameters("optimal", SIGMA, 1e-3, noise_seed=seed),
        dataset_metadata=DatasetMetadata((WIDTH,), MEMBERS, BATCH, 1.0, nb_classes=2),
    )
    add_noise = model.add_noise
    model.add_noise = lambda gradients, stddevs: add_noise(gradients, [noise_factor * s for s in stddevs])
    model.compile(keras.optimizers.SGD(2.0), DP_TauCategoricalCrossentropy(20.0))
    return trained_and_attacked(model, x, y, EPOCHS, seed)


def trained_and_attacked(model, x, y, epochs, seed):
    members = len(x) // 2
    batches = poisson_batches(x[:members], y[:members], model.dataset_metadata.batch_size, seed=seed)
    attack = PrivacyMetrics((x[:members], y[:members], x[members:], y[members:]), log_fn=lambda values: None)
    model.fit(batches, epochs=epochs, verbose=0, callbacks=[attack])
    return attack.results["all"]


def test_the_noise_of_the_trained_models_is_that_of_epsilon_one():
    assert calibrate_noise(1.0, 1e-3, BATCH, MEMBERS, EPOCHS) == pytest.approx(SIGMA, abs=0.01)


def test_membership_is_seen_with_a_bound_divided_by_the_batch_size_and_not_with_a_sound_one():
    """Divided twice by the batch size, noise is practically none; one attack on each, at the limit of `largest_auc`."""
    sound, broken = memorised(), memorised(1 / BATCH)
    for name in ("threshold_auc", "logistic_auc"):
        assert sound[name] < largest_auc(MEMBERS, MEMBERS) < 0.6
        assert broken[name] > 0.75
    assert sound["threshold_advantage"] < 0.2 < broken["threshold_advantage"]


@pytest.mark.full
def test_membership_inference_does_not_see_half_of_the_noise():
    """A record of how weak it is: a single attack finds nothing, where the audits of `deel.lipdp.audit` do."""
    limit = largest_auc(MEMBERS, MEMBERS)
    sound, halved = ([memorised(factor, seed)["threshold_auc"] for seed in range(10)] for factor in (1.0, 0.5))
    assert sum(auc > limit for auc in sound) == 0
    assert sum(auc > limit for auc in halved) <= 1
    assert 0.0 < np.mean(halved) - np.mean(sound) < 0.05


class ThirdOfTheBound(DP_QuickSpectralConv2D):
    def backpropagate_params(self, *args, **kwargs):
        return super().backpropagate_params(*args, **kwargs) / 3


@pytest.mark.full
def test_membership_inference_does_not_see_a_third_of_a_convolution_bound():
    shape, aucs = (16, 16, 1), []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2 * MEMBERS, *shape)).astype("float32")
        x /= np.linalg.norm(x.reshape(len(x), -1), axis=1)[:, None, None, None]
        y = np.eye(2, dtype="float32")[rng.integers(0, 2, 2 * MEMBERS)]
        keras.utils.set_random_seed(seed)
        model = DP_Sequential(
            [
                DP_BoundedInput(1.0, input_shape=shape),
                ThirdOfTheBound(8, 3, padding="same"),
                DP_GroupSort(2),
                DP_Flatten(),
                DP_QuickSpectralDense(2),
            ],
            dp_parameters=DPParameters("optimal", SIGMA, 1e-3, noise_seed=seed),
            dataset_metadata=DatasetMetadata(shape, MEMBERS, BATCH, 1.0, nb_classes=2),
        )
        model.compile(keras.optimizers.SGD(2.0), DP_TauCategoricalCrossentropy(20.0))
        aucs.append(trained_and_attacked(model, x, y, EPOCHS, seed)["threshold_auc"])
    assert max(aucs) < largest_auc(MEMBERS, MEMBERS)


# -- the callbacks -------------------------------------------------------------------------------------------------


@functools.cache
def dense_model(loss=None, last_units=NUM_CLASSES):
    built = DP_Sequential(
        [DP_BoundedInput(3.0, input_shape=(9,)), DP_QuickSpectralDense(last_units)],
        dp_parameters=DPParameters("optimal", 1.0, 1e-5),
        dataset_metadata=metadata(40, 8, shape=(9,)),
    )
    built.compile(keras.optimizers.SGD(0.1), loss or DP_TauCategoricalCrossentropy(2.0))
    return built


def test_privacy_metrics_attack_when_asked_and_log_what_they_find(caplog):
    x, y = data(40, shape=(9,))
    logged = []
    model = dense_model()
    steps = model.ledger.steps
    often = PrivacyMetrics((x, y, *data(30, seed=1, shape=(9,))), log_fn=logged.append, every=2)
    once = PrivacyMetrics((x, y, *data(30, seed=1, shape=(9,))), log_fn=logged.append, batch_size=7)
    ratios = []
    signal = [
        SignaltoNoiseAverage((x[:8], y[:8]), ratios.append),
        SignaltoNoiseHistogram((x[:3], y[:3]), ratios.append),
    ]
    model.fit(x, y, epochs=3, verbose=0, callbacks=[often, once, *signal])
    assert [entry["epoch"] for entry in ratios] == [1, 1, 2, 2, 3, 3]
    assert [entry["epoch"] for entry in logged] == [2, 3]
    flat = {f"{group}/{name}": value for group, part in once.results.items() for name, value in part.items()}
    assert logged[1] == {**flat, "epoch": 3} and "all/threshold_auc" in flat and "class 0/logistic_auc" in flat
    assert "which epsilon does not cover" in caplog.text
    warnings = [record.getMessage() for record in caplog.records if "SignaltoNoise" in record.getMessage()]
    assert len(warnings) == 2  # once for each, not once an epoch
    assert model.ledger.steps == steps + 15  # attacks are no training


def test_losses_are_those_of_single_examples(monkeypatch):
    model = dense_model()
    seen = {}
    monkeypatch.setattr("deel.lipdp.utils.membership_inference", lambda *args, **kwargs: seen.update(args=args) or {})
    (x, y), (x_test, y_test) = data(30, shape=(9,)), data(20, seed=1, shape=(9,))
    attack = PrivacyMetrics((x, y, x_test, y_test), log_fn=lambda values: None, batch_size=8)
    attack.set_model(model)
    attack.attack()
    for (losses, outputs), inputs, labels in zip(seen["args"], (x, x_test), (y, y_test), strict=True):
        np.testing.assert_allclose(outputs, model(inputs), rtol=1e-5, atol=1e-6)
        expected = [float(model.loss(labels[i : i + 1], outputs[i : i + 1])) for i in range(len(labels))]
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "width", "classes"),
    [
        (lambda c: np.eye(3)[c], 3, ["class 0", "class 1", "class 2"]),
        (lambda c: 0.8 * np.eye(3)[c] + 0.2 / 3, 3, ["class 0", "class 1", "class 2"]),
        (lambda c: (c % 2).astype("float32"), 1, ["class 0", "class 1"]),
        (lambda c: (c % 2)[:, None], 1, ["class 0", "class 1"]),
    ],
)
def test_labels_as_the_loss_takes_them(make, width, classes):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 9)).astype("float32"), make(np.arange(60) % 6 % 3 if width == 3 else np.arange(60))
    loss = DP_TauCategoricalCrossentropy(2.0) if width == 3 else DP_TauBCE(2.0, num_outputs=1)
    attack = PrivacyMetrics((x[:30], labels[:30], x[30:], labels[30:]), log_fn=lambda values: None)
    attack.set_model(dense_model(loss, width))
    assert list(attack.attack()) == ["all", *classes]


def test_labels_of_minus_one_and_one_are_two_classes():
    assert _classes(np.array([-1.0, 1.0, 1.0])).tolist() == [-1, 1, 1]
    assert _classes(np.array([[-1], [1]])).tolist() == [-1, 1]


def test_signal_to_noise_average_logs_the_ratios_of_the_model():
    x, y = data(8, shape=(9,))
    model, logged = dense_model(), []
    callback = SignaltoNoiseAverage((x, y), logged.append)
    callback.set_model(model)
    callback.on_epoch_end(2)
    [(key, ratio)] = model.signal_to_noise_average((x, y))[0].items()
    assert logged == [{f"signal_to_noise/{key}": pytest.approx(ratio, rel=1e-5), "epoch": 3}]
    assert 0.0 < ratio <= 1.0 and type(logged[0][f"signal_to_noise/{key}"]) is float


def test_signal_to_noise_histogram_logs_quantiles_and_counts():
    x, y = data(13, shape=(9,))
    model, logged = dense_model(), []
    callback = SignaltoNoiseHistogram((x, y), logged.append, bins=5)
    callback.set_model(model)
    callback.on_epoch_end(0)
    [entry] = logged
    [(key, ratios)] = model.signal_to_noise_elementwise((x, y))[0].items()
    name = f"signal_to_noise/{key}"
    assert set(entry) == {"epoch", f"{name}/histogram", f"{name}/max", *(f"{name}/q{q}" for q in (5, 25, 50, 75, 95))}
    assert entry[f"{name}/max"] == pytest.approx(np.max(ratios), rel=1e-5)
    for q in (5, 25, 50, 75, 95):
        assert entry[f"{name}/q{q}"] == pytest.approx(np.percentile(ratios, q), rel=1e-5)
    counts = [int(np.sum((ratios >= k / 5) & (ratios < (k + 1) / 5))) for k in range(5)]
    assert entry[f"{name}/histogram"] == counts and sum(counts) == 13


def test_nothing_here_is_counted_as_a_release():
    """They are uncovered by epsilon, and say so."""
    x, y = data(40, shape=(9,))
    model = dense_model()
    before = model.ledger.entries()
    for callback in (SignaltoNoiseHistogram((x, y), print), PrivacyMetrics((x, y, x, y), log_fn=lambda values: None)):
        callback.set_model(model)
        callback.on_epoch_end(0)
        callback.on_train_end()
    assert model.ledger.entries() == before
