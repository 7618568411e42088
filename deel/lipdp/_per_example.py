"""Pure functions on the examples of a batch, each on its own: what the guards and the layers are made of."""

import math

import numpy as np
from keras import ops

__all__ = ["finite_in_ball", "finite_or_zero", "half_squares", "project_on_ball", "root", "unit_scale"]

# Below this energy for each entry of a window, its norm and gradient are divided by the root of this instead of the
# norm, which makes both smaller. Squares below about 1e-38 lose their digits in float32, and a gradient x / ||x|| made
# of them could have any norm; above it they are at most 1e-8 of the window's energy.
_SMALLEST_ENERGY = 1e-30


def finite_or_zero(x):
    """NaN and infinities become 0, the rest stays."""
    return ops.where(ops.isfinite(x), x, ops.zeros_like(x))


def unit_scale(x, axes=None):
    """Splits each example, or each of its slices, into one with largest entry 1, its norm, and the scale taken out.

    No square overflows or vanishes whatever the scale, and every gradient is finite, at zero too. The scale is a
    constant for differentiation: users are homogeneous in x, so its derivative cancels.

    Args:
        x: tensor (batch, ...), finite.
        axes: tuple of int, the axes of a slice; None for all but the first.

    Returns:
        `(unit, norm, scale)` with `x = unit * scale`; norm and scale are of size 1 along `axes`, and norm >= 1. What is
        all zeros has unit 0, norm 1 and scale 0.
    """
    axes = tuple(range(1, len(x.shape))) if axes is None else axes
    # `initial` lets a batch be empty.
    scale = ops.stop_gradient(ops.max(ops.abs(x), axis=axes, keepdims=True, initial=0))
    nonzero = scale > 0
    unit = x / ops.where(nonzero, scale, ops.ones_like(scale))
    squares = ops.sum(unit * unit, axis=axes, keepdims=True)
    return unit, ops.sqrt(ops.where(nonzero, squares, ops.ones_like(squares))), scale


def project_on_ball(x, radius):
    """Projects each example of a batch on the Euclidean ball: identity inside, bit for bit.

    Args:
        x: tensor (batch, ...), finite.
        radius: positive float or scalar tensor.

    Returns:
        Tensor of the same shape, each example of norm at most `radius`.
    """
    unit, norm, scale = unit_scale(x)
    limit = radius / norm
    return ops.where(scale <= limit, x, unit * limit)


def finite_in_ball(x, radius):
    """Entries that are not finite become 0, then each example of a batch is projected on the Euclidean ball.

    Two passes are enough where all examples are inside, as data are whose bound is their largest norm: a sum of squares
    has no NaN, no overflow and no rounding that could hide an example outside. The others get the same either way.

    Args:
        x: tensor (batch, ...).
        radius: positive float.

    Returns:
        Tensor of the same shape, each example finite and of norm at most `radius`.
    """

    def projected():
        return project_on_ball(finite_or_zero(x), radius)

    if not 1e-12 <= radius <= 1e15:  # its square, or the squares of what matters beside it, leave single precision
        return projected()
    size = math.prod(x.shape[1:])
    # The error of a sum is below size * eps / 2.
    limit = radius**2 * (1.0 - max(1e-3, size * float(np.finfo("float32").eps)))
    squares = ops.sum(x * x, axis=tuple(range(1, len(x.shape))))
    return ops.cond(ops.all(squares <= limit), lambda: x, projected)


def half_squares(inputs):
    """The squares, with half of their derivative left out, as `root` leaves out the half that belongs to a root."""
    return inputs * ops.stop_gradient(inputs)


def root(energy, window):
    """Square root of a sum of `window` of the squares above; the gradient is x / ||x||.

    Two passes over the image are saved, and no root is differentiated, which at 0 would give NaN. The gradient is that
    of a 1-Lipschitz function, and the value is never further from it than half of what replaces the norm near 0, which
    is 1e-15 times the root of `window`.
    """
    return energy * ops.stop_gradient(ops.rsqrt(ops.maximum(energy, _SMALLEST_ENERGY * window)))
