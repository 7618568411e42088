"""The one-run audit: sound models pass, broken ones are found, and what it declares is what the ledger counted."""

import numpy as np
import pytest
from doubles import data
from faulty import DELTA, FAULTS, LABELS, SOUND, build_whole_image

from deel.lipdp.accounting import GaussianStep, PoissonSampling, compute_epsilon
from deel.lipdp.audit import (
    AuditError,
    audit_one_run,
    epsilon_lower_bound,
    gaussian_epsilon,
    hard_examples,
    one_run_power,
)
from deel.lipdp.audit import one_run as module
from deel.lipdp.audit._recording import ExampleGradients

CANARIES, RUNS = 32, 200


@pytest.fixture(scope="module")
def canaries():
    return hard_examples(build(), LABELS, CANARIES, distinct=True)


def build(fault=SOUND):
    return build_whole_image(fault=fault, n=CANARIES, batch_size=CANARIES)


def audit(fault, canaries, **kwargs):
    return audit_one_run(lambda: build(fault), *canaries, **{"runs": RUNS, "seed": 0, **kwargs})


@pytest.mark.full
def test_sound_model_passes(canaries):
    report = audit(SOUND, canaries).check()
    # Everyone is in every batch, so the price is that of a Gaussian of multiplier 2; PLD rounds it up.
    exact = gaussian_epsilon(0.5, DELTA)
    assert exact <= report.declared_epsilon <= 1.001 * exact
    assert (report.canaries, report.guesses) == (CANARIES * RUNS, CANARIES * RUNS // 10)
    assert (report.steps, report.runs, report.delta, report.confidence) == (1, RUNS, DELTA, 0.95)
    expected = epsilon_lower_bound(report.canaries, report.guesses, report.correct, DELTA)
    assert report.epsilon_lower == expected > 0.5  # it sees something: chance would give 0
    assert f"({report.correct} of 640 guesses right, 6400 canaries, 1 steps)" in report.verdict


@pytest.mark.parametrize(
    "fault",
    [
        "noise halved",
        pytest.param("bounds divided by the batch size", marks=pytest.mark.full),
        pytest.param("convolution bound times 1/3", marks=pytest.mark.full),
    ],
)
def test_broken_model_is_found(fault, canaries):
    # All faults at least double the distance; the seed finds them once and for all, most others would too.
    gradients = ExampleGradients(build())(*canaries)
    total = CANARIES * RUNS
    setting = {"delta": DELTA, "canaries": total, "guesses": total // 10, "products": gradients @ gradients.T}
    declared = gaussian_epsilon(0.5, DELTA)
    assert one_run_power(gaussian_epsilon(1.0, DELTA), declared, trials=100, **setting) > 0.9
    assert one_run_power(declared, declared, trials=100, **setting) <= 0.05
    report = audit(FAULTS[fault], canaries)
    with pytest.raises(AuditError, match=r"epsilon is at least \S+, the ledger says 1.698"):
        report.check()
    assert report.epsilon_lower > report.declared_epsilon


@pytest.mark.full
def test_poisson_batches_of_several_steps_are_priced_as_such(canaries):
    def poisson():
        return build_whole_image(n=CANARIES, batch_size=8)

    report = audit_one_run(poisson, *canaries, steps=3, runs=20, seed=0).check()
    event = GaussianStep(PoissonSampling(8 / CANARIES), 2.0)
    assert report.declared_epsilon == pytest.approx(compute_epsilon([(event, 3)], DELTA, "pld"))
    assert report.steps == 3


def test_guesses_are_compared_with_the_coins(canaries, monkeypatch):
    """With scores that are the coins themselves, all guesses are right, whatever the model."""

    def told(recorder, x, y, coins, rows_of_batches, of_canaries):
        list(rows_of_batches)
        recorder.model.ledger.counter(GaussianStep(PoissonSampling(1.0), 2.0)).assign_add(1)
        return coins - 0.5

    monkeypatch.setattr(module, "_train", told)
    report = audit(SOUND, canaries, runs=10, guesses=40)
    assert (report.correct, report.guesses, report.canaries) == (40, 40, 320)
    assert not report.passed
    assert audit(SOUND, canaries, runs=10, guesses=40, delta=0.2).epsilon_lower == 0.0


def test_coins_are_fair_and_differ_between_runs(canaries, monkeypatch):
    tossed = []

    def toss(recorder, x, y, coins, *rest):
        tossed.append(coins)
        return np.zeros(len(coins))

    monkeypatch.setattr(module, "_train", toss)
    audit(SOUND, canaries, runs=200, seed=None)
    tossed = np.array(tossed)
    assert set(np.unique(tossed)) == {0, 1}
    assert abs(tossed.mean() - 0.5) < 0.5 * 6 / np.sqrt(tossed.size)  # 6 standard deviations: once in 10^8
    assert len({tuple(coins) for coins in tossed}) == 200


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"steps": 0}, "steps"),
        ({"runs": 0}, "runs"),
        ({"guesses": 1}, "guesses"),
        ({"guesses": 5}, "guesses"),
        ({"delta": 0.0}, "delta"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, word):
    with pytest.raises(ValueError, match=f"audit_one_run: expected {word} to be"):
        audit_one_run(build, *data(4), **arguments)
