"""Settings that work out of the box, as data, and the model they describe. `lipdp train` starts from them."""

import dataclasses

import keras

from deel.lipdp import layers
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Sequential

__all__ = ["RECIPES", "Recipe", "build_model"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A network from pixels and how to train it.

    The image is centred and scaled to norm 1, so that every example uses the whole input bound. A convolution, the
    absolute value and L2-norm pooling follow, then dense layers.

    Args:
        epochs: int, passes' worth of steps.
        batch_size: int, expected size of a Poisson batch.
        learning_rate: float, first value; it falls linearly to 0.
        momentum: float in [0, 1).
        temperature: float > 0, of the loss.
        clip_value: float > 0, clip of each example's gradient at the logits.
        kernel_size, strides, filters: int, of the convolution; its padding is "same".
        pool_size: int, side of a pooling window; 1 for no pooling.
        hidden_units: tuple of int, the dense layers before the logits.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 1.0
    momentum: float = 0.9
    temperature: float = 40.0
    clip_value: float = 0.3
    kernel_size: int = 5
    strides: int = 2
    filters: int = 16
    pool_size: int = 2
    hidden_units: tuple = (128,)


# Chosen on MNIST and digits, on held-out parts of their training sets; the other two take over MNIST's.
_IMAGES = Recipe(epochs=20, batch_size=2048)
RECIPES = {
    "digits": Recipe(epochs=60, batch_size=256, kernel_size=2, pool_size=1, hidden_units=(64,)),
    "mnist": _IMAGES,
    "fashion_mnist": _IMAGES,
    "cifar10": _IMAGES,
}


def build_model(recipe, dp_parameters, dataset_metadata):
    """Builds and compiles the model of a recipe.

    Args:
        recipe: `Recipe`.
        dp_parameters: `DPParameters`.
        dataset_metadata: `DatasetMetadata` of images `(rows, cols, channels)`.

    Returns:
        A compiled `DP_Sequential`.
    """
    stack = [
        layers.DP_BoundedInput(dataset_metadata.max_norm, input_shape=dataset_metadata.input_shape),
        layers.DP_LayerCentering(),
        layers.DP_NormalizeToBall(1.0),
        layers.DP_QuickSpectralConv2D(
            recipe.filters, recipe.kernel_size, strides=recipe.strides, padding="same", name="conv"
        ),
        layers.DP_Abs(),
    ]
    if recipe.pool_size > 1:
        stack.append(layers.DP_ScaledL2NormPooling2D(recipe.pool_size))
    stack.append(layers.DP_Flatten())
    for index, units in enumerate(recipe.hidden_units):
        stack += [layers.DP_QuickSpectralDense(units, name=f"dense_{index}"), layers.DP_Abs()]
    stack += [
        layers.DP_QuickSpectralDense(dataset_metadata.nb_classes, name="logits"),
        layers.DP_ClipGradient(recipe.clip_value),
    ]
    model = DP_Sequential(stack, dp_parameters=dp_parameters, dataset_metadata=dataset_metadata)
    schedule = keras.optimizers.schedules.PolynomialDecay(
        recipe.learning_rate,
        decay_steps=recipe.epochs * dataset_metadata.nb_steps_per_epochs,
        end_learning_rate=0.0,
    )
    model.compile(
        optimizer=keras.optimizers.SGD(schedule, momentum=recipe.momentum),
        loss=DP_TauCategoricalCrossentropy(recipe.temperature),
        metrics=["accuracy"],
    )
    return model
