"""A layer under test: called, differentiated and asked for its bounds in one way, however many inputs it has."""

import contextlib
import numbers
import types

import keras
import numpy as np
import tensorflow as tf

from deel.lipdp import _checks
from deel.lipdp.layers import DPLayer

__all__ = ["Subject", "norms"]


def norms(values):
    """Norm of each example, summed in double precision, where squares of tiny and huge values survive."""
    return np.sqrt((np.reshape(values, (len(values), -1)).astype("float64") ** 2).sum(1))


def _random_generators(owner, seen=None):
    """The random generators of a layer, of its layers, and those it hides from Keras, which would save their states."""
    seen = set() if seen is None else seen
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, keras.random.SeedGenerator):
        yield owner
    elif isinstance(owner, (keras.Layer, types.SimpleNamespace)):
        yield from _random_generators(vars(owner), seen)
    elif isinstance(owner, (dict, list, tuple)):
        for part in owner.values() if isinstance(owner, dict) else owner:
            yield from _random_generators(part, seen)


def _one_for_each(who, name, value, count):
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * count
    values = tuple(_checks.number(who, name, v, above=0.0) for v in values)
    if len(values) != count:
        raise ValueError(_checks.message(who, f"one {name} or {count} of them", f"{name}={value!r}", "State each."))
    return values


def _parts(outputs):
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


class Subject:
    """A built layer, with inputs, outputs and bounds as tuples: of one entry each for most layers.

    Args:
        who: str, for messages.
        layer: a `DPLayer`, built or not.
        input_shape: tuple of int, or list of such tuples for a layer with several inputs.
        input_bound, gradient_bound: float > 0, or a tuple with one for each input or output.
    """

    def __init__(self, who, layer, input_shape, input_bound=1.0, gradient_bound=1.0):
        if not isinstance(layer, DPLayer) or isinstance(layer, keras.layers.InputLayer):
            expected = "a layer with bounds (a DPLayer) that can be called"
            raise TypeError(_checks.message(who, expected, f"{layer!r}", "Subclass DPLayer and define its bounds."))
        self._who, self._input_shape = who, input_shape
        self.layer = layer
        self.single_input = all(isinstance(side, numbers.Integral) for side in input_shape)
        self.input_shapes = (tuple(input_shape),) if self.single_input else tuple(map(tuple, input_shape))
        self.input_bounds = _one_for_each(who, "input_bound", input_bound, len(self.input_shapes))
        if not layer.built:
            layer.build(self.batch_shape(None))
        self.variable = self._one_variable()
        outputs = layer(self.argument([tf.zeros((1, *shape), layer.compute_dtype) for shape in self.input_shapes]))
        self.single_output = not isinstance(outputs, (tuple, list))
        self.output_shapes = tuple(tuple(y.shape[1:]) for y in _parts(outputs))
        self.gradient_bounds = _one_for_each(who, "gradient_bound", gradient_bound, len(self.output_shapes))
        self._generators = [generator.state for generator in _random_generators(layer)]
        self._seeds = [state.numpy() for state in self._generators]

    def like(self, layer):
        """The same for a copy of the layer."""
        return Subject(self._who, layer, self._input_shape, self.input_bounds, self.gradient_bounds)

    def _one_variable(self):
        variables = self.layer.trainable_variables
        if len(variables) > 1:
            names = [v.name for v in variables]
            raise ValueError(
                _checks.message(self._who, "at most one trainable variable", f"{names}", "Split the layer.")
            )
        return variables[0] if variables else None

    def batch_shape(self, size):
        """What `build` and `compute_output_shape` are given."""
        return self.argument([(size, *shape) for shape in self.input_shapes])

    def argument(self, inputs):
        """What the layer is given: the one input, or the list of them."""
        return inputs[0] if self.single_input else list(inputs)

    def call(self, xs, training=False):
        """Tuple of outputs."""
        return _parts(self.layer(self.argument(xs), training=training))

    def gradients(self, xs, gs=None, training=False, rewind=True):
        """Outputs, cotangents at the inputs, and gradient of the variable (None without one), as NumPy arrays.

        Args:
            xs, gs: tuples of arrays, inputs and cotangents of the outputs (None: zeros).
            training: bool, the mode.
            rewind: bool, whether the layer's random generators start from the same state each time.
        """
        if rewind:
            for generator, seed in zip(self._generators, self._seeds, strict=True):
                generator.assign(seed)
        xs = tuple(map(tf.constant, xs))
        variables = [] if self.variable is None else [self.variable.value]
        with tf.GradientTape() as tape:
            tape.watch(xs)
            ys = self.call(xs, training)
        gs = [tf.zeros_like(y) for y in ys] if gs is None else list(map(tf.constant, gs))
        found = tape.gradient(ys, [*xs, *variables], gs, unconnected_gradients="zero")
        found = [tf.convert_to_tensor(gradient).numpy() for gradient in found]
        at_variable = found.pop() if variables else None
        return tuple(y.numpy() for y in ys), tuple(found), at_variable

    def claimed(self, input_bounds=None, gradient_bounds=None):
        """The bounds as stated: dict, name -> tuple, with one for each output, input or variable.

        Raises:
            AssertionError: where their number is another.
        """
        xs, gs = input_bounds or self.input_bounds, gradient_bounds or self.gradient_bounds
        x, g = xs[0] if self.single_input else tuple(xs), gs[0] if self.single_output else tuple(gs)
        stated = {
            "output": (self.layer.propagate_inputs(x), self.single_output, len(gs)),
            "input_gradient": (self.layer.backpropagate_inputs(x, g), self.single_input, len(xs)),
        }
        if self.variable is not None:
            stated["parameter_gradient"] = (self.layer.backpropagate_params(x, g), True, 1)
        for name, (bound, single, count) in stated.items():
            if isinstance(bound, (tuple, list)) == single or len(_parts(bound)) != count:
                expected = "one number" if single else f"a tuple of {count}"
                raise AssertionError(f"{name}: the bound has to be {expected}, it is {bound!r}")
        return {name: _parts(bound) for name, (bound, *_) in stated.items()}

    def joint_gradient(self):
        """Whether the layer claims that the cotangents of all its inputs together are no larger than its output's."""
        return len(self.input_shapes) > 1 and bool(self.layer.joint_gradient)

    def examples(self, count, seed=0):
        """For each input `count` random examples, of norms near the bound."""
        return self._normal(count, seed, self.input_shapes, self.input_bounds)

    def cotangents(self, count, seed=1):
        """For each output `count` random cotangents, of norms near the bound."""
        return self._normal(count, seed, self.output_shapes, self.gradient_bounds)

    def _normal(self, count, seed, shapes, bounds):
        rng = np.random.default_rng(seed)
        sizes = [bound / np.sqrt(max(np.prod(shape), 1.0)) for shape, bound in zip(shapes, bounds, strict=True)]
        arrays = [size * rng.normal(size=(count, *shape)) for shape, size in zip(shapes, sizes, strict=True)]
        return tuple(array.astype(self.layer.compute_dtype) for array in arrays)

    @contextlib.contextmanager
    def kept(self):
        """At the end all variables have their values back, those of random generators too."""
        variables = [*self.layer.weights, *self._generators]
        values = [v.numpy() for v in variables]
        try:
            yield
        finally:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
