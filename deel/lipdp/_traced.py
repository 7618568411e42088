"""Graphs of pure functions that all layers, steps and models of a process share."""

import functools
import inspect

import keras

__all__ = ["traced_once"]


def traced_once(function):
    """Returns the same pure function, traced once for each shape, dtype and set of constants.

    A projection takes a few hundred operations and occurs twice for each kernel in the graph of a training step, and
    eagerly when a layer is built. TensorFlow would trace each occurrence anew, in each model: most of the time before
    a first step. On other backends the function is returned as it is.

    Args:
        function: of tensors and hashable constants, without side effects.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    signature = inspect.signature(function)

    @functools.cache
    def graph(constants, shapes):  # one function for each shape: TensorFlow warns of one that is traced again and again
        # Called, not copied into the graphs that use it, so that TensorFlow optimises it once too.
        attributes = {"_noinline": True}
        bound = functools.partial(function, **dict(constants))
        return tf.function(bound, autograph=False, experimental_attributes=attributes)

    @functools.wraps(function)
    def call(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments.items()
        tensors = {name: tf.convert_to_tensor(value) for name, value in arguments if hasattr(value, "dtype")}
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors.values())
        return graph(tuple(item for item in arguments if item[0] not in tensors), shapes)(**tensors)

    return call
