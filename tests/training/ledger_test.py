"""What was released is counted, whatever Keras does around the step, and the count never goes down."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import data, model

from deel.lipdp.accounting import GaussianStep, PoissonSampling, UndeclaredSampling, compute_epsilon
from deel.lipdp.callbacks import DP_Accountant, DP_BackupAndRestore
from deel.lipdp.ledger import Ledger
from deel.lipdp.model import get_eps_delta
from deel.lipdp.sampling import poisson_batches


def unknown_length(x, y, batch_size):
    """Batches of a data set whose length TensorFlow does not know."""
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).filter(lambda *_: True)


def test_every_way_of_training_counts():
    x, y = data(40)
    private = model()
    private.fit(x, y, epochs=2, verbose=0)
    assert private.ledger.steps == 10
    private.fit(x, y, epochs=5, initial_epoch=4, verbose=0)  # a second fit, one epoch of it
    assert private.ledger.steps == 15
    private.fit(unknown_length(x, y, 8), epochs=3, verbose=0)  # no phantom step at the end of an epoch
    assert private.ledger.steps == 30
    private.fit(unknown_length(x, y, 8).repeat(), epochs=1, steps_per_epoch=7, verbose=0)
    assert private.ledger.steps == 37
    private.train_on_batch(x[:8], y[:8])
    assert private.ledger.steps == 38
    private.evaluate(x, y, verbose=0)
    private.predict(x, verbose=0)
    assert private.ledger.steps == 38


class TrainsInside(keras.callbacks.Callback):
    """Trains in the middle of a fit, on batches of another origin."""

    def __init__(self, train):
        super().__init__()
        self.train = train

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.train(self.model)


def test_training_inside_training_and_after_it_is_counted_for_what_it_is():
    x, y = data(40)
    private = model()
    inside = TrainsInside(lambda m: m.train_on_batch(x[:8], y[:8]))
    private.fit(poisson_batches(x, y, 8), verbose=0, callbacks=[inside])
    counts = {event.sampling.name: steps for event, steps in private.ledger.entries()}
    assert counts == {"poisson": 5, "undeclared": 1}
    inside = TrainsInside(lambda m: m.fit(poisson_batches(x, y, 8, steps=2), verbose=0))
    private.fit(x, y, verbose=0, callbacks=[inside])
    with pytest.raises(ValueError, match="batch_size=3"):
        private.fit(poisson_batches(x, y, 8), batch_size=3)
    private.train_on_batch(x[:8], y[:8])
    private.run_eagerly = True
    private.train_step((x[:8], y[:8]))
    counts = {event.sampling.name: steps for event, steps in private.ledger.entries()}
    assert counts == {"poisson": 7, "undeclared": 1 + 5 + 1 + 1}


def test_graphs_are_kept_between_fits():
    x, y = data(40)
    private = model()
    private.fit(x, y, verbose=0)
    [first] = private._graphs.functions.values()
    private.fit(x, y, verbose=0)
    private.train_on_batch(x[:8], y[:8])
    assert list(private._graphs.functions.values()) == [first]


def test_steps_per_execution_counts_each_step():
    x, y = data(40)
    private = model(compile_arguments={"steps_per_execution": 3})
    private.fit(unknown_length(x, y, 8), epochs=2, verbose=0)
    assert private.ledger.steps == 10


def test_poisson_and_undeclared_are_two_events():
    x, y = data(40)
    private = model()
    private.fit(poisson_batches(x, y, 8), verbose=0)
    private.fit(poisson_batches(x, y, 8).take(2), verbose=0)  # derived: what it samples is no longer known
    private.fit(x, y, verbose=0)
    joint = 1.0 / math.sqrt(3)
    poisson, undeclared = GaussianStep(PoissonSampling(0.2), joint), GaussianStep(UndeclaredSampling(), joint)
    assert dict(private.ledger.entries()) == {poisson: 5, undeclared: 7}
    assert get_eps_delta(private)[0] == compute_epsilon([(poisson, 5), (undeclared, 7)], 1e-5)


def test_changed_noise_is_another_event(tmp_path):
    x, y = data(40)
    first = model(noise_multiplier=1.0)
    first.fit(x, y, verbose=0)
    first.save_weights(tmp_path / "w.weights.h5")
    second = model(noise_multiplier=2.0)
    second.load_weights(tmp_path / "w.weights.h5")
    second.fit(x, y, verbose=0)
    assert sorted((event.noise_multiplier, steps) for event, steps in second.ledger.entries()) == [
        (pytest.approx(1 / math.sqrt(3)), 5),
        (pytest.approx(2 / math.sqrt(3)), 5),
    ]


def test_nothing_that_sets_weights_lowers_the_count(tmp_path):
    x, y = data(40)
    private = model(metrics=["accuracy"])
    private.fit(x, y, epochs=1, verbose=0)
    private.save_weights(tmp_path / "early.weights.h5")
    early = private.get_weights()
    stopper = keras.callbacks.EarlyStopping("val_loss", patience=0, restore_best_weights=True, min_delta=10.0)
    private.fit(x, y, epochs=3, verbose=0, validation_data=(x, y), callbacks=[stopper])
    assert private.ledger.steps == 15  # stopped after two epochs, went back to the first
    private.load_weights(tmp_path / "early.weights.h5")
    private.set_weights(early)
    assert private.ledger.steps == 15
    fresh = model()
    fresh.load_weights(tmp_path / "early.weights.h5")
    assert fresh.ledger.steps == 5


def test_ledger_travels_with_the_saved_model(tmp_path):
    x, y = data(40)
    private = model(metrics=["accuracy"])
    private.fit(poisson_batches(x, y, 8), epochs=2, verbose=0)
    private.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.ledger.entries() == private.ledger.entries()
    assert get_eps_delta(loaded) == get_eps_delta(private)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), private.predict(x, verbose=0))
    loaded.fit(poisson_batches(x, y, 8), verbose=0)
    assert loaded.ledger.steps == 15
    assert private.ledger.steps == 10  # two models share nothing


def count(ledger, event, steps):
    counter = ledger.counter(event)
    counter.assign(counter.value + steps)


def test_ledgers_that_meet():
    event, other = GaussianStep(PoissonSampling(0.1), 1.0), GaussianStep(UndeclaredSampling(), 1.0)
    first, second = Ledger(), Ledger()
    count(first, event, 7)
    earlier = first.to_json()
    count(first, event, 3)
    first.merge_json(earlier)  # a checkpoint of its own: the larger count
    assert first.entries() == [(event, 10)]
    second.merge_json(earlier)
    second.merge_json(first.to_json())  # two moments of one run: the later
    assert second.entries() == [(event, 10)]
    count(second, event, 2)
    count(second, other, 1)
    assert dict(second.entries()) == {event: 12, other: 1}  # two runs: the sum
    first.merge_json(second.to_json())
    assert dict(first.entries()) == {event: 12, other: 1}
    second.seeded = True
    first.merge_json(second.to_json())
    first.merge_json(Ledger().to_json())
    assert first.seeded and first.steps == 13


def test_weights_of_another_run_bring_what_was_spent_on_them(tmp_path):
    x, y = data(40)
    models = [model(optimizer=keras.optimizers.SGD(0.1, momentum=0.9)) for _ in range(2)]
    for private in models:
        private.fit(x, y, verbose=0)
    models[1].save_weights(tmp_path / "w.weights.h5")
    models[0].load_weights(tmp_path / "w.weights.h5")  # its momentum still comes from its own data
    assert models[0].ledger.steps == 10


def test_the_format_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(ValueError, match="HDF5"):
        model().save(tmp_path / "model.h5")
    assert not (tmp_path / "model.h5").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("{}", "damaged"),
        ('{"version": 1}', "damaged"),
        ('{"version": 1, "seeded": false, "entries": [{"event": "other", "steps": 1}]}', "damaged"),
        ('{"version": 3, "entries": []}', "version 3"),
    ],
)
def test_unreadable_ledgers_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        Ledger().merge_json(text)


def one_entry(**changes):
    entry = {
        "event": "gaussian_step",
        "noise_multiplier": 1.0,
        "sampling": {"name": "undeclared"},
        "counted_by": "another",
    }
    return {"seeded": False, "entries": [{**entry, **changes}]}


@pytest.mark.parametrize(("version", "key"), [(1, "steps"), (2, "count")])
def test_every_version_is_read(version, key):
    ledger = Ledger()
    ledger.merge_json(json.dumps({"version": version, **one_entry(**{key: 7})}))
    assert ledger.entries() == [(GaussianStep(UndeclaredSampling(), 1.0), 7)]
    with pytest.raises(ValueError, match=key):
        Ledger().merge_json(json.dumps({"version": version, **one_entry(**{key: -1})}))


def test_seeded_noise_or_batches_void_epsilon():
    x, y = data(40)
    seeded = model(noise_seed=1)
    seeded.fit(x, y, verbose=0)
    assert get_eps_delta(seeded)[0] == math.inf
    assert get_eps_delta(seeded, epochs=1)[0] == math.inf
    sampled = model()
    sampled.fit(poisson_batches(x, y, 8, seed=1), verbose=0)
    assert get_eps_delta(sampled)[0] == math.inf
    assert get_eps_delta(sampled, epochs=0)[0] == 0.0


# -- DP_Accountant ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_accountant_reports_in_history_callable_and_csv(tmp_path, accountant):
    x, y = data(40)
    seen = []
    private = model(noise_multiplier=3.0)
    callbacks = [DP_Accountant(seen.append, accountant), keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    history = private.fit(poisson_batches(x, y, 8), epochs=2, verbose=0, callbacks=callbacks)
    expected = [get_eps_delta(private, epochs=0, accountant=accountant)[0]]
    event = private.ledger.entries()[0][0]
    expected = [compute_epsilon([(event, steps)], 1e-5, accountant) for steps in (5, 10)]
    assert history.history["epsilon"] == pytest.approx(expected)
    assert history.history["delta"] == [1e-5, 1e-5]
    assert seen == [{"epsilon": pytest.approx(e), "delta": 1e-5, "epoch": i + 1} for i, e in enumerate(expected)]
    rows = (tmp_path / "log.csv").read_text().splitlines()
    column = rows[0].split(",").index("epsilon")
    assert [float(row.split(",")[column]) for row in rows[1:]] == pytest.approx(expected)


@pytest.mark.parametrize("steps_per_execution", [1, 7])
def test_epsilon_max_stops_before_the_step_that_exceeds_it(steps_per_execution):
    x, y = data(40)
    private = model(noise_multiplier=3.0, compile_arguments={"steps_per_execution": steps_per_execution})
    event = GaussianStep(PoissonSampling(0.2), 3.0 / math.sqrt(3))
    budget = compute_epsilon([(event, 9)], 1e-5, "pld") * (1 + 1e-9)
    accountant = DP_Accountant("logging", "pld", epsilon_max=budget)
    private.fit(poisson_batches(x, y, 8, steps=20), epochs=3, verbose=0, callbacks=[accountant])
    assert private.ledger.entries() == [(event, 9)]
    weights = private.get_weights()
    private.fit(poisson_batches(x, y, 8), verbose=0, callbacks=[accountant])  # nothing is left
    assert private.ledger.steps == 9
    for before, after in zip(weights, private.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    private.fit(poisson_batches(x, y, 8), verbose=0)  # the limit went with its callback
    assert private.ledger.steps == 14


def test_of_two_budgets_the_smaller_holds_whatever_is_restored(tmp_path):
    x, y = data(40)
    event = GaussianStep(PoissonSampling(0.2), 3.0 / math.sqrt(3))
    budgets = [compute_epsilon([(event, steps)], 1e-5, "pld") * (1 + 1e-9) for steps in (9, 20)]
    earlier = Ledger()
    count(earlier, event, 6)
    tmp_path.joinpath("backup").mkdir()
    earlier.write(tmp_path / "backup" / "ledger.json")
    private = model(noise_multiplier=3.0)
    callbacks = [DP_Accountant("logging", "pld", epsilon_max=budget) for budget in budgets]
    callbacks.append(DP_BackupAndRestore(tmp_path / "backup"))  # restores after the accountants began
    private.fit(poisson_batches(x, y, 8), epochs=3, verbose=0, callbacks=callbacks)
    assert private.ledger.entries() == [(event, 9)]


def test_log_fn():
    with pytest.raises(ValueError, match="'all', 'logging', 'wandb'"):
        DP_Accountant("print")
    with pytest.raises(ValueError, match="'rdp', 'pld'"):
        DP_Accountant(accountant="moments")
    with pytest.raises(ValueError, match="epsilon_max"):
        DP_Accountant(epsilon_max=0)


def test_log_fn_logging(caplog):
    x, y = data(40)
    with caplog.at_level("INFO", logger="deel.lipdp"):
        model().fit(x, y, verbose=0, callbacks=[DP_Accountant()])
    assert any("'epsilon'" in record.getMessage() for record in caplog.records)
