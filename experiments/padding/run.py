"""Poisson batches as they come, or padded to one size, with and without XLA: what a training step takes.

    python experiments/padding/run.py --output experiments/padding/results/padding.json

The quick start's network on random images of MNIST's shape, trained by `fit` on one core. Each round runs as many steps
of each way; the first round, in which everything is built and compiled, is kept apart. (Unpadded batches under XLA are
left out: each new size is compiled.)
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

SHAPE = (28, 28, 1)
NUM_CLASSES = 10
EXAMPLES = 60_000
WAYS = {  # padded, jit_compile
    "unpadded": (False, False),
    "padded": (True, False),
    "padded_xla": (True, True),
}


def build(batch_size, jit_compile):
    import keras

    from deel.lipdp import layers as dp
    from deel.lipdp.losses import DP_TauCategoricalCrossentropy
    from deel.lipdp.model import DP_Sequential
    from deel.lipdp.parameters import DatasetMetadata, DPParameters

    stack = [dp.DP_BoundedInput(28.0, input_shape=SHAPE)]
    for filters in (32, 64):
        stack += [dp.DP_QuickSpectralConv2D(filters, 3), dp.DP_GroupSort(2), dp.DP_ScaledL2NormPooling2D()]
    model = DP_Sequential(
        [*stack, dp.DP_Flatten(), dp.DP_QuickSpectralDense(NUM_CLASSES)],
        dp_parameters=DPParameters("local", 1.0, 1e-5),
        dataset_metadata=DatasetMetadata(SHAPE, EXAMPLES, batch_size, 28.0, nb_classes=NUM_CLASSES),
    )
    optimizer = keras.optimizers.SGD(1e-2, momentum=0.9)
    model.compile(optimizer=optimizer, loss=DP_TauCategoricalCrossentropy(10.0), jit_compile=jit_compile)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="in a round")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import numpy as np

    from deel.lipdp.sampling import poisson_batches

    rng = np.random.default_rng(0)
    x = rng.random((EXAMPLES, *SHAPE), dtype="float32")
    y = np.eye(NUM_CLASSES, dtype="float32")[rng.integers(0, NUM_CLASSES, EXAMPLES)]
    models = {way: build(arguments.batch, jit_compile) for way, (_, jit_compile) in WAYS.items()}
    times = {way: [] for way in WAYS}
    for _ in range(1 + arguments.rounds):
        for way, (padded, _) in WAYS.items():
            batches = poisson_batches(x, y, arguments.batch, steps=arguments.steps, padded=padded)
            start = time.process_time()
            models[way].fit(batches, verbose=0)
            times[way].append((time.process_time() - start) / arguments.steps)
    result = {
        "command": " ".join(["python", "experiments/padding/run.py", *sys.argv[1:]]),
        "batch_size": arguments.batch,
        "steps_in_a_round": arguments.steps,
        "cpu_s_of_a_step": {way: round(statistics.median(values[1:]), 4) for way, values in times.items()},
        "cpu_s_of_a_step_in_the_first_round": {way: round(values[0], 3) for way, values in times.items()},
        "raw_s": {way: [round(value, 4) for value in values] for way, values in times.items()},
    }
    print(json.dumps({name: value for name, value in result.items() if name != "raw_s"}))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
