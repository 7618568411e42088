"""What a private training step costs over plain Keras: CPU time, interleaved in one process on one core; and memory.

    python experiments/step_cost/run.py --output experiments/step_cost/results/step_cost.json

Three models of the quick start's shape (two 3x3 convolutions of 32 and 64 filters on 28x28 images, pooling, one dense
layer): `plain` (ReLU, max pooling, no privacy), `same_layers` (group sort and L2-norm pooling, trained by Keras's own
step without projection) and `private`. Each round times one step of each; the floor is timed twice. Peak memory is
measured in a fresh process for each model.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

BATCHES = (256, 1024)
SHAPE = (28, 28, 1)
NUM_CLASSES = 10


def build(name, batch_size):
    import keras

    from deel.lipdp import layers as dp
    from deel.lipdp.losses import DP_TauCategoricalCrossentropy
    from deel.lipdp.model import DP_Sequential
    from deel.lipdp.parameters import DatasetMetadata, DPParameters

    loss = DP_TauCategoricalCrossentropy(10.0)
    optimizer = keras.optimizers.SGD(1e-2, momentum=0.9)
    if name.startswith("plain"):
        stack = [keras.Input(SHAPE)]
        for filters in (32, 64):
            stack += [keras.layers.Conv2D(filters, 3, use_bias=False), keras.layers.ReLU(), keras.layers.MaxPooling2D()]
        stack += [keras.layers.Flatten(), keras.layers.Dense(NUM_CLASSES, use_bias=False)]
        model = keras.Sequential(stack)
    elif name == "same_layers":
        stack = [keras.Input(SHAPE)]
        for filters in (32, 64):
            conv = keras.layers.Conv2D(filters, 3, use_bias=False)
            stack += [conv, dp.DP_GroupSort(2), dp.DP_ScaledL2NormPooling2D()]
        stack += [keras.layers.Flatten(), keras.layers.Dense(NUM_CLASSES, use_bias=False)]
        model = keras.Sequential(stack)
    else:
        stack = [dp.DP_BoundedInput(28.0, input_shape=SHAPE)]
        for filters in (32, 64):
            stack += [dp.DP_QuickSpectralConv2D(filters, 3), dp.DP_GroupSort(2), dp.DP_ScaledL2NormPooling2D()]
        stack += [dp.DP_Flatten(), dp.DP_QuickSpectralDense(NUM_CLASSES)]
        parameters = DPParameters("local", 1.0, 1e-5)
        metadata = DatasetMetadata(SHAPE, 60000, batch_size, 28.0, nb_classes=NUM_CLASSES)
        model = DP_Sequential(stack, dp_parameters=parameters, dataset_metadata=metadata)
    model.compile(optimizer=optimizer, loss=loss, jit_compile=False)
    return model


def batch(batch_size):
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.random((batch_size, *SHAPE), dtype="float32")
    return x, np.eye(NUM_CLASSES, dtype="float32")[rng.integers(0, NUM_CLASSES, batch_size)]


def stepper(name, batch_size):
    """A function that runs one compiled training step, without Keras's Python around it."""
    import tensorflow as tf

    model = build(name, batch_size)
    iterator = iter(tf.data.Dataset.from_tensors(batch(batch_size)).repeat())
    model.train_on_batch(*batch(batch_size))  # builds everything
    model.make_train_function()
    return lambda: model.train_function(iterator)


def cpu_times(names, batch_size, rounds):
    steps = {name: stepper(name, batch_size) for name in names}
    times = {name: [] for name in names}
    for _ in range(3):
        for step in steps.values():
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    return times


def peak_memory(name, batch_size):
    """Peak resident memory of a fresh process, over what it held before its first step, in MB."""
    command = [sys.executable, __file__, "--memory", name, "--batch", str(batch_size)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1])


def measure_memory(name, batch_size):
    import resource

    def resident():
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    build(name, batch_size)  # imports and code are loaded
    before = resident()
    step = stepper(name, batch_size)
    for _ in range(5):
        step()
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--memory")
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if arguments.memory:
        measure_memory(arguments.memory, arguments.batch)
        return
    names = ("plain", "same_layers", "private", "plain_again")
    result = {"command": "python experiments/step_cost/run.py", "rounds": arguments.rounds, "batches": {}}
    for batch_size in BATCHES:
        times = cpu_times(names, batch_size, arguments.rounds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        drift = abs(medians["plain_again"] / medians["plain"] - 1)
        floor = statistics.median(times["plain"] + times["plain_again"])
        memory = {name: peak_memory(name, batch_size) for name in ("plain", "private")}
        result["batches"][batch_size] = {
            "cpu_ms": {name: round(value, 2) for name, value in medians.items()},
            "floor_drift": round(drift, 4),
            "valid": drift <= 0.05,
            "ratio_private_to_plain": round(medians["private"] / floor, 3),
            "ratio_same_layers_to_plain": round(medians["same_layers"] / floor, 3),
            "added_memory_mb": {name: round(value, 1) for name, value in memory.items()},
            "memory_ratio": round(memory["private"] / memory["plain"], 3),
            "raw_ms": {name: [round(value, 2) for value in values] for name, values in times.items()},
        }
        print(json.dumps({k: v for k, v in result["batches"][batch_size].items() if k != "raw_ms"}))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
