"""Callbacks: the accountant that prints and caps epsilon, and checkpoints that cannot forget what was spent."""

import pathlib

import keras

from deel.lipdp import _checks, _reporting
from deel.lipdp.accounting import get_accountant, max_steps
from deel.lipdp.privacy import get_eps_delta

__all__ = ["DP_Accountant", "DP_BackupAndRestore"]


class DP_Accountant(keras.callbacks.Callback):
    """Prices the model's ledger at the end of each epoch and puts `epsilon` and `delta` into the Keras logs.

    The progress bar, `History`, and every callback listed after this one (CSVLogger, TensorBoard, wandb, ...) see them.

    Args:
        log_fn: `"all"`, `"logging"`, `"wandb"` or a callable that gets a dict with `epsilon`, `delta` and `epoch`.
            `"all"` logs to `logging` and, if a wandb run is active, to wandb.
        accountant: `"rdp"` (autodp) or `"pld"` (dp-accounting, tighter).
        epsilon_max: float or None. Training stops before the step that would exceed it, also inside
            `steps_per_execution`.

    Raises:
        TypeError, ValueError: for arguments out of range.
        ImportError: for `log_fn="wandb"` without wandb installed.
    """

    def __init__(self, log_fn="all", accountant="rdp", epsilon_max=None):
        super().__init__()
        self._log = _reporting.resolve_log_fn(log_fn)
        self.accountant = get_accountant(accountant)  # one object: it keeps the curve of each event
        if epsilon_max is not None:
            epsilon_max = _checks.number("DP_Accountant", "epsilon_max", epsilon_max, above=0.0)
        self.epsilon_max = epsilon_max

    def on_train_begin(self, logs=None):
        self._limited = False

    def on_epoch_begin(self, epoch, logs=None):
        # Not when training begins: a callback after this one may then still restore what an earlier run has spent.
        if self.epsilon_max is None or self._limited:
            return
        self._limited = True
        steps = 0  # a known seed voids epsilon: no step fits any budget
        if not self.model.ledger.seeded:
            steps = max_steps(
                self.model.event_in_force,
                self.epsilon_max,
                self.model.dp_parameters.delta,
                spent=self.model.ledger.entries(),
                accountant=self.accountant,
            )
        self.model.set_step_limit(steps)

    def on_train_batch_end(self, batch, logs=None):
        if self.epsilon_max is not None and self.model.reached_step_limit():
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        epsilon, delta = get_eps_delta(self.model, accountant=self.accountant)
        if logs is not None:
            logs.update(epsilon=epsilon, delta=delta)
        self._log({"epsilon": epsilon, "delta": delta, "epoch": epoch + 1})

    def on_train_end(self, logs=None):
        self.model.set_step_limit(None)


class DP_BackupAndRestore(keras.callbacks.BackupAndRestore):
    """`keras.callbacks.BackupAndRestore` that never forgets a step: a killed run resumes with all it spent counted.

    A checkpoint knows the steps up to its own moment only; those after it were released all the same. Before any step
    is taken, a count that covers it is on disk in `ledger.json` beside the checkpoint, `ahead` steps at a time. On
    resume the larger count wins, so a kill costs at most `ahead` steps of budget that were counted and not taken.

    Args:
        backup_dir: str or path, folder of the checkpoint. It is deleted when training ends, as in Keras.
        save_freq: `"epoch"` or int, as in Keras.
        ahead: int or None, steps reserved by one write. None: one epoch for `"epoch"`, else `save_freq`.
        **kwargs: `double_checkpoint`, `delete_checkpoint`, as in Keras.

    Raises:
        ValueError: on resume, if `ledger.json` is damaged.
    """

    def __init__(self, backup_dir, save_freq="epoch", ahead=None, **kwargs):
        super().__init__(str(backup_dir), save_freq=save_freq, **kwargs)
        self._ledger_path = pathlib.Path(backup_dir) / "ledger.json"
        if ahead is not None:
            ahead = _checks.integer("DP_BackupAndRestore", "ahead", ahead)
        self._ahead = ahead
        self._reserved = 0

    def on_train_begin(self, logs=None):
        self.model.ledger.merge_file(self._ledger_path)
        self._ledger_path.parent.mkdir(parents=True, exist_ok=True)
        self._reserved = 0
        super().on_train_begin(logs)

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch, logs)
        model = self.model
        taken = int(model.ledger.counter(model.event_in_force).numpy())
        if taken + model.steps_per_execution > self._reserved:
            ahead = self._ahead or (
                model.dataset_metadata.nb_steps_per_epochs if self.save_freq == "epoch" else self.save_freq
            )
            ahead = max(ahead, model.steps_per_execution)
            model.ledger.write(self._ledger_path, ahead, model.event_in_force)
            self._reserved = taken + ahead
