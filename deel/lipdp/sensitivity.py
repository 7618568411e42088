"""How long a model can be trained within a budget."""

import math

from deel.lipdp import _checks
from deel.lipdp.accounting import max_steps
from deel.lipdp.privacy import planned_entries

__all__ = ["get_max_epochs"]


def get_max_epochs(epsilon_max, model, epochs_max=1024, accountant="rdp", *, callbacks=()):
    """Largest number of further epochs that keep a model within a budget.

    Args:
        epsilon_max: float > 0, the budget; delta is the model's.
        model: a built and compiled `DP_Sequential` or `DP_Model`. What its ledger has counted is spent already.
        epochs_max: int, the answer is not larger than this.
        accountant: `"rdp"`, `"pld"`, or an accountant object.
        callbacks: the callbacks that `fit` will get: those that release something (adaptive clipping) are priced too.

    Returns:
        int, exact: one more epoch would exceed the budget (or `epochs_max`). 0 if none fits, also where noise or
        batches are seeded: epsilon is then infinite.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """
    epsilon_max = _checks.number("get_max_epochs", "epsilon_max", epsilon_max, above=0.0)
    epochs_max = _checks.integer("get_max_epochs", "epochs_max", epochs_max)
    if model.dp_parameters.noise_seed is not None or model.ledger.seeded:
        return 0
    [(event, per_epoch), *_] = planned_entries(model, 1)
    count = max_steps(
        event,
        epsilon_max,
        model.dp_parameters.delta,
        spent=model.ledger.entries(),
        accountant=accountant,
        limit=epochs_max * per_epoch,
        # All releases of an epoch that was begun: they come before its steps.
        releases=lambda count: planned_entries(model, math.ceil(count / per_epoch), callbacks)[1:],
    )
    return count // per_epoch
