"""What a search over hyper-parameters costs when it releases the best of its runs only."""

import math
from typing import Literal

from deel.lipdp import _checks
from deel.lipdp.accounting._types import Entries, Relation
from deel.lipdp.accounting.accountants import _RDP_ERROR
from deel.lipdp.accounting.relations import merge

__all__ = ["compute_search_epsilon"]

# Shape of the distribution of the number of runs, as dp-accounting's RepeatAndSelectDpEvent has it.
_SHAPES = {"poisson": math.inf, "geometric": 1.0, "logarithmic": 0.0}


def _event(term):
    """Returns the dp-accounting event of one mechanism."""
    from dp_accounting import dp_event

    noise, probability, multiplier = term
    if noise == "gaussian" and probability < 1.0:
        gaussian = dp_event.GaussianDpEvent(multiplier)
        return dp_event.PoissonSampledDpEvent(probability, gaussian)
    if noise == "gaussian":
        return dp_event.GaussianDpEvent(multiplier)
    if noise == "laplace" and probability == 1.0:
        return dp_event.LaplaceDpEvent(multiplier)
    expected = "events whose Renyi divergence dp-accounting knows: Gaussian steps (Poisson-sampled ones not under "
    expected += "'replace_one'), and Laplace steps that are not amplified by sampling"
    remedy = (
        "Ask for 'add_or_remove_one' or 'zero_out', or count Laplace steps with UndeclaredSampling, which costs more."
    )
    raise ValueError(_checks.message("compute_search_epsilon", expected, repr(term), remedy))


def compute_search_epsilon(
    entries: Entries,
    delta: float,
    mean_runs: float,
    distribution: Literal["geometric", "poisson", "logarithmic"] | float = "geometric",
    *,
    relation: Relation | None = None,
) -> float:
    """Returns epsilon of a random number of runs of which only the best is released.

    The price is that of Papernot and Steinke, "Hyperparameter Tuning with Renyi Differential Privacy", 2022 (theorem 6
    for `"poisson"`, theorem 2 for the others), as dp-accounting computes it. It holds only if

    - the number of runs was drawn at random from exactly this distribution, independently of the data, and all of them
      were made: no stopping when a result looks good enough, no run added afterwards;
    - each run drew its candidate at random, independently of the data, from one list that was fixed before, and each
      candidate costs at most `entries`, whatever its hyper-parameters;
    - only the best run is released, nothing of the others: neither their scores nor how many there were. The score by
      which the best was chosen is part of what a run releases, so a score on private training data must be paid for in
      `entries`; one on public data, or on data that this epsilon does not cover, is free;
    - a Poisson number of runs may be 0 (with probability `exp(-mean_runs)`): what is released then was fixed before.

    Args:
        entries: iterable of `(event, count)`, what one run releases.
        delta: float in (0, 1).
        mean_runs: float >= 1, the mean number of runs (for all but `"poisson"` among numbers of at least 1).
        distribution: `"geometric"`, `"poisson"`, `"logarithmic"`, or a float > 0, the shape of a truncated negative
            binomial distribution (1.0 is the geometric one).
        relation: the neighbouring relation, a key of `RELATIONS`; None is `neighboring_relation(entries)`.

    Returns:
        float >= 0: 0.0 if a run releases nothing, infinity if it releases something without noise.

    Raises:
        TypeError: for an event of unknown type, or an argument of the wrong type.
        ValueError: for a number out of range, an unknown distribution, or an event without a price under that relation.
    """
    who = "compute_search_epsilon"
    delta = _checks.number(who, "delta", delta, above=0.0, below=1.0)
    mean_runs = _checks.number(who, "mean_runs", mean_runs, at_least=1.0)
    if isinstance(distribution, (int, float)):
        shape = _checks.number(who, "distribution", distribution, above=0.0)
    else:
        remedy = "Or pass the shape of a truncated negative binomial distribution."
        shape = _checks.choice(who, "distribution", distribution, _SHAPES, remedy=remedy)
    terms = merge(who, entries, relation)
    if not terms:
        return 0.0
    if any(term.multiplier == 0.0 for term in terms):
        return math.inf

    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    steps = [dp_event.SelfComposedDpEvent(_event(term), count) for term, count in terms.items()]
    # Where a divergence is almost 0 rounding can make it negative, which would count as no cost at all.
    steps.append(dp_event.ZCDpEvent(rho=0.0, xi=_RDP_ERROR * sum(terms.values())))
    run = dp_event.ComposedDpEvent(steps)
    accountant = RdpAccountant().compose(dp_event.RepeatAndSelectDpEvent(run, mean_runs, shape))
    epsilon = float(accountant.get_epsilon(delta))
    return math.inf if math.isnan(epsilon) else epsilon
