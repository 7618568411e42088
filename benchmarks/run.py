"""CPU time and memory of a training step: plain Keras, lipdp, and its peers, interleaved on one core.

    make bench                                                   # all of it; the JSON, the plots and docs/benchmarks.md
    python benchmarks/run.py steps --framework opacus --workloads W2 --batches 256 1024
    python benchmarks/run.py largest --workload W2

Every arm is a process of its own that takes one step at a time, in turn (`workers/worker.py`). Peers get a virtual
environment each under `benchmarks/.environments`, made when it is missing. The floor, plain Keras, runs twice: where
its two medians differ by more than 5 %, the row is void, and measured again up to twice. Each framework takes its turns
with a floor of its own beside it, so that no more than one framework's arms are in memory together. An arm that fails,
for want of memory for instance, is recorded with the last line of its error, and not tried at larger batches.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
import venv

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
FLOORS = ("keras plain", "keras plain again")
LARGEST_DRIFT = 0.05
ATTEMPTS = 3

#: Batch sizes of each workload; memory ends some arms before the last. W4-6 and W4-12 show the growth with depth.
BATCHES = {
    "W1": (64, 256, 1024, 4096, 16384),
    "W2": (64, 256, 1024, 4096),
    "W3": (256, 1024),
    "W4": (64, 256, 1024, 4096, 16384),
    "W4-6": (1024,),
    "W4-12": (1024,),
}

#: Arms whose largest batch is searched for.
LARGEST = ("keras plain", "keras private", "keras private_parts", "opacus hooks", "opacus ghost")

# A row ends after this many seconds, with no fewer and no more rounds than this.
SECONDS_OF_A_ROW, FEWEST_ROUNDS, MOST_ROUNDS = 40.0, 5, 25

# An arm whose step took longer is left out at larger batches.
LONGEST_STEP = 2.5


@dataclasses.dataclass(frozen=True)
class Framework:
    """One framework: its worker, the arms it has, and what its environment needs, one `pip install` after the other.

    No requirements means the environment that this script runs in.
    """

    worker: str
    arms: tuple
    requirements: tuple = ()


FRAMEWORKS = {
    "keras": Framework("keras_worker.py", ("plain", "plain again", "same_layers", "private", "private_abs")),
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

    def __init__(self, name, workload, batch_size, memory):
        framework, arm = name.split(" ", 1)
        command = [python_of(framework), HERE / "workers" / FRAMEWORKS[framework].worker, arm.removesuffix(" again")]
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
        # A worker that was killed says nothing more.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        answer = self._answer()
        if answer:
            self.seconds.append(answer["cpu_s"])
            self.peak_mb = answer["peak_mb"]

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.stderr.close()
        self._process.kill()
        self._process.wait()

    def result(self):
        if self.failure is not None:
            return {"failure": self.failure}
        return {
            "cpu_s": statistics.median(self.seconds),
            "peak_mb": round(self.peak_mb, 1),
            "versions": self.versions,
            "raw_s": [round(value, 5) for value in self.seconds],
        }


def measure(names, workload, batch_size, memory):
    """One row of the result: the arms of one framework and two floors; medians, ratios, peak memory and raw times."""
    arms = []
    try:
        for name in names:  # one after the other, so that none warms up beside another
            arms.append(Arm(name, workload, batch_size, memory))
            arms[-1].await_ready()
        start = time.monotonic()
        for done in range(MOST_ROUNDS):
            if done >= FEWEST_ROUNDS and time.monotonic() - start > SECONDS_OF_A_ROW:
                break
            for arm in arms:
                arm.step()
    finally:
        for arm in arms:
            arm.close()
    results = {arm.name: arm.result() for arm in arms}
    floors = [results[name]["cpu_s"] for name in FLOORS if "cpu_s" in results[name]]
    drift = abs(floors[0] / floors[1] - 1) if len(floors) == 2 else None
    for result in results.values():
        if floors and "cpu_s" in result:
            result["ratio_to_plain"] = result["cpu_s"] / statistics.mean(floors)
    return {
        "workload": workload,
        "batch_size": batch_size,
        "floor_drift": drift,
        "valid": drift is not None and drift <= LARGEST_DRIFT,
        "arms": results,
    }


def measure_rows(framework, workloads, batches, memory):
    """Rows of all workloads and batch sizes, one by one."""
    arms = [f"{framework} {arm}" for arm in FRAMEWORKS[framework].arms]
    for workload in workloads:
        left_out = {}
        for batch_size in batches or BATCHES[workload]:
            names = [name for name in dict.fromkeys((*FLOORS, *arms)) if name not in left_out]
            if not set(FLOORS) < set(names):
                break
            for _ in range(ATTEMPTS):
                row = measure(names, workload, batch_size, memory)
                if row["valid"]:
                    break
            row["left_out"] = dict(left_out)
            for name, result in row["arms"].items():
                if "failure" in result:
                    left_out[name] = f"failed at batch {batch_size}: {result['failure']}"
                elif result["cpu_s"] > LONGEST_STEP and framework != "keras" and name not in FLOORS:
                    left_out[name] = f"a step took {result['cpu_s']:.0f} s at batch {batch_size}"
            yield row


def print_row(row):
    print(f"{row['workload']} batch {row['batch_size']}{'' if row['valid'] else '  VOID'}")
    for name, arm in row["arms"].items():
        if "failure" in arm:
            print(f"  {name:24s} {arm['failure'][:90]}")
        else:
            ratio = arm.get("ratio_to_plain", float("nan"))
            print(f"  {name:24s} {arm['cpu_s']:9.4f} s  {ratio:7.2f} x  {arm['peak_mb']:8.0f} MB", flush=True)


def largest_batches(workload, most, memory):
    """For each arm the largest power of two, from 256 on, that it takes steps on within the limit on memory."""
    for name in LARGEST:
        batch_size, last = 256, None
        while batch_size <= most:
            arm = Arm(name, workload, batch_size, memory)
            arm.await_ready()
            arm.step()
            arm.close()
            if arm.failure is not None:
                break
            last = {"batch_size": batch_size, "cpu_s": arm.seconds[0], "peak_mb": round(arm.peak_mb, 1)}
            batch_size *= 2
        yield {"workload": workload, "arm": name, "largest": last, "failure_at_twice": arm.failure}


def machine():
    """What the figures depend on beside the code."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return {
        "processor": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()),
        "avx512": "avx512f" in flags,
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def write(path, command, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, **content}, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    steps = commands.add_parser("steps")
    steps.add_argument("--framework", choices=list(FRAMEWORKS), default="keras")
    steps.add_argument("--workloads", nargs="+", default=list(BATCHES))
    steps.add_argument("--batches", nargs="+", type=int, default=None)
    largest = commands.add_parser("largest")
    largest.add_argument("--workload", default="W2")
    largest.add_argument("--most", type=int, default=2**17, help="where the search ends")
    for command in (steps, largest):
        command.add_argument("--memory-gib", type=float, default=8.0, help="limit of each process")
        command.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    memory = int(arguments.memory_gib * 2**30)
    content = {"machine": machine(), "memory_gib": arguments.memory_gib, "rows": []}
    if arguments.what == "steps":
        rows = measure_rows(arguments.framework, arguments.workloads, arguments.batches, memory)
    else:
        rows = largest_batches(arguments.workload, arguments.most, memory)
    for row in rows:
        print_row(row) if arguments.what == "steps" else print(row, flush=True)
        content["rows"].append(row)
        if arguments.output:
            write(arguments.output, " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]), content)


if __name__ == "__main__":
    main()
