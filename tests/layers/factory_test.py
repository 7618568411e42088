"""`DP_GNP_Factory`: a claim taken from the caller, unless it can be seen to be false."""

import deel.lip.layers
import keras
import numpy as np
import pytest
from keras import ops

from deel.lipdp import layers
from deel.lipdp.layers import DP_GNP_Factory
from deel.lipdp.testing import search_worst_case


@keras.saving.register_keras_serializable(package="factory_test")
class Halved(keras.layers.Layer):
    """A layer of another library."""

    def __init__(self, factor=0.5, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return self.factor * inputs

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


MADE = [
    (keras.layers.ZeroPadding2D, {"padding": 2}, (3, 4, 2)),
    (keras.layers.Cropping2D, {"cropping": 1}, (5, 4, 2)),
    (keras.layers.GlobalMaxPooling2D, {}, (3, 4, 2)),
    (keras.layers.ZeroPadding1D, {}, (3, 2)),
    (keras.layers.Identity, {}, (3, 2)),
    (deel.lip.layers.ScaledAveragePooling2D, {"pool_size": (2, 2)}, (4, 6, 2)),
    (deel.lip.layers.ScaledL2NormPooling2D, {"pool_size": (2, 2)}, (4, 6, 2)),
    (deel.lip.layers.ScaledGlobalL2NormPooling2D, {}, (3, 4, 2)),
    (deel.lip.layers.ScaledGlobalAveragePooling2D, {}, (3, 4, 2)),
    (deel.lip.layers.InvertibleDownSampling, {"pool_size": (2, 2)}, (4, 4, 2)),
    (Halved, {}, (4,)),
]
made = pytest.mark.parametrize(("cls", "arguments", "input_shape"), MADE, ids=[cls.__name__ for cls, *_ in MADE])


@made
def test_the_claim_is_the_bounds_and_holds(cls, arguments, input_shape):
    layer = DP_GNP_Factory(cls)(**arguments)
    assert isinstance(layer, layers.NonExpansive) and isinstance(layer, cls)
    assert type(layer).__name__ == f"DP_{cls.__name__}"
    assert type(layer).__doc__
    assert search_worst_case(layer, input_shape, restarts=2, steps=4).violations() == []
    layer.check()
    assert not layer.has_parameters()
    assert (layer.propagate_inputs(2.0), layer.backpropagate_inputs(2.0, 3.0)) == (2.0, 3.0)


@made
def test_computes_what_the_class_computes_and_is_saved(cls, arguments, input_shape, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, *input_shape)).astype("float32")
    expected = np.asarray(cls(**arguments)(x))
    model = keras.Sequential([keras.Input(input_shape), DP_GNP_Factory(cls)(**arguments)])
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is DP_GNP_Factory(cls)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)


def test_the_same_class_for_the_same_class():
    assert DP_GNP_Factory(Halved) is DP_GNP_Factory(Halved)
    assert DP_GNP_Factory(Halved) is not DP_GNP_Factory(keras.layers.Identity)


def test_a_class_of_a_name_of_ours_leaves_ours_alone():
    flatten = DP_GNP_Factory(keras.layers.Flatten)
    assert flatten.__name__ == "DP_Flatten"
    config = keras.saving.serialize_keras_object(layers.DP_Flatten())
    assert type(keras.saving.deserialize_keras_object(config)) is layers.DP_Flatten


def test_the_search_finds_a_false_claim():
    found = search_worst_case(DP_GNP_Factory(Halved)(factor=3.0), (4,), restarts=1, steps=2)
    assert found.violations() == ["output", "input_gradient"]


class NotRegisteredNoise(keras.layers.GaussianNoise):
    pass


UNSOUND = [
    (keras.layers.BatchNormalization, "mixes examples"),
    (keras.layers.Dropout, "known seed.*DP_Dropout"),
    (keras.layers.SpatialDropout2D, "known seed.*DP_Dropout"),
    (keras.layers.GaussianNoise, "known seed"),
    (NotRegisteredNoise, "known seed"),
    (keras.layers.Lambda, "DP_Lambda"),
    (keras.Model, "one by one"),
    (keras.Sequential, "one by one"),
    (keras.layers.InputLayer, "DP_InputLayer"),
    (keras.layers.ReLU, "counterpart"),
    (keras.layers.MaxPooling2D, "counterpart"),
    (keras.layers.AveragePooling2D, "counterpart"),
    (keras.layers.Dense, "counterpart"),
    (keras.layers.LayerNormalization, "counterpart"),
    (keras.layers.Softmax, "counterpart"),
    (keras.layers.UpSampling2D, "counterpart"),
    (keras.layers.RepeatVector, "counterpart"),
    (keras.layers.Layer, "counterpart"),
    (deel.lip.layers.activations.GroupSort, "ties.*DP_GroupSort"),
    (deel.lip.layers.activations.GroupSort2, "ties.*DP_GroupSort"),
    (deel.lip.layers.activations.FullSort, "ties.*DP_FullSort"),
]


@pytest.mark.parametrize(("cls", "pattern"), UNSOUND, ids=[cls.__name__ for cls, _ in UNSOUND])
def test_what_is_known_to_be_unsound_is_refused(cls, pattern):
    with pytest.raises(ValueError, match=f"DP_GNP_Factory: expected.*{cls.__name__}.*{pattern}"):
        DP_GNP_Factory(cls)


@pytest.mark.parametrize(
    "value", [keras.layers.ReLU(), keras.losses.MeanSquaredError, np.tanh, "ReLU", None, [], int], ids=repr
)
def test_what_is_no_layer_class_is_refused(value):
    with pytest.raises(TypeError, match="DP_GNP_Factory: expected a class of Keras layers"):
        DP_GNP_Factory(value)


@pytest.mark.parametrize("cls", [layers.DP_Abs, layers.DP_QuickSpectralDense])
def test_what_has_bounds_already_is_refused(cls):
    with pytest.raises(TypeError, match=f"DP_GNP_Factory.*{cls.__name__}.*Use it as it is"):
        DP_GNP_Factory(cls)


class Scale(keras.layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=())

    def call(self, inputs):
        return self.scale * inputs


class Counter(Scale):
    def build(self, input_shape):
        self.scale = self.add_weight(name="seen", shape=(), trainable=False, initializer="ones")


class Noisy(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def build(self, input_shape):
        pass

    def call(self, inputs):
        return inputs + keras.random.normal(ops.shape(inputs), seed=self.seed_generator)


@pytest.mark.parametrize(("cls", "name"), [(Scale, "scale"), (Counter, "seen"), (Noisy, "seed_generator_state")])
def test_variables_are_refused_at_build(cls, name):
    with pytest.raises(ValueError, match=f"DP_{cls.__name__} .*without variables.*{name}"):
        DP_GNP_Factory(cls)()(np.ones((2, 3), "float32"))


@pytest.mark.parametrize("constant", [5.0, -1.0])
def test_another_constant_of_deel_lip_is_refused(constant):
    pool = DP_GNP_Factory(deel.lip.layers.ScaledL2NormPooling2D)
    with pytest.raises(ValueError, match=f"DP_ScaledL2NormPooling2D .*k_coef_lip={constant}"):
        pool((2, 2), k_coef_lip=constant).build((None, 4, 4, 1))
    layer = pool((2, 2))
    layer.build((None, 4, 4, 1))
    layer.set_klip_factor(constant)
    with pytest.raises(ValueError, match=f"k_coef_lip={constant}"):
        layer.check()
