"""The ledger: which events a model's weights were released under, and how often. Its counts never go down."""

import json
import os
import pathlib
import secrets

import keras

from deel.lipdp import _checks
from deel.lipdp.accounting.events import event_from_config, event_to_config

__all__ = ["Ledger"]

_VERSION = 1


class Ledger:
    """Step counts of each event, as int64 variables that the training graph increments.

    It is no weight of the model, so nothing that sets weights lowers it. Each ledger counts under an identity of its
    own and remembers what others have counted: of one identity the larger count is kept when ledgers meet, and
    different identities add up. So going back to an earlier checkpoint of a run forgets nothing and counts nothing
    twice, and a model that takes over the weights of another one takes over what was spent on them.

    Attributes:
        seeded: bool, whether some noise or some batch came from a seed that is not secret. It never goes back to False,
            and it voids epsilon.
    """

    def __init__(self):
        self._identity = secrets.token_hex(8)
        self._counters = {}
        self._others = {}
        self.seeded = False

    def counter(self, event):
        """The int64 variable that counts this ledger's own steps under `event`; made on first use."""
        if event not in self._counters:
            self._counters[event] = keras.Variable(
                0, dtype="int64", trainable=False, name=f"ledger_{len(self._counters)}"
            )
        return self._counters[event]

    def _counts(self):
        """dict (identity, event) -> steps."""
        own = {(self._identity, event): int(variable.numpy()) for event, variable in self._counters.items()}
        return {**self._others, **own}

    def entries(self):
        """list of (event, steps), events without steps left out."""
        total = {}
        for (_, event), steps in self._counts().items():
            total[event] = total.get(event, 0) + steps
        return [(event, steps) for event, steps in total.items() if steps]

    @property
    def steps(self):
        """int, steps counted under all events together."""
        return sum(steps for _, steps in self.entries())

    def to_json(self, ahead=0, event=None):
        """The ledger as text, with `ahead` more steps of `event` counted."""
        counts = self._counts()
        if ahead:
            key = (self._identity, event)
            counts[key] = counts.get(key, 0) + ahead
        entries = [
            {**event_to_config(event), "counted_by": identity, "steps": steps}
            for (identity, event), steps in counts.items()
            if steps
        ]
        return json.dumps({"version": _VERSION, "seeded": self.seeded, "entries": entries}, indent=1)

    def merge_json(self, text, source="ledger"):
        """Merges what `to_json` of this or another ledger wrote.

        Args:
            text: str.
            source: str, for the message of an error.

        Raises:
            ValueError: if it is damaged, or written by a newer version: what it counts cannot be known.
        """
        try:
            content = json.loads(text)
            version = int(content["version"])
            if version <= _VERSION:
                counts = [
                    (
                        str(entry["counted_by"]),
                        event_from_config(entry),
                        _checks.integer(source, "steps", entry["steps"], at_least=0),
                    )
                    for entry in content["entries"]
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
        for identity, event, steps in counts:
            if identity == self._identity:
                counter = self.counter(event)
                counter.assign(max(int(counter.numpy()), steps))
            else:
                key = (identity, event)
                self._others[key] = max(self._others.get(key, 0), steps)
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
