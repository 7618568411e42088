"""Noise or steps for a target epsilon: monotone searches that end on the private side."""

import math

from deel.lipdp import _checks
from deel.lipdp.accounting.accountants import get_accountant
from deel.lipdp.accounting.events import GaussianStep, PoissonSampling, UndeclaredSampling

__all__ = ["calibrate_noise", "max_steps"]

_LEAST_NOISE, _LARGEST_NOISE = 2.0**-10, 2.0**30

_SAMPLINGS = {
    "poisson": PoissonSampling,
    "undeclared": lambda sampling_probability: UndeclaredSampling(),
}
_SAMPLINGS[None] = _SAMPLINGS["undeclared"]  # as DatasetMetadata spells it


def max_steps(event, epsilon, delta, *, spent=(), accountant="pld", limit=10_000_000):
    """Returns how many more steps of `event` fit in a budget.

    The budget is under `neighboring_relation` of `spent` and `event` together, for the sampling that the event declares
    and the release of the noisy gradients of all steps.

    Args:
        event: `GaussianStep`, the step to repeat.
        epsilon: float >= 0, the budget.
        delta: float in (0, 1).
        spent: iterable of `(GaussianStep, steps)`, what was released before.
        accountant: `"pld"`, `"rdp"` or an object with `epsilon(entries, delta)`.
        limit: int >= 1, the largest answer.

    Returns:
        int, the largest count of at most `limit` whose epsilon, together with `spent`, is at most `epsilon`; 0 when not
        even one step fits.

    Raises:
        TypeError, ValueError: for an unknown event or accountant, or a number out of range.
    """
    who = "max_steps"
    epsilon = _checks.number(who, "epsilon", epsilon, at_least=0.0, finite=False)
    limit = _checks.integer(who, "limit", limit)
    spent, accountant = list(spent), get_accountant(accountant)

    def fits(steps):
        return accountant.epsilon([*spent, (event, steps)], delta) <= epsilon

    good, bad = 0, 1
    while fits(bad):
        good = bad
        if good == limit:
            return limit
        bad = min(2 * good, limit)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def calibrate_noise(
    target_epsilon,
    delta,
    batch_size,
    num_examples,
    epochs=None,
    *,
    steps=None,
    sampling="poisson",
    accountant="pld",
    relative_tolerance=1e-3,
):
    """Returns the least joint noise multiplier that keeps a training within a target epsilon.

    Epsilon is for the release of the noisy gradients of all steps, under `add_or_remove_one` for Poisson sampling and
    `zero_out` for undeclared sampling. The multiplier is the joint one: the stddev of the noise over the L2 sensitivity
    of all the gradients of a step together.

    Args:
        target_epsilon: float > 0.
        delta: float in (0, 1).
        batch_size: int >= 1, B, the expected one for Poisson sampling.
        num_examples: int >= B, n, a public constant.
        epochs: int >= 1; may be left out when `steps` is given.
        steps: int >= 1 or None, `epochs * ceil(n / B)` when None.
        sampling: `"poisson"` (amplified, probability B / n) or `"undeclared"` (None is the same; not amplified).
        accountant: `"pld"`, `"rdp"` or an object with `epsilon(entries, delta)`.
        relative_tolerance: float > 0, how far above the least multiplier the answer may be.

    Returns:
        float, a multiplier that was itself priced at `target_epsilon` or less.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for a number out of range, an unknown sampling or accountant, or a target that no noise reaches.
    """
    who = "calibrate_noise"
    target = _checks.number(who, "target_epsilon", target_epsilon, above=0.0)
    tolerance = _checks.number(who, "relative_tolerance", relative_tolerance, above=0.0)
    num_examples = _checks.integer(who, "num_examples", num_examples)
    remedy = "A batch cannot be larger than the training set."
    batch_size = _checks.integer(who, "batch_size", batch_size, at_most=num_examples, remedy=remedy)
    if steps is None:
        remedy = "Pass epochs or steps."
        steps = _checks.integer(who, "epochs", epochs, remedy=remedy) * math.ceil(num_examples / batch_size)
    steps = _checks.integer(who, "steps", steps)
    sampling = _checks.choice(who, "sampling", sampling, _SAMPLINGS)(batch_size / num_examples)
    accountant = get_accountant(accountant)

    def fits(multiplier):
        return accountant.epsilon([(GaussianStep(sampling, multiplier), steps)], delta) <= target

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
                received = f"target_epsilon={target!r}, delta={delta!r}, steps={steps!r}"
                remedy = "Raise target_epsilon or delta, or train for fewer steps."
                raise ValueError(_checks.message(who, expected, received, remedy))
    while high > (1.0 + tolerance) * low:
        middle = math.sqrt(low * high)
        if not low < middle < high:  # a tolerance finer than float64
            break
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
