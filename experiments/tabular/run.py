"""Area under the ROC curve on tables of ADBench at epsilon 1; see `experiments/study.py`.

    LIPDP_DATA_DIR=... python experiments/tabular/run.py

A linear layer on random waves of the rows, or on the rows themselves. Four fifths of a table are trained on; the rest
is the test set, read once, after the last step. `--tune` holds out a fifth of the training set.
"""

import pathlib
import sys

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

from deel.lipdp import DP_Accountant, DP_Sequential, DPParameters, layers
from deel.lipdp.accounting import calibrate_noise
from deel.lipdp.features import FourierFeatures
from deel.lipdp.losses import DP_TauBCE
from deel.lipdp.pipeline import bound_clip_value, default_delta_value, load_adbench_data, prepare_tabular_data
from deel.lipdp.statement import privacy_report

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import study


def train(point, held_out):
    """Trains on a table; returns the model, its history, and the area on the part that it was not trained on."""
    settings = point["settings"]
    x_train, y_train, x_test, y_test = load_adbench_data(point["dataset"])
    if held_out:
        x_test, y_test = x_test[:1], y_test[:1]  # replaced by the held-out part below
    front_end = [FourierFeatures(**settings["waves"])] if settings["waves"] else []
    batch_size = round(settings["batch_share"] * len(x_train) * (0.8 if held_out else 1.0))
    ds_train, ds_test, metadata = prepare_tabular_data(
        x_train,
        y_train,
        x_test,
        y_test,
        batch_size,
        None if front_end else bound_clip_value(settings["norm"]),
        front_end=front_end,
        validation_fraction=0.2 if held_out else 0.0,
    )
    epochs, n, delta = settings["epochs"], metadata.nb_samples_train, default_delta_value(metadata)
    # The noise multiplier of a single layer is the joint one.
    noise = calibrate_noise(point["epsilon"], delta, metadata.batch_size, n, epochs, accountant="pld")
    model = DP_Sequential(
        [
            layers.DP_BoundedInput(metadata.max_norm, input_shape=metadata.input_shape),
            layers.DP_ContractiveDense(1),
            layers.DP_ClipGradient(settings["clip_value"]),
        ],
        dp_parameters=DPParameters("optimal", noise * (1.0 + 1e-12), delta),
        dataset_metadata=metadata,
    )
    decay = keras.optimizers.schedules.PolynomialDecay(
        settings["learning_rate"], epochs * metadata.nb_steps_per_epochs, 0.0
    )
    model.compile(
        keras.optimizers.SGD(decay, momentum=0.9),
        DP_TauBCE(settings["temperature"]),
    )
    history = model.fit(ds_train, epochs=epochs, verbose=0, callbacks=[DP_Accountant(accountant="pld")]).history
    labels = np.concatenate([y for _, y in ds_test])
    return model, history, roc_auc_score(labels, model.predict(ds_test, verbose=0))


def run(point, cache_dir):
    model, history, auroc = train(point, held_out=False)
    return {"test_auroc": auroc, "privacy": privacy_report(model), "history": history}


def try_once(point, cache_dir):
    _, history, auroc = train(point, held_out=True)
    return {**history, "val_auroc": [auroc]}


if __name__ == "__main__":
    study.main(pathlib.Path(__file__).parent, __doc__.splitlines()[0], run, try_once, metric="auroc")
