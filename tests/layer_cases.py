"""One table of layers: how to make each, on what shape, what it computes, and how tight its bounds are.

A new layer adds a line to `CASES`; the contract tests find it there, and fail when a public layer has none.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from deel.lipdp import layers
from deel.lipdp.layers._kernel import SpectralKernel


def window_starts(size, kernel_size, stride, padding, dilation=1):
    """First position of each window along one axis, negative where it begins in the padding."""
    extent = (kernel_size - 1) * dilation + 1
    if padding == "causal":
        count, before = (size - 1) // stride + 1, extent - 1
    elif padding == "same":
        count = -(-size // stride)
        before = max((count - 1) * stride + extent - size, 0) // 2
    else:
        count, before = (size - extent) // stride + 1, 0
    return [i * stride - before for i in range(count)]


def windows(image_size, kernel_size, strides, padding, dilations=(1, 1)):
    """For each output position, its list of (kernel offset, pixel) pairs inside the image."""
    axes = zip(image_size, kernel_size, strides, dilations, strict=True)
    starts = [window_starts(n, k, s, padding, d) for n, k, s, d in axes]
    for position in itertools.product(*(range(len(s)) for s in starts)):
        corner = [s[i] for s, i in zip(starts, position, strict=True)]
        pairs = []
        for offset in itertools.product(*(range(k) for k in kernel_size)):
            pixel = tuple(c + d * o for c, d, o in zip(corner, dilations, offset, strict=True))
            if all(0 <= p < n for p, n in zip(pixel, image_size, strict=True)):
                pairs.append((offset, pixel))
        yield position, pairs


def conv_operator(kernel, image_size, strides=(1, 1), padding="valid", dilations=(1, 1)):
    """The convolution as a matrix (output entries, input entries), entry by entry from its definition."""
    *kernel_size, cin, cout = kernel.shape
    rows = []
    for _, pairs in windows(image_size, kernel_size, strides, padding, dilations):
        block = np.zeros((cout, *image_size, cin))
        for offset, pixel in pairs:
            block[(slice(None), *pixel)] += np.asarray(kernel[offset], "float64").T
        rows.append(block.reshape(cout, -1))
    return np.concatenate(rows)


def across_channels(kernel):
    """A depthwise kernel as that of a full convolution: zeros between a channel and the filters of the others."""
    *kernel_size, channels, filters = kernel.shape
    full = np.zeros((*kernel_size, channels, channels, filters))
    full[..., range(channels), range(channels), :] = kernel
    return full.reshape(*kernel_size, channels, channels * filters)


def layer_operator(layer, image_size):
    """The convolution that a layer makes, as a matrix."""
    kernel = layer.kernel.numpy()
    if isinstance(layer, layers.DP_DepthwiseConv2D):
        kernel = across_channels(kernel)
    return conv_operator(kernel, image_size, layer.strides, layer.padding, layer.dilation_rate)


_ACTIVATIONS = {None: None, "relu": lambda y: np.maximum(y, 0.0), "tanh": np.tanh}


def _dense(layer, x):
    return x @ layer.kernel.numpy().astype("float64")


def _conv(layer, x):
    operator = layer_operator(layer, x.shape[1:-1])
    return (x.reshape(len(x), -1) @ operator.T).reshape(layer.compute_output_shape(x.shape))


def _windowed(reduce):
    """Reference of a pooling layer: the entries of each window, stacked on axis 0, reduced along it."""

    def reference(layer, x):
        y = np.zeros(layer.compute_output_shape(x.shape))
        ones = (1,) * len(layer.pool_size)
        for position, pairs in windows(x.shape[1:-1], layer.pool_size, layer.strides, layer.padding, ones):
            y[(slice(None), *position)] = reduce(np.stack([x[(slice(None), *pixel)] for _, pixel in pairs]))
        return y

    return reference


_l2_pool = _windowed(lambda window: np.sqrt((window**2).sum(0)))
_max_pool = _windowed(lambda window: window.max(0))
_mean_pool = _windowed(lambda window: window.mean(0))


def _modulus(layer, x):
    return np.abs(x[..., ::2] + 1j * x[..., 1::2])


def _global_norm(layer, x):
    return np.sqrt((x**2).sum(axis=(1, 2), keepdims=layer.keepdims))


def _global_mean(layer, x):
    return x.mean(axis=(1, 2), keepdims=layer.keepdims)


def _rectified(layer, x):
    y = np.where(x > 0, x, layer.negative_slope * x)
    return y if layer.max_value is None else np.minimum(y, layer.max_value)


def _householder(layer, x):
    """Each pair is reflected across its line, as a matrix, where it is on the side that the normal points to."""
    pairs = np.stack(np.split(x, 2, axis=-1))
    half = layer.theta.numpy().astype("float64") / 2
    line, normal = np.stack([np.cos(half), np.sin(half)]), np.stack([np.sin(half), -np.cos(half)])
    mirror = np.einsum("ic,jc->ijc", line, line) - np.einsum("ic,jc->ijc", normal, normal)
    reflected = np.einsum("ijc,j...c->i...c", mirror, pairs)
    beyond = np.einsum("ic,i...c->...c", normal, pairs) > 0
    return np.concatenate(list(np.where(beyond, reflected, pairs)), axis=-1)


def _embedded(layer, x):
    return layer.embeddings.numpy()[np.clip(np.round(x), 0, layer.input_dim - 1).astype(int)]


def _space_to_depth(layer, x):
    side, y = layer.block_size, np.zeros(layer.compute_output_shape(x.shape))
    for row, col in itertools.product(range(side), range(side)):
        first = (row * side + col) * x.shape[-1]
        y[..., first : first + x.shape[-1]] = x[:, row::side, col::side]
    return y


@keras.saving.register_keras_serializable(package="layer_cases")
def doubled_and_shifted(x):
    return 2.0 * x + 0.5


@keras.saving.register_keras_serializable(package="layer_cases")
def steep_wave(x, frequency=1.0):
    return ops.sin(frequency * x)


def _group_sort(layer, x):
    width = x.shape[-1] // layer.n
    grouped = x.reshape(*x.shape[:-1], layer.n, width)
    return np.sort(grouped, axis=-2)[..., ::-1, :].reshape(x.shape)


def _norms(x):
    return np.sqrt((x.reshape(len(x), -1) ** 2).sum(1)).reshape(-1, *[1] * (x.ndim - 1))


def _bounded(layer, x):
    return x * np.minimum(1.0, layer.upper_bound / np.maximum(_norms(x), 1e-300))


def _normalized(layer, x):
    return layer.radius * x / np.maximum(_norms(x), layer.minimum_norm)


def _group_normalized(layer, x):
    y = np.empty_like(x)
    width, radius = x.shape[-1] // layer.groups, layer.radius / layer.groups**0.5
    for group in range(layer.groups):
        channels = slice(group * width, (group + 1) * width)
        part = x[..., channels] - x[..., channels].mean(axis=tuple(range(1, x.ndim)), keepdims=True)
        y[..., channels] = radius * part / np.maximum(_norms(part), layer.minimum_norm)
    return y


def _centred(axes):
    return lambda layer, x: x - x.mean(axis=axes, keepdims=True)


def _scattered(layer, x):
    """The tree of transforms and averages, each a matrix of circular shifts in space."""
    size, channels = layer._wavelets.shape[-1], x.shape[-1]
    torus = np.zeros((len(x), size, size, channels))
    torus[:, : x.shape[1], : x.shape[2]] = x
    filters = np.fft.ifft2(layer._wavelets.astype("float64"))
    shifts = (np.arange(size)[:, None] - np.arange(size)) % size
    operators = filters[..., shifts[:, None, :, None], shifts[None, :, None, :]]

    def average(u):
        return np.einsum("pr,qc,brcx->bpqx", *layer._averages, u)

    def follow(u, first_scale, depth):
        paths, deeper = [average(u)], []
        for scale in range(first_scale, layer.scales) if depth < layer.order else ():
            for operator in operators[scale]:
                branch = follow(abs(np.einsum("pqrc,brcx->bpqx", operator, u)), scale + 1, depth + 1)
                paths.append(branch[0])
                deeper.append(branch[1:])
        return paths + sum(deeper, [])

    paths = follow(torus, 0, 0)
    return np.stack(_in_order(paths, layer), axis=-1).reshape(layer.compute_output_shape(x.shape))


def _in_order(paths, layer):
    """Paths by order first, as found, into those by scale first, as the layer has them."""
    count = layer.scales * layer.angles
    low, first, second = paths[0], paths[1 : count + 1], paths[count + 1 :]
    ordered = [low]
    for scale in range(layer.scales):
        ordered += first[scale * layer.angles : (scale + 1) * layer.angles]
        below = layer.angles**2 * (layer.scales - scale - 1) if second else 0
        ordered, second = ordered + second[:below], second[below:]
    return ordered


def _sum(layer, xs):
    return sum(xs)


def _concatenated(layer, xs):
    return np.concatenate(xs, axis=layer.axis)


def _flat(layer, x):
    return x.reshape(len(x), -1)


def _same(layer, x):
    return x


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to use one layer.

    Args:
        name: str, the test's id; it starts with the class's name.
        make: callable without arguments, returns a new layer.
        input_shape: tuple of int, one example; for a layer with several inputs a list of them.
        reference: callable (layer, float64 array) -> array, from the definition; a list of arrays where there are
            several inputs or outputs.
        ratios: largest norm found / bound for output, cotangent at the input and parameter gradient (None without a
            variable). What the search reaches today: falling means that a bound got loose, or the search worse.
        input_bound, gradient_bound: float, the norms at which the bounds are searched; a tuple states one for each
            input or output.
        activation: callable applied to the reference.
    """

    name: str
    make: Callable
    input_shape: tuple | list
    reference: Callable
    ratios: tuple
    input_bound: float | tuple = 1.0
    gradient_bound: float | tuple = 1.0
    activation: Callable | None = None

    def build(self):
        layer = self.make()
        if not layer.built:
            several = isinstance(self.input_shape, list)
            layer.build([(None, *shape) for shape in self.input_shape] if several else (None, *self.input_shape))
        return layer

    def expected(self, layer, x):
        """The reference, in double precision, for an array or a list of them."""
        x = [np.asarray(part, "float64") for part in x] if isinstance(x, list) else np.asarray(x, "float64")
        y = self.reference(layer, x)
        return self.activation(y) if self.activation else y


TIGHT = (1.0, 1.0, 1.0)
FIXED = (1.0, 1.0, None)


def _case(cls, text, input_shape, arguments, reference, ratios, **kwargs):
    return Case(f"{cls.__name__}-{text}", functools.partial(cls, **arguments), input_shape, reference, ratios, **kwargs)


def dense(text, input_shape, units, *, cls=layers.DP_QuickSpectralDense, activation=None, input_bound=1.0, **rest):
    rest.update(units=units, activation=activation)
    function = _ACTIVATIONS[activation]
    return _case(cls, text, input_shape, rest, _dense, TIGHT, activation=function, input_bound=input_bound)


def conv(
    text, input_shape, filters, kernel_size, ratios, *, cls=layers.DP_QuickSpectralConv2D, activation=None, **rest
):
    rest.update(filters=filters, kernel_size=kernel_size, activation=activation)
    return _case(cls, text, input_shape, rest, _conv, ratios, activation=_ACTIVATIONS[activation])


def conv1d(text, input_shape, filters, kernel_size, ratios, **rest):
    return conv(text, input_shape, filters, kernel_size, ratios, cls=layers.DP_Conv1D, **rest)


def depthwise(text, input_shape, kernel_size, ratios, *, activation=None, **rest):
    rest.update(kernel_size=kernel_size, activation=activation)
    function = _ACTIVATIONS[activation]
    return _case(layers.DP_DepthwiseConv2D, text, input_shape, rest, _conv, ratios, activation=function)


def patches(text, input_shape, filters, patch_size, *, activation=None, **rest):
    rest.update(filters=filters, patch_size=patch_size, activation=activation)
    return _case(layers.DP_PatchEmbedding, text, input_shape, rest, _conv, TIGHT, activation=_ACTIVATIONS[activation])


def pool(text, input_shape, pool_size, *, cls=layers.DP_ScaledL2NormPooling2D, reference=_l2_pool, **arguments):
    arguments["pool_size"] = pool_size
    return _case(cls, text, input_shape, arguments, reference, FIXED)


def max_pool(text, input_shape, pool_size, **arguments):
    return pool(text, input_shape, pool_size, cls=layers.DP_MaxPool2D, reference=_max_pool, **arguments)


def average_pool(text, input_shape, pool_size, **arguments):
    return pool(text, input_shape, pool_size, cls=layers.DP_AveragePooling2D, reference=_mean_pool, **arguments)


def rectifier(cls, text, input_shape, ratios=FIXED, **arguments):
    return _case(cls, text, input_shape, arguments, _rectified, ratios)


def sort(text, input_shape, n):
    return _case(layers.DP_GroupSort, text, input_shape, {"n": n}, _group_sort, FIXED)


def wrapped(text, input_shape, make, reference, ratios):
    """`DP_WrappedResidual` of a new layer; the skip connection has another bound than the branch."""
    return Case(
        f"DP_WrappedResidual-{text}",
        lambda: layers.DP_WrappedResidual(make()),
        [input_shape, input_shape],
        lambda layer, xs: [reference(layer.layer, xs[0]), xs[1]],
        ratios,
        input_bound=(1.0, 2.0),
        gradient_bound=(3.0, 1.0),
    )


def centre(text, input_shape, axis, axes):
    return _case(layers.DP_LayerCentering, text, input_shape, {"axis": axis}, _centred(axes), FIXED)


CASES = [
    dense("square", (6,), 6),
    dense("narrow", (7,), 3),
    dense("wide", (3,), 8),
    dense("one_input", (1,), 4),
    dense("one_unit", (5,), 1),
    dense("positions", (4, 5), 3),
    dense("image", (3, 2, 4), 5),
    dense("relu", (5,), 6, activation="relu"),
    dense("tanh", (4,), 4, activation="tanh", kernel_initializer="glorot_uniform", input_bound=0.05),
    dense("square", (6,), 6, cls=layers.DP_SpectralDense),
    dense("positions", (3, 6), 4, cls=layers.DP_SpectralDense),
    dense("square", (5,), 5, cls=layers.DP_QuickFrobeniusDense),
    dense("positions", (4, 5), 3, cls=layers.DP_QuickFrobeniusDense),
    dense("one_unit", (6,), 1, cls=layers.DP_QuickFrobeniusDense),
    dense("square", (5,), 5, cls=layers.DP_ContractiveDense),
    dense("positions", (4, 5), 3, cls=layers.DP_ContractiveDense),
    conv("1x1", (4, 4, 3), 4, 1, TIGHT),
    conv("2x2", (6, 5, 2), 3, 2, (1.0, 1.0, 0.995)),
    conv("3x3", (7, 6, 2), 3, 3, (1.0, 1.0, 0.97)),
    conv("3x3_same_large", (16, 16, 1), 2, 3, (1.0, 1.0, 0.99), padding="same"),
    conv("3x3_relu", (7, 7, 1), 2, 3, (1.0, 1.0, 0.974), activation="relu"),
    conv("2x3_same", (5, 8, 2), 2, (2, 3), (1.0, 1.0, 0.986), padding="same"),
    conv("3x3_stride2", (9, 9, 2), 3, 3, (0.991, 0.989, 0.995), strides=2),
    conv("4x4_stride2_large", (20, 20, 1), 2, 4, (1.0, 1.0, 0.995), strides=2),
    conv("5x5_stride2_same", (11, 9, 1), 2, 5, (1.0, 1.0, 0.973), strides=2, padding="same"),
    conv("4x4_stride4", (8, 8, 1), 16, 4, TIGHT, strides=4),
    conv("2x2_stride3", (8, 8, 2), 3, 2, TIGHT, strides=3),
    conv("3x2_stride2x1", (8, 7, 2), 2, (3, 2), (1.0, 1.0, 0.996), strides=(2, 1)),
    conv("3x3_dilation2", (9, 8, 2), 2, 3, (1.0, 1.0, 0.958), dilation_rate=2),
    conv("3x3_dilation2x1_same", (6, 6, 1), 3, 3, (1.0, 1.0, 0.986), dilation_rate=(2, 1), padding="same"),
    conv("5x5_same_on_3x3", (3, 3, 2), 2, 5, (1.0, 1.0, 0.939), padding="same"),
    conv("3x3_same", (6, 6, 2), 2, 3, (1.0, 1.0, 0.973), cls=layers.DP_SpectralConv2D, padding="same"),
    conv("4x4_stride2", (8, 8, 1), 4, 4, (1.0, 1.0, 0.996), cls=layers.DP_SpectralConv2D, strides=2),
    conv("3x3_same", (6, 6, 2), 2, 3, (1.0, 1.0, 0.973), cls=layers.DP_ContractiveConv2D, padding="same"),
    conv("4x4_stride2_same", (8, 8, 1), 4, 4, (1.0, 1.0, 0.996), cls=layers.DP_ContractiveConv2D, strides=2),
    conv1d("1", (5, 3), 4, 1, TIGHT),
    conv1d("3", (9, 2), 3, 3, (1.0, 1.0, 0.991)),
    conv1d("3_same_large", (40, 1), 2, 3, (1.0, 1.0, 0.996), padding="same"),
    conv1d("5_stride2_same", (11, 2), 2, 5, (1.0, 1.0, 0.985), strides=2, padding="same"),
    conv1d("4_stride4", (12, 2), 8, 4, TIGHT, strides=4),
    conv1d("2_stride3", (8, 2), 3, 2, TIGHT, strides=3),
    conv1d("3_dilation2_same", (10, 2), 2, 3, (1.0, 1.0, 0.988), dilation_rate=2, padding="same"),
    conv1d("5_same_on_3", (3, 2), 2, 5, (1.0, 1.0, 0.969), padding="same"),
    conv1d("3_causal", (8, 2), 3, 3, (1.0, 1.0, 0.991), padding="causal"),
    conv1d("3_causal_dilation4", (14, 1), 2, 3, (1.0, 1.0, 0.985), dilation_rate=4, padding="causal"),
    conv1d("4_causal_stride2", (9, 1), 3, 4, (1.0, 1.0, 0.993), strides=2, padding="causal"),
    conv1d("4_causal_stride4_relu", (12, 2), 8, 4, TIGHT, strides=4, padding="causal", activation="relu"),
    depthwise("3x3", (7, 6, 3), 3, (1.0, 1.0, 0.97)),
    depthwise("1x1", (4, 4, 2), 1, TIGHT),
    depthwise("3x3_same_large", (16, 16, 2), 3, (1.0, 1.0, 0.99), padding="same"),
    depthwise("3x3_same_multiplier2", (7, 6, 2), 3, (1.0, 1.0, 0.977), padding="same", depth_multiplier=2),
    depthwise("3x3_stride2_relu", (9, 9, 2), 3, (1.0, 1.0, 0.995), strides=2, activation="relu"),
    depthwise("2x2_stride2_multiplier5", (6, 6, 2), 2, TIGHT, strides=2, depth_multiplier=5),
    depthwise("3x2_stride2x1", (8, 7, 2), (3, 2), (1.0, 1.0, 0.996), strides=(2, 1)),
    depthwise("3x3_dilation2x1_same", (8, 6, 2), 3, (1.0, 1.0, 0.967), dilation_rate=(2, 1), padding="same"),
    depthwise("3x3_stride3_dilation2", (11, 12, 1), 3, TIGHT, strides=3, dilation_rate=2, depth_multiplier=2),
    depthwise("5x5_same_on_3x3", (3, 3, 2), 5, (1.0, 1.0, 0.939), padding="same"),
    patches("2x2_wide", (6, 4, 2), 10, 2),
    patches("2x2_square", (6, 4, 2), 8, 2),
    patches("3x2_narrow", (6, 4, 3), 4, (3, 2)),
    patches("3x3_left_over", (8, 7, 1), 5, 3),
    patches("2x2_relu", (4, 4, 2), 9, 2, activation="relu"),
    pool("2x2", (4, 6, 2), 2),
    pool("2x2_ragged", (5, 5, 2), (2, 2)),
    pool("3x3_stride2", (7, 7, 2), 3, strides=2),
    pool("2x3_stride1_same", (5, 4, 1), (2, 3), strides=1, padding="same"),
    pool("2x2_stride3", (8, 7, 2), 2, strides=3),
    pool("5x5_same_on_3x3", (3, 3, 2), 5, strides=1, padding="same"),
    pool("2", (6, 2), 2, cls=layers.DP_ScaledL2NormPooling1D),
    pool("3_stride2", (8, 2), 3, cls=layers.DP_ScaledL2NormPooling1D, strides=2),
    pool("3_stride1_same", (5, 1), 3, cls=layers.DP_ScaledL2NormPooling1D, strides=1, padding="same"),
    max_pool("2x2", (4, 6, 2), 2),
    max_pool("2x2_ragged_same", (5, 5, 2), 2, padding="same"),
    max_pool("3x3_stride2", (5, 5, 2), 3, strides=2),
    max_pool("3x2_stride2x1_same", (7, 5, 2), (3, 2), strides=(2, 1), padding="same"),
    max_pool("2x2_stride3", (8, 7, 2), 2, strides=3),
    max_pool("3x3_stride1", (6, 6, 1), 3, strides=1),
    max_pool("5x5_same_on_3x3", (3, 3, 2), 5, strides=1, padding="same"),
    average_pool("2x2", (4, 6, 2), 2),
    average_pool("2x2_ragged_same", (5, 5, 2), 2, padding="same"),
    average_pool("3x3_stride2", (7, 7, 2), 3, strides=2),
    average_pool("3x3_stride2_same", (8, 7, 2), 3, strides=2, padding="same"),
    average_pool("3x3_stride1_same", (5, 5, 1), 3, strides=1, padding="same"),
    average_pool("5x2_stride1x3_same", (3, 7, 1), (5, 2), strides=(1, 3), padding="same"),
    _case(layers.DP_GlobalAveragePooling2D, "vector", (3, 4, 2), {}, _global_mean, FIXED),
    _case(layers.DP_GlobalAveragePooling2D, "image", (3, 4, 2), {"keepdims": True}, _global_mean, FIXED),
    _case(layers.DP_ScaledGlobalL2NormPooling2D, "vector", (3, 4, 2), {}, _global_norm, FIXED),
    _case(layers.DP_ScaledGlobalL2NormPooling2D, "image", (5, 3, 1), {"keepdims": True}, _global_norm, FIXED),
    sort("2", (6,), 2),
    sort("2_positions", (3, 4), 2),
    sort("2_image", (2, 3, 4), 2),
    sort("3", (9,), 3),
    sort("4_image", (2, 2, 8), 4),
    sort("full", (5,), 5),
    _case(layers.DP_FullSort, "vector", (5,), {}, lambda _, x: np.sort(x)[..., ::-1], FIXED),
    _case(layers.DP_FullSort, "image", (2, 2, 3), {}, lambda _, x: np.sort(x)[..., ::-1], FIXED),
    _case(layers.DP_Householder, "vector", (6,), {}, _householder, TIGHT),
    _case(layers.DP_Householder, "image", (2, 3, 4), {"nm_coef": 2.0}, _householder, TIGHT),
    rectifier(layers.DP_ReLU, "vector", (5,)),
    rectifier(layers.DP_ReLU, "image", (2, 3, 2), max_value=0.5, ratios=(0.998, 1.0, None)),
    rectifier(layers.DP_ReLU, "slope3", (5,), negative_slope=3),
    rectifier(layers.DP_ReLU, "slope_and_limit", (5,), negative_slope=0.5, max_value=6.0),
    rectifier(layers.DP_LeakyReLU, "vector", (5,)),
    rectifier(layers.DP_LeakyReLU, "image", (2, 3, 2), negative_slope=2.0),
    _case(layers.DP_Abs, "vector", (5,), {}, lambda layer, x: abs(x), FIXED),
    _case(layers.DP_Abs, "image", (2, 3, 4), {}, lambda layer, x: abs(x), FIXED),
    _case(layers.DP_Modulus, "vector", (6,), {}, _modulus, FIXED),
    _case(layers.DP_Modulus, "image", (2, 3, 4), {}, _modulus, FIXED),
    _case(layers.DP_BoundedInput, "binding", (5,), {"upper_bound": 2.0}, _bounded, FIXED, input_bound=10.0),
    _case(layers.DP_BoundedInput, "image", (3, 3, 2), {"upper_bound": 1.0}, _bounded, FIXED, input_bound=3.0),
    _case(layers.DP_BoundedInput, "slack", (4, 3), {"upper_bound": 7.0}, _bounded, FIXED),
    _case(layers.DP_Scattering2D, "1_scale", (6, 5, 2), {"scales": 1, "angles": 3}, _scattered, (0.89, 0.87, None)),
    _case(layers.DP_Scattering2D, "2_scales", (8, 8, 1), {"scales": 2, "angles": 2}, _scattered, (0.85, 0.84, None)),
    _case(layers.DP_InputLayer, "image", (3, 3, 2), {"shape": (3, 3, 2)}, _same, None),
    _case(layers.DP_Flatten, "vector", (5,), {}, _flat, FIXED),
    _case(layers.DP_Flatten, "image", (3, 4, 2), {}, _flat, FIXED),
    _case(layers.DP_Reshape, "rows", (12,), {"target_shape": (3, -1)}, lambda _, x: x.reshape(-1, 3, 4), FIXED),
    _case(layers.DP_Reshape, "image", (3, 4), {"target_shape": (2, 2, 3)}, lambda _, x: x.reshape(-1, 2, 2, 3), FIXED),
    _case(layers.DP_Permute, "matrix", (3, 4), {"dims": (2, 1)}, lambda _, x: x.transpose(0, 2, 1), FIXED),
    _case(layers.DP_Permute, "image", (2, 3, 4), {"dims": [3, 1, 2]}, lambda _, x: x.transpose(0, 3, 1, 2), FIXED),
    _case(layers.DP_SpaceToDepth, "2x2", (4, 6, 3), {"block_size": 2}, _space_to_depth, FIXED),
    _case(layers.DP_SpaceToDepth, "3x3", (3, 6, 1), {"block_size": 3}, _space_to_depth, FIXED),
    _case(
        layers.DP_Lambda,
        "shifted",
        (2, 3),
        {"function": doubled_and_shifted, "lipschitz_constant": 2.0, "norm_at_zero": 0.5 * 6**0.5},
        lambda _, x: 2.0 * x + 0.5,
        FIXED,
    ),
    _case(
        layers.DP_Lambda,
        "arguments",
        (4,),
        {"function": steep_wave, "lipschitz_constant": 3.0, "arguments": {"frequency": 3.0}},
        lambda _, x: np.sin(3.0 * x),
        FIXED,
        input_bound=0.1,
    ),
    _case(layers.DP_Dropout, "none", (5,), {"rate": 0.0}, _same, FIXED),
    _case(layers.DP_Dropout, "half", (3, 4), {"rate": 0.5}, _same, FIXED),
    _case(layers.DP_AddBias, "vector", (5,), {}, lambda layer, x: x + layer.bias.numpy(), TIGHT),
    _case(layers.DP_AddBias, "image", (4, 5, 3), {"norm_max": 0.3}, lambda layer, x: x + layer.bias.numpy(), TIGHT),
    # No cotangent goes back to tokens.
    _case(
        layers.DP_Embedding,
        "tokens",
        (6,),
        {"input_dim": 5, "output_dim": 3},
        _embedded,
        (1.0, 0.0, 1.0),
        input_bound=4.0 * 6**0.5,
    ),
    _case(
        layers.DP_Embedding,
        "image",
        (3, 2),
        {"input_dim": 2, "output_dim": 4, "norm_max": 2.0},
        _embedded,
        (1.0, 0.0, 1.0),
    ),
    centre("vector", (5,), None, 1),
    centre("positions", (4, 3), None, 1),
    centre("image", (3, 4, 2), None, (1, 2)),
    centre("channels", (3, 2, 4), -1, -1),
    centre("all", (3, 2, 4), (1, 2, 3), (1, 2, 3)),
    _case(layers.DP_NormalizeToBall, "default", (5,), {}, _normalized, FIXED),
    _case(
        layers.DP_NormalizeToBall,
        "image",
        (3, 3, 2),
        {"radius": 3.0, "minimum_norm": 0.5},
        _normalized,
        FIXED,
        input_bound=4.0,
    ),
    _case(layers.DP_NormalizeToBall, "small", (4,), {"minimum_norm": 10.0}, _normalized, FIXED),
    _case(layers.DP_GroupNormalization, "vector", (6,), {"groups": 2}, _group_normalized, FIXED),
    _case(
        layers.DP_GroupNormalization,
        "image",
        (3, 2, 6),
        {"groups": 3, "radius": 2.0, "minimum_norm": 0.5},
        _group_normalized,
        FIXED,
        input_bound=4.0,
    ),
    _case(layers.DP_ClipGradient, "binding", (5,), {"clip_value": 0.5}, _same, FIXED),
    _case(layers.DP_ClipGradient, "slack", (3, 4), {"clip_value": 2.0}, _same, FIXED, gradient_bound=1.5),
    _case(layers.DP_ClipGradient, "moving", (5,), {"clip_value": 0.5, "dynamic": True}, _same, FIXED),
    _case(layers.DP_Add, "vectors", [(4,), (4,)], {}, _sum, FIXED),
    _case(layers.DP_Add, "images", [(2, 3, 2)] * 3, {}, _sum, FIXED, input_bound=(1.0, 2.0, 0.5)),
    _case(layers.DP_Concatenate, "vectors", [(3,), (2,)], {}, _concatenated, FIXED, input_bound=(1.0, 3.0)),
    _case(layers.DP_Concatenate, "rows", [(3, 2), (4, 2)], {"axis": 1}, _concatenated, FIXED),
    _case(layers.DP_SplitResidual, "vector", (5,), {}, lambda _, x: [x, x], FIXED),
    _case(layers.DP_SplitResidual, "image", (2, 3, 2), {}, lambda _, x: [x, x], FIXED, gradient_bound=(1.0, 3.0)),
    _case(layers.DP_MergeResidual, "mean", [(5,)] * 2, {}, lambda _, x: sum(x) / 2, FIXED),
    _case(layers.DP_MergeResidual, "sum", [(3, 2)] * 2, {"merge_policy": "add"}, _sum, FIXED, input_bound=(1.0, 2.0)),
    wrapped("dense", (4,), lambda: layers.DP_QuickSpectralDense(3), _dense, TIGHT),
    wrapped("sort", (2, 3, 4), layers.DP_GroupSort, _group_sort, FIXED),
]

#: Cases whose layer can be called; an input layer only states a shape.
CALLABLE = [case for case in CASES if case.ratios is not None]

#: Cases whose layer has a kernel of certified norm.
WITH_KERNEL = [case for case in CALLABLE if isinstance(case.make(), SpectralKernel)]
