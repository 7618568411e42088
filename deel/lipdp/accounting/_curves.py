"""The price of one mechanism: its Renyi curve by autodp, its privacy loss distribution by dp-accounting."""

import functools
import math

__all__ = ["amplified_mechanism", "compose_steps", "loss_distribution", "loss_width", "solve_epsilon"]

# Widths of the grid of privacy losses: usual; finest, because probabilities are differences divided by the width; and
# the coarsest that is taken only to save time.
_WIDTH, _FINEST_WIDTH, _COARSE_WIDTH = 1e-4, 1e-6, 4e-4
_BLOCK = 1_000_000  # most steps in one Fourier transform
# Log of the probability that a step's loss is rounded up to infinity: below the error of the Fourier transform.
_LOG_TRUNCATION = -36
_LARGEST_EPSILON = 1e5
_LARGEST_LAPLACE_LOSS = 700.0  # dp-accounting takes its exponential


def amplified_mechanism(noise, probability, multiplier):
    """Returns the autodp mechanism of one step, its RDP curve kept at integer orders for the next call."""
    from autodp.mechanism_zoo import GaussianMechanism, LaplaceMechanism  # 3 s, and matplotlib
    from autodp.transformer_zoo import AmplificationBySampling

    mechanism = {"gaussian": GaussianMechanism, "laplace": LaplaceMechanism}[noise](multiplier)
    if probability == 1.0:
        return mechanism
    # The "improved" bound is the binomial expansion of the divergence of the mixture from the plain noise, which is
    # exact. The reverse divergence is no larger for Gaussian and Laplace noise, whose two densities a reflection swaps:
    # Mironov, Talwar and Zhang, 2019, theorem 5. (autodp's general bound is up to 8 times that for Laplace.)
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


def _spread(noise, multiplier):
    """Returns of the unamplified loss: log of one plus its chi-square divergence, its mean, and about its maximum."""
    inverse = 1.0 / multiplier
    if noise == "laplace":
        # From 2/3 exp(1/b) + 1/3 exp(-2/b), whose logarithm this is without overflow.
        return inverse + math.log1p(math.expm1(-3 * inverse) / 3), inverse + math.expm1(-inverse), inverse
    return inverse**2, inverse**2 / 2, inverse**2 / 2 + 10 * inverse


def loss_width(terms):
    """Returns the width of the grid on which privacy losses are rounded.

    Losses are rounded towards more epsilon, so the width never decides soundness: only time, memory and tightness. It
    is 1e-4, or a 75th of the spread of one step's loss where that is more (3e-5 of epsilon was seen, relative), or a
    tenth of it where that is less (some 1e-4), unless that would take more than 2 million grid points. Infinite where
    dp-accounting would overflow.
    """
    width, reach, total = _COARSE_WIDTH, 0.0, 0.0
    if any(noise == "laplace" and multiplier < 1.0 / _LARGEST_LAPLACE_LOSS for noise, _, multiplier in terms):
        return math.inf
    for (noise, probability, multiplier), steps in terms.items():
        second_moment, full_mean, full = _spread(noise, multiplier)
        ratio_stddev = probability * math.sqrt(math.expm1(min(second_moment, 700.0)))
        largest = math.log1p(probability * math.expm1(min(full, 700.0))) + max(0.0, full - 700.0)
        mean = min(math.log1p(ratio_stddev**2), probability * full_mean)
        stddev = min(ratio_stddev, math.sqrt(probability) * largest)
        # The loss of a pair is the sum of the losses of its two records against the null record.
        apart = 2 if noise == "gaussian_pair" else 1
        usual = max(min(_WIDTH, ratio_stddev / 10), ratio_stddev / 75) if probability < 1.0 else _WIDTH
        width = min(width, usual)
        reach = max(reach, apart * largest)
        total += 2 * steps * apart**2 * mean + 16 * math.sqrt(steps) * apart * stddev + apart * largest
    width = max(width, reach / 3e5, total / 2e6, _FINEST_WIDTH)
    # Powers of two, so that the same distribution serves while the steps grow.
    return _WIDTH * 2.0 ** math.ceil(math.log2(width / _WIDTH))


def loss_distribution(noise, probability, multiplier, width):
    """Returns the privacy loss distribution of one step, in both directions where they differ.

    A "gaussian_pair" is `(1-q) N(0) + q N(1)` against `(1-q) N(0) + q N(-1)`: of all pairs of records u and v of norm
    at most 1 the opposite ones cost most. Divided by the density of N(u), the other two Gaussians are log-normal with
    log-variances of at most 4 and 1, and enter with positive weights; of all joint laws with such marginals the
    comonotone one is the largest in convex order (Dhaene et al., 2002), which is that of v, 0 and u in line.
    """
    from dp_accounting.pld import privacy_loss_distribution
    from dp_accounting.privacy_accountant import NeighboringRelation

    keywords = {"value_discretization_interval": width, "sampling_prob": probability}
    if noise == "laplace":
        return privacy_loss_distribution.from_laplace_mechanism(multiplier, **keywords)
    pair = noise == "gaussian_pair"
    relation = NeighboringRelation.REPLACE_ONE if pair else NeighboringRelation.ADD_OR_REMOVE_ONE
    return privacy_loss_distribution.from_gaussian_mechanism(
        multiplier, neighboring_relation=relation, log_mass_truncation_bound=_LOG_TRUNCATION, **keywords
    )


def compose_steps(distribution, steps):
    """Returns distributions that compose to `steps` times this one."""
    # In blocks, because dp-accounting computes `points ** steps` as an exact integer: 2 minutes at 10 million steps.
    blocks, rest = divmod(steps, _BLOCK)
    parts = [distribution.self_compose(_BLOCK).self_compose(blocks)] if blocks else []
    return parts + ([distribution.self_compose(rest)] if rest else [])


def solve_epsilon(loss, delta):
    """Returns the epsilon of a privacy loss distribution, at most 1e-9 above the least; infinity if there is none.

    dp-accounting walks over the grid point by point instead: half of the time of a whole query.
    """
    from scipy.optimize import brentq  # 0.4 s

    def excess(epsilon):
        return math.log(max(loss.get_delta_for_epsilon(epsilon), 1e-300) / delta)

    low, high = 0.0, 1.0
    if excess(low) <= 0.0:
        return 0.0
    while excess(high) > 0.0:
        low, high = high, 2.0 * high
        if high > _LARGEST_EPSILON:
            return math.inf
    epsilon, step = brentq(excess, low, high, xtol=1e-10, rtol=1e-12), 1e-10
    while excess(epsilon) > 0.0:  # the search may end on either side
        epsilon, step = epsilon + step, 2.0 * step
    return epsilon
