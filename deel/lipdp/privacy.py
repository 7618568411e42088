"""From a model to its epsilon: what its ledger has counted, or what a plan would cost."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras

from deel.lipdp import _checks
from deel.lipdp.accounting import (
    GaussianStep,
    PoissonSampling,
    ShuffledSampling,
    UndeclaredSampling,
    compute_epsilon,
)
from deel.lipdp.accounting._types import AnyAccountant, Event, Relation
from deel.lipdp.noise import joint_noise_multiplier
from deel.lipdp.parameters import DatasetMetadata

__all__ = ["get_eps_delta", "plan_is_seeded", "planned_entries", "planned_releases"]

_SAMPLINGS: dict[str | None, Callable[[DatasetMetadata], Any]] = {
    "poisson": lambda metadata: PoissonSampling(metadata.batch_size / metadata.nb_samples_train),
    "shuffled": lambda metadata: ShuffledSampling(),
    None: lambda metadata: UndeclaredSampling(),
}


def planned_entries(
    model: keras.Model, epochs: int, callbacks: Iterable[keras.callbacks.Callback] = ()
) -> list[tuple[Event, int]]:
    """What a `fit` of a model would put into its ledger, under the sampling its metadata declare.

    Args:
        model: a built and compiled `DP_Sequential` or `DP_Model`.
        epochs: int >= 0.
        callbacks: iterable of callbacks; those with `planned_releases(epochs)` (adaptive clipping) add theirs.

    Returns:
        list of `(event, count)`, the training steps (or passes) first.
    """
    metadata = model.dataset_metadata
    sampling = _SAMPLINGS[metadata.sampling](metadata)
    count = epochs * (metadata.nb_steps_per_epochs if sampling.unit == "step" else 1)
    step = (GaussianStep(sampling, joint_noise_multiplier(model)), count)
    return [step, *planned_releases(epochs, callbacks)]


def planned_releases(epochs: int, callbacks: Iterable[keras.callbacks.Callback]) -> list[tuple[Event, int]]:
    """list of `(event, count)`: what callbacks release in so many epochs. Arguments: see `planned_entries`."""
    plans = (callback.planned_releases for callback in callbacks if hasattr(callback, "planned_releases"))
    return [release for plan in plans for release in plan(epochs)]


def plan_is_seeded(model: keras.Model, callbacks: Iterable[keras.callbacks.Callback] = ()) -> bool:
    """Whether noise or batches come from a seed that is not secret: bool. It voids epsilon.

    Args:
        model, callbacks: see `planned_entries`. Of the callbacks those with an attribute `seeded` are asked.
    """
    known = model.dp_parameters.noise_seed is not None or model.ledger.seeded
    return known or any(getattr(callback, "seeded", False) for callback in callbacks)


def get_eps_delta(
    model: keras.Model,
    epochs: int | None = None,
    accountant: AnyAccountant = "rdp",
    *,
    relation: Relation | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
) -> tuple[float, float]:
    """Privacy spent by a model, or by a plan.

    Args:
        model: a built and compiled `DP_Sequential` or `DP_Model`.
        epochs: int or None. None prices the steps the model's ledger has counted, whatever made them; a number prices
            that many epochs of a fresh model, under the sampling its metadata declare.
        accountant: `"rdp"` (autodp), `"pld"` (dp-accounting, tighter), or an accountant object.
        relation: `"add_or_remove_one"`, `"zero_out"`, `"replace_one"`, or None for that of the samplers: adding or
            removing one example when all was Poisson-sampled, zeroing one example out otherwise
            (`neighboring_relation(model.ledger.entries())`).
        callbacks: with `epochs`, the callbacks of the plan: those that release something are priced too.

    Returns:
        (epsilon, delta). Epsilon is infinite for a noise multiplier of 0 and where noise or batches were seeded.

    Raises:
        TypeError, ValueError: for arguments out of range, and for a relation that cannot be priced.
    """
    parameters = model.dp_parameters
    if epochs is None:
        entries, callbacks = model.ledger.entries(), ()
    else:
        epochs = _checks.integer("get_eps_delta", "epochs", epochs, at_least=0)
        callbacks = list(callbacks)
        entries = planned_entries(model, epochs, callbacks)
    epsilon = compute_epsilon(entries, parameters.delta, accountant, relation)
    void = epsilon > 0 and plan_is_seeded(model, callbacks)
    return (math.inf if void else epsilon), parameters.delta
