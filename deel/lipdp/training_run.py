"""One private training from data to run folder: the work behind `lipdp train`."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras

from deel.lipdp import _checks, run_folder
from deel.lipdp._reporting import spread
from deel.lipdp._types import PathLike, Strategy
from deel.lipdp.accounting import calibrate_noise
from deel.lipdp.callbacks import DP_Accountant
from deel.lipdp.model import DP_Sequential
from deel.lipdp.noise import get_noise_multiplier_coefs, noise_multiplier_for
from deel.lipdp.parameters import STRATEGIES, DatasetMetadata, DPParameters
from deel.lipdp.pipeline import ImageData, default_delta_value, load_images
from deel.lipdp.recipes import FRONT_ENDS, RECIPES, Recipe, build_model
from deel.lipdp.robustness import certified_accuracy
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.statement import save_privacy_statement

__all__ = ["TrainingRun", "fit_recipe", "train"]

_EVALUATION_BATCH = 1000
# Test examples whose gradients are computed one by one.
_TIGHTNESS_EXAMPLES = 256
# Euclidean norms of the change of an image with pixels in [0, 1].
_RADII = [level / 255.0 for level in (0, 1, 2, 4, 8, 16, 36, 72, 108, 144, 255)]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRun:
    """What `train` did.

    Args:
        output: `pathlib.Path` of the run folder.
        model: the trained `DP_Sequential`.
        history, privacy, metrics: dicts, the content of the JSON files.
    """

    output: pathlib.Path
    model: DP_Sequential
    history: dict[str, Any]
    privacy: dict[str, Any]
    metrics: dict[str, Any]


def train(
    recipe: str,
    epsilon: float,
    output: PathLike,
    *,
    delta: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    strategy: str = "optimal",
    validation_fraction: float = 0.1,
    data_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
    noise_seed: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    command: str | None = None,
    **overrides: Any,
) -> TrainingRun:
    """Trains a recipe within a privacy budget and writes a run folder.

    The noise is calibrated so that the whole training costs at most `epsilon` by the PLD accountant. The folder appears
    when everything is done; a run that fails leaves none.

    Args:
        recipe: str, a key of `RECIPES`; a data set's own name stands for the best one known.
        epsilon: float > 0, the budget.
        output: str or path of the run folder; see `deel.lipdp.run_folder`.
        delta: float in (0, 1/n), or None for `default_delta_value`. n is the number of examples trained on.
        epochs, batch_size: int, or None for the recipe's.
        strategy: str, how noise is shared out; see `DPParameters`.
        validation_fraction: float in [0, 1), share of the training set held out for `val_accuracy`. The split is fixed.
        data_dir, cache_dir: paths or None; see `load_images`.
        noise_seed: int in [0, 2^32) or None. For studies only: makes noise, batches and initial weights reproducible
            (it sets Keras's global seed), which voids epsilon.
        overwrite: bool, whether `output` may be an earlier run, which is then replaced.
        progress: bool, whether Keras reports each epoch: a progress bar on a terminal, a line elsewhere.
        command: str or None, the command line to record.
        **overrides: other fields of `Recipe`, such as `learning_rate`; None for the recipe's.

    Returns:
        `TrainingRun`.

    Raises:
        TypeError, ValueError: before any training, for an argument out of range, an `output` that cannot be written or
            is in use, and missing data.
    """
    started, who = time.perf_counter(), "train"
    plan = _recipe(who, recipe, {"epochs": epochs, "batch_size": batch_size, **overrides})
    epsilon = _checks.number(who, "epsilon", epsilon, above=0.0)
    allocation: Strategy = _checks.choice(who, "strategy", strategy, STRATEGIES, error=TypeError)
    fraction = _checks.number(who, "validation_fraction", validation_fraction, at_least=0.0, below=1.0)
    if noise_seed is not None:
        noise_seed = _checks.integer(who, "noise_seed", noise_seed, at_least=0, at_most=2**32 - 1)
    place = run_folder.check_output(output, overwrite)

    data = load_images(plan.dataset, data_dir, front_end=FRONT_ENDS[plan.front_end], cache_dir=cache_dir)
    model, history = fit_recipe(
        plan,
        epsilon,
        data,
        delta=delta,
        strategy=allocation,
        validation_fraction=fraction,
        noise_seed=noise_seed,
        # A bar redraws its line, which is unreadable in a log file.
        verbose=(1 if sys.stdout.isatty() else 2) if progress else 0,
    )
    with run_folder.new_run_folder(place, overwrite) as folder:
        test = model.evaluate(data.x_test, data.y_test, batch_size=_EVALUATION_BATCH, verbose=0, return_dict=True)
        history = run_folder.write_json(folder / "history.json", history)
        privacy = save_privacy_statement(model, folder, epsilon)
        settings = {
            "name": recipe,
            "dataset": plan.dataset,
            "epsilon": epsilon,
            "delta": model.dp_parameters.delta,
            "strategy": allocation,
            "validation_fraction": fraction,
            "noise_seed": noise_seed,
            "recipe": dataclasses.asdict(plan),
        }
        certified = None
        if plan.front_end is None:  # features are not Lipschitz functions of the image
            shares = certified_accuracy(model, data.x_test, data.y_test, _RADII)
            certified = {"radius": _RADII, "accuracy": shares.tolist()}
            run_folder.write_certified(folder / "certified.png", certified)
        metrics = {
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "certified_accuracy": certified,
            "tightness": _tightness(model, data.x_test[:_TIGHTNESS_EXAMPLES], data.y_test[:_TIGHTNESS_EXAMPLES]),
            "val_accuracy": history.get("val_accuracy", [None])[-1],
            "val_loss": history.get("val_loss", [None])[-1],
            "wall_seconds": round(time.perf_counter() - started, 1),
            "command": command,
            "settings": settings,
        }
        metrics = run_folder.write_json(folder / "metrics.json", metrics)
        run_folder.write_curve(folder / "curve.png", history)
        model.save(folder / "model.keras")
    return TrainingRun(place, model, history, privacy, metrics)


def _tightness(model, x, y):
    """How the gradient norms of examples, over their bounds, are spread out, by variable."""
    ratios, _, _ = model.signal_to_noise_elementwise((x, y), warn=False)
    return {key: spread(ratio) for key, ratio in ratios.items()}


def fit_recipe(
    recipe: Recipe,
    epsilon: float,
    data: ImageData,
    *,
    delta: float | None = None,
    strategy: Strategy = "optimal",
    validation_fraction: float = 0.1,
    noise_seed: int | None = None,
    build: Callable[[Recipe, DPParameters, DatasetMetadata], keras.Model] = build_model,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    verbose: int = 0,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Trains the network of a recipe on the training part of image data. The test part is not looked at.

    Args:
        recipe: `Recipe`.
        epsilon: float > 0, the budget; the noise is calibrated so that all epochs cost at most that by PLD.
        data: `ImageData` from `load_images`, behind the recipe's front end.
        delta, strategy, validation_fraction, noise_seed: see `train`.
        build: callable with the arguments of `build_model` that gives the model; for studies of other networks.
        callbacks: sequence of Keras callbacks, after `DP_Accountant`.
        verbose: int, as in `keras.Model.fit`.

    Returns:
        `(model, history)`: the trained `DP_Sequential`, and a dict with one value for each epoch.

    Raises:
        TypeError, ValueError: before any training, for an argument out of range.
    """
    who = "fit_recipe"
    fraction = _checks.number(who, "validation_fraction", validation_fraction, at_least=0.0, below=1.0)
    (x, y), validation = data.hold_out(fraction) if fraction else ((data.x_train, data.y_train), None)
    metadata = DatasetMetadata(
        input_shape=x.shape[1:],
        nb_samples_train=len(x),
        batch_size=recipe.batch_size,
        max_norm=data.max_norm,
        nb_classes=len(data.class_names),
        nb_samples_test=len(data.x_test),
        class_names=data.class_names,
        sampling="poisson",
    )
    delta = default_delta_value(metadata) if delta is None else delta
    remedy = f"A delta of 1 / n, n = {len(x)}, allows publishing one whole record."
    _checks.number(who, "delta", delta, above=0.0, below=1.0 / len(x), remedy=remedy)
    if noise_seed is not None:
        keras.utils.set_random_seed(noise_seed)
    # Built once without noise: it refuses bad settings early, and the conversion below needs its coefficients.
    coefs = get_noise_multiplier_coefs(build(recipe, DPParameters(strategy, 0.0, delta), metadata))
    joint = calibrate_noise(epsilon, delta, recipe.batch_size, len(x), recipe.epochs, accountant="pld")
    joint *= 1.0 + 1e-12  # so that rounding in the conversion cannot land below the noise that was priced
    multiplier = noise_multiplier_for(joint, strategy, coefs)
    model = build(recipe, DPParameters(strategy, multiplier, delta, noise_seed), metadata)
    # The plan is within the budget; a run that is resumed repeats steps, and stops where that would exceed it.
    accountant = DP_Accountant(accountant="pld", epsilon_max=epsilon if noise_seed is None else None)
    fitted = model.fit(
        poisson_batches(x, y, recipe.batch_size, seed=noise_seed),
        epochs=recipe.epochs,
        validation_data=validation,
        validation_batch_size=_EVALUATION_BATCH,
        callbacks=[accountant, *callbacks],
        verbose=verbose,
    )
    return model, fitted.history


def _recipe(who, name, overrides):
    recipe = _checks.choice(who, "recipe", name, RECIPES)
    fields = [field.name for field in dataclasses.fields(recipe)]
    unknown = sorted(set(overrides) - set(fields))
    if unknown:
        raise TypeError(_checks.message(who, f"fields of Recipe ({', '.join(fields)})", ", ".join(unknown), ""))
    recipe = dataclasses.replace(recipe, **{key: value for key, value in overrides.items() if value is not None})
    # The rest is checked by the metadata, the layers and the loss that get it.
    _checks.integer(who, "epochs", recipe.epochs)
    _checks.choice(who, "front_end", recipe.front_end, FRONT_ENDS)
    _checks.number(who, "learning_rate", recipe.learning_rate, above=0.0)
    return recipe
