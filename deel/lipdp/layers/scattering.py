"""The scattering transform: a fixed front end of wavelets and absolute values, 1-Lipschitz and without parameters.

Bruna and Mallat, "Invariant scattering convolution networks" (2013). The filter bank is that of their section 4, given
in the frequency domain, so that the layer's norm is known exactly.
"""

import math
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks
from deel.lipdp._per_example import half_squares, root
from deel.lipdp._types import Shape, Tensor
from deel.lipdp.layers._base import NonExpansive
from deel.lipdp.layers.bias import check_known_shape
from deel.lipdp.layers.pooling import check_image

__all__ = ["DP_Scattering2D"]

# The Morlet wavelet of scale 0: bandwidth in pixels and centre frequency. The larger ones are dilations of it.
_BANDWIDTH, _CENTRE_FREQUENCY = 0.8, 3.0 * math.pi / 4.0

# Rounding of the eigenvalues that scale the filters, in double precision, and of the filters to single: half an eps of
# theirs, 6e-8.
_SLACK = 1.0 + 1e-7


def _gaussian(size, scale, centre, angle, elongation):
    """Transform of a Gaussian in space, around a frequency at an angle: its samples on a torus, aliases added."""
    frequencies = 2.0 * np.pi * (np.fft.fftfreq(size)[:, None] + np.arange(-3, 4)).reshape(-1)
    rows, cols = frequencies[:, None], frequencies[None, :]
    along = np.cos(angle) * rows + np.sin(angle) * cols - centre
    across = np.cos(angle) * cols - np.sin(angle) * rows
    values = np.exp(-0.5 * (_BANDWIDTH * 2.0**scale) ** 2 * (along**2 + (elongation * across) ** 2))
    return values.reshape(size, 7, size, 7).sum(axis=(1, 3))


def _morlet(size, scale, angle, elongation):
    """Transform of a wavelet: a Gaussian around its frequency, less one around 0, so that its mean is 0."""
    wave = _gaussian(size, scale, _CENTRE_FREQUENCY * 2.0**-scale, angle, elongation)
    envelope = _gaussian(size, scale, 0.0, angle, elongation)
    return wave - envelope * (wave[0, 0] / envelope[0, 0])


def _filter_bank(size, scales, angles):
    """Wavelets and low-pass filter on a torus, scaled so that both together are 1-Lipschitz on real images.

    Returns:
        `(wavelets, low_pass)`: arrays (scales, angles, size, size) of real transforms, and (size,), the transform of
        the low-pass filter along one axis.
    """
    directions = np.pi * np.arange(angles) / angles
    elongation = angles / 4.0  # the more directions, the longer a wavelet is along its edge
    wavelets = np.array([[_morlet(size, j, angle, elongation) for angle in directions] for j in range(scales)])
    # Half of the energy of a real image is at each of a frequency and its opposite.
    opposite = -np.arange(size) % size
    energy = 0.5 * (wavelets**2 + wavelets[:, :, opposite][..., opposite] ** 2).sum(axis=(0, 1))
    wavelets, energy = wavelets / math.sqrt(energy.max()), energy / energy.max()
    frequencies = 2.0 * np.pi * np.fft.fftfreq(size)
    low_pass = np.exp(-0.5 * (_BANDWIDTH * 2.0 ** (scales - 1) * frequencies) ** 2)
    norm = math.sqrt(_squared_norm(energy, low_pass, 2**scales)) * _SLACK
    return wavelets / norm, low_pass / math.sqrt(norm)


def _squared_norm(energy, low_pass, stride):
    """Squared norm of `x -> (stride * low-passed x, every stride-th of its pixels; x through all wavelets)`.

    At each frequency of the coarse grid the aliases that fold on it see a rank-one matrix from the first part and a
    diagonal one, `energy`, from the second. Reading the averages half a pixel further changes phases only, and takes
    away where a real image has no phase.
    """
    coarse = len(low_pass) // stride
    # Axes: coarse row and column, then row and column of the alias.
    folded = np.reshape(energy, (stride, coarse, stride, coarse)).transpose(1, 3, 0, 2).reshape(coarse, coarse, -1)
    along = low_pass.reshape(stride, coarse).T
    low = (along[:, None, :, None] * along[None, :, None, :]).reshape(coarse, coarse, -1)
    matrices = low[..., :, None] * low[..., None, :] + np.eye(stride**2) * folded[..., None, :]
    return float(np.linalg.eigvalsh(matrices)[..., -1].max())


def _averaging(low_pass, stride, pixels):
    """The low-pass filter along one axis as a matrix (windows, pixels of the torus), times the root of the stride.

    Windows begin every `stride` pixels; each is read in its middle.
    """
    size = len(low_pass)
    middles = stride * np.arange(-(-pixels // stride)) + (stride - 1) / 2.0
    distances = middles[:, None] - np.arange(size)
    waves = np.cos(2.0 * np.pi * np.fft.fftfreq(size) * distances[..., None])
    return math.sqrt(stride) * (waves @ low_pass) / size


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Scattering2D(NonExpansive, keras.layers.Layer):
    """Averages of an image, of the absolute values of its wavelet transform, and of those of their wavelet transforms.

    A front end for images that learns nothing and so costs no privacy: a linear layer on top of it is a strong private
    baseline (Tramer and Boneh, 2021). Where nothing before it is trained, compute it once, with `front_end=` of
    `deel.lipdp.pipeline.load_images`.

    Args:
        scales: int >= 1, J: averages are over windows of `2^J` pixels a side.
        angles: int >= 1, L, directions of the wavelets of each scale.
        order: 1 or 2, how many wavelet transforms follow one another at most.
        **kwargs: `name`, `dtype`.

    Input shape: `(batch, rows, cols, channels)` with known rows, cols and channels, finite entries.
    Output shape: `(batch, ceil(rows / 2^J), ceil(cols / 2^J), channels * paths)`, the paths of a channel side by side:
        1 + J L of them for order 1, and `L^2 J (J - 1) / 2` more for order 2.

    Bounds: Euclidean norm, one example; `input_bound` and `gradient_bound`. The image is set into a torus with zeros
    around it. There one transform, averages A and wavelets W together, is scaled to `||A x||^2 + ||W x||^2 <= ||x||^2`
    for real x: by the largest eigenvalue over all frequencies, aliases of the subsampled averages included. For two
    images x and y the moduli of W x and W y are no further apart than W x and W y, so what A keeps and what goes on
    are together no further apart than x and y; what goes on is real and passes through the same transform, of which
    leaving out the finer wavelets or the border only takes away. By induction over the order the outputs are no further
    apart than the images (Mallat, "Group invariant scattering", 2012). Zero at zero.

    Raises:
        TypeError, ValueError: for arguments out of range; at build for an input without a known image shape.
    """

    def __init__(self, scales: int = 2, angles: int = 8, order: Literal[1, 2] = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        who = f"DP_Scattering2D '{self.name}'"
        self.scales = _checks.integer(who, "scales", scales)
        self.angles = _checks.integer(who, "angles", angles)
        self.order = _checks.integer(who, "order", order, at_most=2)

    @property
    def paths(self) -> int:
        """int, output channels for each input channel."""
        second = self.angles**2 * self.scales * (self.scales - 1) // 2
        return 1 + self.angles * self.scales + (second if self.order == 2 else 0)

    def build(self, input_shape: Shape) -> None:
        check_image(self, input_shape, 2)
        check_known_shape(self, input_shape, "rows, cols, channels", "each channel has its own paths")
        stride, pixels = 2**self.scales, input_shape[1:3]
        # Room for the tails of the filters, which would otherwise come in again at the other side.
        size = stride * (-(-max(pixels) // stride) + 2)
        wavelets, low_pass = _filter_bank(size, self.scales, self.angles)
        self._padding = [(0, size - n) for n in pixels]
        self._wavelets = wavelets.astype(self.compute_dtype)
        self._averages = [_averaging(low_pass, stride, n).astype(self.compute_dtype) for n in pixels]

    def call(self, inputs: Tensor) -> Tensor:
        images = ops.pad(ops.transpose(inputs, (0, 3, 1, 2)), [(0, 0), (0, 0), *self._padding])[:, :, None]
        parts = [self._average(images)]
        spectrum = ops.fft2((images, ops.zeros_like(images)))
        for scale in range(self.scales):
            first = _modulus(spectrum, self._wavelets[scale])
            parts.append(self._average(first))
            if self.order == 2 and scale + 1 < self.scales:
                coarser = self._wavelets[scale + 1 :].reshape(-1, *self._wavelets.shape[2:])
                real, imag = ops.fft2((first, ops.zeros_like(first)))
                # One angle after the other: all at once would take `angles` times the memory.
                for angle in range(self.angles):
                    one = slice(angle, angle + 1)
                    parts.append(self._average(_modulus((real[:, :, one], imag[:, :, one]), coarser)))
        paths = ops.transpose(ops.concatenate(parts, axis=2), (0, 3, 4, 1, 2))
        return ops.reshape(paths, (-1, *self.compute_output_shape(inputs.shape)[1:]))

    def _average(self, images):
        rows, cols = self._averages
        return ops.matmul(ops.matmul(rows, images), np.transpose(cols))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *pixels, channels = input_shape
        return (batch, *(-(-n // 2**self.scales) for n in pixels), channels * self.paths)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scales": self.scales, "angles": self.angles, "order": self.order}


def _modulus(spectrum, filters):
    """Absolute value of the images whose transforms are `spectrum` times each of `filters`; gradient 0 at 0."""
    real, imag = ops.ifft2((spectrum[0] * filters, spectrum[1] * filters))
    return root(half_squares(real) + half_squares(imag), 1)
