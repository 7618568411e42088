"""What the accuracy studies share: runs of `lipdp train` that are resumed where they stopped, and tuning.

A study is a folder with `settings.json`. Each of its points names a recipe, a budget and what differs from the recipe:

    {"name": "features-epsilon3", "recipe": "mnist", "epsilon": 3.0, "settings": {"learning_rate": 0.375}}

    LIPDP_DATA_DIR=... python experiments/MNIST/run.py

makes the runs that are missing, three for each point, over the whole training set, each with fresh noise and in a
process of its own; `lipdp train` reads the test set once, after the last step. Every finished run is written at once.

    LIPDP_DATA_DIR=... python experiments/MNIST/run.py --points features-epsilon3 --tune learning_rate=0.2,0.4

tries settings on a held-out tenth of the training set and adds a line for each to `tuning.jsonl`; results say how many
were tried before them. With `--wandb`, the sweep of `sweep.yaml` runs the same command.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

RUNS = 3


def main(folder, description, run=None, try_once=None, metric="accuracy"):
    """Command line of a study's `run.py`.

    Args:
        folder: path of the study.
        description: str.
        run: callable `(point, cache_dir)` that gives a dict with `test_<metric>`, `privacy` and `history`; the default
            is `lipdp train`.
        try_once: callable `(point, cache_dir)` that gives the history of a training on all but a held-out part, with
            `val_<metric>`; the default trains a recipe. It has no test set to look at.
        metric: str, name of the metric.
    """
    folder = pathlib.Path(folder)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--points", nargs="+", metavar="NAME", help="names in settings.json; all of them by default")
    parser.add_argument("--tune", nargs="+", metavar="FIELD=VALUE[,VALUE...]", help="try settings on held-out data")
    parser.add_argument("--wandb", action="store_true", help="log each run to wandb, offline with WANDB_MODE=offline")
    parser.add_argument("--cache-dir", help="folder for features, as private as the images")
    arguments = parser.parse_args()
    points = json.loads((folder / "settings.json").read_text())["points"]
    unknown = set(arguments.points or ()) - {point["name"] for point in points}
    if unknown:
        parser.error(f"no points {sorted(unknown)} in {folder / 'settings.json'}")
    chosen = [point for point in points if not arguments.points or point["name"] in arguments.points]
    for point in chosen:
        if arguments.tune:
            tune(folder, point, arguments, try_once or train_recipe, metric)
        else:
            make_runs(folder, point, arguments, run or lipdp_train, metric)


def make_runs(folder, point, arguments, run_once, metric):
    """Adds the runs that are missing to the result of a point."""
    path = folder / "results" / f"{point['name']}.json"
    result = json.loads(path.read_text()) if path.exists() else {"runs": []}
    for run in result["runs"]:
        if result["point"] != point or not made_now(run, point):
            raise SystemExit(f"{path} has runs of other settings than those of now: move it away to begin anew.")
    while len(result["runs"]) < RUNS:
        run = {"commit": commit(), **run_once(point, arguments.cache_dir)}
        if path.exists():  # another process may have added a run: none whose test score was seen is left out
            result = json.loads(path.read_text())
        runs = [*result["runs"], run]
        scores = [run[f"test_{metric}"] for run in runs]
        result = {
            "command": f"python experiments/{folder.name}/run.py --points {point['name']}",
            "point": point,
            f"test_{metric}_mean": round(statistics.mean(scores), 5),
            f"test_{metric}_stdev": round(statistics.stdev(scores), 5) if len(runs) > 1 else None,
            "epsilon_pld_max": max(run["privacy"]["epsilon_pld"] for run in runs),
            "epsilon_rdp_max": max(run["privacy"]["epsilon_rdp"] for run in runs),
            "delta": run["privacy"]["delta"],
            "runs_tried_before": len(tried(folder)) + point.get("tried_by_hand", 0),
            "runs": runs,
        }
        write(path, json.dumps(result, indent=1) + "\n")
        print(folder.name, point["name"], len(runs), scores[-1], run["privacy"]["epsilon"], flush=True)
        if arguments.wandb:
            summary = {f"test_{metric}": scores[-1]}
            to_wandb(folder.name, point["name"], point["settings"], run["history"], summary)


def lipdp_train(point, cache_dir):
    """`lipdp train` on the whole training set, in a process of its own; what its run folder says."""
    arguments = ["train", "--recipe", point["recipe"], "--epsilon", repr(point["epsilon"]), "--delta", "1e-5"]
    arguments += ["--validation-fraction", "0"]
    for field, value in point["settings"].items():
        arguments += [f"--{field.replace('_', '-')}", f"{value}"]
    with tempfile.TemporaryDirectory() as temporary:
        output = pathlib.Path(temporary) / "run"
        command = [sys.executable, "-m", "deel.lipdp", *arguments, "--output", str(output), "--quiet"]
        command += ["--cache-dir", cache_dir] if cache_dir else []
        subprocess.run(command, check=True, stderr=sys.stderr, stdout=subprocess.DEVNULL)
        content = {
            name: json.loads((output / f"{name}.json").read_text()) for name in ("metrics", "privacy", "history")
        }
    del content["metrics"]["command"]  # names a temporary folder
    accuracy = content["metrics"]["test_accuracy"]
    return {"command": " ".join(["lipdp", *arguments]), "test_accuracy": accuracy, **content}


def made_now(run, point):
    """Whether a run was made with the recipe of a point as it is now; a run of another kind has none."""
    from deel.lipdp.recipes import Recipe

    made_with = run.get("metrics", {}).get("settings", {}).get("recipe")
    if made_with is None:
        return True
    # Runs may be older than the fields of today, which had their defaults then. None is of no account.
    fields = [field for field in dataclasses.fields(Recipe) if field.default is not dataclasses.MISSING]
    defaults = json.loads(json.dumps({field.name: field.default for field in fields}))
    now = {name: value for name, value in recipe_of(point).items() if value is not None}
    return {**defaults, **made_with}.items() >= now.items()


def recipe_of(point):
    """The recipe of a point as JSON has it."""
    from deel.lipdp.recipes import RECIPES

    return json.loads(
        json.dumps(dataclasses.asdict(dataclasses.replace(RECIPES[point["recipe"]], **point["settings"])))
    )


def train_recipe(point, cache_dir):
    """The recipe of a point on nine tenths of the training set; its history, with `val_accuracy` on the last."""
    from deel.lipdp.pipeline import load_images
    from deel.lipdp.recipes import FRONT_ENDS, RECIPES
    from deel.lipdp.training_run import fit_recipe

    recipe = dataclasses.replace(RECIPES[point["recipe"]], **point["settings"])
    data = load_images(recipe.dataset, front_end=FRONT_ENDS[recipe.front_end], cache_dir=cache_dir)
    data = dataclasses.replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    _, history = fit_recipe(recipe, point["epsilon"], data, delta=1e-5)
    return history


def tune(folder, point, arguments, try_once, metric):
    """Tries each combination of settings once, on held-out data; appends what came out to `tuning.jsonl`."""
    choices = {}
    for text in arguments.tune:
        field, values = text.split("=")
        choices[field] = [json.loads(value) for value in values.split(",")]
    for values in itertools.product(*choices.values()):
        settings = {**point["settings"], **dict(zip(choices, values, strict=True))}
        history = try_once({**point, "settings": settings}, arguments.cache_dir)
        score = round(history[f"val_{metric}"][-1], 5)
        line = {"point": point["name"], "epsilon": point["epsilon"], "settings": settings, f"val_{metric}": score}
        with (folder / "tuning.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)
        if arguments.wandb:
            to_wandb(folder.name, f"tune-{point['name']}", settings, history)


def tried(folder):
    """Lines of `tuning.jsonl`."""
    path = folder / "tuning.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def to_wandb(study, name, settings, history, summary=()):
    """One run of wandb, with one step for each epoch."""
    import wandb

    with wandb.init(project=f"lipdp-{study}", name=name, config=settings) as run:
        for epoch in range(len(history["epsilon"])):
            run.log({key: values[epoch] for key, values in history.items()})
        run.summary.update(dict(summary))


def commit():
    """The commit that is checked out, with a mark if tracked files differ from it, records of other runs apart."""

    def git(*arguments):
        here = pathlib.Path(__file__).parents[1]
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=here).stdout.strip()

    records = [":!experiments/*/tuning.jsonl", ":!experiments/*/results"]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *records)
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def write(path, text):
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
