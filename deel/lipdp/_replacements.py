"""What each Keras layer becomes under differential privacy: one table from class to rule, one from class to reason."""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from deel.lipdp import layers
from deel.lipdp.layers import DPLayer
from deel.lipdp.layers._kernel import OUTPUT_ACTIVATIONS

__all__ = ["ACTIVATION_POLICIES", "BIAS_POLICIES", "Refusal", "Replacement", "Site", "remedy_for", "replacement_for"]

# What each bias may add to the norm of an example, relative to upper_bound: all layers behind it pay for it.
_BIAS_SHARE = 0.1

_RESCALING_NOTE = "kernels of norm 1 need no rescaling"
_AUGMENTATION = "random augmentation belongs to the data: put it into map_fn of poisson_batches"


class Refusal(Exception):
    """Why a layer has no counterpart, and what to use."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One use of one layer of the source model.

    Args:
        layer: the layer, or an operation that is none.
        shapes: tuple of shapes of its inputs, with the batch axis.
        final: bool, whether its output is the output of the model.
        activation: key of `ACTIVATION_POLICIES`.
        bias: key of `BIAS_POLICIES`.
        upper_bound: float, largest norm of an example.
        name: callable `(suffix="") -> str`, a new name for a layer that replaces this one.
    """

    layer: keras.Operation
    shapes: tuple
    final: bool
    activation: str
    bias: str
    upper_bound: float
    name: Callable


@dataclasses.dataclass
class Replacement:
    """New layers, to be applied one after the other.

    Args:
        layers: list of layers with bounds; empty where the source layer is left out.
        notes: list of str, what is not the same as before.
        weights: list of pairs, a new layer and the source's values for its weights.
    """

    layers: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)
    weights: list = dataclasses.field(default_factory=list)


@keras.saving.register_keras_serializable(package="deel-lipdp")
def affine(inputs, scale, offset):
    """`scale * inputs + offset`; a list has one number for each channel."""
    return inputs * ops.convert_to_tensor(scale, inputs.dtype) + ops.convert_to_tensor(offset, inputs.dtype)


# -- activations ---------------------------------------------------------------------------------------------------

# Name -> (largest slope, value at 0) of Keras's functions with their default arguments; applied entry by entry. The
# slope is that of the gradient TensorFlow computes: celu is not here, since its own comes out as 2 at 0 (black images).
_KNOWN_SLOPES = {
    "elu": (1.0, 0.0),
    "gelu": (1.129, 0.0),  # 1.12890 at sqrt(2)
    "hard_sigmoid": (1 / 6, 0.5),
    "hard_silu": (1.5, 0.0),  # just below 3
    "hard_tanh": (1.0, 0.0),
    "mish": (1.089, 0.0),  # 1.08850 near 1.49
    "selu": (1.7581, 0.0),  # 1.75810, scale * alpha, just below 0
    "sigmoid": (0.25, 0.5),
    "silu": (1.1, 0.0),  # 1.09984 near 2.40
    "softplus": (1.0, math.log(2.0)),
    "softsign": (1.0, 0.0),
    "tanh": (1.0, 0.0),
}

# Those that do not level off for positive inputs: norm-preserving activations can stand in for them.
_RECTIFIERS = {"elu", "gelu", "hard_silu", "leaky_relu", "mish", "relu", "relu6", "selu", "silu", "softplus"}

_DEFAULT_LEAK = 0.2  # of keras.activations.leaky_relu

_KEEPS_NORMS_HINT = 'activation="group_sort" or "abs" keeps norms'
_BIAS_HINT = 'bias="drop" needs less noise'


def _group_sort(site, shape):
    if shape[-1] % 2:
        return Replacement([layers.DP_Abs(name=site.name())], ["DP_GroupSort needs an even number of channels"])
    return Replacement([layers.DP_GroupSort(2, name=site.name())])


def _abs(site, shape):
    return Replacement([layers.DP_Abs(name=site.name())])


#: What stands in for ReLU and its relatives; None leaves them.
ACTIVATION_POLICIES = {"keep": None, "group_sort": _group_sort, "abs": _abs}

#: Whether DP_AddBias follows a layer that had a bias.
BIAS_POLICIES = {"keep": True, "drop": False}


def _rectifier(site, shape, make, *notes):
    """A rectifier or, if the caller asked for it, what keeps norms in its place."""
    policy = ACTIVATION_POLICIES[site.activation]
    if policy is not None:
        return policy(site, shape)
    return Replacement([make(name=site.name())], [*notes, _KEEPS_NORMS_HINT])


def _entrywise(site, shape, function, slope, at_zero=0.0, **arguments):
    """The function itself, with constants that hold for every entry."""

    def make(name):
        norm_at_zero = abs(at_zero) * math.sqrt(math.prod(shape[1:]))
        return layers.DP_Lambda(
            function, lipschitz_constant=slope, norm_at_zero=norm_at_zero, arguments=arguments, name=name
        )

    costs = [f"slopes up to {slope:g} multiply the bounds"] if slope > 1.0 else []
    costs += [f"{at_zero:g} at 0 in each entry adds to the bounds"] if at_zero else []
    if function.__name__ in _RECTIFIERS:
        return _rectifier(site, shape, make, *costs)
    return Replacement([make(name=site.name())], costs)


def _activation(site, activation, shape):
    """The replacement of an activation function applied to a tensor of that shape."""
    if isinstance(activation, keras.layers.Layer):
        return replacement_for(dataclasses.replace(site, layer=activation, shapes=(shape,)))
    name = getattr(activation, "__name__", repr(activation))
    if name == "linear" or activation is None:
        return Replacement()
    if activation is not getattr(keras.activations, name, None):
        raise Refusal(f"nothing is known about the activation {name}: write DP_Lambda(..., lipschitz_constant=...)")
    if name in OUTPUT_ACTIVATIONS and site.final:
        return Replacement(notes=[f"{name} dropped: the losses take logits"])
    if name in ("relu", "relu6"):
        limit = 6.0 if name == "relu6" else None
        return _rectifier(site, shape, lambda name: layers.DP_ReLU(max_value=limit, name=name))
    if name == "leaky_relu":
        return _rectifier(site, shape, lambda name: layers.DP_LeakyReLU(_DEFAULT_LEAK, name=name))
    if name in _KNOWN_SLOPES:
        return _entrywise(site, shape, activation, *_KNOWN_SLOPES[name])
    if name == "softmax":
        raise Refusal("a softmax inside the network is not converted: losses take logits, and attention has no bound")
    raise Refusal(f"no Lipschitz constant is known for the activation {name!r}: use 'relu'")


def _activation_layer(site):
    return _activation(site, site.layer.activation, site.shapes[0])


def _relu(site):
    layer = site.layer
    arguments = {name: getattr(layer, name) for name in ("max_value", "negative_slope", "threshold")}
    arguments = {name: None if value is None else float(value) for name, value in arguments.items()}
    return _rectifier(site, site.shapes[0], lambda name: layers.DP_ReLU(**arguments, name=name))


def _relu_operation(site):
    return _activation(site, keras.activations.relu, site.shapes[0])


def _leaky_relu(site):
    slope = float(site.layer.negative_slope)
    return _rectifier(site, site.shapes[0], lambda name: layers.DP_LeakyReLU(slope, name=name))


def _prelu(site):
    note = "slope fixed at 0.25: no trainable slope has bounds here"
    return _rectifier(site, site.shapes[0], lambda name: layers.DP_LeakyReLU(0.25, name=name), note)


def _elu(site):
    alpha = float(site.layer.alpha)
    return _entrywise(site, site.shapes[0], keras.activations.elu, max(1.0, abs(alpha)), alpha=alpha)


def _softmax(site):
    return _activation(site, keras.activations.softmax, site.shapes[0])


# -- layers with kernels -------------------------------------------------------------------------------------------


def _shared(site, *names):
    """The arguments that a layer and its counterpart have in common."""
    return {name: getattr(site.layer, name) for name in names}


def _with_kernels(site, new, kernels):
    """Layers with kernels, then the bias and the activation as layers of their own."""
    source, shape = site.layer, site.shapes[0]
    if getattr(source, "quantization_mode", None) is not None:
        raise Refusal("it is quantized: convert the model in single precision")
    made = Replacement(
        new, [], [(layer, [getattr(source, name, None)]) for layer, name in zip(new, kernels, strict=True)]
    )
    for layer in new:
        shape = layer.compute_output_shape(shape)
    if source.use_bias and BIAS_POLICIES[site.bias]:
        # Its contribution is repeated at every position.
        norm_max = _BIAS_SHARE * site.upper_bound / math.sqrt(math.prod(shape[1:-1]))
        bias = layers.DP_AddBias(norm_max, name=site.name("bias"))
        made.layers.append(bias)
        made.weights.append((bias, [getattr(source, "bias", None)]))
        made.notes.append(_BIAS_HINT)
    elif source.use_bias:
        made.notes.append("bias dropped")
    lost = ("kernel_constraint", "depthwise_constraint", "pointwise_constraint", "bias_constraint")
    lost += ("bias_regularizer", "activity_regularizer")
    made.notes += [f"{name} dropped" for name in lost if getattr(source, name, None) is not None]
    named = dataclasses.replace(site, name=lambda suffix="": site.name(suffix or "activation"))
    activation = _activation(named, source.activation, shape)
    return Replacement(made.layers + activation.layers, made.notes + activation.notes, made.weights)


def _dense(site):
    new = layers.DP_QuickSpectralDense(**_shared(site, "units", "kernel_regularizer"), name=site.name())
    return _with_kernels(site, [new], ["kernel"])


def _convolution(new_class):
    names = ("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups", "kernel_regularizer")

    def rule(site):
        return _with_kernels(site, [new_class(**_shared(site, *names), name=site.name())], ["kernel"])

    return rule


_DEPTHWISE = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier", "depthwise_regularizer")


def _depthwise(site):
    new = layers.DP_DepthwiseConv2D(**_shared(site, *_DEPTHWISE), name=site.name())
    return _with_kernels(site, [new], ["kernel"])


def _separable(site):
    depthwise = layers.DP_DepthwiseConv2D(**_shared(site, *_DEPTHWISE), name=site.name("depthwise"))
    pointwise = layers.DP_QuickSpectralConv2D(
        site.layer.filters, 1, kernel_regularizer=site.layer.pointwise_regularizer, name=site.name("pointwise")
    )
    return _with_kernels(site, [depthwise, pointwise], ["depthwise_kernel", "pointwise_kernel"])


def _embedding(site):
    """The guard takes tokens for numbers, so it has to be wide enough to leave them alone."""
    source = site.layer
    if source.mask_zero:
        raise Refusal("mask_zero=True: no layer here reads the mask")
    needed = (source.input_dim - 1) * math.sqrt(math.prod(site.shapes[0][1:]))
    if site.upper_bound < needed:
        raise Refusal(f"upper_bound={site.upper_bound:g} would change tokens: pass upper_bound={math.ceil(needed)}")
    new = layers.DP_Embedding(source.input_dim, source.output_dim, name=site.name())
    lost = [name for name in ("embeddings_constraint", "embeddings_regularizer") if getattr(source, name) is not None]
    notes = ["rows of norm 1 at most", "noise goes to every row in every step", *(f"{name} dropped" for name in lost)]
    return Replacement([new], notes, [(new, [getattr(source, "embeddings", None)])])


# -- pooling -------------------------------------------------------------------------------------------------------


def _pooling(new_class):
    def rule(site):
        return Replacement([new_class(**_shared(site, "pool_size", "strides", "padding"), name=site.name())])

    return rule


def _on_sequence(site, pool):
    """A pooling layer for images applied to a sequence, as an image of one column."""
    _, steps, channels = site.shapes[0]
    image = (steps, 1, channels)
    pooled = site.layer.compute_output_shape(site.shapes[0])[1:]
    before = layers.DP_Reshape(image, name=site.name("image"))
    return Replacement([before, pool, layers.DP_Reshape(pooled, name=site.name("sequence"))])


def _pooling_1d(new_class):
    def rule(site):
        layer = site.layer
        (size,), (stride,) = layer.pool_size, layer.strides
        return _on_sequence(site, new_class((size, 1), (stride, 1), layer.padding, name=site.name()))

    return rule


def _global_average(site):
    return Replacement([layers.DP_GlobalAveragePooling2D(keepdims=site.layer.keepdims, name=site.name())])


def _global_average_1d(site):
    return _on_sequence(site, layers.DP_GlobalAveragePooling2D(keepdims=True, name=site.name()))


def _global_max(site):
    pool = layers.DP_MaxPool2D(site.shapes[0][1:3], name=site.name())
    return Replacement([pool] if site.layer.keepdims else [pool, layers.DP_Flatten(name=site.name("flatten"))])


def _global_max_1d(site):
    return _on_sequence(site, layers.DP_MaxPool2D((site.shapes[0][1], 1), name=site.name()))


# -- normalisation and regularisation ------------------------------------------------------------------------------


def _removed(note):
    def rule(site):
        return Replacement(notes=[f"removed: {note}"])

    return rule


def _centred(site, axes, note):
    shape = site.shapes[0]
    if math.prod(shape[axis] for axis in axes) == 1:
        return Replacement(notes=["removed: the mean of one entry is the entry, and centring would leave nothing"])
    return Replacement([layers.DP_LayerCentering(axes, name=site.name())], [note])


_CENTRING_NOTE = (
    "centring only: division by an example's own deviation has no Lipschitz constant; scale and shift dropped"
)


def _layer_normalization(site):
    axis = site.layer.axis
    return _centred(site, tuple(axis) if isinstance(axis, (list, tuple)) else (axis,), _CENTRING_NOTE)


def _group_normalization(site):
    shape, groups = site.shapes[0], site.layer.groups
    if site.layer.axis not in (-1, len(shape) - 1):
        raise Refusal(f"axis={site.layer.axis}: groups are formed on the last axis only")
    channels = shape[-1]
    groups = channels if groups == -1 else groups
    split = (*shape[1:-1], groups, channels // groups)
    axes = (*range(1, len(shape) - 1), len(shape))
    centred = _centred(dataclasses.replace(site, shapes=((None, *split),)), axes, _CENTRING_NOTE)
    if centred.layers:
        before = layers.DP_Reshape(split, name=site.name("groups"))
        centred.layers = [before, *centred.layers, layers.DP_Reshape(shape[1:], name=site.name("channels"))]
    return centred


def _unit_normalization(site):
    shape, axis = site.shapes[0], site.layer.axis
    axes = {a % len(shape) for a in (axis if isinstance(axis, (list, tuple)) else [axis])}
    if axes != set(range(1, len(shape))):
        raise Refusal("it normalises positions, not examples: use DP_NormalizeToBall, for an example as a whole")
    note = "projection on the unit ball: vectors shorter than 1 keep their length, or there were no Lipschitz constant"
    return Replacement([layers.DP_NormalizeToBall(1.0, minimum_norm=1.0, name=site.name())], [note])


def _dropout(*notes):
    def rule(site):
        new = layers.DP_Dropout(float(site.layer.rate), name=site.name())
        factor = new.propagate_inputs(1.0)
        return Replacement([new], [*notes, f"multiplies the bounds by {factor:.3g}: noise regularises already"])

    return rule


def _affine(site, scale, offset):
    entries = np.broadcast_to(np.asarray(offset, "float64"), site.shapes[0][1:])
    return layers.DP_Lambda(
        affine,
        lipschitz_constant=float(np.max(np.abs(scale))),
        norm_at_zero=float(np.linalg.norm(entries)),
        arguments={"scale": np.asarray(scale).tolist(), "offset": np.asarray(offset).tolist()},
        name=site.name("affine"),
    )


def _rescaling(site):
    return Replacement([_affine(site, site.layer.scale, site.layer.offset)], ["upper_bound is that of the raw input"])


# -- shapes and merges ---------------------------------------------------------------------------------------------


def _claimed(site):
    made = layers.DP_GNP_Factory(type(site.layer))
    return Replacement([made.from_config({**site.layer.get_config(), "name": site.name()})])


def _merge(site):
    if len(site.shapes) == 1:
        raise Refusal("it adds a constant: use a layer with a bias")
    if len(site.shapes) > 2:
        return Replacement([layers.DP_Add(name=site.name())], [f"the bounds of {len(site.shapes)} branches add up"])
    note = "the mean of the two: their sum would double the bounds"
    return Replacement([layers.DP_MergeResidual("1-lip-add", name=site.name())], [note])


def _average(site):
    if len(site.shapes) == 2:
        return Replacement([layers.DP_MergeResidual("1-lip-add", name=site.name())])
    return Replacement([layers.DP_Add(name=site.name()), _affine(site, 1.0 / len(site.shapes), 0.0)])


def _copy(site):
    source = site.layer
    copy = type(source).from_config({**source.get_config(), "name": site.name()})
    return Replacement([copy], ["kept"], [(copy, source.weights)] if source.weights else [])


_K = keras.layers

#: Class of a Keras layer, exactly -> rule `(site) -> Replacement`, which may raise `Refusal`.
RULES = {
    _K.Activation: _activation_layer,
    _K.Add: _merge,
    _K.Average: _average,
    _K.AveragePooling1D: _pooling_1d(layers.DP_AveragePooling2D),
    _K.AveragePooling2D: _pooling(layers.DP_AveragePooling2D),
    _K.BatchNormalization: _removed(f"it mixes the examples of a batch; {_RESCALING_NOTE}"),
    _K.Concatenate: lambda site: Replacement([layers.DP_Concatenate(site.layer.axis, name=site.name())]),
    _K.Conv1D: _convolution(layers.DP_Conv1D),
    _K.Conv2D: _convolution(layers.DP_QuickSpectralConv2D),
    _K.Cropping1D: _claimed,
    _K.Cropping2D: _claimed,
    _K.Dense: _dense,
    _K.DepthwiseConv2D: _depthwise,
    _K.Dropout: _dropout(),
    _K.ELU: _elu,
    _K.Embedding: _embedding,
    _K.Flatten: lambda site: Replacement([layers.DP_Flatten(name=site.name())]),
    _K.GlobalAveragePooling1D: _global_average_1d,
    _K.GlobalAveragePooling2D: _global_average,
    _K.GlobalMaxPooling1D: _global_max_1d,
    _K.GlobalMaxPooling2D: _global_max,
    _K.GroupNormalization: _group_normalization,
    _K.Identity: _removed("it does nothing"),
    _K.LayerNormalization: _layer_normalization,
    _K.LeakyReLU: _leaky_relu,
    _K.MaxPooling1D: _pooling_1d(layers.DP_MaxPool2D),
    _K.MaxPooling2D: _pooling(layers.DP_MaxPool2D),
    _K.PReLU: _prelu,
    _K.Permute: lambda site: Replacement([layers.DP_Permute(site.layer.dims, name=site.name())]),
    _K.ReLU: _relu,
    _K.Rescaling: _rescaling,
    _K.Reshape: lambda site: Replacement([layers.DP_Reshape(site.layer.target_shape, name=site.name())]),
    _K.SeparableConv2D: _separable,
    _K.Softmax: _softmax,
    _K.SpatialDropout1D: _dropout("drops entries, not channels"),
    _K.SpatialDropout2D: _dropout("drops entries, not channels"),
    _K.UnitNormalization: _unit_normalization,
    _K.ZeroPadding1D: _claimed,
    _K.ZeroPadding2D: _claimed,
}

#: Name of an operation of `keras.ops` -> rule. Other operations are refused.
OPERATIONS = {"Add": _merge, "Relu": _relu_operation}

_REASONS = {
    "Attention AdditiveAttention GroupedQueryAttention MultiHeadAttention": (
        "attention multiplies activations by activations, so it has no Lipschitz constant: "
        "mix positions with Permute and Dense, see make_mixer_block"
    ),
    "Bidirectional ConvLSTM1D ConvLSTM2D ConvLSTM3D GRU LSTM RNN SimpleRNN": (
        "its weights act on its own output once for each step, so their gradient has no bound here: use Conv1D"
    ),
    "Conv1DTranspose Conv2DTranspose Conv3D Conv3DTranspose DepthwiseConv1D SeparableConv1D": (
        "no norm certificate exists for it: use Conv1D, Conv2D or DepthwiseConv2D"
    ),
    "Dot Multiply": "a product of activations has no Lipschitz constant: use Concatenate and a Dense layer",
    "GaussianDropout GaussianNoise AlphaDropout": (
        "its random numbers come from a known seed: leave it out, the noise of private training regularises already"
    ),
    "Lambda": "nothing is known about its function: write DP_Lambda(function, lipschitz_constant=...)",
    "Masking": "it looks at exact values and passes a mask that no layer here reads: pad with zeros",
    "Maximum Minimum Subtract": "no counterpart: use Add, Average or Concatenate, and let the layer before learn signs",
    "MixUp CutMix": "it mixes examples, so one of them reaches the gradients of others: leave it out",
    "Normalization": (
        "what it learns with adapt() is a function of private records: use Rescaling with public constants"
    ),
    "RMSNormalization": (
        "division by an example's own norm has no Lipschitz constant: use LayerNormalization, which is centred"
    ),
    "RepeatVector UpSampling1D UpSampling2D UpSampling3D": "it repeats values, which has no counterpart: leave it out",
    "SpectralNormalization": "kernels here have norm 1 anyway: unwrap the layer",
    "TimeDistributed": "unwrap it: Dense acts on every step of a sequence, and Conv1D on several",
    "Resizing CenterCrop": "it belongs to the data: put it into map_fn of poisson_batches, or prepare the arrays",
    "ActivityRegularization": "the gradient of its penalty depends on the data and has no bound: leave it out",
    " ".join(name for name in dir(_K) if name.startswith("Random")): _AUGMENTATION,
}

#: Class of a Keras layer -> why it has no counterpart, and the remedy. Keras has more of them in later versions.
REFUSED = {
    getattr(_K, name): reason for names, reason in _REASONS.items() for name in names.split() if hasattr(_K, name)
}

# Registered here, so that a saved model loads once this module is imported.
for _layer_class in (layer_class for layer_class, rule in RULES.items() if rule is _claimed):
    layers.DP_GNP_Factory(_layer_class)


def replacement_for(site):
    """What stands in for the layer of a site.

    Args:
        site: `Site`.

    Returns:
        `Replacement`.

    Raises:
        Refusal: with the reason.
        TypeError, ValueError: from a new layer that cannot be made with the source's arguments.
    """
    kind = type(site.layer)
    if getattr(site.layer, "data_format", None) == "channels_first":
        raise Refusal("data_format='channels_first': move the channels to the last axis")
    if isinstance(site.layer, DPLayer):
        return _copy(site)
    if kind in RULES:
        return RULES[kind](site)
    if kind in REFUSED:
        raise Refusal(REFUSED[kind])
    if isinstance(site.layer, keras.layers.Layer):
        raise Refusal(
            f"no counterpart of {kind.__module__}.{kind.__name__} is known: subclass DPLayer, or claim with "
            "DP_GNP_Factory that it is 1-Lipschitz, and put that layer into the model"
        )
    if kind.__module__.startswith("keras.") and kind.__name__ in OPERATIONS:
        return OPERATIONS[kind.__name__](site)
    raise Refusal("it is an operation, not a layer: use a layer of keras.layers, or DP_Lambda with its constant")


# Where a layer was not built yet: its counterpart is asked for by name only.
_ANY_SIZE = 32


def _shapes_of(layer):
    built_for = (layer.get_build_config() or {}).get("input_shape")
    if built_for:
        return tuple(map(tuple, built_for)) if isinstance(built_for[0], (list, tuple)) else (tuple(built_for),)
    spec = layer.input_spec
    rank = getattr(spec, "ndim", None) or getattr(spec, "min_ndim", None) or 4
    return ((None, *[_ANY_SIZE] * (rank - 1)),)


def _importable(layer):
    name = type(layer).__name__
    return name if hasattr(layers, name) else f"DP_GNP_Factory(keras.layers.{name.removeprefix('DP_')})"


def remedy_for(layer, shapes=None):
    """What to write in place of a layer without bounds, by the rules of the conversion: a sentence or two.

    Args:
        layer: the layer, or an operation that is none.
        shapes: tuple of shapes of its inputs, with the batch axis; None for those a layer was built for.
    """
    whole = "deel.lipdp.convert replaces the layers of a whole model."
    try:
        site = Site(layer, shapes or _shapes_of(layer), True, "keep", "drop", math.inf, lambda suffix="": None)
        replacement = replacement_for(site)
    except Refusal as reason:
        return f"{str(reason)[:1].upper()}{str(reason)[1:]}."
    except Exception:  # of a layer that was not built; a message must not fail
        return f"Use its counterpart in deel.lipdp.layers; {whole}"
    names = list(dict.fromkeys(map(_importable, replacement.layers)))
    if names:
        return f"Use {' and '.join(names)}; {whole}"
    reasons = [note.partition(": ")[2] for note in replacement.notes] or ["it does nothing"]
    return f"Leave it out: {'; '.join(reasons)}."
