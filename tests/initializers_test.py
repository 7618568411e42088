"""Waves that kernels start from."""

import keras
import numpy as np
import pytest

from deel.lipdp import layers
from deel.lipdp.initializers import FourierWaves

# Sums of at most 108 products of cosines, in double precision; each argument is off by a few roundings of up to 30.
ROUNDING = {"rtol": 0.0, "atol": 108 * 30 * 2.0**-52}


def exact(shape):
    """The kernel in double precision."""
    return np.asarray(FourierWaves()(shape, dtype="float64"))


def pairs_of(shape):
    """(rows, cols, channels, pairs) complex"""
    kernel = exact(shape)
    return kernel[..., ::2] + 1j * kernel[..., 1::2]


def test_the_lowest_frequencies_come_first_and_only_one_of_two_opposites():
    waves = pairs_of((8, 8, 1, 46))[:, :, 0]
    places, bins = np.arange(8) - 3.5, np.fft.fftfreq(64, 1 / 8)
    basis = np.exp(-2j * np.pi * np.outer(places, bins) / 8)
    peaks = []
    for wave in np.moveaxis(waves, -1, 0)[1:]:  # the first is a mean
        energy = abs(basis.T @ wave @ basis)
        row, col = np.unravel_index(energy.argmax(), energy.shape)
        peaks.append((bins[row], bins[col]))
    norms = np.hypot(*np.transpose(peaks))
    assert np.all(np.diff(norms) >= -1e-9) and norms[-1] == pytest.approx(13**0.5)
    assert len({*peaks} | {(-u, -v) for u, v in peaks}) == 2 * len(peaks) == 44
    inside = {(u, v) for u in range(-4, 5) for v in range(-4, 5) if 0 < u * u + v * v < 16}
    assert inside <= {*peaks} | {(-u, -v) for u, v in peaks}


def test_waves_without_their_window_are_orthonormal():
    places = np.arange(6) - 2.5
    window = np.outer(np.cos(np.pi * places / 6), np.cos(np.pi * places / 6))
    kernel = exact((6, 6, 3, 60)) / window[:, :, None, None]
    matrix = kernel.reshape(-1, 60)[:, 6:]  # the means come twice, as real and as imaginary part
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(54), **ROUNDING)


def test_the_first_pair_is_the_mean_and_the_channels_have_a_cosine_basis():
    kernel = exact((4, 4, 3, 12))
    np.testing.assert_array_equal(kernel[..., 0], kernel[..., 1])
    directions = kernel.sum(axis=(0, 1))[:, [0, 2, 4]]
    np.testing.assert_array_equal(directions[:, 0], directions[0, 0])
    energy = directions[:, 0] @ directions[:, 0]
    np.testing.assert_allclose(directions.T @ directions, energy * np.eye(3), **ROUNDING)


def test_exponent_and_contrast_scale_waves_and_nothing_else():
    plain, scaled = exact((5, 5, 3, 78)), np.asarray(FourierWaves(1.5, 3.0)((5, 5, 3, 78), dtype="float64"))
    ratios = np.sqrt((scaled**2).sum(axis=(0, 1, 2)) / (plain**2).sum(axis=(0, 1, 2)))
    np.testing.assert_allclose(scaled, plain * ratios, **ROUNDING)
    # In cycles per window: the mean counts as half of the lowest.
    lengths = np.sqrt([0.25, 1, 1, 2, 2, 4, 4, 5, 5, 5, 5, 8, 8])
    expected = (lengths / 0.5)[:, None] ** 1.5 * [1.0, 3.0, 3.0]
    # Two roots of sums of 75 squares, each term off by ten roundings at most: below 50 eps together.
    np.testing.assert_allclose(ratios, np.repeat(expected.reshape(-1), 2), rtol=50 * 2.0**-52)
    assert np.all(np.asarray(FourierWaves(2.0)((1, 1, 1, 2))))


@pytest.mark.parametrize(
    "arguments, error", [((-0.1,), ValueError), ((5.0,), ValueError), (("1",), TypeError), ((0.0, 0.0), ValueError)]
)
def test_scales_out_of_range_are_refused(arguments, error):
    with pytest.raises(error, match="FourierWaves: expected (exponent|contrast)"):
        FourierWaves(*arguments)


def test_the_modulus_of_a_wave_does_not_depend_on_its_phase():
    """What the large strides of the recipes rest on: away from the border a shift by a pixel changes little."""
    rows, cols = np.mgrid[:28, :28]
    images = np.stack([np.cos(2 * np.pi * 3 / 12 * cols + phase) for phase in np.linspace(0, np.pi, 7)])[..., None]
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.DP_QuickSpectralConv2D(90, 12, strides=3, padding="same", kernel_initializer=FourierWaves()),
            layers.DP_Modulus(),
        ]
    )
    strengths = np.asarray(model(images.astype("float32")))[:, 2:-2, 2:-2]
    strongest = strengths.reshape(7, -1, 45).mean(axis=1).argmax(axis=-1)
    assert len(set(strongest)) == 1
    np.testing.assert_allclose(strengths[..., strongest[0]], strengths[..., strongest[0]].mean(), rtol=0.1)


@pytest.mark.parametrize(
    "shape", [(4, 4, 8), (4, 4, 1, 9), (4, 4, 3, 10), (4, 4, 1, 40), (4, 4, 0, 4), (0, 4, 1, 2), (4, 4, 1, 0)]
)
def test_shapes_without_waves_are_refused(shape):
    with pytest.raises(ValueError, match="FourierWaves: expected a kernel of shape"):
        FourierWaves()(shape)


def test_every_frequency_can_be_had():
    for rows, cols, below in ((4, 4, 9), (5, 5, 25), (4, 1, 3), (1, 4, 3), (10, 5, 45)):
        filters = below + 1  # those below half the sampling rate: the mean, and pairs of opposites
        kernel = exact((rows, cols, 1, filters))
        envelope = np.outer(*(np.cos(np.pi * (np.arange(n) - (n - 1) / 2) / n) for n in (rows, cols)))
        matrix = (kernel / envelope[:, :, None, None]).reshape(-1, filters)[:, 2:]
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(filters - 2), **ROUNDING)
        with pytest.raises(ValueError, match=f"at most {filters} filters"):
            FourierWaves()((rows, cols, 1, filters + 2))


def test_config_round_trip():
    waves = FourierWaves(exponent=1.0, contrast=3.0)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(waves))
    np.testing.assert_array_equal(copy((4, 4, 2, 20)), waves((4, 4, 2, 20)))


def test_dtype():
    assert FourierWaves()((4, 4, 1, 10)).dtype == keras.config.floatx()
    assert FourierWaves()((4, 4, 1, 10), dtype="float16").dtype == "float16"
