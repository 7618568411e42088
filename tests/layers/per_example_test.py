"""What is done to each example on its own: the same whatever the scale, and whatever else is in the batch."""

import math

import numpy as np
import pytest
import tensorflow as tf

from deel.lipdp import _per_example

# Examples at the edge of single precision. Squares of 1e38 and of 1e-38 are not numbers there.
EDGES = {
    "zeros": [0.0, 0.0, 0.0],
    "denormal": [1e-45, 0.0, 0.0],
    "denormals": [1e-40, -1e-40, 1e-40],
    "smallest": [1.2e-38, 0.0, 1.2e-38],
    "tiny": [1e-30, 2e-30, 0.0],
    "mixed": [1e38, 1e-38, 1.0],
    "huge": [3e38, -3e38, 3e38],
    "largest": [float(np.finfo("float32").max), 0.0, 0.0],
    "plain": [3.0, 4.0, 0.0],
    "inside": [0.3, 0.4, 0.0],
    "on_the_sphere": [0.6, 0.8, 0.0],
}


# Eight units of single precision, for a division, three squares, their sum, its root and a product. Denormals may be
# flushed to zero: below, 1e-44 is some seven of the smallest, and 2e-38 what two entries below the smallest normal
# number, 1.2e-38, come to.
CLOSE = 1e-6


def edge(name):
    return np.array([EDGES[name]], "float32")


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("radius", [1e-15, 1.0, 1e15])
def test_project_on_ball_at_the_edges(name, radius):
    x = tf.constant(edge(name))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = _per_example.project_on_ball(x, radius)
    length = np.linalg.norm(edge(name).astype("float64"))
    np.testing.assert_allclose(np.linalg.norm(y.numpy().astype("float64")), min(length, radius), rtol=CLOSE, atol=1e-44)
    if length <= radius * (1 - 1e-6):
        np.testing.assert_array_equal(y.numpy(), x.numpy())
    for cotangent in np.eye(3, dtype="float32"):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = _per_example.project_on_ball(x, radius)
        gradient = tape.gradient(y, x, tf.constant(cotangent[None])).numpy()
        assert np.isfinite(gradient).all()
        assert np.linalg.norm(gradient.astype("float64")) <= 1.0 + 1e-6


@pytest.mark.parametrize("name", EDGES)
def test_unit_scale_at_the_edges(name):
    unit, norm, scale = (part.numpy().astype("float64") for part in _per_example.unit_scale(tf.constant(edge(name))))
    assert norm >= 1.0
    assert abs(unit).max() <= 1.0
    # Entries 1e38 times smaller than the largest vanish, and denormals may be flushed to zero.
    np.testing.assert_allclose(unit * scale, edge(name), rtol=CLOSE, atol=2e-38 * max(1.0, scale.item()))
    if scale > 0:
        np.testing.assert_allclose(norm, np.linalg.norm(unit), rtol=CLOSE)


def test_finite_or_zero_keeps_what_is_finite():
    x = np.array([[np.nan, np.inf, -np.inf, 3e38, -1e-45, 0.0]], "float32")
    kept = _per_example.finite_or_zero(tf.constant(x))
    np.testing.assert_array_equal(kept.numpy(), np.array([[0, 0, 0, 3e38, -1e-45, 0]], "float32"))
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = _per_example.finite_or_zero(x)
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), [[0, 0, 0, 1, 1, 1]])


def test_examples_are_projected_one_by_one():
    batch = np.concatenate([edge(name) for name in EDGES])
    together = _per_example.project_on_ball(tf.constant(batch), 1.0).numpy()
    alone = [_per_example.project_on_ball(tf.constant(edge(name)), 1.0).numpy()[0] for name in EDGES]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("radius", [1e-30, 1e-15, 1e-6, 1.0, 1e6, 1e15, 1e30])
@pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf, 3e38, 1e19, 1e-20, 1e-45, 0.0])
def test_finite_in_ball_is_one_function_whatever_else_is_in_the_batch(worst, radius):
    """Examples keep what they are alone, bit for bit, and none leaves the ball by the short way."""
    rng = np.random.default_rng(0)
    inside = rng.normal(size=(4, 30)) * radius * np.array([[1e-3], [0.1], [0.12], [1 / math.sqrt(30)]])
    edges = radius * np.eye(30)[:5] * np.array([[1 - 1e-3], [1 - 1e-4], [1.0], [1 + 1e-6], [1.1]])
    odd = np.zeros((1, 30))
    odd[0, :4] = worst
    batch = np.concatenate([inside, edges, odd]).astype("float32")
    together = _per_example.finite_in_ball(tf.constant(batch), radius).numpy()
    alone = np.concatenate([_per_example.finite_in_ball(tf.constant(row[None]), radius).numpy() for row in batch])
    np.testing.assert_array_equal(together, alone)
    assert np.isfinite(together).all()
    assert np.linalg.norm(together.astype("float64"), axis=1).max() <= radius * (1 + 1e-6)
    np.testing.assert_array_equal(together[:3], batch[:3])
