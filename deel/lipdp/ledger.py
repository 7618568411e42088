"""The ledger: which events a model's weights were released under, and how often. Its counts never go down."""

import json
import os
import pathlib

import keras

from deel.lipdp import _checks
from deel.lipdp.accounting.events import event_from_config, event_to_config

__all__ = ["Ledger"]

_VERSION = 1


class Ledger:
    """Step counts of each event, as int64 variables that the training graph increments.

    Attributes:
        seeded: bool, whether some noise or some batch came from a seed that is not secret. It never goes back to False,
            and it voids epsilon.

    It is no weight of the model, so nothing that sets weights lowers it: loading merges a stored ledger into this one
    and
    keeps the larger count of each event.
    """

    def __init__(self):
        self._counters = {}
        self.seeded = False

    def counter(self, event):
        """The int64 variable that counts steps under `event`; made on first use."""
        if event not in self._counters:
            self._counters[event] = keras.Variable(
                0, dtype="int64", trainable=False, name=f"ledger_{len(self._counters)}"
            )
        return self._counters[event]

    def entries(self):
        """list of (event, steps), in the order the events came into force; events without steps left out."""
        counts = [(event, int(variable.numpy())) for event, variable in self._counters.items()]
        return [(event, steps) for event, steps in counts if steps]

    @property
    def steps(self):
        """int, steps counted under all events together."""
        return sum(steps for _, steps in self.entries())

    def merge(self, entries):
        """Keeps, for each event, the larger of its own count and the given one."""
        for event, steps in entries:
            counter = self.counter(event)
            counter.assign(max(int(counter.numpy()), steps))

    def to_json(self, ahead=0, event=None):
        """The ledger as text, with `ahead` more steps of `event` counted."""
        counts = dict(self.entries())
        if ahead:
            counts[event] = counts.get(event, 0) + ahead
        entries = [{**event_to_config(e), "steps": steps} for e, steps in counts.items()]
        content = {"version": _VERSION, "seeded": self.seeded, "entries": entries}
        return json.dumps(content, indent=1)

    def merge_json(self, text, source="ledger"):
        """Merges what `to_json` wrote.

        Raises:
            ValueError: if it is damaged, or written by a newer version: what it counts cannot be known.
        """
        try:
            content = json.loads(text)
            version = int(content["version"])
            if version <= _VERSION:
                entries = [
                    (event_from_config(e), _checks.integer(source, "steps", e["steps"], at_least=0))
                    for e in content["entries"]
                ]
                seeded = bool(content["seeded"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                _checks.message(
                    source,
                    "a ledger of spent privacy",
                    f"damaged content ({error})",
                    "Restore the file: without it the steps already taken cannot be counted.",
                )
            ) from error
        if version > _VERSION:
            raise ValueError(
                _checks.message(source, f"version at most {_VERSION}", f"version {version}", "Update lipdp.")
            )
        self.merge(entries)
        self.seeded = self.seeded or seeded

    def write(self, path, ahead=0, event=None):
        """Writes the ledger to a file that is always whole: to a temporary name, fsync, rename."""
        path = pathlib.Path(path)
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self.to_json(ahead, event))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def merge_file(self, path):
        """Merges a file that `write` made; a missing file is an empty ledger."""
        path = pathlib.Path(path)
        if path.exists():
            self.merge_json(path.read_text(encoding="utf-8"), source=str(path))
