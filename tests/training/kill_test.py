"""A run killed with SIGKILL and resumed never reports fewer steps than were taken. Real processes, real kills."""

import json
import pathlib
import random
import subprocess
import sys
import time

import pytest

SCRIPT = """
import pathlib, sys
import keras
from doubles import data, model
from deel.lipdp.callbacks import DP_BackupAndRestore
from deel.lipdp.sampling import poisson_batches

folder = pathlib.Path(sys.argv[1])

class Truth(keras.callbacks.Callback):
    '''Writes down, before each step, how many steps will have been taken after it.'''

    def on_train_begin(self, logs=None):
        self.taken = int((folder / "truth").read_text()) if (folder / "truth").exists() else 0
        (folder / f"resumed_at_{self.taken}").write_text(str(self.model.ledger.steps))

    def on_train_batch_begin(self, batch, logs=None):
        self.taken += 1
        (folder / "truth.tmp").write_text(str(self.taken))
        (folder / "truth.tmp").replace(folder / "truth")

x, y = data(40)
private = model(noise_multiplier=5.0)
backup = DP_BackupAndRestore(folder / "backup", save_freq=3, double_checkpoint=True)
private.fit(poisson_batches(x, y, 8), epochs=int(sys.argv[2]), verbose=0, callbacks=[backup, Truth()])
(folder / "done").write_text(str(private.ledger.steps))
"""


def truth(folder):
    path = folder / "truth"
    return int(path.read_text()) if path.exists() else 0


def run_and_kill(folder, epochs, rng):
    """Runs the script until it has taken some steps, then kills it at a random moment."""
    tests = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tests)!r}); {SCRIPT}"]
    start = truth(folder)
    process = subprocess.Popen(
        [*command, str(folder), str(epochs)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    target = start + rng.randrange(1, 12)
    while process.poll() is None and truth(folder) < target:
        time.sleep(0.001)
    time.sleep(rng.random() * 0.02)
    process.kill()
    return process.wait()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.full)])
def test_killed_and_resumed(tmp_path, kills):
    rng = random.Random(kills)
    spent = 0
    for _ in range(kills):
        run_and_kill(tmp_path, 10_000, rng)
        assert not (tmp_path / "done").exists()
        taken = truth(tmp_path)
        assert taken > spent
        spent = taken
        ledger = json.loads((tmp_path / "backup" / "ledger.json").read_text())
        counted = sum(entry["steps"] for entry in ledger["entries"])
        assert counted >= spent
    # Each resume began with at least what had been spent, and each kill cost at most the steps counted ahead.
    resumed = {int(p.name.split("_")[-1]): int(p.read_text()) for p in tmp_path.glob("resumed_at_*")}
    assert len(resumed) == kills
    assert all(counted >= taken for taken, counted in resumed.items())
    assert max(resumed.values()) <= spent + 3 * kills
