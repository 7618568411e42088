"""Names for the types that public signatures of the accounting share."""

from collections.abc import Iterable
from typing import Literal, Protocol, TypeAlias

from deel.lipdp.accounting.events import GaussianStep, LaplaceStep

__all__ = ["AnyAccountant", "Accountant", "Entries", "Event", "Relation"]

Event: TypeAlias = GaussianStep | LaplaceStep

# What was released, and how often.
Entries: TypeAlias = Iterable[tuple[Event, int]]

# The keys of `relations.RELATIONS`.
Relation: TypeAlias = Literal["add_or_remove_one", "zero_out", "replace_one"]


class Accountant(Protocol):
    """What prices entries at a delta. Those of the library take a relation too; one of a user's own need not."""

    def epsilon(self, entries: Entries, delta: float, /) -> float: ...


# By its name in `accountants.ACCOUNTANTS`, or the object itself.
AnyAccountant: TypeAlias = Literal["rdp", "pld"] | Accountant
