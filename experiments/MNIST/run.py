"""MNIST from pixels by `lipdp train`, several independent runs: accuracy at a privacy budget, mean and spread.

    LIPDP_DATA_DIR=... python experiments/MNIST/run.py --runs 3 --output experiments/MNIST/results/epsilon3.json

Each run is the command line of the library with its defaults, with fresh noise; its test set is read once, after the
last step. The settings were chosen on the tenth of the training set that `lipdp train` holds out.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile


def one_run(epsilon):
    """Runs `lipdp train` in a process of its own; returns what its run folder says."""
    arguments = ["train", "--dataset", "mnist", "--epsilon", f"{epsilon:g}"]
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "run"
        command = [sys.executable, "-m", "deel.lipdp", *arguments]
        subprocess.run([*command, "--output", str(output), "--quiet"], check=True)
        content = {
            name: json.loads((output / f"{name}.json").read_text()) for name in ("metrics", "privacy", "history")
        }
    del content["metrics"]["command"]  # names a temporary folder
    return {"command": " ".join(["lipdp", *arguments]), **content}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tried-before", type=int, help="how many runs chose the settings, on the held-out tenth")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.runs):
        runs.append(one_run(arguments.epsilon))
        print(runs[-1]["metrics"]["test_accuracy"], runs[-1]["privacy"]["epsilon"], flush=True)
    accuracies = [run["metrics"]["test_accuracy"] for run in runs]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "test_accuracy_mean": round(statistics.mean(accuracies), 5),
        "test_accuracy_stdev": round(statistics.stdev(accuracies), 5) if len(runs) > 1 else None,
        "epsilon_max": max(run["privacy"]["epsilon"] for run in runs),
        "delta": runs[0]["privacy"]["delta"],
        "runs_tried_before": arguments.tried_before,
        "runs": runs,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print({key: value for key, value in result.items() if key != "runs"})


if __name__ == "__main__":
    main()
