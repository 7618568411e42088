"""What is computed once for each image before the training: fixed layers, features, and their cache."""

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
        `(features, max_norm)`: a dict with the keys of `images`, and the bound on the norm of one row.

    Raises:
        TypeError, ValueError: as `load_images`.
    """
    for step in front_end:
        _check(step)
    names = list(images)
    paths = dict.fromkeys(names)
    if cache_dir is not None:
        identity = _identity(front_end)
        paths = {name: _cache_path(cache_dir, identity, images[name]) for name in names}
    features, bounds = {}, set()
    for name in names:
        features[name], bound = _rows(front_end, images[name], max_norm, paths[name])
        bounds.add(bound)
    [max_norm] = bounds
    return features, max_norm


def _rows(front_end, rows, max_norm, path):
    """One array through all steps; read from `path` where it is, written there where it is not."""
    cached = _read(path)
    for is_layers, steps in itertools.groupby(front_end, key=lambda step: isinstance(step, keras.layers.Layer)):
        steps = list(steps)
        if is_layers:
            rows, max_norm = _through_layers(steps, rows, max_norm, compute=cached is None)
        for step in () if is_layers else steps:
            rows = rows if cached is not None else np.asarray(step(rows), dtype="float32")
            max_norm = _checks.number(_WHO, "front_end bound", step.bound, above=0.0)
    if cached is not None:
        return cached, max_norm
    if path is not None:
        _write(path, rows)
    return rows, max_norm


def _through_layers(steps, rows, max_norm, compute):
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
    if not compute:
        return np.broadcast_to(np.float32(0), (0, *shape[1:])), max_norm
    return by_batches(model.predict_on_batch, rows), max_norm


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


def _identity(front_end):
    """Text that two front ends share only if they do the same."""
    texts = []
    for step in front_end:
        if isinstance(step, keras.layers.Layer):
            config = {name: value for name, value in step.get_config().items() if name != "name"}
            texts.append(f"{type(step).__name__} {json.dumps(config, sort_keys=True, default=str)}")
        else:
            texts.append(repr(step))
    text = "\n".join(texts)
    if " at 0x" in text:
        raise ValueError(
            _checks.message(
                _WHO,
                "a front_end whose repr says all that it depends on, since cached features are found by it",
                text,
                "Give it a __repr__ with its settings, or leave cache_dir out.",
            )
        )
    return text


def _cache_path(cache_dir, identity, rows):
    from deel.lipdp import __version__

    digest = hashlib.blake2b(digest_size=16)
    for part in (__version__, identity, str(rows.dtype), str(rows.shape)):
        digest.update(part.encode() + b"\0")
    digest.update(np.ascontiguousarray(rows).data)
    return pathlib.Path(cache_dir) / f"{digest.hexdigest()}.npy"


def _read(path):
    try:
        return np.load(path, allow_pickle=False) if path is not None else None
    except (OSError, ValueError, EOFError):
        return None  # missing, or damaged: it is computed and written anew


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Readable by its owner alone, as temporary files are.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.save(file, rows)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
