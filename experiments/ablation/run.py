"""What each lever is worth by itself: one change at a time to one private training, on a held-out tenth.

LIPDP_DATA_DIR=... python experiments/ablation/run.py

trains on nine tenths of Fashion-MNIST, from pixels, within epsilon 3; the test set is not read. It makes the first run
of every lever, then the second, writes each at once to `results/fashion_mnist.json`, and goes on where it stopped. The
base is the recipe at half its epochs and a rate of its own; no lever is tuned beyond the lines that stand here.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys

import keras
import post_processing

from deel.lipdp import layers
from deel.lipdp.bounds import compute_gradient_bounds
from deel.lipdp.dynamic import AdaptiveQuantileClipping
from deel.lipdp.initializers import FourierWaves
from deel.lipdp.model import DP_Sequential
from deel.lipdp.noise import noise_stddevs
from deel.lipdp.optimizers import LayerwiseSGD
from deel.lipdp.pipeline import load_images
from deel.lipdp.recipes import RECIPES, build_model
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.training_run import fit_recipe

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import study

RUNS, EPSILON = 2, 3.0
RECIPE = dataclasses.replace(RECIPES["fashion_mnist_pixels"], epochs=20, learning_rate=0.5)
RESULTS = pathlib.Path(__file__).parent / "results" / "fashion_mnist.json"
#: The layers of the network from pixels, in their order.
SLOTS = ("guard", "centring", "norm", "waves", "modulus", "second centring", "second norm", "flatten", "logits", "clip")


@dataclasses.dataclass(frozen=True)
class Lever:
    """A change of fields of the recipe, of the noise strategy, of layers by slot, of the optimizer, and of callbacks.

    Args:
        recipe: dict.
        strategy: str.
        slots: dict, slot -> callable `(recipe)` that gives the layers in its place.
        optimizer: callable `(schedule, factors, model)` that gives an optimizer.
        callbacks: callable `(batches)` that gives callbacks. What they release comes out of the same epsilon: training
            ends before the step that would exceed it.
    """

    recipe: dict = dataclasses.field(default_factory=dict)
    strategy: str = "optimal"
    slots: dict = dataclasses.field(default_factory=dict)
    optimizer: object = lambda schedule, factors, model: LayerwiseSGD(schedule, factors=factors, momentum=0.9)
    callbacks: object = lambda batches: []


def convolution(initializer="orthogonal", kernel_size=None, **changes):
    """The first layer, changed."""

    def slot(recipe):
        arguments = {"nm_coef": 1.0 / recipe.convolution_rate, "name": "waves", "padding": "same", **changes}
        size = kernel_size or recipe.kernel_size
        return [
            layers.DP_QuickSpectralConv2D(
                recipe.filters, size, strides=recipe.strides, kernel_initializer=initializer, **arguments
            )
        ]

    return slot


def nothing(recipe):
    return []


def hidden(recipe):
    dense = layers.DP_QuickSpectralDense(128, nm_coef=10.0, name="hidden")
    return [layers.DP_Flatten(), dense, layers.DP_Abs()]


def stddevs(model):
    """Of the noise on each mean gradient, in the order of the variables."""
    sums = noise_stddevs(model, compute_gradient_bounds(model))
    return [stddev / model.dataset_metadata.batch_size for stddev in sums.values()]


def averaged(schedule, factors, model):
    rate = schedule.initial_learning_rate
    return LayerwiseSGD(rate, factors=factors, momentum=0.9, use_ema=True, ema_momentum=0.95)


def shrunk(schedule, factors, model):
    return post_processing.ShrunkMomentum(schedule, factors=factors, momentum=0.9, stddevs=stddevs(model))


def adam(schedule, factors, model):
    return keras.optimizers.Adam(schedule)


def corrected_adam(schedule, factors, model):
    return post_processing.CorrectedAdam(schedule, stddevs=stddevs(model))


def orthogonal_momentum(schedule, factors, model):
    return post_processing.OrthogonalMomentum(schedule, factors={}, momentum=0.9)


LEVERS = {
    "base": Lever(),
    # the loss
    "clip at the logits 0.1": Lever({"clip_value": 0.1}),
    "clip at the logits 0.2": Lever({"clip_value": 0.2}),
    "clip at the logits 0.8": Lever({"clip_value": 0.8}),
    "no clip at the logits": Lever({"clip_value": 2.0**0.5}),
    "clip moves to the 0.8 quantile of the norms": Lever(
        slots={"clip": lambda recipe: [layers.DP_ClipGradient(recipe.clip_value, dynamic=True)]},
        callbacks=lambda batches: [AdaptiveQuantileClipping(batches, quantile=0.8, log_fn=lambda logs: None)],
    ),
    "temperature 40": Lever({"temperature": 40.0}),
    "temperature 80": Lever({"temperature": 80.0}),
    "temperature 320": Lever({"temperature": 320.0}),
    # the steps
    "batch 2048": Lever({"batch_size": 2048}),
    "batch 16384": Lever({"batch_size": 16384}),
    "10 epochs": Lever({"epochs": 10}),
    "40 epochs": Lever({"epochs": 40}),
    "half the rate": Lever({"learning_rate": 0.25}),
    "twice the rate": Lever({"learning_rate": 1.0}),
    "constant rate": Lever(optimizer=lambda s, f, m: LayerwiseSGD(s.initial_learning_rate, factors=f, momentum=0.9)),
    "constant rate, weights averaged": Lever(optimizer=averaged),
    "no momentum, ten times the rate": Lever(
        {"learning_rate": 5.0}, optimizer=lambda s, f, m: LayerwiseSGD(s, factors=f)
    ),
    # the network
    "image not centred": Lever(slots={"centring": nothing}),
    "image not scaled to norm 1": Lever(slots={"norm": nothing}),
    "moduli not centred": Lever(slots={"second centring": nothing}),
    "moduli not scaled to norm 1": Lever(slots={"second norm": nothing}),
    "moduli clipped to norm 0.5 instead of scaled": Lever(
        slots={"second norm": lambda recipe: [layers.DP_BoundedInput(0.5)]}
    ),
    "absolute values instead of moduli": Lever(slots={"modulus": lambda recipe: [layers.DP_Abs()]}),
    "first kernel starts orthogonal": Lever(slots={"waves": convolution()}),
    "first kernel starts orthogonal, rate factor 0.1": Lever({"convolution_rate": 0.1}, slots={"waves": convolution()}),
    "patches of 4 x 4 that do not overlap, orthogonal": Lever(slots={"waves": convolution(kernel_size=4)}),
    "last kernel held near an isometry": Lever(
        slots={"logits": lambda recipe: [layers.DP_QuickSpectralDense(10, name="logits")]}
    ),
    "a hidden layer of 128, rate factor 0.1": Lever(
        slots={"flatten": hidden},
        optimizer=lambda s, f, m: LayerwiseSGD(s, factors={**f, "hidden": 0.1}, momentum=0.9),
    ),
    # the first layer and the noise on it
    "first layer not trained": Lever(
        slots={"waves": convolution(FourierWaves(), trainable=False)},
        optimizer=lambda s, f, m: LayerwiseSGD(s, factors={}, momentum=0.9),
    ),
    "rate factor of the first layer 0.03": Lever({"convolution_rate": 0.03}),
    "rate factor of the first layer 0.1": Lever({"convolution_rate": 0.1}),
    "rate factor of the first layer 1": Lever({"convolution_rate": 1.0}),
    "least noise over all weights, whatever their rate": Lever(
        slots={"waves": convolution(FourierWaves(), nm_coef=1.0)}
    ),
    "one stddev for all weights": Lever(strategy="global"),
    # what comes after the noise
    "gradient on the tangent space, rate factor 0.1": Lever(
        {"convolution_rate": 0.1},
        optimizer=lambda s, f, m: post_processing.TangentSGD(s, factors=f, momentum=0.9),
    ),
    "singular values of the momentum shrunk": Lever(optimizer=shrunk),
}


# No factor on the rate of the first layer: it gets the noise that is least for all weights alike.
for name, rate, optimizer in (
    ("Adam", 0.001, adam),
    ("Adam", 0.0001, adam),
    ("corrected Adam", 0.001, corrected_adam),
    ("corrected Adam", 0.0001, corrected_adam),
    ("orthogonalised momentum", 0.02, orthogonal_momentum),
    ("orthogonalised momentum", 0.005, orthogonal_momentum),
):
    LEVERS[f"{name}, rate {rate:g}, no factors"] = Lever(
        {"learning_rate": rate}, slots={"waves": convolution(FourierWaves(), nm_coef=1.0)}, optimizer=optimizer
    )


def builder(lever):
    """A `build` of `fit_recipe` for the network and optimizer of a lever."""

    def build(recipe, dp_parameters, dataset_metadata):
        base = build_model(recipe, dp_parameters, dataset_metadata)
        stack = []
        for slot, layer in zip(SLOTS, base.layers, strict=True):
            if slot in lever.slots:
                stack += lever.slots[slot](recipe)
            else:
                stack.append(type(layer).from_config(layer.get_config()))
        model = DP_Sequential(stack, dp_parameters=dp_parameters, dataset_metadata=dataset_metadata)
        compiled = {"loss": base.loss, "metrics": ["accuracy"]}
        model.compile(keras.optimizers.SGD(), **compiled)  # the noise is asked of a compiled model
        schedule = keras.optimizers.schedules.deserialize(base.optimizer.get_config()["learning_rate"])
        model.compile(lever.optimizer(schedule, base.optimizer.factors, model), **compiled)
        return model

    return build


def train(lever, data):
    """Held-out accuracy of one training."""
    recipe = dataclasses.replace(RECIPE, **lever.recipe)
    (x, y), _ = data.hold_out(0.1)
    _, history = fit_recipe(
        recipe,
        EPSILON,
        data,
        delta=1e-5,
        strategy=lever.strategy,
        build=builder(lever),
        callbacks=lever.callbacks(poisson_batches(x, y, recipe.batch_size)),
    )
    return round(history["val_accuracy"][-1], 5)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levers", nargs="+", default=list(LEVERS), choices=list(LEVERS), metavar="NAME")
    names = parser.parse_args().levers
    data = load_images(RECIPE.dataset)
    data = dataclasses.replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    for run in range(RUNS):
        for name in names:
            result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"levers": {}}
            runs = result["levers"].get(name, {"runs": []})["runs"]
            if len(runs) > run:
                continue
            runs = [*runs, {"val_accuracy": train(LEVERS[name], data), "commit": study.commit()}]
            scores = [one["val_accuracy"] for one in runs]
            result["command"] = "python experiments/ablation/run.py"
            result["epsilon"], result["recipe"] = EPSILON, dataclasses.asdict(RECIPE)
            result["levers"][name] = {"val_accuracy_mean": round(statistics.mean(scores), 5), "runs": runs}
            study.write(RESULTS, json.dumps(result, indent=1) + "\n")
            print(name, scores, flush=True)


if __name__ == "__main__":
    main()
