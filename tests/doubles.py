"""Small models, data and optimizers that the tests share."""

import keras
import numpy as np

from deel.lipdp.layers import (
    DP_Abs,
    DP_BoundedInput,
    DP_Flatten,
    DP_GroupSort,
    DP_QuickSpectralConv2D,
    DP_QuickSpectralDense,
    DP_ScaledL2NormPooling2D,
)
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Sequential
from deel.lipdp.parameters import DatasetMetadata, DPParameters

SHAPE = (6, 6, 1)
NUM_CLASSES = 4
UPPER_BOUND = 3.0


class RecordingSGD(keras.optimizers.SGD):
    """SGD that keeps the gradients it is given; for eager runs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.recorded = []

    def apply(self, grads, trainable_variables=None):
        self.recorded.append([np.array(g) for g in grads])
        super().apply(grads, trainable_variables)


def data(n=40, seed=0, shape=SHAPE):
    """Images of norm below `UPPER_BOUND`, and one-hot labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape)).astype("float32")
    x *= 2.5 / np.linalg.norm(x.reshape(n, -1), axis=1).reshape(-1, *[1] * len(shape))
    return x, np.eye(NUM_CLASSES, dtype="float32")[rng.integers(0, NUM_CLASSES, n)]


def layer_list(last=()):
    """Conv, group sort, pooling, strided conv, abs, dense: every kind of layer with a bound of its own."""
    return [
        DP_BoundedInput(UPPER_BOUND, input_shape=SHAPE),
        DP_QuickSpectralConv2D(4, 3, padding="same", name="conv_a"),
        DP_GroupSort(2),
        DP_ScaledL2NormPooling2D(2),
        DP_QuickSpectralConv2D(6, 2, name="conv_b"),
        DP_Abs(),
        DP_Flatten(),
        DP_QuickSpectralDense(NUM_CLASSES, name="dense"),
        *last,
    ]


def parameters(strategy="per-layer", noise_multiplier=1.0, delta=1e-5, noise_seed=None):
    return DPParameters(strategy, noise_multiplier, delta, noise_seed)


def metadata(n=40, batch_size=8, shape=SHAPE, **kwargs):
    return DatasetMetadata(shape, n, batch_size, UPPER_BOUND, nb_classes=NUM_CLASSES, **kwargs)


def model(
    layers=None,
    cls=DP_Sequential,
    loss=None,
    optimizer=None,
    n=40,
    batch_size=8,
    metrics=(),
    compile_arguments=None,
    sampling=None,
    debug=False,
    **dp_parameters,
):
    """A compiled model; keyword arguments that are left over go to `DPParameters`."""
    built = cls(
        layer_list() if layers is None else layers,
        dp_parameters=parameters(**dp_parameters),
        dataset_metadata=metadata(n, batch_size, sampling=sampling),
        debug=debug,
    )
    built.compile(
        optimizer=optimizer or keras.optimizers.SGD(0.1),
        loss=loss or DP_TauCategoricalCrossentropy(2.0),
        metrics=list(metrics),
        **(compile_arguments or {}),
    )
    return built


def summed_gradients(private_model, x, y, sample_weight=None):
    """Gradients that one noiseless step hands to the optimizer, times the batch size: the private sum."""
    optimizer = private_model.optimizer
    private_model.run_eagerly = True
    batch = [x, y] if sample_weight is None else [x, y, sample_weight]
    private_model.train_on_batch(*batch)
    return [g * private_model.dataset_metadata.batch_size for g in optimizer.recorded[-1]]
