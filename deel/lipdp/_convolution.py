"""Windows of a convolution, counted along one axis, and what borders take off the gradient of its kernel. No Keras."""

import functools
import math

import numpy as np
from scipy import optimize, sparse

__all__ = ["kernel_gradient_factor", "window_count", "window_positions"]

# Entries (windows times positions) for which an eigenvalue is bounded: borders matter little on longer axes.
_LARGEST_AXIS = 32**2

# The quotient below is valid after any number of iterations; more of them make it smaller.
_ITERATIONS = 200

# For sums of at most 10^4 positive double-precision terms, far more than they can be off by.
_ROUNDING = 1e-9


def window_positions(size, kernel_size, stride=1, padding="valid", dilation=1):
    """Which entry of an axis each window sees at each kernel offset.

    Args:
        size: int, length of the axis.
        kernel_size, stride, dilation: int.
        padding: `"valid"`, `"same"` (zeros, as Keras places them) or `"causal"` (zeros before the first entry only).

    Returns:
        Array of int (kernel_size, windows); below 0, or `size` and more, in the padding.
    """
    extent = (kernel_size - 1) * dilation + 1
    num_windows, before = -(-size // stride), 0
    if padding == "same":
        before = max((num_windows - 1) * stride + extent - size, 0) // 2
    elif padding == "causal":
        before = extent - 1
    else:
        num_windows = max((size - extent) // stride + 1, 0)
    return np.arange(kernel_size)[:, None] * dilation + np.arange(num_windows)[None, :] * stride - before


def window_count(size, kernel_size, stride=1, padding="valid", dilation=1):
    """Largest number of windows that one entry of an axis is in.

    Counted, not bounded by `ceil(kernel_size / stride)`, so short axes get their true number.

    Args:
        size, kernel_size, stride, padding, dilation: as for `window_positions`.

    Returns:
        int, at least 1 where any window exists.
    """
    positions = window_positions(size, kernel_size, stride, padding, dilation)
    inside = positions[(positions >= 0) & (positions < size)]
    return int(np.bincount(inside).max()) if inside.size else 0


def _eigenvalue_bound(pairs, shape, share):
    """Upper bound on the largest eigenvalue of `share * M + (1 - share) * S`, see `kernel_gradient_factor`."""
    v, bound = np.ones(shape), math.inf
    for _ in range(_ITERATIONS):
        image = np.zeros(shape)
        for windows, entries in pairs:
            block = np.ix_(windows, entries)
            image[block] += (1.0 - share) * v[block].T
            image[windows, entries] += share * v[windows, entries].sum()
        bound = min(bound, float((image / v).max()))
        v = v + image / max(bound, 1.0)  # the identity is added, lest the iteration oscillates
        v = np.maximum(v / v.max(), 1e-200)
    return bound * (1.0 + _ROUNDING)


@functools.lru_cache(maxsize=1024)
def kernel_gradient_factor(size, kernel_size, stride=1, padding="valid", dilation=1):
    """Certified f with `||kernel gradient|| <= f ||input|| ||cotangent||` for a convolution along one axis.

    Over several axes, and any numbers of channels, the factors multiply. At most the root of the number of windows one
    entry is in; less on short axes, where no input has all its weight on entries that are in so many windows.

    One axis, one channel: with W_o the pairs (i, a) of a window i and the entry a that it sees at offset o, the
    gradient is `c_o = sum over W_o of g_i x_a`. So `sum of c_o^2` is a quadratic form in the vector `g_i x_a`, in two
    ways: of M, which pairs (i, a) with (j, b) for any two in W_o, and of S, which pairs (i, b) with (j, a), since
    `g_i x_a g_j x_b = g_i x_b g_j x_a`. Hence it is at most the largest eigenvalue of any mean of the two, times
    `||g||^2 ||x||^2`. Both are symmetric with entries >= 0, so `max (A v)_r / v_r` bounds that eigenvalue from above
    for every v > 0 (Collatz and Wielandt), however far the power iteration that made v has come.

    Several axes and channels: let T be the 0/1 tensor of W on the first axis, f its factor, f' that of the rest. For
    norm-1 K, `<K, gradient>` is at most `sum over T of f' ||K_o|| ||x_a|| ||g_i||`, where index o, a, i stands for a
    slice over all other axes and channels; entries of T are >= 0, so that is at most `f f' ||K|| ||x|| ||g||`. For
    channels alone `|<K_o, x_a^T g_i>| <= ||K_o|| ||x_a|| ||g_i||`, factor 1.

    Args:
        size, kernel_size, stride, padding, dilation: as for `window_positions`.

    Returns:
        float; 0 where there is no window.
    """
    positions = window_positions(size, kernel_size, stride, padding, dilation)
    count, num_windows = window_count(size, kernel_size, stride, padding, dilation), positions.shape[1]
    if count <= 1 or num_windows * size > _LARGEST_AXIS:
        return math.sqrt(count)
    sees = (positions >= 0) & (positions < size)
    # Dilation takes the axis apart: between windows and entries that share nothing, gradients add up, and
    # `sum over parts of f_r ||x_r|| ||g_r||` is at most the largest f_r times both norms.
    _, windows = np.nonzero(sees)
    graph = sparse.coo_array(
        (np.ones(len(windows)), (windows, num_windows + positions[sees])), shape=(num_windows + size,) * 2
    )
    _, part = sparse.csgraph.connected_components(graph, directed=False)
    return math.sqrt(
        min(count, max(_part_bound(positions, sees & (part[:num_windows] == p)) for p in set(part[windows])))
    )


def _part_bound(positions, sees):
    """Square of the factor for the windows and entries of one part of the axis."""
    rows, columns = (np.unique(v, return_inverse=True) for v in (np.nonzero(sees)[1], positions[sees]))
    shape, offset = (len(rows[0]), len(columns[0])), np.nonzero(sees)[0]
    pairs = [(rows[1][offset == o], columns[1][offset == o]) for o in np.unique(offset)]
    # Convex in the share, so the search finds the best; any share is valid.
    best = optimize.minimize_scalar(
        lambda share: _eigenvalue_bound(pairs, shape, share),
        bounds=(0.0, 1.0),
        method="bounded",
        options={"maxiter": 15},
    )
    return best.fun
