"""Steps of TensorFlow 2.15: `plain` Keras 2, and TF-Privacy's `dp_sequential`, one microbatch for each example."""

from worker import pin_to_one_core, serve

pin_to_one_core()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_privacy  # noqa: E402
from keras_layers import plain_layers  # noqa: E402
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPSequential  # noqa: E402

MAX_GRAD_NORM = 1.0
NOISE_MULTIPLIER = 1.0


def make_step(arm, workload, batch_size):
    make = plain_layers(tf.keras)
    stack = [tf.keras.Input(workload.input_shape), *(make[type(layer)](layer) for layer in workload.layers)]
    if arm == "plain":
        model = tf.keras.Sequential(stack)
    else:
        model = DPSequential(MAX_GRAD_NORM, NOISE_MULTIPLIER, num_microbatches=None, use_xla=False, layers=stack)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(1e-2, momentum=0.9), loss)
    rng = np.random.default_rng(0)
    x = rng.random((batch_size, *workload.input_shape), dtype="float32")
    y = rng.integers(0, workload.num_classes, batch_size)
    model.train_on_batch(x, y)  # builds everything
    function = model.make_train_function()
    iterator = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    versions = {"tensorflow": tf.__version__, "tensorflow-privacy": tensorflow_privacy.__version__}
    return lambda: function(iterator), versions


if __name__ == "__main__":
    serve(make_step)
