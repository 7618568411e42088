"""Features that learn nothing from the records: fitted to drawn images or random, computed once, then trained upon.

A private linear model on good features needs little of the budget, and its bound is attained: the gradient of an
example is its features times its residual. What is here is made for `front_end=` of `load_images` and
`prepare_tabular_data` in `deel.lipdp.pipeline`.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import math
from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
import scipy.linalg
import scipy.ndimage

from deel.lipdp import _checks
from deel.lipdp._front_end import by_batches
from deel.lipdp.layers.scattering import DP_Scattering2D
from deel.lipdp.pipeline import bound_normalize

__all__ = ["FourierFeatures", "SceneFeatures", "StrokeFeatures", "deskew", "draw_strokes"]


@dataclasses.dataclass(frozen=True)
class SceneFeatures:
    """Features of a network that learned to tell drawn scenes apart.

    The network saw heaps of coloured leaves drawn at random, and no photograph; `experiments/scenes/pretrain.py` made
    its weights, which come with the library (3 MB). The outputs of three of its residual blocks are averaged over the
    cells of a grid, centred and whitened with the mean and the channels' covariance over drawn scenes, and scaled
    together to norm 1. Each image is treated alone.

    Args:
        grid: 1, 2 or 4, cells of a side. Few for photographs, whose objects move about; many where things have their
            place, such as in pictures of clothes.
        mirrored: bool, whether features are averaged over the image and its mirror image.

    Call: array (n, rows, cols, 1 or 3), pixels in [0, 1] -> float32 (n, 480 grid^2). Smaller images than 32x32 are
    centred on zeros.

    Attributes:
        bound: 1.0, norm of the features of one image.

    Raises:
        TypeError, ValueError: for arguments out of range, and images of another shape.
    """

    grid: Literal[1, 2, 4] = 2
    mirrored: bool = True
    bound = 1.0

    def __post_init__(self):
        _checks.choice("SceneFeatures", "grid", self.grid, {1: 1, 2: 2, 4: 4})

    @property
    def cache_key(self) -> str:
        """str, changes with the settings and with the weights."""
        return f"{self!r} {hashlib.sha256(_weights_file().read_bytes()).hexdigest()}"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return by_batches(self._features, _checked_images("SceneFeatures", images, channels=(1, 3)))

    def _features(self, images):
        least = [max(32, 4 * self.grid * math.ceil(side / (4 * self.grid))) for side in images.shape[1:3]]
        border = [
            ((size - side) // 2, (size - side + 1) // 2) for size, side in zip(least, images.shape[1:3], strict=True)
        ]
        images = np.pad(images, [(0, 0), *border, (0, 0)])
        if images.shape[-1] == 1:
            images = np.repeat(images, 3, axis=-1)
        views = [images, images[:, :, ::-1]] if self.mirrored else [images]
        network, means, matrices = _scene_network()
        maps = [[_cells(part, self.grid) for part in network.predict_on_batch(view)] for view in views]
        maps = [np.mean(parts, axis=0) for parts in zip(*maps, strict=True)]
        return _unit_rows(
            [
                (part - _cells(mean, self.grid)) @ matrix
                for part, mean, matrix in zip(maps, means, matrices, strict=True)
            ]
        )


@dataclasses.dataclass(frozen=True)
class StrokeFeatures:
    """Scattering coefficients of an upright character, whitened by those of random pen strokes.

    Each image is deskewed (`deskew`) and passes through `DP_Scattering2D`; the logarithm of the coefficients is
    centred and whitened with the mean and the channels' covariance over drawn strokes, and scaled to norm 1. Each
    image is treated alone.

    Args:
        scales, angles: see `DP_Scattering2D`.
        drawn: int >= 1, number of drawn images.

    Call: array (n, rows, cols, 1), bright strokes in [0, 1] -> float32 (n, features).

    Attributes:
        bound: 1.0, norm of the features of one image.

    Raises:
        TypeError, ValueError: for arguments out of range, and images of another shape.
    """

    scales: int = 2
    angles: int = 8
    drawn: int = 8000
    bound = 1.0

    def __post_init__(self):
        for name in ("scales", "angles", "drawn"):
            _checks.integer("StrokeFeatures", name, getattr(self, name))

    @property
    def cache_key(self) -> str:
        """str, changes with the settings."""
        return repr(self)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = _checked_images("StrokeFeatures", images, channels=(1,))
        if images.shape[1] != images.shape[2]:
            raise ValueError(_checks.message("StrokeFeatures", "square images", f"shape {images.shape}", ""))
        network, mean, matrix = _stroke_network(images.shape[1], self.scales, self.angles, self.drawn)
        return by_batches(lambda part: _unit_rows([(_stroke_maps(network, part) - mean) @ matrix]), images)


@dataclasses.dataclass(frozen=True)
class FourierFeatures:
    """Random waves of the rows of a table: a linear model on them is nearly one with a Gaussian kernel.

    Cosines and sines of random projections, scaled together to norm 1 (Rahimi and Recht, "Random features for
    large-scale kernel machines", 2007). They depend on the seed and on nothing in the records, and the gradient of an
    example in a linear model on them has the norm of its residual: the bound is attained.

    Args:
        units: int >= 2, number of features, shared out evenly between the scales in pairs.
        scales: sequence of float > 0, standard deviations of the frequencies. A column that moves by `1 / scale` turns
            a wave by about one radian: small ones follow trends, large ones details.
        compress: bool, whether `arcsinh(x)` takes the place of `x`, which tames heavy tails.
        seed: int >= 0.

    Call: array (n, d) of numbers -> float32 (n, units).

    Attributes:
        bound: 1.0, norm of the features of one row.

    Raises:
        TypeError, ValueError: for arguments out of range, and rows of another shape.
    """

    units: int = 600
    scales: Sequence[float] = (0.1, 0.3, 1.0)
    compress: bool = False
    seed: int = 0
    bound = 1.0

    def __post_init__(self):
        who = "FourierFeatures"
        object.__setattr__(self, "scales", tuple(_checks.number(who, "scales", s, above=0.0) for s in self.scales))
        _checks.integer(who, "units", self.units, at_least=2)
        _checks.integer(who, "seed", self.seed, at_least=0)
        if not self.scales or self.units % (2 * len(self.scales)):
            raise ValueError(
                _checks.message(
                    who,
                    "at least one scale, and units to be a multiple of twice their number",
                    f"units={self.units}, scales={self.scales}",
                    "Change units.",
                )
            )

    @property
    def cache_key(self) -> str:
        """str, changes with the settings."""
        return repr(self)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.nan_to_num(np.asarray(rows, dtype="float64"), nan=0.0, posinf=0.0, neginf=0.0)
        if rows.ndim != 2 or not rows.size:
            raise ValueError(_checks.message("FourierFeatures", "rows (n, d), not empty", f"shape {rows.shape}", ""))
        rows = np.arcsinh(rows) if self.compress else rows
        rng, waves = np.random.default_rng(self.seed), self.units // (2 * len(self.scales))
        kernel = np.concatenate([scale * rng.standard_normal((waves, rows.shape[1])) for scale in self.scales])

        def features(part):
            # Not a matrix product, whose rounding may depend on where in the batch a row is and did depend on how large
            # the batch is: of an angle of 1e16 that leaves nothing, and a row would depend on the others.
            angles = np.nan_to_num((part[:, None, :] * kernel).sum(axis=-1), nan=0.0, posinf=0.0, neginf=0.0)
            return _unit_rows([np.cos(angles).astype("float32"), np.sin(angles).astype("float32")])

        return by_batches(features, rows)


def deskew(images: np.ndarray) -> np.ndarray:
    """Shears and shifts each image so that its mass is centred and its vertical axis upright.

    Args:
        images: array (n, rows, cols, 1), non-negative. An image of zeros stays as it is.

    Returns:
        Array of the same shape, float32, interpolated linearly; what leaves the image is cut off.
    """
    images = _checked_images("deskew", images, channels=(1,))
    rows, cols = np.mgrid[: images.shape[1], : images.shape[2]].astype("float64")
    middle = (np.array(images.shape[1:3]) - 1) / 2.0
    result = images.copy()
    for image, upright in zip(images[..., 0], result[..., 0], strict=True):
        mass = image.sum(dtype="float64")
        if mass > 0:
            row, col = (rows * image).sum() / mass, (cols * image).sum() / mass
            height = ((rows - row) ** 2 * image).sum() / mass
            slant = ((rows - row) * (cols - col) * image).sum() / mass / max(height, 1e-3)
            shear = np.array([[1.0, 0.0], [np.clip(slant, -1.0, 1.0), 1.0]])
            offset = np.array([row, col]) - shear @ middle
            upright[:] = scipy.ndimage.affine_transform(image, shear, offset, order=1)
    return result


def draw_strokes(count: int, size: int = 28, seed: int = 0) -> np.ndarray:
    """Draws bright strokes of a pen on black: one or two smooth curves of one to three pieces in an image.

    Args:
        count: int >= 1, number of images.
        size: int >= 1, pixels of a side.
        seed: int; the same seed draws the same images.

    Returns:
        float32 array (count, size, size, 1), in [0, 1].

    Raises:
        TypeError, ValueError: for arguments out of range.
    """
    count = _checks.integer("draw_strokes", "count", count)
    size = _checks.integer("draw_strokes", "size", size)
    rng, pixels = np.random.default_rng(seed), np.arange(size)
    images = np.zeros((count, size, size), "float32")
    for image in images:
        for _ in range(rng.integers(1, 3)):
            width = size / 28.0 * rng.uniform(0.8, 1.4)
            for piece in _smooth_curve(rng, rng.integers(1, 4), size):
                inks = (np.exp(-((piece[:, axis, None] - pixels) ** 2) / (2.0 * width**2)) for axis in (0, 1))
                row, col = inks
                np.maximum(image, (row[:, :, None] * col[:, None, :]).max(axis=0), out=image)
    return np.clip(1.6 * images, 0.0, 1.0)[..., None]


def _smooth_curve(rng, pieces, size):
    """Points of Bezier curves, each of which goes on in the direction in which the last one ended."""
    t = np.linspace(0.0, 1.0, 40)[:, None]
    start, ahead = rng.uniform(0.18 * size, 0.82 * size, (2, 2))
    for _ in range(pieces):
        back, end = rng.uniform(0.18 * size, 0.82 * size, (2, 2))
        yield (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * ahead + 3 * (1 - t) * t**2 * back + t**3 * end
        start, ahead = end, 2 * end - back


def _weights_file():
    return importlib.resources.files("deel.lipdp").joinpath("scenes.npz")


@functools.lru_cache(maxsize=1)
def _scene_network():
    """(network, mean maps, whitening matrices) of the weights that come with the library."""
    with _weights_file().open("rb") as file, np.load(file) as archive:
        arrays = {name: archive[name].astype("float32") for name in archive.files}
    network = _residual_network([(arrays[f"kernel_{i}"], arrays[f"bias_{i}"]) for i in range(11)])
    return network, [arrays[f"mean_{j}"][None] for j in range(3)], [arrays[f"whitening_{j}"] for j in range(3)]


@functools.lru_cache(maxsize=4)
def _stroke_network(size, scales, angles, drawn):
    """(network, mean map, whitening matrix) for square images of that size."""
    network = keras.Sequential(
        [keras.Input((size, size, 1)), DP_Scattering2D(scales, angles, dtype="float32")], name="strokes"
    )
    maps = by_batches(lambda part: _stroke_maps(network, part), draw_strokes(drawn, size))
    mean = maps.mean(axis=0, dtype="float64").astype("float32")
    return network, mean, _whitening(maps - mean)


def _stroke_maps(network, images):
    # Coefficients span orders of magnitude: the finest are small, and tell characters apart all the same.
    return np.log(np.maximum(network.predict_on_batch(deskew(images)), 0.0) + 1e-2)


def _residual_network(weights):
    """The blocks of `experiments/scenes/pretrain.py` that are used, normalisation folded into the convolutions."""
    weights = iter(weights)

    def convolution(x, strides=1):
        kernel, bias = next(weights)
        layer = keras.layers.Conv2D(
            kernel.shape[-1],
            kernel.shape[0],
            strides=strides,
            padding="same",
            data_format="channels_last",
            dtype="float32",
            trainable=False,
        )
        x = layer(x)
        layer.set_weights([kernel, bias])
        return x

    inputs = keras.Input((None, None, 3))
    x, outputs = keras.ops.relu(convolution(4.0 * inputs - 2.0)), []
    for strides in (2, 1, 2, 1):
        branch = convolution(keras.ops.relu(convolution(x, strides)))
        x = keras.ops.relu(branch + (convolution(x, strides) if strides > 1 else x))
        outputs.append(x)
    return keras.Model(inputs, outputs[1:])


def _whitening(maps, ridge=0.1):
    """Matrix that makes the channels of centred maps (n, rows, cols, channels) uncorrelated, small ones not at full.

    The symmetric one: any rotation of it would do as well, but eigenvectors differ from machine to machine.
    """
    rows = maps.reshape(-1, maps.shape[-1]).astype("float64")
    values, vectors = scipy.linalg.eigh(rows.T @ rows / len(rows))
    return (vectors / np.sqrt(values + ridge * values.mean()) @ vectors.T).astype("float32")


def _cells(maps, grid):
    """Averages of maps (n, rows, cols, channels) over the cells of a grid."""
    n, rows, cols, channels = maps.shape
    return maps.reshape(n, grid, rows // grid, grid, cols // grid, channels).mean(axis=(2, 4))


def _unit_rows(parts):
    return bound_normalize(1.0)(np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1))


def _checked_images(who, images, channels):
    images = np.asarray(images, dtype="float32")
    if images.ndim != 4 or images.shape[-1] not in channels or not len(images):
        wanted = " or ".join(str(number) for number in channels)
        raise ValueError(
            _checks.message(who, f"images (n, rows, cols, {wanted}), at least one", f"shape {images.shape}", "")
        )
    return np.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0)
