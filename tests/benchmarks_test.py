"""The benchmark's own code: its page is made of its results, and its workers take steps."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import report  # noqa: E402
import run  # noqa: E402


def test_the_page_is_what_the_results_say():
    results = [report.load(name) for name in ("costs", "largest", "padding")]
    assert report.page(report.load_steps(), *results) == (report.DOCS / "benchmarks.md").read_text(encoding="utf-8")


def test_ratios_are_those_of_the_raw_times():
    """What the page shows, computed anew from what each step took."""
    for row in report.load_steps()["rows"]:
        medians = {name: np.median(arm["raw_s"]) for name, arm in row["arms"].items() if "failure" not in arm}
        floor, again = (medians[name] for name in run.FLOORS)
        assert row["floor_drift"] == pytest.approx(abs(floor / again - 1), abs=0.01)  # raw times are rounded
        assert row["valid"] == (row["floor_drift"] <= run.LARGEST_DRIFT)
        for name, median in medians.items():
            assert row["arms"][name]["ratio_to_plain"] == pytest.approx(2 * median / (floor + again), rel=0.01)


def test_every_arm_that_the_page_names_is_run():
    names = {f"{name} {arm}" for name, framework in run.FRAMEWORKS.items() for arm in framework.arms}
    assert set(report.ARMS) <= names
    assert {f"{name} plain" for name in report.FLOORS} <= names


@pytest.mark.full
@pytest.mark.parametrize("arm", ["plain", "same_layers", "private", "private_abs", "private_parts"])
def test_worker_takes_steps(arm):
    command = [sys.executable, BENCHMARKS / "workers" / "keras_worker.py", arm, "W1", "8"]
    done = subprocess.run(command, input="\n\n", capture_output=True, text=True, check=True)
    ready, *steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert "tensorflow" in ready["versions"]
    assert len(steps) == 2
    assert all(step["cpu_s"] > 0 and step["peak_mb"] > 0 for step in steps)


@pytest.mark.full
def test_an_arm_without_memory_is_recorded_as_failed():
    arm = run.Arm("keras plain", "W2", 2**20, 2**31)
    arm.await_ready()
    arm.step()
    arm.close()
    assert arm.failure
    assert arm.result() == {"failure": arm.failure}
