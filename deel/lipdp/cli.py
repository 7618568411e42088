"""The command `lipdp`: train within a privacy budget, or ask what a training would cost.

TensorFlow takes seconds to start, so it and what needs it are imported inside the commands.
"""

import contextlib
import math
import os
import shlex
import sys
import time
from typing import Annotated

import typer
from typer.core import TyperGroup

from deel.lipdp import __version__, _checks
from deel.lipdp.parameters import STRATEGIES

__all__ = ["app"]


@contextlib.contextmanager
def _one_line_errors():
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: a missing option, "abc" for a number
            text = error.format_message()
        elif isinstance(error, (TypeError, ValueError)) and "Received: " in str(error):
            text = str(error)  # a refusal, in the shape of `_checks.message`
        else:
            raise  # a bug, whose traceback is wanted
        typer.echo(f"Error: {' '.join(text.split())}", err=True)
        raise typer.Exit(2) from error


class _Group(TyperGroup):
    def make_context(self, *args, **kwargs):
        with _one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx):
        with _one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    help="Train Keras networks with differential privacy, without per-example gradient clipping.",
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they may be private data
)


@app.callback(invoke_without_command=True)
def _main(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
):
    if version:
        typer.echo(f"lipdp {__version__}")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read once, when TensorFlow is imported


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "--dataset",
            help="digits, mnist, fashion_mnist or cifar10: the best known settings, on features computed once. "
            "From pixels: mnist_pixels, fashion_mnist_pixels, cifar10_pixels.",
        ),
    ],
    epsilon: Annotated[float, typer.Option(help="Privacy budget, by the PLD accountant.")],
    delta: Annotated[float | None, typer.Option(help="Default: a power of ten below 1 / n (1e-5 for MNIST).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Expected size of a Poisson batch. Default: the recipe's.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Run folder, new or empty. Default: runs/RECIPE-epsilonEPSILON-TIME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in that folder.")] = False,
    strategy: Annotated[str, typer.Option(help=f"How noise is shared out: {', '.join(STRATEGIES)}.")] = "optimal",
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the training set held out for val_accuracy; 0 holds out nothing.")
    ] = 0.1,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder with DATASET.npz. Default: $LIPDP_DATA_DIR, else keras.datasets.")
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Folder for the features of a front end, which are private like their images.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the recipe's.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the loss. Default: the recipe's.")] = None,
    clip_value: Annotated[float | None, typer.Option(help="Clip at the logits. Default: the recipe's.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose/--quiet", help="Show the progress of each epoch.")] = True,
    noise_seed: Annotated[
        int | None, typer.Option(help="For studies: makes the run reproducible, which voids epsilon.")
    ] = None,
):
    """Train a recipe within a privacy budget and write a run folder."""
    from deel.lipdp import training_run

    run = training_run.train(
        recipe,
        epsilon,
        output or f"runs/{recipe}-epsilon{epsilon:g}-{time.strftime('%Y%m%d-%H%M%S')}",
        delta=delta,
        epochs=epochs,
        batch_size=batch_size,
        strategy=strategy,
        validation_fraction=validation_fraction,
        data_dir=data_dir,
        cache_dir=cache_dir,
        noise_seed=noise_seed,
        overwrite=overwrite,
        progress=verbose,
        command=shlex.join(["lipdp", *sys.argv[1:]]),
        learning_rate=learning_rate,
        temperature=temperature,
        clip_value=clip_value,
    )
    _summarise(run)


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Run folder; an earlier run in it is replaced.")] = "lipdp-demo",
    epsilon: Annotated[float, typer.Option(help="Privacy budget, by the PLD accountant.")] = 8.0,
):
    """Train on the small digits that come with scikit-learn: no download, under two minutes."""
    from deel.lipdp import training_run

    command = shlex.join(["lipdp", *sys.argv[1:]])
    _summarise(training_run.train("digits", epsilon, output, overwrite=True, command=command))


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders of lipdp train.")],
    output: Annotated[str, typer.Option(help="The page; one that is there is replaced.")] = "report.html",
):
    """Write one HTML page about runs: accuracy, epsilon, bounds, noise, certificates and privacy cards."""
    from deel.lipdp.html_report import write_report

    typer.echo(f"report        {write_report(runs, output)}")


def _summarise(run):
    privacy, metrics = run.privacy, run.metrics
    typer.echo(f"test accuracy {metrics['test_accuracy']:.4f}")
    if privacy["seeded"]:
        typer.echo("epsilon       none: the run was seeded")
    else:
        typer.echo(
            f"epsilon       {privacy['epsilon']:.4f} at delta {privacy['delta']:g} "
            f"(PLD, {privacy['neighboring_relation']}, n = {privacy['num_examples']})"
        )
    typer.echo(f"run folder    {run.output}")


def _step_plan(who, num_examples, batch_size, epochs):
    """(sampling probability, number of steps) of Poisson batches."""
    num_examples = _checks.integer(who, "num_examples", num_examples)
    remedy = "A batch cannot be larger than the training set."
    batch_size = _checks.integer(who, "batch_size", batch_size, at_most=num_examples, remedy=remedy)
    epochs = _checks.integer(who, "epochs", epochs)
    return batch_size / num_examples, epochs * math.ceil(num_examples / batch_size)


def _check_delta(who, delta, num_examples):
    remedy = "A delta of 1 / n allows publishing one whole record."
    _checks.number(who, "delta", delta, above=0.0, below=1.0 / num_examples, remedy=remedy)


def _price(probability, multiplier, steps, delta, accountant):
    from deel.lipdp.accounting import GaussianStep, PoissonSampling, compute_epsilon

    return compute_epsilon([(GaussianStep(PoissonSampling(probability), multiplier), steps)], delta, accountant)


_ASSUMPTION = (
    "For adding or removing one example (add_or_remove_one), if each example enters each step independently "
    "(Poisson sampling).\nShuffled batches cost more. Training losses and metrics are not covered."
)


@app.command("epsilon")
def epsilon_(
    noise_multiplier: Annotated[float, typer.Option(help="Joint one: stddev of the noise over the L2 sensitivity.")],
    sampling_probability: Annotated[float | None, typer.Option(help="Batch size over n; with --steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of training steps.")] = None,
    num_examples: Annotated[int | None, typer.Option(help="n; with --batch-size and --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Expected size of a batch.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of ceil(n / batch size) steps.")] = None,
    delta: Annotated[float, typer.Option(help="Probability that the guarantee leaves out.")] = 1e-5,
    accountant: Annotated[str, typer.Option(help="pld (tighter) or rdp.")] = "pld",
):
    """Print the epsilon of a training, without training."""
    who = "lipdp epsilon"
    given = {
        name: value is not None
        for name, value in {
            "--sampling-probability": sampling_probability,
            "--steps": steps,
            "--num-examples": num_examples,
            "--batch-size": batch_size,
            "--epochs": epochs,
        }.items()
    }
    names = [name for name, is_given in given.items() if is_given]
    if names == ["--num-examples", "--batch-size", "--epochs"]:
        sampling_probability, steps = _step_plan(who, num_examples, batch_size, epochs)
        _check_delta(who, delta, num_examples)
    elif names != ["--sampling-probability", "--steps"]:
        expected = "--sampling-probability and --steps, or --num-examples, --batch-size and --epochs"
        raise ValueError(_checks.message(who, expected, ", ".join(names) or "none of them", "Pass one set, whole."))
    value = _price(sampling_probability, noise_multiplier, steps, delta, accountant)
    typer.echo(f"epsilon {value:.6g} at delta {delta:g} ({accountant.upper()})")
    typer.echo(
        f"{steps} steps, sampling probability {sampling_probability:.6g}, joint noise multiplier {noise_multiplier:g}."
    )
    typer.echo(_ASSUMPTION)


@contextlib.contextmanager
def _without_warnings_of_tensorflow():
    import tensorflow as tf

    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


@app.command()
def audit(
    epsilon: Annotated[float, typer.Option(help="What an audited step declares; around 2 the audits find most.")] = 2.0,
    delta: Annotated[float, typer.Option(help="Probability that the guarantee leaves out.")] = 1e-4,
    canaries: Annotated[
        int, typer.Option(help="Canaries in each of the 400 trainings of the one-run audit, at least 2.")
    ] = 40,
    confidence: Annotated[
        float, typer.Option(help="Of the one-run audit: a sound step fails it at most this rarely, 1 - confidence.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Of canaries, coins and batches. The noise is secret all the same.")] = 0,
):
    """Try to catch the training step of a small network giving away more than it declares; exit 1 if it does.

    Takes about two minutes on one core.
    """
    from deel.lipdp.audit import audit_recipe

    passed = True
    with _without_warnings_of_tensorflow():  # of graphs traced anew: each audit makes its own models
        for name, report, power in audit_recipe(
            epsilon, delta=delta, canaries=canaries, confidence=confidence, seed=seed
        ):
            typer.echo(f"{name:<12}  {report.verdict}")
            typer.echo(f"{'':<12}  {power}")
            passed = passed and report.passed
    typer.echo(
        "A pass proves nothing. A sound step fails each of the first two with probability 0.001 at most, the last with "
        f"{1 - confidence:.2g}."
    )
    if not passed:
        raise typer.Exit(1)


@app.command()
def calibrate(
    epsilon: Annotated[float, typer.Option(help="Target, by the PLD accountant.")],
    num_examples: Annotated[int, typer.Option(help="Number of training examples n.")],
    batch_size: Annotated[int, typer.Option(help="Expected size of a Poisson batch.")],
    epochs: Annotated[int, typer.Option(help="Epochs of ceil(n / batch size) steps.")],
    delta: Annotated[float, typer.Option(help="Probability that the guarantee leaves out.")] = 1e-5,
):
    """Print the noise multiplier that keeps a training within a target epsilon."""
    from deel.lipdp.accounting import calibrate_noise

    who = "lipdp calibrate"
    probability, steps = _step_plan(who, num_examples, batch_size, epochs)
    _check_delta(who, delta, num_examples)
    multiplier = calibrate_noise(epsilon, delta, batch_size, num_examples, epochs, accountant="pld")
    multiplier = math.ceil(multiplier * 1e6) / 1e6  # upwards, so that the printed digits keep to the target
    typer.echo(f"joint noise multiplier {multiplier:.6f}")
    typer.echo(
        "(DPParameters takes it as it is with the strategies 'optimal' and 'global'; for 'per-layer' ('local') convert "
        "it with deel.lipdp.noise.noise_multiplier_for.)"
    )
    for accountant in ("pld", "rdp"):
        value = _price(probability, multiplier, steps, delta, accountant)
        typer.echo(f"epsilon {value:.6g} at delta {delta:g} ({accountant.upper()})")
    typer.echo(f"{steps} steps, sampling probability {probability:.6g}.")
    typer.echo(_ASSUMPTION)
