"""The largest gradient of a convolution's kernel: what borders take off the number of windows. Pure NumPy."""

import functools
import math

import numpy as np
from scipy import optimize

__all__ = ["kernel_gradient_factor", "window_positions"]

# Entries of the vector that an eigenvalue is bounded with. Beyond the first, each axis on its own serves; beyond the
# second, the number of windows: borders matter little for large images.
_LARGEST_JOINT, _LARGEST_AXIS = 128**2, 64**2

# A Collatz-Wielandt quotient is valid after any number of iterations; more make it smaller.
_ITERATIONS = 200

# Sums of at most 10^4 positive double-precision terms, far inside of this.
_ROUNDING = 1e-9


def window_positions(size, kernel_size, stride=1, padding="valid", dilation=1):
    """Which entry each window sees at each kernel offset, along one axis.

    Args:
        size: int, length of the axis.
        kernel_size, stride, dilation: int.
        padding: `"valid"` or `"same"` (zeros, as Keras places them).

    Returns:
        Array of int (kernel_size, windows), the entry, -1 or `size` and more for padding.
    """
    extent = (kernel_size - 1) * dilation + 1
    if padding == "same":
        num_windows = -(-size // stride)
        before = max((num_windows - 1) * stride + extent - size, 0) // 2
    else:
        num_windows = (size - extent) // stride + 1
        before = 0
    return np.arange(kernel_size)[:, None] * dilation + np.arange(num_windows)[None, :] * stride - before


def _pairs(positions, size):
    """For each offset, the windows and the entries they see, without padding."""
    inside = (positions >= 0) & (positions < size)
    return [(np.flatnonzero(ok), row[ok]) for row, ok in zip(positions, inside, strict=True) if ok.any()]


def _times(first, second, size):
    """Offsets of two axes together: windows and entries numbered row by row."""
    (count, width) = size
    return [
        ((i[:, None] * count + j).ravel(), (a[:, None] * width + b).ravel()) for i, a in first for j, b in second
    ]


def _eigenvalue_bound(pairs, shape, share):
    """Upper bound on the largest eigenvalue of `share * M + (1 - share) * S`, see `kernel_gradient_factor`."""
    blocks = [np.ix_(windows, entries) for windows, entries in pairs]

    def apply(v):
        out = np.zeros(shape)
        for block, (windows, entries) in zip(blocks, pairs, strict=True):
            if share < 1.0:
                out[block] += (1.0 - share) * v[block].T
            if share > 0.0:
                out[windows, entries] += share * v[windows, entries].sum()
        return out

    v, bound = np.ones(shape), math.inf
    for _ in range(_ITERATIONS):
        image = apply(v)
        bound = min(bound, float((image / v).max()))
        v = v + image / max(bound, 1.0)  # the identity is added, lest the iteration oscillates
        v = np.maximum(v / v.max(), 1e-200)
    return bound * (1.0 + _ROUNDING)


def _axis_bound(pairs, shape, count):
    return _eigenvalue_bound(pairs, shape, 0.0) if math.prod(shape) <= _LARGEST_AXIS else count


@functools.lru_cache(maxsize=256)
def kernel_gradient_factor(image_size, kernel_size, strides, dilations, padding):
    """Certified f with `||kernel gradient|| <= f ||input|| ||cotangent||` for a convolution with zero padding.

    At most the root of the number of windows one pixel is in, and less on small images, where no input has all its
    weight on pixels that are in so many windows.

    For one input channel x and one output channel u the gradient at offset o is `c_o = sum over (i, a) in W_o of
    u_i x_a`, W_o the pairs of a window and the pixel it sees at o. So `sum of c_o^2` is a quadratic form in the vector
    `u_i x_a`, in two ways: with M, which pairs (i, a) and (j, b) of one W_o, and with S, which pairs (i, b) and (j, a),
    since `u_i x_a u_j x_b = u_i x_b u_j x_a`. It is at most the largest eigenvalue of any mean of the two times
    `||u||^2 ||x||^2`; summed over all pairs of channels that is the bound. S of several axes is the Kronecker product
    of those of each, so their eigenvalues multiply. Both matrices have entries >= 0, so `max (A v)_r / v_r` bounds the
    eigenvalue from above for any v > 0 (Collatz and Wielandt).

    Args:
        image_size, kernel_size, strides, dilations: tuples of int, one for each spatial axis.
        padding: `"valid"` or `"same"`.

    Returns:
        float; 0 where there is no window.
    """
    axes, counts = [], []
    for n, k, s, d in zip(image_size, kernel_size, strides, dilations, strict=True):
        positions = window_positions(n, k, s, padding, d)
        if positions.shape[1] < 1:
            return 0.0
        inside = positions[(positions >= 0) & (positions < n)]
        counts.append(int(np.bincount(inside).max()))
        axes.append((_pairs(positions, n), (positions.shape[1], n)))
    bound = math.prod(min(_axis_bound(p, shape, m), m) for (p, shape), m in zip(axes, counts, strict=True))
    pairs, shape = axes[0]
    for more, size in axes[1:]:
        pairs, shape = _times(pairs, more, size), (shape[0] * size[0], shape[1] * size[1])
    # Without an overlap the bound is 1 already, and attained.
    if bound > 1.0 + _ROUNDING and math.prod(shape) <= _LARGEST_JOINT:
        best = optimize.minimize_scalar(
            lambda share: _eigenvalue_bound(pairs, shape, share), bounds=(0.0, 1.0), method="bounded",
            options={"maxiter": 12},
        )
        bound = min(bound, best.fun)
    return math.sqrt(bound)
