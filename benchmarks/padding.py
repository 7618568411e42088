"""Poisson batches as they come, or padded to one size, with and without XLA: CPU time of a training step on one core.

    python benchmarks/padding.py --output benchmarks/results/padding.json

W2 of the benchmark on random images, trained by `fit`. Each round runs as many steps of each way; the first round, in
which everything is built and compiled, is kept apart. (Unpadded batches under XLA are left out: each new size is
compiled.)
"""

import argparse
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "workers")]
from worker import pin_to_one_core  # noqa: E402

pin_to_one_core()

import keras_worker  # noqa: E402
import numpy as np  # noqa: E402
import run  # noqa: E402
import workloads  # noqa: E402

from deel.lipdp.sampling import poisson_batches  # noqa: E402

WAYS = {  # padded, jit_compile
    "unpadded": (False, False),
    "padded": (True, False),
    "padded_xla": (True, True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="in a round")
    arguments = parser.parse_args()
    workload, examples = workloads.WORKLOADS["W2"], keras_worker.DATASET_SIZE
    rng = np.random.default_rng(0)
    x = rng.random((examples, *workload.input_shape), dtype="float32")
    y = np.eye(workload.num_classes, dtype="float32")[rng.integers(0, workload.num_classes, examples)]
    models = {
        way: keras_worker.make_model("private", workload, arguments.batch, jit_compile=jit_compile)
        for way, (_, jit_compile) in WAYS.items()
    }
    times = {way: [] for way in WAYS}
    for _ in range(1 + arguments.rounds):
        for way, (padded, _) in WAYS.items():
            batches = poisson_batches(x, y, arguments.batch, steps=arguments.steps, padded=padded)
            start = time.process_time()
            models[way].fit(batches, verbose=0)
            times[way].append((time.process_time() - start) / arguments.steps)
    result = {
        "machine": run.machine(),
        "batch_size": arguments.batch,
        "steps_in_a_round": arguments.steps,
        "cpu_s_of_a_step": {way: round(statistics.median(values[1:]), 4) for way, values in times.items()},
        "cpu_s_of_a_step_in_the_first_round": {way: round(values[0], 3) for way, values in times.items()},
        "raw_s": {way: [round(value, 4) for value in values] for way, values in times.items()},
    }
    print(result["cpu_s_of_a_step"])
    if arguments.output:
        run.write(arguments.output, " ".join(["python", "benchmarks/padding.py", *sys.argv[1:]]), result)


if __name__ == "__main__":
    main()
