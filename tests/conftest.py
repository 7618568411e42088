"""What every test process does first."""

import tensorflow as tf
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

_keras_dataset = ArrayDataAdapter.get_tf_dataset


def _untuned_dataset(adapter):
    """Keras's data set of arrays without tf.data's tuning thread, which at times holds an iterator's end up for as long
    as the iterator lived."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return _keras_dataset(adapter).with_options(options)


ArrayDataAdapter.get_tf_dataset = _untuned_dataset
