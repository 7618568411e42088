"""What was released: frozen descriptions that an accountant prices.

The meaning of an event never changes once published; a new mechanism gets a new event. A ledger is a sequence of
pairs `(event, steps)`; see `deel.lipdp.accounting.accountants` for what each costs.
"""

import dataclasses

from deel.lipdp import _checks

__all__ = [
    "GaussianStep",
    "PoissonSampling",
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
class UndeclaredSampling:
    """Batches of unknown origin: no amplification, one full release per step.

    Assumes that an example is at most once in a batch. The neighbouring relation is `zero_out` (one example is replaced
    by a null record that keeps its place): literally adding or removing an example would shift every later batch, for
    which no useful bound exists.
    """

    name = "undeclared"
    neighboring_relation = "zero_out"


@dataclasses.dataclass(frozen=True)
class GaussianStep:
    """One training step: Gaussian noise on a sum over one batch.

    Args:
        sampling: `PoissonSampling` or `UndeclaredSampling`, how the batch was made.
        noise_multiplier: float >= 0, the **joint** one: stddev of the noise over the L2 sensitivity of all the
            gradients of the step together. Zero is legal and costs infinite epsilon.
    """

    sampling: PoissonSampling | UndeclaredSampling
    noise_multiplier: float

    def __post_init__(self):
        if not isinstance(self.sampling, tuple(_SAMPLINGS.values())):
            raise TypeError(
                _checks.message(
                    "GaussianStep",
                    f"sampling to be one of {', '.join(cls.__name__ for cls in _SAMPLINGS.values())}",
                    f"sampling={self.sampling!r}",
                    "Take it from the sampler that makes the batches.",
                )
            )
        multiplier = _checks.number("GaussianStep", "noise_multiplier", self.noise_multiplier, at_least=0.0)
        object.__setattr__(self, "noise_multiplier", multiplier)

    @property
    def neighboring_relation(self):
        """str, which data sets count as neighbours for this event."""
        return self.sampling.neighboring_relation


_SAMPLINGS = {cls.name: cls for cls in (PoissonSampling, UndeclaredSampling)}


def event_to_config(event):
    """Returns a dict of plain values from which `event_from_config` rebuilds the event."""
    return {
        "event": "gaussian_step",
        "noise_multiplier": event.noise_multiplier,
        "neighboring_relation": event.neighboring_relation,
        "sampling": {"name": event.sampling.name, **dataclasses.asdict(event.sampling)},
    }


def event_from_config(config):
    """Rebuilds an event; refuses one it does not know, since it could not be priced.

    Raises:
        ValueError: for an unknown event or sampling.
    """
    if config.get("event") != "gaussian_step":
        raise ValueError(
            _checks.message(
                "event_from_config",
                "event to be 'gaussian_step'",
                f"event={config.get('event')!r}",
                "Update lipdp: a newer version wrote this ledger.",
            )
        )
    arguments = dict(config["sampling"])
    sampling = _checks.choice("event_from_config", "sampling", arguments.pop("name", None), _SAMPLINGS)(**arguments)
    return GaussianStep(sampling, config["noise_multiplier"])
