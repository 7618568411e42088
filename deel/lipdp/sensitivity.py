"""How long a model can be trained within a budget."""

from collections.abc import Iterable

import keras

from deel.lipdp import _checks
from deel.lipdp.accounting import max_steps
from deel.lipdp.accounting._types import AnyAccountant
from deel.lipdp.privacy import plan_is_seeded, planned_entries, planned_releases

__all__ = ["get_max_epochs"]


def get_max_epochs(
    epsilon_max: float,
    model: keras.Model,
    epochs_max: int = 1024,
    accountant: AnyAccountant = "rdp",
    *,
    callbacks: Iterable[keras.callbacks.Callback] = (),
) -> int:
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
    callbacks = list(callbacks)
    if plan_is_seeded(model, callbacks):
        return 0
    [(event, per_epoch), *_] = planned_entries(model, 1)

    def rest(epochs):
        """What so many epochs release besides one count of the event for each."""
        return [(event, epochs * (per_epoch - 1)), *planned_releases(epochs, callbacks)]

    # A search over epochs, not steps: the plan of the answer and that of one epoch more were themselves priced.
    return max_steps(
        event,
        epsilon_max,
        model.dp_parameters.delta,
        spent=model.ledger.entries(),
        accountant=accountant,
        limit=epochs_max,
        releases=rest,
    )
