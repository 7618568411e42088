"""Dense layers whose kernel has a spectral norm of at most 1, certified or by its Frobenius norm."""

from typing import Any

import keras
from keras import ops

from deel.lipdp import _linalg
from deel.lipdp._traced import traced_once
from deel.lipdp._types import Activation, Bound, Initializer, Tensor
from deel.lipdp.layers._kernel import ContractiveKernel, SpectralKernel, UnitBall

__all__ = ["DP_ContractiveDense", "DP_QuickFrobeniusDense", "DP_QuickSpectralDense", "DP_SpectralDense"]

_matrix_norm_bound = traced_once(_linalg.matrix_norm_bound)
_norm_is_at_most_one = traced_once(_linalg.norm_is_at_most_one)
_isometry_step = traced_once(_linalg.isometry_step)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_QuickSpectralDense(SpectralKernel, keras.layers.Dense):
    """Dense layer without bias, 1-Lipschitz: `y = x W` with `||W|| <= 1` certified from above.

    Args:
        units: int, size of the output.
        activation: None or the name of a 1-Lipschitz activation that is zero at zero (`"relu"`, `"tanh"`, ...).
        kernel_initializer: as in Keras; `"orthogonal"` starts with every singular value at 1.
        kernel_regularizer: as in Keras. Its gradient does not depend on data and is added after the noise.
        nm_coef: float > 0, how much noise this layer bears beside the others; see `DPParameters`.
        **kwargs: other arguments of `keras.layers.Dense`; `use_bias=True` is refused.

    Input shape: `(batch, ..., features)`, any number of leading positions.
    Output shape: `(batch, ..., units)`.

    Bounds: Euclidean norms, one example. Output at most `input_bound` and cotangent at most `gradient_bound`, since
    `||W|| <= 1`. Kernel gradient at most `input_bound * gradient_bound`: it is the sum over positions of `x_p^T g_p`,
    of norm at most `sum ||x_p|| ||g_p||`, then Cauchy-Schwarz. Attained when x and g are rank-one over positions.

    Raises:
        ValueError: for a bias, an activation without a known constant, or a constraint of one's own.
    """

    def __init__(
        self,
        units: int,
        activation: Activation = None,
        *,
        kernel_initializer: Initializer = "orthogonal",
        **kwargs: Any,
    ) -> None:
        kwargs = self._check_arguments({"activation": activation, **kwargs})
        super().__init__(units, kernel_initializer=kernel_initializer, **kwargs)
        self.kernel_constraint = UnitBall(self)

    def _operator_norm_bound(self, kernel):
        return _matrix_norm_bound(kernel)

    def certified_norm(self, kernel: Tensor | None = None) -> Tensor:
        kernel = ops.convert_to_tensor(self.kernel if kernel is None else kernel)
        bound = super().certified_norm(kernel)
        # Kernels that took an isometry step have norms just below 1, which only the sharpest certificate finds.
        return ops.where(_norm_is_at_most_one(kernel), ops.minimum(bound, 1.0), bound)

    def project(self, kernel: Tensor) -> Tensor:
        kernel = ops.convert_to_tensor(kernel)
        result, certain = _isometry_step(kernel)
        return ops.cond(certain, lambda: result, lambda: super(DP_QuickSpectralDense, self).project(kernel))

    def backpropagate_params(self, input_bound: float, gradient_bound: Bound) -> Bound:
        return input_bound * gradient_bound


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_SpectralDense(DP_QuickSpectralDense):
    """`DP_QuickSpectralDense` with more orthogonalisation steps after each update.

    Its singular values stay closer to 1, at a higher price per step. The bounds and their proof are the same.
    """

    orthogonalization_steps = 10

    def project(self, kernel: Tensor) -> Tensor:
        return SpectralKernel.project(self, kernel)


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_QuickFrobeniusDense(DP_QuickSpectralDense):
    """`DP_QuickSpectralDense` whose kernel is only divided by its Frobenius norm: the cheapest update of all.

    For one unit, or one input, that is all there is to do. With more, the singular values share a norm of 1, so signal
    and gradient shrink by up to `sqrt(min(features, units))`, and the bounds do not: prefer `DP_QuickSpectralDense`.

    Args, input shape, output shape: those of `DP_QuickSpectralDense`.

    Bounds: those of `DP_QuickSpectralDense`, since `||W|| <= ||W||_F <= 1`. Attained by kernels of rank one.

    Raises:
        ValueError: for a bias, an activation without a known constant, or a constraint of one's own.
    """

    def _operator_norm_bound(self, kernel):
        return _linalg.euclidean_norm_bound(kernel)

    def certified_norm(self, kernel: Tensor | None = None) -> Tensor:
        return SpectralKernel.certified_norm(self, kernel)

    def project(self, kernel: Tensor) -> Tensor:
        return SpectralKernel.project(self, kernel)

    def _orthogonalize(self, kernel):
        return kernel  # the division by the norm is all


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_ContractiveDense(ContractiveKernel, DP_QuickSpectralDense):
    """`DP_QuickSpectralDense` whose kernel is left as it is while its certified norm is at most 1, else divided by it.

    For the last layer, above all of a linear model: its kernel may start at zero and grow as far as the data carry it,
    where the other dense layers hold every singular value near 1 and so the noise of each step at full size. Between
    other layers small singular values shrink signal and gradient, and the bounds do not: prefer `DP_QuickSpectralDense`
    there.

    Args, input shape, output shape: those of `DP_QuickSpectralDense`; `kernel_initializer` is `"zeros"`.

    Bounds: those of `DP_QuickSpectralDense`, since `||W|| <= 1`.

    Raises:
        ValueError: for a bias, an activation without a known constant, or a constraint of one's own.
    """

    def __init__(
        self, units: int, activation: Activation = None, *, kernel_initializer: Initializer = "zeros", **kwargs: Any
    ) -> None:
        super().__init__(units, activation, kernel_initializer=kernel_initializer, **kwargs)
