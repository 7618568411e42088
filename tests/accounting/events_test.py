"""Events are frozen, checked, hashable values that survive a trip through JSON."""

import dataclasses
import json
import math

import pytest

from deel.lipdp.accounting import (
    GaussianStep,
    LaplaceStep,
    PoissonSampling,
    ShuffledSampling,
    UndeclaredSampling,
    event_from_config,
    event_to_config,
)

EVENTS = [
    GaussianStep(PoissonSampling(250 / 60000), 1.3),
    GaussianStep(PoissonSampling(1), 2),
    GaussianStep(UndeclaredSampling(), 0.0),
    GaussianStep(UndeclaredSampling(), 0.1 + 0.2),
    GaussianStep(ShuffledSampling(), 1.5),
    LaplaceStep(PoissonSampling(0.01), 5.0),
    LaplaceStep(UndeclaredSampling(), 0.0),
]


@pytest.mark.parametrize("event", EVENTS)
def test_config_round_trip_through_json(event):
    config = json.loads(json.dumps(event_to_config(event)))
    assert event_from_config(config) == event
    assert config["neighboring_relation"] == event.neighboring_relation


@pytest.mark.parametrize("event", EVENTS)
def test_frozen_and_equal_by_value(event):
    assert len({event, dataclasses.replace(event)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.noise_multiplier = 5.0


def test_neighboring_relation_follows_the_sampling():
    assert GaussianStep(PoissonSampling(0.1), 1.0).neighboring_relation == "add_or_remove_one"
    assert GaussianStep(UndeclaredSampling(), 1.0).neighboring_relation == "zero_out"
    assert GaussianStep(ShuffledSampling(), 1.0).neighboring_relation == "zero_out"
    assert LaplaceStep(PoissonSampling(0.1), 1.0).neighboring_relation == "add_or_remove_one"


def test_what_one_count_stands_for():
    assert [cls.unit for cls in (PoissonSampling, ShuffledSampling, UndeclaredSampling)] == ["step", "pass", "step"]


def test_same_numbers_of_another_mechanism_are_another_event():
    events = [LaplaceStep(UndeclaredSampling(), 1.0), GaussianStep(UndeclaredSampling(), 1.0)]
    events.append(GaussianStep(ShuffledSampling(), 1.0))
    assert len(set(events)) == 3
    assert len({json.dumps(event_to_config(event)) for event in events}) == 3


def test_laplace_has_no_price_per_pass():
    with pytest.raises(TypeError, match="LaplaceStep.*PoissonSampling, UndeclaredSampling"):
        LaplaceStep(ShuffledSampling(), 1.0)
    config = {**event_to_config(LaplaceStep(UndeclaredSampling(), 1.0)), "sampling": {"name": "shuffled"}}
    with pytest.raises(TypeError, match="LaplaceStep"):
        event_from_config(config)


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_probability_out_of_range(probability):
    with pytest.raises(ValueError, match="PoissonSampling.*sampling_probability"):
        PoissonSampling(probability)


@pytest.mark.parametrize("multiplier", [-1.0, math.nan, math.inf])
def test_multiplier_out_of_range(multiplier):
    for step in (GaussianStep, LaplaceStep):
        with pytest.raises(ValueError, match=f"{step.__name__}.*noise_multiplier"):
            step(UndeclaredSampling(), multiplier)


@pytest.mark.parametrize("wrong", ["0.1", None, True])
def test_wrong_types(wrong):
    with pytest.raises(TypeError, match="sampling_probability"):
        PoissonSampling(wrong)
    with pytest.raises(TypeError, match="noise_multiplier"):
        GaussianStep(UndeclaredSampling(), wrong)
    with pytest.raises(TypeError, match="PoissonSampling, ShuffledSampling, UndeclaredSampling"):
        GaussianStep(wrong, 1.0)


def test_unknown_configs_are_refused():
    config = event_to_config(EVENTS[0])
    with pytest.raises(ValueError, match="'gaussian_step', 'laplace_step'.*tree_step"):
        event_from_config({**config, "event": "tree_step"})
    with pytest.raises(ValueError, match="'poisson', 'shuffled', 'undeclared'.*balls_in_bins"):
        event_from_config({**config, "sampling": {"name": "balls_in_bins"}})
    with pytest.raises(ValueError, match="event"):
        event_from_config({})
