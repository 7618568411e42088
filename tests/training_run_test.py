"""A whole training from data to run folder: what is written agrees, and nothing is written by half."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from deel.lipdp import layers, pipeline, recipes, run_folder, training_run
from deel.lipdp.accounting import GaussianStep, PoissonSampling, compute_epsilon
from deel.lipdp.bounds import compute_gradient_bounds
from deel.lipdp.model import DP_Sequential
from deel.lipdp.parameters import DatasetMetadata, DPParameters
from deel.lipdp.robustness import certified_accuracy
from deel.lipdp.training_run import train

EPOCHS, BATCH_SIZE, EPSILON = 3, 300, 1.0
N_TRAIN = 1438 - 144  # digits without its test fifth, and without the tenth held out


def train_digits(output, epsilon=EPSILON, **kwargs):
    arguments = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "progress": False, **kwargs}
    return train("digits", epsilon, output, **arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("runs") / "new" / "digits", strategy="local", command="lipdp train ...")


@pytest.fixture
def no_calibration(monkeypatch):
    """The search takes seconds; the run of the fixture above does it for all."""
    monkeypatch.setattr(training_run, "calibrate_noise", lambda *args, **kwargs: 4.0)


def read(run, name):
    return json.loads((run.output / name).read_text())


def test_a_fit_that_is_resumed_stays_within_the_budget(tmp_path, no_calibration):
    """What an interrupted epoch has spent is spent: the run ends early rather than above epsilon."""
    from deel.lipdp.callbacks import get_eps_delta
    from deel.lipdp.checkpoints import DP_BackupAndRestore

    data, recipe = pipeline.load_images("digits"), dataclasses.replace(recipes.RECIPES["digits"], epochs=2)

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    plan = [(GaussianStep(PoissonSampling(256 / N_TRAIN), 4.0), 2 * math.ceil(N_TRAIN / 256))]
    epsilon = compute_epsilon(plan, 1e-4, "pld")
    with pytest.raises(KeyboardInterrupt):
        training_run.fit_recipe(recipe, epsilon, data, callbacks=[DP_BackupAndRestore(tmp_path), Interrupt()])
    model, _ = training_run.fit_recipe(recipe, epsilon, data, callbacks=[DP_BackupAndRestore(tmp_path)])
    assert get_eps_delta(model, accountant="pld")[0] <= epsilon


def test_folder_holds_every_file_and_nothing_lies_beside_it(run):
    assert sorted(os.listdir(run.output)) == sorted(run_folder.FILES)
    assert os.listdir(run.output.parent) == ["digits"]
    assert read(run, "history.json") == run.history
    assert read(run, "privacy.json") == run.privacy
    assert read(run, "metrics.json") == run.metrics
    assert (run.output / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_pixels_are_certified_and_features_are_not(run, tmp_path, monkeypatch, no_calibration):
    certified, test = run.metrics["certified_accuracy"], pipeline.load_images("digits")
    assert certified["radius"][0] == 0.0 and np.all(np.diff(certified["radius"]) > 0.0)
    assert certified["accuracy"][0] == pytest.approx(run.metrics["test_accuracy"], abs=1.0 / len(test.x_test))
    assert np.all(np.diff(certified["accuracy"]) <= 0.0)
    found = certified_accuracy(run.model, test.x_test, test.y_test, certified["radius"])
    np.testing.assert_array_equal(found, certified["accuracy"])
    assert certified["accuracy"][0] > certified["accuracy"][-1]
    assert (run.output / "certified.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setitem(recipes.FRONT_ENDS, "flat", (layers.DP_Flatten(),))
    monkeypatch.setitem(recipes.RECIPES, "flat", recipes.Recipe("digits", 1, 300, front_end="flat"))
    flat = train("flat", 1.0, tmp_path / "flat", progress=False)
    assert flat.metrics["certified_accuracy"] is None
    assert sorted(os.listdir(flat.output)) == sorted(set(run_folder.FILES) - {"certified.png"})


def test_history_has_one_entry_per_epoch_and_ends_at_the_reported_epsilon(run):
    history, privacy = run.history, run.privacy
    assert {"accuracy", "val_accuracy", "loss", "val_loss", "epsilon", "delta"} <= set(history)
    assert all(len(values) == EPOCHS for values in history.values())
    assert history["epsilon"] == sorted(history["epsilon"])
    assert history["epsilon"][-1] == privacy["epsilon"] == privacy["epsilon_pld"]
    assert 0.9 * EPSILON < privacy["epsilon"] <= EPSILON == privacy["target_epsilon"]
    assert set(history["delta"]) == {privacy["delta"]} == {1e-4}  # 1e-3 is not below 1 / n


def test_privacy_states_what_was_done(run):
    privacy = run.privacy
    assert privacy["num_examples"] == N_TRAIN and privacy["batch_size"] == BATCH_SIZE
    [release], [entry] = privacy["releases"], privacy["ledger"]["entries"]
    steps, joint = EPOCHS * math.ceil(N_TRAIN / BATCH_SIZE), release["joint_noise_multiplier"]
    assert (release["mechanism"], release["unit"]) == ("GaussianStep", "step")
    assert release["count"] == entry["count"] == steps
    assert release["sampling"] == entry["sampling"]["name"] == "poisson"
    assert release["sampling_probability"] == entry["sampling"]["sampling_probability"] == BATCH_SIZE / N_TRAIN
    assert privacy["neighboring_relation"] == "add_or_remove_one"
    assert privacy["seeded"] is False
    assert entry["noise_multiplier"] == joint
    event = GaussianStep(PoissonSampling(BATCH_SIZE / N_TRAIN), joint)
    for accountant in ("pld", "rdp"):
        assert privacy[f"epsilon_{accountant}"] == compute_epsilon([(event, steps)], 1e-4, accountant)
    # Per-layer noise: the first of two kernels takes next to nothing of the budget.
    assert privacy["strategy"] == "per-layer"
    share = recipes.RECIPES["digits"].convolution_rate ** 2
    assert privacy["noise_multiplier"] == pytest.approx(math.sqrt(1.0 + share) * joint, rel=1e-9)
    assert privacy["bounds"] == compute_gradient_bounds(run.model)
    # Stddev of the noise over the sensitivity, of all gradients together: what was priced.
    bounds, stddevs = (
        np.array([privacy[key][name] for name in privacy["bounds"]]) for key in ("bounds", "noise_stddevs")
    )
    assert 1.0 / np.sqrt(np.sum((bounds / stddevs) ** 2)) == pytest.approx(joint, rel=1e-12)
    assert {"keras", "tensorflow", "lipdp", "dp-accounting", "python"} <= set(privacy["versions"])


def test_statement_says_what_is_and_is_not_protected(run):
    statement = run.privacy["statement"]
    for words in (
        "one training example",
        "adding or removing",
        f"{math.ceil(1e4 * run.privacy['epsilon']) / 1e4:.4f}",  # never rounded down
        "1294",
        "300",
        "Not covered",
        "validation",
        "public constants",
    ):
        assert words in statement


def test_another_network_is_trained_and_its_noise_calibrated(no_calibration):
    built = []

    def build(*arguments):
        built.append(recipes.build_model(*arguments))
        built[-1].get_layer("logits").nm_coef = 5.0
        return built[-1]

    recipe = dataclasses.replace(recipes.RECIPES["digits"], epochs=1)
    data = pipeline.load_images("digits")
    model, _ = training_run.fit_recipe(recipe, 1.0, data, strategy="per-layer", build=build)
    assert model is built[-1] and model.ledger.steps == math.ceil(N_TRAIN / 256)
    [(event, _)] = model.ledger.entries()
    # The calibrated noise, at the coefficients of the network that was trained.
    assert event.noise_multiplier == pytest.approx(4.0, rel=1e-9)
    shares = 1.0 / 5.0**2 + recipe.convolution_rate**2
    assert model.dp_parameters.noise_multiplier == pytest.approx(4.0 * math.sqrt(shares), rel=1e-9)


def test_waves_are_evened_out_for_photographs():
    """Of images whose amplitudes fall as one over the frequency, colours a third of brightness."""
    noise = np.random.default_rng(0).normal(size=(50, 3, 32, 32))
    frequencies = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    frequencies[0, 0] = 1.0 / 64.0
    images = np.fft.ifft2(np.fft.fft2(noise) / frequencies).real.transpose(0, 2, 3, 1)
    brightness = images.mean(axis=-1, keepdims=True)
    images = brightness + (images - brightness) / 3.0
    images = 0.5 + 0.15 * images / images.std()
    metadata = DatasetMetadata(images.shape[1:], 1000, 100, 32 * 3**0.5, 10, 0, sampling="poisson")

    def spread(**changes):
        recipe = dataclasses.replace(recipes.RECIPES["cifar10_pixels"], **changes)
        model = recipes.build_model(recipe, DPParameters("optimal", 1.0, 1e-5), metadata)
        stack = model.layers[: 1 + [type(layer) for layer in model.layers].index(layers.DP_Modulus)]
        strengths = np.sqrt((keras.Sequential(stack).predict(images, verbose=0) ** 2).mean(axis=(0, 1, 2)))
        return strengths.max() / strengths.min()

    assert spread() < 1.5
    assert spread(photographs=False) > 10.0


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_convolution_that_cannot_move_is_refused(rate, tmp_path):
    with pytest.raises(ValueError, match="Recipe: expected convolution_rate"):
        train_digits(tmp_path / "run", convolution_rate=rate)


def test_a_saved_model_loads_in_a_process_that_imports_the_model_module_alone(run):
    code = f"import deel.lipdp.model, keras; keras.models.load_model({str(run.output / 'model.keras')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_metrics_and_saved_model_agree(run):
    metrics = run.metrics
    settings = metrics["settings"]
    recipe = dataclasses.replace(recipes.RECIPES["digits"], epochs=EPOCHS, batch_size=BATCH_SIZE)
    assert settings["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert settings["dataset"] == "digits" and settings["noise_seed"] is None
    assert metrics["command"] == "lipdp train ..." and metrics["wall_seconds"] > 0
    assert metrics["val_accuracy"] == run.history["val_accuracy"][-1]

    model = keras.models.load_model(run.output / "model.keras")
    data = pipeline.load_images("digits")
    test = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)
    assert test["accuracy"] == pytest.approx(metrics["test_accuracy"], abs=1e-6)
    assert test["loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)
    assert json.loads(model.ledger.to_json()) == run.privacy["ledger"]
    _, (x, y) = data.hold_out(0.1)
    held_out = model.evaluate(x, y, verbose=0, return_dict=True)
    assert held_out["accuracy"] == pytest.approx(metrics["val_accuracy"], abs=1e-6)


def test_test_set_is_read_once_after_the_last_step(tmp_path, monkeypatch, no_calibration):
    data = pipeline.load_images("digits")
    seen, evaluate = [], DP_Sequential.evaluate

    def spy(self, x=None, *args, **kwargs):
        if isinstance(x, np.ndarray) and np.array_equal(x, data.x_test):
            seen.append(self.ledger.steps)
        return evaluate(self, x, *args, **kwargs)

    monkeypatch.setattr(DP_Sequential, "evaluate", spy)
    # Without a hold-out, every training example counts for epsilon, and there is no validation metric.
    run = train_digits(tmp_path / "run", epochs=1, validation_fraction=0)
    assert seen == [run.privacy["releases"][0]["count"]]
    assert run.privacy["num_examples"] == 1438
    assert "val_accuracy" not in run.history and run.metrics["val_accuracy"] is None


def test_seeded_run_is_reproducible_and_has_no_epsilon(tmp_path, no_calibration):
    runs = [train_digits(tmp_path / name, epochs=1, noise_seed=7) for name in ("first", "second")]
    for run in runs:
        privacy = run.privacy
        assert privacy["seeded"] is True
        assert privacy["epsilon"] is privacy["epsilon_pld"] is privacy["epsilon_rdp"] is None
        assert privacy["statement"].startswith("No privacy")
        assert run.history["epsilon"] == [None]
    for first, second in zip(runs[0].model.get_weights(), runs[1].model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "error, kwargs",
    [
        (ValueError, {"epsilon": 0.0}),
        (ValueError, {"epsilon": math.nan}),
        (ValueError, {"epsilon": math.inf}),
        (TypeError, {"epsilon": "3"}),
        (ValueError, {"delta": 0.0}),
        (ValueError, {"delta": 1.0}),
        (ValueError, {"delta": 1 / N_TRAIN}),
        (ValueError, {"epochs": 0}),
        (TypeError, {"epochs": 1.5}),
        (ValueError, {"batch_size": 0}),
        (ValueError, {"batch_size": N_TRAIN + 1}),
        (TypeError, {"strategy": "best"}),
        (ValueError, {"validation_fraction": 1.0}),
        (ValueError, {"validation_fraction": -0.1}),
        (ValueError, {"noise_seed": -1}),
        (ValueError, {"noise_seed": 2**32}),
        (ValueError, {"learning_rate": -1.0}),
        (ValueError, {"temperature": 0.0}),
        (ValueError, {"clip_value": -1.0}),
        (TypeError, {"unknown_field": 1}),
        (TypeError, {"output": 3}),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, monkeypatch, error, kwargs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DP_Sequential, "fit", lambda *a, **k: pytest.fail("training started"))
    arguments = {"output": tmp_path / "new" / "run", **kwargs}
    with pytest.raises(error, match="expected .* Received: "):
        train_digits(**arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kwargs", [{"recipe": "nothing"}, {"recipe": "mnist", "data_dir": "nowhere"}])
def test_missing_data_are_refused(tmp_path, kwargs):
    with pytest.raises(ValueError, match="Received: "):
        train(epsilon=3.0, output=tmp_path / "run", **kwargs)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(training_run, "load_images", lambda *a: pytest.fail("data were loaded"))


def test_output_in_use_is_refused_first(tmp_path, no_data):
    output = tmp_path / "run"
    output.mkdir()
    (output / "privacy.json").write_text("{}")
    with pytest.raises(ValueError, match="--overwrite"):
        train_digits(output)
    (output / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        train_digits(output, overwrite=True)  # whatever is not a run is never deleted
    assert len(os.listdir(output)) == 2
    with pytest.raises(ValueError, match="a file"):
        train_digits(output / "thesis.tex")


def test_unwritable_output_is_refused_first(tmp_path, no_data, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can be written"):
        train_digits(tmp_path / "file" / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    with pytest.raises(ValueError, match="can be written"):
        train_digits(tmp_path / "run")
    assert os.listdir(tmp_path) == ["file"]


def test_folder_that_cannot_be_made_is_refused_before_the_block(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(run_folder.pathlib.Path, "mkdir", refuse)
    with pytest.raises(ValueError, match="read-only"), run_folder.new_run_folder(tmp_path / "run"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(("method", "lying_there"), [("fit", 0), ("evaluate", 1)])
def test_crash_leaves_nothing(tmp_path, monkeypatch, no_calibration, error, method, lying_there):
    def crash(self, *args, **kwargs):
        assert [name[:5] for name in os.listdir(tmp_path)] == [".run."] * lying_there  # the folder, under a hidden name
        raise error("power cut")

    monkeypatch.setattr(DP_Sequential, method, crash)
    with pytest.raises(error, match="power cut"):
        train_digits(tmp_path / "run", epochs=1, validation_fraction=0.0)
    assert os.listdir(tmp_path) == []


def test_crash_in_the_block_leaves_an_earlier_run_alone(tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "privacy.json").write_text("earlier")
    with pytest.raises(RuntimeError), run_folder.new_run_folder(output, overwrite=True) as folder:
        (folder / "privacy.json").write_text("later")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["run"] and (output / "privacy.json").read_text() == "earlier"
    with run_folder.new_run_folder(output, overwrite=True) as folder:
        (folder / "privacy.json").write_text("later")
    assert os.listdir(tmp_path) == ["run"] and (output / "privacy.json").read_text() == "later"


def test_finished_run_is_kept_when_its_name_was_taken_meanwhile(tmp_path):
    output = tmp_path / "run"
    with pytest.raises(OSError), run_folder.new_run_folder(output) as folder:
        (folder / "privacy.json").write_text("paid for")
        output.mkdir()
        (output / "privacy.json").write_text("another")
    assert (folder / "privacy.json").read_text() == "paid for"
    assert (output / "privacy.json").read_text() == "another"


def test_empty_folder_may_be_the_output(tmp_path):
    with run_folder.new_run_folder(tmp_path / "run") as folder:
        (tmp_path / "run").mkdir()
        (folder / "privacy.json").write_text("{}")
    assert os.listdir(tmp_path / "run") == ["privacy.json"]


def test_json_has_null_for_what_is_not_finite(tmp_path):
    content = {"a": [math.inf, np.float32(0.5), np.int64(3)], "b": {"c": math.nan}, "d": (True, None, "x")}
    expected = {"a": [None, 0.5, 3], "b": {"c": None}, "d": [True, None, "x"]}
    assert run_folder.write_json(tmp_path / "x.json", content) == expected
    assert json.loads((tmp_path / "x.json").read_text()) == expected
