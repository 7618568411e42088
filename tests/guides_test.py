"""What the guides show runs, and their pictures and tables say what the library computes."""

import json
import math
import pathlib
import re
import subprocess
import sys

import doubles
import keras
import numpy as np
import pandas as pd
import pytest

from deel.lipdp import layers
from deel.lipdp.accounting import GaussianStep, PoissonSampling, calibrate_noise, compute_epsilon
from deel.lipdp.bounds import compute_gradient_bounds
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DatasetMetadata, DP_Accountant, DP_Sequential
from deel.lipdp.sampling import poisson_batches

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def python_in(page):
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(code, page):
    namespace = {"__name__": page}
    exec(compile(code, page, "exec"), namespace)
    return namespace


def fit_with_the_mechanism(epochs, epsilon_max=None):
    x, y = doubles.data(200)
    model, batches = doubles.model(n=200, batch_size=20), poisson_batches(x, y, 20)
    [code] = python_in("adding_a_mechanism.md")
    accuracy = run(code, "adding_a_mechanism.md")["PrivateAccuracy"](batches, noise_multiplier=2.0)
    accountant = DP_Accountant(accountant="pld", epsilon_max=epsilon_max)
    history = model.fit(batches, epochs=epochs, callbacks=[accuracy, accountant], verbose=0).history
    return accuracy, dict(model.ledger.entries()), history


def test_the_mechanism_of_the_guide_is_counted():
    accuracy, entries, history = fit_with_the_mechanism(epochs=3)
    step, release = GaussianStep(PoissonSampling(0.1), 1.0 / 3**0.5), GaussianStep(PoissonSampling(0.1), 2.0)
    assert entries[release] == 3 and accuracy.planned_releases(3) == [(release, 3)]
    assert sorted(entries.values()) == [3, 30]
    assert history["epsilon"][-1] == pytest.approx(compute_epsilon(entries.items(), 1e-5, "pld"))
    assert history["epsilon"][-1] > compute_epsilon([(step, 30)], 1e-5, "pld")
    # Shares of some 20 examples, 40 at most but for odds of 1e-5, and noise of stddev 0.1.
    assert len(accuracy.estimates) == 3 and all(-1.0 < estimate < 3.0 for estimate in accuracy.estimates)


def test_the_mechanism_of_the_guide_releases_nothing_beyond_the_budget():
    _, entries, _ = fit_with_the_mechanism(epochs=1)
    [step] = [event for event in entries if event.noise_multiplier != 2.0]
    one_epoch = compute_epsilon([(step, 10)], 1e-5, "pld")
    accuracy, entries, _ = fit_with_the_mechanism(epochs=1, epsilon_max=one_epoch + 1e-6)
    assert entries == {step: 10} and accuracy.estimates == []


def test_the_picture_of_the_bounds_is_true():
    stack = [
        layers.DP_BoundedInput(1.0, input_shape=(28, 28, 1)),
        layers.DP_QuickSpectralConv2D(16, 5, strides=2, padding="same", name="conv"),
        layers.DP_GroupSort(2),
        layers.DP_ScaledL2NormPooling2D(2),
        layers.DP_Flatten(),
        layers.DP_QuickSpectralDense(10, name="dense"),
        layers.DP_ClipGradient(0.5),
    ]
    metadata = DatasetMetadata((28, 28, 1), 60_000, 1_000, max_norm=1.0, nb_classes=10)
    model = DP_Sequential(stack, dp_parameters=doubles.parameters(), dataset_metadata=metadata)
    model.compile(keras.optimizers.SGD(), loss=DP_TauCategoricalCrossentropy(8.0))
    bounds = compute_gradient_bounds(model)
    slack = 1.001  # for rounding
    picture = (DOCS / "pictures" / "bounds.svg").read_text(encoding="utf-8")
    factor = model.get_layer("conv").backpropagate_params(1.0, 1.0)
    assert f"f X G = {factor:.2f} · 1 · 0.5 = {bounds['conv/kernel'] / slack:.2f}<" in picture
    assert f"X G = 1 · 0.5 = {bounds['dense/kernel'] / slack:.1f}<" in picture


def test_the_prices_of_batch_sizes_are_true():
    page = (DOCS / "choosing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.e-]+) \|$", page, re.MULTILINE)
    assert len(rows) == 5

    def multiplier(batch_size, epochs=40):
        return calibrate_noise(3.0, 1e-5, batch_size, 60_000, epochs, accountant="pld")

    for batch_size, steps, stated, ratio in rows:
        found = multiplier(int(batch_size))
        assert int(steps) == 40 * math.ceil(60_000 / int(batch_size))
        assert f"{found:.3f}" == stated and f"{found / int(batch_size):.1e}" == ratio
    few, many = multiplier(8192, epochs=5), multiplier(8192, epochs=80)
    assert f"the multiplier grows from {few:.2f} to {many:.2f}" in page


def test_a_table_from_a_file_is_trained_on_and_served_without_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    patients = rng.uniform([20, 40, 80], [90, 120, 220], (8000, 3))
    ill = patients[:, 0] / 100 + patients[:, 2] / 200 + 0.1 * rng.normal(size=8000) > 1.3
    table = pd.DataFrame(patients, columns=["age", "weight", "pressure"])
    table.loc[::7, "weight"] = np.nan  # in the training and in the test part
    table.assign(sex=np.where(rng.random(8000) < 0.5, "female", "male"), ill=np.where(ill, "yes", "no")).to_csv(
        "patients.csv", index=False
    )
    train, serve = python_in("your_data.md")
    namespace = run(train, "your_data.md")
    rows = namespace["rows"]
    assert np.isfinite(rows).all() and rows[:, 3].sum() == math.ceil(8000 / 7)  # the marks of the gaps
    assert np.max(np.linalg.norm(rows, axis=1)) <= namespace["metadata"].max_norm
    history = namespace["model"].history.history
    test = namespace["model"].evaluate(namespace["ds_test"], return_dict=True, verbose=0)
    assert 1.8 < history["epsilon"][-1] <= 2.0 and test["accuracy"] > 0.85
    assert json.loads(pathlib.Path("privacy.json").read_text())["epsilon"] <= 2.0
    # In a process that cannot import the library.
    code = f"import sys; sys.modules['deel'] = None\n{serve}\nprint(*row, *map(float, scores[0]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    verdict, numbers = result.stdout.splitlines()
    *row, no, yes = map(float, numbers.split())
    [expected] = namespace["to_rows"](pd.DataFrame({"age": [71], "weight": np.nan, "pressure": 190, "sex": "female"}))
    np.testing.assert_array_equal(np.array(row, "float32"), expected)
    np.testing.assert_array_equal([no, yes], namespace["model"](expected[None])[0])  # the same operations
    assert verdict == "ill" and yes > no
