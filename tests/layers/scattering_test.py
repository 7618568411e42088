"""The wavelets are what they are said to be, and one transform of them is 1-Lipschitz for real images."""

import numpy as np
import pytest
import tensorflow as tf

from deel.lipdp import layers
from deel.lipdp.layers import scattering

BANKS = [(8, 1, 2), (12, 1, 5), (12, 2, 4), (20, 2, 8)]


def transform(size, scales, angles, middles=True):
    """Averages and wavelets as one complex matrix on the pixels of the torus.

    Averages are read in the middle of their windows, as the layer does, or at the first pixel.
    """
    wavelets, low_pass = scattering._filter_bank(size, scales, angles)
    waves = np.fft.fft2(np.eye(size**2).reshape(-1, size, size))
    rows = [np.fft.ifft2(waves * filter_).reshape(size**2, size**2).T for filter_ in wavelets.reshape(-1, size, size)]
    if middles:
        along = scattering._averaging(low_pass, 2**scales, size)
        return np.concatenate([np.kron(along, along), *rows])
    low = np.fft.ifft2(waves * np.outer(low_pass, low_pass))[:, :: 2**scales, :: 2**scales] * 2**scales
    return np.concatenate([low.reshape(size**2, -1).T, *rows])


def norm_on_real_images(matrix):
    return np.linalg.norm(np.concatenate([matrix.real, matrix.imag]), 2)


@pytest.mark.parametrize("bank", BANKS)
def test_one_transform_has_norm_one(bank):
    """Its matrix, entry by entry, against the eigenvalues that scale it."""
    assert 1.0 - 1e-5 < norm_on_real_images(transform(*bank, middles=False)) <= 1.0
    assert 0.99 < norm_on_real_images(transform(*bank)) <= 1.0


def test_without_aliases_the_norm_would_be_above_one(monkeypatch):
    """At each frequency alone the energies add up to less: what folds on it from others counts too."""

    def diagonal_only(energy, low_pass, stride):
        return (energy + np.outer(low_pass, low_pass) ** 2).max()

    monkeypatch.setattr(scattering, "_squared_norm", diagonal_only)
    for middles in (False, True):
        assert max(norm_on_real_images(transform(*bank, middles=middles)) for bank in BANKS) > 1.0 + 1e-3


@pytest.mark.parametrize("bank", BANKS)
def test_wavelets_have_no_mean_and_their_own_frequency(bank):
    size, scales, angles = bank
    wavelets, low_pass = scattering._filter_bank(*bank)
    np.testing.assert_allclose(wavelets[:, :, 0, 0], 0.0, atol=1e-15)  # a difference of equal numbers around 1e-1
    assert low_pass.argmax() == 0
    frequencies = 2 * np.pi * np.fft.fftfreq(size)
    for scale in range(scales):
        for angle in range(angles):
            row, col = np.unravel_index(wavelets[scale, angle].argmax(), (size, size))
            centre = scattering._CENTRE_FREQUENCY * 2.0**-scale
            direction = np.pi * angle / angles
            found = frequencies[row], frequencies[col]
            # The grid of frequencies is coarse.
            np.testing.assert_allclose(
                found, (centre * np.cos(direction), centre * np.sin(direction)), atol=2 * np.pi / size
            )


def test_quarter_turn_of_the_image_turns_the_paths():
    layer = layers.DP_Scattering2D(scales=2, angles=4, order=1)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype("float32")
    paths = layer(image).numpy().reshape(2, 2, 9)
    turned = layer(np.rot90(image, axes=(1, 2)).copy()).numpy().reshape(2, 2, 9)
    order = [0, 3, 4, 1, 2, 7, 8, 5, 6]  # two of four directions further
    # Transforms in single precision of entries around 1, in another order.
    np.testing.assert_allclose(turned, np.rot90(paths)[..., order], atol=1e-6)


@pytest.mark.parametrize(
    ("scales", "angles", "order", "paths"), [(1, 8, 2, 9), (2, 8, 1, 17), (2, 8, 2, 81), (3, 2, 2, 19)]
)
def test_number_of_paths(scales, angles, order, paths):
    layer = layers.DP_Scattering2D(scales, angles, order)
    assert layer.paths == paths
    outputs = layer(np.zeros((2, 9, 16, 3), "float32"))
    side = 2**scales
    assert outputs.shape == (2, -(-9 // side), 16 // side, 3 * paths)


def test_small_translations_move_it_little():
    """What it is for: of an image shifted by one pixel it keeps far more than the image itself does."""
    rng = np.random.default_rng(1)
    image = np.zeros((1, 32, 32, 1), "float32")
    image[:, 8:24, 8:24] = rng.normal(size=(1, 16, 16, 1))
    shifted = np.roll(image, 1, axis=2)
    layer = layers.DP_Scattering2D(scales=3)
    moved = np.linalg.norm(layer(shifted) - layer(image)) / np.linalg.norm(layer(image))
    assert moved < 0.4 * np.linalg.norm(shifted - image) / np.linalg.norm(image)


def test_no_two_images_are_moved_apart():
    rng = np.random.default_rng(2)
    layer = layers.DP_Scattering2D(scales=2)
    one = rng.normal(size=(20, 12, 12, 1)).astype("float32")
    for size in (1e-3, 1.0, 10.0):
        other = one + size * rng.normal(size=one.shape).astype("float32")
        apart = np.linalg.norm((layer(other) - layer(one)).numpy().reshape(20, -1), axis=1)
        assert (apart <= np.linalg.norm((other - one).reshape(20, -1), axis=1) * (1 + 1e-5)).all()


def test_double_precision_is_kept():
    layer = layers.DP_Scattering2D(scales=1, dtype="float64")
    assert layer(tf.zeros((1, 4, 4, 1), "float64")).dtype == "float64"
