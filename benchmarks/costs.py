"""What a private step adds whatever its batch, part by part: CPU time on one core.

    python benchmarks/costs.py --output benchmarks/results/costs.json

The projection of each layer with a kernel, certificate included, and the noise of each model. Medians. (What accounting
costs is in `experiments/accounting`.)
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "workers")]
from worker import pin_to_one_core  # noqa: E402

pin_to_one_core()

import keras_worker  # noqa: E402
import run  # noqa: E402
import tensorflow as tf  # noqa: E402
import workloads  # noqa: E402

REPEATS = 15


def median_ms(function):
    """Median CPU time of a call in milliseconds, after two that trace and warm up."""
    for _ in range(2):
        function()
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return round(1e3 * statistics.median(seconds), 3)


def projection(layer):
    """Projects a kernel that an update moved, by 0.01 of the norm of a kernel with as many random entries."""
    noise = tf.random.stateless_normal(layer.kernel.shape, [0, 1]) / layer.kernel.shape[-1] ** 0.5
    moved = tf.Variable(layer.kernel.value + 0.01 * noise)
    return tf.function(lambda: layer.kernel.constraint(moved), autograph=False)


def model_costs(name):
    model = keras_worker.make_model("private", workloads.WORKLOADS[name], 256)
    stddevs = model.scales_in_force().noise_stddevs
    gradients = [tf.zeros(v.shape) for v in model.trainable_variables]
    noise = tf.function(lambda: model.add_noise(gradients, stddevs), autograph=False)
    kernels = [layer for layer in model.layers if hasattr(layer, "certified_norm")]
    return {
        "projection_ms": [
            {
                "layer": type(layer).__name__,
                "kernel": list(layer.kernel.shape),
                "ms": median_ms(projection(layer)),
            }
            for layer in kernels
        ],
        "noise_ms": median_ms(noise),
        "parameters": sum(int(tf.size(g)) for g in gradients),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    content = {"machine": run.machine(), "models": {}}
    for name in ("W1", "W2", "W3", "W4"):
        content["models"][name] = model_costs(name)
        print(name, content["models"][name], flush=True)
        if arguments.output:
            run.write(arguments.output, " ".join(["python", "benchmarks/costs.py", *sys.argv[1:]]), content)


if __name__ == "__main__":
    main()
