"""Callbacks: the accountant that prints and caps epsilon, and checkpoints that cannot forget what was spent."""

import logging
from typing import Any, cast

import keras

from deel.lipdp import _checks, _reporting
from deel.lipdp._private_model import PrivateModel
from deel.lipdp._types import LogFn
from deel.lipdp.accounting import get_accountant, max_steps
from deel.lipdp.accounting._types import AnyAccountant, Event
from deel.lipdp.checkpoints import DP_BackupAndRestore
from deel.lipdp.privacy import get_eps_delta

__all__ = ["DP_Accountant", "DP_BackupAndRestore"]

_logger = logging.getLogger(__name__)


class DP_Accountant(keras.callbacks.Callback):
    """Prices the model's ledger at the end of each epoch and puts `epsilon` and `delta` into the Keras logs.

    The progress bar, `History`, and every callback listed after this one (CSVLogger, TensorBoard, wandb, ...) see them.
    `EarlyStopping` on `epsilon` is no budget: it stops when a value no longer improves, and epsilon only grows.
    `epsilon_max` is one.

    Args:
        log_fn: `"all"`, `"logging"`, `"wandb"` or a callable that gets a dict with `epsilon`, `delta` and `epoch`.
            `"all"` logs to `logging` and, if a wandb run is active, to wandb.
        accountant: `"rdp"` (autodp) or `"pld"` (dp-accounting, tighter).
        epsilon_max: float or None. Training stops before the step that would exceed it, also inside
            `steps_per_execution`, and a warning says so, if there were more steps to come.

    Raises:
        TypeError, ValueError: for arguments out of range.
        TypeError: where it is handed to a model that is not private.
        ImportError: for `log_fn="wandb"` without wandb installed.
    """

    def __init__(
        self, log_fn: LogFn = "all", accountant: AnyAccountant = "rdp", epsilon_max: float | None = None
    ) -> None:
        super().__init__()
        self._log = _reporting.resolve_log_fn(log_fn)
        self.accountant = get_accountant(accountant)  # one object: it keeps the curve of each event
        if epsilon_max is not None:
            epsilon_max = _checks.number("DP_Accountant", "epsilon_max", epsilon_max, above=0.0)
        self.epsilon_max = epsilon_max
        self._priced: tuple[Any, ...] | None = None  # what was spent when `update` last searched

    def set_model(self, model: keras.Model) -> None:
        if not isinstance(model, PrivateModel):
            raise TypeError(
                _checks.message(
                    "DP_Accountant",
                    "a DP_Sequential or a DP_Model",
                    f"{type(model).__name__} '{model.name}'",
                    "This model adds no noise, whatever its layers: make it a DP_Sequential.",
                )
            )
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._limited, self._priced = False, None
        if self.epsilon_max is not None:
            # Now, since a callback listed before this one may release something at the beginning of the first epoch.
            self.model.add_budget(self)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self.epsilon_max is not None and not self._limited:
            self._limited = True
            self._spent_before = self.model.ledger.entries()
            self.update()  # a callback listed after this one may have restored what an earlier run has spent

    def allows(self, event: Event, count: int) -> bool:
        """Whether the budget has room for that many more of `event`: bool."""
        spent = [*self.model.ledger.entries(), (event, count)]
        return not self.model.ledger.seeded and self._price(spent) <= self.epsilon_max

    def update(self) -> None:
        """Limits training to what the budget leaves after all that was counted until now."""
        model = self.model
        spent = (model.event_in_force, model.ledger.entries(), model.ledger.seeded)
        if spent != self._priced:  # the search can take long
            self._priced, self._left = spent, 0  # a known seed voids epsilon: no step fits any budget
            if not model.ledger.seeded:
                self._left = max_steps(
                    model.event_in_force,
                    cast(float, self.epsilon_max),  # a budget has one
                    model.dp_parameters.delta,
                    spent=model.ledger.entries(),
                    accountant=self.accountant,
                )
        model.set_limit(self._left)

    def _price(self, entries):
        return self.accountant.epsilon(entries, self.model.dp_parameters.delta)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.epsilon_max is not None and self.model.reached_limit():
            self.model.stop_training = True
            # Not where a plan ends as its budget does, nor where the budget of another accountant ended it.
            if self._ends_early(batch) and not self.allows(self.model.event_in_force, 1):
                self._say_what_was_spent()

    def _ends_early(self, batch):
        params = self.params or {}  # a CallbackList of the caller's own may have none
        epochs, steps = params.get("epochs"), params.get("steps")
        is_last = epochs is not None and self._epoch + 1 >= epochs
        return not is_last or steps is None or batch + 1 < steps

    def _say_what_was_spent(self):
        entries = self.model.ledger.entries()
        budget, spent = f"the budget of epsilon {self.epsilon_max:g}", self._price(entries)
        if entries != self._spent_before:
            _logger.warning(
                "DP_Accountant: %s is spent in epoch %d (epsilon %.6g): training ends. Calibrate the noise for all "
                "epochs with the accountant that stops them, or raise epsilon_max.",
                budget,
                self._epoch + 1,
                spent,
            )
            return
        remedy = "Start with a new model, raise epsilon_max, or use more noise"
        if self.model.ledger.seeded:
            remedy = "Leave the seeds out: whoever knows one can subtract the noise"
        _logger.warning(
            "DP_Accountant: no step fits %s (epsilon %.6g is spent already): training ends, and the loss and the "
            "metrics of this epoch are those of no example. %s.",
            budget,
            spent,
            remedy,
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        epsilon, delta = get_eps_delta(self.model, accountant=self.accountant)
        if logs is not None:
            logs.update(epsilon=epsilon, delta=delta)
        self._log({"epsilon": epsilon, "delta": delta, "epoch": epoch + 1})
