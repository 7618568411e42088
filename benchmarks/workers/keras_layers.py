"""Plain layers of Keras 2 or 3 for the layers of a workload, without biases."""

import workloads


def conv(layer, cls):
    return cls(layer.filters, layer.kernel_size, strides=layer.strides, padding=layer.padding, use_bias=False)


def pool(layer, cls):
    return cls(layer.size, strides=layer.strides)


def plain_layers(keras):
    """Kind of layer -> function that makes the layer of Keras."""
    return {
        workloads.Conv: lambda layer: conv(layer, keras.layers.Conv2D),
        workloads.Activation: lambda layer: keras.layers.ReLU(),
        workloads.Pool: lambda layer: pool(layer, keras.layers.MaxPooling2D),
        workloads.Flatten: lambda layer: keras.layers.Flatten(),
        workloads.Dense: lambda layer: keras.layers.Dense(layer.units, use_bias=False),
    }
