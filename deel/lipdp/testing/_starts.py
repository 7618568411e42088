"""Where a search starts: inputs, cotangents and weights that are known to be extremal, and random ones."""

import math

import keras
import numpy as np

__all__ = ["admissible_weights", "projection", "start_pairs"]


def projection(variable):
    """What brings a value into the set of the values that a variable may hold."""
    project = variable.constraint or (lambda value: value)
    return lambda value: project(keras.ops.convert_to_tensor(value, variable.dtype))


def admissible_weights(variable, rng, restarts):
    """Values the variable may hold: its own, then extremal and random ones, through the variable's constraint."""
    shape = tuple(variable.shape)
    own = variable.numpy()
    raw = [np.ones(shape), 1e-12 * np.ones(shape)]
    raw += [(1e3 if i % 2 else math.prod(shape) ** -0.5) * rng.normal(size=shape) for i in range(max(restarts, 2))]
    if len(shape) >= 2:
        raw.append(np.asarray(keras.initializers.Orthogonal(seed=int(rng.integers(2**31)))(shape)))
        raw.append(rng.normal(size=(*shape[:-1], 1)) * rng.normal(size=shape[-1]))
    if len(shape) >= 3:
        tap = np.zeros(shape)
        centre = tuple(side // 2 for side in shape[:-2])
        tap[centre] = np.linalg.qr(rng.normal(size=(max(shape[-2:]),) * 2))[0][: shape[-2], : shape[-1]]
        raw.append(tap)
    return [own, *map(projection(variable), raw)]


def _extremal(shape, rng):
    """Arrays for which bounds are known to be attained or lost."""
    delta, first, one_channel = (np.zeros(shape) for _ in range(3))
    delta[tuple(side // 2 for side in shape)] = 1.0
    first[(0,) * len(shape)] = 1.0
    one_channel[..., 0] = 1.0
    yield from (np.ones(shape), delta, first, one_channel)
    for period in (2, 3):
        # Pixels at a distance of the stride from each other: those that are in the most windows.
        lattice = np.zeros(shape)
        lattice[tuple(slice(int(rng.integers(period)) % side, None, period) for side in shape[:-1])] = 1.0
        yield lattice


def _most_covered(subject, xs, gs):
    """In each input, the single entry whose cotangent is the largest when all inputs and all cotangents are equal."""
    _, cotangents, _ = subject.gradients(*(tuple(np.float32(z) for z in zs) for zs in (xs, gs)))
    for cotangent in cotangents:
        flat = np.zeros(cotangent.size)
        flat[int(np.argmax(np.abs(cotangent)))] = 1.0
        yield flat.reshape(cotangent.shape)


def start_pairs(subject, rng, restarts):
    """Starts `(xs, gs)`, tuples of arrays of norm 1 or less, with the batch axis."""
    inputs, outputs = subject.input_shapes, subject.output_shapes

    def unit(arrays):
        return tuple(array[None] / np.linalg.norm(array) for array in arrays)

    def normal(shapes):
        return unit(rng.normal(size=shape) for shape in shapes)

    def extremal(shapes):
        return map(unit, zip(*(_extremal(shape, rng) for shape in shapes), strict=True))

    ones, flat = (unit(map(np.ones, shapes)) for shapes in (inputs, outputs))
    for x, g in zip(extremal(inputs), extremal(outputs), strict=True):
        yield x, g
        yield x, normal(outputs)
    yield tuple(_most_covered(subject, ones, flat)), flat
    for scale in (0.0, 1e-22, 1e-15, 1e-3):
        yield tuple(scale * one for one in ones), normal(outputs)
    for _ in range(restarts):
        yield normal(inputs), normal(outputs)
