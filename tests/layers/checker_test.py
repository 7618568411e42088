"""`check_dp_layer` reports what is wrong with a layer by name: each layer here breaks one thing, on purpose."""

import math
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops

from deel.lipdp import layers
from deel.lipdp.testing import (
    ROUNDING_TOLERANCE,
    LayerCheckError,
    WorstCase,
    check_dp_layer,
    search_worst_case,
)

SMALL = {"restarts": 1, "steps": 3}

registered = keras.saving.register_keras_serializable(package="checker_test")


@registered
class ClipTo(keras.constraints.Constraint):
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, value):
        return ops.clip(value, -self.limit, self.limit)

    def get_config(self):
        return {"limit": self.limit}


@registered
class Sound(layers.DPLayer, keras.layers.Layer):
    """Multiplies each channel by `factor` and by a trainable number in [-1, 1]. Nothing is wrong with it."""

    constraint = ClipTo(1.0)

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape):
        self.scale = self.add_weight(
            name="scale", shape=(input_shape[-1],), initializer="ones", constraint=self.constraint
        )

    def call(self, inputs):
        return self.factor * self.scale * inputs

    def propagate_inputs(self, input_bound):
        return self.factor * input_bound

    def backpropagate_inputs(self, input_bound, gradient_bound):
        return self.factor * gradient_bound

    def backpropagate_params(self, input_bound, gradient_bound):
        return self.factor * input_bound * gradient_bound

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def failures(layer, input_shape=(4,), **kwargs):
    with pytest.raises(LayerCheckError) as caught:
        check_dp_layer(layer, input_shape, **{**SMALL, **kwargs})
    return caught.value.failures


@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 3, 2)], ids=["rank2", "rank3", "rank4"])
def test_a_sound_layer_passes_with_its_bounds_attained(shape):
    found = check_dp_layer(Sound(factor=3.0), shape, **SMALL)
    for ratio in (found.output, found.input_gradient, found.parameter_gradient):
        assert ratio == pytest.approx(1.0, abs=1e-4)
    assert found.joint_gradient is None


# -- bounds ----------------------------------------------------------------------------------------------------------

METHODS = {
    "output": "propagate_inputs",
    "input_gradient": "backpropagate_inputs",
    "parameter_gradient": "backpropagate_params",
}


@pytest.mark.parametrize("percent", [1, 6])
@pytest.mark.parametrize("name", METHODS)
def test_a_bound_too_low_is_reported(name, percent):
    def too_low(self, *bounds):
        return (1.0 - percent / 100.0) * getattr(Sound, METHODS[name])(self, *bounds)

    layer = Sound()
    layer.__class__ = registered(type(f"TooLow{percent}{name}", (Sound,), {METHODS[name]: too_low}))
    found = failures(layer)
    assert found["bounds"] == [f"{name}: found {1 / (1 - percent / 100):.6g} times the bound, in inference mode"]


# -- one thing broken in each ----------------------------------------------------------------------------------------


@registered
class Offset(Sound):
    def call(self, inputs):
        return super().call(inputs) + 0.01


@registered
class RootOfSquare(Sound):
    """Keras differentiates the root to NaN at 0."""

    def call(self, inputs):
        return super().call(ops.sqrt(ops.square(inputs)))


@registered
class Overflowing(Sound):
    def call(self, inputs):
        same = ops.power(inputs, 3) / ops.maximum(ops.square(inputs), 1e-20)
        return super().call(ops.where(ops.abs(inputs) > 1e3, same, inputs))


@registered
class SteepForTinyValues(Sound):
    """Denormal values get a gradient of 1e5."""

    def call(self, inputs):
        tiny = ops.abs(inputs) < 1e-36
        return super().call(ops.where(tiny, 1e5 * inputs, inputs))


@registered
class Mixing(Sound):
    def call(self, inputs):
        return super().call(inputs - 1e-3 * ops.mean(inputs, axis=0, keepdims=True))


@registered
class MixingInTraining(Sound):
    def call(self, inputs, training=False):
        mixed = inputs - 1e-3 * ops.mean(inputs, axis=0, keepdims=True)
        return super().call(mixed if training else inputs)


@registered
class MixingBackwards(Sound):
    def call(self, inputs):
        @ops.custom_gradient
        def identity(x):
            def grad(*args, upstream=None):
                g = args[0] if upstream is None else upstream
                return g - 1e-3 * ops.mean(g, axis=0, keepdims=True)

            return x, grad

        return super().call(identity(inputs))


@registered
class DividingByTheBatch(Sound):
    def call(self, inputs):
        return super().call(inputs) / max(inputs.shape[0] or 1, 1)


@registered
class NotForEmptyBatches(Sound):
    def call(self, inputs):
        if inputs.shape[0] == 0:
            raise ValueError("no example")
        return super().call(inputs)


@registered
class ForgettingItsFactor(Sound):
    def get_config(self):
        return keras.layers.Layer.get_config(self)


@registered
class Free(Sound):
    """Its variable may hold anything."""

    constraint = None


@registered
class LooseConstraint(Sound):
    constraint = ClipTo(1.5)


@registered
class SettingAnyWeights(Sound):
    def set_weights(self, weights):
        keras.layers.Layer.set_weights(self, weights)


@registered
class LoadingAnyWeights(Sound):
    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)


@registered
class ChangingGoodWeights(Sound):
    def set_weights(self, weights):
        super().set_weights([0.5 * w for w in weights])


@registered
class SinglePrecisionBound(Sound):
    def propagate_inputs(self, input_bound):
        return np.float32(2.0 * input_bound)


@registered
class TensorBound(Sound):
    def propagate_inputs(self, input_bound):
        return ops.convert_to_tensor(2.0 * input_bound, "float64")


@registered
class InfiniteBound(Sound):
    def backpropagate_inputs(self, input_bound, gradient_bound):
        return math.inf


@registered
class ConstantGradientBound(Sound):
    def backpropagate_params(self, input_bound, gradient_bound):
        return 1e30


@registered
class ShiftedGradientBound(Sound):
    def backpropagate_inputs(self, input_bound, gradient_bound):
        return 2.0 * gradient_bound + 1e-12


@registered
class NoTensors(Sound):
    def backpropagate_inputs(self, input_bound, gradient_bound):
        return 2.0 * math.fabs(gradient_bound)


@registered
class FallingBound(Sound):
    def propagate_inputs(self, input_bound):
        return 2.0 * input_bound if input_bound < 1.5 else 1.0


@registered
class LyingAboutParameters(Sound):
    def has_parameters(self):
        return False


@registered
class RefusingItself(Sound):
    def check(self):
        raise ValueError("something was changed")


@registered
class Counting(Sound):
    """Every call returns less than the one before it."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return super().call(inputs) / self.calls


@registered
class CountingInTraining(Sound):
    def build(self, input_shape):
        super().build(input_shape)
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)

    def call(self, inputs, training=False):
        if training:
            self.count.assign_add(1.0)
        return super().call(inputs)


@registered
class RandomFromNowhere(Sound):
    """Random numbers of Keras's global generator."""

    def call(self, inputs, training=False):
        return super().call(keras.random.dropout(inputs, 0.5) / 2.0 if training else inputs)


@registered
class WrongShape(Sound):
    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] + 1)


@registered
class ForgettingTheMask(keras.layers.Dropout, Sound):
    """Dropout divides by 1 - rate, in training."""

    def __init__(self, rate=0.5, **kwargs):
        kwargs.pop("factor", None)
        super().__init__(rate, **kwargs)
        self.factor = 1.0

    def build(self, input_shape):
        self.built = True

    call = keras.layers.Dropout.call


class NotRegistered(Sound):
    pass


@registered
class OneBoundForTwoInputs(layers.DP_Add):
    def backpropagate_inputs(self, input_bound, gradient_bound):
        return gradient_bound


@registered
class JointAdd(layers.DP_Add):
    joint_gradient = True


@registered
class LowSplit(layers.DP_SplitResidual):
    """True for either output alone."""

    def backpropagate_inputs(self, input_bound, gradient_bound):
        return 1.0 * gradient_bound[0]


@registered
class LowForTheSecondInput(layers.DP_Concatenate):
    def backpropagate_inputs(self, input_bound, gradient_bound):
        return gradient_bound, 0.99 * gradient_bound


IMAGES = [(2, 3, 2), (2, 3, 2)]
EXTREMES = {"zero_input", "extreme_inputs"}
MIXED = {"examples_independent", "batch_sizes"}
WEIGHTS = {"bounds", "bounds_after_updates", "weights_from_outside"}
LOW = {"bounds", *EXTREMES}

BROKEN = [
    (Offset, (4,), {*WEIGHTS, *EXTREMES}, "zero_input: output: found 0.02, claimed 0"),
    (RootOfSquare, (4,), {*WEIGHTS, *EXTREMES}, "zero_input: input_gradient: found nan"),
    (Overflowing, (4,), {"extreme_inputs"}, "output: found inf"),
    (SteepForTinyValues, (4,), {*WEIGHTS, *EXTREMES}, "input_gradient: found"),
    (Mixing, (4,), MIXED, "output: changes with another example of the batch, in inference mode"),
    (MixingInTraining, (4,), MIXED, "output: changes with another example of the batch, in training mode"),
    (MixingBackwards, (4,), MIXED, "input_gradient: changes with another example of the batch"),
    (DividingByTheBatch, (4,), MIXED, "parameter_gradient: that of a batch is not the sum"),
    (
        NotForEmptyBatches,
        (4,),
        {"batch_sizes"},
        "batch_sizes: raised ValueError: Exception encountered when calling NotForEmptyBatches.call(). no example",
    ),
    (lambda: ForgettingItsFactor(3.0), (4,), {"config", "saving"}, "config: the copy's bounds are"),
    (Free, (4,), WEIGHTS, "after noise of size 10000"),
    (LooseConstraint, (4,), WEIGHTS, "output: found 1.5 times the bound"),
    (SettingAnyWeights, (4,), {"weights_from_outside"}, "times the bound, in inference mode, after set_weights"),
    (LoadingAnyWeights, (4,), {"weights_from_outside"}, "times the bound, in inference mode, after load_weights"),
    (ChangingGoodWeights, (4,), {"config", "weights_from_outside"}, "set_weights changes admissible weights"),
    (SinglePrecisionBound, (4,), {"bound_values"}, "positive and finite Python float, received np.float32(2.0)"),
    (TensorBound, (4,), {"bound_values"}, "expected a positive and finite Python float, received <tf.Tensor"),
    (InfiniteBound, (4,), {"bound_values"}, "expected a positive and finite Python float, received inf"),
    (ConstantGradientBound, (4,), {"bound_values"}, "1e+30 for a gradient bound 1e+10 times as large"),
    (ShiftedGradientBound, (4,), {"bound_values"}, "for a gradient bound 1e+10 times as large"),
    (NoTensors, (4,), {"bound_values"}, "bound_values: raised TypeError"),
    (
        FallingBound,
        (4,),
        {"bound_values", "extreme_inputs"},
        "output: falls from 2 to 1 when the input bound is doubled",
    ),
    (LyingAboutParameters, (4,), {"bound_values"}, "has_parameters() is False"),
    (RefusingItself, (4,), {"bound_values"}, "raised ValueError: something was changed"),
    (Counting, (4,), {"no_state"}, "a call repeated gives another result, in inference mode"),
    (CountingInTraining, (4,), {"no_state"}, "a call changes the layer's weights, in training mode"),
    (RandomFromNowhere, (4,), {"no_state"}, "in training mode: it depends on calls before it, or on random numbers"),
    (WrongShape, (4,), {"output_shape"}, "compute_output_shape says [(None, 5)], outputs have [(None, 4)]"),
    (ForgettingTheMask, (4,), LOW, "output: found 2 times the bound, in training mode"),
    (NotRegistered, (4,), {"config", "saving"}, "NotRegistered"),
    (
        OneBoundForTwoInputs,
        IMAGES,
        {"bound_values", "config", "saving", *LOW},
        "the bound has to be a tuple of 2, it is 1.0",
    ),
    (JointAdd, IMAGES, LOW, "joint_gradient: found 1.41421 times the bound"),
    (LowSplit, (4,), LOW, "input_gradient: found 2 times the bound"),
    (LowForTheSecondInput, IMAGES, {"bounds"}, "input_gradient: found 1.0101 times the bound"),
]


@pytest.mark.parametrize(
    ("make", "input_shape", "names", "text"), BROKEN, ids=[getattr(make, "__name__", "") for make, *_ in BROKEN]
)
def test_each_broken_layer_is_reported_by_name(make, input_shape, names, text):
    with pytest.raises(LayerCheckError) as caught:
        check_dp_layer(make(), input_shape, **SMALL)
    assert text in str(caught.value)
    assert set(caught.value.failures) == names


# -- what else is promised -------------------------------------------------------------------------------------------


@registered
class Hopeless(Mixing, WrongShape, FallingBound):
    pass


def test_one_message_lists_everything():
    with pytest.raises(AssertionError) as caught:
        check_dp_layer(Hopeless(name="here"), (4,), **SMALL)
    names = ["bound_values", "extreme_inputs", "examples_independent", "batch_sizes", "output_shape"]
    assert list(caught.value.failures) == names
    head, *lines = str(caught.value).splitlines()
    assert head == "Hopeless 'here' fails 5 of 12 checks:"
    assert [re.match(r"- (\w+): ", line).group(1) for line in lines] == [
        name for name, texts in caught.value.failures.items() for _ in texts
    ]


@registered
class Raising(Sound):
    def compute_output_shape(self, input_shape):
        raise KeyError("shape")


def test_the_first_exception_of_the_layer_is_kept():
    with pytest.raises(LayerCheckError, match="output_shape: raised KeyError: 'shape'") as caught:
        check_dp_layer(Raising(), (4,), **SMALL)
    assert isinstance(caught.value.__cause__, KeyError)


@registered
class SoundDropout(keras.layers.Dropout, Sound):
    """Keras's dropout with its bounds, in both modes."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(rate, **kwargs)
        self.factor = 1.0 / (1.0 - rate)

    def build(self, input_shape):
        self.built = True

    call = keras.layers.Dropout.call

    def get_config(self):
        return keras.layers.Dropout.get_config(self)


@pytest.mark.parametrize("make", [SoundDropout, lambda: layers.DP_Dropout(0.5)], ids=["of Keras", "hidden"])
def test_random_layers_are_searched_in_training_and_their_generators_rewound(make):
    layer = make()
    found = check_dp_layer(layer, (5,), **SMALL)
    assert found.output == pytest.approx(1.0, abs=1e-4)
    assert found.input_gradient == pytest.approx(1.0, abs=1e-4)


def test_weights_are_put_back():
    layer = Sound()
    layer.build((None, 4))
    layer.scale.assign([0.5, -0.25, 1.0, 0.0])
    for try_it in (check_dp_layer, search_worst_case):
        try_it(layer, (4,), **SMALL)
        np.testing.assert_array_equal(layer.scale.numpy(), np.float32([0.5, -0.25, 1.0, 0.0]))


def test_several_inputs_and_outputs_have_bounds_of_their_own():
    wrapped = layers.DP_WrappedResidual(Sound())
    found = check_dp_layer(wrapped, [(4,), (3,)], input_bound=(2.0, 1e3), gradient_bound=(0.1, 5.0), **SMALL)
    for ratio in (found.output, found.input_gradient, found.parameter_gradient):
        assert ratio == pytest.approx(1.0, abs=1e-4)
    found = check_dp_layer(layers.DP_Concatenate(), [(4,), (3,)], **SMALL)
    assert found.joint_gradient == pytest.approx(1.0, abs=1e-4)


class SteepInside(layers.DPLayer, keras.layers.Layer):
    """Its slope is 1 at 0.3 only, and small at 0 and at the bound, where power iteration ends."""

    def call(self, inputs):
        return 0.1 * math.sqrt(math.pi) * ops.erf((inputs - 0.3) / 0.2)

    def propagate_inputs(self, input_bound):
        return input_bound + 0.2

    def backpropagate_inputs(self, input_bound, gradient_bound):
        return 0.95 * gradient_bound


def test_search_goes_uphill_inside_the_ball():
    found = search_worst_case(SteepInside(), (1,), restarts=1, steps=15)
    assert found.violations() == ["input_gradient"]
    assert found.input_gradient == pytest.approx(1.0 / 0.95, rel=1e-3)


class WeightsToFind(Sound):
    """Attains its bounds where its variable points along the first axis."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.scale = self.add_weight(
            name="scale", shape=(size,), initializer="zeros", constraint=keras.constraints.MaxNorm(1.0, axis=0)
        )

    def call(self, inputs):
        return inputs * (1.0 + self.scale[0] + 0.0 * self.scale)


def test_search_improves_the_worst_weights():
    # Random weights of norm 1 in 50 dimensions have a first entry of about 0.14: the output is at most 1.14 / 2 of its
    # bound there.
    found = search_worst_case(WeightsToFind(), (50,), restarts=1, steps=3)
    assert found.output == pytest.approx(1.0, abs=1e-3)


def test_worst_case_names_what_was_exceeded_and_counts_non_finite_as_exceeded():
    assert WorstCase(1.0 + 0.5 * ROUNDING_TOLERANCE, 0.9, None).violations() == []
    assert WorstCase(1.01, math.inf, 1.02, 1.03).violations() == [
        "output",
        "input_gradient",
        "parameter_gradient",
        "joint_gradient",
    ]
    assert WorstCase(0.5, 0.9, None, 0.1) | WorstCase(0.6, 0.8, 0.3) == WorstCase(0.6, 0.9, 0.3, 0.1)


@pytest.mark.parametrize("bound", [math.nan, 0.0, -1.0])
def test_a_bound_that_is_no_bound_is_exceeded(bound):
    class Abs(layers.DP_Abs):
        def propagate_inputs(self, input_bound):
            return bound

    assert search_worst_case(Abs(), (3,), restarts=1, steps=1).violations() == ["output"]


@pytest.mark.parametrize("try_it", [check_dp_layer, search_worst_case])
def test_arguments_are_checked(try_it):
    who = try_it.__name__
    for name in ("input_bound", "gradient_bound"):
        with pytest.raises(ValueError, match=f"{who}: expected {name}.*Received: {name}=0"):
            try_it(layers.DP_Abs(), (3,), **{name: 0.0})
        with pytest.raises(ValueError, match=rf"{who}: expected one {name} or 1 of them.*{name}=\(1.0, 2.0\)"):
            try_it(layers.DP_Abs(), (3,), **{name: (1.0, 2.0)})
    for layer in (keras.layers.ReLU(), layers.DP_InputLayer((3,)), layers.DP_Abs):
        with pytest.raises(TypeError, match=f"{who}: expected a layer with bounds"):
            try_it(layer, (3,))


def test_two_variables_are_refused():
    class Two(layers.DPLayer, keras.layers.Layer):
        def build(self, input_shape):
            self.a, self.b = self.add_weight(name="a"), self.add_weight(name="b")

    with pytest.raises(ValueError, match="at most one trainable variable.*'a', 'b'"):
        search_worst_case(Two(), (3,))


GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "adding_a_layer.md"


def test_the_guide_to_adding_a_layer_runs():
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    namespace = {"__name__": "adding_a_layer"}
    for block in blocks:
        exec(compile(block, GUIDE.name, "exec"), namespace)
    assert namespace["worst"].violations() == []
    assert namespace["worst"].parameter_gradient == pytest.approx(1.0, abs=1e-3)
    assert "bounds" in namespace["error"].failures
