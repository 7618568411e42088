"""Certified norms of convolutions against exact ones, and counts of windows against counting."""

import itertools
import math

import keras
import numpy as np
import pytest
from layer_cases import conv_operator, windows

from deel.lipdp import _convolution, _frequencies

# NumPy's singular values are exact to about n * 2e-16 relative.
SVD_ERROR = 1e-13

EPS32 = float(np.finfo("float32").eps)


def conv_cases():
    """(image, kernel, strides, dilations, padding, cin, cout)"""
    for n, k, padding in itertools.product((3, 5, 8), (1, 2, 3, 5), ("valid", "same")):
        for s in (1, 2, 3):
            if padding == "same" or n >= k:
                yield (n, n), (k, k), (s, s), (1, 1), padding, 2, 3
    yield (7, 4), (3, 2), (1, 1), (1, 1), "valid", 3, 2
    yield (4, 9), (2, 5), (2, 1), (1, 1), "same", 1, 4
    yield (9, 5), (3, 3), (2, 3), (1, 1), "same", 2, 2
    yield (8, 8), (4, 4), (2, 2), (1, 1), "valid", 1, 4
    yield (8, 8), (4, 4), (3, 3), (1, 1), "same", 2, 2
    yield (8, 8), (3, 3), (1, 1), (2, 2), "valid", 2, 2
    yield (7, 6), (3, 2), (1, 1), (2, 3), "same", 2, 2
    yield (6, 9), (2, 3), (1, 1), (1, 2), "same", 1, 1
    yield (1, 6), (1, 3), (1, 1), (1, 1), "valid", 2, 2
    yield (4, 4), (5, 5), (1, 1), (1, 1), "same", 1, 1
    # Strides with dilation: Keras has them in depthwise convolutions.
    yield (9, 8), (3, 3), (2, 2), (2, 2), "same", 1, 3
    yield (11, 9), (2, 3), (3, 2), (2, 1), "valid", 2, 2
    yield (8, 9), (3, 2), (2, 3), (3, 3), "same", 1, 1
    for s, d in ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2), (2, 3)):
        for padding in ("valid", "same", "causal"):
            yield (9,), (3,), (s,), (d,), padding, 2, 3
            yield (10,), (4,), (s,), (d,), padding, 1, 1
    for padding in ("same", "causal"):
        yield (3,), (5,), (1,), (1,), padding, 2, 2
        yield (2,), (3,), (1,), (3,), padding, 2, 1
        yield (1,), (2,), (2,), (1,), padding, 1, 2


CONVS = list(conv_cases())


def conv_name(case):
    image, kernel, strides, dilations, padding, cin, cout = case
    return f"{image}k{kernel}s{strides}d{dilations}{padding}{cin}to{cout}".replace(" ", "")


def kernels(kernel_size, cin, cout, seed=0):
    rng = np.random.default_rng(seed)
    shape = (*kernel_size, cin, cout)
    centre = np.zeros(shape)
    centre[tuple(k // 2 for k in kernel_size)] = np.eye(cin, cout)
    yield "normal", rng.normal(size=shape)
    yield "ones", np.ones(shape)
    yield "rank_one", rng.normal(size=(*kernel_size, cin, 1)) * rng.normal(size=cout)
    yield "centre", centre
    signs = (-1.0) ** np.indices(kernel_size).sum(0)
    yield "alternating", signs[..., None, None] * np.ones(shape)


def check_conv(case, **kwargs):
    """Largest bound / truth over kernels; asserts that none is below 1."""
    image, kernel_size, strides, dilations, padding, cin, cout = case
    geometry = _frequencies.ConvGeometry(image, kernel_size, strides, dilations, padding)
    ratios = {}
    for name, kernel in kernels(kernel_size, cin, cout, **kwargs):
        truth = np.linalg.norm(conv_operator(kernel, image, strides, padding, dilations), 2)
        bound = float(_frequencies.conv_norm_bound(keras.ops.convert_to_tensor(kernel), geometry))
        assert truth * (1.0 - SVD_ERROR) <= bound, name
        ratios[name] = bound / truth if truth else 1.0
    return ratios


@pytest.mark.parametrize("case", CONVS, ids=conv_name)
def test_conv_bound_is_above_the_norm(case):
    check_conv(case)


@pytest.mark.parametrize("case", CONVS, ids=conv_name)
def test_conv_bound_on_a_coarse_grid_is_above_the_norm(case, monkeypatch):
    monkeypatch.setitem(_frequencies._LARGEST_GRID, len(case[0]), 1)
    check_conv(case, seed=1)


def test_conv_bound_on_a_coarse_grid_needs_its_factor(monkeypatch):
    """A kernel whose largest frequency lies between two points of the grid."""
    monkeypatch.setitem(_frequencies._LARGEST_GRID, 2, 4)
    image, size = (1, 120), 4
    geometry = _frequencies.ConvGeometry(image, (1, size), (1, 1), (1, 1), "same")
    side = 8 * (size - 1)
    wave = np.cos(np.pi / side + 2 * np.pi * 3 / side * np.arange(size))
    kernel = wave.reshape(1, size, 1, 1)
    truth = np.linalg.norm(conv_operator(kernel, image, padding="same"), 2)
    *_, factor = geometry.frequencies
    assert factor == pytest.approx(1 / math.cos(np.pi * (size - 1) / (2 * side)))
    assert truth <= float(_frequencies.conv_norm_bound(keras.ops.convert_to_tensor(kernel), geometry))
    sampled = np.abs(np.fft.fft(kernel.ravel(), side)).max()
    frequencies = np.abs(np.fft.fft(kernel.ravel(), 100 * side)).max()
    assert sampled < frequencies <= factor * sampled


def test_conv_bound_of_a_batch_is_that_of_each_kernel():
    geometry = _frequencies.ConvGeometry((6, 7), (3, 2), (2, 1), (1, 1), "same")
    batch = np.stack([kernel for _, kernel in kernels((3, 2), 2, 3)])
    batch[1] *= 1e20
    batch[2] = 0.0
    bounds = _frequencies.conv_norm_bound(keras.ops.convert_to_tensor(batch), geometry).numpy()
    alone = [float(_frequencies.conv_norm_bound(keras.ops.convert_to_tensor(kernel), geometry)) for kernel in batch]
    # Single precision inside, in another order.
    np.testing.assert_allclose(bounds, alone, rtol=20 * EPS32)


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize("length", [31, 32, 33])
def test_dilation_costs_nothing(length, padding):
    """A dilated convolution works on each of d interleaved parts of the sequence alone."""
    ((_, kernel), *_) = kernels((3,), 2, 2)
    kernel = keras.ops.convert_to_tensor(kernel)
    part = _frequencies.ConvGeometry((-(-length // 4),), (3,), (1,), (1,), padding)
    whole = _frequencies.ConvGeometry((length,), (3,), (1,), (4,), padding)
    assert float(_frequencies.conv_norm_bound(kernel, whole)) == float(_frequencies.conv_norm_bound(kernel, part))


# Certificate / truth for normal kernels, image large against the kernel. Falls when the certificate gets better.
@pytest.mark.parametrize(
    ("case", "recorded"),
    [
        (((8, 8), (3, 3), (1, 1), (1, 1), "same", 4, 6), 1.044),
        (((8, 8), (3, 3), (2, 2), (1, 1), "same", 4, 6), 1.033),
        (((9, 9), (5, 5), (2, 2), (1, 1), "same", 4, 5), 1.121),
        (((9, 9), (3, 3), (3, 3), (1, 1), "valid", 4, 6), 1.001),
        (((8, 8), (4, 4), (4, 4), (1, 1), "valid", 1, 16), 1.001),
        (((9, 9), (3, 3), (1, 1), (2, 2), "same", 3, 3), 1.085),
        (((20,), (3,), (1,), (1,), "same", 4, 6), 1.002),
        (((20,), (5,), (2,), (1,), "causal", 4, 5), 1.005),
        (((20,), (3,), (1,), (3,), "causal", 3, 3), 1.014),
    ],
    ids=str,
)
def test_conv_bound_is_near_the_norm(case, recorded):
    assert check_conv(case)["normal"] <= recorded


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", CONVS, ids=conv_name)
def test_conv_bound_is_above_the_norm_of_more_kernels(case, seed):
    check_conv(case, seed=10 + seed)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_conv_bound_is_homogeneous_and_zero_at_zero(scale):
    geometry = _frequencies.ConvGeometry((6, 6), (3, 3), (2, 2), (1, 1), "same")
    (_, kernel), *_ = kernels((3, 3), 2, 3)
    kernel = kernel.astype("float32")

    def bound(k):
        return float(_frequencies.conv_norm_bound(keras.ops.convert_to_tensor(k), geometry))

    # The scaled kernel is rounded to single precision once more.
    assert bound(np.float32(scale) * kernel) == pytest.approx(scale * bound(kernel), rel=4 * EPS32)
    assert bound(0.0 * kernel) == 0.0


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_window_count_against_counting(padding):
    for n, k, s, d in itertools.product(range(1, 10), range(1, 6), range(1, 5), (1, 2, 3)):
        if padding == "valid" and (k - 1) * d + 1 > n:
            assert _convolution.window_count(n, k, s, padding, d) == 0
            continue
        counts = np.zeros(n, int)
        for _, pairs in windows((n,), (k,), (s,), padding, (d,)):
            for _, pixel in pairs:
                counts[pixel] += 1
        found = _convolution.window_count(n, k, s, padding, d)
        assert found == counts.max()
        assert found <= math.ceil(k * math.gcd(d, s) / s)


def test_window_count_of_an_image_is_the_product_over_axes():
    geometry = _frequencies.ConvGeometry((9, 4), (3, 5), (2, 1), (1, 1), "same")
    counts = np.zeros((9, 4), int)
    for _, pairs in windows((9, 4), (3, 5), (2, 1), "same"):
        for _, pixel in pairs:
            counts[pixel] += 1
    assert geometry.window_count == counts.max() == 8


def largest_kernel_gradient(axes, seed):
    """Norm of the kernel's gradient for unit input and cotangent, found by improving each of the three in turn."""
    # t[offset, window, pixel], flattened over the axes: one channel is enough for the supremum.
    t = np.ones((1, 1, 1))
    for size, *window in axes:
        positions = _convolution.window_positions(size, *window)
        t = np.kron(t, (positions[:, :, None] == np.arange(size)).astype("float64"))
    rng = np.random.default_rng(seed)
    x, g = (np.abs(rng.normal(size=n)) for n in t.shape[:0:-1])
    for _ in range(400):
        kernel = t @ x @ g
        g = kernel @ (t @ x) / np.linalg.norm(kernel @ (t @ x))
        x = np.einsum("oia,o,i->a", t, kernel, g)
        x /= np.linalg.norm(x)
    return np.linalg.norm(t @ x @ g)


AXES = [
    [(8, 3, 1, "same", 1)],
    [(2, 3, 1, "same", 1)],
    [(9, 3, 2, "valid", 1)],
    [(9, 3, 1, "valid", 2)],
    [(14, 3, 1, "causal", 4)],
    [(11, 5, 2, "same", 1)],
    [(6, 4, 1, "causal", 1)],
    [(3, 5, 1, "same", 1)],
    [(4, 3, 1, "same", 1), (4, 3, 1, "same", 1)],
    [(5, 3, 2, "same", 1), (6, 2, 1, "valid", 1)],
    [(3, 2, 1, "same", 1), (4, 3, 1, "valid", 1), (3, 3, 1, "same", 1)],
]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_kernel_gradient_factor_is_above_and_near_the_largest_found(axes):
    factor = np.prod([_convolution.kernel_gradient_factor(*axis) for axis in axes])
    found = max(largest_kernel_gradient(axes, seed) for seed in range(3))
    assert 0.93 ** len(axes) * factor < found <= factor * (1 + 1e-9)
    assert factor <= math.sqrt(np.prod([_convolution.window_count(*axis) for axis in axes])) * (1 + 1e-9)


def test_kernel_gradient_factor_where_it_is_known():
    assert _convolution.kernel_gradient_factor(8, 4, 4) == 1.0  # windows that do not overlap
    assert _convolution.kernel_gradient_factor(2, 3) == 0.0  # no window
    assert _convolution.kernel_gradient_factor(1000, 3) == math.sqrt(3.0)  # counted only, for a long axis
    # Two windows on two pixels, all three offsets: found and bound are sqrt(1.5).
    assert _convolution.kernel_gradient_factor(2, 3, 1, "same") == pytest.approx(math.sqrt(1.5), rel=1e-3)
    # The figures of CHANGELOG.md, a 3x3 kernel on 4x4 and on 8x8 pixels.
    for size, factor in ((4, 2.40), (8, 2.82)):
        assert _convolution.kernel_gradient_factor(size, 3, 1, "same") ** 2 == pytest.approx(factor, abs=0.005)
