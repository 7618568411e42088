"""Samplers on `tf.data`: how batches are drawn, and a mark that says so to the ledger.

The mark is on the data set that a sampler returns and on nothing made from it: repeating, caching, shuffling or taking
a part changes what is sampled, so such a data set counts as undeclared, which costs more epsilon and never less.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deel.lipdp import _checks
from deel.lipdp._types import Tensor
from deel.lipdp.accounting.events import PoissonSampling, ShuffledSampling

__all__ = [
    "AugmultConfig",
    "Sampler",
    "fixed_batch_size",
    "multiplicity_behind",
    "poisson_batches",
    "sampling_of",
    "shuffled_batches",
]

MapFn: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_MARK = "_lipdp_sampler"

# Numbers of the single draws of a seeded sampler, away from those of its passes.
_FIRST_SINGLE = 2**62

# Data sets that pass on the batches of the one before them.
_KEEP_BATCHES = ("Map", "Prefetch", "Shuffle", "Repeat", "Take", "Skip", "Cache", "Options", "Cardinality")


@dataclasses.dataclass(frozen=True)
class AugmultConfig:
    """Augmentation multiplicity: an example enters a batch as the mean of several random views of itself.

    The views of one example share its weight: each row counts 1 / `multiplicity`, so their gradients together stay
    within the bound for one example, and neither noise nor epsilon changes (De et al., 2022, section 3.2).

    **Views and privacy.** Adding one example to a batch moves those behind it to other rows, hence to other views, and
    the sum of gradients may change in all of them. The bound for one is enough all the same where the views of
    different rows are independent of each other and of the data, and **nobody knows them**: the argument is that of
    `DP_Dropout`. The default views are made from the secret randomness of the sampler, which `set_random_seed` does
    not reach; an `augment` of one's own has to see to it.

    Args:
        multiplicity: int >= 1, views of each example.
        augment: callable from images `(rows, height, width, channels)` to the same shape, on tensors. Each row must
            come from its own row and from draws of its own, made anew in each call and known to nobody. A fixed seed
            breaks the argument above and voids epsilon. So does the global seed, where `set_random_seed` fixed it: it
            is what Keras's preprocessing layers and `tf.random.uniform` draw from unless told otherwise. Safe are draws
            from `tf.random.Generator.from_seed(int.from_bytes(os.urandom(8), "big") >> 1)`, made outside the function.
            None: each image is flipped left to right with probability 1/2, and shifted by up to a tenth of each side
            (in whole pixels, rounded), with zeros where nothing comes in.

    Raises:
        TypeError, ValueError: for arguments out of range; when a data set is made, for examples that are not images
            where `augment` is None.
    """

    multiplicity: int
    augment: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self):
        object.__setattr__(self, "multiplicity", _checks.integer("AugmultConfig", "multiplicity", self.multiplicity))
        if self.augment is not None and not callable(self.augment):
            raise TypeError(
                _checks.message(
                    "AugmultConfig", "augment to be callable or None", f"augment={self.augment!r}", "Pass a function."
                )
            )

    def views(self, x: Tensor, y: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Makes the views of a batch.

        Args:
            x, y: tensors, one row for each example.
            seed: int64 tensor (2,), secret and used once; for the default views.

        Returns:
            `(x, y)`, the views of one example next to each other, with its label for each.
        """
        x, y = tf.repeat(x, self.multiplicity, axis=0), tf.repeat(y, self.multiplicity, axis=0)
        return (_flip_and_shift(x, seed) if self.augment is None else self.augment(x)), y


def _flip_and_shift(images, seed):
    """Each image flipped or not and shifted, by draws of its own: pixels are taken from other places, or are 0."""
    if images.shape.rank != 4 or None in images.shape[1:3]:
        raise ValueError(
            _checks.message(
                "AugmultConfig",
                "images of shape (rows, height, width, channels) for the default views",
                f"shape {images.shape}",
                "Pass augment=, a function that makes one random view of each row.",
            )
        )
    height, width = images.shape[1:3]
    draws = tf.random.stateless_uniform([3, tf.shape(images)[0]], seed, alg="philox")
    columns = tf.range(width) + _shifts(draws[0], width)
    columns = tf.where(draws[1][:, None] < 0.5, columns, columns[:, ::-1])
    return _taken(_taken(images, columns, axis=2), tf.range(height) + _shifts(draws[2], height), axis=1)


def _shifts(draws, side):
    """From numbers uniform on [0, 1), whole numbers uniform on -r..r for r a tenth of the side; one column."""
    most = round(side / 10)
    return tf.cast(tf.floor(draws * (2 * most + 1)), tf.int32)[:, None] - most


def _taken(images, places, axis):
    """Rows or columns of each image in the places given for it, 0 for a place outside."""
    border = round(images.shape[axis] / 10)
    padded = tf.pad(images, [[border, border] if i == axis else [0, 0] for i in range(4)])
    return tf.gather(padded, places + border, axis=axis, batch_dims=1)


class Sampler:
    """What draws the batches of a data set; `sampling_of` returns it, and a model reads it to know what to count.

    Args:
        sampling: `PoissonSampling` or `ShuffledSampling`, the event part that an accountant prices.
        num_examples: int, number of training examples n.
        batch_size: int, size B of a batch, the expected one for Poisson sampling.
        steps: int, batches in one pass.
        arrays: pair of tensors `(x, y)`, the examples.
        seed: int or None.
        multiplicity: int, rows that an example has in a batch.

    Attributes:
        seeded: bool, whether the draws are reproducible. Amplification needs draws nobody knows: epsilon is then void.
        unit: str, what one count in a ledger stands for: `"step"` or `"pass"`.
        steps_per_count: int, how many successive batches one count covers.
        draws: callable, the row numbers and the seed for views of each batch of the next pass.
    """

    def __init__(
        self,
        sampling: PoissonSampling | ShuffledSampling,
        num_examples: int,
        batch_size: int,
        steps: int,
        arrays: tuple[Tensor, Tensor],
        seed: int | None = None,
        multiplicity: int = 1,
    ) -> None:
        self.sampling = sampling
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.steps = steps
        self.multiplicity = multiplicity
        self.unit = sampling.unit
        self.steps_per_count = steps if self.unit == "pass" else 1
        self.seeded = seed is not None
        self._arrays = arrays
        self._seed = seed
        self.draws = _Draws(sampling, num_examples, batch_size, steps, seed)
        self._singles = itertools.count(_FIRST_SINGLE)

    def __getstate__(self):
        raise TypeError("A Sampler holds private data and cannot be copied or pickled.")

    def seek(self, pass_number: int) -> None:
        """Makes the next pass the one of that number, for a seeded study that resumes; others draw anew anyway."""
        self.draws.passes = itertools.count(pass_number)

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        """Draws one batch besides those of the passes, without augmentation.

        Returns:
            `(x, y)`, tensors, drawn with fresh randomness from the examples of a Poisson sampler.

        Raises:
            ValueError: for a sampler without Poisson sampling, whose batches do not stand on their own.
        """
        if not isinstance(self.sampling, PoissonSampling):
            raise ValueError(
                _checks.message(
                    "Sampler.draw_batch",
                    "a Poisson sampler",
                    f"'{self.sampling.name}'",
                    "Make the batches with poisson_batches.",
                )
            )
        generator = _generator(self._seed, next(self._singles))
        [rows] = _poisson_rows(generator, self.num_examples, self.batch_size, 1)
        with tf.device("CPU:0"):
            x, y = (tf.gather(array, rows) for array in self._arrays)
        return x, y


class _Draws:
    """The draws of successive passes. It holds no example, since TensorFlow never lets go of a generator."""

    def __init__(self, sampling, num_examples, batch_size, steps, seed):
        self._arguments = num_examples, batch_size, steps
        self._rows = _DRAW[sampling.name]
        self._seed = seed
        self.passes = itertools.count()

    def __call__(self):
        """Yields the row numbers of each batch of one pass, and a seed for its views, int64 (2,).

        `tf.data` calls this once per iterator, so two iterators never share a generator.
        """
        generator = _generator(self._seed, next(self.passes))
        # The same secret key, 2^128 draws ahead: which rows are drawn does not depend on whether views are.
        for_views = np.random.Generator(generator.bit_generator.jumped())
        for rows in self._rows(generator, *self._arguments):
            yield rows, np.frombuffer(for_views.bytes(16), np.int64)


def _poisson_rows(generator, n, batch_size, steps):
    for _ in range(steps):
        # An integer uniform on 0..n-1 is below B with probability B / n, with no rounding of that quotient.
        yield np.flatnonzero(generator.integers(n, size=n) < batch_size)


def _shuffled_rows(generator, n, batch_size, steps):
    yield from np.array_split(generator.permutation(n), range(batch_size, n, batch_size))


_DRAW = {PoissonSampling.name: _poisson_rows, ShuffledSampling.name: _shuffled_rows}


def poisson_batches(
    x: ArrayLike,
    y: ArrayLike,
    batch_size: int,
    *,
    steps: int | None = None,
    map_fn: MapFn | None = None,
    augmult: AugmultConfig | None = None,
    padded: bool = False,
    seed: int | None = None,
) -> tf.data.Dataset:
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
            MixUp or statistics of the batch do, voids the guarantee. If it is random, its draws must be independent
            from row to row and from call to call, and known to nobody: see `AugmultConfig`, `augment`.
        augmult: `AugmultConfig` or None, several random views of each example, after `map_fn`.
        padded: bool. True: batches have one size, a little above `batch_size`, filled up with rows of weight 0, for
            compilers that want static shapes (`jit_compile=True`). The rare batch with more examples than that gets
            twice the size (or three times, ...): none is ever dropped.
        seed: int in [0, 2^64) or None. An int makes the draws reproducible, for tests only; see `Sampler.seeded`.

    Returns:
        A `tf.data.Dataset` of `steps` pairs (x, y), marked for `sampling_of`; of triples (x, y, weight) with `augmult`
        or `padded`.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for a number out of range or arrays that do not match.

    Example:

    >>> data = poisson_batches(np.zeros((1000, 4), "float32"), np.zeros(1000), batch_size=100)
    >>> sampling_of(data).sampling.sampling_probability, len(data)
    (0.1, 10)
    """
    who = "poisson_batches"
    inputs, labels, batch_size = _checked_arrays(who, x, y, batch_size)
    steps = math.ceil(len(inputs) / batch_size) if steps is None else _checks.integer(who, "steps", steps)
    capacity = _capacity(batch_size, len(inputs)) if padded else None
    sampling = PoissonSampling(batch_size / len(inputs))
    return _batches(who, inputs, labels, batch_size, steps, sampling, map_fn, augmult, capacity, seed)


def shuffled_batches(
    x: ArrayLike,
    y: ArrayLike,
    batch_size: int,
    *,
    map_fn: MapFn | None = None,
    augmult: AugmultConfig | None = None,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Makes batches of one size, each example in one of them, in an order drawn anew for each pass.

    Nothing is amplified: a pass costs one full release, under `zero_out` (one example replaced by a null record) or
    `replace_one`, however early it is broken off. `poisson_batches` costs far less epsilon.

    Args:
        x, y, map_fn, augmult, seed: see `poisson_batches`.
        batch_size: int in [1, n], size B of a batch; the last one of a pass is smaller where B does not divide n, and
            its gradient is divided by B all the same.

    Returns:
        A `tf.data.Dataset` of `ceil(n / B)` pairs (x, y), marked for `sampling_of`; of triples (x, y, weight) with
        `augmult`.

    Raises:
        TypeError, ValueError: as `poisson_batches`.
    """
    who = "shuffled_batches"
    inputs, labels, batch_size = _checked_arrays(who, x, y, batch_size)
    steps = math.ceil(len(inputs) / batch_size)
    return _batches(who, inputs, labels, batch_size, steps, ShuffledSampling(), map_fn, augmult, None, seed)


def _batches(who, x, y, batch_size, steps, sampling, map_fn, augmult, capacity, seed):
    if seed is not None:
        seed = _checks.integer(who, "seed", seed, at_least=0, at_most=2**64 - 1)
    if map_fn is not None and not callable(map_fn):
        raise TypeError(_checks.message(who, "map_fn to be callable or None", f"map_fn={map_fn!r}", ""))
    if augmult is not None and not isinstance(augmult, AugmultConfig):
        raise TypeError(_checks.message(who, "augmult to be an AugmultConfig or None", f"augmult={augmult!r}", ""))
    # Python draws the indices, TensorFlow gathers the rows: passing whole batches through Python is slower.
    # The device is pinned because tf.data runs on the CPU: on a GPU each batch would copy the whole array back.
    with tf.device("CPU:0"):
        x, y = tf.constant(x), tf.constant(y)
    multiplicity = augmult.multiplicity if augmult else 1
    sampler = Sampler(sampling, len(x), batch_size, steps, (x, y), seed, multiplicity)
    signature = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((2,), tf.int64))

    def batch(rows, view_seed):
        batch = tf.gather(x, rows), tf.gather(y, rows)
        if map_fn is not None:
            batch = _checked(who, "map_fn", map_fn, 1)(*batch)
        if augmult is not None:
            views = functools.partial(augmult.views, seed=view_seed)
            batch = _checked(who, "augment", views, multiplicity)(*batch)
        if capacity is not None or augmult is not None:
            batch = _weighted(*batch, 1.0 / multiplicity, capacity and capacity * multiplicity)
        return batch

    options = tf.data.Options()
    options.autotune.enabled = False  # nothing to tune here, and its thread delays the end of some iterators by seconds
    dataset = tf.data.Dataset.from_generator(sampler.draws, output_signature=signature).map(batch)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2).with_options(options)
    setattr(dataset, _MARK, sampler)
    return dataset


def _capacity(batch_size, n):
    """Rows of a padded batch: six standard deviations above B, which less than two batches in a million exceed."""
    return min(8 * math.ceil((batch_size + 6 * math.sqrt(batch_size * (1 - batch_size / n))) / 8), n)


def _weighted(x, y, weight, capacity):
    """Gives each row its weight, and fills the batch up to a multiple of `capacity` with rows of weight 0."""
    rows = tf.shape(x)[0]
    weights = tf.fill([rows], tf.constant(weight, tf.float32))
    if capacity is None:
        return x, y, weights
    missing = tf.maximum(1, -(-rows // capacity)) * capacity - rows
    return tuple(tf.pad(part, [[0, missing], *[[0, 0]] * (len(part.shape) - 1)]) for part in (x, y, weights))


def sampling_of(dataset: object) -> Sampler | None:
    """Says how the batches of a data set are drawn.

    Args:
        dataset: any object.

    Returns:
        The `Sampler` of a data set made by `poisson_batches` or `shuffled_batches`; None for anything else, also for a
        data set derived from one (`.map`, `.take`, `.repeat`, `.cache`, ...).
    """
    sampler = getattr(dataset, _MARK, None)
    return sampler if isinstance(sampler, Sampler) else None


def multiplicity_behind(dataset: object) -> int:
    """Largest number of views of an example in the batches of a sampler that a data set is, or is made from.

    Args:
        dataset: any object.

    Returns:
        int, 1 where there is no such sampler.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return 1
    sampler = sampling_of(dataset)
    here = sampler.multiplicity if sampler else 1
    return max([here, *map(multiplicity_behind, dataset._inputs())])


def fixed_batch_size(dataset: object) -> int | None:
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


def _checked_arrays(who, x, y, batch_size):
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
    remedy = "A batch cannot be larger than the training set."
    return x, y, _checks.integer(who, "batch_size", batch_size, at_most=len(x), remedy=remedy)


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


def _checked(who, name, function, multiplicity):
    """Wraps a function of the user so that it stays a map over examples: a row in, `multiplicity` rows out."""

    def apply(x, y):
        result = function(x, y)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(_checks.message(who, f"{name} to return a pair (x, y)", f"{result!r}", ""))
        new_x, new_y = (tf.convert_to_tensor(part) for part in result)
        rows = tf.shape(x)[0] * multiplicity
        per_example = "one row" if multiplicity == 1 else f"{multiplicity} rows"
        text = _checks.message(who, f"{per_example} per example from {name}", "another number of rows", "")
        # An example with a row too many would count twice in the sum of gradients, beyond the bound for one.
        checks = [tf.debugging.assert_equal(tf.shape(part)[0], rows, message=text) for part in (new_x, new_y)]
        with tf.control_dependencies(checks):
            return tf.identity(new_x), tf.identity(new_y)

    return apply
