"""The quick start of the README runs as written, and its commands exist."""

import pathlib
import re
import subprocess
import sys

import numpy as np

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_quick_start():
    code, _ = blocks("python")
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    history = namespace["model"].history.history
    assert len(history["epsilon"]) == 15
    assert np.all(np.diff(history["epsilon"]) > 0.0) and 2.9 < history["epsilon"][-1] <= 3.0
    test = namespace["model"].evaluate(namespace["ds_test"], return_dict=True, verbose=0)
    assert test["accuracy"] > 0.5  # chance is 0.1


def test_your_own_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, code = blocks("python")
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    history = namespace["model"].history.history
    assert 0.9 < history["epsilon"][-1] <= 1.0
    assert history["accuracy"][-1] > 0.8  # chance is 0.5
    # In a new process, with the one import that the README names.
    load = "import keras, deel.lipdp.model; print(keras.models.load_model('model.keras').ledger.steps)"
    result = subprocess.run([sys.executable, "-c", load], capture_output=True, check=True, text=True)
    assert int(result.stdout) == 100


def test_commands_exist():
    from typer.testing import CliRunner

    from deel.lipdp.cli import app

    commands = [line.split("#")[0].split() for block in blocks("bash") for line in block.splitlines()]
    lipdp = [words[1:] for words in commands if words[:1] == ["lipdp"]]
    assert {words[0] for words in lipdp} == {"demo", "train", "epsilon", "calibrate", "report", "audit"}
    for words in lipdp:
        if words[0] in ("epsilon", "calibrate"):
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, result.output
        else:
            options = CliRunner().invoke(app, [words[0], "--help"]).output
            assert all(word in options for word in words if word.startswith("--"))
    makefile = (pathlib.Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for words in commands if words[:1] == ["make"]]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)
