"""The bounds of a whole model: a forward pass carries input norms, a backward pass carries gradient norms."""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import keras

from deel.lipdp import _checks, _scalars
from deel.lipdp._replacements import remedy_for
from deel.lipdp._types import Bound, Shape
from deel.lipdp.layers import DP_BoundedInput, DP_ClipGradient, DP_InputLayer, DPLayer

__all__ = [
    "LARGEST_ACTIVATION",
    "LayerCall",
    "check_call",
    "check_model",
    "compute_gradient_bounds",
    "gradient_bounds_in_force",
    "output_gradient_bound",
    "output_gradient_bound_in_force",
    "rounding_slack",
    "several",
    "single",
    "variable_key",
]

# What rounding in single precision can add to one example's share of a summed gradient, relative to its bound: mostly
# the sum over the batch, whose n roundings, each in proportion to the sum, walk away from it like n^1.5. A test takes
# one of 16,384 equal examples away: 1.1 % was found, on a processor without AVX-512, half of what the slack is there.
# Attacks that exploit the rounding itself are outside the proof.
ROUNDING_SLACK = 1e-3  # up to the batch size below, beyond which it grows
_SLACK_BATCH = 2048

# Squares of activations have to stay finite in single precision.
LARGEST_ACTIVATION = 1e15

_PRECISIONS = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One use of one layer in a model.

    Args:
        layer: the layer.
        inputs, outputs: tuples of hashable names, one for each tensor that goes in or comes out. Tensors of different
            calls are the same if their names are.
        input_shapes: tuple of shapes, with the batch axis, one for each input; None where a layer before is not built.
    """

    layer: keras.layers.Layer
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    input_shapes: tuple[Shape | None, ...]


def variable_key(layer: keras.layers.Layer, variable: keras.Variable) -> str:
    """The name of a variable in every dict of bounds, coefficients and norms: `"<layer.name>/<variable.name>"`."""
    return f"{layer.name}/{variable.name}"


def single(values: Sequence[Any]) -> Any:
    """The one value, or the tuple of several: what a layer's methods take and return."""
    return values[0] if len(values) == 1 else tuple(values)


def several(value: Any) -> Sequence[Any]:
    """The tuple or list itself, or the one value as a tuple."""
    return value if isinstance(value, (tuple, list)) else (value,)


def _refuse(who, expected, received, remedy, error=ValueError):
    raise error(_checks.message(who, expected, received, remedy))


def _check_layer(layer):
    who = f"{type(layer).__name__} '{layer.name}'"
    if not isinstance(layer, DPLayer):
        _refuse(
            who,
            "a layer with bounds (a DPLayer)",
            f"a {type(layer).__module__}.{type(layer).__name__}",
            remedy_for(layer),
            TypeError,
        )
    policy = layer.dtype_policy
    if policy.compute_dtype not in _PRECISIONS or policy.compute_dtype != policy.variable_dtype:
        _refuse(
            who,
            f"one precision among {_PRECISIONS}",
            f"dtype policy {policy.name!r}",
            "Mixed precision rounds beyond the bounds: use float32.",
        )
    if getattr(layer, "activity_regularizer", None) is not None:
        _refuse(
            who,
            "no activity_regularizer, whose gradient depends on the data and has no bound",
            "one is set",
            "Use kernel_regularizer, which is added after the noise.",
        )
    if len(layer.trainable_variables) > 1:
        _refuse(
            who,
            "one trainable variable at most",
            f"{[v.name for v in layer.trainable_variables]}",
            "Split the layer: bounds are stated for one variable each.",
        )


def _check_shapes(call):
    """Certificates and window counts of a layer hold for the shape it was built for."""
    built_for = (call.layer.get_build_config() or {}).get("input_shape")
    if built_for is None:
        return
    several = isinstance(built_for[0], (list, tuple))
    expected = tuple(tuple(shape) for shape in (built_for if several else [built_for]))
    if [shape[1:] for shape in expected] != [tuple(shape)[1:] for shape in call.input_shapes]:
        _refuse(
            f"{type(call.layer).__name__} '{call.layer.name}'",
            f"to be built for inputs of shape {single(call.input_shapes)}, as the metadata and the layers before say",
            f"built for {single(expected)}",
            "Make a new layer: its bounds hold for one shape.",
        )


def check_call(call: LayerCall) -> None:
    """Refuses a use of a layer for which its bounds do not hold.

    Raises:
        TypeError: for a layer without bounds.
        ValueError: for one that was built for another shape, or whose settings void its bounds.
    """
    _check_layer(call.layer)
    if call.layer.built:
        _check_shapes(call)
        call.layer.check()


def _check_guards(model, calls):
    """Every use of the model's input is an input guard for the shape of the metadata, and there is one."""
    who = f"{type(model).__name__} '{model.name}'"
    made = {name for call in calls for name in call.outputs}
    first = [call for call in calls if not set(call.inputs) <= made]
    wrong = [call.layer for call in first if not isinstance(call.layer, DP_BoundedInput)]
    if not first or wrong:
        _refuse(
            who,
            "DP_BoundedInput as the first layer",
            f"{type(wrong[0]).__name__ if wrong else 'no layer'}",
            "Put DP_BoundedInput(upper_bound=...) first: nothing else bounds the data.",
        )
    expected = tuple(model.dataset_metadata.input_shape)
    for call in first:
        if tuple(call.input_shapes[0])[1:] != expected:
            _refuse(
                who,
                f"inputs of shape {(None, *expected)}, as the metadata say",
                f"{tuple(call.input_shapes[0])}",
                "Make both the same.",
            )


def check_model(model: keras.Model) -> None:
    """Refuses a model whose gradients are not bounded by what its layers state.

    Raises:
        TypeError: for a layer without bounds.
        ValueError: for a model that does not start with `DP_BoundedInput`, a layer listed twice in a `DP_Sequential`, a
            layer used at another shape than it was built for, two variables under one key, mixed precision, an activity
            regulariser, `add_loss`, or a trainable variable in no listed layer.
    """
    who = f"{type(model).__name__} '{model.name}'"
    layers = model.layers_forward_order()
    for layer in layers:
        _check_layer(layer)
    if len({id(layer) for layer in layers}) < len(layers):
        names = [layer.name for layer in layers]
        _refuse(
            who,
            "each layer once in the list",
            f"{sorted({name for name in names if names.count(name) > 1})} twice",
            "Use DP_Model, where a layer may be shared: Keras cannot load a Sequential that holds a layer twice.",
        )
    calls = model.layer_calls()
    _check_guards(model, calls)
    for call in calls:
        check_call(call)
    keys: dict[str, int] = {}
    for layer in layers:
        for variable in layer.trainable_variables:
            key = variable_key(layer, variable)
            if keys.setdefault(key, id(variable)) != id(variable):
                _refuse(who, "one variable for each key", f"two named {key!r}", "Rename a layer.")
    if len(set(keys.values())) < len(keys):
        _refuse(
            who,
            "each variable in one layer",
            f"{sorted(keys)} for {len(set(keys.values()))} variables",
            "Make a layer for each: the gradients of two uses add up.",
        )
    for variable in model.trainable_variables:
        if id(variable) not in keys.values():
            _refuse(
                who,
                "every trainable variable in a listed layer",
                f"{variable.path!r}",
                "Its gradient has no bound: make it a layer, or set trainable=False.",
            )
    regularized = sum(v.regularizer is not None for v in model.trainable_variables)
    if model.built and len(model.losses) > regularized:
        _refuse(
            who,
            "no loss but the compiled one and weight regularisers",
            "a loss added with add_loss",
            "Its gradient has no bound: remove it.",
        )


def output_gradient_bound_in_force(model: keras.Model) -> Bound:
    """As `output_gradient_bound`; a scalar tensor where the clip value moves."""
    loss: Any = getattr(model, "loss", None)
    last = model.layer_calls()[-1].layer
    bound = float(loss.get_L()) if hasattr(loss, "get_L") else math.inf
    if isinstance(last, DP_ClipGradient):
        bound = last.backpropagate_inputs(0.0, bound)
    if _scalars.is_constant(bound) and not 0 < bound < math.inf:
        _refuse(
            f"{type(model).__name__} '{model.name}'",
            "a loss with a known Lipschitz constant (get_L)",
            "no compiled loss" if loss is None else f"loss={loss!r}",
            "Use a loss of deel.lipdp.losses, or end the model with DP_ClipGradient(clip_value): a Keras cross-entropy "
            "then needs from_logits=True.",
        )
    return bound


def output_gradient_bound(model: keras.Model) -> float:
    """Largest norm of one example's gradient at the model's output: the radius of the step's logit guard.

    The loss's Lipschitz constant, or the clip value of a `DP_ClipGradient` that ends the model if that is smaller.

    Raises:
        ValueError: if neither is known.
    """
    return float(output_gradient_bound_in_force(model))


class _Cotangent:
    """Bound on the cotangent at one tensor, and how it depends on those that share a norm.

    Where branches end in a layer with `joint_gradient`, the cotangents a_1, ..., a_n at their ends have
    `sum of a_i^2 <= norm^2`. A tensor further back then has a cotangent of norm at most `sum of slope_i a_i`, which is
    at most `sqrt(sum of slope_i^2) norm`: less than the sum of the branches' own bounds.
    """

    def __init__(self, bound, source=None, norm=None, slopes=None):
        self.bound, self.source, self.norm, self.slopes = bound, source, norm, slopes or {}

    def through(self, factor):
        """Bound behind a map that takes a cotangent of norm a to one of norm at most `factor(a)`."""
        bound = factor(self.bound)
        if self.source is None or (_scalars.is_constant(self.bound) and self.bound <= 0):
            return _Cotangent(bound)
        # Linear, or clipped at some norm: then the slope at 0 is the largest.
        slope = _scalars.maximum(factor(_TINY) / _TINY, bound / self.bound)
        return _Cotangent(bound, self.source, self.norm, {i: slope * s for i, s in self.slopes.items()})

    @staticmethod
    def total(parts):
        """Bound on the sum of cotangents that reach one tensor from several uses of it."""
        if len(parts) == 1:
            return parts[0]
        by_source = {}
        for part in parts:
            by_source.setdefault(part.source, []).append(part)
        sums = []
        for source, group in by_source.items():
            bound = sum(part.bound for part in group)
            if source is not None:
                slopes = {}
                for part in group:
                    for i, slope in part.slopes.items():
                        slopes[i] = slopes.get(i, 0.0) + slope
                joint = group[0].norm * _scalars.sqrt(sum(slope * slope for slope in slopes.values()))
                bound = _scalars.minimum(bound, joint)
                if len(by_source) == 1:
                    return _Cotangent(bound, source, group[0].norm, slopes)
            sums.append(bound)
        return _Cotangent(sum(sums))


# Where the slope of a clipped bound is taken: far below any clip value.
_TINY = 1e-30


def _input_bounds(calls):
    """The bounds of each call's inputs, in the order of the calls."""
    norms, before = {}, []
    for call in calls:
        input_bound = single([norms.get(name, math.inf) for name in call.inputs])
        outputs = several(call.layer.propagate_inputs(input_bound))
        for output_bound in outputs:
            if not output_bound <= LARGEST_ACTIVATION and not isinstance(call.layer, DP_InputLayer):
                _refuse(
                    f"{type(call.layer).__name__} '{call.layer.name}'",
                    f"an output norm of at most {LARGEST_ACTIVATION:g}",
                    f"{output_bound:g}",
                    "Lower the upper_bound of DP_BoundedInput: squares of activations must stay finite.",
                )
        norms.update(zip(call.outputs, outputs, strict=True))
        before.append(input_bound)
    return before


def gradient_bounds_in_force(model: keras.Model) -> dict[str, Bound]:
    """As `compute_gradient_bounds`, without its checks; scalar tensors where a clip value moves."""
    calls = model.layer_calls()
    reached = {calls[-1].outputs[0]: [_Cotangent(output_gradient_bound_in_force(model))]}
    bounds: dict[str, Bound] = {}
    for call, input_bound in zip(reversed(calls), reversed(_input_bounds(calls)), strict=True):
        at_outputs = [_Cotangent.total(reached.get(name) or [_Cotangent(0.0)]) for name in call.outputs]
        gradient = single([cotangent.bound for cotangent in at_outputs])
        for variable in call.layer.trainable_variables:
            key = variable_key(call.layer, variable)
            # The gradients of several uses of one layer add up.
            bounds[key] = bounds.get(key, 0.0) + call.layer.backpropagate_params(input_bound, gradient)
        for name, cotangent in zip(call.inputs, _at_inputs(call, input_bound, at_outputs), strict=True):
            reached.setdefault(name, []).append(cotangent)
    slack = rounding_slack(model.dataset_metadata.batch_size)
    return {key: bound * (1.0 + slack) for key, bound in bounds.items()}


def rounding_slack(batch_size: int) -> float:
    """What the bounds of a model include for rounding in single precision, relative: float."""
    return ROUNDING_SLACK * max(1.0, batch_size / _SLACK_BATCH) ** 1.5


def _at_inputs(call, input_bound, at_outputs):
    """The cotangents that one call sends back, one for each of its inputs."""
    layer, count = call.layer, len(call.inputs)
    if len(at_outputs) > 1:
        gradient = tuple(cotangent.bound for cotangent in at_outputs)
        return [_Cotangent(bound) for bound in several(layer.backpropagate_inputs(input_bound, gradient))]
    [cotangent] = at_outputs
    if layer.joint_gradient:
        bounds = several(layer.backpropagate_inputs(input_bound, cotangent.bound))
        return [_Cotangent(bounds[i], call.outputs[0], cotangent.bound, {i: 1.0}) for i in range(count)]
    return [
        cotangent.through(lambda bound, i=i: several(layer.backpropagate_inputs(input_bound, bound))[i])
        for i in range(count)
    ]


def compute_gradient_bounds(model: keras.Model) -> dict[str, float]:
    """Largest gradient that one example can cause, for each trainable variable.

    Args:
        model: a built and compiled `DP_Sequential` or `DP_Model`.

    Returns:
        dict, variable key -> float, ordered as `layers_backward_order()`. Each is the Euclidean norm for one example
        and for the sum over the batch: it is not divided by the batch size. Together they have norm
        `sqrt(sum of squares)` at most. A layer used several times has the sum of its uses' bounds. Includes the stated
        slack for rounding in single precision (1e-3, relative, and more in batches above 2,048: 2.3 % at 16,384).

    Raises:
        TypeError, ValueError: see `check_model`; also for a bound that is not positive and finite.
    """
    check_model(model)
    bounds = {key: float(bound) for key, bound in gradient_bounds_in_force(model).items()}
    for key, bound in bounds.items():
        if not math.isfinite(bound) or bound <= 0:
            _refuse(
                f"{type(model).__name__} '{model.name}'",
                "a positive and finite gradient bound for each variable",
                f"{bound} for {key!r}",
                "Check the upper_bound of DP_BoundedInput and the bounds of the layers between.",
            )
    order = [variable_key(layer, v) for layer in model.layers_backward_order() for v in layer.trainable_variables]
    return {key: bounds[key] for key in order}
