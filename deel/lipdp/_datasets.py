"""Where image arrays come from, and their colour spaces.

A local `.npz`, `keras.datasets`, or scikit-learn's digits; each is checked against one table of public facts. The
libraries of data sets are imported inside functions.
"""

import dataclasses
import math
import os
import pathlib

import numpy as np

from deel.lipdp import _checks

__all__ = ["FORMATS", "PIXEL_NORMS", "Format", "by_chunks", "read_images", "to_colorspace"]

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_ARRAYS = f"arrays {', '.join(_KEYS)}"
_DIGITS = tuple(str(digit) for digit in range(10))
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclasses.dataclass(frozen=True)
class Format:
    """The public facts of a data set: they hold before any record is read.

    Args:
        shape: tuple of int, (height, width, channels) of an image.
        class_names: tuple of str; label k is the name at place k.
        peak: int, largest value a stored pixel can have.
    """

    shape: tuple
    class_names: tuple
    peak: int = 255


FORMATS = {
    "digits": Format((8, 8, 1), _DIGITS, peak=16),
    "mnist": Format((28, 28, 1), _DIGITS),
    "fashion_mnist": Format((28, 28, 1), _CLOTHES),
    "cifar10": Format((32, 32, 3), _OBJECTS),
}

# Largest norm of one pixel over all RGB values in [0, 1]. A linear map makes it a convex function of the pixel, largest
# at one of the 8 corners of the cube: white for YIQ and YUV (luma 1, chroma 0; a millionth more for float32 rounding).
# HSV: three channels in [0, 1]; it nears sqrt(3) at pure red coming from magenta (hue to 1, the others at 1).
PIXEL_NORMS = {
    "RGB": math.sqrt(3.0),
    "grayscale": 1.0,
    "HSV": math.sqrt(3.0),
    "YIQ": 1.0 + 1e-6,
    "YUV": 1.0 + 1e-6,
}
_CHUNK = 4096  # images converted at a time: bounds the memory of temporaries


def read_images(dataset_name, data_dir=None):
    """Reads a data set from the first place that applies.

    Args:
        dataset_name: str, a key of `FORMATS`.
        data_dir: path of a folder that holds `<dataset_name>.npz`, or None: the environment variable LIPDP_DATA_DIR,
            and without it `keras.datasets`, which downloads. `digits` always comes from scikit-learn, which ships it.

    Returns:
        Dict with `x_train` and `x_test`, float32 images of shape (n, h, w, c) in [0, 1], `y_train` and `y_test`, int64
        labels of shape (n,).

    Raises:
        ValueError: for an unknown name, and for data that cannot be had or do not have the format of that name.
    """
    layout = _checks.choice("read_images", "dataset_name", dataset_name, FORMATS)
    data_dir = data_dir or os.environ.get("LIPDP_DATA_DIR")
    if dataset_name == "digits":
        source, arrays = "sklearn.datasets.load_digits", _from_sklearn()
    elif data_dir:
        source = pathlib.Path(data_dir) / f"{dataset_name}.npz"
        arrays = _from_file(source)
    else:
        source, arrays = f"keras.datasets.{dataset_name}", _from_keras(dataset_name)
    images = {}
    for part in ("train", "test"):
        x = _pixels(source, f"x_{part}", arrays[f"x_{part}"], layout)
        y = _labels(source, f"y_{part}", arrays[f"y_{part}"], layout)
        if len(x) != len(y) or len(x) == 0:
            raise _refusal(
                source,
                f"as many labels in 'y_{part}' as images in 'x_{part}', at least one",
                f"{len(y)} labels, {len(x)} images",
            )
        images[f"x_{part}"], images[f"y_{part}"] = x, y
    return images


def to_colorspace(x, colorspace):
    """Converts RGB images, float32 of shape (n, h, w, 3) in [0, 1], to a key of `PIXEL_NORMS`."""
    if colorspace == "RGB":
        return x
    import tensorflow as tf

    function = {
        "grayscale": tf.image.rgb_to_grayscale,
        "HSV": tf.image.rgb_to_hsv,
        "YIQ": tf.image.rgb_to_yiq,
        "YUV": tf.image.rgb_to_yuv,
    }[colorspace]
    # On a GPU these would be matrix products in TF32, with three digits; and the arrays go back to NumPy anyway.
    with tf.device("CPU:0"):
        return by_chunks(lambda part: function(part).numpy(), x)


def by_chunks(function, x):
    """Applies a function of images, one independent of the other, to a few thousand at a time."""
    return np.concatenate([np.asarray(function(x[i : i + _CHUNK])) for i in range(0, len(x), _CHUNK)])


def _from_sklearn():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images.astype(np.uint8), digits.target
    # Neighbours in the file are often by one writer: a contiguous test part is the more honest one, and never changes.
    first = len(x) - len(x) // 5
    return dict(zip(_KEYS, (x[:first], y[:first], x[first:], y[first:]), strict=True))


def _from_file(path):
    if not path.is_file():
        remedy = f"Put {path.name} ({_ARRAYS}) there, or name its folder by data_dir or LIPDP_DATA_DIR."
        raise _refusal(path, "a file of that name", "nothing there", remedy)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in _KEYS}
    except Exception as error:  # NumPy and zipfile raise half a dozen kinds for a damaged file
        raise _refusal(path, f"an .npz archive with the arrays {', '.join(_KEYS)}", _short(error)) from error


def _from_keras(dataset_name):
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, dataset_name).load_data()
    except Exception as error:  # urllib and Keras raise many kinds for a failed download
        raise _refusal(
            f"keras.datasets.{dataset_name}",
            "a successful download",
            _short(error),
            f"Without network, put {dataset_name}.npz ({_ARRAYS}) in a folder and name that folder by "
            "data_dir or LIPDP_DATA_DIR.",
        ) from error
    return dict(zip(_KEYS, (x_train, y_train, x_test, y_test), strict=True))


def _pixels(source, key, array, layout):
    # Files of one-channel images usually leave the channel axis out.
    shapes = (layout.shape, layout.shape[:2]) if layout.shape[-1] == 1 else (layout.shape,)
    if array.dtype != np.uint8 or array.shape[1:] not in shapes:
        wanted = " or ".join(str(("n", *shape)).replace("'", "") for shape in shapes)
        raise _refusal(
            source,
            f"key '{key}' to hold uint8 images of shape {wanted}",
            f"'{key}' of dtype {array.dtype} and shape {array.shape}",
        )
    images = array.reshape(-1, *layout.shape).astype(np.float32)
    return np.divide(images, layout.peak, out=images)


def _labels(source, key, array, layout):
    classes = len(layout.class_names)
    flat = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu" or np.any((flat < 0) | (flat >= classes)):
        raise _refusal(
            source,
            f"key '{key}' to hold integer labels in 0..{classes - 1}, of shape (n,) or (n, 1)",
            f"'{key}' of dtype {array.dtype} and shape {array.shape}, or a label out of range",
        )
    return flat.astype(np.int64)


def _short(error):
    return f"{type(error).__name__}: {error}"


def _refusal(source, expected, received, remedy="Replace the file, or use keras.datasets by naming no folder."):
    return ValueError(_checks.message(f"load_images '{source}'", expected, received, remedy))
