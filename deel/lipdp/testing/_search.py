"""A worst-case search that tries to break a layer's bounds.

It can show that a bound is false; it cannot prove one. The proof belongs into the layer's docstring.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from deel.lipdp.layers import DPLayer
from deel.lipdp.testing._starts import admissible_weights, projection, start_pairs
from deel.lipdp.testing._subject import Subject, norms

__all__ = ["ROUNDING_TOLERANCE", "Search", "WorstCase", "search_worst_case"]

# A ratio above 1 by no more than this is rounding: a sum of n products in single precision is off by at most n * 6e-8
# relative to the products' norms, in practice by sqrt(n) * 6e-8, and the layers searched sum fewer than 10,000.
ROUNDING_TOLERANCE = 1e-5

# A step of this many times the bound is one of power iteration: what it starts from no longer counts.
_POWER_STEP = 1e6

# Where no start gained more than this, relative, none will gain much.
_CONVERGED = 1e-6

# A bound attained within this, relative, is attained: worse weights are not looked for.
_ATTAINED = 1e-4


@dataclasses.dataclass(frozen=True)
class WorstCase:
    """The largest norms a search found, each divided by the layer's bound on it.

    Args:
        output: float, output norm over `propagate_inputs`; the largest over the outputs, where there are several.
        input_gradient: float, norm of the cotangent at the input over `backpropagate_inputs`; the largest over the
            inputs.
        parameter_gradient: float, norm of the variable's gradient over `backpropagate_params`; None without a variable.
        joint_gradient: float, norm of the cotangents at all inputs together over that of the output's; None for a layer
            that does not claim it (`joint_gradient`).

    A ratio of infinity stands for an output or gradient that was not finite.
    """

    output: float
    input_gradient: float
    parameter_gradient: float | None
    joint_gradient: float | None = None

    def violations(self, tolerance: float = ROUNDING_TOLERANCE) -> list[str]:
        """Names of the bounds that were exceeded by more than `tolerance`, relative."""
        return [name for name, ratio in dataclasses.asdict(self).items() if (ratio or 0.0) > 1.0 + tolerance]

    def __or__(self, other: "WorstCase") -> "WorstCase":
        """The larger of each ratio."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return WorstCase(*(a if b is None else b if a is None else max(a, b) for a, b in pairs))


def search_worst_case(
    layer: DPLayer,
    input_shape: Sequence[int] | Sequence[Sequence[int]],
    *,
    input_bound: float | tuple[float, ...] = 1.0,
    gradient_bound: float | tuple[float, ...] = 1.0,
    restarts: int = 4,
    steps: int = 10,
    seed: int = 0,
) -> WorstCase:
    """Looks for one example, one cotangent and admissible weights that exceed a layer's three bounds.

    For each kernel (random, orthogonal, rank-one, constant, single-tap and far too large ones, each passed through the
    variable's own constraint) and each start (constant images, single pixels, lattices of pixels, ties, zeros, tiny and
    random values), input and cotangent are improved in turn: each moves along the gradient of the squared norm, at
    first all the way to the bound, and by smaller steps where that does not help. Where the layer is linear in both,
    this is power iteration on each in turn. The worst weights found are then improved in the same way.

    Args:
        layer: a `DPLayer`, built or not. Its weights are put back afterwards.
        input_shape: tuple of int, shape of one example, without the batch axis; for a layer with several inputs a list
            of such tuples.
        input_bound, gradient_bound: float > 0, norms of input and cotangent; a tuple of them states one for each input
            or output.
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
    subject = Subject("search_worst_case", layer, input_shape, input_bound, gradient_bound)
    search = Search(subject, restarts=restarts, steps=steps, seed=seed)
    with subject.kept():
        return search.over_admissible_weights()


def ratio(found, bound):
    """Found over claimed; infinity where something was not finite, the bound is no number, or it is 0 and exceeded."""
    if bound > 0 and math.isfinite(found):
        return found / bound
    return 0.0 if found == bound == 0 else math.inf


@dataclasses.dataclass(frozen=True)
class _Goal:
    """One norm to be made large: `name` and `index` tell its bound, `selected` the parts of which it is the norm."""

    name: str
    index: int
    objective: str
    selected: tuple


class Search:
    """The search for one layer. Its functions are compiled once, for all weights that the layer's variable takes.

    Args:
        subject: `Subject`.
        training: bool, the mode in which the layer is called.
        restarts, steps, seed: see `search_worst_case`.
    """

    def __init__(self, subject, *, training=False, restarts=4, steps=10, seed=0):
        self._subject = subject
        self._training = training
        self._restarts = restarts
        self._steps = steps
        self._rng = np.random.default_rng(seed)
        self._objectives = {"output": self._outputs, "input_gradient": self._input_gradients}
        if subject.variable is not None:
            self._objectives["parameter_gradient"] = self._parameter_gradient
        self._compiled = {name: self._improvement(name) for name in self._objectives}
        parts = {"output": len(subject.output_shapes), "input_gradient": len(subject.input_shapes)}
        self._goals = [
            _Goal(name, i, name, tuple(one))
            for name in self._objectives
            for i, one in enumerate(np.eye(parts.get(name, 1)))
        ]
        if subject.joint_gradient():
            self._goals.append(_Goal("joint_gradient", 0, "input_gradient", (1.0,) * parts["input_gradient"]))
        self._reached = {}

    # -- what is measured ------------------------------------------------------------------------------------------

    def _outputs(self, x, g):
        return self._subject.call(x, self._training)

    def _input_gradients(self, x, g):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self._outputs(x, g)
        return tape.gradient(y, x, g, unconnected_gradients="zero")

    def _parameter_gradient(self, x, g):
        with tf.GradientTape() as tape:
            y = self._outputs(x, g)
        gradient = tape.gradient(y, self._subject.variable.value, g, unconnected_gradients="zero")
        return (tf.convert_to_tensor(gradient),)

    def _energy(self, objective, x, g, selected):
        # Squares are summed in double precision, where those of tiny values do not vanish.
        parts = self._objectives[objective](x, g)
        energies = [tf.reduce_sum(tf.cast(part, "float64") ** 2) for part in parts]
        return sum(tf.where(selected[i] > 0, energy, 0.0) for i, energy in enumerate(energies))

    def _bounds(self, input_bounds=None, gradient_bounds=None):
        """The bound on each goal."""
        claimed = self._subject.claimed(input_bounds, gradient_bounds)
        claimed["joint_gradient"] = gradient_bounds or self._subject.gradient_bounds
        return {goal: float(claimed[goal.name][goal.index]) for goal in self._goals}

    # -- over inputs and cotangents --------------------------------------------------------------------------------

    def _improvement(self, objective):
        """Compiled `(xs, gs, sizes, selected) -> (norms, norms met, better xs, better gs, sizes)`.

        One start at a time: examples are never put together.
        """
        subject = self._subject

        def improve(x, g, size, selected):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = self._energy(objective, x, g, selected)
            slope = tape.gradient(value, x, unconnected_gradients="zero")
            new_x = _moved(x, slope, subject.input_bounds, size)
            with tf.GradientTape() as tape:
                tape.watch(g)
                moved = self._energy(objective, new_x, g, selected)
            # Gradients are linear in the cotangent, so that no step is too large for it.
            slope = tape.gradient(moved, g, unconnected_gradients="zero")
            new_g = _moved(g, slope, subject.gradient_bounds, tf.constant(_POWER_STEP, "float64"))
            uphill = moved >= value
            x, g = (
                tuple(tf.where(uphill, new, old) for new, old in zip(news, olds, strict=True))
                for news, olds in ((new_x, x), (new_g, g))
            )
            size = tf.where(uphill, size, tf.minimum(size, 1.0) / 4.0)
            return tf.sqrt(value), tf.sqrt(tf.maximum(value, moved)), x, g, size

        def specification(shapes):
            return tuple(tf.TensorSpec((None, 1, *shape), subject.layer.compute_dtype) for shape in shapes)

        xs, gs = specification(subject.input_shapes), specification(subject.output_shapes)
        numbers = tf.TensorSpec((None,), "float64")
        results = ("float64", "float64", tuple(x.dtype for x in xs), tuple(g.dtype for g in gs), "float64")

        @tf.function(input_signature=(xs, gs, numbers, numbers))
        def improve_all(xs, gs, sizes, selected):
            return tf.map_fn(lambda start: improve(*start, selected), (xs, gs, sizes), fn_output_signature=results)

        return improve_all

    def _improve(self, goal, xs, gs, sizes):
        return self._compiled[goal.objective](xs, gs, sizes, tf.constant(goal.selected, "float64"))

    def _ascend(self, goal, xs, gs):
        """Largest norm met on the way from all starts, where each ended, and the norms there.

        The largest is infinity if a norm was not finite.
        """
        sizes = tf.fill([len(xs[0])], tf.constant(_POWER_STEP, "float64"))
        largest, before = 0.0, np.inf
        for _ in range(self._steps + 1):
            at = xs, gs
            norms_there, met, xs, gs, sizes = self._improve(goal, xs, gs, sizes)
            met = met.numpy()
            if not np.isfinite(met).all():
                largest = math.inf
                break
            largest = max(largest, float(met.max()))
            if (abs(met - before) <= _CONVERGED * met).all():
                break
            before = met
        return largest, at, norms_there.numpy()

    def at_current_weights(self):
        """`WorstCase` over inputs and cotangents."""
        return _worst({goal: found for goal, (found, _) in self._over_starts()})

    def _over_starts(self, chosen=slice(None)):
        """Yields `(goal, (ratio, best start))` for the current weights."""
        xs, gs = self._starts(chosen)
        bounds = self._bounds()
        for goal in self._goals:
            if not self._same_as_reached(goal):
                self._reached[goal] = self._ascend(goal, xs, gs)
            largest, ends, norms_there = self._reached[goal]
            best = int(np.argmax(norms_there))
            yield goal, (ratio(largest, bounds[goal]), tuple(tuple(z[best : best + 1] for z in zs) for zs in ends))

    def _same_as_reached(self, goal):
        """Whether, where the last search ended, the norms are what they were: the goal ignores the weights then."""
        if goal not in self._reached:
            return False
        _, ends, norms_there = self._reached[goal]
        again = self._improve(goal, *ends, tf.ones([len(norms_there)], "float64"))[0].numpy()
        return np.isfinite(again).all() and (abs(again - norms_there) <= _CONVERGED * norms_there).all()

    def _starts(self, chosen):
        pairs = list(start_pairs(self._subject, self._rng, self._restarts))[chosen]
        return self._tensors(*(tuple(map(np.stack, zip(*arrays, strict=True))) for arrays in zip(*pairs, strict=True)))

    def _tensors(self, xs, gs):
        """Inputs and cotangents of norm 1 at most, scaled to the bounds."""
        dtype, subject = self._subject.layer.compute_dtype, self._subject
        return (
            tuple(tf.constant(z * bound, dtype) for z, bound in zip(zs, bounds, strict=True))
            for zs, bounds in ((xs, subject.input_bounds), (gs, subject.gradient_bounds))
        )

    def exceeded(self, xs, gs, slack=ROUNDING_TOLERANCE):
        """Examples that exceed the bounds for their own norms, where nothing is searched.

        Args:
            xs, gs: for each input and output, an array of examples.
            slack: float, relative.

        Yields:
            `(index of the example, name of the bound, norm found, bound)`.
        """
        starts = [tuple(tf.constant(z[:, None]) for z in zs) for zs in (xs, gs)]
        sizes = tf.ones([len(xs[0])], "float64")
        found = {goal: self._improve(goal, *starts, sizes)[0].numpy() for goal in self._goals}
        columns = (np.stack([norms(z) for z in zs], axis=1).tolist() for zs in (xs, gs))
        for i, (x, g) in enumerate(zip(*columns, strict=True)):
            for goal, bound in self._bounds(x, g).items():
                # What underflows in single precision is off by one denormal for each entry.
                if not found[goal][i] <= bound * (1.0 + slack) + 1e-42:
                    yield i, goal.name, found[goal][i], bound

    # -- over weights ----------------------------------------------------------------------------------------------

    def over_admissible_weights(self):
        """`WorstCase` over inputs, cotangents and the values the variable may hold."""
        variable = self._subject.variable
        if variable is None:
            return self.at_current_weights()
        best = {}
        for i, value in enumerate(admissible_weights(variable, self._rng, self._restarts)):
            variable.assign(value)
            # The layer's own weights from every start, the others from every other one.
            for goal, (found, start) in self._over_starts(slice(i % 2, None, 2) if i else slice(None)):
                if goal not in best or found > best[goal][0]:
                    best[goal] = found, start, variable.numpy()
        return _worst({goal: self._worse_weights(goal, *found) for goal, found in best.items()})

    def _worse_weights(self, goal, found, start, weights, rounds=2):
        """The ratio after moving the worst weights further along the gradient of the norm, through their constraint."""
        variable = self._subject.variable
        for _ in range(rounds):
            if 1.0 - _ATTAINED < found:
                break
            variable.assign(weights)
            with tf.GradientTape() as tape:
                energy = self._energy(goal.objective, *(tuple(z[0] for z in zs) for zs in start), goal.selected)
            slope = tape.gradient(energy, variable.value, unconnected_gradients="zero")
            slope = tf.convert_to_tensor(slope).numpy()
            if not 0.0 < np.linalg.norm(slope) < math.inf:
                break
            # Far enough for a projection to end near the extreme point of its set in this direction.
            size = 10.0 * max(np.linalg.norm(weights), 1e-3)
            variable.assign(projection(variable)(weights + size * slope / np.linalg.norm(slope)))
            largest, start, _ = self._ascend(goal, *start)
            reached = ratio(largest, self._bounds()[goal])
            if not reached > found:
                break
            found, weights = reached, variable.numpy()
        return found


def _worst(ratios):
    found = dict.fromkeys(("output", "input_gradient", "parameter_gradient", "joint_gradient"))
    for goal, value in ratios.items():
        found[goal.name] = max(found[goal.name] or 0.0, value)
    return WorstCase(**found)


def _moved(olds, slopes, radii, size):
    """Each array, moved along its slope by `size` radii within the ball; power iteration if that is far."""
    return tuple(_moved_one(old, slope, radius, size) for old, slope, radius in zip(olds, slopes, radii, strict=True))


def _moved_one(old, slope, radius, size):
    slope = tf.cast(slope, "float64")
    norm = tf.sqrt(tf.reduce_sum(slope**2))
    usable = tf.math.is_finite(norm) & (norm > 0)
    step = slope / tf.where(usable, norm, 1.0) * radius
    near = tf.cast(old, "float64") + size * step
    near *= radius / tf.maximum(tf.sqrt(tf.reduce_sum(near**2)), radius)
    return tf.where(usable, tf.cast(tf.where(size >= _POWER_STEP, step, near), old.dtype), old)
