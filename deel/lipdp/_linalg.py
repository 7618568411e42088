"""Norms certified from above, and orthogonalisation: pure functions on weights.

Certificates start in double precision, whatever the precision of the weights, and state the slack for every rounding
in them, for the worst matrix of its size. Orthogonalisation only moves weights to a better place inside their set, so
single precision is enough there.
"""

import dataclasses
import functools
import math

import keras
import numpy as np
from keras import ops

from deel.lipdp._convolution import kernel_gradient_factor, window_count

__all__ = [
    "ConvGeometry",
    "centred_convolution",
    "conv_norm_bound",
    "euclidean_norm_bound",
    "isometry_step",
    "matrix_norm_bound",
    "norm_is_at_most_one",
    "orthogonalize",
    "orthogonalize_convolution",
]

_EPS = {name: float(np.finfo(name).eps) for name in ("float32", "float64")}

# Squarings in a certificate; the last polynomial has twice the degree of the one before.
_SQUARINGS = 3


def _frobenius(*parts):
    """Frobenius norm of a matrix given by its parts, or of each of a batch, as (..., 1, 1); None counts as zero.

    Rows first, so that no entry is in more additions than twice the side.
    """
    rows = sum(ops.sum(part * part, axis=-1, keepdims=True) for part in parts if part is not None)
    return ops.sqrt(ops.sum(rows, axis=-2, keepdims=True))


def _mean_eigenvalue(matrix):
    return ops.trace(matrix, axis1=-2, axis2=-1)[..., None, None] / matrix.shape[-1]


def _add_to_diagonal(matrix, value):
    """A matrix, or each of a batch, plus `value` times the identity; value is a float or (..., 1, 1).

    Without an identity matrix: TensorFlow would keep one, of the kernel's size, in each graph.
    """
    if keras.backend.backend() != "tensorflow":
        return matrix + value * ops.eye(matrix.shape[-1], dtype=matrix.dtype)
    import tensorflow as tf

    value = value if isinstance(value, float) else value[..., 0]
    return tf.linalg.set_diag(matrix, tf.linalg.diag_part(matrix) + value)


def _square(real, imag):
    """`M^H M` of `M = real + i imag`, as its real and imaginary part."""
    transposed = ops.swapaxes(real, -2, -1)
    square = ops.matmul(transposed, real)
    if imag is None:
        return square, None
    cross = ops.matmul(transposed, imag)
    return square + ops.matmul(ops.swapaxes(imag, -2, -1), imag), cross - ops.swapaxes(cross, -2, -1)


def _square_rounding(terms, precision):
    """Frobenius norm of the error of `_square`, over the squared Frobenius norm of M, `terms` products in each entry.

    Any order of summation is off by `terms u` times the sum of the absolute values, u = eps / 2: for the real part by
    `(terms + 1) u (||Re||^2 + ||Im||^2)`, for the imaginary one by `2 (terms + 1) u ||Re|| ||Im||`, which is no more.
    """
    return 0.75 * (terms + 8) * _EPS[precision]


def _interval(mean, third, fourth, side):
    """Interval that a Chebyshev polynomial is small on: about where the eigenvalues are. Any would give a valid bound.

    Args:
        mean: of the eigenvalues.
        third, fourth: sums of powers of their distance to the mean, where those of the squares sum to 1.
        side: int, how many there are.

    Returns:
        (low, high), relative to the mean.
    """
    extreme = fourth**0.25  # no eigenvalue is further from the mean
    spread = side**-0.5
    # A tail below the mean shows in the third power. Without one, 1.8 times the spread is the edge of a semicircle but
    # for a tenth, and with one, nothing may be left out.
    below = ops.where(third > -0.3 * spread, 1.8 * spread, extreme)
    below = ops.minimum(below, mean)
    # Means of the eigenvalues with weights that are their square and their cube: both less than the largest.
    second = 1.0 + side * below**2
    cubes = third + 3.0 * below + side * below**3
    fourths = fourth + 4.0 * below * third + 6.0 * below**2 + side * below**4
    first_mean, second_mean = cubes / second, fourths / cubes
    # The edge of a dense spectrum is further on in their direction. Of a few eigenvalues the largest is near both.
    high = ops.minimum(second_mean + min(2.0, side / 16) * (second_mean - first_mean) - below, extreme)
    return -below, ops.maximum(high, -below + 0.1 * spread)


def _largest_eigenvalue_bound(real, imag, squarings):
    """Upper bound on the largest eigenvalue of each matrix `real + i imag` of a batch, as float64 (..., 1, 1).

    The matrices are positive semidefinite, and Hermitian up to rounding; the bound is for the Hermitian part, H. With
    its mean eigenvalue s, `A = (H - s) / ||H - s||_F`, and an interval [c - w, c + w], let `M_1 = T_2((A - c) / w)` and
    `M_(j+1) = 2 M_j^2 - 1`: the Chebyshev polynomials of degree 2^j, at most 1 on the interval and growing faster
    outside than any other polynomial of that degree that is. So a Frobenius norm of the last, about the root of the
    side for what is inside, leaves no eigenvalue far outside:

        ||M_j||^2 = ||M_j^2|| <= (||M_(j+1)|| + 1) / 2,     |x|^2 = (T_2(x) + 1) / 2,

    and the largest eigenvalue is at most `s + ||H - s||_F (c + w |x|)`. It is also at most
    `s + ||H - s||_F ||A^2||_F^(1/2)`, which is better where a single one stands out, and the trace.

    Rounding: A is exactly Hermitian in single precision, each product is off by what `_square_rounding` says, and the
    combinations around it by a few eps of their terms. `M_j^H M_j` is computed for the square, so nothing is asked of
    the M_j that are computed but to be near.

    References:
        Delattre, Barthélemy, Araujo, Allauzen: Efficient bound of Lipschitz constant for convolutional layers by Gram
        iteration. ICML 2023 (powers in the place of Chebyshev polynomials).
    """
    side, eps = real.shape[-1], _EPS["float32"]
    sum_rounding = side * _EPS[keras.backend.standardize_dtype(real.dtype)]
    real = 0.5 * (real + ops.swapaxes(real, -2, -1))
    mean = _mean_eigenvalue(real)
    real = _add_to_diagonal(real, -mean)
    norm = _frobenius(real, imag)
    inverse = 1.0 / ops.where(norm > 0, norm, ops.ones_like(norm))
    real = ops.cast(real * inverse, "float32")
    imag = None if imag is None else ops.cast(imag * inverse, "float32")
    norm, mean = ops.cast(norm, "float64"), ops.cast(mean, "float64")
    double = functools.partial(ops.cast, dtype="float64")

    product = _square_rounding(side, "float32")
    # For the sums of `_frobenius`, scaling and casting.
    rounding = (side + 8) * eps
    bound = ops.minimum(mean + norm * (1.0 + rounding), side * mean * (1.0 + sum_rounding))
    if squarings == 0:
        return bound
    square, cross = _square(real, imag)
    size = double(_frobenius(square, cross)) * (1.0 + rounding)
    bound = ops.minimum(bound, mean + norm * (ops.sqrt(size + product) + rounding))
    third = ops.sum(real * square, axis=(-2, -1), keepdims=True)
    if imag is not None:
        third = third + ops.sum(imag * cross, axis=(-2, -1), keepdims=True)
    low, high = _interval(mean / ops.where(norm > 0, norm, 1.0), double(third), size**2, side)
    centre, width = (low + high) / 2.0, (high - low) / 2.0
    terms = 2.0 / width**2, -4.0 * centre / width**2, 2.0 * (centre / width) ** 2 - 1.0
    quadratic, linear, constant = (ops.cast(term, "float32") for term in terms)
    real = _add_to_diagonal(quadratic * square + linear * real, constant)
    imag = None if imag is None else quadratic * cross + linear * imag
    combined = terms[0] * size + ops.abs(terms[1]) + ops.abs(terms[2]) * math.sqrt(side)
    errors = [terms[0] * product + 4.0 * eps * combined]
    size = double(_frobenius(real, imag)) * (1.0 + rounding)
    for _ in range(squarings - 1):
        square, cross = _square(real, imag)
        real, imag = _add_to_diagonal(2.0 * square, -1.0), None if cross is None else 2.0 * cross
        errors.append(2.0 * product * size**2 + 4.0 * eps * (2.0 * size**2 + math.sqrt(side)))
        size = double(_frobenius(real, imag)) * (1.0 + rounding)
    for error in reversed(errors):
        size = ops.sqrt((size + error + 1.0) / 2.0)
    chebyshev = mean + norm * (centre + width * size + rounding)
    # What lies very far outside the interval overflows.
    return ops.where(ops.isfinite(chebyshev), ops.minimum(bound, chebyshev), bound)


def matrix_norm_bound(real, imag=None, squarings=_SQUARINGS, precision="float64"):
    """Certified upper bound on the spectral norm of a matrix, or of each matrix of a batch.

    The root of a bound on the largest eigenvalue of the Gram matrix G of the smaller side, which does not depend on the
    scale of the matrix, so dividing a matrix by its bound leaves one with bound 1. See `_largest_eigenvalue_bound`.

    Args:
        real: tensor (..., m, n), real part.
        imag: tensor of the same shape or None, imaginary part.
        squarings: int, products of n x n matrices spent beside the Gram matrix.
        precision: `"float64"`, or `"float32"`, faster, for matrices with entries around 1.

    Returns:
        float64 tensor (...). Slack for rounding: `0.75 (m + 8) eps trace(G)`, m the larger side, is added to the
        eigenvalue, with the eps of `precision`: G is off by at most that in Frobenius norm (`_square_rounding`).
    """
    real = ops.cast(real, precision)
    imag = None if imag is None else ops.cast(imag, precision)
    rows, columns = real.shape[-2], real.shape[-1]
    if rows < columns:
        real = ops.swapaxes(real, -2, -1)
        imag = None if imag is None else ops.swapaxes(imag, -2, -1)
    slack = _square_rounding(max(rows, columns), precision)
    if min(rows, columns) == 1:
        # G is a number already. Depthwise convolutions have many thousands of these.
        squares = real * real if imag is None else real * real + imag * imag
        return ops.sqrt(ops.cast(ops.sum(squares, axis=(-2, -1)), "float64") * (1.0 + slack))
    gram = _square(real, imag)
    trace = ops.cast(ops.trace(gram[0], axis1=-2, axis2=-1), "float64")
    return ops.sqrt(_largest_eigenvalue_bound(*gram, squarings)[..., 0, 0] + slack * trace)


def norm_is_at_most_one(matrix):
    """Whether a matrix is certified to have a spectral norm of at most 1, as a bool scalar.

    The sharpest certificate, and a slow one: `(1 - t) - G` has a Cholesky factor, G the Gram matrix. That proves it
    positive semidefinite up to `(n + 2) eps` times its trace and up to the error of G, and t is more than both.

    Args:
        matrix: tensor (m, n).

    References:
        Rump: Verification of positive definiteness. BIT Numerical Mathematics 2006.
    """
    matrix = ops.cast(matrix, "float64")
    if matrix.shape[0] < matrix.shape[1]:
        matrix = ops.swapaxes(matrix, 0, 1)
    rows, side = matrix.shape
    gram, _ = _square(matrix, None)
    tolerance = 2.0 * (rows + side + 16) * side * _EPS["float64"]
    factor = _cholesky(_add_to_diagonal(-gram, 1.0 - tolerance))
    # The trace is at most the side where the norm is at most 1.
    return ops.logical_and(ops.all(ops.isfinite(factor)), ops.trace(gram) <= side)


def _cholesky(matrix):
    """Cholesky factor, with NaN in it if there is none: Keras raises then, on TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return ops.cholesky(matrix)
    import tensorflow as tf

    return tf.linalg.cholesky(matrix)


def orthogonalize(matrix, steps):
    """Moves the singular values of a matrix, or of each of a batch, towards 1 by Newton-Schulz steps.

    Each step maps a singular value s in (0, 1] to `s (3 - s^2) / 2`. The steps act on the Gram matrix of the smaller
    side; the matrix itself is multiplied once, at the end. What comes out is **not** certified to have norm 1.

    Args:
        matrix: tensor (..., m, n).
        steps: int >= 0.

    Returns:
        Tensor (..., m, n), of the same dtype.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return ops.swapaxes(orthogonalize(ops.swapaxes(matrix, -2, -1), steps), -2, -1)
    # The result does not depend on the scale, but squares of very large or small entries do not fit single precision.
    largest = ops.max(ops.abs(matrix), axis=(-2, -1), keepdims=True)
    matrix = matrix / ops.where(largest > 0, largest, ops.ones_like(largest))
    gram = ops.matmul(ops.swapaxes(matrix, -2, -1), matrix)
    # About norm 1 at most before the first step: beyond sqrt(3) the iteration diverges.
    mean = _mean_eigenvalue(gram)
    away = _add_to_diagonal(gram, -mean)
    scale = mean + ops.sqrt(_frobenius(ops.matmul(away, away)))
    scale = ops.where(scale > 0, scale, ops.ones_like(scale))
    gram = gram / scale
    product = _add_to_diagonal(ops.zeros_like(gram), 1.0 / ops.sqrt(scale))
    for _ in range(steps):
        factor = _add_to_diagonal(-0.5 * gram, 1.5)
        product = ops.matmul(product, factor)
        gram = ops.matmul(ops.matmul(factor, gram), factor)
    return ops.matmul(matrix, product)


def isometry_step(matrix):
    """One Newton-Schulz step of a matrix near an isometry, with a proof that the norm of the result is at most 1.

    With `E = (1 - W^T W) / 2` the step takes W to `W + W E`, and its singular values s to `s (3 - s^2) / 2`, at most 1
    wherever s is at most 2. So two products and a crude bound on ||W|| do for the result what a certificate
    would, and all that is left to divide by is rounding. With m rows, n <= m columns, `g = _square_rounding` times
    `||W||_F^2` for the Gram matrix and b the bound on ||W||, that is

        b (g / 2 + eps ||E||_F) + (n + 8) eps / 2 ||W||_F ||E||_F + 2 eps ||W||_F (1 + ||E||_F):

    the error of E, of the product, and of the sum and the division, entry by entry.

    Args:
        matrix: tensor (m, n).

    Returns:
        (result, certain): tensor (m, n) of the same dtype, and a bool scalar: whether the proof holds, and the mean
        square of the singular values is at least 0.75, as one step does not lengthen much. Where it is False the result
        is worth nothing.
    """
    if matrix.shape[0] < matrix.shape[1]:
        result, certain = isometry_step(ops.swapaxes(matrix, 0, 1))
        return ops.swapaxes(result, 0, 1), certain
    rows, side = matrix.shape
    precision = keras.backend.standardize_dtype(matrix.dtype)
    eps = _EPS[precision]
    # Summed in parts, since the error of a sum grows with its length.
    parts = max(p for p in range(1, max(2, min(16, rows // 64) + 1)) if rows % p == 0)
    slices = [matrix[rows // parts * i : rows // parts * (i + 1)] for i in range(parts)]
    gram = sum(ops.matmul(ops.swapaxes(part, 0, 1), part) for part in slices)
    half = _add_to_diagonal(-0.5 * gram, 0.5)
    energy = ops.trace(gram)
    rounding = _square_rounding(rows // parts + parts, precision) * energy
    distance = _frobenius(half)[0, 0] * (1.0 + (side + 8) * eps)

    def from_square():
        square, _ = _square(half, None)
        error = _square_rounding(side, precision) * distance**2
        return ops.sqrt(_frobenius(square)[0, 0] * (1.0 + (side + 8) * eps) + error)

    # Far from an isometry of this side the Frobenius norm says little, and that of the square more.
    crude = ops.cond(2.0 * distance + rounding <= 3.0, lambda: distance, from_square)
    squared_norm = 1.0 + 2.0 * crude + rounding
    certain = ops.logical_and(squared_norm <= 4.0, energy >= 0.75 * side)
    result = matrix + ops.matmul(matrix, half)
    root = ops.sqrt(energy)
    slack = ops.sqrt(squared_norm) * (0.5 * rounding + eps * distance) + eps * root * (
        0.5 * (side + 8) * distance + 2.0 * (1.0 + distance)
    )
    return result / (1.0 + slack), certain


@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """Where a convolution with zero padding is applied: what its operator norm depends on beside the kernel.

    Args:
        image_size, kernel_size, strides, dilations: tuples of int, one per spatial axis.
        padding: `"valid"`, `"same"` or `"causal"`.
    """

    image_size: tuple
    kernel_size: tuple
    strides: tuple
    dilations: tuple
    padding: str

    @functools.cached_property
    def window_count(self):
        """int, the largest number of windows that one pixel is in."""
        return math.prod(window_count(*axis) for axis in self._axes())

    @functools.cached_property
    def kernel_gradient_factor(self):
        """float, largest norm of the kernel's gradient when input and cotangent have norm 1, certified."""
        return math.prod(kernel_gradient_factor(*axis) for axis in self._axes())

    def _axes(self):
        axes = zip(self.image_size, self.kernel_size, self.strides, self.dilations, strict=True)
        return [(n, k, s, self.padding, d) for n, k, s, d in axes]

    @functools.cached_property
    def frequencies(self):
        """(cosines, sines, factor): the kernel's transform as two matrices, and what to multiply the largest norm by.

        Wherever the zeros stand, the zero-padded operator is a block of the circular one of side `N >= n + d (k - 1)`,
        N a multiple of the stride. At each of the N / s coarse frequencies of an axis the s fine ones that alias to it
        are stacked. Of two conjugate frequencies, which have equal norms, one is enough.

        Above `_LARGEST_GRID` a coarser grid serves, at the price of a factor `1 / cos(pi D / (2 N))` for each axis,
        `D = d (k - 1)`. For a fixed vector v the squared norm of the transform times v is a trigonometric polynomial of
        degree D in each frequency. Let its values be in [0, M], M attained: within `pi / D` of there, it is at least
        `M / 2 + M / 2 cos(D t)` at distance t (M. Riesz), and no frequency is further than `pi / N` from the grid.
        """
        phases, coarse, factor = [], [], 1.0
        largest = _LARGEST_GRID[len(self.image_size)]
        for n, k, s, d in zip(self.image_size, self.kernel_size, self.strides, self.dilations, strict=True):
            if s == 1:
                # The axis falls into d parts that share no window; the longest has this length.
                n, d = -(-n // d), 1
            degree = d * (k - 1)
            side = min(n + degree, max(largest, 8 * degree))
            side = -(-side // s) * s
            if side < n + degree:
                factor /= math.cos(math.pi * degree / (2 * side))
            factor /= math.sqrt(s)
            coarse.append(side // s)
            fine = np.arange(side // s)[:, None] + side // s * np.arange(s)[None, :]
            phases.append(2 * np.pi / side * fine[:, :, None] * (d * np.arange(k)))
        total = phases[0]
        for phase in phases[1:]:
            total = total[:, None, :, None, :, None] + phase[None, :, None, :, None, :]
            shape = total.shape
            total = total.reshape(shape[0] * shape[1], shape[2] * shape[3], shape[4] * shape[5])
        conjugates = np.ravel_multi_index(tuple(-np.indices(coarse)), coarse, mode="wrap").ravel()
        total = total[np.arange(len(total)) <= conjugates]
        return np.cos(total), np.sin(total), factor


#: Points on an axis, by the number of axes.
_LARGEST_GRID = {1: 256, 2: 40}

#: Entries of the Gram matrices that are worked on at a time.
_CHUNK = 2**17


def conv_norm_bound(kernel, geometry):
    """Certified upper bound on the operator norm of a convolution, or of each convolution of a batch.

    The smaller of the frequency bound (see `ConvGeometry.frequencies`) and the reshaped-kernel bound
    `sqrt(m) ||reshape(K)||`, m the window count, which is exact where windows do not overlap.

    Args:
        kernel: tensor (..., *kernel_size, cin, cout).
        geometry: `ConvGeometry`.

    Returns:
        float64 tensor (...).
    """
    kernel = ops.cast(kernel, "float64")
    cin, cout = kernel.shape[-2], kernel.shape[-1]
    taps = math.prod(geometry.kernel_size)
    batch = tuple(kernel.shape[: -2 - len(geometry.kernel_size)])
    reshaped = ops.reshape(kernel, (*batch, taps * cin, cout))
    if geometry.window_count == 1:
        return matrix_norm_bound(reshaped)
    cosines, sines, factor = geometry.frequencies
    coarse, aliases, _ = cosines.shape
    # With a largest entry of 1 the many matrices below can be in single precision, which is much faster.
    scale = ops.max(ops.abs(reshaped), axis=(-2, -1), keepdims=True)
    unit = ops.cast(reshaped / ops.where(scale > 0, scale, 1.0), "float32")
    flat = ops.reshape(unit, (*batch, taps, cin * cout))

    def largest_norm(waves):
        parts = []
        for wave in (waves[:, 0], waves[:, 1]):
            part = ops.matmul(ops.reshape(wave, (-1, taps)), flat)
            parts.append(ops.reshape(part, (*batch, -1, aliases * cin, cout)))
        return ops.max(matrix_norm_bound(*parts, precision="float32"), axis=-1)

    # A few frequencies at a time: their matrices stay in the processor's cache, and need no memory to speak of.
    entries = math.prod(batch) * min(aliases * cin, cout) ** 2
    count = min(coarse, max(1, _CHUNK // entries))
    waves = np.stack([cosines, sines], axis=1).astype("float32")
    waves = np.concatenate([waves, waves[: -coarse % count]])  # the first ones again
    chunks = ops.convert_to_tensor(waves.reshape(-1, count, *waves.shape[1:]))
    norms = largest_norm(chunks[0]) if count == coarse else ops.max(ops.map(largest_norm, chunks), axis=0)
    # Rounding of waves, kernel and products: each alias is off by (taps + 2) eps / 2 times the sum over taps of their
    # norms, at most sqrt(taps) ||K||_F, in its real and its imaginary part.
    size = ops.cast(_frobenius(unit), "float64")[..., 0, 0]
    slack = (taps + 8) * _EPS["float32"] * math.sqrt(taps * aliases) * size
    bound = factor * scale[..., 0, 0] * (norms + slack)
    if geometry.window_count * math.prod(geometry.strides) >= taps:
        return bound  # the other is no smaller, by Cauchy-Schwarz over the taps and the aliases
    return ops.minimum(bound, matrix_norm_bound(reshaped) * math.sqrt(geometry.window_count))


def euclidean_norm_bound(x, axis=None):
    """Certified upper bound on the Euclidean norm of a tensor, or of each of its slices along an axis.

    Slack for rounding: a sum of n squares in double precision is off by at most `n eps` relative, so its root by half
    of that. Entries below the smallest normal number count as zero: TensorFlow takes them for that everywhere.

    Args:
        x: tensor.
        axis: int, or None for all entries.

    Returns:
        float64 tensor: a scalar, or of size 1 along the axis.
    """
    x = ops.cast(x, "float64")
    over = {"axis": axis, "keepdims": axis is not None}
    largest = ops.max(ops.abs(x), **over)
    unit = x / ops.where(largest > 0, largest, 1.0)  # no square overflows or vanishes
    return largest * ops.sqrt(ops.sum(unit * unit, **over)) * (1.0 + (math.prod(x.shape) + 8) * _EPS["float64"])


def _waves(taps):
    """The transform of a kernel with `taps` taps per axis as a matrix, and its inverse cut off outside these taps.

    The grid has `2 a - 1` points on an axis of `a` taps: `K K^H K` has `3 a - 2` taps, and where those wrap around on
    this grid they miss the a taps that are kept. Of two conjugate frequencies one is enough.

    Args:
        taps: tuple of int, one per axis.

    Returns:
        Arrays (2 F, A), cosines above sines for F frequencies and A taps, and (A, 2 F).
    """
    sides = np.array([2 * a - 1 for a in taps])
    # From -(a - 1) to a - 1 on each axis: the conjugate of the first is the last, and so on; zero is in the middle.
    frequencies = np.indices(sides).reshape(len(taps), -1).T - (sides - 1) // 2
    frequencies = frequencies[: (len(frequencies) + 1) // 2]
    phases = 2 * np.pi * (frequencies / sides) @ np.indices(taps).reshape(len(taps), -1)
    weights = np.where(frequencies.any(axis=1), 2.0, 1.0)[:, None] / sides.prod()
    waves = np.concatenate([np.cos(phases), -np.sin(phases)])
    return waves, (waves * np.concatenate([weights, weights])).T


def _kernel_shape(kernel, rank):
    """(axes of a batch of kernels, spatial axes, (cin, cout)): lists of int."""
    shape = list(kernel.shape)
    return shape[: -2 - rank], shape[-2 - rank : -2], shape[-2:]


def _to_blocks(kernel, strides):
    """A strided kernel as one of stride 1, on the image cut into blocks of `strides` pixels; missing taps are 0.

    Args:
        kernel: tensor (..., *kernel_size, cin, cout).
        strides: tuple of int.

    Returns:
        Tensor (..., *ceil(kernel_size / strides), prod(strides) * cin, cout).
    """
    batch, kernel_size, (cin, cout) = _kernel_shape(kernel, len(strides))
    taps = [-(-k // s) for k, s in zip(kernel_size, strides, strict=True)]
    missing = [(0, a * s - k) for a, s, k in zip(taps, strides, kernel_size, strict=True)]
    kernel = ops.pad(kernel, [*[(0, 0)] * len(batch), *missing, (0, 0), (0, 0)])
    pairs = [n for pair in zip(taps, strides, strict=True) for n in pair]
    kernel = ops.reshape(kernel, [*batch, *pairs, cin, cout])
    before, after = len(batch), len(batch) + len(pairs)
    axes = [*range(before, after, 2), *range(before + 1, after, 2)]
    kernel = ops.transpose(kernel, [*range(before), *axes, after, after + 1])
    return ops.reshape(kernel, (*batch, *taps, math.prod(strides) * cin, cout))


def _from_blocks(blocks, kernel_size, strides):
    """Inverse of `_to_blocks`; what stands in missing taps is left out."""
    rank = len(strides)
    batch, taps, (_, cout) = _kernel_shape(blocks, rank)
    kernel = ops.reshape(blocks, (*batch, *taps, *strides, -1, cout))
    before, after = len(batch), len(batch) + 2 * rank
    axes = [n for i in range(before, before + rank) for n in (i, rank + i)]
    kernel = ops.transpose(kernel, [*range(before), *axes, after, after + 1])
    kernel = ops.reshape(kernel, [*batch, *(a * s for a, s in zip(taps, strides, strict=True)), -1, cout])
    return kernel[(..., *(slice(k) for k in kernel_size), slice(None), slice(None))]


def centred_convolution(kernel, geometry):
    """Half a random orthogonal kernel, and in the middle of the window a whole orthogonal matrix made of its middle.

    A start from which `orthogonalize_convolution` reaches an isometry, whatever the numbers of channels.

    Args:
        kernel: tensor (..., *kernel_size, cin, cout), orthogonal as (prod(kernel_size) * cin, cout) matrices.
        geometry: `ConvGeometry`. The middle is as large as the strides, so that each pixel is in it for one window;
            with causal padding it is the end.

    Returns:
        Tensor of the same shape and dtype.
    """
    kernel_size, strides, cout = geometry.kernel_size, geometry.strides, kernel.shape[-1]
    halves = 1 if geometry.padding == "causal" else 2
    starts = [max(k - s, 0) // halves for k, s in zip(kernel_size, strides, strict=True)]
    sizes = [min(k, s) for k, s in zip(kernel_size, strides, strict=True)]
    slices = [slice(a, a + n) for a, n in zip(starts, sizes, strict=True)]
    middle = kernel[(..., *slices, slice(None), slice(None))]
    batch, _, _ = _kernel_shape(kernel, len(strides))
    matrix = orthogonalize(ops.reshape(middle, (*batch, -1, cout)), 15)
    around = [(a, k - a - n) for a, k, n in zip(starts, kernel_size, sizes, strict=True)]
    return 0.5 * kernel + ops.pad(ops.reshape(matrix, middle.shape), [*[(0, 0)] * len(batch), *around, (0, 0), (0, 0)])


# Square of the largest singular value a Newton-Schulz step starts from, at most. It sends 3 to 0 and what is above that
# away; sqrt(1.5) goes to 0.92. Dividing by more would push down the many values that are 1 already for one that is not.
_LARGEST_START = 1.5


def orthogonalize_convolution(kernel, strides, steps):
    """Moves a convolution, or each of a batch, towards an isometry, as an operator on large images.

    It takes Newton-Schulz steps. Each replaces the kernel K by `1.5 K - 0.5 K * K^T * K` (the products are of
    operators), cut off outside the taps it had: a step of gradient descent on `||K^T * K - 1||^2` over kernels of this
    size. It is done in the frequency domain, on the smallest grid that is exact for the taps kept. A stride makes
    blocks of pixels the channels. Dilation changes nothing: it separates the image into parts that are convolved on
    their own.

    Kernels with as many outputs as inputs (per block of pixels) do not reach an isometry from everywhere: random ones
    stop with some singular values near 0, those of `centred_convolution` arrive. What comes out is **not** certified to
    have norm 1.

    Args:
        kernel: tensor (..., *kernel_size, cin, cout).
        strides: tuple of int, one per axis.
        steps: int >= 0.

    Returns:
        Tensor of the same shape and dtype. It does not depend on the scale of the kernel if steps > 0; zeros stay.

    References:
        Wang, Chen, Chakraborty, Yu: Orthogonal convolutional neural networks. CVPR 2020 (the penalty descended on).
        Xiao, Bahri, Sohl-Dickstein, Schoenholz, Pennington: Dynamical isometry and a mean field theory of CNNs. ICML
        2018 (one orthogonal tap).
    """
    rank = len(strides)
    batch, kernel_size, (cin, _) = _kernel_shape(kernel, rank)
    largest = ops.max(ops.abs(kernel), axis=tuple(range(-2 - rank, 0)), keepdims=True)
    kernel = kernel / ops.where(largest > 0, largest, ops.ones_like(largest))
    blocks = _to_blocks(kernel, strides)
    transposed = blocks.shape[-2] < blocks.shape[-1]
    if transposed:
        blocks = ops.swapaxes(blocks, -2, -1)
    _, taps, (rows, side) = _kernel_shape(blocks, rank)
    waves, inverse = (ops.convert_to_tensor(w, dtype=kernel.dtype) for w in _waves(tuple(taps)))
    present = _to_blocks(ops.ones((*kernel_size, cin, 1), dtype=kernel.dtype), strides)
    present = ops.swapaxes(present, -2, -1) if transposed else present
    shape = blocks.shape
    for _ in range(steps):
        spectrum = ops.matmul(waves, ops.reshape(blocks, (*batch, -1, rows * side)))
        spectrum = ops.reshape(spectrum, (*batch, 2, -1, rows, side))
        real, imag = spectrum[..., 0, :, :, :], spectrum[..., 1, :, :, :]
        both = ops.concatenate([real, imag], axis=-2)
        gram_real, gram_imag = _square(real, imag)
        scale = _start_scale(gram_real, gram_imag)
        factor = _add_to_diagonal(gram_real * (-0.5 / scale), 1.5)
        product = ops.matmul(both, factor)
        turned = ops.matmul(both, gram_imag * (-0.5 / scale))
        spectrum = ops.stack(
            [product[..., :rows, :] - turned[..., rows:, :], product[..., rows:, :] + turned[..., :rows, :]], axis=-4
        )
        blocks = ops.matmul(inverse, ops.reshape(spectrum, (*batch, -1, rows * side))) / ops.sqrt(scale[..., 0])
        blocks = ops.reshape(blocks, shape) * present
    if transposed:
        blocks = ops.swapaxes(blocks, -2, -1)
    return _from_blocks(blocks, kernel_size, strides)


def _start_scale(gram_real, gram_imag):
    """Square of what to divide each kernel by before a Newton-Schulz step, from its Gram matrix at each frequency.

    The mean square of its singular values, or more where a bound on the largest asks for it.
    """
    means = _mean_eigenvalue(gram_real)
    away = _frobenius(_add_to_diagonal(gram_real, -means), gram_imag)
    over = {"axis": (-3, -2, -1), "keepdims": True}
    scale = ops.maximum(ops.mean(means, **over), ops.max(means + away, **over) / _LARGEST_START)
    return ops.where(scale > 0, scale, ops.ones_like(scale))
