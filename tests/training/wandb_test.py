"""DP_Accountant with the real wandb, in its offline mode."""

import pytest
from doubles import data, model

from deel.lipdp.callbacks import DP_Accountant
from deel.lipdp.sampling import poisson_batches

wandb = pytest.importorskip("wandb")


@pytest.mark.parametrize("log_fn", ["wandb", "all"])
def test_epsilon_reaches_an_active_run(tmp_path, monkeypatch, log_fn):
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    x, y = data(40)
    private = model(noise_multiplier=3.0)
    with wandb.init(mode="offline", project="lipdp-test", dir=str(tmp_path)) as run:
        history = private.fit(poisson_batches(x, y, 8), epochs=2, verbose=0, callbacks=[DP_Accountant(log_fn)])
        assert run.summary["epsilon"] == pytest.approx(history.history["epsilon"][-1])
        assert run.summary["epoch"] == 2
    assert list(tmp_path.rglob("*.wandb"))


def test_all_without_an_active_run_is_silent():
    x, y = data(40)
    model().fit(x, y, verbose=0, callbacks=[DP_Accountant()])


def test_wandb_without_wandb_names_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install lipdp\[wandb\]"):
        DP_Accountant("wandb")
