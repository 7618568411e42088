"""Settings that work out of the box, as data, and the model they describe. `lipdp train` starts from them."""

import dataclasses

import keras

from deel.lipdp import layers
from deel.lipdp.features import SceneFeatures, StrokeFeatures
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Sequential

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

    With a front end the network is one linear layer on its features. Without one it works on pixels: the image is
    centred and scaled to norm 1, so that every example uses the whole input bound; a convolution, the absolute value
    and L2-norm pooling follow, then dense layers.

    Args:
        dataset: str, see `load_images`.
        epochs: int, passes' worth of steps.
        batch_size: int, expected size of a Poisson batch.
        front_end: a key of `FRONT_ENDS`.
        learning_rate: float, first value; it falls linearly to 0.
        momentum: float in [0, 1).
        temperature: float > 0, of the loss.
        clip_value: float > 0, clip of each example's gradient at the logits.
        kernel_size, strides, filters: int, of the convolution; its padding is "same".
        pool_size: int, side of a pooling window; 1 for no pooling.
        hidden_units: tuple of int, the dense layers before the logits.
    """

    dataset: str
    epochs: int
    batch_size: int
    front_end: str | None = None
    learning_rate: float = 1.0
    momentum: float = 0.9
    temperature: float = 40.0
    clip_value: float = 0.3
    kernel_size: int = 5
    strides: int = 2
    filters: int = 16
    pool_size: int = 2
    hidden_units: tuple = (128,)


# Chosen on held-out parts of the training sets. From pixels, Fashion-MNIST and CIFAR-10 take over MNIST's.
_PIXELS = {"epochs": 20, "batch_size": 2048}
_FEATURES = {"epochs": 40, "batch_size": 8192, "learning_rate": 0.28, "temperature": 160.0, "clip_value": 0.4}
RECIPES = {
    "digits": Recipe("digits", epochs=60, batch_size=256, kernel_size=2, pool_size=1, hidden_units=(64,)),
    "mnist": Recipe("mnist", front_end="strokes", **_FEATURES),
    "fashion_mnist": Recipe("fashion_mnist", front_end="scenes_in_place", **_FEATURES),
    "cifar10": Recipe("cifar10", front_end="scenes", **_FEATURES),
    "mnist_pixels": Recipe("mnist", **_PIXELS),
    "fashion_mnist_pixels": Recipe("fashion_mnist", **_PIXELS),
    "cifar10_pixels": Recipe("cifar10", **_PIXELS),
}


def build_model(recipe, dp_parameters, dataset_metadata):
    """Builds and compiles the model of a recipe.

    Args:
        recipe: `Recipe`.
        dp_parameters: `DPParameters`.
        dataset_metadata: `DatasetMetadata` of images `(rows, cols, channels)`, or of the front end's features.

    Returns:
        A compiled `DP_Sequential`.
    """
    stack = [layers.DP_BoundedInput(dataset_metadata.max_norm, input_shape=dataset_metadata.input_shape)]
    if recipe.front_end is None:
        stack += [*_pixel_network(recipe), layers.DP_QuickSpectralDense(dataset_metadata.nb_classes, name="logits")]
    else:
        stack.append(layers.DP_ContractiveDense(dataset_metadata.nb_classes, name="logits"))
    stack.append(layers.DP_ClipGradient(recipe.clip_value))
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


def _pixel_network(recipe):
    stack = [
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
    return stack
