"""Settings that work out of the box, as data, and the model they describe. `lipdp train` starts from them."""

import dataclasses
from typing import Any, cast

import keras

from deel.lipdp import _checks, layers
from deel.lipdp.features import SceneFeatures, StrokeFeatures
from deel.lipdp.initializers import FourierWaves
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Sequential
from deel.lipdp.optimizers import LayerwiseSGD
from deel.lipdp.parameters import DatasetMetadata, DPParameters

__all__ = ["FRONT_ENDS", "RECIPES", "Recipe", "build_model"]


#: What a recipe may compute once for each image before the training, by name; see `deel.lipdp.features`.
FRONT_ENDS = {
    None: (),
    "scenes": (SceneFeatures(grid=2, mirrored=True),),
    "scenes_in_place": (SceneFeatures(grid=4, mirrored=False),),
    "strokes": (StrokeFeatures(),),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A data set, a network and how to train it.

    With a front end the network is one linear layer on its features. Without one it works on pixels, and every layer is
    trained: a convolution that starts from waves under a window, the modulus of each, then the linear layer. Image and
    moduli are centred and scaled to norm 1, so that every example uses the whole bound of the linear layer.

    Args:
        dataset: str, see `load_images`.
        epochs: int, passes' worth of steps.
        batch_size: int, expected size of a Poisson batch.
        front_end: a key of `FRONT_ENDS`.
        learning_rate: float, first value; it falls linearly to 0.
        momentum: float in [0, 1).
        temperature: float > 0, of the loss.
        clip_value: float > 0, clip of each example's gradient at the logits.
        kernel_size, strides, filters: int, of the convolution; its padding is "same". See `FourierWaves` for filters.
            None with a front end.
        convolution_rate: float > 0, factor on the learning rate of the convolution; see `LayerwiseSGD`. None with a
            front end.
        photographs: bool, whether waves make up for what photographs are made of: they are the weaker the lower their
            frequency, and those of colours three times as strong. Moduli are then centred all together, since how
            strong a wave is tells something. Of no account with a front end.
    """

    dataset: str
    epochs: int
    batch_size: int
    front_end: str | None = None
    learning_rate: float = 0.28
    momentum: float = 0.9
    temperature: float = 160.0
    clip_value: float = 0.4
    kernel_size: int | None = None
    strides: int | None = None
    filters: int | None = None
    convolution_rate: float | None = None
    photographs: bool = False


# Chosen on held-out parts of the training sets.
_LARGE: dict[str, Any] = {"epochs": 40, "batch_size": 8192}
_WAVES: dict[str, Any] = {"kernel_size": 8, "strides": 4, "filters": 46, "convolution_rate": 0.003}
RECIPES = {
    "digits": Recipe("digits", 15, 256, learning_rate=0.1, **_WAVES | {"kernel_size": 4, "strides": 2, "filters": 10}),
    "mnist": Recipe("mnist", front_end="strokes", **_LARGE),
    "fashion_mnist": Recipe("fashion_mnist", front_end="scenes_in_place", **_LARGE),
    "cifar10": Recipe("cifar10", front_end="scenes", **_LARGE),
    "mnist_pixels": Recipe("mnist", **_LARGE, **_WAVES | {"kernel_size": 10, "strides": 3, "filters": 82}),
    "fashion_mnist_pixels": Recipe("fashion_mnist", **_LARGE, **_WAVES),
    "cifar10_pixels": Recipe(
        "cifar10", **_LARGE, **_WAVES | {"filters": 150, "convolution_rate": 3e-4}, photographs=True
    ),
}


def build_model(recipe: Recipe, dp_parameters: DPParameters, dataset_metadata: DatasetMetadata) -> DP_Sequential:
    """Builds and compiles the model of a recipe.

    Args:
        recipe: `Recipe`.
        dp_parameters: `DPParameters`.
        dataset_metadata: `DatasetMetadata` of images `(rows, cols, channels)`, or of the front end's features.

    Returns:
        A compiled `DP_Sequential`.
    """
    stack = [layers.DP_BoundedInput(dataset_metadata.max_norm, input_shape=dataset_metadata.input_shape)]
    factors = {}
    if recipe.front_end is None:
        stack += _waves(recipe)
        factors["waves"] = cast(float, recipe.convolution_rate)  # checked above
    stack.append(layers.DP_ContractiveDense(cast(int, dataset_metadata.nb_classes), name="logits"))
    stack.append(layers.DP_ClipGradient(recipe.clip_value))
    model = DP_Sequential(stack, dp_parameters=dp_parameters, dataset_metadata=dataset_metadata)
    schedule = keras.optimizers.schedules.PolynomialDecay(
        recipe.learning_rate,
        decay_steps=recipe.epochs * dataset_metadata.nb_steps_per_epochs,
        end_learning_rate=0.0,
    )
    model.compile(
        optimizer=LayerwiseSGD(schedule, factors=factors, momentum=recipe.momentum),
        loss=DP_TauCategoricalCrossentropy(recipe.temperature),
        metrics=["accuracy"],
    )
    return model


def _waves(recipe):
    """From pixels to the strength of waves around positions."""
    rate = _checks.number("Recipe", "convolution_rate", recipe.convolution_rate, above=0.0)
    # Moduli of a smaller norm than the last are not scaled up to 1: the convolution's gradient bound is divided by it.
    convolution, waves, centred, smallest_norm = (
        (layers.DP_ContractiveConv2D, FourierWaves(exponent=1.0, contrast=3.0), (1, 2, 3), 0.05)
        if recipe.photographs
        else (layers.DP_QuickSpectralConv2D, FourierWaves(), None, 0.2)
    )
    return [
        layers.DP_LayerCentering(),
        layers.DP_NormalizeToBall(1.0),
        convolution(
            recipe.filters,
            recipe.kernel_size,
            strides=recipe.strides,
            padding="same",
            kernel_initializer=waves,
            nm_coef=1.0 / rate,
            name="waves",
        ),
        layers.DP_Modulus(),
        layers.DP_LayerCentering(centred),
        layers.DP_NormalizeToBall(1.0, minimum_norm=smallest_norm),
        layers.DP_Flatten(),
    ]
