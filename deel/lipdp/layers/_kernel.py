"""What layers with a kernel share: argument checks, the projection of the kernel, and the certificate of its norm."""

from typing import Any, cast

import keras
import numpy as np
from keras import ops

from deel.lipdp import _checks, _linalg
from deel.lipdp._traced import traced_once
from deel.lipdp._types import Bound, Shape, Tensor
from deel.lipdp.layers._base import DPLayer, who_is_made

__all__ = ["OUTPUT_ACTIVATIONS", "ContractiveKernel", "SpectralKernel", "UnitBall", "orthogonalize"]

# 1-Lipschitz and zero at zero, so that the layer's bounds hold after them.
_ACTIVATIONS = {
    None: None,
    "linear": None,
    "relu": "relu",
    "tanh": "tanh",
    "softsign": "softsign",
    "hard_tanh": "hard_tanh",
}

#: What makes probabilities of logits, which the losses do themselves.
OUTPUT_ACTIVATIONS = ("log_softmax", "sigmoid", "softmax")

_EPS32 = float(np.finfo("float32").eps)

orthogonalize = traced_once(_linalg.orthogonalize)


class UnitBall(keras.constraints.Constraint):
    """Projects a kernel into the set of kernels whose certified norm is at most 1, as a fixed function of the
    kernel."""

    def __init__(self, layer):
        self._layer = layer

    def __call__(self, kernel):
        return self._layer.project(kernel)

    def restore(self, kernel):
        """The kernel itself if its certificate allows it, else its projection."""
        kernel = ops.convert_to_tensor(kernel)
        certified = self._layer.certified_norm(kernel) <= 1.0
        return ops.where(certified, kernel, self._layer.project(kernel))


class SpectralKernel(DPLayer):
    """Mixin for layers whose one variable is a kernel of certified norm at most 1. Listed before the Keras class.

    The kernel is orthogonalised and then divided by an upper bound on its norm: at build, after each optimizer step
    (Keras applies the constraint of the variable), and after weights are loaded or set.

    Subclasses define `_operator_norm_bound(kernel)` and set `orthogonalization_steps`, or define `_orthogonalize`.
    """

    orthogonalization_steps = 3
    #: Kernels of a norm up to this are not divided by it.
    largest_norm_kept = 0.0
    #: Spatial axes of the kernel; Keras's convolutions say theirs.
    rank = 0

    def _check_arguments(self, kwargs):
        """Checks the Keras arguments that could break a bound; returns those to pass on."""
        who = who_is_made(self, kwargs)
        if kwargs.pop("use_bias", False):
            raise ValueError(
                _checks.message(
                    who,
                    "use_bias=False, since the gradient of a bias is not bounded by its input",
                    "use_bias=True",
                    "Leave use_bias unset and add DP_AddBias as a layer of its own.",
                )
            )
        activation = kwargs.get("activation")
        name = getattr(activation, "__name__", activation)
        known = _checks.choice(
            who,
            "activation",
            name,
            _ACTIVATIONS,
            remedy="Leave it out: the losses take logits."
            if name in OUTPUT_ACTIVATIONS
            else "Add the activation as a layer of its own, one with bounds such as DP_GroupSort.",
        )
        if callable(activation) and activation is not keras.activations.get(name):
            raise ValueError(
                _checks.message(
                    who,
                    f"activation to be one of Keras's own {[k for k in _ACTIVATIONS if k]}",
                    f"a function named {name!r}",
                    "Pass the name, or add the activation as a layer of its own.",
                )
            )
        kwargs["activation"] = known
        for name in ("kernel_constraint", "depthwise_constraint", "activity_regularizer", "lora_rank"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(
                    _checks.message(
                        who,
                        f"no {name}, which would void the layer's bounds",
                        f"{name} set",
                        "Leave it unset; a regularizer of the kernel is fine.",
                    )
                )
        self.nm_coef = _checks.number(who, "nm_coef", kwargs.pop("nm_coef", 1.0), above=0.0)
        return {**kwargs, "use_bias": False}

    def check(self) -> None:
        constraint = getattr(self.kernel, "constraint", None)
        known = [keras.activations.get(name) for name in _ACTIVATIONS]
        if self.activation not in known or self.use_bias or not isinstance(constraint, UnitBall):
            raise ValueError(
                _checks.message(
                    f"{type(self).__name__} '{self.name}'",
                    "the activation, bias and kernel constraint it was made with",
                    f"activation={self.activation!r}, use_bias={self.use_bias}, kernel constraint {constraint!r}",
                    "Make a new layer instead of changing one: its bounds rest on them.",
                )
            )

    def _operator_norm_bound(self, kernel):
        """Certified upper bound, as a float64 tensor that broadcasts against the kernel: one number, or one for each
        part of a kernel whose parts share no input and no output."""
        raise NotImplementedError

    def certified_norm(self, kernel: Tensor | None = None) -> Tensor:
        """Certified upper bound on the norm of the layer's linear map, as a scalar float64 tensor.

        Args:
            kernel: tensor or None (the layer's own kernel).
        """
        return ops.max(self._operator_norm_bound(self.kernel if kernel is None else kernel))

    def _orthogonalize(self, kernel):
        """Moves a kernel, or each of a batch, towards an isometry, to any norm. A kernel of zeros stays as it is."""
        matrices = ops.reshape(kernel, (*kernel.shape[: -2 - self.rank], -1, kernel.shape[-1]))
        return ops.reshape(orthogonalize(matrices, self.orthogonalization_steps), kernel.shape)

    def project(self, kernel: Tensor) -> Tensor:
        """Orthogonalises the kernel and divides it by a certified bound on its norm.

        Singular values close to 1 keep activations and gradients at full norm, which makes the bounds nearly attained;
        the division is what makes them hold. A kernel of zeros stays as it is.
        """
        kernel = self._orthogonalize(ops.convert_to_tensor(kernel))
        shape = kernel.shape
        norm = self._operator_norm_bound(kernel)
        # Rounding the quotient moves each entry by eps/2 at most, hence the norm by less than eps * sqrt(entries per
        # output or input, the fewer); twice that keeps the certificate of the rounded kernel at most 1.
        margin = 1.0 + 2.0 * _EPS32 * float(np.sqrt(np.prod(shape) / max(shape[-2], shape[-1])))
        # A norm that is no number is not kept either.
        divisor = ops.where(norm <= self.largest_norm_kept, ops.ones_like(norm), norm * margin)
        return ops.cast(ops.cast(kernel, "float64") / divisor, kernel.dtype)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.kernel.assign(self.project(self.kernel))

    def propagate_inputs(self, input_bound: float) -> float:
        return input_bound

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return gradient_bound

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("kernel_constraint", "depthwise_constraint", "bias_constraint", "activity_regularizer"):
            config.pop(name, None)
        return {**config, "nm_coef": self.nm_coef}


class ContractiveKernel:
    """Mixin, listed before the layer it changes: the kernel is left as it is while its certified norm is at most 1."""

    largest_norm_kept = 1.0

    def project(self, kernel: Tensor) -> Tensor:
        return SpectralKernel.project(cast(SpectralKernel, self), kernel)  # of the layer that this is mixed into

    def _orthogonalize(self, kernel):
        # Its singular values are what is learned. No entry of a contraction is above 1; larger ones could overflow in
        # the certificate.
        return kernel / ops.maximum(ops.max(ops.abs(kernel)), 1.0)
