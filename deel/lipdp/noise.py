"""How much noise each variable gets: one table from strategy to coefficients, one place that divides by the batch
size."""

import math
from collections.abc import Mapping, Sequence

import keras

from deel.lipdp import _checks, _scalars
from deel.lipdp._types import Bound, Strategy, Tensor
from deel.lipdp.bounds import compute_gradient_bounds, variable_key
from deel.lipdp.parameters import STRATEGIES

__all__ = [
    "get_noise_multiplier_coefs",
    "global_noisify",
    "joint_noise_multiplier",
    "local_noisify",
    "noise_multiplier_for",
]


def _variables(model):
    """(key, layer, variable) of each trainable variable, in forward order."""
    for layer in model.layers_forward_order():
        for variable in layer.trainable_variables:
            yield variable_key(layer, variable), layer, variable


def _layer_coefs(model, gradient_bounds):
    return {key: layer.nm_coef for key, layer, _ in _variables(model)}


def _global_coefs(model, gradient_bounds):
    # One stddev for all: multiplier * sqrt(sum of bounds^2), written as a multiple of each variable's own bound.
    norm = _scalars.sqrt(sum(bound * bound for bound in gradient_bounds.values()))
    return {key: norm / gradient_bounds[key] for key, _, _ in _variables(model)}


def _optimal_coefs(model, gradient_bounds):
    # Least noise energy sum d_k (s_k / c_k)^2 at a given joint multiplier, c_k the layer's nm_coef: s_k^2 proportional
    # to c_k Delta_k / sqrt(d_k) (Lagrange). The sum of 1 / coef^2 is that of weight / total, 1 whatever c_k.
    weights = {
        key: gradient_bounds[key] * math.sqrt(math.prod(variable.shape)) / layer.nm_coef
        for key, layer, variable in _variables(model)
    }
    total = sum(weights.values())
    return {key: _scalars.sqrt(total / weight) for key, weight in weights.items()}


_COEFS = {"per-layer": _layer_coefs, "global": _global_coefs, "optimal": _optimal_coefs}


def get_noise_multiplier_coefs(
    model: keras.Model, gradient_bounds: Mapping[str, Bound] | None = None
) -> dict[str, Bound]:
    """Factor of each variable's noise multiplier under the model's strategy.

    The noise on the summed gradient of variable k has stddev `noise_multiplier * coef_k * bound_k`.

    Args:
        model: a built and compiled `DP_Sequential` or `DP_Model`.
        gradient_bounds: dict from `compute_gradient_bounds`, computed when None.

    Returns:
        dict, variable key -> float, ordered as `layers_forward_order()`. For `"per-layer"` it is the layers' `nm_coef`.
    """
    bounds = compute_gradient_bounds(model) if gradient_bounds is None else gradient_bounds
    return _COEFS[model.dp_parameters.noisify_strategy](model, bounds)


def _relative_precision(nm_coefs):
    return math.sqrt(sum(1.0 / coef**2 for coef in nm_coefs.values()))


def joint_noise_multiplier(model: keras.Model, gradient_bounds: Mapping[str, Bound] | None = None) -> float:
    """Noise multiplier of the one Gaussian mechanism that a step is: what an accountant sees.

    Scaling each variable's gradient by its noise turns the step into one Gaussian mechanism of sensitivity
    `sqrt(sum of 1 / (multiplier * coef_k)^2)` and stddev 1. For `"global"` and `"optimal"` it is the user's multiplier.
    """
    parameters = model.dp_parameters
    if parameters.noisify_strategy != "per-layer":  # exact: both tables have relative precision 1
        return parameters.noise_multiplier
    coefs = get_noise_multiplier_coefs(model, gradient_bounds)
    return parameters.noise_multiplier / _relative_precision(coefs)


def noise_multiplier_for(joint: float, strategy: Strategy, nm_coefs: Mapping[str, float]) -> float:
    """The `noise_multiplier` to declare so that the joint one is `joint`.

    Args:
        joint: float >= 0, from `calibrate_noise`.
        strategy: a strategy of `DPParameters`.
        nm_coefs: dict from `get_noise_multiplier_coefs`.

    Returns:
        float.

    Raises:
        TypeError: for an unknown strategy.
    """
    strategy = _checks.choice("noise_multiplier_for", "strategy", strategy, STRATEGIES, error=TypeError)
    joint = _checks.number("noise_multiplier_for", "joint", joint, at_least=0.0)
    return joint * _relative_precision(nm_coefs) if strategy == "per-layer" else joint


def noise_stddevs(model, gradient_bounds, nm_coefs=None):
    """Stddev of the noise on the summed gradient, dict by variable key (not divided by the batch size).

    `nm_coefs` are those of the model's strategy unless given.
    """
    nm_coefs = nm_coefs or get_noise_multiplier_coefs(model, gradient_bounds)
    multiplier = model.dp_parameters.noise_multiplier
    return {key: multiplier * coef * gradient_bounds[key] for key, coef in nm_coefs.items()}


def _noisify(model, stddevs, trainable_vars, gradients):
    keys = {id(variable): key for key, _, variable in _variables(model)}
    batch_size = model.dataset_metadata.batch_size
    scales = [stddevs[keys[id(variable)]] / batch_size for variable in trainable_vars]
    return model.add_noise(gradients, scales)


def local_noisify(
    model: keras.Model,
    gradient_bounds: Mapping[str, Bound],
    trainable_vars: Sequence[keras.Variable],
    gradients: Sequence[Tensor],
) -> list[Tensor]:
    """Adds to each gradient noise in proportion to its own bound. Every call draws fresh noise; it is not counted.

    Args:
        model: a `DP_Sequential` or `DP_Model`, for its multiplier, coefficients and batch size B.
        gradient_bounds: dict from `compute_gradient_bounds`: for the sum, not divided by B.
        trainable_vars: list of variables.
        gradients: list of tensors in the order of `trainable_vars`: sum over the batch divided by B.

    Returns:
        list of tensors in the order of `trainable_vars`: gradient plus noise of stddev
        `noise_multiplier * coef * bound / B`.
    """
    return _noisify(model, noise_stddevs(model, gradient_bounds), trainable_vars, gradients)


def global_noisify(
    model: keras.Model,
    gradient_bounds: Mapping[str, Bound],
    trainable_vars: Sequence[keras.Variable],
    gradients: Sequence[Tensor],
) -> list[Tensor]:
    """As `local_noisify`, with one stddev for all: `noise_multiplier * sqrt(sum of bounds^2) / B`."""
    stddevs = noise_stddevs(model, gradient_bounds, _global_coefs(model, gradient_bounds))
    return _noisify(model, stddevs, trainable_vars, gradients)
