"""How long a model can be trained within a budget."""

from deel.lipdp import _checks
from deel.lipdp.accounting import max_steps
from deel.lipdp.privacy import planned_event

__all__ = ["get_max_epochs"]


def get_max_epochs(epsilon_max, model, epochs_max=1024, accountant="rdp"):
    """Largest number of further epochs that keep a model within a budget.

    Args:
        epsilon_max: float > 0, the budget; delta is the model's.
        model: a built and compiled `DP_Sequential` or `DP_Model`. What its ledger has counted is spent already.
        epochs_max: int, the answer is not larger than this.
        accountant: `"rdp"` or `"pld"`.

    Returns:
        int, exact: one more epoch would exceed the budget (or `epochs_max`). 0 if none fits, also where noise or
        batches
        are seeded: epsilon is then infinite.
    """
    epsilon_max = _checks.number("get_max_epochs", "epsilon_max", epsilon_max, above=0.0)
    epochs_max = _checks.integer("get_max_epochs", "epochs_max", epochs_max)
    if model.dp_parameters.noise_seed is not None or model.ledger.seeded:
        return 0
    steps_per_epoch = model.dataset_metadata.nb_steps_per_epochs
    steps = max_steps(
        planned_event(model),
        epsilon_max,
        model.dp_parameters.delta,
        spent=model.ledger.entries(),
        accountant=accountant,
        limit=epochs_max * steps_per_epoch,
    )
    return steps // steps_per_epoch
