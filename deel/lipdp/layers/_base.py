"""What every layer of the library states: three bounds on Euclidean norms, each for one example."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deel.lipdp import _checks
from deel.lipdp._types import Bound

if TYPE_CHECKING:
    from keras.layers import Layer as _Layer
else:
    _Layer = object  # a mixin, which each subclass puts before a Keras class of its own

__all__ = ["DPLayer", "NonExpansive", "who_is_made"]


def who_is_made(layer, kwargs):
    """Class and name, for messages, of a layer in the making; Keras has not named it yet if the caller did not."""
    return type(layer).__name__ + (f" '{kwargs['name']}'" if kwargs.get("name") else "")


def _says_nothing(layer, method):
    return TypeError(
        _checks.message(
            f"{type(layer).__name__} '{layer.name}'",
            f"a method {method}",
            "a layer that does not define it",
            "Derive the bound and define it: there is no safe default.",
        )
    )


class DPLayer(_Layer):
    """Mixin of a Keras layer that knows its worst case. A layer that says nothing is refused.

    Subclasses list it before the Keras class and define the three methods; a layer without trainable variables needs
    only the first two. Bounds are Python floats (`gradient_bound` may be a float64 scalar tensor: it is one behind a
    clip value that moves, so methods multiply and add it and nothing else). A layer with several inputs or outputs has
    a tuple of bounds in place of one.
    """

    #: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
    nm_coef = 1.0

    #: bool, for a layer with several inputs: whether the cotangents at all of them together have at most the norm of
    #: the output's cotangent.
    joint_gradient = False

    # Any below: subclasses take and return one bound, or a tuple of them for several inputs or outputs.

    def propagate_inputs(self, input_bound: Any) -> Any:
        """Bound on the output norm when the input norm is at most `input_bound`."""
        raise _says_nothing(self, "propagate_inputs(input_bound)")

    def backpropagate_inputs(self, input_bound: Any, gradient_bound: Any) -> Any:
        """Bound on the cotangent at the input when the cotangent at the output is at most `gradient_bound`."""
        raise _says_nothing(self, "backpropagate_inputs(input_bound, gradient_bound)")

    def backpropagate_params(self, input_bound: Any, gradient_bound: Any) -> Bound:
        """Bound on the gradient of the layer's one trainable variable."""
        raise _says_nothing(self, "backpropagate_params(input_bound, gradient_bound)")

    def perturbation_bound(self, inputs: Any, radius: Any) -> Any:
        """Bound on how far the output moves when the input moves by at most `radius`, near given examples.

        What bounds a cotangent everywhere bounds a Jacobian, and with it a difference of outputs, if gradients are true
        ones: in exact arithmetic, and not of a layer with a gradient of its own making. Layers that are steep near 0
        only override this, and those of several inputs or outputs have to.

        Args:
            inputs: tensor (batch, ...), the examples; a tuple for several inputs.
            radius: float64 array (batch,), Euclidean norms; a tuple for several inputs.

        Returns:
            float64 array (batch,), or a tuple for several outputs.
        """
        if isinstance(radius, tuple):
            raise _says_nothing(self, "perturbation_bound(inputs, radius)")
        return self.backpropagate_inputs(math.inf, 1.0) * radius

    def check(self) -> None:
        """Raises `ValueError` if something the bounds rest on was changed since construction. Runs before training."""

    def restore_constraints(self) -> None:
        """Brings every constrained variable that is outside its set back into it."""
        for variable in self.variables:
            constraint = getattr(variable, "constraint", None)
            if constraint is not None:
                variable.assign(getattr(constraint, "restore", constraint)(variable))

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        super().load_own_variables(store)
        self.restore_constraints()

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        super().set_weights(weights)
        self.restore_constraints()

    def has_parameters(self) -> bool:
        """Whether the layer holds trainable variables (it has to be built)."""
        return bool(self.trainable_variables)


class NonExpansive(DPLayer):
    """The explicit claim: 1-Lipschitz, zero at zero, no parameters, examples not mixed.

    Bounds: output at most `input_bound`, cotangent at most `gradient_bound`.
    """

    def propagate_inputs(self, input_bound: float) -> float:
        return input_bound

    def backpropagate_inputs(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return gradient_bound
