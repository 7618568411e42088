"""Models whose `fit` is differentially private: `DP_Sequential` and `DP_Model`."""

from collections.abc import Sequence
from typing import Any

import keras

# So that load_model finds every class and function of the library once this is imported.
import deel.lipdp.initializers
import deel.lipdp.losses
import deel.lipdp.optimizers  # noqa: F401
from deel.lipdp import _checks
from deel.lipdp._private_model import PrivateModel
from deel.lipdp._replacements import remedy_for
from deel.lipdp._types import Shape
from deel.lipdp.bounds import LayerCall, compute_gradient_bounds
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

    def __init__(
        self,
        layers: Sequence[keras.layers.Layer] | None = None,
        *,
        dp_parameters: DPParameters,
        dataset_metadata: DatasetMetadata,
        debug: bool = False,
        **kwargs: Any,
    ) -> None:
        self._check_arguments(dp_parameters, dataset_metadata)
        super().__init__(layers=layers, **kwargs)
        self._start(dp_parameters, dataset_metadata, debug)

    def layers_forward_order(self) -> list[keras.layers.Layer]:
        """list of layers, from input to output."""
        return list(self.layers)

    def layer_calls(self) -> tuple[LayerCall, ...]:
        """tuple of `LayerCall`, from input to output."""
        calls: list[LayerCall] = []
        shape: Shape | None = (None, *self.dataset_metadata.input_shape)
        for i, layer in enumerate(self.layers):
            calls.append(LayerCall(layer, (i,), (i + 1,), (shape,)))
            shape = layer.compute_output_shape(shape) if layer.built else None
        return tuple(calls)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype", None)  # keras.Sequential takes none; each layer states its own
        return {**config, **self._private_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "DP_Sequential":
        config = cls._deserialize_config(config)
        config["layers"] = [
            keras.saving.deserialize_keras_object(layer, custom_objects=custom_objects) for layer in config["layers"]
        ]
        build_shape = config.pop("build_input_shape", None)
        model = cls(**config)
        if build_shape and not model.built:
            model.build(tuple(build_shape))
        return model


@keras.saving.register_keras_serializable(package="deel-lipdp")
class DP_Model(PrivateModel, keras.Model):
    """A functional `keras.Model` of layers with bounds, trained with differential privacy by `fit`.

    Made from a graph, `DP_Model(inputs=..., outputs=..., ...)`, or from a list of layers, each applied to what the one
    before returns (a pair of tensors inside a residual block).

    Bounds follow the graph: where a tensor is used several times its cotangents add up, merging layers have rules of
    their own, and a layer used several times has the sum of its uses' bounds.

    Args:
        dp_layers: list of layers of `deel.lipdp.layers`, `DP_BoundedInput` first.
        inputs, outputs: in place of `dp_layers`: one Keras tensor each, all layers between them `DPLayer`s, the first
            `DP_BoundedInput`.
        dp_parameters, dataset_metadata, debug: as for `DP_Sequential`.
        **kwargs: `name`.

    Raises:
        TypeError: for a layer without bounds, or an operation that is no layer.
        ValueError: for several inputs or outputs.

    Example:

    >>> import keras
    >>> from deel.lipdp import layers as dp
    >>> from deel.lipdp.model import DatasetMetadata, DP_Model, DPParameters
    >>> inputs = keras.Input((8,))
    >>> x = dp.DP_BoundedInput(1.0)(inputs)
    >>> x = dp.DP_MergeResidual("1-lip-add")([dp.DP_QuickSpectralDense(8)(x), x])
    >>> model = DP_Model(
    ...     inputs=inputs,
    ...     outputs=dp.DP_QuickSpectralDense(2)(x),
    ...     dp_parameters=DPParameters("optimal", 1.0, delta=1e-5),
    ...     dataset_metadata=DatasetMetadata((8,), nb_samples_train=1000, batch_size=100, max_norm=1.0),
    ... )
    >>> len(model.layers_forward_order())
    4
    """

    def __init__(
        self,
        dp_layers: Sequence[keras.layers.Layer] | None = None,
        *,
        inputs: keras.KerasTensor | None = None,
        outputs: keras.KerasTensor | None = None,
        dp_parameters: DPParameters,
        dataset_metadata: DatasetMetadata,
        debug: bool = False,
        **kwargs: Any,
    ) -> None:
        self._check_arguments(dp_parameters, dataset_metadata)
        if (dp_layers is None) == (inputs is None or outputs is None):
            raise TypeError(
                _checks.message(
                    "DP_Model",
                    "a list of layers, or inputs and outputs",
                    f"dp_layers={dp_layers!r}, inputs={inputs!r}, outputs={outputs!r}",
                    "Pass dp_layers=[...], or inputs=... and outputs=....",
                )
            )
        if dp_layers is not None:
            inputs, outputs = _chain(dp_layers, dataset_metadata)
        # Keras makes every class that is made this way a functional one, so all models of this class are.
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self._start(dp_parameters, dataset_metadata, debug)
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise ValueError(
                _checks.message(
                    self._who(),
                    "one input and one output",
                    f"{len(self.inputs)} inputs and {len(self.outputs)} outputs",
                    "Concatenate them: DP_Concatenate, or one array split inside the model.",
                )
            )
        self._calls = tuple(self._graph_calls())
        if not self._calls or self._calls[-1].outputs != (id(self.outputs[0]),):
            raise ValueError(
                _checks.message(
                    self._who(),
                    "a last layer with one output, that of the model",
                    f"{type(self._calls[-1].layer).__name__ if self._calls else 'no layer'}",
                    "Merge the branches: DP_MergeResidual, DP_Add or DP_Concatenate.",
                )
            )

    def _graph_calls(self):
        """The calls of the graph, each after those it needs."""
        for depth in sorted(self._nodes_by_depth, reverse=True):
            for node in self._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                if not isinstance(node.operation, DPLayer):
                    kind = f"{type(node.operation).__module__}.{type(node.operation).__name__}"
                    remedy = remedy_for(node.operation, tuple(tuple(tensor.shape) for tensor in node.input_tensors))
                    if type(node.operation).__name__ == "Add":
                        remedy += " DP_Add is the sum, at the sum of the bounds."
                    raise TypeError(
                        _checks.message(
                            f"{type(node.operation).__name__} '{node.operation.name}'",
                            "a layer with bounds (a DPLayer)",
                            f"a {kind}",
                            remedy,
                        )
                    )
                inputs = node.input_tensors
                yield LayerCall(
                    node.operation,
                    tuple(id(tensor) for tensor in inputs),
                    tuple(id(tensor) for tensor in node.outputs),
                    tuple(tuple(tensor.shape) for tensor in inputs),
                )

    def layer_calls(self) -> tuple[LayerCall, ...]:
        """tuple of `LayerCall`, each after those whose outputs it takes."""
        return self._calls

    def layers_forward_order(self) -> list[keras.layers.Layer]:
        """list of layers, each once, from input to output."""
        return list({id(call.layer): call.layer for call in self._calls}.values())

    def get_config(self) -> dict[str, Any]:
        graph = keras.Model(self.inputs[0], self.outputs[0], name=self.name)
        return {
            "name": self.name,
            "trainable": self.trainable,
            "graph": keras.saving.serialize_keras_object(graph),
            **self._private_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "DP_Model":
        config = cls._deserialize_config(config)
        graph = keras.saving.deserialize_keras_object(config.pop("graph"), custom_objects=custom_objects)
        return cls(inputs=graph.inputs[0], outputs=graph.outputs[0], **config)


def _chain(layers, metadata):
    """Symbolic input and output of layers applied one after the other."""
    shapes = [layer.batch_shape[1:] for layer in layers if isinstance(layer, keras.layers.InputLayer)]
    inputs = outputs = keras.Input(shapes[0] if shapes else metadata.input_shape)
    for layer in layers:
        if not isinstance(layer, keras.layers.InputLayer):
            outputs = layer(outputs)
    return inputs, outputs
