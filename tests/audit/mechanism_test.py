"""The direct audit of the mechanism: sound models pass, broken ones are found, and its errors are counted right."""

import math

import numpy as np
import pytest
from doubles import data
from faulty import DELTA, FAULTS, LABELS, SOUND, build

from deel.lipdp.accounting import GaussianStep, UndeclaredSampling
from deel.lipdp.audit import AuditError, audit_mechanism, gaussian_epsilon, hard_examples, mechanism_power
from deel.lipdp.audit import mechanism as module
from deel.lipdp.audit._statistics import distance_lower_bound

TRIALS = 150
MULTIPLIER = 0.5


@pytest.fixture(scope="module")
def examples():
    return hard_examples(build(), LABELS, 8, tries=60)


def audit(fault, examples, **kwargs):
    arguments = {"trials": TRIALS, **kwargs}
    return audit_mechanism(lambda: build(fault, noise_multiplier=MULTIPLIER), *examples, **arguments)


@pytest.mark.full
def test_sound_model_passes(examples):
    report = audit(SOUND, examples).check()
    assert report.declared_distance == 2.0  # one over the noise multiplier
    assert report.declared_epsilon == gaussian_epsilon(2.0, DELTA)
    assert 0.8 < report.attained <= 1.0
    # The bound is that of the errors, and the errors are those of two Gaussians 2 * attained apart: 16 to 20% of 150,
    # within 6 standard deviations.
    expected = float(distance_lower_bound(TRIALS, report.false_positives, report.false_negatives, 1e-3))
    assert report.distance_lower == expected
    assert report.epsilon_lower == gaussian_epsilon(expected, DELTA)
    assert all(0 < errors < 60 for errors in (report.false_positives, report.false_negatives))
    assert (report.trials, report.steps, report.delta, report.false_alarm) == (TRIALS, 1, DELTA, 1e-3)
    assert "for 1 step(s) taken for certain (300 trainings" in report.verdict


@pytest.mark.parametrize(
    "fault, factor",
    [
        ("noise halved", 2.0),
        pytest.param("bounds divided by the batch size", 8.0, marks=pytest.mark.full),
        pytest.param("convolution bound times 1/3", 2.3, marks=pytest.mark.full),
    ],
)
def test_broken_model_is_found(fault, factor, examples):
    # The seed finds it once and for all; most others would too, as its power says.
    assert mechanism_power(0.85 * factor * 2.0, 2.0, TRIALS) > 0.7
    report = audit(FAULTS[fault], examples)
    with pytest.raises(AuditError, match="FAIL: epsilon at least .* the ledger says 2"):
        report.check()
    assert report.distance_lower > report.declared_distance


@pytest.mark.full
def test_several_steps_are_priced_together(examples):
    report = audit(SOUND, examples, steps=3, trials=30).check()
    assert report.declared_distance == pytest.approx(2.0 * math.sqrt(3))
    assert 0.5 < report.attained <= 1.0 and report.steps == 3


def test_steps_that_are_not_counted_are_found(monkeypatch):
    """Of trainings that the ledger counts a ninth of; the trainings themselves are played by two Gaussians."""
    rng = np.random.default_rng(0)
    event = GaussianStep(UndeclaredSampling(), MULTIPLIER)

    def train(recorder, gradients_of, canary, present, steps, gradient):
        recorder.model.ledger.counter(event).assign_add(int(rng.random() < 1 / 9))
        return 4.0 * present + 2.0 * rng.normal(), 4.0  # 2 stddevs apart, as multiplier 0.5 allows for one step

    monkeypatch.setattr(module, "_train", train)
    report = audit(SOUND, data(2), trials=300)
    assert report.declared_distance < 1.0
    assert not report.passed


@pytest.mark.parametrize(
    "arguments, word", [({"steps": 0}, "steps"), ({"trials": 0}, "trials"), ({"false_alarm": 1.0}, "false_alarm")]
)
def test_arguments_out_of_range_are_refused(arguments, word):
    with pytest.raises(ValueError, match=f"audit_mechanism: expected {word} to be"):
        audit_mechanism(build, *data(4), **arguments)


def test_models_that_cannot_be_audited_are_refused():
    with pytest.raises(ValueError, match="audit_mechanism: expected a model with noise"):
        audit_mechanism(lambda: build(noise_multiplier=0.0), *data(4))
