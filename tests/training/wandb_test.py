"""Callbacks with the real wandb, in its offline mode."""

import pytest
from doubles import data, model

from deel.lipdp.callbacks import DP_Accountant
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.utils import SignaltoNoiseAverage, SignaltoNoiseHistogram

wandb = pytest.importorskip("wandb")


@pytest.fixture
def run(tmp_path, monkeypatch):
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", project="lipdp-test", dir=str(tmp_path)) as run:
        yield run
    assert list(tmp_path.rglob("*.wandb"))


def fit(*callbacks):
    return model().fit(poisson_batches(*data(40), 8), epochs=2, verbose=0, callbacks=list(callbacks)).history


@pytest.mark.parametrize("log_fn", ["wandb", "all"])
def test_epsilon_reaches_an_active_run(run, log_fn):
    history = fit(DP_Accountant(log_fn))
    assert run.summary["epsilon"] == pytest.approx(history["epsilon"][-1])
    assert run.summary["epoch"] == 2


@pytest.mark.parametrize("log_fn", ["wandb", "all"])
def test_signal_to_noise_reaches_an_active_run(run, log_fn):
    logged = []
    average, histogram = SignaltoNoiseAverage(data(8), log_fn), SignaltoNoiseHistogram(data(6), log_fn, bins=4)
    fit(
        average, SignaltoNoiseAverage(data(8), logged.append), histogram, SignaltoNoiseHistogram(data(6), logged.append)
    )
    *_, ratios, spreads = logged
    name = "signal_to_noise/dense/kernel"
    assert run.summary[name] == pytest.approx(ratios[name])
    assert run.summary[f"{name}/q50"] == pytest.approx(spreads[f"{name}/q50"])
    drawn = run.summary[f"{name}/histogram"]  # not a list, of which wandb draws nothing
    assert drawn["_type"] == "histogram" and drawn["bins"] == [0.0, 0.25, 0.5, 0.75, 1.0] and sum(drawn["values"]) == 6


def test_metrics_logger_of_wandb_sees_epsilon(run):
    from wandb.integration.keras import WandbMetricsLogger

    history = fit(DP_Accountant(print), WandbMetricsLogger())
    assert run.summary["epoch/epsilon"] == pytest.approx(history["epsilon"][-1])


def test_all_without_an_active_run_is_silent():
    fit(DP_Accountant())


def test_wandb_without_wandb_names_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install lipdp\[wandb\]"):
        DP_Accountant("wandb")
