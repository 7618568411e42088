"""Events are frozen, checked, hashable values that survive a trip through JSON."""

import dataclasses
import json
import math

import pytest

from deel.lipdp.accounting import (
    GaussianStep,
    PoissonSampling,
    UndeclaredSampling,
    event_from_config,
    event_to_config,
)

EVENTS = [
    GaussianStep(PoissonSampling(250 / 60000), 1.3),
    GaussianStep(PoissonSampling(1), 2),
    GaussianStep(UndeclaredSampling(), 0.0),
    GaussianStep(UndeclaredSampling(), 0.1 + 0.2),
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


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_probability_out_of_range(probability):
    with pytest.raises(ValueError, match="PoissonSampling.*sampling_probability"):
        PoissonSampling(probability)


@pytest.mark.parametrize("multiplier", [-1.0, math.nan, math.inf])
def test_multiplier_out_of_range(multiplier):
    with pytest.raises(ValueError, match="GaussianStep.*noise_multiplier"):
        GaussianStep(UndeclaredSampling(), multiplier)


@pytest.mark.parametrize("wrong", ["0.1", None, True])
def test_wrong_types(wrong):
    with pytest.raises(TypeError, match="sampling_probability"):
        PoissonSampling(wrong)
    with pytest.raises(TypeError, match="noise_multiplier"):
        GaussianStep(UndeclaredSampling(), wrong)
    with pytest.raises(TypeError, match="PoissonSampling, UndeclaredSampling"):
        GaussianStep(wrong, 1.0)


def test_unknown_configs_are_refused():
    config = event_to_config(EVENTS[0])
    with pytest.raises(ValueError, match="laplace_step"):
        event_from_config({**config, "event": "laplace_step"})
    with pytest.raises(ValueError, match="'poisson', 'undeclared'"):
        event_from_config({**config, "sampling": {"name": "shuffled"}})
    with pytest.raises(ValueError, match="event"):
        event_from_config({})
