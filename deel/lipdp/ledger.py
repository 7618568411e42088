"""The ledger: which events a model's weights were released under, and how often. Its counts never go down."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import secrets
from collections.abc import Mapping

import keras

from deel.lipdp import _checks
from deel.lipdp._types import PathLike
from deel.lipdp.accounting._types import Event
from deel.lipdp.accounting.events import event_from_config, event_to_config

__all__ = ["Ledger", "sync_folder", "write_durably"]

_logger = logging.getLogger(__name__)

_VERSION = 2

# The key of a count in each version that can be read.
_COUNT_KEYS = {1: "steps", 2: "count"}


class Ledger:
    """Counts of each event, as int64 variables that the training graph increments.

    One count is a step or, where `event.sampling.unit` is `"pass"`, a pass over the data.

    It is no weight of the model, so nothing that sets weights lowers it. Each ledger counts under an identity of its
    own and remembers what others have counted: of one identity the larger count is kept when ledgers meet, and
    different identities add up. So going back to an earlier checkpoint of a run forgets nothing and counts nothing
    twice, and a model that takes over the weights of another one takes over what was spent on them.

    A journal is a file that is ahead of the ledger: while one is open, `reserve` puts what is about to be released on
    disk first, so that a process that is killed cannot forget it.

    Attributes:
        seeded: bool, whether some noise or some batch came from a seed that is not secret. It never goes back to False,
            and it voids epsilon.
    """

    def __init__(self) -> None:
        self._identity = secrets.token_hex(8)
        self._counters: dict[Event, keras.Variable] = {}
        self._others: dict[tuple[str, Event], int] = {}
        self.seeded = False
        self._journal: pathlib.Path | None = None
        self._reserved: dict[Event, int] = {}  # event -> the own count that the journal states
        self._journal_seeded = False

    def counter(self, event: Event) -> keras.Variable:
        """The int64 variable that counts this ledger's own occurrences of `event`; made on first use."""
        if event not in self._counters:
            self._counters[event] = keras.Variable(
                0, dtype="int64", trainable=False, name=f"ledger_{len(self._counters)}"
            )
        return self._counters[event]

    def _own_counts(self):
        return {event: int(variable.numpy()) for event, variable in self._counters.items()}

    def entries(self) -> list[tuple[Event, int]]:
        """list of (event, count), events without a count left out."""
        total = self._own_counts()
        for (_, event), count in self._others.items():
            total[event] = total.get(event, 0) + count
        return [(event, count) for event, count in total.items() if count]

    @property
    def steps(self) -> int:
        """int, the counts of all events together; they are steps, but for events that are counted by the pass."""
        return sum(count for _, count in self.entries())

    # -- text ------------------------------------------------------------------------------------------------------

    def to_json(self, reserved: Mapping[Event, int] | None = None) -> str:
        """The ledger as text.

        Args:
            reserved: dict event -> int, or None: the least that the text says of this ledger's own count.
        """
        own = self._own_counts()
        own = {event: max(own.get(event, 0), least) for event, least in (own | (reserved or {})).items()}
        counts = self._others | {(self._identity, event): count for event, count in own.items()}
        entries = [
            {**event_to_config(event), "counted_by": identity, "count": count}
            for (identity, event), count in counts.items()
            if count
        ]
        return json.dumps({"version": _VERSION, "seeded": self.seeded, "entries": entries}, indent=1)

    def merge_json(self, text: str | bytes, source: str = "ledger") -> None:
        """Merges what `to_json` of this or another ledger wrote, of this version or an earlier one.

        Args:
            text: str or UTF-8 bytes.
            source: str, for the message of an error.

        Raises:
            ValueError: if it is damaged, or written by a newer version: what it counts cannot be known.
        """
        try:
            content = json.loads(text)
            version = int(content["version"])
            if version <= _VERSION:
                key = _COUNT_KEYS[version]
                counts = [
                    (
                        str(entry["counted_by"]),
                        event_from_config(entry),
                        _checks.integer(source, key, entry[key], at_least=0),
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
                    "Restore the file: without it what was already spent cannot be counted.",
                )
            ) from error
        if version > _VERSION:
            raise ValueError(
                _checks.message(source, f"version at most {_VERSION}", f"version {version}", "Update lipdp.")
            )
        for identity, event, count in counts:
            if identity != self._identity:
                other = (identity, event)
                self._others[other] = max(self._others.get(other, 0), count)
            elif count > self._reserved.get(event, 0):  # else it is what this ledger itself has reserved
                counter = self.counter(event)
                counter.assign(max(int(counter.numpy()), count))
        self.seeded = self.seeded or seeded

    def merge_file(self, path: PathLike) -> None:
        """Merges a file that `write` made; a missing file is an empty ledger."""
        path = pathlib.Path(path)
        if path.exists():
            self.merge_json(path.read_bytes(), source=str(path))

    def write(self, path: PathLike) -> None:
        """Writes the ledger to a file that is always whole."""
        write_durably(pathlib.Path(path), self.to_json())

    # -- journal ---------------------------------------------------------------------------------------------------

    def open_journal(self, path: PathLike) -> None:
        """Merges what a journal holds, and keeps it ahead of the ledger from now on, instead of an earlier one.

        Args:
            path: str or path of a file, in an existing folder or not, that may exist.

        Raises:
            ValueError: if the file is damaged or was written by a newer version; nothing is opened then.
        """
        path = pathlib.Path(path)
        self.merge_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._journal, self._reserved, self._journal_seeded = path, {}, False

    def reserve(self, event: Event, count: int, ahead: int = 0) -> None:
        """Makes sure that the journal covers `count` more occurrences of `event` than are counted now.

        It writes only when it has to, and does nothing without a journal.

        Args:
            event: the event that is about to be released.
            count: int >= 1.
            ahead: int, how many occurrences to cover when it does write, so that the next calls need not.

        Raises:
            OSError: if it cannot write, before anything is released. The file is as it was.
        """
        if self._journal is None:
            return
        counted = int(self.counter(event).numpy())
        covered = counted + count <= self._reserved.get(event, 0)
        if covered and self._journal_seeded == self.seeded:
            return
        reserved = self._reserved | {event: counted + max(count, ahead)}
        seeded = self.seeded
        try:
            write_durably(self._journal, self.to_json(reserved))
        except OSError as error:
            raise OSError(
                error.errno,
                _checks.message(
                    "Ledger",
                    f"to write what is about to be released to '{self._journal}'",
                    f"{error}",
                    "Training stopped before the release, and what the file held is intact. Make room there and train "
                    "again.",
                ),
            ) from error
        self._reserved, self._journal_seeded = reserved, seeded

    def close_journal(self) -> None:
        """Gives back what was reserved and not released, and stops writing. For a training that ended well."""
        if self._journal is None:
            return
        try:
            self.write(self._journal)
        except OSError as error:  # the file counts more than was released, never less
            _logger.warning("'%s' could not be brought up to date: %s", self._journal, error)
        self._journal, self._reserved = None, {}


def write_durably(path: pathlib.Path, text: str) -> None:
    """Writes a file that is always whole, also after a kill or a power cut: a temporary name, fsync, rename, fsync.

    Args:
        path: `pathlib.Path`.
        text: str.

    Raises:
        OSError: if that fails; the file is then as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Makes the names in a folder durable, where the platform can: Windows and some network drives cannot.

    Args:
        folder: `pathlib.Path`.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
