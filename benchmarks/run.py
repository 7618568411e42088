"""CPU time and memory of a training step: plain Keras, lipdp, and its peers, interleaved on one core.

    python benchmarks/run.py --output benchmarks/results/steps.json
    python benchmarks/run.py --workloads W2 --batches 256 1024 --peers opacus

Every arm is a process of its own that takes one step at a time, in turn (`workers/worker.py`). Peers get a virtual
environment each under `benchmarks/.environments`, made when it is missing. The floor, plain Keras, runs twice: where
its two medians differ by more than 5 %, the row is void. An arm that fails, for want of memory for instance, is
recorded with the last line of its error.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).parent
FLOOR, FLOOR_AGAIN = "keras plain", "keras plain again"
LARGEST_DRIFT = 0.05


@dataclasses.dataclass(frozen=True)
class Framework:
    """One framework: its worker, the arms it has, and what its environment needs, one `pip install` after the other.

    No requirements means the environment that this script runs in.
    """

    worker: str
    arms: tuple
    requirements: tuple = ()


FRAMEWORKS = {
    "keras": Framework("keras_worker.py", ("plain", "plain again", "same_layers", "private")),
    "opacus": Framework(
        "opacus_worker.py", ("plain", "hooks", "ew", "ghost"), (("torch==2.13.0",), ("opacus==1.6.0", "numpy<3"))
    ),
    "tf_privacy": Framework(
        "tf_privacy_worker.py", ("plain", "dp_sequential"), (("tensorflow-cpu==2.15.1", "tensorflow-privacy==0.9.0"),)
    ),
    "jax": Framework("jax_worker.py", ("plain", "optax", "jax_privacy"), (("jax-privacy==2.0.0", "optax"),)),
}


def python_of(name):
    """The interpreter of a framework's environment, made if it is missing."""
    requirements = FRAMEWORKS[name].requirements
    if not requirements:
        return sys.executable
    folder = HERE / ".environments" / name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        for packages in requirements:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "complete").touch()
    return str(python)


class Arm:
    """A worker process. `failure` is the last line of its error, or None."""

    def __init__(self, name, python, workload, batch_size, memory):
        framework, arm = name.split(" ", 1)
        command = [python, HERE / "workers" / FRAMEWORKS[framework].worker, arm.removesuffix(" again")]
        self.name, self.seconds, self.peak_mb, self.failure, self.versions = name, [], None, None, None
        self._process = subprocess.Popen(
            [*map(str, command), workload, str(batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory)),
        )

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            errors = [line for line in self._process.stderr.read().splitlines() if line.strip()]
            self.failure = (errors or [f"ended with status {self._process.wait()}"])[-1][:300]
        return json.loads(line) if line else None

    def await_ready(self):
        answer = self._answer()
        self.versions = answer and answer["versions"]

    def step(self):
        if self.failure is not None:
            return
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer:
            self.seconds.append(answer["cpu_s"])
            self.peak_mb = answer["peak_mb"]

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.stderr.close()
        self._process.kill()
        self._process.wait()


def measure(names, pythons, workload, batch_size, rounds, memory):
    """One row of the result: every arm's median, ratio to the floor, peak memory and raw times."""
    arms = []
    try:
        for name in names:  # one after the other, so that none warms up beside another
            arms.append(Arm(name, pythons[name.split(" ")[0]], workload, batch_size, memory))
            arms[-1].await_ready()
        for _ in range(rounds):
            for arm in arms:
                arm.step()
    finally:
        for arm in arms:
            arm.close()
    medians = {arm.name: statistics.median(arm.seconds) for arm in arms if arm.failure is None}
    floors = [medians[name] for name in (FLOOR, FLOOR_AGAIN) if name in medians]
    drift = abs(floors[0] / floors[1] - 1) if len(floors) == 2 else None
    return {
        "workload": workload,
        "batch_size": batch_size,
        "floor_drift": drift,
        "valid": drift is not None and drift <= LARGEST_DRIFT,
        "arms": {
            arm.name: {"failure": arm.failure}
            if arm.failure is not None
            else {
                "cpu_s": medians[arm.name],
                "ratio_to_plain": medians[arm.name] / statistics.mean(floors) if floors else None,
                "peak_mb": round(arm.peak_mb, 1),
                "versions": arm.versions,
                "raw_s": [round(value, 5) for value in arm.seconds],
            }
            for arm in arms
        },
    }


def print_row(row):
    print(f"{row['workload']} batch {row['batch_size']}{'' if row['valid'] else '  VOID'}")
    for name, arm in row["arms"].items():
        if arm.get("failure") is not None:
            print(f"  {name:18s} {arm['failure'][:90]}")
        else:
            print(f"  {name:18s} {arm['cpu_s']:9.4f} s  {arm['ratio_to_plain']:7.2f} x  {arm['peak_mb']:8.0f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3", "W4"])
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 1024, 4096])
    parser.add_argument("--peers", nargs="*", default=[name for name in FRAMEWORKS if name != "keras"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory-gib", type=float, default=8.0, help="limit of each process")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    frameworks = ["keras", *arguments.peers]
    pythons = {name: python_of(name) for name in frameworks}
    names = [f"{name} {arm}" for name in frameworks for arm in FRAMEWORKS[name].arms]
    rows = []
    for workload in arguments.workloads:
        for batch_size in arguments.batches:
            memory = int(arguments.memory_gib * 2**30)
            rows.append(measure(names, pythons, workload, batch_size, arguments.rounds, memory))
            print_row(rows[-1])
            if arguments.output:
                result = {"command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]), "rows": rows}
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
