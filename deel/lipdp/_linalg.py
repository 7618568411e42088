"""Norms certified from above, and orthogonalisation: pure functions on weights.

Certificates start in double precision, whatever the precision of the weights, and state the slack for every rounding
in them, for the worst matrix of its size. Orthogonalisation only moves weights to a better place inside their set, so
single precision is enough there.
"""

import functools
import math

import keras
import numpy as np
from keras import ops

__all__ = [
    "EPS",
    "add_to_diagonal",
    "euclidean_norm_bound",
    "frobenius",
    "hermitian_square",
    "isometry_step",
    "matrix_norm_bound",
    "mean_eigenvalue",
    "norm_is_at_most_one",
    "orthogonalize",
]

EPS = {name: float(np.finfo(name).eps) for name in ("float32", "float64")}

# Squarings in a certificate; the last polynomial has twice the degree of the one before.
_SQUARINGS = 3


def frobenius(*parts):
    """Frobenius norm of a matrix given by its parts, or of each of a batch, as (..., 1, 1); None counts as zero.

    Rows first, so that no entry is in more additions than twice the side.
    """
    rows = sum(ops.sum(part * part, axis=-1, keepdims=True) for part in parts if part is not None)
    return ops.sqrt(ops.sum(rows, axis=-2, keepdims=True))


def mean_eigenvalue(matrix):
    return ops.trace(matrix, axis1=-2, axis2=-1)[..., None, None] / matrix.shape[-1]


def add_to_diagonal(matrix, value):
    """A matrix, or each of a batch, plus `value` times the identity; value is a float or (..., 1, 1).

    Without an identity matrix: TensorFlow would keep one, of the kernel's size, in each graph.
    """
    if keras.backend.backend() != "tensorflow":
        return matrix + value * ops.eye(matrix.shape[-1], dtype=matrix.dtype)
    import tensorflow as tf

    value = value if isinstance(value, float) else value[..., 0]
    return tf.linalg.set_diag(matrix, tf.linalg.diag_part(matrix) + value)


def hermitian_square(real, imag):
    """`M^H M` of `M = real + i imag`, as its real and imaginary part."""
    transposed = ops.swapaxes(real, -2, -1)
    square = ops.matmul(transposed, real)
    if imag is None:
        return square, None
    cross = ops.matmul(transposed, imag)
    return square + ops.matmul(ops.swapaxes(imag, -2, -1), imag), cross - ops.swapaxes(cross, -2, -1)


def _square_rounding(terms, precision):
    """Frobenius norm of the error of the above, over the squared Frobenius norm of M, `terms` products in each entry.

    Any order of summation is off by `terms u` times the sum of the absolute values, u = eps / 2: for the real part by
    `(terms + 1) u (||Re||^2 + ||Im||^2)`, for the imaginary one by `2 (terms + 1) u ||Re|| ||Im||`, which is no more.
    """
    return 0.75 * (terms + 8) * EPS[precision]


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
    side, eps = real.shape[-1], EPS["float32"]
    sum_rounding = side * EPS[keras.backend.standardize_dtype(real.dtype)]
    real = 0.5 * (real + ops.swapaxes(real, -2, -1))
    mean = mean_eigenvalue(real)
    real = add_to_diagonal(real, -mean)
    norm = frobenius(real, imag)
    inverse = 1.0 / ops.where(norm > 0, norm, ops.ones_like(norm))
    real = ops.cast(real * inverse, "float32")
    imag = None if imag is None else ops.cast(imag * inverse, "float32")
    norm, mean = ops.cast(norm, "float64"), ops.cast(mean, "float64")
    double = functools.partial(ops.cast, dtype="float64")

    product = _square_rounding(side, "float32")
    # For the sums of `frobenius`, scaling and casting.
    rounding = (side + 8) * eps
    bound = ops.minimum(mean + norm * (1.0 + rounding), side * mean * (1.0 + sum_rounding))
    if squarings == 0:
        return bound
    square, cross = hermitian_square(real, imag)
    size = double(frobenius(square, cross)) * (1.0 + rounding)
    bound = ops.minimum(bound, mean + norm * (ops.sqrt(size + product) + rounding))
    third = ops.sum(real * square, axis=(-2, -1), keepdims=True)
    if imag is not None:
        third = third + ops.sum(imag * cross, axis=(-2, -1), keepdims=True)
    low, high = _interval(mean / ops.where(norm > 0, norm, 1.0), double(third), size**2, side)
    centre, width = (low + high) / 2.0, (high - low) / 2.0
    terms = 2.0 / width**2, -4.0 * centre / width**2, 2.0 * (centre / width) ** 2 - 1.0
    quadratic, linear, constant = (ops.cast(term, "float32") for term in terms)
    real = add_to_diagonal(quadratic * square + linear * real, constant)
    imag = None if imag is None else quadratic * cross + linear * imag
    combined = terms[0] * size + ops.abs(terms[1]) + ops.abs(terms[2]) * math.sqrt(side)
    errors = [terms[0] * product + 4.0 * eps * combined]
    size = double(frobenius(real, imag)) * (1.0 + rounding)
    for _ in range(squarings - 1):
        square, cross = hermitian_square(real, imag)
        real, imag = add_to_diagonal(2.0 * square, -1.0), None if cross is None else 2.0 * cross
        errors.append(2.0 * product * size**2 + 4.0 * eps * (2.0 * size**2 + math.sqrt(side)))
        size = double(frobenius(real, imag)) * (1.0 + rounding)
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
    gram = hermitian_square(real, imag)
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
    gram, _ = hermitian_square(matrix, None)
    tolerance = 2.0 * (rows + side + 16) * side * EPS["float64"]
    factor = _cholesky(add_to_diagonal(-gram, 1.0 - tolerance))
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
    mean = mean_eigenvalue(gram)
    away = add_to_diagonal(gram, -mean)
    scale = mean + ops.sqrt(frobenius(ops.matmul(away, away)))
    scale = ops.where(scale > 0, scale, ops.ones_like(scale))
    gram = gram / scale
    product = add_to_diagonal(ops.zeros_like(gram), 1.0 / ops.sqrt(scale))
    for _ in range(steps):
        factor = add_to_diagonal(-0.5 * gram, 1.5)
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
    eps = EPS[precision]
    # Summed in parts, since the error of a sum grows with its length.
    parts = max(p for p in range(1, max(2, min(16, rows // 64) + 1)) if rows % p == 0)
    slices = [matrix[rows // parts * i : rows // parts * (i + 1)] for i in range(parts)]
    gram = sum(ops.matmul(ops.swapaxes(part, 0, 1), part) for part in slices)
    half = add_to_diagonal(-0.5 * gram, 0.5)
    energy = ops.trace(gram)
    rounding = _square_rounding(rows // parts + parts, precision) * energy
    distance = frobenius(half)[0, 0] * (1.0 + (side + 8) * eps)

    def from_square():
        square, _ = hermitian_square(half, None)
        error = _square_rounding(side, precision) * distance**2
        return ops.sqrt(frobenius(square)[0, 0] * (1.0 + (side + 8) * eps) + error)

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
    return largest * ops.sqrt(ops.sum(unit * unit, **over)) * (1.0 + (math.prod(x.shape) + 8) * EPS["float64"])
