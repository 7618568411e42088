"""One table of layers: how to make each, on what shape, what it computes, and how tight its bounds are.

A new layer adds a line to `CASES`; the contract tests find it there, and fail when a public layer has none.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np

from deel.lipdp import layers


def window_starts(size, kernel_size, stride, padding, dilation=1):
    """First position of each window along one axis, negative where it begins in the padding."""
    extent = (kernel_size - 1) * dilation + 1
    if padding == "same":
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


_ACTIVATIONS = {None: None, "relu": lambda y: np.maximum(y, 0.0), "tanh": np.tanh}


def _dense(layer, x):
    return x @ layer.kernel.numpy().astype("float64")


def _conv(layer, x):
    operator = conv_operator(layer.kernel.numpy(), x.shape[1:3], layer.strides, layer.padding, layer.dilation_rate)
    return (x.reshape(len(x), -1) @ operator.T).reshape(layer.compute_output_shape(x.shape))


def _pool(layer, x):
    y = np.zeros(layer.compute_output_shape(x.shape))
    for position, pairs in windows(x.shape[1:3], layer.pool_size, layer.strides, layer.padding):
        y[(slice(None), *position)] = np.sqrt(sum(x[(slice(None), *pixel)] ** 2 for _, pixel in pairs))
    return y


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


def _centred(axes):
    return lambda layer, x: x - x.mean(axis=axes, keepdims=True)


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
        input_shape: tuple of int, one example.
        reference: callable (layer, float64 array) -> array, from the definition.
        ratios: largest norm found / bound for output, cotangent at the input and parameter gradient (None without a
            variable). What the search reaches today: falling means that a bound got loose, or the search worse.
        input_bound, gradient_bound: float, the norms at which the bounds are searched.
        activation: callable applied to the reference.
    """

    name: str
    make: Callable
    input_shape: tuple
    reference: Callable
    ratios: tuple
    input_bound: float = 1.0
    gradient_bound: float = 1.0
    activation: Callable | None = None

    def build(self):
        layer = self.make()
        if not layer.built:
            layer.build((None, *self.input_shape))
        return layer

    def expected(self, layer, x):
        y = self.reference(layer, np.asarray(x, "float64"))
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


def pool(text, input_shape, pool_size, **arguments):
    arguments["pool_size"] = pool_size
    return _case(layers.DP_ScaledL2NormPooling2D, text, input_shape, arguments, _pool, FIXED)


def sort(text, input_shape, n):
    return _case(layers.DP_GroupSort, text, input_shape, {"n": n}, _group_sort, FIXED)


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
    conv("1x1", (4, 4, 3), 4, 1, TIGHT),
    conv("2x2", (6, 5, 2), 3, 2, (1.0, 1.0, 0.918)),
    conv("3x3", (7, 6, 2), 3, 3, (1.0, 1.0, 0.825)),
    conv("3x3_same_large", (16, 16, 1), 2, 3, (1.0, 1.0, 0.985), padding="same"),
    conv("3x3_relu", (7, 7, 1), 2, 3, (1.0, 1.0, 0.852), activation="relu"),
    conv("2x3_same", (5, 8, 2), 2, (2, 3), (1.0, 1.0, 0.921), padding="same"),
    conv("3x3_stride2", (9, 9, 2), 3, 3, (0.989, 0.989, 0.904), strides=2),
    conv("4x4_stride2_large", (20, 20, 1), 2, 4, (1.0, 1.0, 0.974), strides=2),
    conv("5x5_stride2_same", (11, 9, 1), 2, 5, (1.0, 1.0, 0.853), strides=2, padding="same"),
    conv("4x4_stride4", (8, 8, 1), 16, 4, TIGHT, strides=4),
    conv("2x2_stride3", (8, 8, 2), 3, 2, TIGHT, strides=3),
    conv("3x2_stride2x1", (8, 7, 2), 2, (3, 2), (1.0, 1.0, 0.9), strides=(2, 1)),
    conv("3x3_dilation2", (9, 8, 2), 2, 3, (1.0, 1.0, 0.78), dilation_rate=2),
    conv("3x3_dilation2x1_same", (6, 6, 1), 3, 3, (1.0, 1.0, 0.763), dilation_rate=(2, 1), padding="same"),
    conv("5x5_same_on_3x3", (3, 3, 2), 2, 5, (1.0, 1.0, 0.714), padding="same"),
    conv("3x3_same", (6, 6, 2), 2, 3, (1.0, 1.0, 0.874), cls=layers.DP_SpectralConv2D, padding="same"),
    conv("4x4_stride2", (8, 8, 1), 4, 4, (1.0, 1.0, 0.853), cls=layers.DP_SpectralConv2D, strides=2),
    pool("2x2", (4, 6, 2), 2),
    pool("2x2_ragged", (5, 5, 2), (2, 2)),
    pool("3x3_stride2", (7, 7, 2), 3, strides=2),
    pool("2x3_stride1_same", (5, 4, 1), (2, 3), strides=1, padding="same"),
    pool("2x2_stride3", (8, 7, 2), 2, strides=3),
    pool("5x5_same_on_3x3", (3, 3, 2), 5, strides=1, padding="same"),
    sort("2", (6,), 2),
    sort("2_positions", (3, 4), 2),
    sort("2_image", (2, 3, 4), 2),
    sort("3", (9,), 3),
    sort("4_image", (2, 2, 8), 4),
    sort("full", (5,), 5),
    _case(layers.DP_Abs, "vector", (5,), {}, lambda layer, x: abs(x), FIXED),
    _case(layers.DP_Abs, "image", (2, 3, 4), {}, lambda layer, x: abs(x), FIXED),
    _case(layers.DP_BoundedInput, "binding", (5,), {"upper_bound": 2.0}, _bounded, FIXED, input_bound=10.0),
    _case(layers.DP_BoundedInput, "image", (3, 3, 2), {"upper_bound": 1.0}, _bounded, FIXED, input_bound=3.0),
    _case(layers.DP_BoundedInput, "slack", (4, 3), {"upper_bound": 7.0}, _bounded, FIXED),
    _case(layers.DP_InputLayer, "image", (3, 3, 2), {"shape": (3, 3, 2)}, _same, None),
    _case(layers.DP_Flatten, "vector", (5,), {}, _flat, FIXED),
    _case(layers.DP_Flatten, "image", (3, 4, 2), {}, _flat, FIXED),
    _case(layers.DP_Reshape, "rows", (12,), {"target_shape": (3, -1)}, lambda _, x: x.reshape(-1, 3, 4), FIXED),
    _case(layers.DP_Reshape, "image", (3, 4), {"target_shape": (2, 2, 3)}, lambda _, x: x.reshape(-1, 2, 2, 3), FIXED),
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
    _case(layers.DP_ClipGradient, "binding", (5,), {"clip_value": 0.5}, _same, FIXED),
    _case(layers.DP_ClipGradient, "slack", (3, 4), {"clip_value": 2.0}, _same, FIXED, gradient_bound=1.5),
]

#: Cases whose layer can be called; an input layer only states a shape.
CALLABLE = [case for case in CASES if case.ratios is not None]

WITH_KERNEL = [case for case in CALLABLE if case.ratios[2] is not None]
