"""What is computed once for each image or row before the training: fixed layers, features, and their cache."""

import hashlib
import itertools
import json
import os
import pathlib
import tempfile

import keras
import numpy as np

from deel.lipdp import _checks
from deel.lipdp.bounds import LARGEST_ACTIVATION, LayerCall, check_call

__all__ = ["by_batches", "through_front_end"]

_WHO = "front end"
# Rows that are worked on together: few enough images for the memory that their wavelet transforms take.
_BATCH = 256


def by_batches(function, rows):
    """Applies a function of rows, one independent of the other, to batches of one size.

    The last batch is filled up with zeros: kernels choose their order of summation by the size of a batch, and a row
    would otherwise depend, in its last digits, on how many there are.
    """
    parts = []
    for i in range(0, len(rows), _BATCH):
        part = rows[i : i + _BATCH]
        filled = np.concatenate([part, np.zeros((_BATCH - len(part), *part.shape[1:]), part.dtype)])
        parts.append(function(filled)[: len(part)])
    return np.concatenate(parts)


def through_front_end(front_end, images, max_norm, cache_dir=None):
    """Applies layers and feature maps to images.

    Args:
        front_end: sequence; see `load_images`.
        images: dict of arrays (n, ...).
        max_norm: float, bound on the norm of one image.
        cache_dir: path or None; see `load_images`.

    Returns:
        `(features, max_norm)`: a dict of float32 arrays with the keys of `images`, and the bound on the norm of a row.

    Raises:
        TypeError, ValueError: as `load_images`.
    """
    for step in front_end:
        _check(step)
    identity = None if cache_dir is None else _identity(front_end, max_norm)
    features, bounds = {}, {}
    for name, rows in images.items():
        path = None if identity is None else _cache_path(cache_dir, identity, rows)
        found = _read(path, len(rows))
        if found is None:
            found = _computed(front_end, rows, max_norm)
            _write(path, *found)
        features[name], bounds[name] = found
    return features, max(bounds.values())


def _computed(front_end, rows, max_norm):
    """What comes out of all steps, and the bound on its norm."""
    for is_layers, steps in itertools.groupby(front_end, key=lambda step: isinstance(step, keras.layers.Layer)):
        if is_layers:
            rows, max_norm = _through_layers(list(steps), rows, max_norm)
        else:
            for step in steps:
                rows, max_norm = _through_callable(step, rows)
    return rows.astype("float32", copy=False), float(max_norm)


def _through_layers(steps, rows, max_norm):
    model = keras.Sequential([keras.Input(rows.shape[1:]), *steps])
    shape = model.input_shape
    for index, layer in enumerate(steps):
        check_call(LayerCall(layer, (index,), (index + 1,), (shape,)))
        if layer.variables:
            raise ValueError(
                _checks.message(
                    _WHO,
                    "front_end to have no variables",
                    f"{[variable.name for variable in layer.variables]} of {type(layer).__name__} '{layer.name}'",
                    "What is trained belongs into the model.",
                )
            )
        max_norm = _checks.number(_WHO, "max_norm", max_norm, at_most=LARGEST_ACTIVATION)
        max_norm, shape = layer.propagate_inputs(max_norm), layer.compute_output_shape(shape)
    return by_batches(model.predict_on_batch, rows), max_norm


def _through_callable(step, rows):
    result = np.asarray(step(rows), dtype="float32")
    if len(result) != len(rows):
        raise ValueError(
            _checks.message(
                _WHO, f"{step!r} to give one row for each of {len(rows)}", f"{len(result)} rows", "Labels would shift."
            )
        )
    return result, _checks.number(_WHO, "bound", step.bound, above=0.0)


def _check(step):
    if not isinstance(step, keras.layers.Layer) and not (callable(step) and hasattr(step, "bound")):
        raise TypeError(
            _checks.message(
                _WHO,
                "front_end to hold layers with bounds, and callables that state as `bound` the norm they guarantee",
                f"{step!r}",
                "Use layers of deel.lipdp.layers, or deel.lipdp.features.",
            )
        )


def _identity(front_end, max_norm):
    """Text that two front ends share only if they do the same, as far as they can be told apart."""
    from deel.lipdp import __version__

    # Where arithmetic is chosen behind the layers' backs.
    parts = [__version__, repr(max_norm), keras.config.dtype_policy().name, keras.config.image_data_format()]
    for step in front_end:
        if isinstance(step, keras.layers.Layer):
            config = {name: value for name, value in step.get_config().items() if name != "name"}
            parts.append(json.dumps([type(step).__name__, config], sort_keys=True, default=str))
        else:
            parts.append(getattr(step, "cache_key", None))
        # A function or a class of one's own may do anything under the same name.
        own_layer = isinstance(step, keras.layers.Layer) and not type(step).__module__.startswith("deel.lipdp.layers")
        if own_layer or type(step).__name__ in ("DP_Lambda", "DP_GNP_Factory") or not isinstance(parts[-1], str):
            raise ValueError(
                _checks.message(
                    _WHO,
                    "a front_end whose output can be told from its settings, since cached features are found by them",
                    f"{step!r}",
                    "Use the library's layers, and callables with a str `cache_key` that changes with their output; or "
                    "leave cache_dir out.",
                )
            )
    return json.dumps(parts)


def _cache_path(cache_dir, identity, rows):
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([identity, str(rows.dtype), rows.shape]).encode())
    digest.update(np.ascontiguousarray(rows).data)
    return pathlib.Path(cache_dir) / f"{digest.hexdigest()}.npz"


def _read(path, count):
    """(features, bound), or None where they are missing or damaged: they are computed and written anew then."""
    try:
        with np.load(path, allow_pickle=False) as archive:  # a zip file, whose checksums are verified
            rows, max_norm = archive["features"], float(archive["max_norm"])
    except Exception:  # NumPy and zipfile raise a dozen kinds for a missing or damaged file
        return None
    return (rows, max_norm) if len(rows) == count and rows.dtype == np.float32 else None


def _write(path, rows, max_norm):
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Readable by its owner alone, as temporary files are.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(file, features=rows, max_norm=max_norm)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
