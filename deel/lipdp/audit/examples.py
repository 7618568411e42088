"""Examples that come near their bounds: an audit finds nothing on examples that hardly move the gradient."""

import math

import numpy as np

from deel.lipdp import _checks
from deel.lipdp.audit._recording import ExampleGradients

__all__ = ["hard_examples"]


def hard_examples(model, labels, count, *, distinct=False, candidates=None, tries=200, seed=0):
    """Searches for examples whose gradients are long, all together or for one variable, at the model's present weights.

    The candidates are drawn, constant, checkered, sparse, random, in proportion to the input bound, and those passed
    in. Each gets a label at random.

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
