"""What all workers share: one step for each line on standard input, and its CPU time in answer. Standard library only.

A worker is a script run in the environment of its framework:

    python WORKER.py ARM WORKLOAD BATCH_SIZE

It prints a JSON object when it is ready, then one for each line it reads: the CPU seconds of a step, and the peak
memory of the process over what it held before it made a model, in MB.
"""

import json
import os
import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from workloads import WORKLOADS

WARM_UP = 3


def _resident_mb():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def pin_to_one_core():
    """Called before the framework is imported, so that it starts one thread."""
    os.environ.update(OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def serve(make_step):
    """Runs `make_step(arm, workload, batch_size) -> (step, versions)` and then steps on request."""
    arm, name, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    before = _resident_mb()
    step, versions = make_step(arm, WORKLOADS[name], batch_size)
    for _ in range(WARM_UP):
        step()
    print(json.dumps({"versions": versions}), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        step()
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
        print(json.dumps({"cpu_s": seconds, "peak_mb": peak}), flush=True)
