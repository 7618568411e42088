"""Certified accuracy on CIFAR-10 at epsilon 8 of a private linear layer on a scattering transform.

    LIPDP_DATA_DIR=... python experiments/certified/run.py --output experiments/certified/results/cifar10.json

Radii are Euclidean norms of the change of an image whose pixels are in [0, 1]; certificates are of the whole network,
from the image on. Three independent runs on the whole training set; the test set is read once, after the last step of
each. With `--held-out` a tenth of the training set takes its place, to choose settings.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys

import keras

from deel.lipdp import DP_Accountant, DP_Sequential, DPParameters, layers
from deel.lipdp.accounting import calibrate_noise
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.pipeline import DatasetMetadata, load_images
from deel.lipdp.robustness import certified_accuracy
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.statement import privacy_report

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import study

DELTA = 1e-5
RADII = [0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 36 / 255, 72 / 255, 108 / 255]


def front_end():
    return [
        layers.DP_Scattering2D(scales=2, angles=4),
        layers.DP_LayerCentering((1, 2, 3)),
        layers.DP_NormalizeToBall(1.0),
    ]


def private_model(layer_list, metadata, noise_multiplier):
    parameters = DPParameters("optimal", noise_multiplier, DELTA)
    guard = layers.DP_BoundedInput(metadata.max_norm, input_shape=metadata.input_shape)
    return DP_Sequential([guard, *layer_list], dp_parameters=parameters, dataset_metadata=metadata)


def one_run(images, features, arguments):
    """Trains the head on features; certifies the whole network, from the image on."""
    (x, y), (x_test, y_test) = (features.x_train, features.y_train), (images.x_test, images.y_test)
    if arguments.held_out:
        (x, y), _ = features.hold_out(0.1)
        _, (x_test, y_test) = images.hold_out(0.1)
    metadata = DatasetMetadata(
        input_shape=x.shape[1:],
        nb_samples_train=len(x),
        batch_size=arguments.batch_size,
        max_norm=features.max_norm,
        nb_classes=10,
        sampling="poisson",
    )
    joint = calibrate_noise(arguments.epsilon, DELTA, arguments.batch_size, len(x), arguments.epochs, accountant="pld")
    head = [layers.DP_Flatten(), layers.DP_ContractiveDense(10), layers.DP_ClipGradient(arguments.clip_value)]
    model = private_model(head, metadata, joint * (1.0 + 1e-12))
    steps = arguments.epochs * metadata.nb_steps_per_epochs
    rate = keras.optimizers.schedules.PolynomialDecay(arguments.learning_rate, steps, 0.0)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), DP_TauCategoricalCrossentropy(arguments.temperature))
    sampler = poisson_batches(x, y, arguments.batch_size)
    model.fit(sampler, epochs=arguments.epochs, verbose=0, callbacks=[DP_Accountant(accountant="pld")])

    facts = dataclasses.replace(metadata, input_shape=images.x_train.shape[1:], max_norm=images.max_norm)
    last = layers.DP_ContractiveDense(10)
    whole = private_model([*front_end(), layers.DP_Flatten(), last], facts, 1.0)
    last.kernel.assign(head[1].kernel)
    certified = certified_accuracy(whole, x_test, y_test, RADII)
    return {
        "certified_accuracy": {f"{round(255 * r)}/255": float(a) for r, a in zip(RADII, certified, strict=True)},
        "privacy": privacy_report(model),
        "commit": study.commit(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=160.0)
    parser.add_argument("--clip-value", type=float, default=0.4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--tried-before", type=int, help="trainings looked at, on the held-out tenth")
    parser.add_argument("--cache-dir", help="folder for features, as private as the images")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    images = load_images("cifar10")
    features = load_images("cifar10", front_end=front_end(), cache_dir=arguments.cache_dir)
    runs = []
    for _ in range(arguments.runs):
        runs.append(one_run(images, features, arguments))
        print(runs[-1]["certified_accuracy"], runs[-1]["privacy"]["epsilon"], flush=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "certified_accuracy_mean": {
            radius: round(statistics.mean(run["certified_accuracy"][radius] for run in runs), 5)
            for radius in runs[0]["certified_accuracy"]
        },
        "epsilon_pld_max": max(run["privacy"]["epsilon_pld"] for run in runs),
        "delta": DELTA,
        "runs_tried_before": arguments.tried_before,
        "runs": runs,
    }
    if arguments.output:
        study.write(arguments.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
