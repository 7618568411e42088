"""The bounds of a whole model: a forward pass carries input norms, a backward pass carries gradient norms."""

import math

from deel.lipdp import _checks
from deel.lipdp.layers import DP_BoundedInput, DP_ClipGradient, DP_InputLayer, DPLayer

__all__ = ["check_model", "compute_gradient_bounds", "output_gradient_bound", "variable_key"]

# What rounding in single precision can add to one example's share of a summed gradient, relative to its bound: mostly
# the sum over the batch. A test takes one of 16,384 equal examples away, which 1e-5 does not cover and this does.
# Attacks that exploit the rounding itself are outside the proof.
ROUNDING_SLACK = 1e-3

# Squares of activations have to stay finite in single precision.
_LARGEST_ACTIVATION = 1e15

_PRECISIONS = ("float32", "float64")


def variable_key(layer, variable):
    """The name of a variable in every dict of bounds, coefficients and norms: `"<layer.name>/<variable.name>"`."""
    return f"{layer.name}/{variable.name}"


def _refuse(who, expected, received, remedy, error=ValueError):
    raise error(_checks.message(who, expected, received, remedy))


def _check_layer(layer):
    who = f"{type(layer).__name__} '{layer.name}'"
    if not isinstance(layer, DPLayer):
        _refuse(
            who,
            "a layer with bounds (a DPLayer)",
            f"a {type(layer).__module__}.{type(layer).__name__}",
            "Use its counterpart in deel.lipdp.layers, or write one: subclass DPLayer.",
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


def check_model(model):
    """Refuses a model whose gradients are not bounded by what its layers state.

    Raises:
        TypeError: for a layer without bounds.
        ValueError: for a model that does not start with `DP_BoundedInput`, a layer listed twice, two variables under
            one key, mixed precision, an activity regulariser, `add_loss`, or a trainable variable in no listed layer.
    """
    who = f"{type(model).__name__} '{model.name}'"
    layers = model.layers_forward_order()
    for layer in layers:
        _check_layer(layer)
    guards = [layer for layer in layers if not isinstance(layer, DP_InputLayer)]
    if not guards or not isinstance(guards[0], DP_BoundedInput):
        _refuse(
            who,
            "DP_BoundedInput as the first layer",
            f"{type(guards[0]).__name__ if guards else 'no layer'}",
            "Put DP_BoundedInput(upper_bound=...) first: nothing else bounds the data.",
        )
    shape = (None, *model.dataset_metadata.input_shape)
    for layer in layers:
        if isinstance(layer, DP_InputLayer) or not layer.built:
            continue
        built_for = tuple(layer.get_build_config()["input_shape"])
        if built_for[1:] != tuple(shape)[1:]:
            _refuse(
                f"{type(layer).__name__} '{layer.name}'",
                f"to be built for inputs of shape {tuple(shape)}, as the metadata and the layers before it say",
                f"built for {built_for}",
                "Make a new layer: its bounds hold for one shape.",
            )
        layer.check()
        shape = layer.compute_output_shape(shape)
    seen = set()
    for layer in layers:
        if id(layer) in seen:
            _refuse(
                who,
                "each layer once in the list",
                f"{type(layer).__name__} '{layer.name}' twice",
                "Make a second layer: the gradients of two uses add up, one bound does not cover them.",
            )
        seen.add(id(layer))
    keys = {}
    for layer in layers:
        for variable in layer.trainable_variables:
            key = variable_key(layer, variable)
            if key in keys:
                _refuse(who, "one variable for each key", f"two named {key!r}", "Rename a layer.")
            keys[key] = id(variable)
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


def output_gradient_bound(model):
    """Largest norm of one example's gradient at the model's output: the radius of the step's logit guard.

    The loss's Lipschitz constant, or the clip value of a `DP_ClipGradient` that ends the model if that is smaller.

    Raises:
        ValueError: if neither is known.
    """
    loss, last = getattr(model, "loss", None), model.layers_backward_order()[0]
    lipschitz = loss.get_L() if hasattr(loss, "get_L") else math.inf
    clip_value = last.clip_value if isinstance(last, DP_ClipGradient) else math.inf
    bound = float(min(lipschitz, clip_value))
    if not 0 < bound < math.inf:
        _refuse(
            f"{type(model).__name__} '{model.name}'",
            "a loss with a known Lipschitz constant (get_L)",
            "no compiled loss" if loss is None else f"loss={loss!r}",
            "Use a loss of deel.lipdp.losses, or end the model with DP_ClipGradient(clip_value).",
        )
    return bound


def compute_gradient_bounds(model):
    """Largest gradient that one example can cause, for each trainable variable.

    Args:
        model: a built and compiled `DP_Sequential` or `DP_Model`.

    Returns:
        dict, variable key -> float, ordered as `layers_backward_order()`. Each is the Euclidean norm for one example
        and for the sum over the batch: it is not divided by the batch size. Together they have norm
        `sqrt(sum of squares)` at most. Includes the stated slack for rounding in single precision (1e-3, relative).

    Raises:
        TypeError, ValueError: see `check_model`; also for a bound that is not positive and finite.
    """
    check_model(model)
    layers = model.layers_forward_order()
    input_bounds, bound = [], math.inf
    for layer in layers:
        input_bounds.append(bound)
        bound = layer.propagate_inputs(bound)
        if not bound <= _LARGEST_ACTIVATION:
            _refuse(
                f"{type(layer).__name__} '{layer.name}'",
                f"an output norm of at most {_LARGEST_ACTIVATION:g}",
                f"{bound:g}",
                "Lower the upper_bound of DP_BoundedInput: squares of activations must stay finite.",
            )
    gradient_bounds, gradient = {}, output_gradient_bound(model)
    for layer, input_bound in zip(reversed(layers), reversed(input_bounds), strict=True):
        for variable in layer.trainable_variables:
            value = float(layer.backpropagate_params(input_bound, gradient))
            if not math.isfinite(value) or value <= 0:
                _refuse(
                    f"{type(layer).__name__} '{layer.name}'",
                    "a positive and finite gradient bound",
                    f"{value} for {variable.name!r}",
                    "Check the upper_bound of DP_BoundedInput and the bounds of the layers between.",
                )
            gradient_bounds[variable_key(layer, variable)] = value * (1.0 + ROUNDING_SLACK)
        gradient = layer.backpropagate_inputs(input_bound, gradient)
    return gradient_bounds
