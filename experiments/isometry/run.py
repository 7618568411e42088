"""Gradient-to-noise inside a convolutional network on CIFAR-10, for two projections of its kernels; and their cost.

    LIPDP_DATA_DIR=... python experiments/isometry/run.py --output experiments/isometry/results/cifar10.json

Four 3x3 convolutions of stride 1 and two dense layers, trained privately for one epoch. `operator` is the library's
projection, towards isometries of images; `matrix` is the one it replaces, towards isometries of single windows. Both
end with a division by the same certificate. The ratio of an example is its gradient norm over the bound that the noise
is scaled to; it is the product of three shares, which say where it is lost: `input`, the norm of the layer's input over
its bound, `cotangent`, that of the gradient at its output, and `alignment`, the rest, lost where positions disagree.
Ratios are means over held-out examples, under the unclipped loss. Parts already in the output file are kept.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import sys
import time


@dataclasses.dataclass(frozen=True)
class Settings:
    """The network and its training; see `network` for its layers."""

    filters: int = 32
    pool_size: int = 4
    temperature: float = 8.0
    learning_rate: float = 0.03
    momentum: float = 0.9
    batch_size: int = 512
    epsilon: float = 8.0
    delta: float = 1e-5
    epochs_planned: int = 20
    strategy: str = "optimal"
    validation_fraction: float = 0.1
    examples: int = 256


# Image centred or not, projection. Centring takes away the mean colour, on which most positions agree.
ARMS = {
    "operator": {"projection": "operator", "centred": False},
    "matrix": {"projection": "matrix", "centred": False},
    "operator_centred": {"projection": "operator", "centred": True},
    "matrix_centred": {"projection": "matrix", "centred": True},
}
COSTS = ("none", "operator", "matrix", "none_again")


def convolution(projection, filters, name):
    from deel.lipdp import layers as dp

    class MatrixConvolution(dp.DP_QuickSpectralConv2D):
        """Projects as if windows did not overlap: the way before."""

        def _windows_overlap(self):
            return False

    cls = MatrixConvolution if projection == "matrix" else dp.DP_QuickSpectralConv2D
    return cls(filters, 3, padding="same", name=name)


def network(settings, projection, centred):
    """Layers, each of which keeps norms both ways where its kernel does: square, tiling, absolute values."""
    from deel.lipdp import layers as dp

    shape = (32, 32, 3)
    stack = [dp.DP_BoundedInput(math.sqrt(math.prod(shape)), input_shape=shape)]
    stack += [dp.DP_LayerCentering()] if centred else []
    stack += [dp.DP_NormalizeToBall(1.0), convolution(projection, settings.filters, "conv_0"), dp.DP_Abs()]
    stack += [dp.DP_ScaledL2NormPooling2D(settings.pool_size)]
    for index in (1, 2, 3):
        stack += [convolution(projection, settings.filters, f"conv_{index}"), dp.DP_Abs()]
    stack += [dp.DP_ScaledL2NormPooling2D(shape[0] // settings.pool_size), dp.DP_Flatten()]
    stack += [dp.DP_QuickSpectralDense(settings.filters, name="dense"), dp.DP_Abs()]
    return [*stack, dp.DP_QuickSpectralDense(10, name="logits")]


def build(settings, metadata, projection, centred=False, noise_multiplier=0.0):
    import keras

    from deel.lipdp.losses import DP_TauCategoricalCrossentropy
    from deel.lipdp.model import DP_Sequential
    from deel.lipdp.parameters import DPParameters

    model = DP_Sequential(
        network(settings, projection, centred),
        dp_parameters=DPParameters(settings.strategy, noise_multiplier, settings.delta),
        dataset_metadata=metadata,
    )
    model.compile(
        optimizer=keras.optimizers.SGD(settings.learning_rate, momentum=settings.momentum),
        loss=DP_TauCategoricalCrossentropy(settings.temperature),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def private(settings, metadata, projection, centred=False):
    """(model, joint noise multiplier) for the settings' epsilon, were it trained for all the epochs planned."""
    from deel.lipdp.accounting import calibrate_noise
    from deel.lipdp.noise import get_noise_multiplier_coefs, noise_multiplier_for

    n, epochs = metadata.nb_samples_train, settings.epochs_planned
    joint = calibrate_noise(settings.epsilon, settings.delta, settings.batch_size, n, epochs, accountant="pld")
    coefs = get_noise_multiplier_coefs(build(settings, metadata, projection, centred))
    multiplier = noise_multiplier_for(joint, settings.strategy, coefs)
    return build(settings, metadata, projection, centred, multiplier), joint


def per_example_norms(tensor):
    import numpy as np

    return np.linalg.norm(np.reshape(tensor, (len(tensor), -1)), axis=1)


def report(model, data):
    """Ratios of the signal-to-noise report, and the shares they are made of, by layer."""
    import numpy as np
    import tensorflow as tf

    ratios, norms, _ = model.signal_to_noise_elementwise(data)
    x, y = data
    with tf.GradientTape(persistent=True) as tape:
        values, outputs, bounds = tf.convert_to_tensor(x), {}, [math.inf]
        for layer in model.layers_forward_order():
            inputs, values = values, layer(values)
            bounds.append(layer.propagate_inputs(bounds[-1]))
            if layer.trainable_variables:
                outputs[layer] = (inputs, values, bounds[-2])
        losses = [model.loss_function(label[None], logits[None]) for label, logits in zip(y, values, strict=True)]
        loss = tf.add_n(losses)
    result, cotangent_bound = {}, model.loss.get_L()
    for layer in model.layers_backward_order():
        if layer in outputs:
            inputs, values, input_bound = outputs[layer]
            key = f"{layer.name}/kernel"
            input_norms, cotangents = per_example_norms(inputs), per_example_norms(tape.gradient(loss, values))
            most = layer.backpropagate_params(1.0, 1.0) * input_norms * cotangents
            result[layer.name] = {
                "ratio": ratios[key].mean(),
                "smallest_ratio": ratios[key].min(),
                "input": (input_norms / input_bound).mean(),
                "cotangent": (cotangents / cotangent_bound).mean(),
                "alignment": (norms[key] / np.maximum(most, 1e-30)).mean(),
            }
        cotangent_bound = layer.backpropagate_inputs(math.inf, cotangent_bound)
    return {name: {k: round(float(v), 4) for k, v in values.items()} for name, values in reversed(result.items())}


def train(settings, images, projection, centred):
    """One epoch; what held-out examples say before and after."""
    from deel.lipdp.privacy import get_eps_delta
    from deel.lipdp.sampling import poisson_batches

    (x, y), (x_held, y_held) = images.hold_out(settings.validation_fraction)
    model, joint = private(settings, metadata_of(settings, len(x), images.max_norm), projection, centred)
    batch = (x_held[: settings.examples], y_held[: settings.examples])
    before = report(model, batch)
    history = model.fit(poisson_batches(x, y, settings.batch_size), verbose=0).history
    held = model.evaluate(x_held, y_held, batch_size=1000, verbose=0, return_dict=True)
    return {
        "projection": projection,
        "centred": centred,
        "joint_noise_multiplier": round(joint, 6),
        "epsilon_spent": round(get_eps_delta(model, accountant="pld")[0], 4),
        "steps": model.dataset_metadata.nb_steps_per_epochs,
        "accuracy": {"train": round(history["accuracy"][-1], 4), "held_out": round(held["accuracy"], 4)},
        "certified_norms": {v.name: round(float(v.certified_norm()), 6) for v in model.layers if v.trainable_variables},
        "at_the_start": before,
        "after_one_epoch": report(model, batch),
    }


def metadata_of(settings, n, max_norm):
    from deel.lipdp.parameters import DatasetMetadata

    return DatasetMetadata((32, 32, 3), n, settings.batch_size, max_norm, nb_classes=10, sampling="poisson")


def stepper(settings, name):
    """A function that runs one compiled step; without projections for `none`, which is for this measurement only."""
    import numpy as np
    import tensorflow as tf

    from deel.lipdp.layers._kernel import UnitBall

    class Untouched(UnitBall):
        def __call__(self, kernel):
            return kernel

    rng = np.random.default_rng(0)
    x = rng.random((settings.batch_size, 32, 32, 3), dtype="float32")
    y = np.eye(10, dtype="float32")[rng.integers(0, 10, settings.batch_size)]
    projection = name if name in ("operator", "matrix") else "operator"
    model, _ = private(settings, metadata_of(settings, 45000, math.sqrt(3072.0)), projection)
    if name not in ("operator", "matrix"):
        for layer in model.layers:
            if layer.trainable_variables:
                layer.kernel.constraint = Untouched(layer)
    iterator = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    model.train_on_batch(x, y)
    model.make_train_function()
    return lambda: model.train_function(iterator)


def cost(settings, rounds):
    """CPU time of interleaved steps; call it on one core."""
    steps = {name: stepper(settings, name) for name in COSTS}
    times = {name: [] for name in COSTS}
    for name in list(COSTS) * 3:
        steps[name]()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    floor = statistics.median(times["none"] + times["none_again"])
    drift = abs(medians["none_again"] / medians["none"] - 1)
    return {
        "batch_size": settings.batch_size,
        "rounds": rounds,
        "cpu_ms": {name: round(value, 2) for name, value in medians.items()},
        "floor_drift": round(drift, 4),
        "valid": drift <= 0.05,
        "added": {name: round(medians[name] / floor - 1, 4) for name in ("operator", "matrix")},
        "raw_ms": {name: [round(value, 1) for value in values] for name, values in times.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=[*ARMS, "cost"], nargs="*", default=[*ARMS, "cost"])
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "cost" in arguments.only and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    from deel.lipdp.pipeline import load_images

    settings = Settings()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "settings": dataclasses.asdict(settings),
        "arms": {},
    }
    if arguments.output and arguments.output.exists():
        kept = json.loads(arguments.output.read_text(encoding="utf-8"))
        if kept["settings"] != result["settings"]:
            raise SystemExit(f"{arguments.output} was made with other settings: name another file.")
        result = kept

    def save():
        if arguments.output:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    if "cost" in arguments.only and "cost" not in result:
        result["cost"] = cost(settings, arguments.rounds)
        print(json.dumps({k: v for k, v in result["cost"].items() if k != "raw_ms"}), flush=True)
        save()
    for name in ARMS:
        if name in arguments.only and name not in result["arms"]:
            images = load_images("cifar10")
            result["arms"][name] = train(settings, images, **ARMS[name])
            rows = result["arms"][name]["after_one_epoch"].items()
            print(name, result["arms"][name]["accuracy"], {layer: row["ratio"] for layer, row in rows}, flush=True)
            save()


if __name__ == "__main__":
    main()
