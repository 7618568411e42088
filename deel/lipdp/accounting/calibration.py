"""Noise or steps for a target epsilon: monotone searches that end on the private side."""

import functools
import math
from collections.abc import Callable
from typing import Literal

from deel.lipdp import _checks
from deel.lipdp.accounting._types import AnyAccountant, Entries, Event, Relation
from deel.lipdp.accounting.accountants import compute_epsilon, get_accountant
from deel.lipdp.accounting.events import GaussianStep, PoissonSampling, ShuffledSampling, UndeclaredSampling

__all__ = ["calibrate_noise", "max_steps"]

_LEAST_NOISE, _LARGEST_NOISE = 2.0**-10, 2.0**30
_LARGEST_GROWTH = 64.0  # of the steps tried next, in the search for the most that fit


def _poisson(batch_size, num_examples, epochs, steps, steps_per_pass):
    return PoissonSampling(batch_size / num_examples), steps or epochs * steps_per_pass


def _shuffled(batch_size, num_examples, epochs, steps, steps_per_pass):
    # The larger where both are given: an epoch cut short has still started a pass.
    return ShuffledSampling(), max(epochs or 1, math.ceil((steps or 1) / steps_per_pass))


def _undeclared(batch_size, num_examples, epochs, steps, steps_per_pass):
    return UndeclaredSampling(), steps or epochs * steps_per_pass


# What a plan samples, and how often one event of it is counted. None is "undeclared", as DatasetMetadata spells it.
_PLANS = {"poisson": _poisson, "shuffled": _shuffled, "undeclared": _undeclared, None: _undeclared}


def max_steps(
    event: Event,
    epsilon: float,
    delta: float,
    *,
    spent: Entries = (),
    accountant: AnyAccountant = "pld",
    limit: int = 10_000_000,
    releases: Callable[[int], Entries] | None = None,
    relation: Relation | None = None,
) -> int:
    """Returns how many more steps of `event` fit in a budget.

    The budget is for the release of the noisy sums of all steps and of `releases`, under the sampling that the events
    declare. One count of an event stands for `event.sampling.unit`: for shuffled batches the answer is a number of
    passes.

    Args:
        event: `GaussianStep` or `LaplaceStep`, the one to repeat.
        epsilon: float >= 0, the budget.
        delta: float in (0, 1).
        spent: iterable of `(event, count)`, what was released before.
        accountant: `"pld"`, `"rdp"` or an object with `epsilon(entries, delta)`.
        limit: int >= 1, the largest answer.
        releases: None, or a function of an int, the number of steps, that returns an iterable of `(event, count)`: what
            else that many steps release (adaptive clipping, say). Its counts must not fall as the steps grow.
        relation: the neighbouring relation, a key of `RELATIONS`; None is `neighboring_relation` of all entries.

    Returns:
        int, the largest count of at most `limit` whose epsilon, together with `spent` and `releases`, is at most
        `epsilon`; 0 when not even one step fits.

    Raises:
        TypeError, ValueError: for an unknown event or accountant, a relation under which an event has no price, or a
            number out of range.
    """
    who = "max_steps"
    epsilon = _checks.number(who, "epsilon", epsilon, at_least=0.0, finite=False)
    limit = _checks.integer(who, "limit", limit)
    spent, accountant = list(spent), get_accountant(accountant)
    if releases is not None and not callable(releases):
        expected = "releases to be a function of the number of steps, or None"
        remedy = "Wrap what does not depend on the steps in a lambda, or add it to spent."
        raise TypeError(_checks.message(who, expected, f"releases={releases!r}", remedy))

    @functools.cache
    def price(steps):
        entries = [*spent, (event, steps), *(releases(steps) if releases else ())]
        return compute_epsilon(entries, delta, accountant, relation)

    good, bad = 0, 1
    while price(bad) <= epsilon:
        if bad == limit:
            return limit
        # Epsilon grows more slowly than the steps, so this is no jump too far.
        growth = epsilon / price(bad) if price(bad) else math.inf
        good, bad = bad, min(math.ceil(bad * min(max(growth, 2.0), _LARGEST_GROWTH)), limit)
    answer = good
    if bad - good > 1:
        from scipy.optimize import brentq  # 0.4 s

        # Of a curve that is flat between two integers; what that leaves open is settled by walking.
        answer = int(brentq(lambda steps: min(price(int(steps)), 2 * epsilon + 1) - epsilon, good, bad, xtol=0.5))
    while answer > 0 and price(answer) > epsilon:
        answer -= 1
    while answer + 1 < bad and price(answer + 1) <= epsilon:
        answer += 1
    return answer


def calibrate_noise(
    target_epsilon: float,
    delta: float,
    batch_size: int,
    num_examples: int,
    epochs: int | None = None,
    *,
    steps: int | None = None,
    sampling: Literal["poisson", "shuffled", "undeclared"] | None = "poisson",
    accountant: AnyAccountant = "pld",
    relative_tolerance: float = 1e-3,
    releases: Entries = (),
    relation: Relation | None = None,
) -> float:
    """Returns the least joint noise multiplier that keeps a training within a target epsilon.

    Epsilon is for the release of the noisy gradients of all steps and of `releases`. The multiplier is the joint one:
    the stddev of the noise over the L2 sensitivity of all the gradients of a step together.

    Args:
        target_epsilon: float > 0.
        delta: float in (0, 1).
        batch_size: int >= 1, B, the expected one for Poisson sampling.
        num_examples: int >= B, n, a public constant.
        epochs: int >= 1; may be left out when `steps` is given.
        steps: int >= 1 or None, `epochs * ceil(n / B)` when None.
        sampling: `"poisson"` (amplified, probability B / n), `"shuffled"` (one Gaussian per pass: `epochs` of them, or
            as many as `steps` needs if that is more) or `"undeclared"` (one per step; None is the same).
        accountant: `"pld"`, `"rdp"` or an object with `epsilon(entries, delta)`.
        relative_tolerance: float > 0, how far above the least multiplier the answer may be.
        releases: iterable of `(event, count)`, what else the whole training releases (adaptive clipping, say).
        relation: the neighbouring relation, a key of `RELATIONS`; None is `neighboring_relation` of all entries, which
            is `add_or_remove_one` for Poisson sampling and `zero_out` otherwise.

    Returns:
        float, a multiplier that was itself priced at `target_epsilon` or less.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for a number out of range, an unknown sampling, accountant or relation, or a target that no noise
            reaches.
    """
    who = "calibrate_noise"
    target = _checks.number(who, "target_epsilon", target_epsilon, above=0.0)
    tolerance = _checks.number(who, "relative_tolerance", relative_tolerance, above=0.0)
    num_examples = _checks.integer(who, "num_examples", num_examples)
    remedy = "A batch cannot be larger than the training set."
    batch_size = _checks.integer(who, "batch_size", batch_size, at_most=num_examples, remedy=remedy)
    steps_per_pass = math.ceil(num_examples / batch_size)
    if steps is not None:
        steps = _checks.integer(who, "steps", steps)
    if steps is None or epochs is not None:
        epochs = _checks.integer(who, "epochs", epochs, remedy="Pass epochs or steps.")
    plan = _checks.choice(who, "sampling", sampling, _PLANS)
    sampling, count = plan(batch_size, num_examples, epochs, steps, steps_per_pass)
    accountant, releases = get_accountant(accountant), list(releases)

    def fits(multiplier):
        entries = [(GaussianStep(sampling, multiplier), count), *releases]
        return compute_epsilon(entries, delta, accountant, relation) <= target

    low = high = 1.0
    if fits(high):
        while fits(low := low / 2):
            high = low
            if low <= _LEAST_NOISE:
                return high
    else:
        while not fits(high := high * 2):
            low = high
            if high >= _LARGEST_NOISE:
                expected = f"a target that some noise multiplier up to {_LARGEST_NOISE:g} reaches"
                received = f"target_epsilon={target!r}, delta={delta!r}, count={count!r}, releases={releases!r}"
                remedy = "Raise target_epsilon or delta, train for fewer steps, or release less besides."
                raise ValueError(_checks.message(who, expected, received, remedy))
    while high > (1.0 + tolerance) * low:
        middle = math.sqrt(low * high)
        if not low < middle < high:  # a tolerance finer than float64
            break
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
