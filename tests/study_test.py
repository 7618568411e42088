"""The runner of the accuracy studies: resumed where it stopped, tuned on held-out data, logged to the real wandb."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "experiments"


@pytest.fixture
def study(tmp_path, monkeypatch):
    specification = importlib.util.spec_from_file_location("study", FOLDER / "study.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    point = {"name": "small", "recipe": "mnist", "epsilon": 2.0, "settings": {"epochs": 2}, "tried_by_hand": 3}
    (tmp_path / "settings.json").write_text(json.dumps({"points": [point]}))
    monkeypatch.setattr(module, "folder", tmp_path, raising=False)
    return module


def finished(score):
    privacy = {"epsilon": 1.9, "epsilon_pld": 1.9, "epsilon_rdp": 2.2, "delta": 1e-5}
    return {"test_accuracy": score, "privacy": privacy, "history": {"epsilon": [1.0, 1.9], "loss": [2.0, 1.0]}}


def call(study, monkeypatch, *arguments, **hooks):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    study.main(study.folder, "a study", **hooks)


def result(study):
    return json.loads((study.folder / "results" / "small.json").read_text())


def test_runs_are_resumed_where_they_stopped(study, monkeypatch):
    scores = iter([0.7, 0.8, RuntimeError("power cut"), 0.9])

    def run(point, cache_dir):
        score = next(scores)
        if isinstance(score, Exception):
            raise score
        return finished(score)

    with pytest.raises(RuntimeError, match="power cut"):
        call(study, monkeypatch, run=run)
    assert len(result(study)["runs"]) == 2
    call(study, monkeypatch, run=run)
    made = result(study)
    assert [each["test_accuracy"] for each in made["runs"]] == [0.7, 0.8, 0.9]
    assert made["test_accuracy_mean"] == 0.8 and made["test_accuracy_stdev"] == pytest.approx(0.1)
    assert made["epsilon_pld_max"] == 1.9 and made["epsilon_rdp_max"] == 2.2 and made["runs_tried_before"] == 3
    call(study, monkeypatch, run=lambda *_: pytest.fail("a fourth run"))


def test_runs_of_other_settings_are_not_mixed(study, monkeypatch):
    call(study, monkeypatch, run=lambda *_: finished(0.7))
    settings = json.loads((study.folder / "settings.json").read_text())
    settings["points"][0]["epsilon"] = 3.0
    (study.folder / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="other settings"):
        call(study, monkeypatch, run=lambda *_: finished(0.7))


def test_runs_of_another_recipe_are_not_mixed(study, monkeypatch):
    [point] = json.loads((study.folder / "settings.json").read_text())["points"]
    recipe = {**study.recipe_of(point), "batch_size": 7}
    call(study, monkeypatch, run=lambda *_: {**finished(0.7), "metrics": {"settings": {"recipe": recipe}}})
    with pytest.raises(SystemExit, match="other settings"):
        call(study, monkeypatch, run=lambda *_: finished(0.7))


def test_runs_from_before_a_field_are_kept_where_the_recipe_leaves_it_out(study, monkeypatch):
    """`photographs` had its default. `filters` is None behind a front end: 16 of them were there, and did nothing."""
    [point] = json.loads((study.folder / "settings.json").read_text())["points"]
    recipe = {**study.recipe_of(point), "filters": 16, "hidden_units": [128]}
    del recipe["convolution_rate"], recipe["photographs"]
    call(study, monkeypatch, run=lambda *_: {**finished(0.7), "metrics": {"settings": {"recipe": recipe}}})
    call(study, monkeypatch, run=lambda *_: pytest.fail("no run is missing"))
    path = study.folder / "settings.json"
    path.write_text(path.read_text().replace('"mnist"', '"mnist_pixels"'))
    made = json.loads((study.folder / "results" / f"{point['name']}.json").read_text())
    made["point"]["recipe"] = "mnist_pixels"
    (study.folder / "results" / f"{point['name']}.json").write_text(json.dumps(made))
    with pytest.raises(SystemExit, match="other settings"):
        call(study, monkeypatch, run=lambda *_: finished(0.7))


def test_no_seen_test_score_is_left_out(study, monkeypatch):
    """Two processes at one point: all runs are in the result, however many."""

    def other_process(*_):
        if not (study.folder / "results").exists():
            call(study, monkeypatch, run=lambda *_: finished(0.5))
        return finished(0.7)

    call(study, monkeypatch, run=other_process)
    assert [run["test_accuracy"] for run in result(study)["runs"]] == [0.5, 0.5, 0.5, 0.7]


def test_tries_are_recorded_and_counted(study, monkeypatch):
    def try_once(point, cache_dir):
        assert point["settings"]["epochs"] == 2
        return {"epsilon": [1.0], "val_accuracy": [point["settings"]["learning_rate"] / 2]}

    call(study, monkeypatch, "--tune", "learning_rate=0.5,1.0", try_once=try_once)
    lines = [json.loads(line) for line in (study.folder / "tuning.jsonl").read_text().splitlines()]
    assert [(line["settings"]["learning_rate"], line["val_accuracy"]) for line in lines] == [(0.5, 0.25), (1.0, 0.5)]
    call(study, monkeypatch, run=lambda *_: finished(0.7))
    assert result(study)["runs_tried_before"] == 2 + 3


def test_tuning_has_no_test_set_to_look_at(study, monkeypatch):
    from deel.lipdp import pipeline, recipes, training_run

    seen = []
    images = pipeline.ImageData(
        x_train=np.zeros((10, 4), "f4"),
        y_train=np.zeros((10, 2), "f4"),
        x_test=np.ones((5, 4), "f4"),
        y_test=np.ones((5, 2), "f4"),
        class_names=("a", "b"),
        max_norm=1.0,
    )
    monkeypatch.setattr(pipeline, "load_images", lambda *args, **kwargs: images)

    def fit(recipe, epsilon, data, **kwargs):
        seen.append((recipe, epsilon, data, kwargs))
        return None, {"val_accuracy": [0.5]}

    monkeypatch.setattr(training_run, "fit_recipe", fit)
    [point] = json.loads((study.folder / "settings.json").read_text())["points"]
    study.train_recipe(point, None)
    [(recipe, epsilon, data, _)] = seen
    assert len(data.x_test) == len(data.y_test) == 0 and len(data.x_train) == 10
    assert recipe.epochs == 2 and recipe.front_end == recipes.RECIPES["mnist"].front_end and epsilon == 2.0


def test_each_run_reaches_the_real_wandb(study, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(study, "RUNS", 1)
    call(study, monkeypatch, "--wandb", run=lambda *_: finished(0.7))
    [file] = (tmp_path / "wandb").rglob("*.wandb")
    content = file.read_bytes()
    for word in (b"test_accuracy", b"epsilon", b"loss", b"lipdp-"):
        assert word in content


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "CIFAR10", "tabular"])
def test_committed_results_are_what_their_settings_say(name, study):
    """Every result is of a point as it stands, of three runs within the budget, and its mean is that of its runs."""
    points = {point["name"]: point for point in json.loads((FOLDER / name / "settings.json").read_text())["points"]}
    paths = sorted((FOLDER / name / "results").glob("*.json"))
    assert {path.stem for path in paths} == set(points)
    for path in paths:
        made = json.loads(path.read_text())
        assert made["point"] == points[path.stem] and len(made["runs"]) == 3 and made["runs_tried_before"] > 0
        metric = "auroc" if name == "tabular" else "accuracy"
        scores = [run[f"test_{metric}"] for run in made["runs"]]
        assert made[f"test_{metric}_mean"] == pytest.approx(np.mean(scores), abs=1e-5)
        assert made["epsilon_pld_max"] == max(run["privacy"]["epsilon_pld"] for run in made["runs"])
        for run in made["runs"]:
            assert study.made_now(run, points[path.stem])
            assert run["privacy"]["epsilon_pld"] <= points[path.stem]["epsilon"] and not run["privacy"]["seeded"]
            assert run["privacy"]["neighboring_relation"] == "add_or_remove_one"
            assert "dirty" not in run["commit"]
