"""What a ledger costs: events in, epsilon out.

A ledger is an iterable of pairs `(event, count)`; `event.sampling.unit` says what is counted. Every epsilon holds for
the release of the noisy sums of all its events (hence of the trained weights), under the sampling that each event
declares and the neighbouring relation that was asked for: `neighboring_relation` of the ledger if none was. Training
losses and metrics are not covered.
"""

import functools
import math
from typing import Any, Literal, cast, overload

import numpy as np

from deel.lipdp import _checks
from deel.lipdp.accounting._curves import (
    amplified_mechanism,
    compose_steps,
    loss_distribution,
    loss_width,
    solve_epsilon,
)
from deel.lipdp.accounting._types import Accountant, AnyAccountant, Entries, Relation
from deel.lipdp.accounting.relations import RELATIONS, merge, neighboring_relation, without_pairs

__all__ = [
    "ACCOUNTANTS",
    "RELATIONS",
    "PLDAccountant",
    "RDPAccountant",
    "compute_epsilon",
    "get_accountant",
    "neighboring_relation",
]

# Float64 error per composed step: of the Renyi divergence (autodp adds log-gamma functions of orders up to 10,000), and
# of the delta of a composed privacy loss (the n-th power of a Fourier transform is off by about n * 2e-16).
_RDP_ERROR, _FFT_ERROR = 1e-14, 16 * 2.3e-16
_ROUNDING = 1.0 + 1e-9  # other roundings in dp-accounting, outward; 3e-10 was seen
_COARSEST_WIDTH = 0.1  # of the grid of privacy losses, before RDP takes over (epsilon in the thousands)


class _Accountant:
    """The checks and the limits that all accountants share."""

    def epsilon(self, entries: Entries, delta: float, relation: Relation | None = None) -> float:
        """Returns epsilon of the composition of `entries` at `delta`; never less than the truth, never NaN.

        Args:
            entries: iterable of `(event, count)`, count an int >= 0. The order is irrelevant.
            delta: float in (0, 1).
            relation: a key of `RELATIONS`, the neighbouring relation; None is `neighboring_relation(entries)`.

        Returns:
            float >= 0: 0.0 for no steps, infinity for a step without noise.

        Raises:
            TypeError: for an event of unknown type, a count that is not an int, or a delta that is not a number.
            ValueError: for a negative count, a delta out of range, or a relation under which an event has no price.
        """
        who = type(self).__name__
        delta = _checks.number(who, "delta", delta, above=0.0, below=1.0)
        terms = merge(who, entries, relation)
        self._check(terms)
        if not terms:
            return 0.0
        if any(term.multiplier == 0.0 for term in terms):
            return math.inf
        epsilon = float(self._price(terms, delta))
        return math.inf if math.isnan(epsilon) else max(0.0, epsilon)

    def _check(self, terms):
        """Refuses what this accountant cannot price."""

    def _price(self, terms, delta):
        """Epsilon of at least one term, all with noise."""
        raise NotImplementedError


class RDPAccountant(_Accountant):
    """Renyi differential privacy, by autodp. Fast, 8 to 12 % above `PLDAccountant` at usual settings.

    Keep one instance to price a growing ledger: the curve of each event is computed once. Poisson-sampled steps under
    `replace_one` are refused: no Renyi bound as tight as that of the other relations is known for them.
    """

    def __init__(self) -> None:
        self._mechanism = functools.lru_cache(maxsize=64)(amplified_mechanism)

    def _check(self, terms):
        if any(term.noise == "gaussian_pair" for term in terms):
            expected = "a relation with a Renyi bound for Poisson sampling, 'add_or_remove_one' or 'zero_out'"
            remedy = "Price it with accountant='pld'."
            raise ValueError(_checks.message(type(self).__name__, expected, "relation='replace_one'", remedy))

    def _compose(self, terms):
        from autodp.transformer_zoo import Composition

        return Composition()([self._mechanism(*term) for term in terms], list(terms.values()))

    def _price(self, terms, delta):
        with np.errstate(all="ignore"):  # autodp computes binomials that overflow, then does not use them
            epsilon = self._compose(terms).get_approxDP(delta)
        return epsilon + _RDP_ERROR * sum(terms.values())


class PLDAccountant(_Accountant):
    """Privacy loss distributions, by dp-accounting; exact when no Gaussian step is amplified and none is Laplace.

    Where float64 cannot resolve delta over that many steps (delta below about `4e-15 * steps`), or epsilon is in the
    thousands, the answer is that of `RDPAccountant`, under `replace_one` without amplification. Keep one instance to
    price a growing ledger.
    """

    def __init__(self) -> None:
        self._distribution = functools.lru_cache(maxsize=16)(loss_distribution)
        self._rdp = RDPAccountant()

    def _price(self, terms, delta):
        if all(term.noise == "gaussian" and term.probability == 1.0 for term in terms):
            return _price_gaussian(terms, delta)
        width = loss_width(terms)
        # Composing by Fourier transform errs both ways: what it may have missed is taken off delta first.
        resolved = delta - _FFT_ERROR * (sum(terms.values()) + len(terms))
        if resolved <= 0.0 or width > _COARSEST_WIDTH:
            return self._rdp._price(without_pairs(terms), delta)
        parts = [part for term, n in terms.items() for part in compose_steps(self._distribution(*term, width), n)]
        loss = functools.reduce(lambda left, right: left.compose(right), parts)
        epsilon = solve_epsilon(loss, resolved)
        # Infinite when the truncated tails outweigh delta: RDP has no tails to truncate.
        return _ROUNDING * epsilon if math.isfinite(epsilon) else self._rdp._price(without_pairs(terms), delta)


def _price_gaussian(terms, delta):
    from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

    [term] = terms  # merge leaves one
    return _ROUNDING * get_epsilon_gaussian(term.multiplier, delta)


ACCOUNTANTS = {"rdp": RDPAccountant, "pld": PLDAccountant}


@overload
def get_accountant(accountant: Literal["rdp", "pld"] = "rdp") -> RDPAccountant | PLDAccountant: ...
@overload
def get_accountant(accountant: Accountant) -> Accountant: ...
def get_accountant(accountant: AnyAccountant = "rdp") -> Accountant:
    """Returns a new accountant of that name, or the object itself if it has an `epsilon(entries, delta)`.

    Raises:
        ValueError: for an unknown name.
    """
    if hasattr(accountant, "epsilon") and not isinstance(accountant, type):
        return cast(Accountant, accountant)
    return _checks.choice("get_accountant", "accountant", accountant, ACCOUNTANTS)()


def compute_epsilon(
    entries: Entries, delta: float, accountant: AnyAccountant = "rdp", relation: Relation | None = None
) -> float:
    """Returns epsilon of the composition of `entries` at `delta`.

    Args:
        entries: iterable of `(event, count)`.
        delta: float in (0, 1).
        accountant: `"rdp"`, `"pld"`, or an accountant object, which keeps its cached curves between calls.
        relation: the neighbouring relation, `"add_or_remove_one"`, `"zero_out"` or `"replace_one"`; None is
            `neighboring_relation(entries)`.

    Raises:
        TypeError, ValueError: for an unknown event, accountant or relation, a relation under which an event has no
            price, or a number out of range.

    Example:
        >>> from deel.lipdp.accounting import GaussianStep, PoissonSampling, compute_epsilon
        >>> step = GaussianStep(PoissonSampling(250 / 60000), noise_multiplier=1.3)
        >>> round(compute_epsilon([(step, 3600)], delta=1e-5, accountant="pld"), 3)
        0.853
    """
    found: Any = get_accountant(accountant)
    # An accountant of the user's own need not know of relations.
    return found.epsilon(entries, delta) if relation is None else found.epsilon(entries, delta, relation)
