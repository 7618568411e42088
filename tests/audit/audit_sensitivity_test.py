"""Neighbouring runs and the callback: sound models pass, broken ones are found, the report says what was measured."""

import logging
import re

import doubles
import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import data
from faulty import FAULTS, LABELS, SOUND, build, build_whole_image

from deel.lipdp.audit import AuditError, SensitivityAudit, audit_sensitivity, hard_examples
from deel.lipdp.audit import sensitivity as module
from deel.lipdp.audit._recording import Declared
from deel.lipdp.layers import DP_ClipGradient, DP_Dropout, DP_Lambda
from deel.lipdp.model import DP_Model
from deel.lipdp.sampling import shuffled_batches

FEW = {"steps": 2, "noise_draws": 4}


@pytest.fixture(scope="module")
def examples():
    return hard_examples(build(), LABELS, 32, tries=60)


def test_sound_model_passes(examples):
    report = audit_sensitivity(build, *examples, **FEW).check()
    assert report.passed and report.failures == ()
    assert report.pairs == 8  # 4 in each of 2 steps
    declared = module.declared_scales(build())
    assert report.bounds == dict(zip(declared.keys, declared.bounds, strict=True))
    assert report.declared_noise_stddevs == dict(zip(declared.keys, declared.stddevs, strict=True))
    assert report.declared_joint_distance == 0.5  # one over the noise multiplier
    # The examples are hard, so the pass is worth something.
    for key, distance in report.distances.items():
        assert 0.7 < distance / report.bounds[key] <= 1.0
    assert 0.8 < report.attained <= 1.0
    # The joint distance is a lower confidence limit: in units of noise that may be as large as measured / quantile.
    assert report.joint_distance < report.attained * report.declared_joint_distance
    for key, quantile in report.noise_quantiles.items():
        assert quantile < report.noise_stddevs[key] / report.declared_noise_stddevs[key] < 2 - quantile
    assert report.verdict.startswith("pass: of 8 pairs of neighbouring steps one differs by ")
    assert f"({report.attained:.0%} of it by the declared noise)" in report.verdict


CAUGHT = {
    "noise halved": ("noise on conv/kernel has stddev", "noise on dense/kernel has stddev", "noise units, the ledger"),
    "bounds divided by the batch size": ("gradient of conv/kernel", "gradient of dense/kernel", "noise units, the led"),
    "convolution bound times 1/3": ("gradient of conv/kernel", "noise units, the ledger counts 0.5"),
}


@pytest.mark.parametrize(
    "fault",
    [
        "convolution bound times 1/3",
        pytest.param("noise halved", marks=pytest.mark.full),
        pytest.param("bounds divided by the batch size", marks=pytest.mark.full),
    ],
)
def test_broken_model_is_found(fault, examples):
    report = audit_sensitivity(lambda: build(FAULTS[fault]), *examples, steps=1, noise_draws=4)
    with pytest.raises(AuditError, match="FAIL: of 4 pairs"):
        report.check()
    assert len(report.failures) == len(CAUGHT[fault])
    for text, words in zip(report.failures, CAUGHT[fault], strict=True):
        assert words in text


@pytest.mark.full
def test_noise_that_does_not_vary_is_found(examples):
    def broken():
        built = build()
        built.add_noise = lambda gradients, stddevs: [g + s for g, s in zip(gradients, stddevs, strict=True)]
        return built

    report = audit_sensitivity(broken, *examples, **FEW)
    assert "noise on conv/kernel has stddev 0, declared" in report.verdict
    assert report.joint_distance == np.inf


@pytest.mark.full
def test_example_that_is_twice_in_a_batch_is_found(examples, monkeypatch):
    def twice(*args, **kwargs):
        rows = tf.data.Dataset.from_tensors((tf.constant([0, 1, 2, 0]),) * 2)
        return rows.repeat(kwargs["steps"])

    monkeypatch.setattr(module, "poisson_batches", twice)
    report = audit_sensitivity(build, *examples, suspects=[0], **FEW)
    assert 1.6 < report.attained <= 2.0
    assert "gradient of conv/kernel" in report.verdict


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        {"cls": DP_Model},
        {"last": [DP_Dropout(0.4), DP_ClipGradient(0.3)]},
        {"last": [DP_ClipGradient(0.3, dynamic=True)]},
        {"optimizer": "adam"},
    ],
    ids=["DP_Model", "dropout", "moving clip value", "adam"],
)
def test_other_sound_models_pass(change, examples):
    """With dropout: only if both runs draw the same masks is the difference that of one example."""

    def other():
        layers = [layer.__class__.from_config(layer.get_config()) for layer in change.get("last", ())]
        return build(**{**change, "last": layers})

    audit_sensitivity(other, *examples, **FEW).check()


def test_report_of_a_moving_bound_compares_at_the_scales_of_each_pair():
    """Written out for one variable: bounds 1 and 4, noise twice the bound, each attained to 90%."""
    scales = [Declared(("conv/kernel",), np.full(1, b), np.full(1, 2.0 * b), 2.0) for b in (1.0, 4.0)]
    found = [(declared, 0.9 * declared.bounds) for declared in scales]
    freedom = np.array([10_000])
    report = module._report(found, 2.0, scales[0].stddevs, scales[0], freedom, 1e-3)
    assert report.passed
    assert report.attained == pytest.approx(0.9)
    halved = module._report(found, 2.0, 0.5 * scales[0].stddevs, scales[0], freedom, 1e-3)
    assert len(halved.failures) == 2


def report_on(ratio, stddev=1.0):
    """Of one variable with bound 1 and noise 2 declared, an example `ratio` long and noise `2 * stddev`."""
    declared = Declared(("conv/kernel",), np.ones(1), np.full(1, 2.0), 2.0)
    found = [(declared, np.array([ratio]))]
    return module._report(found, 2.0, stddev * declared.stddevs, declared, np.array([1000]), 1e-3)


@pytest.mark.parametrize("ratio, passes", [(0.5, True), (1.0, True), (1.0 + 5e-6, True), (1.0 + 3e-5, False)])
def test_distance_may_be_the_bound_but_for_rounding(ratio, passes):
    assert report_on(ratio).passed is passes


def test_noise_is_called_too_small_at_the_stated_rates():
    """A chi-square of 1000 degrees, simulated: 1e-3 of sound noise, 0.999 of what the report says it finds."""
    report = report_on(0.5)
    [quantile], [shortfall] = report.noise_quantiles.values(), report.noise_shortfalls.values()
    assert report_on(0.5, stddev=quantile * 1.0001).passed
    assert not report_on(0.5, stddev=quantile * 0.9999).passed
    sound = np.sqrt(np.random.default_rng(0).chisquare(1000, 1_000_000) / 1000)
    # 1000 expected of each; beyond 6 standard deviations once in 10^8 seeds.
    assert abs(np.sum(sound < quantile) - 1000) < 190
    assert abs(np.sum(sound * (1 - shortfall) >= quantile) - 1000) < 190


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"steps": 0}, "steps"),
        ({"pairs_per_step": 0}, "pairs_per_step"),
        ({"noise_draws": 1}, "noise_draws"),
        ({"false_alarm": 0.0}, "false_alarm"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, word):
    with pytest.raises(ValueError, match=f"audit_sensitivity: expected {word} to be"):
        audit_sensitivity(build, *data(32), **arguments)


def test_models_that_cannot_be_audited_are_refused():
    x, y = data(32)
    with pytest.raises(ValueError, match="a model with noise. Received: noise_multiplier=0"):
        audit_sensitivity(lambda: build(noise_multiplier=0.0), x, y)
    with pytest.raises(ValueError, match="noise_seed=None. Audit a copy"):
        audit_sensitivity(lambda: build(noise_seed=None), x, y)
    with pytest.raises(ValueError, match="expected a suspect in some batch"):
        audit_sensitivity(build, x, y, suspects=[99], **FEW)
    used = build()
    used.ledger.counter("any event").assign(3)
    with pytest.raises(ValueError, match="with 3 steps in its ledger"):
        audit_sensitivity(lambda: used, x, y)


# -- the callback --------------------------------------------------------------------------------------------------


def fit(built, callback, examples, **kwargs):
    x, y = examples
    built.fit(x, y, verbose=0, callbacks=[callback], **kwargs)


def test_callback_checks_a_sound_training(examples, caplog):
    callback = SensitivityAudit(tuple(z[:3] for z in examples), every=3)
    with caplog.at_level(logging.WARNING):
        fit(build(), callback, examples)
    assert callback.checks == 2  # before steps 0 and 3 of 4
    assert set(callback.worst) == {"conv/kernel", "dense/kernel"}
    assert all(0.7 < ratio <= 1.0 for ratio in callback.worst.values())
    assert 0.8 < callback.worst_joint <= 1.0
    assert "SensitivityAudit reads gradient norms of single examples" in caplog.text


@pytest.mark.parametrize("cls", [keras.Sequential, keras.Model])
def test_callback_stops_a_broken_training(cls, examples):
    built = build(FAULTS["convolution bound times 1/3"], **({"cls": DP_Model} if cls is keras.Model else {}))
    assert isinstance(built, cls)
    with pytest.raises(AuditError, match=r"one example's gradient of conv/kernel is 2\.6\d+ times its bound"):
        fit(built, SensitivityAudit(tuple(z[:2] for z in examples)), examples)
    assert built.ledger.steps == 0  # before the first step


class GrowingLambda(keras.callbacks.Callback):
    """Changes a layer in the middle of an eager training, after its bounds were computed."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.get_layer("scale").function = lambda t: 10.0 * t


def test_callback_sees_a_layer_that_is_changed_while_training_runs():
    lambda_layer = DP_Lambda(lambda t: t, lipschitz_constant=1.0, name="scale")
    guard, *_, flatten, dense = doubles.layer_list()
    built = doubles.model([guard, flatten, lambda_layer, dense], n=32)
    built.compile(keras.optimizers.SGD(0.1), built.loss_function, run_eagerly=True)
    callback = SensitivityAudit(data(4), every=1)
    with pytest.raises(AuditError, match="dense/kernel is .* times its bound"):
        built.fit(*data(32), epochs=2, verbose=0, callbacks=[GrowingLambda(), callback])
    assert built.ledger.steps == 4  # of the first epoch


def test_callback_logs_on_request(examples, caplog):
    callback = SensitivityAudit(tuple(z[:1] for z in examples), every=100, on_failure="log")
    built = build_whole_image(fault=FAULTS["bounds divided by the batch size"])
    fit(built, callback, examples)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert re.fullmatch(
        r"SensitivityAudit: one example's gradient of conv/kernel is 7\.99\d* times its bound", errors[0]
    )
    assert "one example moves a step by 7.99" in errors[1]
    assert callback.checks == 1 and built.ledger.steps == 4
    assert callback.worst["conv/kernel"] == pytest.approx(8.0, rel=2e-3)  # a bound has 1e-3 of slack


@pytest.mark.full
def test_callback_counts_steps_where_the_ledger_counts_passes(examples):
    """A shuffled pass is counted once, at its first step."""
    built = build_whole_image()
    callback = SensitivityAudit(tuple(z[:1] for z in examples), every=2)
    built.fit(shuffled_batches(*examples, 8), epochs=2, verbose=0, callbacks=[callback])
    assert built.ledger.steps == 2 and callback.checks == 4


@pytest.mark.parametrize(
    "arguments, word", [({"every": 0}, "every"), ({"on_failure": "stop"}, "on_failure to be one of 'raise', 'log'")]
)
def test_callback_arguments_out_of_range_are_refused(arguments, word):
    with pytest.raises(ValueError, match=f"SensitivityAudit: expected {word}"):
        SensitivityAudit(data(4), **arguments)


@pytest.mark.full
def test_callback_does_not_see_the_noise(examples):
    """So its documentation says; `audit_sensitivity` does."""
    built = build_whole_image(fault=FAULTS["noise halved"])
    callback = SensitivityAudit(tuple(z[:1] for z in examples), every=100)
    fit(built, callback, examples)
    assert callback.worst_joint <= 1.0


def test_faults_are_faults():
    """The doubles do what they are named for, so that what an audit misses it misses."""
    bounds = {name: module.declared_scales(build(fault)).bounds for name, fault in {"": SOUND, **FAULTS}.items()}
    np.testing.assert_allclose(bounds["noise halved"], bounds[""])
    np.testing.assert_allclose(bounds["bounds divided by the batch size"], bounds[""] / 8)
    np.testing.assert_allclose(bounds["convolution bound times 1/3"], bounds[""] / [3, 1])
