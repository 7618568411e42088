"""The checks of `check_dp_layer`, one function each: it yields what it found wrong, as text."""

import functools
import inspect
import json
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from deel.lipdp.testing._search import Search
from deel.lipdp.testing._starts import projection

__all__ = ["CHECKS", "Trial"]

# Another batch size may sum in another order, in single precision.
_ORDER_TOLERANCE = 1e-4

# A few products of double-precision numbers are off by some 1e-16; a bound that went through single precision by 1e-8.
_BOUND_TOLERANCE = 1e-9

_MODES = {False: "in inference mode", True: "in training mode"}


class Trial:
    """What the checks of one layer share."""

    def __init__(self, subject, restarts, steps, seed):
        self.subject = subject
        self.layer = subject.layer
        self.variable = subject.variable
        self.rng = np.random.default_rng(seed)
        self.found = []
        self._settings = {"restarts": restarts, "steps": steps, "seed": seed}
        self._searches = {}

    def search(self, training):
        """The search in one mode; it is compiled once."""
        if training not in self._searches:
            self._searches[training] = Search(self.subject, training=training, **self._settings)
        return self._searches[training]

    @functools.cached_property
    def modes(self):
        """The modes in which the layer may act differently."""
        xs, gs = self.subject.examples(7), self.subject.cotangents(7)
        told = "training" in inspect.signature(self.layer.call).parameters
        both = (self.subject.gradients(xs, gs, training) for training in _MODES)
        return tuple(_MODES) if told or not _same(*both) else (False,)

    @functools.cached_property
    def repeatable(self):
        """Modes in which a call repeated gives the same, random generators rewound."""
        return [training for training in _MODES if self._repeats(training, rewind=True)]

    @functools.cached_property
    def random(self):
        """Modes in which it does not, without that."""
        return [training for training in _MODES if not self._repeats(training, rewind=False)]

    def _repeats(self, training, rewind):
        xs, gs = self.subject.examples(3), self.subject.cotangents(3)
        others = self.subject.examples(3, seed=2), self.subject.cotangents(3, seed=3)
        first = self.subject.gradients(xs, gs, training, rewind)
        self.subject.gradients(*others, training, rewind)
        return _same(first, self.subject.gradients(xs, gs, training, rewind))

    @functools.cached_property
    def _moved_weights(self):
        return keras.ops.convert_to_numpy(projection(self.variable)(self.variable.numpy() + self.noise(0.1)))

    def noise(self, size):
        """Normal noise, one number for each parameter."""
        return (size * self.rng.normal(size=self.variable.shape)).astype(self.variable.dtype)

    def move_weights(self):
        """Leaves the initial weights, which can be special (all zero), for others that are admissible."""
        if self.variable is not None:
            self.variable.assign(self._moved_weights)

    def violations(self, training):
        """What the search finds wrong at the current weights."""
        worst = self.search(training).at_current_weights()
        self.found.append(worst)
        return _violations(worst, training)

    def model(self):
        """A Keras model that consists of the layer."""
        inputs = [keras.Input(shape) for shape in self.subject.input_shapes]
        return keras.Model(inputs, self.layer(self.subject.argument(inputs)))


def _violations(worst, training):
    for name in worst.violations():
        yield f"{name}: found {getattr(worst, name):.6g} times the bound, {_MODES[training]}"


def _same(first, second):
    """Whether all arrays are equal, bit for bit but for the sign of zero."""
    pairs = zip(tf.nest.flatten(first), tf.nest.flatten(second), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs if a is not None or b is not None)


# -- the checks: each yields what it found wrong ---------------------------------------------------------------------


def _bounds(trial):
    for training in trial.modes:
        worst = trial.search(training).over_admissible_weights()
        trial.found.append(worst)
        yield from _violations(worst, training)


def _bounds_after_updates(trial):
    if trial.variable is None:
        return
    optimizer = keras.optimizers.SGD(1.0)
    for size in (0.1, 10.0, 1e4):
        optimizer.apply([trial.noise(size)], [trial.variable])
        for training in trial.modes:
            yield from (f"{text}, after noise of size {size:g}" for text in trial.violations(training))


def _bound_values(trial):
    subject, layer = trial.subject, trial.layer
    layer.check()
    if layer.has_parameters() != (trial.variable is not None):
        yield f"has_parameters() is {layer.has_parameters()}, trainable variables: {layer.trainable_variables}"
    xs, gs = subject.input_bounds, subject.gradient_bounds
    stated = subject.claimed()
    for name, bound in _flat(stated):
        moving = layer.non_trainable_weights and tf.is_tensor(bound) and bound.dtype == "float64" and bound.shape == ()
        # No cotangent goes back to tokens, for one; the search finds out whether that is true.
        positive = float(bound) > 0.0 or (name == "input_gradient" and bound == 0.0)
        if not (isinstance(bound, float) or moving) or not positive or not np.isfinite(float(bound)):
            yield f"{name}: expected a positive and finite Python float, received {bound!r}"
    larger = {
        "input": subject.claimed(tuple(2.0 * x for x in xs), gs),
        "gradient": subject.claimed(xs, tuple(2.0 * g for g in gs)),
    }
    for which, bounds in larger.items():
        for (name, before), (_, after) in zip(_flat(stated), _flat(bounds), strict=True):
            if after < before:
                yield f"{name}: falls from {before:.6g} to {after:.6g} when the {which} bound is doubled"
    # So small that no clip value is below them.
    tiny, scale = tuple(1e-20 * g for g in gs), 1e10
    backward = [
        {name: bound for name, bound in subject.claimed(xs, gradient).items() if name != "output"}
        for gradient in (tiny, tuple(scale * t for t in tiny))
    ]
    for (name, small), (_, large) in zip(*map(_flat, backward), strict=True):
        if not np.isclose(scale * float(small), float(large), rtol=_BOUND_TOLERANCE, atol=0.0):
            yield f"{name}: {large:.10g} for a gradient bound {scale:g} times as large as that for {small:.10g}"

    # As in the training step, where a clip value moves.
    @tf.function(autograph=False)
    def in_graph(gradients):
        bounds = subject.claimed(xs, tuple(tf.unstack(gradients)))
        return tf.nest.map_structure(lambda bound: tf.convert_to_tensor(bound, "float64"), bounds)

    for (name, number), (_, tensor) in zip(_flat(stated), _flat(in_graph(tf.constant(gs, "float64"))), strict=True):
        if not np.isclose(float(tensor), float(number), rtol=_BOUND_TOLERANCE, atol=0.0):
            yield f"{name}: {float(number):.10g}, but {float(tensor):.10g} where the gradient bound is a float64 tensor"


def _flat(bounds):
    return [(name, bound) for name, several in bounds.items() for bound in several]


def _extremes(subject):
    """Yields `(description, value for each input, size of the cotangent)`: zeros, ties, tiny and huge values."""
    columns = []
    for shape, example in zip(subject.input_shapes, subject.examples(1), strict=True):
        ones, half = np.ones(shape), np.ones(shape)
        half.flat[: (half.size + 1) // 2] = 0.0
        values = (0.0, 1e-45, 1e-40, 1e-38, 1e-22, 1e-15, 1e-8, 1.0, 1e15 / np.sqrt(max(half.size, 1)))
        equal = {f"entries all {value:.3g}": value * ones for value in values}
        columns.append({**equal, "entries half 0": half, "entries half 1e-15": 1e-15 * half, "random": example[0]})
    texts = list(columns[0])
    # With several inputs: the same kind in each, then another in each.
    for shift in range(min(len(columns), 2)):
        for i, text in enumerate(texts):
            xs = [list(column.values())[(i + shift * k) % len(texts)] for k, column in enumerate(columns)]
            yield from ((text, xs, size) for size in (1.0, -1.0, 1e-30, 1e10))


def _exceeded(trial, extremes):
    """The first of each bound that is exceeded by these, without a search."""
    subject, dtype = trial.subject, trial.layer.compute_dtype
    texts, xs, sizes = zip(*extremes, strict=True)
    xs = tuple(np.stack(column).astype(dtype) for column in zip(*xs, strict=True))
    gs = tuple(np.stack([np.full(shape, size, dtype) for size in sizes]) for shape in subject.output_shapes)
    for training in trial.modes:
        first = {}
        for i, name, found, bound in trial.search(training).exceeded(xs, gs):
            first.setdefault(
                name,
                f"{name}: found {found:.6g}, claimed {bound:.6g}, at an input of {texts[i]} and a cotangent of "
                f"entries all {sizes[i]:g}, {_MODES[training]}",
            )
        yield from first.values()


def _zero_input(trial):
    trial.move_weights()
    yield from _exceeded(trial, [row for row in _extremes(trial.subject) if row[0] == "entries all 0"])


def _extreme_inputs(trial):
    trial.move_weights()
    yield from _exceeded(trial, _extremes(trial.subject))


def _examples_independent(trial):
    trial.move_weights()
    subject, count, changed = trial.subject, 7, 3
    xs, gs = subject.examples(count), subject.cotangents(count)
    other_xs, other_gs = ([z.copy() for z in zs] for zs in (xs, gs))
    for z in (*other_xs, *other_gs):
        z[changed] = -1e3 * np.flip(z[changed])
    others = np.arange(count) != changed
    for training in trial.repeatable:
        *before, at_variable = subject.gradients(xs, gs, training)
        *after, _ = subject.gradients(other_xs, other_gs, training)
        for name, first, second in zip(("output", "input_gradient"), before, after, strict=True):
            if not _same([z[others] for z in first], [z[others] for z in second]):
                yield f"{name}: changes with another example of the batch, {_MODES[training]}"
        if at_variable is not None and training not in trial.random:
            single = [subject.gradients(*_slices(xs, gs, i, i + 1), training)[2] for i in range(count)]
            if not _close(at_variable, sum(single), scale=sum(map(np.linalg.norm, single))):
                yield f"parameter_gradient: that of a batch is not the sum of those of its examples, {_MODES[training]}"


def _slices(xs, gs, start, stop):
    return ([z[start:stop] for z in zs] for zs in (xs, gs))


def _close(found, expected, scale):
    """Equal but for the order of summation."""
    return found.shape == expected.shape and np.linalg.norm(found - expected) <= _ORDER_TOLERANCE * scale


def _batch_sizes(trial):
    trial.move_weights()
    subject = trial.subject
    xs, gs = subject.examples(7), subject.cotangents(7)
    for training in trial.repeatable:
        if training in trial.random:
            continue
        whole = subject.gradients(xs, gs, training)
        for size in (1, 2):
            part = subject.gradients(*_slices(xs, gs, 0, size), training)
            for name, found, expected in zip(("output", "input_gradient"), part[:2], whole[:2], strict=True):
                pairs = [(a, b[:size]) for a, b in zip(found, expected, strict=True)]
                if not all(_close(a, b, scale=np.linalg.norm(b)) for a, b in pairs):
                    yield f"{name}: of a batch of {size} differs from that in a batch of 7, {_MODES[training]}"
    empty, _ = _slices(xs, gs, 0, 0)
    ys, _, at_variable = subject.gradients(empty)
    # No more is asked of the shape: TensorFlow's convolutions get the sides of an empty batch wrong.
    if any(len(y) for y in ys):
        yield f"output: of an empty batch has shape {[y.shape for y in ys]}"
    if at_variable is not None and (at_variable != 0).any():
        yield "parameter_gradient: of an empty batch is not zero"


def _no_state(trial):
    trial.move_weights()
    for training, text in _MODES.items():
        before = trial.layer.get_weights()
        if training not in trial.repeatable:
            yield (
                f"a call repeated gives another result, {text}: it depends on calls before it, or on random numbers "
                "that come from no keras.random.SeedGenerator of the layer"
            )
        trial.subject.gradients(trial.subject.examples(3), training=training)
        if not _same(before, trial.layer.get_weights()):
            yield f"a call changes the layer's weights, {text}"


def _output_shape(trial):
    subject = trial.subject
    for size in (None, 5):
        stated = trial.layer.compute_output_shape(subject.batch_shape(size))
        stated = [tuple(shape) for shape in ([stated] if subject.single_output else stated)]
        expected = [(size, *shape) for shape in subject.output_shapes]
        if stated != expected:
            yield f"compute_output_shape says {stated}, outputs have {expected}"


def _differences(trial, layer):
    """What a copy of the layer, with the same weights, does differently."""
    if type(layer) is not type(trial.layer):
        yield f"the copy is a {type(layer).__name__}"
        return
    copy = trial.subject.like(layer)
    if _plain(layer.get_config()) != _plain(trial.layer.get_config()):
        yield f"the copy's get_config is {layer.get_config()}, the layer's {trial.layer.get_config()}"
    bounds, expected = (
        {name: tuple(map(float, each)) for name, each in s.claimed().items()} for s in (copy, trial.subject)
    )
    if bounds != expected:
        yield f"the copy's bounds are {bounds}, the layer's {expected}"
    if not _same(trial.layer.get_weights(), layer.get_weights()):
        yield "the copy's weights differ"
    xs, gs = trial.subject.examples(3), trial.subject.cotangents(3)
    for training in trial.repeatable:
        if training not in trial.random and not _same(*(s.gradients(xs, gs, training) for s in (copy, trial.subject))):
            yield f"the copy's outputs or gradients differ, {_MODES[training]}"


def _plain(config):
    return json.dumps(keras.saving.serialize_keras_object(config), sort_keys=True)


def _config(trial):
    trial.move_weights()
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(trial.layer)))
    copy = keras.saving.deserialize_keras_object(config)
    if not copy.built:
        copy.build(trial.subject.batch_shape(None))
    copy.set_weights(trial.layer.get_weights())
    yield from _differences(trial, copy)


def _saving(trial):
    trial.move_weights()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        trial.model().save(path)
        loaded = keras.models.load_model(path)
    yield from _differences(trial, loaded.get_layer(trial.layer.name))


def _weights_from_outside(trial):
    if trial.variable is None:
        return
    trial.move_weights()
    variable, layer = trial.variable, trial.layer
    inside = variable.numpy()
    outside = 5.0 * inside + 1.0
    kept = layer.get_weights()
    layer.set_weights([outside if v is variable else v.numpy() for v in layer.weights])
    yield from (f"{text}, after set_weights" for training in trial.modes for text in trial.violations(training))
    was_set = variable.numpy()
    with tempfile.TemporaryDirectory() as folder:
        path, model = pathlib.Path(folder) / "model.weights.h5", trial.model()
        variable.assign(outside)
        model.save_weights(path)
        variable.assign(inside)
        model.load_weights(path)
    if not np.array_equal(variable.numpy(), was_set):
        yield from (f"{text}, after load_weights" for training in trial.modes for text in trial.violations(training))
    layer.set_weights(kept)
    if not _same(layer.get_weights(), kept):
        yield "set_weights changes admissible weights"


CHECKS = {
    "bound_values": _bound_values,
    "bounds": _bounds,
    "bounds_after_updates": _bounds_after_updates,
    "zero_input": _zero_input,
    "extreme_inputs": _extreme_inputs,
    "examples_independent": _examples_independent,
    "batch_sizes": _batch_sizes,
    "no_state": _no_state,
    "output_shape": _output_shape,
    "config": _config,
    "saving": _saving,
    "weights_from_outside": _weights_from_outside,
}
