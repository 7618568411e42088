"""Checkpoints: whole or absent, refused when damaged or foreign, resumed to the batch; none forgets a release."""

import errno
import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import NUM_CLASSES, SHAPE, UPPER_BOUND, data, model

from deel.lipdp.callbacks import DP_BackupAndRestore
from deel.lipdp.layers import DP_Abs, DP_BoundedInput, DP_Flatten, DP_QuickSpectralDense
from deel.lipdp.ledger import Ledger
from deel.lipdp.sampling import poisson_batches, shuffled_batches

X, Y = data(40)
BATCHES = 5  # of one epoch


class Crash(keras.callbacks.Callback):
    """Raises after a number of executions, as a killed process would stop."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def unknown_length(x, y, batch_size):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).filter(lambda *_: True)


def layers(width=6, sort=DP_Abs):
    return [
        DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE),
        DP_Flatten(),
        DP_QuickSpectralDense(width),
        sort(),
        DP_QuickSpectralDense(NUM_CLASSES),
    ]


def momentum():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def small(**kwargs):
    """A model with fresh weights and secret noise."""
    return model(**{"layers": layers(), "optimizer": momentum(), **kwargs})


def seeded(**kwargs):
    """A model that starts from the same weights and adds the same noise each time."""
    keras.utils.set_random_seed(0)
    return small(noise_seed=1, **kwargs)


def crash(private, batches, folder, after, epochs=3, initial_epoch=0, **kwargs):
    with pytest.raises(KeyboardInterrupt):
        callbacks = [DP_BackupAndRestore(folder, **kwargs), Crash(after)]
        private.fit(batches, epochs=epochs, initial_epoch=initial_epoch, verbose=0, callbacks=callbacks)
    return private


def resume(private, batches, folder, epochs=3, **kwargs):
    return private.fit(batches, epochs=epochs, verbose=0, callbacks=[DP_BackupAndRestore(folder, **kwargs)])


def counted_on_disk(folder):
    ledger = Ledger()
    ledger.merge_file(folder / "ledger.json")
    return ledger.steps


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same_weights(one, other):
    pairs = zip([*one.weights, *one.optimizer.variables], [*other.weights, *other.optimizer.variables], strict=True)
    for got, expected in pairs:
        np.testing.assert_array_equal(got.numpy(), expected.numpy())


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save_freq", ["epoch", 2])
def test_a_resumed_run_remembers_steps_after_its_last_checkpoint(tmp_path, save_freq):
    batches, folder = poisson_batches(X, Y, 8), tmp_path / "backup"
    private = crash(small(), batches, folder, after=8, save_freq=save_freq)
    assert private.ledger.steps == 8
    counted = counted_on_disk(folder)
    assert 8 <= counted <= 8 + (BATCHES if save_freq == "epoch" else 2)
    resumed = small()
    history = resume(resumed, batches, folder, save_freq=save_freq)
    assert history.epoch == [1, 2]
    # By epochs: the second once more. Every two batches: from the eighth on.
    assert resumed.ledger.steps == counted + (10 if save_freq == "epoch" else 7)
    assert int(resumed.optimizer.iterations) == 15
    assert not folder.exists()


FEW = [(poisson_batches, 3, 3, 3), (shuffled_batches, 4, 1, 7)]
MORE = [("epoch", 1, 8), (2, 1, 8), (4, 1, 7), (4, 1, 11), (5, 1, 10), ("epoch", 3, 3), (3, 3, 3), (1, 3, 2)]
MORE = [(sampler, *case) for case in MORE for sampler in (poisson_batches, shuffled_batches)]


@pytest.mark.parametrize(
    ("sampler", "save_freq", "steps_per_execution", "crash_after"),
    FEW + [pytest.param(*case, marks=pytest.mark.full) for case in MORE if case not in FEW],
)
def test_a_seeded_run_resumes_to_the_weights_of_an_unbroken_one(
    tmp_path, sampler, save_freq, steps_per_execution, crash_after
):
    def run(use, *args, **kwargs):
        private = seeded(compile_arguments={"steps_per_execution": steps_per_execution})
        use(private, sampler(X, Y, 8, seed=2), tmp_path, *args, save_freq=save_freq, **kwargs)
        return private

    unbroken = run(resume)
    assert not tmp_path.exists()
    run(crash, crash_after)
    assert_same_weights(run(resume), unbroken)


def test_a_seeded_run_that_began_at_a_later_epoch(tmp_path):
    unbroken = seeded()
    unbroken.fit(poisson_batches(X, Y, 8, seed=2), epochs=5, initial_epoch=2, verbose=0)
    crash(seeded(), poisson_batches(X, Y, 8, seed=2), tmp_path, 8, epochs=5, initial_epoch=2, save_freq=3)
    resumed = seeded()
    history = resume(resumed, poisson_batches(X, Y, 8, seed=2), tmp_path, epochs=5, save_freq=3)
    assert history.epoch == [3, 4]
    assert_same_weights(resumed, unbroken)


def test_batches_that_are_passed_by_do_not_reach_into_the_next_epoch(tmp_path):
    def run(use, *args):
        private = small(compile_arguments={"steps_per_execution": 3})
        use(private, unknown_length(X, Y, 8), tmp_path, *args, save_freq=3)
        return private

    run(crash, 2)  # saved after the second execution, of two batches: Keras calls them the fourth to the sixth
    assert int(run(resume).optimizer.iterations) == 3 * BATCHES


def test_a_resumed_fit_is_a_fit_as_any_other(tmp_path):
    crash(small(metrics=["accuracy"]), poisson_batches(X, Y, 8), tmp_path / "backup", 7, save_freq=1)
    resumed = small(metrics=["accuracy"])
    callbacks = [DP_BackupAndRestore(tmp_path / "backup"), keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    history = resumed.fit(poisson_batches(X, Y, 8), epochs=3, verbose=0, validation_data=(X, Y), callbacks=callbacks)
    assert set(history.history) >= {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert all(len(values) == 2 for values in history.history.values())
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert resumed.fit(poisson_batches(X, Y, 8), epochs=1, verbose=0).epoch == [0]


def test_a_run_that_ended_well(tmp_path):
    private, batches = small(), poisson_batches(X, Y, 8)
    resume(private, batches, tmp_path, delete_checkpoint=False)
    assert names(tmp_path) == ["checkpoint-000003.json", "checkpoint-000003.keras", "ledger.json"]
    assert private.ledger.steps == counted_on_disk(tmp_path) == 15  # nothing stays reserved
    again = small()
    assert resume(again, batches, tmp_path, delete_checkpoint=False).epoch == []
    assert again.ledger.steps == 15
    again.fit(batches, epochs=1, verbose=0)
    assert again.ledger.steps == 20 and counted_on_disk(tmp_path) == 15


def test_later_fits_in_the_same_process(tmp_path):
    private, batches = small(), poisson_batches(X, Y, 8)
    backup = DP_BackupAndRestore(tmp_path, save_freq=3, ahead=20)
    for passed_by in (0, 3):
        with pytest.raises(KeyboardInterrupt):
            private.fit(batches, epochs=3, verbose=0, callbacks=[backup, Crash(passed_by + 4)])
    # Memory knows what was taken of what was reserved: twice four steps, the second time from the third on.
    assert private.ledger.steps == 8 and counted_on_disk(tmp_path) >= 8
    private.fit(batches, epochs=3, verbose=0, callbacks=[backup])
    assert private.ledger.steps == 8 + 9 and not tmp_path.exists()
    private.fit(batches, epochs=1, verbose=0, callbacks=[backup])
    assert private.ledger.steps == 22 and not tmp_path.exists()


def test_passes_are_reserved_one_at_a_time(tmp_path):
    private = crash(small(), shuffled_batches(X, Y, 8), tmp_path, 7)
    assert private.ledger.steps == 2
    assert counted_on_disk(tmp_path) == 3
    resumed = small()
    resume(resumed, shuffled_batches(X, Y, 8), tmp_path)
    assert resumed.ledger.steps == 3 + 2


# -- what is refused -------------------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Folder of a run that took eight steps, with checkpoints after the sixth and the eighth."""
    folder = tmp_path_factory.mktemp("checkpoints") / "backup"
    crash(small(), poisson_batches(X, Y, 8), folder, 8, save_freq=2, double_checkpoint=True)
    return folder


@pytest.fixture
def backup(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "backup")


def assert_refused(folder, words, private):
    """Training does not begin, and neither the files nor the model are touched. Returns the message."""
    before, weights, ledger = contents(folder), private.get_weights(), private.ledger.to_json()
    with pytest.raises(ValueError, match=words) as refusal:
        resume(private, poisson_batches(X, Y, 8), folder)
    assert contents(folder) == before and private.ledger.to_json() == ledger
    assert int(private.optimizer.iterations) == 0
    for got, expected in zip(private.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, expected)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [("keras", flip), ("keras", truncate), ("keras", os.remove), ("json", truncate)],
)
def test_a_damaged_checkpoint_is_refused_and_the_older_one_named(backup, suffix, damage):
    damage(backup / f"checkpoint-000004.{suffix}")
    told = assert_refused(backup, "damaged", small())
    assert f"Received: '{backup / 'checkpoint-000004'}.{suffix}'" in told
    assert f"'{backup / 'checkpoint-000003.keras'}': delete '{backup / 'checkpoint-000004.json'}'" in told
    for path in backup.glob("checkpoint-000003.*"):
        path.unlink()
    assert "There is no older one" in assert_refused(backup, "damaged", small())


@pytest.mark.parametrize("double", [True, False])
def test_what_the_refusal_of_a_damaged_checkpoint_says_to_do(backup, double):
    counted = counted_on_disk(backup)
    os.remove(backup / "checkpoint-000004.json")
    if not double:
        os.remove(backup / "checkpoint-000003.json")
    resumed = small()
    resume(resumed, poisson_batches(X, Y, 8), backup)
    assert int(resumed.optimizer.iterations) == 15
    assert resumed.ledger.steps == counted + 15 - (6 if double else 0)


@pytest.mark.parametrize(
    "other",
    [
        {"layers": layers(sort=DP_Flatten)},
        {"layers": layers(width=7)},
        {"optimizer": keras.optimizers.SGD(0.1)},
        {"optimizer": keras.optimizers.Lion(0.1)},
    ],
    ids=["layers", "shapes", "momentum", "optimizer"],
)
def test_a_checkpoint_of_another_model_is_refused(backup, other):
    assert_refused(backup, "model of the checkpoint", small(**other))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("ledger.json", lambda path: path.write_text("{"), "ledger.json.*damaged"),
        ("ledger.json", lambda path: path.write_bytes(b"\xff\xfe\xff"), "ledger.json.*damaged"),
        ("ledger.json", lambda path: edit(path, version=3), "Update lipdp"),
        ("ledger.json", os.remove, "ledger.json"),
        ("checkpoint-000004.json", lambda path: edit(path, version=2), "Update lipdp"),
        ("checkpoint-000004.json", lambda path: edit(path, batch=-1), "batch"),
        ("checkpoint-000004.json", lambda path: path.write_text("[]"), "damaged"),
    ],
)
def test_what_cannot_be_counted_or_understood_is_refused(backup, name, damage, words):
    damage(backup / name)
    assert_refused(backup, words, small())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"backup_dir": ""}, ValueError),
        ({"save_freq": "batch"}, TypeError),
        ({"save_freq": 0}, ValueError),
        ({"ahead": 0}, ValueError),
        ({"ahead": 1.5}, TypeError),
    ],
)
def test_arguments(arguments, error):
    with pytest.raises(error, match=f"DP_BackupAndRestore.*{next(iter(arguments))}"):
        DP_BackupAndRestore(**{"backup_dir": "folder", **arguments})


# -- disks -----------------------------------------------------------------------------------------------------------


def test_leftovers_of_killed_saves_are_removed(backup):
    (backup / "unfinished").mkdir()
    (backup / "unfinished" / "checkpoint-000005.keras").write_bytes(b"half")
    (backup / "checkpoint-000005.keras").write_bytes(b"whole, and without a record")
    (backup / "checkpoint-000005.json.tmp").write_text("{")
    (backup / "ledger.json.tmp").write_text("{")
    (backup / "notes.txt").write_text("not ours")
    private = small()
    crash(private, poisson_batches(X, Y, 8), backup, 1)
    assert names(backup) == ["checkpoint-000004.json", "checkpoint-000004.keras", "ledger.json", "notes.txt"]
    resume(private, poisson_batches(X, Y, 8), backup)
    assert names(backup) == ["notes.txt"]


class FullDisk(keras.callbacks.Callback):
    """From one epoch on, `os.fsync` says that the disk is full."""

    def __init__(self, monkeypatch, epoch):
        super().__init__()
        self.monkeypatch, self.epoch = monkeypatch, epoch

    def on_epoch_begin(self, epoch, logs=None):
        def fsync(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if epoch == self.epoch:
            self.monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_stops_training_before_the_step_that_cannot_be_counted(tmp_path, monkeypatch):
    private, batches = seeded(), poisson_batches(X, Y, 8)
    with pytest.raises(OSError, match="Ledger: .*No space left") as refusal:
        callbacks = [FullDisk(monkeypatch, 1), DP_BackupAndRestore(tmp_path)]
        private.fit(batches, epochs=3, verbose=0, callbacks=callbacks)
    assert refusal.value.errno == errno.ENOSPC
    assert int(private.optimizer.iterations) == private.ledger.steps == BATCHES
    assert names(tmp_path) == ["checkpoint-000001.json", "checkpoint-000001.keras", "ledger.json"]
    assert counted_on_disk(tmp_path) == BATCHES
    monkeypatch.undo()
    resume(private, batches, tmp_path)
    assert int(private.optimizer.iterations) == private.ledger.steps == 15


def test_a_full_disk_in_a_save_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    private, batches = seeded(), poisson_batches(X, Y, 8)
    with pytest.raises(OSError, match="to write a checkpoint.*No space left.*checkpoint-000001"):
        callbacks = [FullDisk(monkeypatch, 1), DP_BackupAndRestore(tmp_path, ahead=100)]
        private.fit(batches, epochs=3, verbose=0, callbacks=callbacks)
    assert names(tmp_path) == ["checkpoint-000001.json", "checkpoint-000001.keras", "ledger.json"]
    monkeypatch.undo()
    resumed = seeded()
    resume(resumed, batches, tmp_path)
    assert int(resumed.optimizer.iterations) == 15
    assert resumed.ledger.steps == 100 + 10


def test_a_file_that_the_system_will_not_let_grow(tmp_path):
    """The same with an error of the system itself, in the middle of the file and at its very end."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    private, batches = seeded(), poisson_batches(X, Y, 8)
    crash(private, batches, tmp_path, 6)
    [weights] = tmp_path.glob("*.keras")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = contents(tmp_path)
    for size in (weights.stat().st_size // 2, weights.stat().st_size - 1, 10_000):
        backup = DP_BackupAndRestore(tmp_path)
        backup.set_model(private)
        backup.on_train_begin()
        backup.on_epoch_begin(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match="to write a checkpoint"):
                backup.on_epoch_end(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert contents(tmp_path) == before


def test_file_then_name(tmp_path, monkeypatch):
    """What a name points to is on the disk before the name is, and a record is there after its weights."""
    order = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def noted_replace(source, target):
        order.append(os.path.splitext(target)[1])
        replace(source, target)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("no way to tell what a descriptor is of")
    backup = DP_BackupAndRestore(tmp_path, ahead=100)
    monkeypatch.setattr(os, "replace", noted_replace)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    with pytest.raises(KeyboardInterrupt):
        small().fit(poisson_batches(X, Y, 8), epochs=2, verbose=0, callbacks=[backup, Crash(6)])
    durable = ["file", ".json", "folder"]
    assert order == [*durable, "file", ".keras", "folder", *durable]
