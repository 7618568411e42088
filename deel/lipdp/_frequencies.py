"""Convolutions, frequency by frequency: norms certified from above, and near isometries of images.

The zero-padded convolution of an image is a block of a circular one on a larger torus. There it is one small matrix at
each frequency, and `_linalg` knows what to do with matrices.
"""

import dataclasses
import functools
import math

import numpy as np
from keras import ops

from deel.lipdp._convolution import kernel_gradient_factor, window_count
from deel.lipdp._linalg import (
    EPS,
    add_to_diagonal,
    frobenius,
    hermitian_square,
    matrix_norm_bound,
    mean_eigenvalue,
    orthogonalize,
)

__all__ = ["ConvGeometry", "centred_convolution", "conv_norm_bound", "orthogonalize_convolution"]


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
    size = ops.cast(frobenius(unit), "float64")[..., 0, 0]
    slack = (taps + 8) * EPS["float32"] * math.sqrt(taps * aliases) * size
    bound = factor * scale[..., 0, 0] * (norms + slack)
    if geometry.window_count * math.prod(geometry.strides) >= taps:
        return bound  # the other is no smaller, by Cauchy-Schwarz over the taps and the aliases
    return ops.minimum(bound, matrix_norm_bound(reshaped) * math.sqrt(geometry.window_count))


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
        gram_real, gram_imag = hermitian_square(real, imag)
        scale = _start_scale(gram_real, gram_imag)
        factor = add_to_diagonal(gram_real * (-0.5 / scale), 1.5)
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
    means = mean_eigenvalue(gram_real)
    away = frobenius(add_to_diagonal(gram_real, -means), gram_imag)
    over = {"axis": (-3, -2, -1), "keepdims": True}
    scale = ops.maximum(ops.mean(means, **over), ops.max(means + away, **over) / _LARGEST_START)
    return ops.where(scale > 0, scale, ops.ones_like(scale))
