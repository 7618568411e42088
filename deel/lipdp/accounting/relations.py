"""Which data sets count as neighbours, and which mechanism each event is under each of those relations."""

import collections
import math
import typing

from deel.lipdp import _checks
from deel.lipdp.accounting._types import Entries, Relation
from deel.lipdp.accounting.events import (
    GaussianStep,
    LaplaceStep,
    PoissonSampling,
    ShuffledSampling,
    UndeclaredSampling,
)

__all__ = ["RELATIONS", "neighboring_relation"]

RELATIONS = {
    "add_or_remove_one": "one example is added or removed",
    "zero_out": "one example is replaced by a null record that keeps its place",
    "replace_one": "one example is replaced by another",
}

# Outside this range a multiplier costs infinity, or what the largest costs: both at least the truth, without overflow.
_LEAST_MULTIPLIER, _LARGEST_MULTIPLIER = 1e-6, 1e6


class Term(typing.NamedTuple):
    """One mechanism, up to what decides its price.

    `noise` is "gaussian", "laplace" (drawn with `probability`, or nothing: present against absent), or "gaussian_pair"
    (drawn with `probability`, and then one of two opposite records). A multiplier of 0.0 stands for all that are too
    small to price.
    """

    noise: str
    probability: float
    multiplier: float


# By event and sampling, for each relation that can be priced: the noise, and how many sensitivities two neighbours are
# apart. Two different records are at most two sensitivities apart, because either is one from the null record.
_UNAMPLIFIED_GAUSSIAN = {"zero_out": ("gaussian", 1.0), "replace_one": ("gaussian", 2.0)}
_MECHANISMS = {
    (GaussianStep, PoissonSampling): {
        "add_or_remove_one": ("gaussian", 1.0),
        "zero_out": ("gaussian", 1.0),
        "replace_one": ("gaussian_pair", 1.0),
    },
    (GaussianStep, ShuffledSampling): _UNAMPLIFIED_GAUSSIAN,
    (GaussianStep, UndeclaredSampling): _UNAMPLIFIED_GAUSSIAN,
    (LaplaceStep, PoissonSampling): {"add_or_remove_one": ("laplace", 1.0), "zero_out": ("laplace", 1.0)},
    (LaplaceStep, UndeclaredSampling): {"zero_out": ("laplace", 1.0), "replace_one": ("laplace", 2.0)},
}
_REFUSALS = {
    "add_or_remove_one": "Removing an example shifts every later one to another batch, for which no useful bound "
    "exists: ask for 'zero_out' or 'replace_one', or sample with PoissonSampling.",
    "replace_one": "No price is known for that: ask for 'add_or_remove_one' or 'zero_out', or count the release as "
    "one with UndeclaredSampling, which costs at least as much.",
}


def _row(who, event):
    """Returns the row of `_MECHANISMS` of an event."""
    # Exact types: a subclass may mean another mechanism, and nothing unknown may be priced.
    row = _MECHANISMS.get((type(event), type(getattr(event, "sampling", None))))
    if row is None:
        known = ", ".join(f"{step.__name__} with {sampling.__name__}" for step, sampling in _MECHANISMS)
        received = f"{type(event).__name__}: {event!r}"
        remedy = "An event without a known price cannot be composed; add a row to the table of mechanisms."
        raise TypeError(_checks.message(who, f"every event to be one of {known}", received, remedy))
    return row


def _term(who, event, relation):
    row = _row(who, event)
    if relation not in row:
        expected = f"a neighboring relation under which {type(event).__name__} with {type(event.sampling).__name__}"
        expected += f" has a price ({', '.join(repr(name) for name in row)})"
        raise ValueError(_checks.message(who, expected, f"relation={relation!r}", _REFUSALS[relation]))
    noise, apart = row[relation]
    probability = getattr(event.sampling, "sampling_probability", 1.0)
    if noise == "gaussian_pair" and probability == 1.0:
        noise, apart = "gaussian", 2.0  # everyone is in every batch: two opposite records, two sensitivities apart
    multiplier = min(event.noise_multiplier / apart, _LARGEST_MULTIPLIER)
    return Term(noise, probability, multiplier if multiplier >= _LEAST_MULTIPLIER else 0.0)


def _compose_unamplified(terms):
    """Returns the terms with all unamplified Gaussians replaced by the one that they compose to.

    Gaussians of multipliers m_i compose to exactly one Gaussian, of multiplier `1 / sqrt(sum of 1 / m_i^2)`.
    """
    kept, precision = collections.Counter(), 0.0
    for term, count in terms.items():
        if term.noise == "gaussian" and term.probability == 1.0:
            precision += count / term.multiplier**2 if term.multiplier else math.inf
        else:
            kept[term] += count
    if precision:
        multiplier = 1.0 / math.sqrt(precision)
        kept[Term("gaussian", 1.0, multiplier if multiplier >= _LEAST_MULTIPLIER else 0.0)] = 1
    return kept


def merge(who, entries, relation=None):
    """Returns `{Term: count}` of what was released, with equal terms added up; nothing for counts of 0."""
    entries = list(entries)
    if relation is None:
        relation = neighboring_relation(entries)
    _checks.choice(who, "relation", relation, RELATIONS)
    terms = collections.Counter()
    for event, count in entries:
        _row(who, event)
        count = _checks.integer(who, "steps", count, at_least=0)
        if count:
            terms[_term(who, event, relation)] += count
    return _compose_unamplified(terms)


def without_pairs(terms):
    """Returns terms that cost at least as much and hold no "gaussian_pair": each as if everyone were in every batch.

    Sampling mixes the pair of opposite records with a pair of equal distributions, and hockey-stick divergences are
    jointly convex, so leaving the sampling out can only cost more.
    """
    unamplified = collections.Counter()
    for term, count in terms.items():
        pair = term.noise == "gaussian_pair"
        unamplified[Term("gaussian", 1.0, term.multiplier / 2) if pair else term] += count
    return _compose_unamplified(unamplified)


def neighboring_relation(entries: Entries) -> Relation:
    """Returns the neighbouring relation under which the epsilon of `entries` holds when none is asked for.

    Poisson events hold under `add_or_remove_one`, those of shuffled and undeclared sampling under `zero_out` (one
    example replaced by a null record that keeps its place). One ledger with both holds under `zero_out`: a null record
    adds nothing to a sum whether it is drawn or not, so under Poisson sampling replacing an example by it gives the
    pair of output distributions of removing it, mixture against plain noise, and the same price. The converse fails:
    adding an example may shift every later batch of the other samplers.

    Args:
        entries: iterable of `(event, count)`.

    Returns:
        str, a key of `RELATIONS`. Events with count 0 matter only when nothing at all was released, which holds under
        any relation.

    Raises:
        TypeError: for an event of unknown type.
    """
    entries = [(event, count) for event, count in entries]
    for event, _ in entries:
        _row("neighboring_relation", event)
    relations = {event.neighboring_relation for event, count in entries if count}
    relations = relations or {event.neighboring_relation for event, _ in entries}
    return "zero_out" if "zero_out" in relations else "add_or_remove_one"
