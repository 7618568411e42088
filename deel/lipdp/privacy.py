"""From a model to its epsilon: what its ledger has counted, or what a plan would cost."""

import math

from deel.lipdp import _checks
from deel.lipdp.accounting import GaussianStep, PoissonSampling, UndeclaredSampling, compute_epsilon
from deel.lipdp.noise import joint_noise_multiplier

__all__ = ["get_eps_delta", "planned_event"]


def planned_event(model):
    """The event of one training step of a model, under the sampling its metadata declare."""
    metadata = model.dataset_metadata
    if metadata.sampling == "poisson":
        sampling = PoissonSampling(metadata.batch_size / metadata.nb_samples_train)
    else:
        sampling = UndeclaredSampling()
    return GaussianStep(sampling, joint_noise_multiplier(model))


def get_eps_delta(model, epochs=None, accountant="rdp"):
    """Privacy spent by a model, or by a plan.

    Args:
        model: a built and compiled `DP_Sequential` or `DP_Model`.
        epochs: int or None. None prices the steps the model's ledger has counted, whatever made them; a number prices
            that many epochs of a fresh model, under the sampling its metadata declare.
        accountant: `"rdp"` (autodp), `"pld"` (dp-accounting, tighter), or an accountant object.

    Returns:
        (epsilon, delta). Epsilon is infinite for a noise multiplier of 0 and where noise or batches were seeded. It
        holds for adding or removing one example when all steps were Poisson-sampled, for zeroing one example out
        otherwise (`neighboring_relation(model.ledger.entries())`).

    Raises:
        TypeError, ValueError: for arguments out of range.
    """
    parameters = model.dp_parameters
    if epochs is None:
        entries = model.ledger.entries()
    else:
        epochs = _checks.integer("get_eps_delta", "epochs", epochs, at_least=0)
        steps = epochs * model.dataset_metadata.nb_steps_per_epochs
        entries = [(planned_event(model), steps)]
    epsilon = compute_epsilon(entries, parameters.delta, accountant)
    seeded = parameters.noise_seed is not None or model.ledger.seeded
    return (math.inf if seeded and epsilon > 0 else epsilon), parameters.delta
