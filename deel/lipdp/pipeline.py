"""Loading images and tables, bounding their norm, and making the batches to train on."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deel.lipdp import _adbench, _checks, _datasets
from deel.lipdp._front_end import through_front_end
from deel.lipdp._types import BoundedMap, PathLike
from deel.lipdp.bounds import LARGEST_ACTIVATION
from deel.lipdp.parameters import DatasetMetadata
from deel.lipdp.sampling import poisson_batches

__all__ = [
    "DatasetMetadata",
    "ImageData",
    "bound_clip_value",
    "bound_normalize",
    "default_delta_value",
    "load_adbench_data",
    "load_and_prepare_images_data",
    "load_images",
    "prepare_tabular_data",
]

Examples: TypeAlias = tuple[np.ndarray, np.ndarray]
FrontEnd: TypeAlias = Sequence[keras.layers.Layer | BoundedMap]
ColorSpace: TypeAlias = Literal["RGB", "grayscale", "HSV", "YIQ", "YUV"]
DeclaredSampling: TypeAlias = Literal["poisson", "undeclared"] | None


def default_delta_value(metadata: DatasetMetadata) -> float:
    """Proposes delta: the largest power of ten that is at most 1 / (1.1 n).

    A mechanism that publishes one record at random satisfies (0, 1/n)-differential privacy, so delta has to stay below
    1 / n. The tenth is a margin: n is often a power of ten itself. Examples: 1e-5 for n = 50,000 and 60,000, 1e-6
    for n = 100,000. A much smaller delta is a stronger statement and costs little epsilon.

    Args:
        metadata: `DatasetMetadata`; n is its `nb_samples_train`, a public constant.

    Returns:
        float, the probability that the guarantee leaves out.
    """
    # Integers, so that no rounding of a logarithm decides.
    digits = 0
    while 10 * 10**digits < 11 * metadata.nb_samples_train:
        digits += 1
    return float(f"1e-{digits}")


def bound_clip_value(value: float) -> BoundedMap:
    """Makes a function that projects each example on the ball of radius `value`; examples inside stay as they are.

    Args:
        value: float > 0, Euclidean norm of one example.

    Returns:
        A callable from arrays of shape (n, ...) to the same shape, with the norm it guarantees as `.bound`. Non-finite
        entries become 0 first.
    """
    return _ClipToBall(_checks.number("bound_clip_value", "value", value, above=0.0))


def bound_normalize(value: float = 1.0, center: bool = False) -> BoundedMap:
    """Makes a function that scales each example to norm `value`; an example of zeros stays so.

    Args:
        value: float > 0, Euclidean norm of one example.
        center: bool, whether the example's own mean is subtracted first (never a mean over examples).

    Returns:
        A callable from arrays of shape (n, ...) to the same shape, with the norm it guarantees as `.bound`. Non-finite
        entries become 0 first.
    """
    return _ScaleToSphere(_checks.number("bound_normalize", "value", value, above=0.0), bool(center))


@dataclasses.dataclass(frozen=True)
class _ClipToBall:
    bound: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rows, peaks = _rows(x)
        units = rows / peaks
        norms = _norms(units)
        with np.errstate(over="ignore"):  # infinity is above the bound, as it should be
            outside = norms * peaks > self.bound
        clipped = np.where(outside, _rescaled(units, norms, self.bound), rows)
        return clipped.astype(rows.dtype).reshape(np.shape(x))


@dataclasses.dataclass(frozen=True)
class _ScaleToSphere:
    bound: float
    center: bool = False

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rows, peaks = _rows(x)
        units = rows / peaks
        if self.center:
            units = units - units.mean(axis=1, keepdims=True, dtype=np.float64)
            # What is left of a constant example is rounding, which must not be blown up to the full norm.
            units = np.where(np.abs(units).max(axis=1, keepdims=True, initial=0.0) > 1e-6, units, 0.0)
        return _rescaled(units, _norms(units), self.bound).astype(rows.dtype).reshape(np.shape(x))


def _rows(x):
    """Returns finite floating-point rows and the largest absolute entry of each, 1 for a row of zeros.

    Dividing by it before squaring keeps norms from overflowing.
    """
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float32)
    rows = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).reshape(len(x), math.prod(x.shape[1:]))
    peaks = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    return rows, np.where(peaks > 0, peaks, 1).astype(rows.dtype)


def _norms(units):
    return np.sqrt(np.square(units).sum(axis=1, keepdims=True, dtype=np.float64))


def _rescaled(units, norms, value):
    # Rounding an entry to float32 may add 2^-24 of it; taking off 2^-22 keeps the norm below `value` all the same.
    return units * (value * (1.0 - 2.0**-22) / np.where(norms > 0, norms, 1.0))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """Images ready for a model, as arrays.

    Args:
        x_train, x_test: float32 arrays of shape (n, h, w, c); behind a front end, of the shape it gives.
        y_train, y_test: float32 arrays of shape (n, classes), one-hot labels.
        class_names: tuple of str, one for each column of the labels.
        max_norm: float, bound on the Euclidean norm of one image; from the format or the bounding function, not from
            the records.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    max_norm: float

    def hold_out(self, fraction: float) -> tuple[Examples, Examples]:
        """Splits the training set in two, always the same way: the split depends on n and on nothing in the records.

        Args:
            fraction: float in (0, 1), the share of the second part.

        Returns:
            `(x, y), (x_held_out, y_held_out)`: disjoint, together the whole training set.

        Raises:
            ValueError: if `fraction` is out of range or leaves one part empty.
        """
        return _split("ImageData.hold_out", self.x_train, self.y_train, fraction, seed=0)


def _split(who, x, y, fraction, seed):
    """Two parts of the examples, the second with that share of them, drawn from n and the seed alone."""
    fraction = _checks.number(who, "fraction", fraction, above=0.0, below=1.0)
    count = round(fraction * len(x))
    if not 0 < count < len(x):
        raise ValueError(
            _checks.message(
                who, "at least one example in each part", f"{count} of {len(x)} examples held out", "Change fraction."
            )
        )
    order = np.random.default_rng(seed).permutation(len(x))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return (x[kept], y[kept]), (x[held], y[held])


def load_images(
    dataset_name: str = "digits",
    data_dir: PathLike | None = None,
    colorspace: ColorSpace = "RGB",
    bound_fct: BoundedMap | None = None,
    front_end: FrontEnd = (),
    cache_dir: PathLike | None = None,
) -> ImageData:
    """Loads an image data set as arrays, in a colour space and with bounded norms.

    Args:
        dataset_name: `"digits"` (8x8, comes with scikit-learn, its last fifth is the test set), `"mnist"`,
            `"fashion_mnist"` or `"cifar10"`.
        data_dir: path of a folder with `<dataset_name>.npz` (uint8 `x_train` and `x_test`, integer `y_train` and
            `y_test`), or None: the environment variable LIPDP_DATA_DIR, and without it `keras.datasets`.
        colorspace: `"RGB"`, `"grayscale"`, `"HSV"`, `"YIQ"` or `"YUV"`. Images with one channel keep it under `"RGB"`
            and `"grayscale"` and have no other colour space.
        bound_fct: None, `bound_clip_value(...)`, `bound_normalize(...)`, or a callable on arrays of shape (n, ...) that
            treats examples independently, keeps their shape, and has the norm it guarantees as `.bound`.
        front_end: sequence of layers of `deel.lipdp.layers` without variables, such as `DP_Scattering2D`, and of
            callables on arrays of shape (n, ...) that treat examples independently and have the norm they guarantee as
            `.bound`, such as `deel.lipdp.features.SceneFeatures`. Each image passes through them once, here, instead
            of once an epoch in the model: the arrays hold what comes out. Nothing in them may be fitted to the records.
        cache_dir: path of a folder where what comes out of a front end is kept and found again, or None. The file is
            as private as the images are. Callables of your own need a str `cache_key` that changes with their output;
            `DP_Lambda` and layers of your own are refused.

    Returns:
        `ImageData`. Pixels are in [0, 1] before the colour space. `max_norm` is `bound_fct.bound`; without a function
        it is the largest norm that an image of this shape and colour space can have. Behind a front end it is the bound
        that its layers propagate and its callables state.

    Raises:
        TypeError: for a `bound_fct` or a `front_end` that cannot be called or states no bound.
        ValueError: for an unknown name or colour space, and for data that are missing or malformed.
    """
    who = "load_images"
    layout = _checks.choice(who, "dataset_name", dataset_name, _datasets.FORMATS)
    height, width, channels = layout.shape
    norms = _datasets.PIXEL_NORMS if channels == 3 else {"RGB": 1.0, "grayscale": 1.0}
    pixel_norm = _checks.choice(
        who, "colorspace", colorspace, norms, remedy=f"'{dataset_name}' has {channels} channel(s)."
    )
    max_norm = math.sqrt(height * width) * pixel_norm
    if bound_fct is not None:
        if not callable(bound_fct) or not hasattr(bound_fct, "bound"):
            raise TypeError(
                _checks.message(
                    who,
                    "bound_fct to be a callable with an attribute `bound`, the norm it guarantees",
                    f"bound_fct={bound_fct!r}",
                    "Use bound_clip_value or bound_normalize, or give your callable the attribute.",
                )
            )
        max_norm = _checks.number(who, "bound_fct.bound", bound_fct.bound, above=0.0)
    arrays = _datasets.read_images(dataset_name, data_dir)
    one_hot = np.eye(len(layout.class_names), dtype=np.float32)
    for part in ("train", "test"):
        x = arrays[f"x_{part}"]
        if channels == 3:
            x = _datasets.to_colorspace(x, colorspace)
        if bound_fct is not None:
            bounded = _datasets.by_chunks(bound_fct, x)
            if bounded.shape != x.shape:
                raise ValueError(_checks.message(who, f"bound_fct to keep the shape {x.shape}", f"{bounded.shape}", ""))
            x = bounded
        arrays[f"x_{part}"] = x
        arrays[f"y_{part}"] = one_hot[arrays[f"y_{part}"]]
    if front_end:
        images = {part: arrays[part] for part in ("x_train", "x_test")}
        features, max_norm = through_front_end(tuple(front_end), images, max_norm, cache_dir)
        arrays |= features
    return ImageData(**arrays, class_names=layout.class_names, max_norm=max_norm)


def load_and_prepare_images_data(
    dataset_name: str = "digits",
    batch_size: int = 256,
    colorspace: ColorSpace = "RGB",
    bound_fct: BoundedMap | None = None,
    *,
    front_end: FrontEnd = (),
    cache_dir: PathLike | None = None,
    sampling: DeclaredSampling = "poisson",
    data_dir: PathLike | None = None,
    validation_fraction: float = 0.0,
    seed: int | None = None,
) -> tuple[tf.data.Dataset, tf.data.Dataset, DatasetMetadata]:
    """Loads images and makes the data sets for `fit` and `evaluate`; `load_images` followed by a sampler.

    Args:
        dataset_name, colorspace, bound_fct, front_end, cache_dir, data_dir: see `load_images`.
        batch_size: int in [1, n], expected size B of a training batch, and the size of test batches.
        sampling: `"poisson"`: `poisson_batches`, whose epsilon is amplified by B / n (neighbours: one example added or
            removed). None or `"undeclared"`: shuffled batches of B examples, the last one smaller, no amplification.
        validation_fraction: float in [0, 1). Above 0, that share of the training set is held out and returned in
            place of the test set, to compare settings without looking at the test set; see `ImageData.hold_out`.
        seed: int or None, for tests only: makes the batches reproducible, which voids epsilon.

    Returns:
        `(ds_train, ds_test, metadata)`: two `tf.data.Dataset` of pairs (images, one-hot labels) and the
        `DatasetMetadata` of the training set.

    Raises:
        TypeError, ValueError: as `load_images`, and for a number or sampling out of range.
    """
    who = "load_and_prepare_images_data"
    sampling, fraction = _checked_plan(who, sampling, validation_fraction)
    data = load_images(dataset_name, data_dir, colorspace, bound_fct, front_end, cache_dir)
    train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
    if fraction > 0:
        train, test = data.hold_out(fraction)
    facts = {"max_norm": data.max_norm, "nb_classes": len(data.class_names), "class_names": data.class_names}
    return _prepared(train, test, batch_size, sampling, seed, facts)


def load_adbench_data(
    dataset_name: str, data_dir: PathLike | None = None, test_fraction: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Loads a table of the ADBench collection (anomaly detection with known anomalies) and splits it.

    Args:
        dataset_name: `"campaign"`, `"celeba"`, `"magic"`, `"mammography"`, `"pendigits"`, `"shuttle"`, `"skin"` or
            `"yeast"`.
        data_dir: path of a folder with the collection's file (`5_campaign.npz`, ...), or None: the environment variable
            LIPDP_DATA_DIR, and without it the collection's repository. The file's SHA-256 is checked.
        test_fraction: float in (0, 1). The collection has no split; this one depends on n alone.

    Returns:
        `(x_train, y_train, x_test, y_test)`: float32 arrays (n, d), as the collection has them (most columns of most
        tables were standardised by it, with statistics of all records), and (n, 1), 1.0 for anomalies.

    Raises:
        ValueError: for an unknown name, a fraction out of range, and a file that cannot be had or is another one.
    """
    x, y = _adbench.read_table(dataset_name, data_dir)
    train, test = _split("load_adbench_data", x, y[:, None].astype("float32"), test_fraction, seed=1)
    return *train, *test


def prepare_tabular_data(
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    batch_size: int = 256,
    bound_fct: BoundedMap | None = None,
    *,
    front_end: FrontEnd = (),
    sampling: DeclaredSampling = "poisson",
    validation_fraction: float = 0.0,
    seed: int | None = None,
) -> tuple[tf.data.Dataset, tf.data.Dataset, DatasetMetadata]:
    """Bounds the norm of the rows of a table and makes the data sets for `fit` and `evaluate`.

    Args:
        x_train, x_test: arrays (n, d) of numbers. Scale the columns by what is known without looking at the records: a
            mean or a maximum over private records is a release of its own.
        y_train, y_test: arrays (n, outputs) of labels, in the form that the loss takes.
        batch_size, sampling, validation_fraction, seed: see `load_and_prepare_images_data`.
        bound_fct: `bound_clip_value(...)`, `bound_normalize(...)`, or None where a callable of the front end states the
            bound.
        front_end: see `load_images`; `deel.lipdp.features.FourierFeatures` is made for tables.

    Returns:
        `(ds_train, ds_test, metadata)`; see `load_and_prepare_images_data`.

    Raises:
        TypeError, ValueError: for arguments out of range, arrays that do not match, and rows that nothing bounds.
    """
    who = "prepare_tabular_data"
    sampling, fraction = _checked_plan(who, sampling, validation_fraction)
    steps = (bound_fct, *front_end) if bound_fct is not None else tuple(front_end)
    if not any(callable(step) and hasattr(step, "bound") for step in steps):
        raise ValueError(
            _checks.message(
                who,
                "a bound on the norm of a row",
                "neither a bound_fct nor a callable with a bound in front_end",
                "Pass bound_fct=bound_clip_value(c), with a c that was chosen without looking at the records.",
            )
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold counts as 0, as it does in what bounds a row
        rows = {"train": np.asarray(x_train, "float32"), "test": np.asarray(x_test, "float32")}
    labels = {"train": np.asarray(y_train, "float32"), "test": np.asarray(y_test, "float32")}
    for part in rows:
        x, y = rows[part], labels[part]
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
            expected = f"x_{part} of shape (n, d) and y_{part} of shape (n, outputs), n >= 1"
            raise ValueError(_checks.message(who, expected, f"{x.shape} and {y.shape}", "Reshape them."))
    if rows["train"].shape[1:] != rows["test"].shape[1:] or labels["train"].shape[1:] != labels["test"].shape[1:]:
        received = f"rows of {rows['train'].shape[1]} and {rows['test'].shape[1]} numbers, labels of "
        received += f"{labels['train'].shape[1]} and {labels['test'].shape[1]}"
        raise ValueError(_checks.message(who, "training and test rows of one shape", received, "Make them the same."))
    rows, max_norm = through_front_end(steps, rows, LARGEST_ACTIVATION)
    train, test = ((rows[part], labels[part]) for part in ("train", "test"))
    if fraction > 0:
        train, test = _split(who, *train, fraction, seed=0)
    return _prepared(train, test, batch_size, sampling, seed, {"max_norm": max_norm, "nb_classes": train[1].shape[1]})


def _checked_plan(who, sampling, validation_fraction):
    sampling = _checks.choice(who, "sampling", sampling, {"poisson": "poisson", None: None, "undeclared": None})
    return sampling, _checks.number(who, "validation_fraction", validation_fraction, at_least=0.0, below=1.0)


def _prepared(train, test, batch_size, sampling, seed, facts):
    """Data sets of arrays and their metadata, to which `facts` add what is known of the kind of data."""
    metadata = DatasetMetadata(
        input_shape=train[0].shape[1:],
        nb_samples_train=len(train[0]),
        batch_size=batch_size,
        nb_samples_test=len(test[0]),
        sampling=sampling,
        **facts,
    )
    make_train = poisson_batches if sampling == "poisson" else _shuffled_batches
    return make_train(*train, batch_size, seed=seed), _batches(*test, batch_size), metadata


def _batches(x, y, batch_size):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def _shuffled_batches(x, y, batch_size, seed=None):
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
