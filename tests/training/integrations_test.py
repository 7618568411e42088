"""Keras's own callbacks beside the accountant: they see epsilon, and nothing that was spent is lost."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import data, model

from deel.lipdp import _charts
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


@pytest.mark.parametrize("cls", [DP_Sequential, DP_Model])
def test_signal_to_noise_is_drawn(cls, tmp_path, monkeypatch):
    drawn, logged = [], []
    save_png = _charts.save_png
    monkeypatch.setattr(_charts, "save_png", lambda axes, path: drawn.append(axes) or save_png(axes, path))
    charts = tmp_path / "average.png", tmp_path / "tightness.png"
    fit(
        model(cls=cls),
        SignaltoNoiseAverage(data(8), logged.append, png=charts[0]),
        SignaltoNoiseHistogram(data(6), logged.append, png=str(charts[1])),
        epochs=2,
    )
    averages, spreads = logged[::2], logged[1::2]
    for line in drawn[2].get_lines():  # of the second epoch
        assert list(line.get_ydata()) == [values[f"signal_to_noise/{line.get_label()}"] for values in averages]
    names = [label.get_text() for label in drawn[3].get_yticklabels()]
    assert names == [line.get_label() for line in drawn[2].get_lines()] and len(names) == 3
    for row, name in enumerate(names):
        bar, median, largest = (line.get_xdata() for line in drawn[3].get_lines()[3 * row : 3 * row + 3])
        expected = [spreads[1][f"signal_to_noise/{name}/{key}"] for key in ("q5", "q95", "q50", "max")]
        assert [*bar, *median, *largest] == expected
    for chart in charts:
        assert chart.read_bytes().startswith(b"\x89PNG")


def test_a_training_that_starts_again_begins_its_chart_anew(tmp_path):
    average = SignaltoNoiseAverage(data(8), print, png=tmp_path / "chart.png")
    private = model()
    for _ in range(2):
        fit(private, average, epochs=1)
    assert [list(ratios) for ratios in average._history.values()] == 3 * [[1]]


def test_early_stopping_on_epsilon_sees_it_grow(tmp_path):
    """Epsilon only grows, so after `patience` epochs there was no improvement: a budget is `epsilon_max`."""
    stopping = keras.callbacks.EarlyStopping("epsilon", mode="min", patience=2)
    history = fit(model(), stopping, epochs=9)
    assert len(history["epsilon"]) == 3
    history = fit(model(), keras.callbacks.EarlyStopping("epsilon", mode="max", patience=2), epochs=5)
    assert len(history["epsilon"]) == 5


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
