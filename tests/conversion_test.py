"""Plain Keras models become private ones: trainable, within their bounds, and every change is in the report."""

import collections
import pathlib
import re
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as K
from keras import ops

import deel.lipdp.conversion  # noqa: F401  a module beside the function lipdp.convert
from deel import lipdp
from deel.lipdp import _replacements
from deel.lipdp import layers as dp
from deel.lipdp.conversion import ConversionError, conversion_report
from deel.lipdp.losses import DP_TauBCE, DP_TauCategoricalCrossentropy
from deel.lipdp.testing import search_worst_case

UPPER_BOUND = 3.0
NUM_CLASSES = 3

# A number that was stored in single precision, or one function of it.
STORED = {"rtol": 1e-6}

# Single precision, sums of at most a few hundred terms.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def metadata(input_shape, n=60, batch_size=12):
    return lipdp.DatasetMetadata(input_shape, n, batch_size, UPPER_BOUND, nb_classes=NUM_CLASSES)


def convert(model, input_shape=None, **kwargs):
    return lipdp.convert(
        model,
        dp_parameters=lipdp.DPParameters("optimal", 1.0, 1e-5),
        dataset_metadata=metadata(model.input_shape[1:] if input_shape is None else input_shape),
        **kwargs,
    )


def inside_the_guard(shape, n, seed=0):
    """Examples that the input guard leaves alone."""
    x = np.random.default_rng(seed).normal(size=(n, *shape))
    return (x * 2.5 / np.linalg.norm(x.reshape(n, -1), axis=1).reshape(-1, *[1] * len(shape))).astype("float32")


def functional(input_shape, body):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, body(inputs))


# -- whole models --------------------------------------------------------------------------------------------------


def lenet():
    """The convolutional network of Keras's MNIST example, smaller."""
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            K.Conv2D(4, 3, activation="relu"),
            K.MaxPooling2D(2),
            K.Conv2D(6, 2, activation="relu"),
            K.MaxPooling2D(2),
            K.Flatten(),
            K.Dropout(0.5),
            K.Dense(NUM_CLASSES, activation="softmax"),
        ]
    )


def resnet():
    def block(x, filters):
        y = K.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        y = K.ReLU()(K.BatchNormalization()(y))
        y = K.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = K.BatchNormalization()(y)
        skip = x if x.shape[-1] == filters else K.Conv2D(filters, 1)(x)
        return K.Activation("relu")(K.Add()([y, skip]))

    def body(x):
        x = K.ZeroPadding2D(1)(x)
        x = block(block(x, 4), 6) + K.Conv2D(6, 1)(x)
        return K.Dense(NUM_CLASSES)(K.GlobalAveragePooling2D()(x))

    return functional((6, 6, 2), body)


def separable():
    """Like MobileNet and Xception, with its body as a model of its own."""
    body = [
        K.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False),
        K.BatchNormalization(),
        K.ReLU(6.0),
        K.Conv2D(8, 1, activation="gelu"),
        K.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, activation="silu"),
    ]
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            K.Rescaling(0.5, offset=-0.1),
            keras.Sequential(body, name="body"),
            K.GlobalMaxPooling2D(),
            K.Dense(NUM_CLASSES),
            K.Softmax(),
        ]
    )


def sequence():
    return keras.Sequential(
        [
            keras.Input((16, 3)),
            K.Conv1D(6, 3, padding="causal", activation="tanh"),
            K.LayerNormalization(),
            K.MaxPooling1D(2),
            K.Conv1D(8, 3, dilation_rate=2, activation=K.LeakyReLU(0.1)),
            K.GroupNormalization(2),
            K.SpatialDropout1D(0.1),
            K.GlobalAveragePooling1D(),
            K.Dense(NUM_CLASSES, activation="sigmoid"),
        ]
    )


def text():
    """Tokens 0 and 1, eight of them: norm sqrt(8) at most."""
    return keras.Sequential(
        [
            keras.Input((8,), dtype="int32"),
            K.Embedding(2, 4),
            K.GlobalAveragePooling1D(),
            K.Dense(6, "softplus"),
            K.Dense(NUM_CLASSES),
        ]
    )


MODELS = {
    "lenet": (lenet, {}),
    "lenet_abs": (lenet, {"activation": "abs", "bias": "drop", "transfer_weights": False}),
    "resnet": (resnet, {}),
    "separable": (separable, {"activation": "group_sort"}),
    "sequence": (sequence, {}),
    "text": (text, {}),
}


def paths(model, prefix=""):
    """Names of the layers and operations of a model, those of nested ones after the names of their models."""
    for layer in getattr(model, "operations", model.layers):
        yield prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from (path for path in paths(layer, f"{prefix}{layer.name}/") if "input_layer" not in path)


def state(model):
    """What must not change: configuration, weights, and how often each layer was called."""
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    calls = [len(layer._inbound_nodes) for layer in layers]
    return model.to_json(), [w.copy() for w in model.get_weights()], calls, [layer.trainable for layer in layers]


# Each of them takes ten seconds; these two hold most kinds of layers.
IN_MAKE_TEST = ("lenet", "text")


@pytest.mark.parametrize(
    "name", [name if name in IN_MAKE_TEST else pytest.param(name, marks=pytest.mark.full) for name in MODELS]
)
def test_converted_models_train(name):
    make, options = MODELS[name]
    model = make()
    before = state(model)
    conversion = convert(model, **options)
    after = state(model)
    assert before[0] == after[0] and before[2:] == after[2:]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))

    private = conversion.model
    # Keras gives functional models a class of their own, below DP_Model.
    assert isinstance(private, lipdp.DP_Sequential if isinstance(model, keras.Sequential) else lipdp.DP_Model)
    assert private.output_shape == model.output_shape
    named = [entry.layer for entry in conversion.report]
    assert collections.Counter(named) == collections.Counter(
        [model.inputs[0]._keras_history.operation.name, *(p for p in paths(model) if "input_layer" not in p)]
    )
    assert all(line in str(conversion) for line in named)

    loss = DP_TauBCE(1.0, num_outputs=NUM_CLASSES) if name == "sequence" else DP_TauCategoricalCrossentropy(2.0)
    private.compile(keras.optimizers.SGD(0.1), loss)
    x = inside_the_guard(model.input_shape[1:], 60)
    x = (x > 0).astype("float32") if name == "text" else x
    y = np.eye(NUM_CLASSES, dtype="float32")[np.arange(60) % NUM_CLASSES]
    history = private.fit(lipdp.poisson_batches(x, y, 12), verbose=0, callbacks=[lipdp.DP_Accountant(log_fn="logging")])
    assert 0 < history.history["epsilon"][-1] < np.inf
    assert private.ledger.steps == 5
    assert all(np.isfinite(weights).all() for weights in private.get_weights())
    # Examples up to the guard's radius and beyond it, before and after training.
    ratios, *_ = private.signal_to_noise_elementwise((100.0 * x[:7], y[:7]))
    assert len(ratios) == len(private.trainable_variables)
    assert 0 < max(ratio.max() for ratio in ratios.values()) <= 1.0


def test_the_table_of_a_report():
    report = convert(lenet()).report
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "was", "is", "now", "note"]
    assert [entry.from_class for entry in report] == (
        "InputLayer Conv2D MaxPooling2D Conv2D MaxPooling2D Flatten Dropout Dense".split()
    )
    assert report[1].to_classes == ("DP_QuickSpectralConv2D", "DP_AddBias", "DP_ReLU")
    assert report[-1].to_classes == ("DP_QuickSpectralDense", "DP_AddBias")
    assert "softmax dropped" in report[-1].note and "upper_bound" in report[0].note
    assert report.refused == ()


def test_the_function_and_its_module():
    assert isinstance(lipdp.convert, types.FunctionType)
    assert isinstance(lipdp.conversion, types.ModuleType)


def test_save_and_load(tmp_path):
    model = functional((6, 6, 2), lambda x: K.Dense(2, "gelu")(K.Flatten()(K.ZeroPadding2D(1)(K.Rescaling(0.5)(x)))))
    private = convert(model).model
    private.save(tmp_path / "model.keras")
    x = inside_the_guard((6, 6, 2), 4)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), private(x))


def test_the_page_of_the_docs_prints_what_it_says(capsys):
    page = (pathlib.Path(__file__).parents[1] / "docs" / "converting.md").read_text(encoding="utf-8")
    code, table = (re.search(rf"```{language}\n(.*?)```", page, re.DOTALL).group(1) for language in ("python", "text"))
    keras.backend.clear_session()  # so that names of layers have no numbers
    exec(compile(code, "converting.md", "exec"), {})
    assert table in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50"])
def test_networks_of_keras_applications(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=NUM_CLASSES)
    conversion = convert(model, bias="drop", transfer_weights=False)
    private = conversion.model
    assert len(conversion.report) == len(model.layers)
    assert private.output_shape == model.output_shape
    private.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
    ratios, *_ = private.signal_to_noise_elementwise((inside_the_guard((32, 32, 3), 3), np.eye(NUM_CLASSES)))
    assert 0 < max(ratio.max() for ratio in ratios.values()) <= 1.0


# -- one layer at a time -------------------------------------------------------------------------------------------

IMAGE, SEQUENCE, VECTOR = (6, 6, 4), (8, 4), (6,)


class Row:
    """A layer, the shape of one example, what it becomes, and whether that computes the same."""

    def __init__(self, layer, shape, becomes, same=False, inputs=1):
        self.layer, self.shape, self.becomes, self.same, self.inputs = layer, shape, becomes.split(), same, inputs

    def model(self):
        inputs = keras.Input(self.shape)
        # Branches that differ, and are no layers with weights of their own.
        branches = [K.Rescaling(1.0 / (i + 1))(inputs) for i in range(self.inputs)]
        return keras.Model(inputs, self.layer(inputs if self.inputs == 1 else branches))


CONV, DENSE, DEPTH = "DP_QuickSpectralConv2D", "DP_QuickSpectralDense", "DP_DepthwiseConv2D"


def rows():
    """One row at least for each entry of the table of rules."""
    yield Row(K.Activation("relu"), IMAGE, "DP_ReLU", same=True)
    yield Row(K.Activation("relu6"), IMAGE, "DP_ReLU", same=True)
    yield Row(K.Activation("leaky_relu"), IMAGE, "DP_LeakyReLU", same=True)
    yield Row(K.Activation("linear"), IMAGE, "", same=True)
    for name in _replacements._KNOWN_SLOPES:
        becomes = "" if name == "sigmoid" else "DP_Lambda"  # at the end of a model
        yield Row(K.Activation(name, name=f"final_{name}"), VECTOR, becomes, same=bool(becomes))
    yield Row(K.Add(), IMAGE, "DP_MergeResidual", inputs=2)
    yield Row(K.Add(name="add_3"), IMAGE, "DP_Add", inputs=3, same=True)
    yield Row(K.Average(), IMAGE, "DP_MergeResidual", inputs=2, same=True)
    yield Row(K.Average(name="average_3"), IMAGE, "DP_Add DP_Lambda", inputs=3, same=True)
    sequence_pool = "DP_Reshape {} DP_Reshape"
    for padding in ("valid", "same"):
        average, largest = "DP_AveragePooling2D", "DP_MaxPool2D"
        name = f"{{}}_{padding}"
        yield Row(K.AveragePooling2D(3, 2, padding, name=name.format("a2")), IMAGE, average, same=True)
        yield Row(K.MaxPooling2D((2, 3), None, padding, name=name.format("m2")), IMAGE, largest, same=True)
        yield Row(
            K.AveragePooling1D(3, 2, padding, name=name.format("a1")), SEQUENCE, sequence_pool.format(average), True
        )
        yield Row(K.MaxPooling1D(3, 2, padding, name=name.format("m1")), SEQUENCE, sequence_pool.format(largest), True)
    for keepdims in (False, True):
        flatten = "" if keepdims else " DP_Flatten"
        arguments = {"keepdims": keepdims, "name": f"keepdims_{keepdims}"}
        yield Row(K.GlobalAveragePooling2D(**arguments), IMAGE, "DP_GlobalAveragePooling2D", same=True)
        yield Row(K.GlobalMaxPooling2D(**arguments), IMAGE, "DP_MaxPool2D" + flatten, same=True)
        average = sequence_pool.format("DP_GlobalAveragePooling2D")
        yield Row(K.GlobalAveragePooling1D(**arguments), SEQUENCE, average, same=True)
        yield Row(K.GlobalMaxPooling1D(**arguments), SEQUENCE, sequence_pool.format("DP_MaxPool2D"), same=True)
    yield Row(K.BatchNormalization(), IMAGE, "")
    yield Row(K.Concatenate(), IMAGE, "DP_Concatenate", inputs=3, same=True)
    yield Row(K.Concatenate(axis=1, name="concatenate_1"), IMAGE, "DP_Concatenate", inputs=2, same=True)
    yield Row(K.Conv1D(4, 3, padding="causal"), SEQUENCE, "DP_Conv1D DP_AddBias")
    yield Row(K.Conv1D(4, 3, 2, use_bias=False, activation="elu"), SEQUENCE, "DP_Conv1D DP_Lambda")
    yield Row(K.Conv2D(4, 3, dilation_rate=2, use_bias=False), IMAGE, CONV)
    yield Row(K.Conv2D(4, 3, 2, padding="same", activation="tanh"), IMAGE, f"{CONV} DP_AddBias DP_Lambda")
    yield Row(K.Cropping1D(2), SEQUENCE, "DP_Cropping1D", same=True)
    yield Row(K.Cropping2D(1), IMAGE, "DP_Cropping2D", same=True)
    yield Row(K.Dense(3, "softmax"), VECTOR, f"{DENSE} DP_AddBias")
    yield Row(K.Dense(3, use_bias=False, activation=K.LeakyReLU(0.1)), SEQUENCE, f"{DENSE} DP_LeakyReLU")
    yield Row(K.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), IMAGE, f"{DEPTH} DP_AddBias")
    yield Row(K.Dropout(0.3), IMAGE, "DP_Dropout", same=True)
    yield Row(K.SpatialDropout1D(0.3), SEQUENCE, "DP_Dropout", same=True)
    yield Row(K.SpatialDropout2D(0.3), IMAGE, "DP_Dropout", same=True)
    yield Row(K.ELU(), IMAGE, "DP_Lambda", same=True)
    yield Row(K.ELU(2.0, name="steep"), IMAGE, "DP_Lambda", same=True)
    yield Row(K.Embedding(2, 3), (8,), "DP_Embedding", same=True)
    yield Row(K.Flatten(), IMAGE, "DP_Flatten", same=True)
    yield Row(K.GroupNormalization(2), IMAGE, "DP_Reshape DP_LayerCentering DP_Reshape")
    yield Row(K.GroupNormalization(1, name="one_group"), IMAGE, "DP_Reshape DP_LayerCentering DP_Reshape")
    yield Row(K.GroupNormalization(-1, name="each_channel"), IMAGE, "DP_Reshape DP_LayerCentering DP_Reshape")
    yield Row(K.Identity(), IMAGE, "", same=True)
    yield Row(K.LayerNormalization(), IMAGE, "DP_LayerCentering")
    yield Row(K.LayerNormalization(axis=[1, 2, 3], name="all_axes"), IMAGE, "DP_LayerCentering")
    yield Row(K.LayerNormalization(name="one_channel"), (4, 1), "")
    yield Row(K.LeakyReLU(0.1), IMAGE, "DP_LeakyReLU", same=True)
    yield Row(K.PReLU(), IMAGE, "DP_LeakyReLU")
    yield Row(K.Permute((3, 1, 2)), IMAGE, "DP_Permute", same=True)
    yield Row(K.ReLU(0.4, negative_slope=0.1), IMAGE, "DP_ReLU", same=True)
    yield Row(K.Rescaling(2.0, 0.5), IMAGE, "DP_Lambda", same=True)
    yield Row(K.Rescaling([1.0, -2.0, 0.1, 0.0], [0.0, 1.0, 2.0, 3.0], name="each"), IMAGE, "DP_Lambda", same=True)
    yield Row(K.Reshape((12, -1)), IMAGE, "DP_Reshape", same=True)
    yield Row(K.SeparableConv2D(5, 3, 2, padding="same", use_bias=False), IMAGE, f"{DEPTH} {CONV}")
    yield Row(K.Softmax(), VECTOR, "")
    yield Row(K.UnitNormalization(), VECTOR, "DP_NormalizeToBall", same=True)
    yield Row(K.UnitNormalization(axis=[1, 2, 3], name="whole"), IMAGE, "DP_NormalizeToBall", same=True)
    yield Row(K.ZeroPadding1D(2), SEQUENCE, "DP_ZeroPadding1D", same=True)
    yield Row(K.ZeroPadding2D(((0, 1), (2, 0))), IMAGE, "DP_ZeroPadding2D", same=True)
    yield Row(dp.DP_GroupSort(2), IMAGE, "DP_GroupSort", same=True)
    yield Row(dp.DP_QuickSpectralDense(4), VECTOR, DENSE, same=True)


ROWS = list(rows())


def test_every_rule_has_a_row():
    assert set(_replacements.RULES) <= {type(row.layer) for row in ROWS}
    assert not set(_replacements.RULES) & set(_replacements.REFUSED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.layer.name)
def test_replacements(row):
    model = row.model()
    conversion = convert(model)
    [entry] = [entry for entry in conversion.report if entry.layer == row.layer.name]
    assert entry.converted and list(entry.to_classes) == row.becomes
    assert conversion.model.output_shape == model.output_shape
    x = inside_the_guard(row.shape, 5)
    if isinstance(row.layer, K.Embedding):
        x = (x > 0).astype("float32")
    output = ops.convert_to_numpy(conversion.model(x))
    if row.same:
        np.testing.assert_allclose(output, model(x), **CLOSE)
    # The model's bound on its own output, found by carrying the guard's radius through.
    bounds = {name: UPPER_BOUND for name in conversion.model.layer_calls()[0].outputs}
    for call in conversion.model.layer_calls()[1:]:
        inputs = tuple(bounds[name] for name in call.inputs)
        bounds[call.outputs[0]] = call.layer.propagate_inputs(inputs[0] if len(inputs) == 1 else inputs)
    far = ops.convert_to_numpy(conversion.model(100.0 * x))
    for found in (output, far):
        norms = np.linalg.norm(found.reshape(len(found), -1).astype("float64"), axis=1)
        assert norms.max() <= bounds[conversion.model.layer_calls()[-1].outputs[0]] * (1 + 1e-5)


@pytest.mark.parametrize(
    "layer",
    [K.Rescaling([0.1, 2.0]), K.Rescaling([0.1, -2.0], [1.0, 0.5]), K.ELU(2.0), K.ELU(-2.0)],
    ids=lambda layer: layer.name,
)
def test_constants_of_layers_with_arguments(layer):
    new = convert(functional((3, 2), layer)).model.layers[-1]
    assert search_worst_case(new, (3, 2), restarts=2, steps=5).violations() == []


@pytest.mark.parametrize(
    "layer, split, axes",
    [
        (K.LayerNormalization(), (6, 6, 4), 3),
        (K.LayerNormalization(axis=(1, 3)), (6, 6, 4), (1, 3)),
        (K.GroupNormalization(2), (6, 6, 2, 2), (1, 2, 4)),
        (K.GroupNormalization(1), (6, 6, 1, 4), (1, 2, 4)),
        (K.GroupNormalization(-1), (6, 6, 4, 1), (1, 2, 4)),
    ],
)
def test_centring_is_over_the_axes_of_the_source(layer, split, axes):
    x = inside_the_guard(IMAGE, 3)
    x += np.abs(x).mean()
    parts = x.reshape(3, *split)
    expected = (parts - parts.mean(axes, keepdims=True)).reshape(x.shape)
    np.testing.assert_allclose(convert(functional(IMAGE, layer), upper_bound=100.0).model(x), expected, **CLOSE)


@pytest.mark.parametrize("name", _replacements._KNOWN_SLOPES)
def test_constants_of_activations(name):
    slope, at_zero = _replacements._KNOWN_SLOPES[name]
    function = getattr(keras.activations, name)
    grid = np.concatenate([np.linspace(-12, 12, 240_001), [-1e15, 1e15, -1e-30, 1e-30]])  # 0 is among them
    for dtype in ("float32", "float64"):
        x = tf.constant(grid, dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        largest = np.abs(tape.gradient(y, x)).max()
        assert 0.999 * slope < largest <= slope * (1 + 1e-6)
    np.testing.assert_allclose(function(tf.constant(0.0)), at_zero, **STORED)
    [layer] = convert(functional((5,), lambda x: K.Dense(2)(K.Activation(name)(x)))).model.layers[2:3]
    assert layer.lipschitz_constant == slope
    # TensorFlow cannot differentiate softsign twice, which the search does.
    for scale in () if name == "softsign" else (1.0, 1e3, 1e15):
        assert search_worst_case(layer, (5,), input_bound=scale, restarts=2, steps=5).violations() == []


# -- refusals ------------------------------------------------------------------------------------------------------

# Arguments of layers that need some; those that are not here take none.
_ARGUMENTS = {
    "Bidirectional": lambda: (K.LSTM(2),),
    "CenterCrop": (2, 2),
    "ConvLSTM1D": (2, 2),
    "ConvLSTM2D": (2, 2),
    "ConvLSTM3D": (2, 2),
    "Conv1DTranspose": (2, 2),
    "Conv2DTranspose": (2, 2),
    "Conv3D": (2, 2),
    "Conv3DTranspose": (2, 2),
    "DepthwiseConv1D": (2,),
    "SeparableConv1D": (2, 2),
    "Dot": (1,),
    "GRU": (2,),
    "LSTM": (2,),
    "RNN": lambda: (K.LSTMCell(2),),
    "SimpleRNN": (2,),
    "GaussianDropout": (0.1,),
    "GaussianNoise": (0.1,),
    "AlphaDropout": (0.1,),
    "GroupQueryAttention": (2, 2, 1),
    "Lambda": (ops.abs,),
    "MultiHeadAttention": (2, 2),
    "RepeatVector": (2,),
    "Resizing": (2, 2),
    "SpectralNormalization": lambda: (K.Dense(2),),
    "TimeDistributed": lambda: (K.Dense(2),),
    "RandomBrightness": (0.1,),
    "RandomColorDegeneration": (0.1,),
    "RandomContrast": (0.1,),
    "RandomCrop": (2, 2),
    "RandomHue": (0.1,),
    "RandomPosterization": (4,),
    "RandomRotation": (0.1,),
    "RandomSaturation": (0.1,),
    "RandomSharpness": (0.1,),
    "RandomShear": (0.1, 0.1),
    "RandomTranslation": (0.1, 0.1),
    "RandomZoom": (0.1,),
}
_WORDS = {
    "Attention": "attention",
    "LSTM": "once for each step",
    "Conv3D": "no norm certificate",
    "Multiply": "product of activations",
    "GaussianNoise": "known seed",
    "Lambda": "DP_Lambda",
    "Masking": "mask",
    "Subtract": "no counterpart",
    "MixUp": "mixes examples",
    "Normalization": "adapt",
    "RMSNormalization": "own norm",
    "UpSampling2D": "repeats values",
    "SpectralNormalization": "unwrap",
    "TimeDistributed": "unwrap",
    "Resizing": "map_fn",
    "ActivityRegularization": "penalty",
    "RandomFlip": "map_fn",
}


def test_every_reason_has_its_words():
    said = {_replacements.REFUSED[getattr(K, name)] for name in _WORDS}
    assert said == set(_replacements.REFUSED.values())


@pytest.mark.parametrize("layer_class", _replacements.REFUSED, ids=lambda cls: cls.__name__)
def test_refused_layers(layer_class):
    arguments = _ARGUMENTS.get(layer_class.__name__, ())
    layer = layer_class(*(arguments() if callable(arguments) else arguments), name="culprit")
    reason = _replacements.REFUSED[layer_class]
    [words] = [words for name, words in _WORDS.items() if _replacements.REFUSED[getattr(K, name)] == reason]

    # The class alone decides; the inputs that these layers take are of every kind and number.
    with pytest.raises(_replacements.Refusal, match=words):
        _replacements.replacement_for(types.SimpleNamespace(layer=layer))


def pair(merge):
    return lambda x: merge(K.Dense(6)(x), K.Dense(6)(x))


@keras.saving.register_keras_serializable()
class Twice(K.Dense):
    """A subclass may compute anything."""

    def call(self, inputs):
        return super().call(2 * inputs)


REFUSALS = {
    "LSTM": ((8, 4), lambda x: K.LSTM(3)(x), "once for each step"),
    "MultiHeadAttention": ((8, 4), lambda x: K.MultiHeadAttention(2, 2)(x, x), "attention"),
    "Embedding": ((8,), lambda x: K.Embedding(2, 3, mask_zero=True)(x), "mask_zero"),
    "celu": ((6,), lambda x: K.Activation("celu")(x), "no Lipschitz constant is known.*'celu'"),
    "Multiply": ((6,), pair(lambda a, b: K.Multiply()([a, b])), "product of activations"),
    "Subtract": ((6,), pair(lambda a, b: K.Subtract()([a, b])), "no counterpart"),
    "RandomFlip": ((6, 6, 3), lambda x: keras.Sequential([K.RandomFlip()])(x), "map_fn"),
    "Lambda": ((6,), lambda x: K.Lambda(ops.exp)(x), "lipschitz_constant"),
    "ops.Multiply": ((6,), pair(lambda a, b: a * b), "operation, not a layer"),
    "ops.Add": ((6,), lambda x: x + 1.0, "adds a constant"),
    "Twice": ((6,), lambda x: Twice(3)(x), "no counterpart of conversion_test.Twice"),
    "Softmax": ((6,), lambda x: K.Dense(2)(K.Softmax()(x)), "softmax inside the network"),
    "Dense": ((6,), lambda x: K.Dense(2)(K.Dense(2, "softmax")(x)), "softmax inside the network"),
    "Activation": ((6,), lambda x: K.Activation("exponential")(x), "no Lipschitz constant is known.*'exponential'"),
    "sin": ((6,), lambda x: K.Activation(ops.sin)(x), "nothing is known about the activation sin"),
    "Conv2D": ((6, 6, 4), lambda x: K.Conv2D(4, 3, groups=2)(x), "groups=2"),
    "MaxPooling2D": ((4, 6, 6), lambda x: K.MaxPooling2D(2, data_format="channels_first")(x), "last axis"),
    "ReLU": ((6,), lambda x: K.ReLU(threshold=1.0)(x), "threshold=1.0"),
    "UnitNormalization": ((6, 6, 4), lambda x: K.UnitNormalization()(x), "DP_NormalizeToBall"),
    "GroupNormalization": ((6, 4, 4), lambda x: K.GroupNormalization(2, axis=1)(x), "axis=1"),
    "Add": ((6,), lambda x: K.Add()([K.Dense(6)(x), K.Dense(1)(x)]), "shapes"),
    "Dropout": ((6,), lambda x: K.Dropout(1.0)(x), "rate"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_class_and_the_reason(name):
    shape, body, reason = REFUSALS[name]
    model = functional(shape, body)
    with pytest.raises(ConversionError, match=reason) as error:
        convert(model)
    [refused] = error.value.report.refused
    assert refused.from_class == {"celu": "Activation", "sin": "Activation"}.get(name, name)
    assert refused.to_classes == ()
    assert f"{refused.layer} ({refused.from_class})" in str(error.value)
    assert "REFUSED" in str(error.value.report)
    assert conversion_report(model).refused == (refused,)


def test_all_refusals_at_once():
    def body(x):
        x = K.Conv1D(4, 3, name="fine")(K.GaussianNoise(0.1, name="noise")(x))
        x = K.GRU(4, name="gru")(x)
        return K.Dense(2, activation="exponential", name="dense")(K.ReLU(threshold=0.5, name="relu")(x))

    with pytest.raises(ConversionError, match="4 of 6 layers") as error:
        convert(functional((8, 3), body))
    assert [entry.layer for entry in error.value.report.refused] == ["noise", "gru", "relu", "dense"]


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_models_whose_graph_cannot_be_read():
    with pytest.raises(TypeError, match="graph cannot be read"):
        convert(Subclassed(), (6,))
    with pytest.raises(TypeError, match="graph cannot be read"):
        convert("model", (6,))
    with pytest.raises(ConversionError, match="no counterpart of conversion_test.Subclassed"):
        convert(functional((6,), lambda x: Subclassed()(x)))


def test_what_does_not_fit():
    one, other = keras.Input((6,)), keras.Input((6,))
    with pytest.raises(ValueError, match="one input and one output.*2 inputs"):
        convert(keras.Model([one, other], K.Add()([one, other])), (6,))
    with pytest.raises(ValueError, match="one input and one output.*2 outputs"):
        convert(keras.Model(one, [K.Dense(2)(one), K.Dense(2)(one)]), (6,))
    with pytest.raises(ValueError, match=r"\(12, 12, 1\).*\(12, 12, 3\)"):
        convert(lenet(), (12, 12, 3))
    with pytest.raises(ValueError, match="input shape that is known"):
        conversion_report(functional((None, 3), lambda x: K.Conv1D(2, 3)(x)))
    with pytest.raises(ValueError, match="known input shape.*never built"):
        conversion_report(keras.Sequential([K.Dense(2)]))
    with pytest.raises(ValueError, match="activation to be one of 'keep', 'group_sort', 'abs'"):
        convert(lenet(), activation="relu")
    with pytest.raises(ValueError, match="bias to be one of 'keep', 'drop'"):
        convert(lenet(), bias=True)
    with pytest.raises(ValueError, match="upper_bound"):
        convert(lenet(), upper_bound=0.0)
    with pytest.raises(ConversionError, match="upper_bound=2 would change tokens: pass upper_bound=3"):
        convert(text(), upper_bound=2.0)


# -- options, weights, sharing -------------------------------------------------------------------------------------


def test_activations_that_keep_norms():
    def classes(policy):
        model = keras.Sequential(
            [
                keras.Input((6,)),
                K.Dense(4, "relu"),
                K.Dense(3, "gelu"),
                K.PReLU(),
                K.Dense(4, "tanh"),
                K.Dense(2, "softplus"),
            ]
        )
        report = convert(model, activation=policy, bias="drop").report
        return [entry.to_classes[-1] for entry in report[1:]]

    assert classes("keep") == ["DP_ReLU", "DP_Lambda", "DP_LeakyReLU", "DP_Lambda", "DP_Lambda"]
    assert classes("group_sort") == ["DP_GroupSort", "DP_Abs", "DP_Abs", "DP_Lambda", "DP_GroupSort"]
    assert classes("abs") == ["DP_Abs", "DP_Abs", "DP_Abs", "DP_Lambda", "DP_Abs"]


def test_an_activation_at_the_end_is_dropped_only_there():
    report = conversion_report(functional((6,), lambda x: K.Dense(2, "sigmoid")(K.Dense(4, "sigmoid")(x))))
    assert [entry.to_classes[2:] for entry in report[1:]] == [("DP_Lambda",), ()]
    shared = K.Dense(6, "softmax")
    with pytest.raises(ConversionError, match="softmax inside"):
        convert(functional((6,), lambda x: shared(shared(x))))


def test_upper_bound_and_metadata():
    assert convert(lenet()).model.layers[0].upper_bound == UPPER_BOUND
    assert convert(lenet(), upper_bound=0.5).model.layers[0].upper_bound == 0.5


def test_weights_are_copied_and_projected():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            K.Conv2D(4, 3, name="conv"),
            K.SeparableConv2D(5, 3, name="separable", use_bias=False),
            K.Flatten(),
            K.Dense(4, name="dense"),
        ]
    )
    small = 1e-3 * np.ones((80, 4), "float32")
    model.get_layer("dense").set_weights([small, np.full(4, 7.0)])
    private = convert(model).model
    source, new = model.get_layer, private.get_layer
    np.testing.assert_array_equal(new("dense").kernel, small)  # its norm is below 1 already
    bias = new("dense_bias")
    assert bias.norm_max == pytest.approx(0.1 * UPPER_BOUND)
    np.testing.assert_allclose(bias.bias, np.full(4, 0.05 * UPPER_BOUND), **STORED)
    assert new("conv_bias").norm_max == pytest.approx(0.1 * UPPER_BOUND / 6)  # 6 x 6 positions
    for name, kernel in (
        ("conv", source("conv").kernel),
        ("separable_depthwise", source("separable").depthwise_kernel),
        ("separable_pointwise", source("separable").pointwise_kernel),
    ):
        np.testing.assert_allclose(new(name).kernel, new(name).project(kernel), **CLOSE)
        assert float(new(name).certified_norm()) <= 1.0
    fresh = convert(model, transfer_weights=False)
    assert not np.array_equal(fresh.model.get_layer("dense").kernel, small)
    assert not any("copied" in entry.note for entry in fresh.report)


def test_what_cannot_be_kept_is_said():
    layer = K.Dense(
        2,
        kernel_regularizer="l2",
        kernel_constraint="non_neg",
        bias_regularizer="l2",
        activity_regularizer="l2",
    )
    conversion = convert(functional((6,), layer))
    note = conversion.report[-1].note
    for words in ("kernel_constraint dropped", "bias_regularizer dropped", "activity_regularizer dropped"):
        assert words in note
    assert "kernel_regularizer" not in note
    assert conversion.model.layers[2].kernel_regularizer is not None


def test_frozen_layers_stay_frozen():
    model = lenet()
    model.layers[0].trainable = False
    private = convert(model).model
    assert [layer.name for layer in private.layers if layer.weights and not layer.trainable] == [
        model.layers[0].name,
        f"{model.layers[0].name}_bias",
    ]
    private.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
    assert len(lipdp.compute_gradient_bounds(private)) == 4


def test_a_shared_layer_stays_shared():
    shared, relu = K.Dense(6, name="shared"), K.ReLU(name="relu")
    conversion = convert(functional((6,), lambda x: K.Dense(2)(relu(shared(relu(shared(x)))))), bias="drop")
    assert [entry.layer for entry in conversion.report].count("shared") == 1
    private = conversion.model
    assert len(private.trainable_variables) == 2
    assert [type(call.layer).__name__ for call in private.layer_calls()].count("DP_QuickSpectralDense") == 3
    private.compile("sgd", DP_TauCategoricalCrossentropy(1.0))
    bounds = lipdp.compute_gradient_bounds(private)
    assert bounds["shared/kernel"] == pytest.approx(2 * next(iter(bounds.values())))


def test_a_sequential_that_uses_a_layer_twice_becomes_a_graph():
    shared = K.Dense(6)
    private = convert(keras.Sequential([keras.Input((6,)), shared, shared])).model
    assert isinstance(private, lipdp.DP_Model)
    assert len(private.trainable_variables) == 2


def test_a_layer_shared_at_two_sizes():
    conv = K.Conv2D(3, 3, padding="same", name="conv")
    with pytest.raises(ConversionError, match=r"conv .*\(None, 6, 6, 3\).*\(None, 3, 3, 3\)"):
        convert(functional((6, 6, 3), lambda x: conv(K.MaxPooling2D(2)(conv(x)))))


def test_nested_models_are_taken_apart():
    inner = functional((6,), lambda x: K.Add(name="merge")([K.Dense(6, name="dense")(x), x]))
    inner.name = "inner"
    outer = functional((6,), lambda x: K.Dense(2, name="dense")(inner(inner(x))))
    conversion = convert(outer, bias="drop")
    assert [entry.layer for entry in conversion.report[1:]] == ["inner", "inner/dense", "inner/merge", "dense"]
    private = conversion.model
    assert [call.layer.name for call in private.layer_calls()][1:] == [
        "inner_dense",
        "inner_merge",
        "inner_dense",
        "inner_merge_1",
        "dense",
    ]
    assert len(private.trainable_variables) == 2
    kernel = private.get_layer("inner_dense").kernel
    x = inside_the_guard((6,), 4)
    expected = x
    for _ in range(2):
        expected = (expected @ kernel.numpy() + expected) / 2
    np.testing.assert_allclose(private(x), expected @ private.get_layer("dense").kernel.numpy(), **CLOSE)


def test_models_without_a_shape():
    model = keras.Sequential([K.Conv2D(4, 3, activation="relu"), keras.Sequential([K.Flatten(), K.Dense(2)])])
    conversion = convert(model, (6, 6, 1))
    assert not model.built and not model.layers[0].built
    assert conversion.model.output_shape == (None, 2)
    assert not any("copied" in entry.note for entry in conversion.report)
    assert not conversion_report(model, input_shape=(6, 6, 1)).refused
    anywhere = functional((None, None, 3), lambda x: K.GlobalAveragePooling2D()(K.Conv2D(4, 3, name="conv")(x)))
    private = convert(anywhere, (6, 6, 3)).model
    kernel = private.get_layer("conv").kernel
    np.testing.assert_allclose(kernel, private.get_layer("conv").project(anywhere.get_layer("conv").kernel), **CLOSE)


def test_a_private_model_can_be_converted_too():
    private = convert(lenet()).model
    again = convert(private)
    assert {entry.note for entry in again.report[2:]} == {"kept", "weights copied, then projected; kept"}
    x = inside_the_guard((12, 12, 1), 3)
    np.testing.assert_allclose(again.model(x), private(x), **CLOSE)


def test_a_converted_model_loads_in_a_new_process(tmp_path):
    """After `import deel.lipdp.model` alone, as the README says."""
    plain = keras.Sequential([keras.Input((4, 4, 1)), K.Rescaling(0.5), K.Flatten(), K.Dense(NUM_CLASSES)])
    convert(plain).model.save(tmp_path / "model.keras")
    code = f"import deel.lipdp.model, keras; keras.models.load_model({str(tmp_path / 'model.keras')!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
