"""Convolutions close to isometries: what the projection reaches, from where, and that a network keeps its norms."""

import itertools

import keras
import numpy as np
import pytest
from layer_cases import conv_operator

from deel.lipdp import _frequencies, layers


def frequency_blocks(kernel, strides, side):
    """The circular operator on an image of `side` blocks per axis, from its definition: one matrix per frequency.

    Fourier transform of the kernel at the fine frequencies that alias to one coarse frequency, stacked.
    """
    *kernel_size, cin, cout = kernel.shape
    fine = [side * s for s in strides]
    positions = np.array(list(itertools.product(*(range(k) for k in kernel_size))))
    taps = np.reshape(kernel, (-1, cin, cout))
    for coarse in itertools.product(*(range(side) for _ in strides)):
        stack = []
        for alias in itertools.product(*(range(s) for s in strides)):
            frequency = np.array([(c + side * a) / n for c, a, n in zip(coarse, alias, fine, strict=True)])
            stack.append(np.tensordot(np.exp(-2j * np.pi * positions @ frequency), taps, axes=1))
        yield np.concatenate(stack) / np.sqrt(np.prod(strides))


def singular_values(kernel, strides=(1, 1), side=8):
    """All singular values of the circular operator, whose blocks are those of the zero-padded one on large images."""
    kernel = np.asarray(kernel, "float64")
    return np.concatenate([np.linalg.svd(m, compute_uv=False) for m in frequency_blocks(kernel, strides, side)])


def orthogonal(shape, seed):
    """Orthogonal as a matrix, as Keras's initialiser makes it."""
    rng = np.random.default_rng(seed)
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    q = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))[0]
    return (q if rows >= columns else q.T).reshape(shape).astype("float32")


def orthogonalized(kernel, strides, steps):
    return _frequencies.orthogonalize_convolution(keras.ops.convert_to_tensor(kernel), strides, steps).numpy()


# kernel shape, strides: few, equal and many outputs for each block of input pixels, one axis and two.
SHAPES = [
    ((3, 3, 6, 6), (1, 1)),
    ((3, 3, 2, 7), (1, 1)),
    ((3, 3, 7, 2), (1, 1)),
    ((5, 5, 2, 2), (1, 1)),
    ((2, 2, 4, 4), (1, 1)),
    ((5, 5, 1, 6), (2, 2)),
    ((3, 3, 2, 8), (2, 2)),
    ((4, 4, 3, 5), (2, 2)),
    ((3, 5, 3, 4), (2, 1)),
    ((1, 3, 4, 4), (1, 1)),
    ((2, 3, 3, 3), (3, 1)),
    ((3, 5, 5), (1,)),
    ((5, 2, 6), (2,)),
]
NAMES = [f"{shape}s{strides}".replace(" ", "") for shape, strides in SHAPES]


@pytest.mark.parametrize(("shape", "strides"), SHAPES, ids=NAMES)
def test_step_is_newton_schulz_of_the_operator_cut_off_outside_the_taps(shape, strides):
    """Against products of whole operators as matrices, on an image so large that its border does not matter."""
    rng = np.random.default_rng(0)
    kernel = orthogonal(shape, 0) / 2 + 0.02 * rng.normal(size=shape)
    *kernel_size, cin, cout = shape
    # The middle window sees no border, not through `K K^T K` either.
    image = [s * 2 * (-(-3 * k // s)) + k for k, s in zip(kernel_size, strides, strict=True)]
    if len(strides) == 1:  # the reference is for two axes
        image, kernel_2d, strides_2d = (1, *image), kernel[None], (1, *strides)
    else:
        kernel_2d, strides_2d = kernel, strides
    operator = conv_operator(kernel_2d, image, strides_2d)
    once = 1.5 * operator - 0.5 * operator @ operator.T @ operator
    counts = [(n - k) // s + 1 for n, k, s in zip(image, kernel_2d.shape[:2], strides_2d, strict=True)]
    middle = [c // 2 for c in counts]
    rows = once.reshape(*counts, cout, *image, cin)[tuple(middle)]
    window = [slice(m * s, m * s + k) for m, s, k in zip(middle, strides_2d, kernel_2d.shape[:2], strict=True)]
    expected = np.moveaxis(rows[(slice(None), *window)], 0, -1).reshape(shape)
    found = orthogonalized(kernel.astype("float32"), strides, 1)
    # The step divides by a scale first; of two multiples of K and K K^T K, only the right span fits.
    basis = np.stack([kernel.ravel(), (3 * kernel - 2 * expected).ravel()], axis=1)
    coefficients, *_ = np.linalg.lstsq(basis, found.ravel(), rcond=None)
    np.testing.assert_allclose(basis @ coefficients, found.ravel(), atol=1e-5 * np.abs(found).max())
    assert coefficients[1] == pytest.approx(-0.5 * (coefficients[0] / 1.5) ** 3, rel=1e-3)


@pytest.mark.parametrize(("shape", "strides"), SHAPES, ids=NAMES)
def test_centred_start_reaches_an_isometry(shape, strides):
    *kernel_size, _, _ = shape
    image, dilations = tuple(4 * k for k in kernel_size), (1,) * len(strides)
    geometry = _frequencies.ConvGeometry(image, tuple(kernel_size), strides, dilations, "same")
    for seed in range(2):
        start = _frequencies.centred_convolution(keras.ops.convert_to_tensor(orthogonal(shape, seed)), geometry)
        values = singular_values(orthogonalized(start, strides, 60), strides)
        assert values.min() >= 0.93 * values.max()


def test_equal_channels_need_the_centred_start():
    """From a random kernel the singular values do not all get away from 0. If this fails, the start is not needed."""
    values = singular_values(orthogonalized(orthogonal((3, 3, 8, 8), 3), (1, 1), 60))
    assert values.min() < 0.5 * values.max()


def test_steps_undo_a_random_walk():
    """Fifty noisy updates, each followed by the steps of one projection, against none."""
    rng = np.random.default_rng(1)
    start = np.zeros((3, 3, 8, 8), "float32")
    start[1, 1] = np.eye(8)
    walks = {0: start, 3: start}
    for _ in range(50):
        noise = 0.01 * rng.normal(size=start.shape)
        walks = {steps: orthogonalized((k + noise).astype("float32"), (1, 1), steps) for steps, k in walks.items()}
    spread = {steps: np.ptp(singular_values(k)) / singular_values(k).max() for steps, k in walks.items()}
    assert spread[3] < 0.2 < 0.6 < spread[0]


@pytest.mark.parametrize("steps", [1, 3])
def test_scale_does_not_matter_and_isometries_stay(steps):
    kernel = orthogonal((3, 3, 4, 6), 2)
    once = orthogonalized(kernel, (1, 1), steps)
    for factor in (1e-30, 1e-3, 1e30):
        np.testing.assert_allclose(orthogonalized(np.float32(factor) * kernel, (1, 1), steps), once, atol=2e-6)
    shift = np.zeros((3, 3, 4, 4), "float32")
    shift[0, 2] = orthogonal((4, 4), 3)
    np.testing.assert_allclose(orthogonalized(shift, (1, 1), steps), shift, atol=2e-6)
    assert not orthogonalized(np.zeros((3, 3, 2, 2), "float32"), (1, 1), steps).any()


@pytest.mark.parametrize("kernel", ["huge_row", "rank_one", "one_entry", "mixed"])
def test_steps_stay_finite_and_do_not_diverge(kernel):
    rng = np.random.default_rng(4)
    shape = (3, 3, 5, 5)
    value = {
        "huge_row": np.where(np.arange(5) == 0, 1e4, 1.0) * rng.normal(size=shape),
        "rank_one": rng.normal(size=(3, 3, 5, 1)) * rng.normal(size=5),
        "one_entry": np.eye(225)[7].reshape(shape),
        "mixed": rng.normal(size=shape) * 10.0 ** rng.uniform(-30, 0, size=shape),
    }[kernel]
    values = singular_values(orthogonalized(value.astype("float32"), (1, 1), 40))
    assert np.isfinite(values).all()
    assert values.max() < np.sqrt(3.0)


# Layer, input shape, smallest norm of outputs and of cotangents over their bounds, for inputs and cotangents that a
# kernel of this many channels can keep. Zeros beyond the border take a share, hence not 1.
NORMS = [
    (lambda: layers.DP_QuickSpectralConv2D(8, 3, padding="same"), (10, 10, 8), 0.95, 0.95),
    (lambda: layers.DP_SpectralConv2D(8, 5, padding="same"), (12, 12, 8), 0.95, 0.95),
    (lambda: layers.DP_QuickSpectralConv2D(8, 3, padding="same"), (4, 4, 8), 0.95, 0.95),
    (lambda: layers.DP_QuickSpectralConv2D(12, 3, padding="same"), (10, 10, 3), 0.9, 0.0),
    (lambda: layers.DP_QuickSpectralConv2D(3, 3, padding="same"), (10, 10, 12), 0.0, 0.9),
    (lambda: layers.DP_QuickSpectralConv2D(8, 3, strides=2, padding="same"), (10, 10, 2), 0.9, 0.9),
    (lambda: layers.DP_Conv1D(6, 3, padding="same"), (20, 6), 0.95, 0.95),
    (lambda: layers.DP_Conv1D(6, 3, padding="causal", dilation_rate=2), (20, 6), 0.95, 0.95),
]


@pytest.mark.parametrize("case", NORMS, ids=lambda case: f"{type(case[0]()).__name__}{case[1]}".replace(" ", ""))
def test_layers_start_close_to_isometries(case):
    make, shape, least_output, least_cotangent = case
    keras.utils.set_random_seed(5)
    layer = make()
    layer.build((None, *shape))
    assert 1.0 - 1e-5 <= float(layer.certified_norm()) <= 1.0
    rng = np.random.default_rng(6)
    x = rng.normal(size=(8, *shape)).astype("float32")
    y = layer(x).numpy()
    assert np.linalg.norm(y) >= least_output * np.linalg.norm(x)
    g = rng.normal(size=y.shape).astype("float32")
    back = adjoint(layer, x, g)
    assert np.linalg.norm(back) >= least_cotangent * np.linalg.norm(g)


def adjoint(layer, x, g):
    import tensorflow as tf

    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return tape.gradient(y, x, output_gradients=tf.convert_to_tensor(g)).numpy()


def test_four_convolutions_keep_the_norm():
    """Orthogonal as a matrix on windows, each would keep about half of it both ways."""
    keras.utils.set_random_seed(7)
    stack = [layers.DP_QuickSpectralConv2D(8, 3, padding="same") for _ in range(4)]
    x = np.random.default_rng(8).normal(size=(4, 8, 8, 8)).astype("float32")
    norm = np.linalg.norm(x)
    for layer in stack:
        x = layer(x).numpy()
    assert np.linalg.norm(x) >= 0.85 * norm
