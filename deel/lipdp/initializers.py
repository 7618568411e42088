"""Where kernels start: waves under a window, for convolutions that see images."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks
from deel.lipdp._types import Tensor

__all__ = ["FourierWaves"]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class FourierWaves(keras.initializers.Initializer):
    """Kernels of a 2-D convolution that start as a short-time Fourier transform: complex waves under a window.

    The window is one arch of a sine along each axis. Filters come in adjacent pairs, real and imaginary part, for
    `DP_Modulus`. Frequencies are those of the discrete Fourier transform of a window below half the sampling rate, one
    of each pair of opposites, the lowest first. First of all is the mean, whose two parts are the same. With several
    input channels each frequency is there once for every vector of the cosine basis of the channels: their mean, then
    their contrasts. None of this looks at data.

    Without their window the waves are orthonormal, the mean apart, before `exponent` and `contrast` scale them.
    `DP_ContractiveConv2D` divides all of them by their norm where that is above 1; the other convolutions make them
    about equally strong.

    Args:
        exponent: float in [0, 4], a wave is scaled by its frequency to this power, as multiple of that of the mean,
            which counts as half of the lowest other. The amplitudes of photographs fall about as one over the
            frequency (Field), and 1 makes up for that.
        contrast: float in (0, 1e6], factor on the waves of contrasts between channels, which are weaker than those of
            their mean in photographs (Ruderman et al.).

    Raises:
        TypeError, ValueError: for arguments out of range.
        ValueError: when called, for a shape that is not `(rows, cols, channels, filters)`, for filters that are no
            multiple of `2 * channels`, or more of them than there are frequencies.

    References:
        Gabor: Theory of communication. 1946.
        Field: Relations between the statistics of natural images and the response properties of cortical cells. 1987.
        Ruderman, Cronin, Chiao: Statistics of cone responses to natural images. 1998.
    """

    def __init__(self, exponent: float = 0.0, contrast: float = 1.0) -> None:
        self.exponent = _checks.number("FourierWaves", "exponent", exponent, at_least=0.0, at_most=4.0)
        self.contrast = _checks.number("FourierWaves", "contrast", contrast, above=0.0, at_most=1e6)

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Tensor:
        kernel = _waves(tuple(shape), self.exponent, self.contrast)
        return ops.convert_to_tensor(kernel, dtype=dtype or keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        return {"exponent": self.exponent, "contrast": self.contrast}


def _waves(shape, exponent, contrast):
    if len(shape) != 4 or min(shape) < 1 or shape[3] % (2 * shape[2]):
        _refuse("(rows, cols, channels, filters), filters a multiple of 2 * channels", shape)
    *window, channels, filters = shape
    along = [np.arange(size) - (size - 1) / 2.0 for size in window]
    # Of a frequency and its opposite the one whose first entry that is not 0 is above 0. Half the sampling rate is its
    # own opposite, and its wave no complex one.
    steps = (range(-((size - 1) // 2), (size + 1) // 2) for size in window)
    frequencies = [(u, v) for u, v in itertools.product(*steps) if (u, v) >= (0, 0)]
    length = {f: math.hypot(f[0] / window[0], f[1] / window[1]) for f in frequencies}
    frequencies.sort(key=lambda f: (length[f], f))
    lowest = 0.5 * length[frequencies[1]] if len(frequencies) > 1 else 1.0
    strength = {f: max(1.0, length[f] / lowest) ** exponent for f in frequencies}
    count = filters // (2 * channels)
    if count > len(frequencies):
        _refuse(f"at most {2 * channels * len(frequencies)} filters", shape)
    # Its squares, half a window apart, add up to 1.
    envelope = np.outer(*(np.cos(np.pi * positions / size) for positions, size in zip(along, window, strict=True)))
    colours = [np.cos(np.pi * k * (np.arange(channels) + 0.5) / channels) for k in range(channels)]
    colours = [(contrast if k else 1.0) * colour / np.linalg.norm(colour) for k, colour in enumerate(colours)]
    kernel = []
    for u, v in frequencies[:count]:
        phase = 2.0 * np.pi * (u * along[0][:, None] / window[0] + v * along[1] / window[1])
        for colour in colours:
            wave = [np.cos(phase), np.sin(phase)] if (u, v) != (0, 0) else [np.ones_like(phase) / math.sqrt(2.0)] * 2
            kernel += [strength[u, v] * (envelope * part)[:, :, None] * colour for part in wave]
    return np.stack(kernel, axis=-1) * math.sqrt(2.0 / math.prod(window))


def _refuse(expected, shape):
    raise ValueError(
        _checks.message("FourierWaves", f"a kernel of shape {expected}", f"{shape}", "Change the number of filters.")
    )
