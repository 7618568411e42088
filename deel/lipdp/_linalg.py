"""Norms certified from above, orthogonalisation, projections: pure functions on tensors.

Certificates start in double precision, whatever the precision of the weights, and state the slack for every rounding
in them, for the worst matrix of its size. Orthogonalisation only moves weights to a better place inside their set, so
single precision is enough there.
"""

import dataclasses
import functools
import math

import numpy as np
from keras import ops

from deel.lipdp._convolution import kernel_gradient_factor, window_count

__all__ = [
    "ConvGeometry",
    "centred_convolution",
    "conv_norm_bound",
    "euclidean_norm_bound",
    "finite_or_zero",
    "matrix_norm_bound",
    "orthogonalize",
    "orthogonalize_convolution",
    "project_on_ball",
    "unit_scale",
]

_EPS = {name: float(np.finfo(name).eps) for name in ("float32", "float64")}

# Squarings of the Gram matrix in a certificate. Each halves the logarithm of the worst overestimate, which for a side
# of n is n^(1 / 2^(squarings + 2)) far from an isometry and shrinks to nothing near one.
_SQUARINGS = 4


def _hermitian_norm_bound(real, imag, squarings):
    """Upper bound on the norm of each Hermitian matrix `H = real + i imag` of a batch, as (..., 1, 1).

    With H_0 = H / ||H||_F and H_(j+1) = H_j^2 / r_j, r_j = ||H_j^2||_F, it is `||H_j||^2 <= r_j ||H_(j+1)|| + e`, and
    the last norm is at most that of Frobenius: unrolled, and without e, this is Gram iteration
    `||H^(2^t)||_F^(1 / 2^t)`. (Unscaled powers would underflow to zero, a false bound.) Single precision will do here:
    e covers its rounding. A product of two matrices of Frobenius norm 1 is off by at most `n eps / 2`; there are two of
    them in each part of a complex square; and the square is Hermitian only up to that, which counts four times more,
    since `||S||^2 = ||S^2||` holds for its Hermitian part S.
    """
    squares = real * real if imag is None else real * real + imag * imag
    norm = ops.sqrt(ops.sum(squares, axis=(-2, -1), keepdims=True))
    inverse = 1.0 / ops.where(norm > 0, norm, 1.0)
    real = ops.cast(real * inverse, "float32")
    imag = None if imag is None else ops.cast(imag * inverse, "float32")
    ratios = []
    for _ in range(squarings):
        if imag is None:
            real = ops.matmul(real, real)
            squares = real * real
        else:
            # real is symmetric and imag antisymmetric, so imag real = -(real imag)^T.
            cross = ops.matmul(real, imag)
            real = ops.matmul(real, real) - ops.matmul(imag, imag)
            imag = cross - ops.swapaxes(cross, -2, -1)
            squares = real * real + imag * imag
        ratio = ops.sqrt(ops.sum(squares, axis=(-2, -1), keepdims=True))
        ratios.append(ratio)
        inverse = 1.0 / ops.maximum(ratio, 1e-30)
        real = real * inverse
        imag = None if imag is None else imag * inverse
    error = 4.0 * (real.shape[-1] + 8) * _EPS["float32"]
    # In double precision again: this norm is nobody's divisor, so nothing cancels an error of its sum.
    squares = ops.cast(real, "float64") ** 2
    squares = squares if imag is None else squares + ops.cast(imag, "float64") ** 2
    bound = ops.cast(ops.sqrt(ops.sum(squares, axis=(-2, -1), keepdims=True)), norm.dtype)
    for ratio in reversed(ratios):
        bound = ops.sqrt(ops.cast(ratio, norm.dtype) * bound + error)
    return norm * (bound + 2.0 * _EPS["float32"])  # what scaling and casting to H_0 lost


def matrix_norm_bound(real, imag=None, squarings=_SQUARINGS, precision="float64"):
    """Certified upper bound on the spectral norm of a matrix, or of each matrix of a batch.

    With G the Gram matrix of the smaller side (n x n) and `s = trace(G) / n`, the bound on `||G||` is the smaller of
    that of Gram iteration, `||G^(2^t)||_F^(1/2^t)`, and `s + ||(G - s I)^(2^t)||_F^(1/2^t)`, which is tight near a
    multiple of an isometry. Both are positively homogeneous, so dividing a matrix by its bound leaves one with bound 1.
    Valid because the spectral norm of a Hermitian matrix to the power p is that of its p-th power, and is at most the
    Frobenius norm.

    Args:
        real: tensor (..., m, n), real part.
        imag: tensor of the same shape or None, imaginary part.
        squarings: int, t above.
        precision: `"float64"`, or `"float32"`, faster, for matrices with entries around 1.

    Returns:
        float64 tensor (...). Slack for rounding: `2 (m + 8) eps trace(G)` is added to the norm of G, computed in
        `precision`: an entry of G is a sum of m products (2 m for complex matrices), so G is off by at most that in
        Frobenius norm. For the powers of G, see `_hermitian_norm_bound`.

    References:
        Delattre, Barthélemy, Araujo, Allauzen: Efficient bound of Lipschitz constant for convolutional layers by Gram
        iteration. ICML 2023.
    """
    real = ops.cast(real, precision)
    imag = None if imag is None else ops.cast(imag, precision)
    rows, columns = real.shape[-2], real.shape[-1]
    if rows < columns:
        real = ops.swapaxes(real, -2, -1)
        imag = None if imag is None else ops.swapaxes(imag, -2, -1)
    side = min(rows, columns)
    products = max(rows, columns) * (1 if imag is None else 2)
    slack = 2.0 * (products + 8) * _EPS[precision]
    if side == 1:
        # G is a number already. Depthwise convolutions have many thousands of these.
        squares = real * real if imag is None else real * real + imag * imag
        return ops.sqrt(ops.cast(ops.sum(squares, axis=(-2, -1)) * (1.0 + slack), "float64"))
    transposed = ops.swapaxes(real, -2, -1)
    gram_real, gram_imag = ops.matmul(transposed, real), None
    if imag is not None:
        gram_real = gram_real + ops.matmul(ops.swapaxes(imag, -2, -1), imag)
        cross = ops.matmul(transposed, imag)
        gram_imag = cross - ops.swapaxes(cross, -2, -1)
    identity = ops.eye(side, dtype=precision)
    trace = ops.sum(gram_real * identity, axis=(-2, -1), keepdims=True)
    mean = trace / side
    shift = ops.stack([ops.zeros_like(mean), mean])
    gram_imag = gram_imag if gram_imag is None else ops.stack([gram_imag, gram_imag])
    bounds = shift + _hermitian_norm_bound(gram_real - shift * identity, gram_imag, squarings)
    bounds = ops.min(bounds, axis=0) + slack * trace
    return ops.sqrt(ops.cast(bounds[..., 0, 0], "float64"))


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
    side = matrix.shape[-1]
    identity = ops.eye(side, dtype=matrix.dtype)
    # The result does not depend on the scale, but squares of very large or small entries do not fit single precision.
    largest = ops.max(ops.abs(matrix), axis=(-2, -1), keepdims=True)
    matrix = matrix / ops.where(largest > 0, largest, ops.ones_like(largest))
    gram = ops.matmul(ops.swapaxes(matrix, -2, -1), matrix)
    # Norm 1 at most before the first step: beyond sqrt(3) the iteration diverges.
    mean = ops.sum(gram * identity, axis=(-2, -1), keepdims=True) / side
    scale = mean + _hermitian_norm_bound(gram - mean * identity, None, 2)
    scale = ops.where(scale > 0, scale, ops.ones_like(scale))
    gram = gram / scale
    product = identity / ops.sqrt(scale)
    for _ in range(steps):
        factor = 1.5 * identity - 0.5 * gram
        product = ops.matmul(product, factor)
        gram = ops.matmul(ops.matmul(factor, gram), factor)
    return ops.matmul(matrix, product)


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
        are stacked. Conjugate frequencies have equal norms, so half of the last axis is enough. Above `_LARGEST_GRID` a
        coarser grid serves, at the price of a factor `(1 - d (k - 1) / N)^(-1/2)` for each axis: a trigonometric
        polynomial is bounded by its samples.
        """
        phases, factor = [], 1.0
        largest = _LARGEST_GRID[len(self.image_size)]
        for axis, (n, k, s, d) in enumerate(
            zip(self.image_size, self.kernel_size, self.strides, self.dilations, strict=True)
        ):
            if s == 1:
                # The axis falls into d parts that share no window; the longest has this length.
                n, d = -(-n // d), 1
            side = min(n + d * (k - 1), max(largest, 8 * d * (k - 1)))
            side = -(-side // s) * s
            if side < n + d * (k - 1):
                factor *= (1.0 - d * (k - 1) / side) ** -0.5
            factor /= math.sqrt(s)
            coarse = side // s
            last = axis == len(self.image_size) - 1
            kept = np.arange(coarse // 2 + 1 if last else coarse)
            fine = kept[:, None] + coarse * np.arange(s)[None, :]
            phases.append(2 * np.pi / side * fine[:, :, None] * (d * np.arange(k)))
        total = phases[0]
        for phase in phases[1:]:
            total = total[:, None, :, None, :, None] + phase[None, :, None, :, None, :]
            shape = total.shape
            total = total.reshape(shape[0] * shape[1], shape[2] * shape[3], shape[4] * shape[5])
        return np.cos(total), np.sin(total), factor


#: Points on an axis, by the number of axes.
_LARGEST_GRID = {1: 256, 2: 64}


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
    reshaped_bound = matrix_norm_bound(reshaped) * math.sqrt(geometry.window_count)
    if geometry.window_count == 1:
        return reshaped_bound
    cosines, sines, factor = geometry.frequencies
    coarse, aliases, _ = cosines.shape
    # With a largest entry of 1 the many matrices below can be in single precision, which is much faster.
    scale = ops.max(ops.abs(reshaped), axis=(-2, -1), keepdims=True)
    flat = ops.reshape(reshaped / ops.where(scale > 0, scale, 1.0), (*batch, taps, cin * cout))

    def transform(waves):
        waves = ops.convert_to_tensor(waves.reshape(coarse * aliases, taps), dtype="float64")
        return ops.reshape(ops.matmul(waves, flat), (*batch, coarse, aliases * cin, cout))

    # Transforming is exact to a few double-precision eps, far inside the slack of the certificate.
    norms = matrix_norm_bound(transform(cosines), transform(sines), precision="float32")
    return ops.minimum(reshaped_bound, factor * scale[..., 0, 0] * ops.max(norms, axis=-1))


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


def finite_or_zero(x):
    """NaN and infinities become 0, the rest stays."""
    return ops.where(ops.isfinite(x), x, ops.zeros_like(x))


def unit_scale(x):
    """Splits each example into a vector with largest entry 1, its norm, and the scale taken out.

    No square overflows or vanishes whatever the scale, and every gradient is finite, at zero too. The scale is a
    constant for differentiation: users are homogeneous in x, so its derivative cancels.

    Args:
        x: tensor (batch, ...), finite.

    Returns:
        `(unit, norm, scale)` with `x = unit * scale`; norm and scale are (batch, 1, ...) and norm >= 1. A zero example
        has unit 0, norm 1 and scale 0.
    """
    axes = tuple(range(1, len(x.shape)))
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
    identity = ops.eye(side, dtype=kernel.dtype)
    for _ in range(steps):
        spectrum = ops.matmul(waves, ops.reshape(blocks, (*batch, -1, rows * side)))
        spectrum = ops.reshape(spectrum, (*batch, 2, -1, rows, side))
        real, imag = spectrum[..., 0, :, :, :], spectrum[..., 1, :, :, :]
        both = ops.concatenate([real, imag], axis=-2)
        gram_real = ops.matmul(ops.swapaxes(both, -2, -1), both)
        cross = ops.matmul(ops.swapaxes(real, -2, -1), imag)
        gram_imag = cross - ops.swapaxes(cross, -2, -1)
        scale = _start_scale(gram_real, gram_imag)
        factor = 1.5 * identity - gram_real * (0.5 / scale)
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
    side = gram_real.shape[-1]
    identity = ops.eye(side, dtype=gram_real.dtype)
    means = ops.sum(gram_real * identity, axis=(-2, -1), keepdims=True) / side
    away = gram_real - means * identity
    away = ops.sqrt(ops.sum(away * away + gram_imag * gram_imag, axis=(-2, -1), keepdims=True))
    over = {"axis": (-3, -2, -1), "keepdims": True}
    scale = ops.maximum(ops.mean(means, **over), ops.max(means + away, **over) / _LARGEST_START)
    return ops.where(scale > 0, scale, ops.ones_like(scale))
