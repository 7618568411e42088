"""Steps of Keras: `plain`, `same_layers` (lipdp's layers without privacy), and lipdp.

`private` has group sort and L2-norm pooling; `private_abs` the absolute value and max pooling, which cost what a ReLU
network's do; `private_parts` is `private` with batches in parts of 1,024.
"""

from worker import pin_to_one_core, serve

pin_to_one_core()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import workloads  # noqa: E402
from keras_layers import conv, plain_layers, pool  # noqa: E402

from deel.lipdp import layers as dp  # noqa: E402
from deel.lipdp.losses import DP_TauCategoricalCrossentropy  # noqa: E402
from deel.lipdp.model import DP_Sequential  # noqa: E402
from deel.lipdp.parameters import DatasetMetadata, DPParameters  # noqa: E402

INPUT_BOUND = 28.0
DATASET_SIZE = 60_000


#: Kind of layer -> what stands for it in each arm.
PLAIN = plain_layers(keras)
SAME_LAYERS = {
    **PLAIN,
    workloads.Activation: lambda layer: dp.DP_GroupSort(2),
    workloads.Pool: lambda layer: pool(layer, dp.DP_ScaledL2NormPooling2D),
}
PRIVATE = {
    **SAME_LAYERS,
    workloads.Conv: lambda layer: conv(layer, dp.DP_QuickSpectralConv2D),
    workloads.Flatten: lambda layer: dp.DP_Flatten(),
    workloads.Dense: lambda layer: dp.DP_QuickSpectralDense(layer.units),
}
PRIVATE_ABS = {
    **PRIVATE,
    workloads.Activation: lambda layer: dp.DP_Abs(),
    workloads.Pool: lambda layer: pool(layer, dp.DP_MaxPool2D),
}
ARMS = {
    "plain": PLAIN,
    "same_layers": SAME_LAYERS,
    "private": PRIVATE,
    "private_abs": PRIVATE_ABS,
    "private_parts": PRIVATE,
}
COMPILE_ARGUMENTS = {"private_parts": {"microbatch_size": 1024}}


def make_model(arm, workload, batch_size, jit_compile=False):
    stack = [ARMS[arm][type(layer)](layer) for layer in workload.layers]
    if arm.startswith("private"):
        model = DP_Sequential(
            [dp.DP_BoundedInput(INPUT_BOUND, input_shape=workload.input_shape), *stack],
            dp_parameters=DPParameters("local", 1.0, 1e-7),
            dataset_metadata=DatasetMetadata(
                workload.input_shape,
                max(DATASET_SIZE, batch_size),
                batch_size,
                INPUT_BOUND,
                nb_classes=workload.num_classes,
            ),
        )
    else:
        model = keras.Sequential([keras.Input(workload.input_shape), *stack])
    optimizer = keras.optimizers.SGD(1e-2, momentum=0.9)
    loss = DP_TauCategoricalCrossentropy(10.0)
    model.compile(optimizer, loss, jit_compile=jit_compile, **COMPILE_ARGUMENTS.get(arm, {}))
    return model


def make_step(arm, workload, batch_size):
    model = make_model(arm, workload, batch_size)
    rng = np.random.default_rng(0)
    x = rng.random((batch_size, *workload.input_shape), dtype="float32")
    y = np.eye(workload.num_classes, dtype="float32")[rng.integers(0, workload.num_classes, batch_size)]
    model.make_train_function()
    iterator = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    return lambda: model.train_function(iterator), {"keras": keras.__version__, "tensorflow": tf.__version__}


if __name__ == "__main__":
    serve(make_step)
