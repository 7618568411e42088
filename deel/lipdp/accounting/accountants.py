"""What a ledger costs: events in, epsilon out.

A ledger is an iterable of pairs `(GaussianStep, steps)`. Every epsilon holds for the release of the noisy gradients of
all its steps (hence of the trained weights), under the neighbouring relation that `neighboring_relation` returns and
the sampling that each event declares. Training losses and metrics are not covered.
"""

import collections
import functools
import math

import numpy as np

from deel.lipdp import _checks
from deel.lipdp.accounting.events import GaussianStep, PoissonSampling, UndeclaredSampling

__all__ = [
    "ACCOUNTANTS",
    "PLDAccountant",
    "RDPAccountant",
    "compute_epsilon",
    "get_accountant",
    "neighboring_relation",
]

# Outside this range a multiplier costs infinity, or what the largest costs: both at least the truth, without overflow.
_LEAST_MULTIPLIER, _LARGEST_MULTIPLIER = 1e-6, 1e6
# Float64 error per composed step: of the Renyi divergence (autodp adds log-gamma functions of orders up to 10,000), and
# of the delta of a composed privacy loss (the n-th power of a Fourier transform is off by about n * 2e-16).
_RDP_ERROR, _FFT_ERROR = 1e-14, 16 * 2.3e-16
_ROUNDING = 1.0 + 1e-9  # other roundings in dp-accounting, outward; 3e-10 was seen
# Widths of the grid of privacy losses: usual; finest, because probabilities are differences divided by the width; and
# coarsest before RDP takes over (epsilon in the thousands).
_WIDTH, _FINEST_WIDTH, _COARSEST_WIDTH = 1e-4, 1e-6, 0.1
_BLOCK = 1_000_000  # most steps in one Fourier transform


def _sampling_probability(who, event):
    sampling = getattr(event, "sampling", None)
    # Exact types: a subclass may mean another mechanism, and nothing unknown may be priced.
    if type(event) is GaussianStep and type(sampling) is PoissonSampling:
        return sampling.sampling_probability
    if type(event) is GaussianStep and type(sampling) is UndeclaredSampling:
        return 1.0
    expected = "every event to be a GaussianStep with PoissonSampling or UndeclaredSampling"
    received = f"{type(event).__name__}: {event!r}"
    remedy = "An event without a known price cannot be composed; add a branch to the accountants."
    raise TypeError(_checks.message(who, expected, received, remedy))


def _merge(who, entries):
    """Returns `{(sampling_probability, noise_multiplier): steps}` with equal events added up.

    Steps without amplification become one: Gaussians of multipliers m_i compose to exactly one Gaussian, of multiplier
    `1 / sqrt(sum of 1 / m_i^2)`. A multiplier of 0.0 stands for all that are too small to price.
    """
    terms, precision = collections.Counter(), 0.0
    for event, steps in entries:
        probability = _sampling_probability(who, event)
        steps = _checks.integer(who, "steps", steps, at_least=0)
        multiplier = min(event.noise_multiplier, _LARGEST_MULTIPLIER)
        multiplier = multiplier if multiplier >= _LEAST_MULTIPLIER else 0.0
        if steps and probability < 1.0:
            terms[probability, multiplier] += steps
        elif steps:
            precision += steps / multiplier**2 if multiplier else math.inf
    if precision:
        multiplier = 1.0 / math.sqrt(precision)
        terms[1.0, multiplier if multiplier >= _LEAST_MULTIPLIER else 0.0] = 1
    return terms


def neighboring_relation(entries):
    """Returns the neighbouring relation under which the epsilon of `entries` holds.

    Poisson steps hold under `add_or_remove_one`, steps of undeclared sampling under `zero_out` (one example replaced by
    a null record that keeps its place). One ledger with both holds under `zero_out`: a null record adds nothing to a
    sum whether it is drawn or not, so under Poisson sampling replacing an example by it gives the pair of output
    distributions of removing it, mixture against plain Gaussian, and the same price. The converse fails: adding an
    example may shift every later batch of an undeclared sampler.

    Args:
        entries: iterable of `(GaussianStep, steps)`.

    Returns:
        str. Events with 0 steps count only when nothing at all was released, which holds under any relation.

    Raises:
        TypeError: for an event of unknown type.
    """
    entries = [(event, steps) for event, steps in entries]
    for event, _ in entries:
        _sampling_probability("neighboring_relation", event)
    relations = {event.neighboring_relation for event, steps in entries if steps}
    relations = relations or {event.neighboring_relation for event, _ in entries}
    return "zero_out" if "zero_out" in relations else "add_or_remove_one"


class _Accountant:
    """The checks and the limits that all accountants share."""

    def epsilon(self, entries, delta):
        """Returns epsilon of the composition of `entries` at `delta`; never less than the truth, never NaN.

        Args:
            entries: iterable of `(GaussianStep, steps)`, steps an int >= 0. The order is irrelevant.
            delta: float in (0, 1).

        Returns:
            float >= 0 under `neighboring_relation(entries)`: 0.0 for no steps, infinity for a step without noise.

        Raises:
            TypeError: for an event of unknown type, steps that are not an int, or a delta that is not a number.
            ValueError: for negative steps or a delta out of range.
        """
        who = type(self).__name__
        delta = _checks.number(who, "delta", delta, above=0.0, below=1.0)
        terms = _merge(who, entries)
        if not terms:
            return 0.0
        if any(multiplier == 0.0 for _, multiplier in terms):
            return math.inf
        epsilon = float(self._price(terms, delta))
        return math.inf if math.isnan(epsilon) else max(0.0, epsilon)


def _amplified_mechanism(probability, multiplier):
    """Returns the autodp mechanism of one step, its RDP curve kept at integer orders for the next call."""
    from autodp.mechanism_zoo import GaussianMechanism  # 3 s, and matplotlib
    from autodp.transformer_zoo import AmplificationBySampling

    mechanism = GaussianMechanism(sigma=multiplier)
    if probability == 1.0:
        return mechanism
    # The "improved" bound is the exact one for Gaussian noise: Zhu and Wang, ICML 2019, theorem 8.
    sampled = AmplificationBySampling(PoissonSampling=True)
    mechanism = sampled(mechanism, probability, improved_bound_flag=True)
    # (order - 1) * divergence; rounding can make it slightly negative where the truth is almost 0.
    at_integer = functools.lru_cache(maxsize=None)(
        lambda order, curve=mechanism.RenyiDP: max(0.0, (order - 1) * float(curve(order))) if order > 1 else 0.0
    )

    def curve(order):
        # That product is convex in the order: a chord is an upper bound. autodp draws the same one, uncached.
        if math.isinf(order):
            return math.inf
        order = max(order, 2)
        floor = math.floor(order)
        weight = order - floor
        moment = at_integer(floor) + (weight and weight * (at_integer(floor + 1) - at_integer(floor)))
        return moment / (order - 1)

    mechanism.RenyiDP = curve
    return mechanism


class RDPAccountant(_Accountant):
    """Renyi differential privacy, by autodp. Fast, 8 to 12 % above `PLDAccountant` at usual settings.

    Keep one instance to price a growing ledger: the curve of each event is computed once.
    """

    def __init__(self):
        self._mechanism = functools.lru_cache(maxsize=64)(_amplified_mechanism)

    def _compose(self, terms):
        from autodp.transformer_zoo import Composition

        return Composition()([self._mechanism(*term) for term in terms], list(terms.values()))

    def _price(self, terms, delta):
        with np.errstate(all="ignore"):  # autodp computes binomials that overflow, then does not use them
            epsilon = self._compose(terms).get_approxDP(delta)
        return epsilon + _RDP_ERROR * sum(terms.values())


def _loss_width(terms):
    """Returns the width of the grid on which privacy losses are rounded.

    Losses are rounded towards more epsilon, so the width never decides soundness: only time, memory and tightness. It
    is at most a tenth of the spread of one step's loss (which costs about 1e-4 of epsilon), unless that would take more
    than 2 million grid points.
    """
    width, reach, total = _WIDTH, 0.0, 0.0
    for (probability, multiplier), steps in terms.items():
        precision = 1.0 / multiplier**2
        ratio_stddev = probability * math.sqrt(math.expm1(min(precision, 700.0)))
        full = precision / 2 + 10 / multiplier
        largest = math.log1p(probability * math.expm1(min(full, 700.0))) + max(0.0, full - 700.0)
        mean = min(math.log1p(ratio_stddev**2), probability * precision / 2)
        stddev = min(ratio_stddev, math.sqrt(probability) * largest)
        width = min(width, ratio_stddev / 10) if probability < 1.0 else width
        reach = max(reach, largest)
        total += 2 * steps * mean + 16 * math.sqrt(steps) * stddev + largest
    width = max(width, reach / 3e5, total / 2e6, _FINEST_WIDTH)
    # Powers of two, so that the same distribution serves while the steps grow.
    return _WIDTH * 2.0 ** math.ceil(math.log2(width / _WIDTH))


def _loss_distribution(probability, multiplier, width):
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        multiplier, value_discretization_interval=width, sampling_prob=probability
    )


def _compose_steps(distribution, steps):
    """Returns distributions that compose to `steps` times this one."""
    # In blocks, because dp-accounting computes `points ** steps` as an exact integer: 2 minutes at 10 million steps.
    blocks, rest = divmod(steps, _BLOCK)
    parts = [distribution.self_compose(_BLOCK).self_compose(blocks)] if blocks else []
    return parts + ([distribution.self_compose(rest)] if rest else [])


class PLDAccountant(_Accountant):
    """Privacy loss distributions, by dp-accounting; exact when no step is amplified.

    Where float64 cannot resolve delta over that many steps (delta below about `4e-15 * steps`), or epsilon is in the
    thousands, the answer is that of `RDPAccountant`. Keep one instance to price a growing ledger.
    """

    def __init__(self):
        self._distribution = functools.lru_cache(maxsize=8)(_loss_distribution)
        self._rdp = RDPAccountant()

    def _price(self, terms, delta):
        if all(probability == 1.0 for probability, _ in terms):
            from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

            [(_, multiplier)] = terms  # _merge leaves one
            return _ROUNDING * get_epsilon_gaussian(multiplier, delta)
        width = _loss_width(terms)
        # Composing by Fourier transform errs both ways: what it may have missed is taken off delta first.
        resolved = delta - _FFT_ERROR * (sum(terms.values()) + len(terms))
        if resolved <= 0.0 or width > _COARSEST_WIDTH:
            return self._rdp._price(terms, delta)
        parts = [part for term, n in terms.items() for part in _compose_steps(self._distribution(*term, width), n)]
        loss = functools.reduce(lambda left, right: left.compose(right), parts)
        # Asked first, because the search for epsilon overflows when it is 0 and some losses are below -709.
        if loss.get_delta_for_epsilon(0.0) <= resolved:
            return 0.0
        epsilon = loss.get_epsilon_for_delta(resolved)
        # Infinite when the truncated tails outweigh delta: RDP has no tails to truncate.
        return _ROUNDING * epsilon if math.isfinite(epsilon) else self._rdp._price(terms, delta)


ACCOUNTANTS = {"rdp": RDPAccountant, "pld": PLDAccountant}


def get_accountant(accountant="rdp"):
    """Returns a new accountant of that name, or the object itself if it has an `epsilon(entries, delta)`.

    Raises:
        ValueError: for an unknown name.
    """
    if hasattr(accountant, "epsilon") and not isinstance(accountant, type):
        return accountant
    return _checks.choice("get_accountant", "accountant", accountant, ACCOUNTANTS)()


def compute_epsilon(entries, delta, accountant="rdp"):
    """Returns epsilon of the composition of `entries` at `delta`, under `neighboring_relation(entries)`.

    Args:
        entries: iterable of `(GaussianStep, steps)`.
        delta: float in (0, 1).
        accountant: `"rdp"`, `"pld"`, or an accountant object, which keeps its cached curves between calls.

    Raises:
        TypeError, ValueError: for an unknown event, accountant, or a number out of range.

    Example:
        >>> from deel.lipdp.accounting import GaussianStep, PoissonSampling, compute_epsilon
        >>> step = GaussianStep(PoissonSampling(250 / 60000), noise_multiplier=1.3)
        >>> round(compute_epsilon([(step, 3600)], delta=1e-5, accountant="pld"), 3)
        0.853
    """
    return get_accountant(accountant).epsilon(entries, delta)
