"""What was released: frozen descriptions that an accountant prices.

The meaning of an event never changes once published; a new mechanism gets a new event. A ledger is a sequence of
pairs `(event, count)`; see `deel.lipdp.accounting.accountants` for what each costs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from deel.lipdp import _checks

__all__ = [
    "GaussianStep",
    "LaplaceStep",
    "PoissonSampling",
    "ShuffledSampling",
    "UndeclaredSampling",
    "event_from_config",
    "event_to_config",
]


@dataclasses.dataclass(frozen=True)
class PoissonSampling:
    """Each example enters each step independently, with one probability.

    Args:
        sampling_probability: float in (0, 1], batch size over number of training examples.
    """

    sampling_probability: float

    name = "poisson"
    neighboring_relation = "add_or_remove_one"
    unit = "step"

    def __post_init__(self):
        probability = _checks.number(
            "PoissonSampling",
            "sampling_probability",
            self.sampling_probability,
            above=0.0,
            at_most=1.0,
            remedy="Divide the batch size by the number of training examples.",
        )
        object.__setattr__(self, "sampling_probability", probability)


@dataclasses.dataclass(frozen=True)
class ShuffledSampling:
    """Fixed-size batches, each example exactly once a pass, in an order that does not depend on the records.

    One count is one pass **started**, whether it was finished or not: the batches of a pass are disjoint, so one
    example moves the sum of one batch only, and the whole pass costs as much as one step. The order may be fixed or
    drawn anew, by a buffer too; sorting by length or by label would make it depend on the records. The neighbouring
    relation is `zero_out` (one example is replaced by a null record that keeps its place).
    """

    name = "shuffled"
    neighboring_relation = "zero_out"
    unit = "pass"


@dataclasses.dataclass(frozen=True)
class UndeclaredSampling:
    """Batches of unknown origin: no amplification, one full release per step.

    Assumes that an example is at most once in a batch. The neighbouring relation is `zero_out` (one example is replaced
    by a null record that keeps its place): literally adding or removing an example would shift every later batch, for
    which no useful bound exists.
    """

    name = "undeclared"
    neighboring_relation = "zero_out"
    unit = "step"


_SAMPLINGS = {cls.name: cls for cls in (PoissonSampling, ShuffledSampling, UndeclaredSampling)}


class _Step:
    """What the events with one sampling and one noise multiplier share."""

    sampling: PoissonSampling | ShuffledSampling | UndeclaredSampling
    noise_multiplier: float

    _samplings = tuple(_SAMPLINGS.values())

    def __post_init__(self):
        who = type(self).__name__
        if not isinstance(self.sampling, self._samplings):
            expected = f"sampling to be one of {', '.join(cls.__name__ for cls in self._samplings)}"
            remedy = "Take it from the sampler that makes the batches."
            raise TypeError(_checks.message(who, expected, f"sampling={self.sampling!r}", remedy))
        multiplier = _checks.number(who, "noise_multiplier", self.noise_multiplier, at_least=0.0)
        object.__setattr__(self, "noise_multiplier", multiplier)

    @property
    def neighboring_relation(self) -> str:
        """str, which data sets count as neighbours for this event unless another relation is asked for."""
        return self.sampling.neighboring_relation


@dataclasses.dataclass(frozen=True)
class GaussianStep(_Step):
    """Gaussian noise on a sum over one batch (or, for shuffled batches, on the sum over each batch of one pass).

    Args:
        sampling: `PoissonSampling`, `ShuffledSampling` or `UndeclaredSampling`, how the batches were made. Its `unit`
            says what one count of the event stands for.
        noise_multiplier: float >= 0, the **joint** one: stddev of the noise over the L2 sensitivity of all the
            gradients of the step together. Zero is legal and costs infinite epsilon.
    """

    sampling: PoissonSampling | ShuffledSampling | UndeclaredSampling
    noise_multiplier: float

    name = "gaussian_step"


@dataclasses.dataclass(frozen=True)
class LaplaceStep(_Step):
    """Laplace noise on one number computed from one batch.

    With `PoissonSampling` the batch must have been drawn **for this event alone**. Two releases from one Poisson batch
    cost more than the two amplified events together, because the second confirms what the first says about who was in
    the batch. A statistic of a batch that a training step uses too is a `LaplaceStep(UndeclaredSampling(), ...)`: given
    whatever the first release showed, it costs at most its unamplified price.

    Args:
        sampling: `PoissonSampling` or `UndeclaredSampling`, how the batch was made.
        noise_multiplier: float >= 0, scale of the noise over the L1 sensitivity: the most that one example, present or
            zeroed out, changes the number. Zero is legal and costs infinite epsilon.
    """

    sampling: PoissonSampling | UndeclaredSampling
    noise_multiplier: float

    name = "laplace_step"
    _samplings = (PoissonSampling, UndeclaredSampling)


_EVENTS = {cls.name: cls for cls in (GaussianStep, LaplaceStep)}


def event_to_config(event: GaussianStep | LaplaceStep) -> dict[str, Any]:
    """Returns a dict of plain values from which `event_from_config` rebuilds the event."""
    return {
        "event": event.name,
        "noise_multiplier": event.noise_multiplier,
        "neighboring_relation": event.neighboring_relation,
        "sampling": {"name": event.sampling.name, **dataclasses.asdict(event.sampling)},
    }


def event_from_config(config: Mapping[str, Any]) -> GaussianStep | LaplaceStep:
    """Rebuilds an event; refuses one it does not know, since it could not be priced.

    Raises:
        ValueError: for an unknown event or sampling.
        TypeError: for a sampling that the event does not accept.
    """
    who, remedy = "event_from_config", "Update lipdp: a newer version wrote this ledger."
    event = _checks.choice(who, "event", config.get("event"), _EVENTS, remedy=remedy)
    arguments = dict(config["sampling"])
    sampling = _checks.choice(who, "sampling", arguments.pop("name", None), _SAMPLINGS, remedy=remedy)
    return event(sampling(**arguments), config["noise_multiplier"])
