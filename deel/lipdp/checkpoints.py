"""Checkpoints of a training that may be killed at any moment: each is whole or absent, and none forgets a release."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any, Literal

import keras

from deel.lipdp import _checks
from deel.lipdp._types import PathLike
from deel.lipdp.ledger import sync_folder, write_durably

__all__ = ["DP_BackupAndRestore"]

_WHO = "DP_BackupAndRestore"
_VERSION = 1


class DP_BackupAndRestore(keras.callbacks.Callback):
    """Saves checkpoints while a model trains, and resumes from the last one in a run that was killed.

    As `keras.callbacks.BackupAndRestore`, and more careful. A kill inside a save leaves the checkpoint before it. The
    steps after the last checkpoint were released too: before any of them, a count that covers it is on disk in
    `ledger.json` beside the checkpoints, `ahead` steps at a time. On resume the larger count wins, so that a kill costs
    at most `ahead` steps of budget that were counted and not taken.

    A resumed run takes the remaining batches of the interrupted epoch; its metrics are those of these batches. With
    seeded noise, seeded or fixed batches, and a data set that starts anew at each epoch and serves one `fit`, it ends
    with the weights of an unbroken run. State of other callbacks is not saved, as in Keras.

    Args:
        backup_dir: str or path, folder of the checkpoints, for one run at a time.
        save_freq: `"epoch"`, or int >= 1, batches from one checkpoint to the next: a kill loses no more than that.
        ahead: int >= 1 or None, steps reserved by one write. None: one epoch for `"epoch"`, else `save_freq`.
        double_checkpoint: bool, whether the checkpoint before the last one is kept too.
        delete_checkpoint: bool, whether all this is deleted when training ends well. What was spent is in the model by
            then: save it.

    Raises:
        TypeError, ValueError: for arguments out of range. When training begins, ValueError for a checkpoint or
            `ledger.json` that is damaged or of another model: nothing is changed then.
        OSError: while training, if a file cannot be written; the checkpoint before is kept.
    """

    def __init__(
        self,
        backup_dir: PathLike,
        save_freq: Literal["epoch"] | int = "epoch",
        ahead: int | None = None,
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        if not str(backup_dir):
            raise ValueError(_checks.message(_WHO, "backup_dir to be a folder", f"{backup_dir!r}", "Name one."))
        if save_freq != "epoch":
            save_freq = _checks.integer(_WHO, "save_freq", save_freq, remedy="Or pass 'epoch'.")
        self.save_freq = save_freq
        self.ahead = None if ahead is None else _checks.integer(_WHO, "ahead", ahead)
        self.delete_checkpoint = bool(delete_checkpoint)
        self._folder = pathlib.Path(backup_dir)
        self._journal = self._folder / "ledger.json"
        self._generations = _Generations(self._folder, keep=2 if double_checkpoint else 1)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        model._initial_epoch = None  # an earlier fit that was interrupted may have left it
        self._first_epoch, self._seen_at_start, self._unsaved = None, 0, 0
        if not model.optimizer.built:  # its state is part of a checkpoint
            model.optimizer.build(model.trainable_variables)
        # All that can be refused is refused before the first change.
        found = self._generations.read_last(model)
        if found and not self._journal.exists():
            raise ValueError(
                _checks.message(
                    _WHO,
                    f"'{self._journal}' beside the checkpoints",
                    "none",
                    "Restore the file: without it what was spent after the last checkpoint cannot be counted.",
                )
            )
        model.ledger.open_journal(self._journal)
        if found:
            weights, place = found
            model.load_weights(weights)
            model._initial_epoch = place["epoch"]
            model.skip_steps(place["batch"])
            if model.sampler is not None:
                model.sampler.seek(place["pass"])
            self._first_epoch = place["epoch"] - place["pass"]
            self._seen_at_start = place["batch"]
        self._generations.clean()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._first_epoch is None:
            self._first_epoch = epoch
        self._epoch = epoch
        self._seen, self._seen_at_start = self._seen_at_start, 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        steps_per_count = model.sampler.steps_per_count if model.sampler is not None else 1
        ahead = self.ahead
        if ahead is None:
            ahead = model.dataset_metadata.nb_steps_per_epochs if self.save_freq == "epoch" else self.save_freq
        model.ledger.reserve(
            model.event_in_force,
            math.ceil(model.steps_per_execution / steps_per_count),
            math.ceil(ahead / steps_per_count),
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        new = batch + 1 - self._seen
        if self.save_freq == "epoch" or new <= 0:  # a batch that the run before has trained on is no progress
            return
        self._seen += new
        self._unsaved += new
        if self._unsaved >= self.save_freq:
            batches = self.params.get("steps")
            ended = batches and self._seen >= batches
            self._save(*((self._epoch + 1, 0) if ended else (self._epoch, self._seen)))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Of an epoch of unknown length, steps_per_execution may have counted more batches than there were.
        self.model.skip_steps(0)
        if self.save_freq == "epoch":
            self._save(epoch + 1, 0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.model._initial_epoch = None
        self.model.ledger.close_journal()
        if self.delete_checkpoint:
            self._generations.delete()
            self._journal.unlink(missing_ok=True)  # last: no checkpoint is ever without its journal
            if not any(self._folder.iterdir()):
                self._folder.rmdir()

    def _save(self, epoch, batch):
        """Saves the model as it is before that batch of that epoch."""
        self._generations.save(self.model, {"epoch": epoch, "batch": batch, "pass": epoch - self._first_epoch})
        self._unsaved = 0


class _Generations:
    """The numbered checkpoints in a folder: `.keras` files, each made visible by a `.json` record written after it.

    Args:
        folder: `pathlib.Path`.
        keep: int, how many to keep.
    """

    def __init__(self, folder, keep):
        self._folder = folder
        self._keep = keep
        self._scratch = folder / "unfinished"

    def _records(self):
        paths = self._folder.glob("checkpoint-[0-9]*.json")
        return sorted(paths, key=lambda path: (len(path.name), path.name))

    def save(self, model, place):
        """Writes the next checkpoint, makes it visible, and only then removes those that are no longer kept."""
        last = self._records()[-1:]
        number = int(last[0].stem.removeprefix("checkpoint-")) + 1 if last else 1
        name = f"checkpoint-{number:06d}.keras"
        weights = self._folder / name
        record = weights.with_suffix(".json")
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            # Not `save_weights`: HDF5 writing straight to a disk that is full crashes the process.
            model.save(self._scratch / name)
            with (self._scratch / name).open("rb+") as file:
                digest = _digest(file)
                os.fsync(file.fileno())
            os.replace(self._scratch / name, weights)
            sync_folder(self._folder)
            content = {"version": _VERSION, **place, "sha256": digest, "model": _fingerprint(model)}
            write_durably(record, json.dumps(content))
        except OSError as error:
            if not record.exists():
                with contextlib.suppress(OSError):
                    weights.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                _checks.message(
                    _WHO,
                    f"to write a checkpoint to '{self._folder}'",
                    f"{error}",
                    f"Make room there and train again: it resumes from {f'{last[0]}' if last else 'the start'}.",
                ),
            ) from error
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self.clean()

    def read_last(self, model):
        """Checks the last checkpoint without loading it.

        Returns:
            (path, place): the `.keras` file, and a dict with `epoch`, `batch` and `pass`; None where there is none.
        """
        records = self._records()
        if not records:
            return None
        record, older = records[-1], records[-2:-1]
        weights = record.with_suffix(".keras")
        try:
            content = json.loads(record.read_bytes())
            version = int(content["version"])
            if version <= _VERSION:
                place = {
                    key: _checks.integer(str(record), key, content[key], at_least=0)
                    for key in ("epoch", "batch", "pass")
                }
                digest, fingerprint = content["sha256"], content["model"]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(record, record, older, error) from error
        if version > _VERSION:
            raise ValueError(
                _checks.message(str(record), f"version at most {_VERSION}", f"version {version}", "Update lipdp.")
            )
        try:
            with weights.open("rb") as file:
                intact = _digest(file) == digest
        except FileNotFoundError as error:
            raise _damaged(weights, record, older, error) from error
        if not intact:
            raise _damaged(weights, record, older, "its checksum is another")
        if fingerprint != _fingerprint(model):
            raise ValueError(
                _checks.message(
                    _WHO,
                    f"the model of the checkpoint '{weights}'",
                    "a model with other layers, weights or optimizer",
                    "Make the same model, or name another backup_dir.",
                )
            )
        return weights, place

    def clean(self):
        """Removes checkpoints that are not kept, and what a killed save has left."""
        records = self._records()
        kept = records[-self._keep :]
        for record in records[: -self._keep]:
            record.unlink()
        for weights in self._folder.glob("checkpoint-[0-9]*.keras"):
            if weights.with_suffix(".json") not in kept:
                weights.unlink()
        for temporary in self._folder.glob("*.json.tmp"):
            temporary.unlink()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def delete(self):
        """Removes all of them."""
        for record in self._records():
            record.unlink()
        self.clean()
        sync_folder(self._folder)


def _damaged(path, record, older, reason):
    if older:
        remedy = (
            f"An older checkpoint is kept, '{older[0].with_suffix('.keras')}': delete '{record}' to resume from it."
        )
    else:
        remedy = f"There is no older one: delete '{record}' to train from the start."
    return ValueError(
        _checks.message(
            _WHO,
            "a whole checkpoint",
            f"'{path}', which is damaged ({reason})",
            f"{remedy} Leave ledger.json: it counts what was spent.",
        )
    )


def _digest(file):
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _fingerprint(model):
    """What tells models apart. Not the full paths: they number layers by what else the process has built."""
    facts = [
        [type(layer).__name__ for layer in model.layers],
        [[variable.name, list(variable.shape), str(variable.dtype)] for variable in model.weights],
        type(model.optimizer).__name__,
        [[list(variable.shape), str(variable.dtype)] for variable in model.optimizer.variables],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
