"""The private training step on TensorFlow: guards, one backward pass, noise, count, update."""

import dataclasses
import functools
import logging

import keras
import numpy as np
import tensorflow as tf

from deel.lipdp import _per_example, _scalars
from deel.lipdp._training.noise_source import NoiseSource
from deel.lipdp.accounting import GaussianStep
from deel.lipdp.losses import ROW_WISE_LOSSES

__all__ = [
    "CertifiedWeights",
    "NoiseSource",
    "PassPosition",
    "StepPlan",
    "StepScales",
    "per_example_gradient_norms",
    "per_example_losses",
    "private_step",
]

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StepScales:
    """Bounds and noise of a training step: floats, or float64 scalar tensors where a clip value moves.

    Args:
        output_gradient_bound: radius of the logit guard.
        gradient_bounds: tuple in the order of `model.trainable_variables`, for one example and for the sum.
        noise_stddevs: tuple in the same order, on the sum.
    """

    output_gradient_bound: float
    gradient_bounds: tuple
    noise_stddevs: tuple

    def are_constant(self):
        """Whether no clip value that moves is in any of them."""
        values = (self.output_gradient_bound, *self.gradient_bounds, *self.noise_stddevs)
        return all(_scalars.is_constant(value) for value in values)


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The constants of a training step. A graph is valid for one plan; another plan needs another graph.

    Args:
        event: `GaussianStep`, what the ledger counts for each step.
        scales: `StepScales`, or None where a clip value moves: each step then computes them from its present value.
        batch_size: int, B, by which sum and noise are divided.
        loss_weight: float in [0, 1].
        steps_per_count: int, how many successive steps one count of the event covers: a pass of disjoint batches is one
            release.
        multiplicity: int, rows of an example in a batch, which share its weight.
    """

    event: GaussianStep
    scales: StepScales | None
    batch_size: int
    loss_weight: float
    steps_per_count: int = 1
    multiplicity: int = 1


class PassPosition:
    """Where in a pass over the data the training is, so that each pass is counted once, at its first step.

    Keras starts a new pass when the one before is exhausted or a new `fit` begins, and never else.
    """

    def __init__(self):
        self._drawn = tf.Variable(0, dtype=tf.int64, trainable=False, name="batches_drawn")
        self._counted = tf.Variable(-1, dtype=tf.int64, trainable=False, name="last_count")

    def start_anew(self):
        """Says that the next batch is the first of a pass."""
        self._drawn.assign(0)
        self._counted.assign(-1)

    def due(self, steps_per_count):
        """int64 tensor: 1 if a step on the present batch has to be counted, 0 if its pass was counted before."""
        return tf.cast(self._drawn // steps_per_count != self._counted, tf.int64)

    def count(self, steps_per_count):
        """Notes that the pass of the present batch was counted."""
        return self._counted.assign(self._drawn // steps_per_count)

    def advance(self):
        """Goes on to the next batch."""
        self._drawn.assign_add(1)


class CertifiedWeights:
    """Copies of the constrained weights as they were when last known to be inside their sets.

    Anything may assign weights between two steps (callbacks, users) without the variable's constraint. Comparing with
    the copy finds that out exactly, at a price far below a new certificate.

    Args:
        variables: list of variables that have a constraint, inside their sets.
    """

    def __init__(self, variables):
        self._variables = list(variables)
        self._copies = [tf.Variable(v.value, trainable=False, name="certified") for v in variables]

    def cover(self, variables):
        """Whether these are the variables of `variables`, in the same order."""
        return [id(v) for v in variables] == [id(v) for v in self._variables]

    def restore(self):
        """Projects every variable that was assigned since; in the graph of a step."""
        for variable, copy in zip(self._variables, self._copies, strict=True):

            def project(variable=variable):
                variable.assign(variable.constraint(variable))
                return 0

            tf.cond(tf.reduce_any(tf.not_equal(variable.value, copy)), project, lambda: 0)

    def certify(self):
        """Takes the present values, known to be inside their sets, as certified."""
        for variable, copy in zip(self._variables, self._copies, strict=True):
            copy.assign(variable.value)


def _weights(sample_weight, batch):
    """Weight of each example: non-finite becomes 0, then clamped to [0, 1]."""
    if sample_weight is None:
        return tf.ones([batch])
    weights = tf.reshape(tf.cast(sample_weight, "float32"), [batch])
    return tf.clip_by_value(_per_example.finite_or_zero(weights), 0.0, 1.0)


def _never_empty(x, y, weights):
    """Stands one example of weight 0 in for an empty batch: TensorFlow's convolutions give it a wrong shape."""

    def placeholder():
        return tuple(tf.zeros_like(tf.concat([t, tf.zeros([1, *t.shape[1:]], t.dtype)], 0)) for t in (x, y, weights))

    return tf.cond(tf.shape(weights)[0] > 0, lambda: (x, y, weights), placeholder)


def per_example_losses(loss, y, y_pred):
    """Loss of each example of a batch, (batch,), such that none depends on another example.

    The library's own losses are known to be so. Any other is mapped over batches of one example: whatever it does, it
    can then not make one example's gradient depend on another. (XLA compiles a mapped step anew for every batch.)
    """
    if type(loss) in ROW_WISE_LOSSES and len(y_pred.shape) == 2:
        # One label would be broadcast over all examples. XLA drops the assertion; TensorFlow without XLA optimises the
        # reshaping away, which fails for another number too.
        tf.debugging.assert_equal(tf.shape(y)[0], tf.shape(y_pred)[0], "expected one label for each example")
        rows = tf.reshape(y, tf.concat([tf.shape(y_pred)[:1], tf.shape(y)[1:]], axis=0))
        y = tf.ensure_shape(rows, [None, *y.shape[1:]])
        return loss.call(tf.cast(y, loss.dtype), tf.cast(y_pred, loss.dtype))
    losses = tf.vectorized_map(lambda pair: tf.reduce_mean(loss(pair[0][None], pair[1][None])), (y, y_pred))
    return tf.reshape(losses, [-1])


def _guarded_cotangents(loss, y, y_pred, weights, radius):
    """Each example's weighted loss, and its gradient at the output, finite and of norm at most `radius`."""
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        losses = per_example_losses(loss, y, y_pred) * tf.cast(weights, y_pred.dtype)
    cotangents = tape.gradient(losses, y_pred, unconnected_gradients="zero")
    # The reported loss leaves out what the gradient leaves out: a NaN would set off TerminateOnNaN, for one record.
    losses = _per_example.finite_or_zero(losses)
    cotangents = _per_example.finite_or_zero(cotangents)
    return losses, _per_example.project_on_ball(cotangents, tf.cast(radius, cotangents.dtype))


def _summed_gradients(model, loss, radius, x, y, weights):
    """One forward and one backward pass: gradients summed over the rows, outputs and losses."""
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
    losses, cotangents = _guarded_cotangents(loss, y, y_pred, weights, radius)
    gradients = tape.gradient(
        y_pred,
        [v.value for v in variables],
        output_gradients=cotangents,
        unconnected_gradients="zero",
    )
    # An IndexedSlices gradient would get noise on the rows it touches only; TensorFlow forgets the shape of some.
    gradients = [tf.ensure_shape(tf.convert_to_tensor(g), v.shape) for g, v in zip(gradients, variables, strict=True)]
    return gradients, y_pred, losses


def _summed_in_microbatches(size, model, loss, radius, x, y, weights):
    """As `_summed_gradients`, a few rows at a time, so that their activations alone are in memory.

    All that happens before the sum happens row by row, so it may be taken in parts. Rows of weight 0, whose cotangent
    is 0, fill the last part: parts of one size let XLA compile one graph for all.

    Args:
        size: int, the largest number of rows of a part.
        model, loss, radius, x, y, weights: as in `_summed_gradients`.
    """
    rows = x.shape[0] if x.shape[0] is not None else tf.shape(x)[0]
    parts = -(-rows // size)
    size = -(-rows // parts)  # of equal parts the rows that are filled in are fewest

    def in_parts(t):
        filled = tf.pad(t, [[0, parts * size - rows]] + [[0, 0]] * (len(t.shape) - 1))
        return tf.reshape(filled, tf.concat([[parts, size], tf.shape(t)[1:]], axis=0))

    split = [in_parts(t) for t in (x, y, weights)]
    sums = [tf.zeros(v.shape, v.dtype) for v in model.trainable_variables]
    outputs = tf.TensorArray(model.compute_dtype, parts, element_shape=[None, *model.output_shape[1:]])
    losses = tf.TensorArray(model.compute_dtype, parts, element_shape=[None])

    def add_part(index, sums, outputs, losses):
        part = [
            tf.ensure_shape(t[index], [None, *whole.shape[1:]]) for t, whole in zip(split, (x, y, weights), strict=True)
        ]
        gradients, y_pred, part_losses = _summed_gradients(model, loss, radius, *part)
        sums = [a + g for a, g in zip(sums, gradients, strict=True)]
        return index + 1, sums, outputs.write(index, y_pred), losses.write(index, part_losses)

    _, sums, outputs, losses = tf.while_loop(
        lambda index, *_: index < parts, add_part, (0, sums, outputs, losses), parallel_iterations=1
    )
    return sums, outputs.concat()[:rows], losses.concat()[:rows]


def _regularizer_gradients(variables):
    """Gradients of weight regularisers: functions of released weights, added after the noise."""
    with tf.GradientTape() as tape:
        penalties = [v.regularizer(v) for v in variables if v.regularizer is not None]
    if not penalties:
        return [None] * len(variables)
    return tape.gradient(penalties, [v.value for v in variables])


def _update_metrics(model, multiplicity, x, y, y_pred, losses, sample_weight, weights):
    present = weights > 0
    count = tf.reduce_sum(tf.cast(present, losses.dtype)) / multiplicity
    model.update_loss(tf.math.divide_no_nan(tf.reduce_sum(losses), count), count)
    if not model.jit_compile:
        # Keras's unweighted metrics ignore the weight; an example of weight 0 took no part in the step.
        y, y_pred = (tf.boolean_mask(t, present) for t in (y, y_pred))
        weights = tf.boolean_mask(weights, present)
    weighted = model.jit_compile or sample_weight is not None
    model.compute_metrics(x, y, y_pred, sample_weight=weights if weighted else None)


def private_step(model, plan, certified, due, x, y, sample_weight):
    """One step of training: see the package documentation for the order and why it is the proof.

    Args:
        model: the model, with its `ledger`, `add_noise` and `optimizer`.
        plan: `StepPlan`.
        certified: `CertifiedWeights` of the model.
        due: int64 tensor, how many counts of the event this step adds.
        x, y, sample_weight: the batch; `sample_weight` may be None.
    """
    variables = model.trainable_variables
    count = model.ledger.counter(plan.event).value.assign_add(due)
    certified.restore()
    weights = _weights(sample_weight, tf.shape(y)[0]) * plan.loss_weight
    if not model.jit_compile:  # XLA has no such fault, and no tensors of two sizes
        x, y, weights = _never_empty(x, y, weights)
    scales = plan.scales or model.scales_in_force()
    radius = scales.output_gradient_bound
    # Guards and clipping layers act on rows. Each view passes them as a whole example would, and the mean of the views
    # is then within the bound for one; with weight 1 / multiplicity there, each view could still reach the bound alone.
    views = plan.multiplicity
    summed = _summed_gradients
    if model.microbatch_size is not None:
        summed = functools.partial(_summed_in_microbatches, model.microbatch_size)
    gradients, y_pred, losses = summed(model, model.loss_function, radius, x, y, weights * views)
    gradients, losses = [g / views for g in gradients], losses / views
    if model.debug:
        _log_step(model, scales, gradients)
    with tf.control_dependencies([count]):
        gradients = [g / plan.batch_size for g in gradients]
    gradients = model.add_noise(gradients, [s / plan.batch_size for s in scales.noise_stddevs])
    gradients = [
        g if penalty is None else g + penalty
        for g, penalty in zip(gradients, _regularizer_gradients(variables), strict=True)
    ]
    model.optimizer.apply(gradients, variables)  # also projects every constrained variable
    certified.certify()
    _update_metrics(model, plan.multiplicity, x, y, y_pred, losses, sample_weight, weights)


def _log_step(model, scales, gradients):
    rows = zip(
        model.trainable_variables,
        scales.gradient_bounds,
        scales.noise_stddevs,
        gradients,
        strict=True,
    )
    for variable, bound, stddev, gradient in rows:
        _logger.debug(
            "%s: gradient bound %.6g, norm of the summed gradient %.6g, noise stddev %.6g",
            variable.path,
            float(bound),
            float(tf.norm(gradient)),
            float(stddev),
        )


def per_example_gradient_norms(model, loss, radius, data):
    """Norms of gradients at the current weights, uncovered by epsilon: for reports and tests.

    Args:
        model, loss, radius: the model, its loss function and the radius of its logit guard.
        data: `(x, y)` or `(x, y, sample_weight)`, a batch.

    Returns:
        (norms, mean_norms): array (batch, variables) of each example's gradient norms, and array (variables,) of the
        norm of the gradient summed over the batch.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    weights = _weights(sample_weight, tf.shape(y)[0])

    @tf.function
    def norms(x, y, weights):
        gradients, _, _ = _summed_gradients(model, loss, radius, x, y, weights)
        return tf.stack([tf.norm(g) for g in gradients])

    # Traced anew each time, since a graph holds layers and loss as they are now; TensorFlow need not warn of it.
    of_one = norms.get_concrete_function(x[:1], y[:1], weights[:1])
    of_all = norms.get_concrete_function(x, y, weights)
    each = [of_one(x[i : i + 1], y[i : i + 1], weights[i : i + 1]) for i in range(len(x))]
    return np.stack(each).astype("float64"), of_all(x, y, weights).numpy().astype("float64")
