"""Keras's own callbacks and wandb's beside the accountant: they see epsilon, and nothing that was spent is lost."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import data, model

from deel.lipdp.callbacks import DP_Accountant
from deel.lipdp.model import DP_Model, DP_Sequential
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.utils import SignaltoNoiseAverage, SignaltoNoiseHistogram

STEPS = 5  # of an epoch: 40 examples in batches of 8


def fit(private, *callbacks, epochs=3, **kwargs):
    batches = poisson_batches(*data(40), 8)
    return private.fit(batches, epochs=epochs, callbacks=[DP_Accountant(), *callbacks], verbose=0, **kwargs).history


class PowerCut(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_tensorboard_plots_epsilon(tmp_path):
    history = fit(model(), keras.callbacks.TensorBoard(tmp_path))
    [path] = (tmp_path / "train").glob("events*")
    values = [value for event in tf.compat.v1.train.summary_iterator(str(path)) for value in event.summary.value]
    plotted = [float(tf.make_ndarray(value.tensor)) for value in values if value.tag == "epoch_epsilon"]
    assert plotted == [float(np.float32(epsilon)) for epsilon in history["epsilon"]]  # it stores single precision


@pytest.mark.parametrize("cls", [DP_Sequential, DP_Model])
def test_signal_to_noise_reaches_the_callbacks_that_are_listed_later(cls, tmp_path):
    private, examples = model(cls=cls), data(8)
    average, histogram = {}, {}
    fit(
        private,
        SignaltoNoiseAverage(examples, log_fn=average.update),
        SignaltoNoiseHistogram(examples, log_fn=histogram.update),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        epochs=1,
    )
    header, row = (tmp_path / "log.csv").read_text().splitlines()
    seen = dict(zip(header.split(","), row.split(","), strict=True))
    for variable in ("conv_a/kernel", "conv_b/kernel", "dense/kernel"):
        name = f"signal_to_noise/{variable}"
        assert float(seen[name]) == average[name]
        assert float(seen[f"{name}/q50"]) == histogram[f"{name}/q50"]


def test_a_checkpoint_of_keras_holds_what_was_spent_until_then(tmp_path):
    fit(model(), keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"))
    for epoch in (1, 2, 3):
        assert keras.models.load_model(tmp_path / f"{epoch}.keras").ledger.steps == epoch * STEPS
    resumed = keras.models.load_model(tmp_path / "2.keras")
    history = fit(resumed, epochs=1)
    assert resumed.ledger.steps == 3 * STEPS
    assert history["epsilon"][0] == pytest.approx(fit(model())["epsilon"][2])


def test_weights_of_a_checkpoint_put_back_do_not_turn_the_ledger_back(tmp_path):
    private = model()
    fit(private, keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True))
    private.load_weights(tmp_path / "1.weights.h5")
    assert private.ledger.steps == 3 * STEPS


def test_backup_and_restore_of_keras_carries_the_ledger(tmp_path):
    """It knows nothing of a journal, so what came after its last backup is lost with the process; see the pitfalls."""
    with pytest.raises(KeyboardInterrupt):
        fit(model(), keras.callbacks.BackupAndRestore(tmp_path / "backup"), PowerCut(epoch=1))
    resumed = model()
    fit(resumed, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert resumed.ledger.steps == 3 * STEPS


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.callbacks.ReduceLROnPlateau("val_loss", patience=0, min_delta=100.0),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2.0),
        lambda: keras.callbacks.TerminateOnNaN(),
        lambda: keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs["epsilon"]),
        lambda: keras.callbacks.SwapEMAWeights(),
    ],
)
def test_other_callbacks_of_keras_run(make):
    private = model(optimizer=keras.optimizers.SGD(0.1, use_ema=True))
    history = fit(private, make(), validation_data=data(8))
    assert private.ledger.steps == 3 * STEPS and np.all(np.diff(history["epsilon"]) > 0.0)


def test_wandb_metrics_logger_sees_epsilon(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.integration.keras import WandbMetricsLogger

    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", project="lipdp-test", dir=str(tmp_path)) as run:
        history = fit(model(), WandbMetricsLogger())
        assert run.summary["epoch/epsilon"] == pytest.approx(history["epsilon"][-1])
