"""Poisson sampling on `tf.data`: the batches behind an amplified epsilon, and a mark that says they are.

The mark is on the data set that `poisson_batches` returns and on nothing made from it: repeating, caching, shuffling or
taking a part changes what is sampled, so such a data set counts as undeclared, which costs more epsilon and never less.
"""

import dataclasses
import itertools
import math
import os

import numpy as np
import tensorflow as tf

from deel.lipdp import _checks
from deel.lipdp.accounting.events import PoissonSampling

__all__ = ["SamplerInfo", "fixed_batch_size", "poisson_batches", "sampling_of"]

_MARK = "_lipdp_sampler"

# Data sets that pass on the batches of the one before them.
_KEEP_BATCHES = ("Map", "Prefetch", "Shuffle", "Repeat", "Take", "Skip", "Cache", "Options", "Cardinality")


@dataclasses.dataclass(frozen=True)
class SamplerInfo:
    """What a sampler does, for the ledger.

    Args:
        sampling: `PoissonSampling`, the event part that an accountant prices (neighbours: `add_or_remove_one`).
        num_examples: int, number of training examples n.
        batch_size: int, expected size B of a batch; the inclusion probability is exactly B / n.
        steps: int, batches in one pass.
        seeded: bool, whether the draws are reproducible. Amplification needs draws nobody knows: epsilon is then void.
    """

    sampling: PoissonSampling
    num_examples: int
    batch_size: int
    steps: int
    seeded: bool = False


def poisson_batches(x, y, batch_size, *, steps=None, map_fn=None, seed=None):
    """Makes batches that each example enters independently, ready for `model.fit`.

    The size of a batch varies around `batch_size` and can be 0: a Poisson batch with nobody in it still is a step.
    Every pass over the data set draws anew; no batch is ever replayed. The arrays are copied once, when this is called.

    Args:
        x: array of shape (n, ...), numbers; the examples.
        y: array of shape (n, ...), numbers; their labels, in the same order.
        batch_size: int in [1, n], expected size B of a batch; each example is in it with probability B / n.
        steps: int >= 1 or None, batches in one pass; `ceil(n / B)` when None.
        map_fn: callable `(x, y) -> (x, y)` on the tensors of a batch, or None; for instance random augmentation. It
            must treat examples independently and return one row for each (the batch may be empty): mixing examples, as
            MixUp or statistics of the batch do, voids the guarantee.
        seed: int in [0, 2^64) or None. An int makes the draws reproducible, for tests only; see `SamplerInfo.seeded`.

    Returns:
        A `tf.data.Dataset` of `steps` pairs (x, y), marked for `sampling_of`.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for a number out of range or arrays that do not match.

    Example:

    >>> data = poisson_batches(np.zeros((1000, 4), "float32"), np.zeros(1000), batch_size=100)
    >>> sampling_of(data).sampling.sampling_probability, len(data)
    (0.1, 10)
    """
    who = "poisson_batches"
    x, y = _numbers(who, "x", x), _numbers(who, "y", y)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(
            _checks.message(
                who,
                "x and y with the same number of examples, at least one",
                f"len(x)={len(x)}, len(y)={len(y)}",
                "Pass one label per example.",
            )
        )
    n = len(x)
    batch_size = _checks.integer(
        who, "batch_size", batch_size, at_most=n, remedy="A batch cannot be larger than the training set."
    )
    steps = math.ceil(n / batch_size) if steps is None else _checks.integer(who, "steps", steps)
    if seed is not None:
        seed = _checks.integer(who, "seed", seed, at_least=0, at_most=2**64 - 1)
    if map_fn is not None and not callable(map_fn):
        raise TypeError(_checks.message(who, "map_fn to be callable or None", f"map_fn={map_fn!r}", ""))

    passes = itertools.count()

    def draw():
        # tf.data calls this once per iterator, so two iterators never share a generator.
        generator = _generator(seed, next(passes))
        for _ in range(steps):
            # An integer uniform on 0..n-1 is below B with probability B / n, with no rounding of that quotient.
            yield np.flatnonzero(generator.integers(n, size=n) < batch_size)

    # Python draws the indices, TensorFlow gathers the rows: passing whole batches through Python is slower.
    # The device is pinned because tf.data runs on the CPU: on a GPU each batch would copy the whole array back.
    with tf.device("CPU:0"):
        x, y = tf.constant(x), tf.constant(y)
    dataset = tf.data.Dataset.from_generator(draw, output_signature=tf.TensorSpec((None,), tf.int64))
    dataset = dataset.map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))
    if map_fn is not None:
        dataset = dataset.map(_checked(who, map_fn))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(tf.data.AUTOTUNE)
    info = SamplerInfo(PoissonSampling(batch_size / n), n, batch_size, steps, seeded=seed is not None)
    setattr(dataset, _MARK, info)
    return dataset


def sampling_of(dataset):
    """Says how the batches of a data set are drawn.

    Args:
        dataset: any object.

    Returns:
        The `SamplerInfo` of a data set made by `poisson_batches`; None for anything else, also for a data set derived
        from one (`.map`, `.take`, `.repeat`, `.cache`, ...).
    """
    info = getattr(dataset, _MARK, None)
    return info if isinstance(info, SamplerInfo) else None


def fixed_batch_size(dataset):
    """Reads the size of the batches that a data set was told to make, without drawing one.

    Args:
        dataset: any object.

    Returns:
        int; None where it is not a `tf.data.Dataset` or does not get its last axis from `.batch(size)`.
    """
    while isinstance(dataset, tf.data.Dataset):
        if "Batch" in type(dataset).__name__:
            size = tf.get_static_value(getattr(dataset, "_batch_size", None))
            return None if size is None else int(size)
        inputs = dataset._inputs()
        same_rows = any(word in type(dataset).__name__ for word in _KEEP_BATCHES)
        dataset = inputs[0] if same_rows and len(inputs) == 1 else None
    return None


def _generator(seed, pass_number):
    """Returns the generator of one pass: Philox under a 128-bit key that is stored nowhere else."""
    if seed is None:
        key = np.frombuffer(os.urandom(16), dtype=np.uint64)
    else:
        key = np.array([seed, pass_number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _numbers(who, name, value):
    value = np.asarray(value)
    if value.ndim == 0 or value.dtype.kind not in "biuf":
        raise TypeError(
            _checks.message(
                who,
                f"{name} to be an array of numbers with the examples on its first axis",
                f"{name} of dtype {value.dtype} and shape {value.shape}",
                "Encode text and categories as numbers first.",
            )
        )
    return value


def _checked(who, map_fn):
    """Wraps `map_fn` so that it stays a map over examples: two outputs, a row in, a row out."""

    def apply(x, y):
        result = map_fn(x, y)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(_checks.message(who, "map_fn to return a pair (x, y)", f"{result!r}", ""))
        new_x, new_y = (tf.convert_to_tensor(part) for part in result)
        rows = tf.shape(x)[0]
        text = _checks.message(who, "map_fn to return one row per example", "another number of rows", "")
        # An example with two rows would count twice in the sum of gradients, beyond the bound for one.
        checks = [tf.debugging.assert_equal(tf.shape(part)[0], rows, message=text) for part in (new_x, new_y)]
        with tf.control_dependencies(checks):
            return tf.identity(new_x), tf.identity(new_y)

    return apply
