"""From a plain Keras model to its private counterpart, with a report of what replaced what."""

import dataclasses
import textwrap
from typing import Literal, TypeAlias

import keras
from keras import ops

from deel.lipdp import _checks, _replacements
from deel.lipdp._replacements import Refusal, Replacement, Site
from deel.lipdp.layers import DP_BoundedInput
from deel.lipdp.model import DP_Model, DP_Sequential
from deel.lipdp.parameters import DatasetMetadata, DPParameters

__all__ = ["Conversion", "ConversionEntry", "ConversionError", "ConversionReport", "conversion_report", "convert"]

ActivationPolicy: TypeAlias = Literal["keep", "group_sort", "abs"]
BiasPolicy: TypeAlias = Literal["keep", "drop"]

_NOTE_WIDTH = 56

# The largest that DP_BoundedInput takes: a report has no data to bound.
_ANY_BOUND = 1e15


@dataclasses.dataclass(frozen=True)
class ConversionEntry:
    """What became of one layer of the source model.

    Args:
        layer: str, its name, after the names of the models it is nested in: `"backbone/conv"`.
        from_class: str, its class.
        to_classes: tuple of str, the classes of the layers in its place; empty for a layer that was left out.
        note: str, what is not the same as before, or why the layer could not be converted and what to use.
        converted: bool.
    """

    layer: str
    from_class: str
    to_classes: tuple[str, ...]
    note: str
    converted: bool = True


class ConversionReport(tuple[ConversionEntry, ...]):
    """The `ConversionEntry` of each layer of the source model, once each, in the order of the graph.

    `str` makes a table of it.

    Attributes:
        refused: tuple of the entries that could not be converted.
    """

    @property
    def refused(self) -> tuple[ConversionEntry, ...]:
        """tuple of `ConversionEntry`, those that could not be converted."""
        return tuple(entry for entry in self if not entry.converted)

    def __str__(self):
        rows = [("layer", "was", "is now", "note")]
        for entry in self:
            now = " + ".join(entry.to_classes) or "-" if entry.converted else "REFUSED"
            first, *others = textwrap.wrap(entry.note, _NOTE_WIDTH) or [""]
            rows += [(entry.layer, entry.from_class, now, first), *(("", "", "", line) for line in others)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


class ConversionError(ValueError):
    """A model some of whose layers have no counterpart; the message names each of them and says why.

    Args:
        report: `ConversionReport`, kept as an attribute.
    """

    def __init__(self, report: ConversionReport) -> None:
        self.report = report
        reasons = [f"  {entry.layer} ({entry.from_class}): {entry.note}" for entry in report.refused]
        count = f"{len(reasons)} of {len(report)} layers cannot be converted:"
        super().__init__("\n".join([count, *reasons]))


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted model and how it came about.

    Args:
        model: `DP_Sequential` or `DP_Model`, not compiled.
        report: `ConversionReport`.
    """

    model: DP_Sequential | DP_Model
    report: ConversionReport

    def __str__(self):
        return str(self.report)


def convert(
    model: keras.Model,
    *,
    dp_parameters: DPParameters,
    dataset_metadata: DatasetMetadata,
    upper_bound: float | None = None,
    transfer_weights: bool = True,
    activation: ActivationPolicy = "keep",
    bias: BiasPolicy = "keep",
    debug: bool = False,
) -> Conversion:
    """Makes the private counterpart of a plain Keras model. The model itself stays as it is.

    Each layer is replaced by one with bounds, most often of another function: kernels have norm 1 at most, batch
    normalisation is gone, residual branches are averaged. The report says so layer by layer. The result is not
    compiled, since its losses differ too: see `deel.lipdp.losses`.

    Args:
        model: `keras.Sequential`, or a functional `keras.Model` with one input and one output. Models nested in it are
            taken apart.
        dp_parameters: `DPParameters`.
        dataset_metadata: `DatasetMetadata`; its `input_shape` is that of the new model.
        upper_bound: float or None, largest norm of one example, as the model gets it; None for that of the metadata.
        transfer_weights: bool, whether kernels and biases are copied, and then projected into their constraint sets,
            which changes what the model computes. Weights that were trained on the private data are not covered by
            epsilon: copy only those that are public.
        activation: `"keep"`, or what stands in for ReLU and its relatives: `"group_sort"` (`DP_GroupSort`, or `DP_Abs`
            where the channels are odd in number) or `"abs"`. These keep the norms of signals and gradients.
        bias: `"keep"` puts a `DP_AddBias` behind each layer that had a bias; what it adds to an example has at most a
            tenth of the norm `upper_bound`. `"drop"` leaves biases out, which needs less noise.
        debug: bool, as in `DP_Sequential`.

    Returns:
        `Conversion`, with a `DP_Sequential` for a `keras.Sequential` that is a chain of different layers, else a
        `DP_Model`.

    Raises:
        ConversionError: if a layer cannot be converted; its `report` and message name every such layer.
        TypeError: for a model without a graph.
        ValueError: for several inputs or outputs, or an input shape other than that of the metadata.

    Example:

    >>> import keras
    >>> from deel import lipdp
    >>> plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2, "softmax")])
    >>> conversion = lipdp.convert(
    ...     plain,
    ...     dp_parameters=lipdp.DPParameters("optimal", 1.0, delta=1e-5),
    ...     dataset_metadata=lipdp.DatasetMetadata((8,), nb_samples_train=1000, batch_size=100, max_norm=1.0),
    ...     bias="drop",
    ... )
    >>> [type(layer).__name__ for layer in conversion.model.layers]
    ['DP_BoundedInput', 'DP_QuickSpectralDense', 'DP_ReLU', 'DP_QuickSpectralDense']
    """
    bound = dataset_metadata.max_norm if upper_bound is None else upper_bound
    walk = _Walk(model, dataset_metadata.input_shape, bound, activation, bias, transfer_weights)
    if walk.report.refused:
        raise ConversionError(walk.report)
    walk.finish()
    private = {"dp_parameters": dp_parameters, "dataset_metadata": dataset_metadata, "debug": debug, "name": model.name}
    if isinstance(model, keras.Sequential) and walk.is_chain():
        return Conversion(DP_Sequential(walk.new_layers, **private), walk.report)
    return Conversion(DP_Model(inputs=walk.inputs, outputs=walk.outputs, **private), walk.report)


def conversion_report(
    model: keras.Model,
    *,
    input_shape: tuple[int, ...] | None = None,
    activation: ActivationPolicy = "keep",
    bias: BiasPolicy = "keep",
) -> ConversionReport:
    """Says what `convert` would do, and which layers it would refuse; raises nothing for them.

    Args:
        model, activation, bias: as for `convert`.
        input_shape: tuple of int or None, shape of one example, where the model does not state it.

    Returns:
        `ConversionReport`; the model can be converted if its `refused` is empty.

    Raises:
        TypeError, ValueError: as `convert`, but for layers.
    """
    return _Walk(model, input_shape, _ANY_BOUND, activation, bias, transfer_weights=False).report


# -- the graph of the source ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Call:
    """One use of one layer: names of the tensors that go in and come out, and the shapes of the latter."""

    path: str
    operation: keras.Operation
    inputs: tuple
    outputs: tuple
    output_shapes: tuple


def _graph(operation):
    """The graph of a Sequential or functional model; None for anything else."""
    graph = getattr(operation, "_functional", operation)
    own_call = not type(operation).call.__module__.startswith("keras.")
    return graph if hasattr(graph, "_nodes_by_depth") and not own_call else None


def _calls(graph, names, prefix=""):
    """The calls of a graph, each after those it needs, with those of nested models in place.

    Args:
        graph: functional model.
        names: dict, id of a symbolic tensor -> name, which has the inputs of the graph and gets the others.
        prefix: str, for the paths.
    """
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.is_input:
                continue
            path = prefix + node.operation.name
            inputs = tuple(names[id(tensor)] for tensor in node.input_tensors)
            shapes = tuple(tuple(tensor.shape) for tensor in node.outputs)
            nested = _graph(node.operation)
            if nested is None:
                outputs = tuple(object() for _ in node.outputs)
                yield _Call(path, node.operation, inputs, outputs, shapes)
            else:
                yield _Call(path, node.operation, inputs, (), ())
                inside = {id(tensor): name for tensor, name in zip(nested.inputs, inputs, strict=True)}
                yield from _calls(nested, inside, f"{path}/")
                outputs = tuple(inside[id(tensor)] for tensor in nested.outputs)
            names.update({id(tensor): name for tensor, name in zip(node.outputs, outputs, strict=True)})


def _source_graph(model, input_shape):
    """The graph of the model, the shape of one example, and whether the model has weights of its own."""
    who = f"{type(model).__name__} '{getattr(model, 'name', '')}'"
    has_weights = True
    if isinstance(model, keras.Sequential) and not model.built:
        if input_shape is None:
            raise ValueError(
                _checks.message(
                    who,
                    "a known input shape",
                    "a model that was never built",
                    "Pass input_shape, or put keras.Input first.",
                )
            )
        model = type(model).from_config(model.get_config())
        model.build((None, *input_shape))
        has_weights = False
    graph = _graph(model) if isinstance(model, keras.Model) else None
    if graph is None:
        raise TypeError(
            _checks.message(
                "convert",
                "a keras.Sequential or a functional keras.Model",
                who,
                "Its graph cannot be read: write the model in the functional style, or with deel.lipdp.layers.",
            )
        )
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            _checks.message(
                who,
                "one input and one output",
                f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs",
                "Concatenate them, or convert the parts of the model one by one.",
            )
        )
    stated = tuple(graph.inputs[0].shape)[1:]
    input_shape = stated if input_shape is None else tuple(input_shape)
    fits = len(stated) == len(input_shape) and all(a in (None, b) for a, b in zip(stated, input_shape, strict=True))
    if not fits or None in input_shape:
        raise ValueError(
            _checks.message(
                who,
                f"an input shape that is known and fits the model's, {stated}",
                f"{input_shape}",
                "State the shape of one example: norms are certified for one.",
            )
        )
    return graph, input_shape, has_weights


class _Walk:
    """Goes through the source model, makes the new layers and applies them.

    A layer that cannot be converted is replaced by an input of the shape it had, so that those behind it are tried too.
    """

    def __init__(self, model, input_shape, upper_bound, activation, bias, transfer_weights):
        who = "convert"
        _checks.choice(who, "activation", activation, _replacements.ACTIVATION_POLICIES)
        _checks.choice(who, "bias", bias, _replacements.BIAS_POLICIES)
        graph, input_shape, has_weights = _source_graph(model, input_shape)
        guard = DP_BoundedInput(upper_bound, input_shape=input_shape)
        self._options = {"activation": activation, "bias": bias, "upper_bound": guard.upper_bound}
        self._transfer = transfer_weights and has_weights
        source, target = graph.inputs[0], graph.outputs[0]
        names = {id(source): object()}
        self._calls = list(_calls(graph, names))
        self._output = names[id(target)]
        self._entries, self._replacements, self._taken_names = {}, {}, set()
        self.inputs = keras.Input(input_shape)
        self._tensors = {names[id(source)]: guard(self.inputs)}
        self.new_layers = [guard]
        entrance = source._keras_history.operation
        note = "examples whose norm is above upper_bound are scaled down to it"
        self._enter(entrance, entrance.name, [guard], note)
        for call in self._calls:
            self._convert(call)
        self.outputs = self._tensors[self._output]
        self.report = ConversionReport(self._entries.values())

    def _enter(self, operation, path, new_layers, note, converted=True):
        kind = type(operation).__name__
        if not isinstance(operation, keras.layers.Layer):
            kind = f"ops.{kind}"
        classes = tuple(type(layer).__name__ for layer in new_layers)
        self._entries[id(operation)] = ConversionEntry(path, kind, classes, note, converted)

    def _convert(self, call):
        operation = call.operation
        known = id(operation) in self._entries
        if _graph(operation) is not None:
            if not known:
                self._enter(operation, call.path, [], "taken apart")
            return
        inputs = [self._tensors[name] for name in call.inputs]
        try:
            replacement = self._replacement(call, tuple(tuple(tensor.shape) for tensor in inputs))
            outputs = inputs[0] if len(inputs) == 1 else inputs
            for layer in replacement.layers:
                outputs = layer(outputs)
        except (Refusal, TypeError, ValueError) as error:
            self._enter(operation, call.path, [], str(error), converted=False)
            outputs = [keras.Input(batch_shape=shape) for shape in call.output_shapes]
        else:
            self.new_layers += replacement.layers
            if not known:
                copied = ["weights copied, then projected"] if self._transfer and replacement.weights else []
                self._enter(operation, call.path, replacement.layers, "; ".join(copied + replacement.notes))
        self._tensors.update(zip(call.outputs, keras.tree.flatten(outputs), strict=True))

    def _replacement(self, call, shapes):
        """The new layers for a call: those of an earlier call of the same layer if it has weights."""
        operation = call.operation
        if id(operation) in self._replacements:
            made_for, replacement = self._replacements[id(operation)]
            if made_for != shapes:
                raise Refusal(f"it is used at inputs of shapes {made_for} and {shapes}: norms are certified for one")
            return replacement
        site = Site(operation, shapes, self._is_final(operation), name=self._namer(call.path), **self._options)
        replacement = _replacements.replacement_for(site)
        if getattr(operation, "weights", None):
            self._replacements[id(operation)] = shapes, replacement
        return replacement

    def _is_final(self, operation):
        """Whether the output of the model is the one thing that the layer makes, and nothing takes it."""
        made = {name for call in self._calls if call.operation is operation for name in call.outputs}
        return made == {self._output} and not any(self._output in call.inputs for call in self._calls)

    def _namer(self, path):
        def name(suffix=""):
            base = path.replace("/", "_") + (f"_{suffix}" if suffix else "")
            new, count = base, 1
            while new in self._taken_names:
                new, count = f"{base}_{count}", count + 1
            self._taken_names.add(new)
            return new

        return name

    def is_chain(self):
        """Whether every layer takes the output of the one before, and none is used twice."""
        calls = [call for call in self._calls if call.outputs]
        chained = all(after.inputs == before.outputs for before, after in zip(calls, calls[1:], strict=False))
        return chained and len({id(layer) for layer in self.new_layers}) == len(self.new_layers)

    def finish(self):
        """Takes over the weights, and which layers are frozen."""
        for call in self._calls:
            _, replacement = self._replacements.get(id(call.operation), (None, Replacement()))
            for layer, values in replacement.weights:
                layer.trainable = call.operation.trainable
                if self._transfer:
                    layer.set_weights([ops.convert_to_numpy(value) for value in values])
