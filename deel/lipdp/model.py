"""Models whose `fit` is differentially private: `DP_Sequential` and `DP_Model`."""

import keras

import deel.lipdp.losses  # noqa: F401  so that load_model finds every class of the library once this is imported
from deel.lipdp import _checks
from deel.lipdp._private_model import PrivateModel
from deel.lipdp.bounds import compute_gradient_bounds
from deel.lipdp.callbacks import DP_Accountant
from deel.lipdp.layers import DPLayer
from deel.lipdp.noise import get_noise_multiplier_coefs, global_noisify, local_noisify
from deel.lipdp.parameters import DatasetMetadata, DPParameters
from deel.lipdp.privacy import get_eps_delta

__all__ = [
    "DPParameters",
    "DP_Accountant",
    "DP_Model",
    "DP_Sequential",
    "DatasetMetadata",
    "compute_gradient_bounds",
    "get_eps_delta",
    "get_noise_multiplier_coefs",
    "global_noisify",
    "local_noisify",
]


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Sequential(PrivateModel, keras.Sequential):
    """A `keras.Sequential` of layers with bounds, trained with differential privacy by `fit`.

    Args:
        layers: list of layers of `deel.lipdp.layers`, `DP_BoundedInput` first.
        dp_parameters: `DPParameters`.
        dataset_metadata: `DatasetMetadata`.
        debug: bool, log bounds, gradient norms and noise of each step at DEBUG level; needs `run_eagerly=True`. The
            norms are private data.
        **kwargs: other arguments of `keras.Sequential`.

    Attributes:
        ledger: `Ledger`, what has been released so far.

    Raises:
        TypeError: for a layer without bounds.
    """

    def __init__(self, layers=None, *, dp_parameters, dataset_metadata, debug=False, **kwargs):
        super().__init__(layers=layers, **kwargs)
        self._start(dp_parameters, dataset_metadata, debug)

    def layers_forward_order(self):
        """list of layers, from input to output."""
        return list(self.layers)

    def get_config(self):
        config = super().get_config()
        config.pop("dtype", None)  # keras.Sequential takes none; each layer states its own
        return {**config, **self._private_config()}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = cls._deserialize_config(config, "layers", custom_objects)
        build_shape = config.pop("build_input_shape", None)
        model = cls(**config)
        if build_shape and not model.built:
            model.build(tuple(build_shape))
        return model


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Model(PrivateModel, keras.Model):
    """A `keras.Model` made of a list of layers with bounds, applied one after the other.

    Args:
        dp_layers: list of layers of `deel.lipdp.layers`, `DP_BoundedInput` first.
        dp_parameters, dataset_metadata, debug: as for `DP_Sequential`.
        **kwargs: `name`.

    Raises:
        TypeError: for a layer without bounds.
    """

    def __init__(self, dp_layers, *, dp_parameters, dataset_metadata, debug=False, **kwargs):
        unknown = sorted(set(kwargs) - {"name", "trainable", "dtype"})
        if unknown:
            raise TypeError(_checks.message("DP_Model", "a list of layers", f"{unknown}", "Pass dp_layers=[...]."))
        super().__init__(**kwargs)
        self.dp_layers = [layer for layer in dp_layers if not isinstance(layer, keras.layers.InputLayer)]
        self._start(dp_parameters, dataset_metadata, debug)
        shapes = [layer.batch_shape for layer in dp_layers if hasattr(layer, "batch_shape")]
        shapes += [(None, *metadata.input_shape) for metadata in [dataset_metadata]]
        if all(isinstance(layer, DPLayer) for layer in self.dp_layers):
            self.build(shapes[0])

    def layers_forward_order(self):
        """list of layers, from input to output."""
        return list(self.dp_layers)

    def build(self, input_shape):
        shape = input_shape
        for layer in self.dp_layers:
            if not layer.built:
                layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.built = True

    def call(self, inputs, training=None):
        for layer in self.dp_layers:
            inputs = layer(inputs)
        return inputs

    def compute_output_shape(self, input_shape):
        for layer in self.dp_layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self):
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.dp_layers]
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dp_layers": layers,
            **self._private_config(),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**cls._deserialize_config(config, "dp_layers", custom_objects))
