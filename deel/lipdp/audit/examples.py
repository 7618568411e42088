"""Examples that come near their bounds: an audit finds nothing on examples that hardly move the gradient."""

import math

import keras
import numpy as np
import tensorflow as tf

from deel.lipdp import _checks
from deel.lipdp.audit._recording import ExampleGradients, declared_scales
from deel.lipdp.bounds import output_gradient_bound

__all__ = ["hard_examples", "hard_weights"]

_LEARNING_RATE = 0.05


def hard_examples(
    model: keras.Model,
    labels: np.ndarray,
    count: int,
    *,
    distinct: bool = False,
    candidates: np.ndarray | None = None,
    tries: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Searches for examples whose gradients are long, all together or for one variable, at the model's present weights.

    The candidates are drawn, constant, checkered, sparse, random, in proportion to the input bound, and those passed
    in. Each gets a label at random. The weights decide how long a gradient can get: see `hard_weights`.

    Args:
        model: a compiled `DP_Sequential` or `DP_Model`.
        labels: array, labels to choose from, for instance `np.eye(classes)`.
        count: int, number of examples to return.
        distinct: bool. True: choose one after another the candidate with the longest part of its gradient that is
            orthogonal to all chosen before, so that a one-run audit can tell them apart.
        candidates: array of examples or None, to be tried beside the drawn ones.
        tries: int, number of drawn candidates.
        seed: int.

    Returns:
        (x, y): arrays of `count` examples and labels: the longest of all first, then the longest for each variable,
        then the second of all, and so on.

    Raises:
        TypeError, ValueError: for arguments out of range, or fewer tries than examples.
    """
    who = "hard_examples"
    count = _checks.integer(who, "count", count)
    tries = _checks.integer(who, "tries", tries, at_least=count)
    rng = np.random.default_rng(seed)
    shape = model.dataset_metadata.input_shape
    x = np.stack([_PATTERNS[i % len(_PATTERNS)](rng, shape) for i in range(tries)]).astype("float32")
    x *= model.dataset_metadata.max_norm / np.linalg.norm(x.reshape(tries, -1), axis=1).reshape(-1, *[1] * len(shape))
    if candidates is not None:
        x = np.concatenate([x, np.asarray(candidates, "float32")])
    y = np.asarray(labels)[rng.integers(0, len(labels), len(x))]
    gradients = ExampleGradients(model)(x, y)
    if distinct:
        chosen = _distinct(gradients @ gradients.T, count)
        return x[chosen], y[chosen]
    ends = np.cumsum([math.prod(v.shape) for v in model.trainable_variables])[:-1]
    lengths = [np.linalg.norm(part, axis=1) for part in (gradients, *np.split(gradients, ends, axis=1))]
    # The best of each ranking in turn: a fault in one variable shows on examples that are long there.
    rankings = np.argsort(-np.stack(lengths), axis=1, kind="stable")
    chosen = list(dict.fromkeys(rankings.T.ravel().tolist()))[:count]
    return x[chosen], y[chosen]


def hard_weights(
    model: keras.Model, labels: np.ndarray, *, steps: int = 100, restarts: int = 3, tries: int = 50, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Searches for weights inside their constraint sets, and one example, for which all variables have long gradients.

    At initial weights a gradient may be many times below its bound for every example there is, so that no audit can see
    a bound that is too small by less. A bound is for all weights, so an audit may choose them. The search starts from
    the hardest of some drawn examples and ascends the product of all ratios of norm to bound, over weights and example.

    Args:
        model: a compiled `DP_Sequential` or `DP_Model`. It is left as it was.
        labels: array, labels to choose from.
        steps: int, ascent steps from each start.
        restarts: int, how many of the hardest examples to start from.
        tries: int, examples drawn to start from.
        seed: int.

    Returns:
        (weights, x, y): list of arrays for `model.set_weights`, and arrays of one example and label.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """
    steps = _checks.integer("hard_weights", "steps", steps)
    restarts = _checks.integer("hard_weights", "restarts", restarts)
    starts = hard_examples(model, labels, restarts, tries=tries, seed=seed)
    before, largest = model.get_weights(), model.dataset_metadata.max_norm
    # A kernel of zeros sends nothing back, and the ascent would not leave it: not all ratios are above 0 there.
    rng = np.random.default_rng(seed)
    first = [w if w.ndim < 2 or w.any() else rng.normal(size=w.shape).astype(w.dtype) for w in before]
    image = keras.Variable(starts[0][:1] / largest)  # of norm 1, so that the learning rate fits
    label = tf.Variable(starts[1][:1])
    ascent = [image, *model.trainable_variables]
    optimizer = keras.optimizers.Adam(_LEARNING_RATE)
    optimizer.build(ascent)
    initial = [v.numpy() for v in optimizer.variables]
    radius = tf.constant(output_gradient_bound(model), tf.float32)
    bounds = tf.constant(declared_scales(model).bounds, tf.float32)

    @tf.function
    def ascend():
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                output = model(largest * image.value, training=True)
            with tf.GradientTape() as loss_tape:
                loss_tape.watch(output)
                loss = tf.reduce_mean(model.loss_function(label, output))
            cotangent = tf.stop_gradient(tf.clip_by_norm(loss_tape.gradient(loss, output), radius))
            gradients = tape.gradient(
                output, [v.value for v in ascent[1:]], output_gradients=cotangent, unconnected_gradients="zero"
            )
            # The norm has no gradient at 0, nor the logarithm a value.
            ratios = tf.stack([tf.sqrt(tf.reduce_sum(g * g) + 1e-20) for g in gradients]) / bounds
            objective = -tf.reduce_sum(tf.math.log(ratios + 1e-6))
        directions = outer.gradient(objective, [v.value for v in ascent], unconnected_gradients="zero")
        optimizer.apply(directions, ascent)  # also projects the weights
        image.assign(image.value / tf.maximum(tf.norm(image.value), 1e-6))
        return objective

    best, found = math.inf, None
    try:
        for x, y in zip(*starts, strict=True):
            model.set_weights(first)
            image.assign(x[None] / largest)
            label.assign(y[None])
            for variable, value in zip(optimizer.variables, initial, strict=True):
                variable.assign(value)
            for _ in range(steps):
                now = model.get_weights(), largest * image.numpy(), y[None]
                value = float(ascend())
                if value < best:
                    best, found = value, now
    finally:
        model.set_weights(before)
    return found or (before, starts[0][:1], starts[1][:1])


def _distinct(products, count):
    """Pivots of the Cholesky factorisation of the inner products, largest first."""
    left, factor, chosen = np.diag(products).copy(), np.zeros((len(products), count)), []
    for k in range(count):
        pivot = int(np.argmax(left))
        column = products[:, pivot] - factor[:, :k] @ factor[pivot, :k]
        factor[:, k] = column / math.sqrt(max(left[pivot], np.finfo(float).tiny))
        left -= factor[:, k] ** 2
        chosen.append(pivot)
        left[chosen] = -np.inf
    return chosen


def _checkered(rng, shape):
    return (-1.0) ** np.indices(shape).sum(axis=0) * rng.choice([-1.0, 1.0], shape[-1])


def _sparse(rng, shape):
    x = np.zeros(shape)
    x.flat[rng.integers(x.size)] = rng.choice([-1.0, 1.0])
    return x


_PATTERNS = (
    lambda rng, shape: np.broadcast_to(rng.choice([-1.0, 1.0], shape[-1]), shape),
    _checkered,
    _sparse,
    lambda rng, shape: rng.normal(size=shape),
    lambda rng, shape: rng.choice([-1.0, 1.0], shape),
)
