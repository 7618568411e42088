"""What a training step really releases: the gradients that the optimizer is handed, beside what the model declares."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from deel.lipdp import _checks
from deel.lipdp.bounds import compute_gradient_bounds, output_gradient_bound, variable_key
from deel.lipdp.layers import DP_Dropout
from deel.lipdp.noise import get_noise_multiplier_coefs, joint_noise_multiplier

__all__ = ["Declared", "ExampleGradients", "Recorder", "declared_scales", "flat", "fresh_model"]


@dataclasses.dataclass(frozen=True)
class Declared:
    """What a model says about one step, each tuple in the order of `model.trainable_variables`.

    Args:
        keys: tuple of str.
        bounds: array, largest gradient norm of one example, on the sum.
        stddevs: array, of the noise on the sum.
        noise_multiplier: float, the joint one.
    """

    keys: tuple
    bounds: np.ndarray
    stddevs: np.ndarray
    noise_multiplier: float

    def distance(self, norms, stddevs=None):
        """Length of gradients of these norms, each in units of its noise: `sqrt(sum of (norm_k / stddev_k)^2)`.

        Args:
            norms: array (..., variables).
            stddevs: array (variables,), the declared ones when None.
        """
        scaled = np.asarray(norms) / (self.stddevs if stddevs is None else stddevs)
        return np.sqrt(np.sum(scaled**2, axis=-1))


def declared_scales(model):
    """`Declared` at the present clip values."""
    bounds = compute_gradient_bounds(model)
    coefs = get_noise_multiplier_coefs(model, bounds)
    keys = {id(v): variable_key(layer, v) for layer in model.layers_forward_order() for v in layer.trainable_variables}
    keys = tuple(keys[id(v)] for v in model.trainable_variables)
    multiplier = model.dp_parameters.noise_multiplier
    return Declared(
        keys,
        np.array([bounds[key] for key in keys], "float64"),
        np.array([multiplier * coefs[key] * bounds[key] for key in keys], "float64"),
        joint_noise_multiplier(model, bounds),
    )


def fresh_model(who, build_model):
    """Builds a model to audit and refuses one whose audit would say nothing."""
    model = build_model()
    if model.ledger.steps:
        raise ValueError(
            _checks.message(
                who,
                "build_model to make a new model at each call",
                f"one with {model.ledger.steps} steps in its ledger",
                "Build and compile the model inside the function.",
            )
        )
    if not model.dp_parameters.noise_multiplier > 0:
        raise ValueError(
            _checks.message(
                who,
                "a model with noise",
                f"noise_multiplier={model.dp_parameters.noise_multiplier}",
                "Without noise epsilon is infinite and there is nothing to audit.",
            )
        )
    return model


class Recorder:
    """Takes training steps of a model and returns the gradients that its optimizer was handed.

    The optimizer's `apply` is wrapped before the model's graph is made, so that what is seen is what trains: after the
    guards, the division by the batch size and the noise. The model belongs to the audit from then on.

    Args:
        model: a compiled model that has not trained.
    """

    def __init__(self, model):
        self.model = model
        self._released = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in model.trainable_variables]
        self._calls = tf.Variable(0, dtype=tf.int64, trainable=False)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._start = self.state()
        apply = model.optimizer.apply

        def recording_apply(grads, trainable_variables=None):
            for slot, gradient in zip(self._released, grads, strict=True):
                slot.assign(tf.cast(gradient, slot.dtype))
            self._calls.assign_add(1)
            return apply(grads, trainable_variables)

        model.optimizer.apply = recording_apply

    def _variables(self):
        # Masks are secret, hence among no model's variables. Two runs that are compared need the same.
        masks = [layer.mask_state for layer in self.model._flatten_layers() if isinstance(layer, DP_Dropout)]
        return [*self.model.variables, *self.model.optimizer.variables, *masks]

    def state(self):
        """list of arrays, the present values of all variables of model and optimizer, and the state of its masks."""
        return [v.numpy() for v in self._variables()]

    def restore(self, state=None, certify=False):
        """Sets all variables of model and optimizer, to what they were at the start when None.

        Two models that are brought to one state stay equal if both are called with the same `certify`: a step projects
        the weights it finds changed since it last knew them, and no others.

        Args:
            state: list of arrays from `state()`, or None.
            certify: bool, whether to project the weights now, which is slow, instead of in the next step.
        """
        for variable, value in zip(self._variables(), self._start if state is None else state, strict=True):
            variable.assign(value)
        if certify:
            self.model.restore_constraints()

    def step(self, x, y, sample_weight):
        """Takes one training step.

        Returns:
            list of float64 arrays in the order of `model.trainable_variables`: the released gradients times the
            declared batch size, so in the units of the bounds.

        Raises:
            RuntimeError: if the optimizer was not handed gradients exactly once.
        """
        before = int(self._calls.numpy())
        self.model.train_on_batch(x, y, sample_weight)
        calls = int(self._calls.numpy()) - before
        if calls != 1:
            raise RuntimeError(
                _checks.message(
                    "audit",
                    "one call of optimizer.apply in a training step",
                    f"{calls}",
                    "Audit a model that has not trained and has no step limit.",
                )
            )
        batch_size = self.model.dataset_metadata.batch_size
        return [slot.numpy().astype("float64") * batch_size for slot in self._released]


def flat(gradients, stddevs):
    """One vector from the gradients of all variables, each in units of its noise."""
    return np.concatenate([np.ravel(g) / stddev for g, stddev in zip(gradients, stddevs, strict=True)])


class ExampleGradients:
    """The gradient of each example alone, in units of the noise: what an attacker who knows the examples computes.

    It reads private data if the examples are private. Canaries are made up.

    Args:
        model: a compiled `DP_Sequential` or `DP_Model`.
    """

    def __init__(self, model):
        self._model = model
        self._graph = tf.function(self._gradients, reduce_retracing=True)

    def __call__(self, x, y):
        """float64 array (examples, parameters), at the model's present weights."""
        stddevs = declared_scales(self._model).stddevs
        radius = tf.constant(output_gradient_bound(self._model), tf.float32)
        x = tf.cast(keras.ops.convert_to_tensor(x), self._model.compute_dtype)
        gradients = self._graph(x, tf.convert_to_tensor(y), radius, tf.constant(1.0 / stddevs, tf.float32))
        return gradients.numpy().astype("float64")

    def _gradients(self, x, y, radius, precisions):
        def gradient(pair):
            example, label = pair
            with tf.GradientTape() as tape:
                output = self._model(example[None], training=True)
            with tf.GradientTape() as loss_tape:
                loss_tape.watch(output)
                loss = tf.reduce_mean(self._model.loss_function(label[None], output))
            cotangent = tf.clip_by_norm(loss_tape.gradient(loss, output), radius)
            gradients = tape.gradient(
                output,
                [v.value for v in self._model.trainable_variables],
                output_gradients=cotangent,
                unconnected_gradients="zero",
            )
            parts = zip(gradients, tf.unstack(precisions), strict=True)
            return tf.concat([tf.reshape(tf.convert_to_tensor(g) * precision, [-1]) for g, precision in parts], 0)

        return tf.map_fn(gradient, (x, y), fn_output_signature=tf.float32)
