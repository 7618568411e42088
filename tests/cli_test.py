"""The command `lipdp`: outputs, exit codes, errors on one line."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys

import pytest
import tensorflow as tf
from typer.testing import CliRunner

import deel.lipdp
from deel.lipdp import recipes, training_run
from deel.lipdp.accounting import GaussianStep, PoissonSampling, calibrate_noise, compute_epsilon
from deel.lipdp.audit import OneRunReport, recipe
from deel.lipdp.cli import app
from deel.lipdp.model import DP_Sequential
from deel.lipdp.parameters import STRATEGIES


def lipdp(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def options(**kwargs):
    return [text for key, value in kwargs.items() for text in (f"--{key.replace('_', '-')}", value)]


@pytest.fixture
def no_calibration(monkeypatch):
    """The search takes seconds; one test trains with it."""
    monkeypatch.setattr(training_run, "calibrate_noise", lambda *args, **kwargs: 4.0)


def refused(result):
    """The message of a refusal: one line on stderr, exit code 2, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def printed_epsilons(result):
    assert result.exit_code == 0, result.output
    lines = re.findall(r"^epsilon (\S+) at delta (\S+) \((\w+)\)$", result.stdout, re.MULTILINE)
    return {accountant: (float(epsilon), float(delta)) for epsilon, delta, accountant in lines}


def test_version_and_help():
    assert lipdp("--version").stdout == f"lipdp {deel.lipdp.__version__}\n"
    for result in (lipdp(), lipdp("--help")):
        assert result.exit_code == 0
        assert all(name in result.stdout for name in ("train", "demo", "epsilon", "calibrate"))


def test_help_names_every_strategy_and_what_an_audit_takes():
    words = {name: " ".join(lipdp(name, "--help").stdout.replace("│", " ").split()) for name in ("train", "audit")}
    assert f"How noise is shared out: {', '.join(STRATEGIES)}." in words["train"]
    assert "about two minutes" in words["audit"] and "audit, at least 2." in words["audit"]


@pytest.mark.parametrize(("before", "after"), [(None, "3"), ("0", "0")])
def test_tensorflow_is_told_to_be_quiet_unless_the_user_said_otherwise(before, after, monkeypatch):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    monkeypatch.setattr(os, "environ", environment | ({"TF_CPP_MIN_LOG_LEVEL": before} if before else {}))
    lipdp("--version")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == after


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["epsilon", *options(noise_multiplier="1", sampling_probability="0.01", steps="10")],
    ],
)
def test_quick_commands_do_not_wait_for_tensorflow(arguments):
    code = (
        "import sys\nfrom deel.lipdp.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "slow = {'tensorflow', 'keras', 'autodp', 'matplotlib', 'sklearn'} & set(sys.modules)\nassert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_epsilon_is_that_of_the_library(accountant):
    expected = compute_epsilon([(GaussianStep(PoissonSampling(250 / 60000), 1.3), 3600)], 1e-5, accountant)
    plans = (
        options(sampling_probability=250 / 60000, steps=3600),
        options(num_examples=60000, batch_size=250, epochs=15),
    )
    for plan in plans:
        result = lipdp("epsilon", *options(noise_multiplier=1.3, delta=1e-5, accountant=accountant), *plan)
        assert printed_epsilons(result) == {accountant.upper(): (pytest.approx(expected, rel=1e-5), 1e-5)}
        assert "add_or_remove_one" in result.stdout and "Poisson" in result.stdout


def test_epsilon_without_noise_is_infinite():
    result = lipdp("epsilon", *options(noise_multiplier=0, sampling_probability=0.1, steps=3))
    assert printed_epsilons(result)["PLD"][0] == float("inf")


def test_partial_last_batch_is_a_step():
    result = lipdp("epsilon", *options(noise_multiplier=2, num_examples=1001, batch_size=100, epochs=3))
    assert "33 steps" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        options(noise_multiplier=1),
        options(noise_multiplier=1, steps=10),
        options(noise_multiplier=1, sampling_probability=0.1, steps=10, epochs=2),
        options(noise_multiplier=1, num_examples=100, batch_size=10),
        options(noise_multiplier=1, num_examples=100, batch_size=101, epochs=1),
        options(noise_multiplier=1, num_examples=0, batch_size=1, epochs=1),
        options(noise_multiplier=1, num_examples=100, batch_size=10, epochs=1, delta=0.01),
        options(noise_multiplier=1, sampling_probability=1.1, steps=10),
        options(noise_multiplier=1, sampling_probability=0.1, steps=-1),
        options(noise_multiplier=-1, sampling_probability=0.1, steps=1),
        options(noise_multiplier="nan", sampling_probability=0.1, steps=1),
        options(noise_multiplier=1, sampling_probability=0.1, steps=1, delta=1),
        options(noise_multiplier=1, sampling_probability=0.1, steps=1, accountant="prv"),
        options(noise_multiplier="much", sampling_probability=0.1, steps=1),
        options(sampling_probability=0.1, steps=1),
        ["--nonsense"],
    ],
)
def test_bad_questions_are_refused(arguments):
    refused(lipdp("epsilon", *arguments))


def test_calibrate_keeps_to_the_target():
    plan = {"num_examples": 1000, "batch_size": 100, "epochs": 3}
    result = lipdp("calibrate", *options(epsilon=0.5, delta=1e-5, **plan))
    epsilons = printed_epsilons(result)
    multiplier = float(re.search(r"joint noise multiplier (\S+)", result.stdout)[1])
    assert multiplier == pytest.approx(calibrate_noise(0.5, 1e-5, **plan), abs=2e-6)
    entries = [(GaussianStep(PoissonSampling(0.1), multiplier), 30)]
    for accountant in ("pld", "rdp"):
        expected = compute_epsilon(entries, 1e-5, accountant)
        assert epsilons[accountant.upper()] == (pytest.approx(expected, rel=1e-5), 1e-5)
    assert epsilons["PLD"][0] <= 0.5 < epsilons["RDP"][0]


@pytest.mark.parametrize(
    "change", [{"epsilon": 0}, {"delta": 1e-3}, {"delta": 0}, {"batch_size": 1001}, {"epochs": 0}, {"num_examples": -1}]
)
def test_bad_targets_are_refused(change):
    plan = {"epsilon": 2, "delta": 1e-5, "num_examples": 1000, "batch_size": 100, "epochs": 3, **change}
    refused(lipdp("calibrate", *options(**plan)))


def test_train_writes_a_run_folder(tmp_path):
    output = tmp_path / "run"
    arguments = ["train", *options(dataset="digits", epsilon="1", epochs="2", batch_size="400", output=str(output))]
    done = subprocess.run([sys.executable, "-m", "deel.lipdp", *arguments], capture_output=True, text=True, check=True)
    privacy, metrics, history = (
        json.loads((output / f"{name}.json").read_text()) for name in ("privacy", "metrics", "history")
    )
    assert metrics["command"] == f"lipdp {' '.join(arguments)}"
    # The progress shows accuracy and epsilon, one line for each epoch where there is no terminal.
    assert "\b" not in done.stdout and "\r" not in done.stdout
    for accuracy, epsilon in zip(history["accuracy"], history["epsilon"], strict=True):
        assert re.search(rf"accuracy: {accuracy:.4f} .* epsilon: {epsilon:.4f} ", done.stdout)
    assert f"test accuracy {metrics['test_accuracy']:.4f}" in done.stdout
    assert f"epsilon       {privacy['epsilon']:.4f} at delta 0.0001" in done.stdout
    assert privacy["epsilon"] <= 1
    assert str(output) in done.stdout
    assert "Traceback" not in done.stderr
    # And now the folder is in use.
    assert "expected output to be a new or empty folder" in refused(lipdp(*arguments))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dataset": "nothing"}, "'mnist'"),
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": "three"}, "--epsilon"),
        ({"delta": 0.01}, "publishing one whole record"),
        ({"batch_size": 10**6}, "batch_size"),
        ({"strategy": "best"}, "'optimal'"),
        ({"dataset": "mnist", "data_dir": "nowhere"}, "Put mnist.npz (arrays x_train, y_train, x_test, y_test) there"),
        ({"temperature": -1}, "> 0.0. Received: tau=-1.0"),
        ({"output": "file/run"}, "can be written"),
    ],
)
def test_bad_training_is_refused(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    message = refused(lipdp("train", *options(**{"dataset": "digits", "epsilon": 3, **change})))
    assert words in message
    assert os.listdir(tmp_path) == ["file"]


def test_missing_option_is_one_line():
    assert "--epsilon" in refused(lipdp("train", "--dataset", "digits"))
    refused(lipdp("nonsense"))
    refused(lipdp("--nonsense"))


def test_bug_shows_its_traceback(tmp_path, monkeypatch, no_calibration):
    def broken(*args, **kwargs):
        raise TypeError("'NoneType' object is not callable")

    monkeypatch.setattr(DP_Sequential, "fit", broken)
    result = lipdp("train", *options(dataset="digits", epsilon=3, epochs=1, output=tmp_path / "run"))
    assert result.exit_code == 1 and isinstance(result.exception, TypeError)
    assert os.listdir(tmp_path) == []


def test_demo_can_be_run_again(tmp_path, monkeypatch, no_calibration):
    monkeypatch.chdir(tmp_path)
    recipe = dataclasses.replace(recipes.RECIPES["digits"], epochs=1)
    monkeypatch.setitem(recipes.RECIPES, "digits", recipe)
    for _ in range(2):
        result = lipdp("demo")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == f"run folder    {tmp_path / 'lipdp-demo'}"
    assert os.listdir(tmp_path) == ["lipdp-demo"]


def test_default_output_names_data_and_epsilon_and_seeded_run_says_so(tmp_path, monkeypatch, no_calibration):
    monkeypatch.chdir(tmp_path)
    result = lipdp("train", *options(dataset="digits", epsilon=2.5, epochs=1, noise_seed=1), "--quiet")
    assert result.exit_code == 0, result.output
    assert "Epoch" not in result.stdout and "none: the run was seeded" in result.stdout
    [name] = os.listdir(tmp_path / "runs")
    assert re.fullmatch(r"digits-epsilon2\.5-\d{8}-\d{6}", name)


# -- audit ---------------------------------------------------------------------------------------------------------


def one_run_report(lower, failures=()):
    return OneRunReport(lower, 0.95, 16000, 1600, 1222, 1.999, 1e-4, 1, 400, failures)


@pytest.mark.parametrize(
    "failures, exit_code, word",
    [((), 0, "pass"), (("epsilon is at least 2.5, the ledger says 1.999",), 1, "FAIL")],
)
def test_audit_prints_verdict_and_power_and_says_by_its_exit_code(monkeypatch, failures, exit_code, word):
    asked, levels = {}, [tf.get_logger().getEffectiveLevel()]

    def audits(epsilon, **kwargs):
        asked.update(kwargs, epsilon=epsilon)
        levels.append(tf.get_logger().getEffectiveLevel())
        yield "mechanism", one_run_report(2.5 if failures else 1.0, failures), "finds everything"
        yield "one run", one_run_report(1.0), "finds halved noise with probability 0.850"  # the last one passes

    monkeypatch.setattr("deel.lipdp.audit.audit_recipe", audits)
    result = lipdp("audit", *options(epsilon=1.5, delta=1e-5, canaries=20, confidence=0.9, seed=3))
    assert asked == {"epsilon": 1.5, "delta": 1e-5, "canaries": 20, "confidence": 0.9, "seed": 3}
    assert result.exit_code == exit_code
    assert levels[1] == logging.ERROR and tf.get_logger().getEffectiveLevel() == levels[0] < logging.ERROR
    first, power, second, _, last = result.stdout.splitlines()
    assert first.startswith(f"mechanism     {word}: epsilon at least ") and all(text in first for text in failures)
    assert power == f"{'':<12}  finds everything"
    assert second.startswith(
        "one run       pass: epsilon at least 1 with confidence 0.95, declared 1.999 at delta 0.0001"
    )
    assert last.startswith("A pass proves nothing.") and "probability 0.001 at most, the last with 0.1." in last


@pytest.mark.parametrize(
    "change", [{"epsilon": 0}, {"delta": 1}, {"canaries": 1}, {"confidence": 1}, {"seed": -1}, {"canaries": "many"}]
)
def test_bad_audits_are_refused(change):
    assert next(iter(change)) in refused(lipdp("audit", *options(**change)))


@pytest.mark.full
def test_audit_of_a_broken_step_fails(monkeypatch):
    """Too few trainings for the last two audits; the first one finds it."""
    monkeypatch.setattr(recipe, "_RUNS", 1)
    monkeypatch.setattr(recipe, "_TRIALS", 10)
    add_noise = DP_Sequential.add_noise
    monkeypatch.setattr(
        DP_Sequential, "add_noise", lambda self, gradients, s: add_noise(self, gradients, [0.5 * one for one in s])
    )
    result = lipdp("audit")
    assert result.exit_code == 1, result.output
    assert "sensitivity   FAIL" in result.stdout and "noise on conv/kernel has stddev" in result.stdout


@pytest.mark.full
def test_audit_passes_and_has_the_power_it_is_run_for():
    """A sound step fails twice in 1000: once each of the first two audits.

    The third one may fail 1 in 20 sound steps of any mechanism. This one is Gaussian, and 11 standard deviations away.
    """
    done = subprocess.run([sys.executable, "-m", "deel.lipdp", "audit"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:6:2]] == [
        "sensitivity   pass",
        "mechanism     pass",
        "one run       pass",
    ]
    mechanism, one_run = re.findall(r"finds halved noise with probability (\S+)", done.stdout)
    assert float(mechanism) > 0.95
    assert float(one_run) > 0.6  # 0.85, by 200 simulations
    attained = [int(percent) for percent in re.findall(r"kernel (\d+)%", done.stdout)]
    assert len(attained) == 3 and min(attained) > 60
