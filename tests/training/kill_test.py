"""A run killed with SIGKILL at any moment forgets no release and loses one checkpoint interval at most.

Real processes, real kills, also inside a save. Run as a script, this file is the process that trains.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time
import traceback

import numpy as np
import pytest

# Where TensorFlow survives it: one import for all runs of a test. (It starts its threads when it is first used.)
FORKS = sys.platform == "linux"
INTERVAL = {3: 3, "epoch": 5}  # save_freq -> batches from one checkpoint to the next
POINTS_IN_A_SAVE = 14
MOST_STEPS = 15  # of a run that is to be killed, after which it waits

# -- the process that trains -----------------------------------------------------------------------------------------


def train(folder, save_freq, epochs, to_be_killed, block_at):
    """Trains a tiny seeded model; waits for the kill at point `block_at` of its first save, if that is not None."""
    import keras
    from doubles import NUM_CLASSES, SHAPE, UPPER_BOUND, data, model

    from deel.lipdp import layers as dp
    from deel.lipdp.callbacks import DP_BackupAndRestore
    from deel.lipdp.sampling import poisson_batches

    folder, replace = pathlib.Path(folder), os.replace

    def note(name, **facts):
        (folder / f"{name}.tmp").write_text(json.dumps(facts))
        replace(folder / f"{name}.tmp", folder / name)

    class Backup(DP_BackupAndRestore):
        """Counts the moments of a save at which a kill could do harm, and waits to be killed at one of them."""

        point = None  # None outside of a save

        def pass_point(self):
            if self.point is None:
                return
            if self.point == block_at:
                note("inside_a_save", point=self.point)
                time.sleep(600)
            self.point += 1

        def between_points(self, function):
            def wrapped(*args, **kwargs):
                self.pass_point()
                result = function(*args, **kwargs)
                self.pass_point()
                return result

            return wrapped

        def _save(self, epoch, batch):
            self.point = 0
            super()._save(epoch, batch)
            if block_at is not None:
                raise AssertionError(f"a save has {self.point} points only")
            self.point = None
            note("saved", iterations=int(self.model.optimizer.iterations))

    class Truth(keras.callbacks.Callback):
        """Writes down, before each step, how many steps all runs together will have taken after it."""

        def on_train_begin(self, logs=None):
            self.start = int(self.model.optimizer.iterations)
            self.before = json.loads((folder / "truth").read_text())["taken"] if (folder / "truth").exists() else 0
            note("resumed", iterations=self.start, counted=self.model.ledger.steps, taken=self.before)

        def on_train_batch_begin(self, batch, logs=None):
            iterations = int(self.model.optimizer.iterations)
            if to_be_killed and iterations - self.start == MOST_STEPS:
                time.sleep(600)
            note("truth", taken=self.before + iterations - self.start + 1, iterations=iterations)

    keras.utils.set_random_seed(0)
    layers = [
        dp.DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE),
        dp.DP_Flatten(),
        dp.DP_QuickSpectralDense(NUM_CLASSES),
    ]
    private = model(layers, optimizer=keras.optimizers.Adam(0.01), noise_multiplier=5.0, noise_seed=1)
    backup = Backup(folder / "backup", save_freq=save_freq)
    os.fsync, os.replace = backup.between_points(os.fsync), backup.between_points(os.replace)
    private.save_own_variables = backup.between_points(private.save_own_variables)
    x, y = data(40)
    private.fit(poisson_batches(x, y, 8, seed=2), epochs=epochs, verbose=0, callbacks=[backup, Truth()])
    variables = [*private.weights, *private.optimizer.variables]
    np.savez(folder / "weights.npz", *[variable.numpy() for variable in variables])
    note("done", counted=private.ledger.steps)


def serve():
    """Forks a process for each line of settings, and says its id and how it ended."""
    import tensorflow  # noqa: F401

    import deel.lipdp.model
    import deel.lipdp.sampling  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)  # what it prints is no answer
            try:
                train(**json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


# -- the test --------------------------------------------------------------------------------------------------------


def start(*arguments, **pipes):
    tests = str(pathlib.Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=environment, text=True, **pipes)


class Runs:
    """Starts runs, one at a time."""

    def __init__(self):
        self.server = start("serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE) if FORKS else None

    def run(self, folder, save_freq, epochs, kill_when=None, block_at=None):
        """Trains until the end, or until `kill_when()` allows the kill. Returns the exit code."""
        settings = {"folder": str(folder), "save_freq": save_freq, "epochs": epochs}
        settings = json.dumps({**settings, "to_be_killed": kill_when is not None, "block_at": block_at})
        if not FORKS:
            process = start("train", settings)
            while kill_when and process.poll() is None and not kill_when():
                time.sleep(0.001)
            if kill_when:
                process.kill()
            return process.wait()
        self.server.stdin.write(settings + "\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        while kill_when and not kill_when() and running(pid):
            time.sleep(0.001)
        if kill_when and running(pid):
            os.kill(pid, 9)
        return int(self.server.stdout.readline())

    def close(self):
        if self.server:
            self.server.stdin.close()
            self.server.wait()


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def runs():
    started = Runs()
    yield started
    started.close()


def read(folder, name, key):
    path = folder / name
    return json.loads(path.read_text())[key] if path.exists() else 0


def counted_on_disk(folder):
    path = folder / "backup" / "ledger.json"
    return sum(entry["count"] for entry in json.loads(path.read_text())["entries"]) if path.exists() else 0


def moment_of_the_kill(folder, inside, rng):
    """A function that says when to kill, after which it has nothing more to wait for."""
    for name in ("inside_a_save", "resumed"):
        (folder / name).unlink(missing_ok=True)
    if inside:
        return (folder / "inside_a_save").exists
    before, steps, delay = read(folder, "truth", "taken"), rng.randrange(0, 12), rng.random() * 0.02

    def reached():
        if not (folder / "resumed").exists() or read(folder, "truth", "taken") < before + steps:
            return False
        time.sleep(delay)
        return True

    return reached


def kill_again_and_again(runs, folder, save_freq, epochs, inside, rng):
    """One run and one kill for each entry of `inside`, which says whether it has to happen within a save."""
    interval, points = INTERVAL[save_freq], rng.sample(range(POINTS_IN_A_SAVE), POINTS_IN_A_SAVE)
    for number, within in enumerate(inside):
        saved, reached = read(folder, "saved", "iterations"), read(folder, "truth", "iterations")
        block_at = points[number % POINTS_IN_A_SAVE] if within else None
        code = runs.run(folder, save_freq, epochs, moment_of_the_kill(folder, within, rng), block_at)
        assert code == -9 or (os.name == "nt" and code == 1), "it was to be killed, and ended by itself"
        assert (folder / "inside_a_save").exists() == within
        assert counted_on_disk(folder) >= read(folder, "truth", "taken")
        assert read(folder, "resumed", "counted") >= read(folder, "resumed", "taken")
        assert read(folder, "resumed", "iterations") >= max(saved, reached - interval)


KILLS = [
    pytest.param(3, 5, 2, id="quick"),
    pytest.param(3, 60, 12, id="save_freq_3", marks=pytest.mark.full),
    pytest.param("epoch", 40, 8, id="save_freq_epoch", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("save_freq", "kills", "inside"), KILLS)
def test_killed_and_resumed(tmp_path, runs, save_freq, kills, inside):
    rng = random.Random(kills)
    epochs = MOST_STEPS // 5 * kills  # more than the runs that are killed can get through
    within_a_save = rng.sample([True] * inside + [False] * (kills - inside), kills)
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    for folder in (killed, unbroken):
        folder.mkdir()
    kill_again_and_again(runs, killed, save_freq, epochs, within_a_save, rng)
    assert not (killed / "done").exists()
    for folder in (killed, unbroken):
        assert runs.run(folder, save_freq, epochs) == 0
    assert read(unbroken, "done", "counted") == 5 * epochs
    # Each kill cost at most what had been counted ahead.
    taken = read(killed, "truth", "taken")
    assert taken <= read(killed, "done", "counted") <= taken + INTERVAL[save_freq] * kills
    with np.load(killed / "weights.npz") as got, np.load(unbroken / "weights.npz") as expected:
        assert got.files == expected.files
        for name in got.files:
            np.testing.assert_array_equal(got[name], expected[name])


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else train(**json.loads(sys.argv[2]))
