"""Ways to treat a noisy gradient that did not make it into the library: what comes after the noise is free."""

import keras
from keras import ops

from deel.lipdp.optimizers import LayerwiseSGD


class CorrectedAdam(keras.optimizers.Adam):
    """Adam whose second moment is that of the gradient without the noise, whose variance is known.

    Tang, Shpilevskiy, Lecuyer: DP-AdamBC (2024). `stddevs` are those of the noise, in the order of the variables.
    """

    def __init__(self, *args, stddevs, floor=1e-8, **kwargs):
        super().__init__(*args, **kwargs)
        self._variances, self._floor = [s * s for s in stddevs], floor

    def update_step(self, gradient, variable, learning_rate):
        index, step = self._get_variable_index(variable), ops.cast(self.iterations + 1, variable.dtype)
        mean, square = self._momentums[index], self._velocities[index]
        self.assign(mean, self.beta_1 * mean + (1.0 - self.beta_1) * gradient)
        self.assign(square, self.beta_2 * square + (1.0 - self.beta_2) * gradient * gradient)
        first = mean / (1.0 - ops.power(self.beta_1, step))
        second = square / (1.0 - ops.power(self.beta_2, step)) - self._variances[index]
        self.assign_sub(variable, learning_rate * first / ops.sqrt(ops.maximum(second, self._floor)))


class _MomentumOfMatrices(LayerwiseSGD):
    """SGD with momentum whose step is a function of the momentum, as a matrix with a column for each output."""

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        momentum = self.momentums[index]
        self.assign(momentum, self.momentum * momentum + gradient)
        matrix = ops.reshape(ops.convert_to_tensor(momentum), (-1, variable.shape[-1]))
        rate = learning_rate * self._factors[index]
        self.assign_sub(variable, rate * ops.reshape(self._direction(matrix, index), variable.shape))


class OrthogonalMomentum(_MomentumOfMatrices):
    """Each step has all its singular values at 1: Jordan's Muon (2024), with an exact decomposition."""

    def _direction(self, matrix, index):
        left, _, right = ops.svd(matrix, full_matrices=False)
        return left @ right


class ShrunkMomentum(_MomentumOfMatrices):
    """Singular values less what noise of the known stddev alone would give the largest, at most, in squares."""

    def __init__(self, *args, stddevs, **kwargs):
        super().__init__(*args, **kwargs)
        self._stddevs = stddevs

    def _direction(self, matrix, index):
        left, values, right = ops.svd(matrix, full_matrices=False)
        rows, cols = matrix.shape
        stddev = self._stddevs[index] / (1.0 - self.momentum**2) ** 0.5
        shrunk = ops.sqrt(ops.maximum(values**2 - (stddev * (rows**0.5 + cols**0.5)) ** 2, 0.0))
        return (left * shrunk) @ right


class TangentSGD(LayerwiseSGD):
    """Gradients of kernels that are close to an isometry, less the part that would only change its singular values."""

    def apply(self, grads, trainable_variables=None):
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        super().apply([_tangent(g, v) if len(v.shape) == 4 else g for g, v in zip(grads, variables, strict=True)])


def _tangent(gradient, variable):
    kernel = ops.reshape(ops.convert_to_tensor(variable), (-1, variable.shape[-1]))
    kernel = kernel / ops.norm(kernel, axis=0, keepdims=True)
    matrix = ops.reshape(gradient, kernel.shape)
    product = ops.transpose(kernel) @ matrix
    return ops.reshape(matrix - kernel @ (product + ops.transpose(product)) / 2.0, variable.shape)
