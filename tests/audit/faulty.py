"""Small models whose bounds their examples nearly attain, and the ways to break them that every audit is tried on."""

import dataclasses

import doubles
import keras
import numpy as np

from deel.lipdp.layers import (
    DP_BoundedInput,
    DP_ClipGradient,
    DP_Flatten,
    DP_GlobalAveragePooling2D,
    DP_QuickSpectralConv2D,
    DP_QuickSpectralDense,
)
from deel.lipdp.model import DP_Sequential

LABELS = np.eye(doubles.NUM_CLASSES, dtype="float32")
DELTA = 1e-4


class UnderstatedConv2D(DP_QuickSpectralConv2D):
    """States a bound that is `factor` times what it should be."""

    factor = 1.0
    orthogonalization_steps = _steps_at_build = 0  # the kernel is only scaled: models and graphs are made faster

    def backpropagate_params(self, input_bound, gradient_bound):
        return self.factor * super().backpropagate_params(input_bound, gradient_bound)


class UnderstatedDense(DP_QuickSpectralDense):
    """States a bound that is `factor` times what it should be."""

    factor = 1.0
    orthogonalization_steps = 0

    def backpropagate_params(self, input_bound, gradient_bound):
        return self.factor * super().backpropagate_params(input_bound, gradient_bound)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong: factors of the noise that is added and of the bounds that are stated."""

    noise: float = 1.0
    conv_bound: float = 1.0
    bounds_over_batch_size: bool = False


SOUND = Fault()
FAULTS = {
    "noise halved": Fault(noise=0.5),
    "bounds divided by the batch size": Fault(bounds_over_batch_size=True),
    "convolution bound times 1/3": Fault(conv_bound=1 / 3),
}


def _overlapping(conv, dense):
    """Cotangents are the same at all pixels, so that a constant image attains the bound of the convolution."""
    return [conv(4, 3, padding="same", name="conv"), DP_GlobalAveragePooling2D(), dense(doubles.NUM_CLASSES)]


def _whole_image(conv, dense):
    """One window: every gradient is image times cotangent, so that many examples have long ones and unlike."""
    return [conv(doubles.NUM_CLASSES, doubles.SHAPE[0], name="conv"), DP_Flatten()]


def build(
    fault=SOUND,
    body=_overlapping,
    weights=None,
    cls=DP_Sequential,
    n=32,
    batch_size=8,
    noise_multiplier=2.0,
    noise_seed=0,
    last=(),
    loss=None,
    optimizer=None,
):
    """A compiled model, always the same. Its noise is seeded, so that no test fails by chance; nothing else changes."""
    keras.utils.set_random_seed(0)
    everywhere = 1 / batch_size if fault.bounds_over_batch_size else 1.0

    def conv(*args, **kwargs):
        layer = UnderstatedConv2D(*args, **kwargs)
        layer.factor = fault.conv_bound * everywhere
        return layer

    def dense(units):
        layer = UnderstatedDense(units, name="dense")
        layer.factor = everywhere
        return layer

    built = doubles.model(
        [
            DP_BoundedInput(doubles.UPPER_BOUND, input_shape=doubles.SHAPE),
            *body(conv, dense),
            *(last or [DP_ClipGradient(0.3)]),
        ],
        cls=cls,
        n=n,
        batch_size=batch_size,
        optimizer=optimizer or keras.optimizers.SGD(0.01),
        loss=loss,
        strategy="optimal",
        noise_multiplier=noise_multiplier,
        delta=DELTA,
        noise_seed=noise_seed,
    )
    if fault.noise != 1.0:
        add_noise = built.add_noise
        built.add_noise = lambda gradients, stddevs: add_noise(gradients, [fault.noise * s for s in stddevs])
    if weights is not None:
        built.set_weights(weights)
    return built


def build_whole_image(**kwargs):
    """`build` of the model with many unlike canaries."""
    return build(body=_whole_image, **kwargs)
