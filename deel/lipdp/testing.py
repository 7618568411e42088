"""A worst-case search that tries to break a layer's bounds, for this library and for people who write layers.

It can show that a bound is false; it cannot prove one. The proof belongs into the layer's docstring.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from deel.lipdp import _checks

__all__ = ["ROUNDING_TOLERANCE", "WorstCase", "search_worst_case"]

# A ratio above 1 by no more than this is rounding: a sum of n products in single precision is off by at most n * 6e-8
# relative to the products' norms, in practice by sqrt(n) * 6e-8, and the layers searched sum fewer than 10,000.
ROUNDING_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class WorstCase:
    """The largest norms a search found, each divided by the layer's bound on it.

    Args:
        output: float, output norm over `propagate_inputs`.
        input_gradient: float, norm of the cotangent at the input over `backpropagate_inputs`.
        parameter_gradient: float, norm of the variable's gradient over `backpropagate_params`; None without a variable.

    A ratio of infinity stands for an output or gradient that was not finite.
    """

    output: float
    input_gradient: float
    parameter_gradient: float | None

    def violations(self, tolerance=ROUNDING_TOLERANCE):
        """Names of the bounds that were exceeded by more than `tolerance`, relative."""
        return [name for name, ratio in dataclasses.asdict(self).items() if (ratio or 0.0) > 1.0 + tolerance]


def search_worst_case(
    layer,
    input_shape,
    *,
    input_bound=1.0,
    gradient_bound=1.0,
    restarts=4,
    steps=10,
    seed=0,
):
    """Looks for one example, one cotangent and admissible weights that exceed a layer's three bounds.

    For each kernel (random, orthogonal, rank-one, constant, single-tap and far too large ones, each passed through the
    variable's own constraint) and each start (constant images, single pixels, lattices of pixels, ties, zeros, tiny and
    random values), input and cotangent are improved in turn: each is replaced by the gradient of the squared norm,
    scaled to the bound. Where the layer is linear in both, this is power iteration on each in turn.

    Args:
        layer: a `DPLayer`, built or not. Its weights are put back afterwards.
        input_shape: tuple of int, shape of one example, without the batch axis.
        input_bound, gradient_bound: float > 0, norms of input and cotangent.
        restarts: int, random starts and random kernels beside the known extremal ones.
        steps: int, improvements of each start.
        seed: int.

    Returns:
        `WorstCase`.

    Raises:
        ValueError: if the layer has more than one trainable variable: bounds are stated for one.

    Example:

    >>> from deel.lipdp import layers, testing
    >>> testing.search_worst_case(layers.DP_Abs(), (3,)).violations()
    []
    """
    who = "search_worst_case"
    for name, value in (("input_bound", input_bound), ("gradient_bound", gradient_bound)):
        _checks.number(who, name, value, above=0.0)
    rng = np.random.default_rng(seed)
    if not layer.built:
        layer.build((None, *input_shape))
    variables = layer.trainable_variables
    if len(variables) > 1:
        names = [v.name for v in variables]
        raise ValueError(_checks.message(who, "at most one trainable variable", f"{names}", "Split the layer."))
    variable = variables[0] if variables else None
    objectives = {"output": _output, "input_gradient": _input_gradient}
    if variable is not None:
        objectives["parameter_gradient"] = _parameter_gradient
    improve = {name: _improvement(f, layer, input_bound, gradient_bound) for name, f in objectives.items()}
    worst = dict.fromkeys(("output", "input_gradient", "parameter_gradient"))
    original = None if variable is None else variable.numpy()
    try:
        for value in [None] if variable is None else _admissible(variable, rng, restarts):
            if value is not None:
                variable.assign(value)
            bounds = _claimed(layer, input_bound, gradient_bound)
            xs, gs = (np.stack(arrays) for arrays in zip(*_pairs(layer, input_shape, rng, restarts), strict=True))
            xs = tf.constant(xs * input_bound, layer.compute_dtype)
            gs = tf.constant(gs * gradient_bound, layer.compute_dtype)
            for name in objectives:
                found = _ascend(improve[name], xs, gs, steps)
                worst[name] = max(worst[name] or 0.0, _ratio(found, bounds[name]))
    finally:
        if variable is not None:
            variable.assign(original)
    return WorstCase(**worst)


def _ratio(found, bound):
    """Infinity where something was not finite, the bound is no number, or it is 0 and exceeded."""
    if bound > 0 and math.isfinite(found):
        return found / bound
    return 0.0 if found == bound == 0 else math.inf


def _claimed(layer, input_bound, gradient_bound):
    """The layer's bounds for its current weights."""
    bounds = {
        "output": layer.propagate_inputs(input_bound),
        "input_gradient": layer.backpropagate_inputs(input_bound, gradient_bound),
    }
    if layer.has_parameters():
        bounds["parameter_gradient"] = layer.backpropagate_params(input_bound, gradient_bound)
    return {name: float(bound) for name, bound in bounds.items()}


def _output(layer, x, g):
    return layer(x)


def _input_gradient(layer, x, g):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return tape.gradient(y, x, g, unconnected_gradients="zero")


def _parameter_gradient(layer, x, g):
    variable = layer.trainable_variables[0].value
    with tf.GradientTape() as tape:
        y = layer(x)
    return tf.convert_to_tensor(tape.gradient(y, variable, g, unconnected_gradients="zero"))


def _improvement(objective, layer, input_bound, gradient_bound):
    """Compiled `(xs, gs) -> (norms, better xs, better gs)`, one start at a time: examples are never put together."""

    # Squares are summed in double precision, where those of tiny values do not vanish.
    def energy(x, g):
        return tf.reduce_sum(tf.cast(objective(layer, x, g), "float64") ** 2)

    def toward(old, direction, radius):
        direction = tf.cast(direction, "float64")
        norm = tf.sqrt(tf.reduce_sum(direction**2))
        usable = tf.math.is_finite(norm) & (norm > 0)
        return tf.where(usable, tf.cast(direction / tf.where(usable, norm, 1.0) * radius, old.dtype), old)

    def improve(x, g):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = energy(x, g)
        x = toward(x, tape.gradient(value, x, unconnected_gradients="zero"), input_bound)
        with tf.GradientTape() as tape:
            tape.watch(g)
            moved = energy(x, g)
        g = toward(g, tape.gradient(moved, g, unconnected_gradients="zero"), gradient_bound)
        return tf.sqrt(value), x, g

    @tf.function
    def improve_all(xs, gs):
        return tf.map_fn(lambda start: improve(*start), (xs, gs), fn_output_signature=("float64", xs.dtype, gs.dtype))

    return improve_all


def _ascend(improve, xs, gs, steps):
    """Largest norm met on the way from all starts; infinity if one was not finite."""
    found = []
    for _ in range(steps + 1):
        norms, xs, gs = improve(xs, gs)
        found.append(keras.ops.convert_to_numpy(norms))
    return float(np.max(found)) if np.isfinite(found).all() else math.inf


def _admissible(variable, rng, restarts):
    """Values the variable may hold: its own, then extremal and random ones, through the variable's constraint."""
    shape = tuple(variable.shape)
    own = variable.numpy()
    normal = rng.normal(size=(max(restarts, 2), *shape))
    raw = [np.ones(shape), 1e-12 * np.ones(shape), own + 10.0 * normal[0], 1e3 * normal[1]]
    raw += [noise * math.prod(shape) ** -0.5 for noise in normal]
    if len(shape) >= 2:
        orthogonal = np.asarray(keras.initializers.Orthogonal(seed=int(rng.integers(2**31)))(shape))
        tap = np.zeros(shape)
        centre = tuple(side // 2 for side in shape[:-2])
        tap[centre] = np.linalg.qr(rng.normal(size=(max(shape[-2:]),) * 2))[0][: shape[-2], : shape[-1]]
        rank_one = rng.normal(size=(*shape[:-1], 1)) * rng.normal(size=shape[-1])
        raw += [orthogonal, tap, rank_one]
    project = variable.constraint or (lambda value: value)
    return [own, *(project(keras.ops.convert_to_tensor(value, variable.dtype)) for value in raw)]


def _extremal(shape, rng):
    """Arrays of norm 1 for which bounds are known to be attained or lost: each is (1, *shape)."""
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


def _most_covered(layer, x, g):
    """The single entry whose cotangent is the largest when all inputs and all cotangents are equal."""
    cotangent = _input_gradient(layer, tf.constant(x, "float32"), tf.constant(g, "float32"))
    flat = np.zeros(x.size)
    flat[int(np.argmax(np.abs(keras.ops.convert_to_numpy(cotangent))))] = 1.0
    return flat.reshape(x.shape)


def _pairs(layer, input_shape, rng, restarts):
    """Starts `(x, g)`, each of norm 1 or less, with the batch axis."""
    output_shape = layer(tf.zeros((1, *input_shape))).shape[1:]

    def unit(array):
        return array[None] / np.linalg.norm(array)

    def normal(shape):
        return unit(rng.normal(size=shape))

    ones, flat = unit(np.ones(input_shape)), unit(np.ones(output_shape))
    for x, g in zip(_extremal(input_shape, rng), _extremal(output_shape, rng), strict=True):
        yield unit(x), unit(g)
        yield unit(x), normal(output_shape)
    yield _most_covered(layer, ones, flat), flat
    for scale in (0.0, 1e-22, 1e-15, 1e-3):
        yield scale * ones, normal(output_shape)
    for _ in range(restarts):
        yield normal(input_shape), normal(output_shape)
