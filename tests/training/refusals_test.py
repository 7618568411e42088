"""Bad input is refused before any training, with who, expected, received and remedy; nothing is counted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import NUM_CLASSES, SHAPE, data, layer_list, metadata, model, parameters

from deel.lipdp.bounds import ROUNDING_SLACK
from deel.lipdp.layers import (
    DP_BoundedInput,
    DP_ClipGradient,
    DP_Flatten,
    DP_Lambda,
    DP_MergeResidual,
    DP_QuickSpectralConv2D,
    DP_QuickSpectralDense,
    DP_ScaledL2NormPooling2D,
    DP_SplitResidual,
    DP_WrappedResidual,
    DPLayer,
)
from deel.lipdp.losses import DP_TauBCE, DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Model, DP_Sequential, compute_gradient_bounds, get_eps_delta
from deel.lipdp.parameters import DatasetMetadata, DPParameters
from deel.lipdp.sampling import poisson_batches
from deel.lipdp.sensitivity import get_max_epochs

BOTH = pytest.mark.parametrize("cls", [DP_Sequential, DP_Model])


def dense_list(*layers, **dense_arguments):
    head = [DP_BoundedInput(3.0, input_shape=SHAPE), DP_Flatten()]
    return [*head, *layers, DP_QuickSpectralDense(NUM_CLASSES, name="logits", **dense_arguments)]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("best", 1.0, 1e-5), TypeError, "noisify_strategy.*'optimal'"),
        ((["global"], 1.0, 1e-5), TypeError, "noisify_strategy"),
        (("global", -1.0, 1e-5), ValueError, "noise_multiplier"),
        (("global", float("nan"), 1e-5), ValueError, "noise_multiplier"),
        (("global", float("inf"), 1e-5), ValueError, "noise_multiplier"),
        (("global", "1", 1e-5), TypeError, "noise_multiplier"),
        (("global", 1.0, 0.0), ValueError, "delta"),
        (("global", 1.0, 1.0), ValueError, "delta"),
        (("global", 1.0, 1e-5, 1.5), TypeError, "noise_seed"),
    ],
)
def test_parameters(arguments, error, words):
    with pytest.raises(error, match=words) as refusal:
        DPParameters(*arguments)
    assert str(refusal.value).endswith(".")  # where there is no remedy, no space stands for it


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"input_shape": 6}, TypeError, "input_shape"),
        ({"input_shape": (6, 0)}, ValueError, "input_shape"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 41}, ValueError, "batch_size"),
        ({"nb_samples_train": 0}, ValueError, "nb_samples_train"),
        ({"nb_samples_train": 4.5}, TypeError, "nb_samples_train"),
        ({"max_norm": 0.0}, ValueError, "max_norm"),
        ({"max_norm": -1.0}, ValueError, "max_norm"),
        ({"nb_steps_per_epochs": 0}, ValueError, "nb_steps_per_epochs"),
        ({"sampling": "bootstrap"}, ValueError, "'poisson'"),
    ],
)
def test_metadata(changes, error, words):
    good = {"input_shape": SHAPE, "nb_samples_train": 40, "batch_size": 8, "max_norm": 1.0}
    assert DatasetMetadata(**good).nb_steps_per_epochs == 5
    with pytest.raises(error, match=words):
        DatasetMetadata(**{**good, **changes})


@BOTH
def test_a_layer_without_bounds(cls):
    with pytest.raises(TypeError, match="Dropout 'drop'.*DPLayer"):
        model(dense_list(keras.layers.Dropout(0.5, name="drop")), cls=cls)


class Own(keras.layers.Layer):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: keras.layers.Dense(36), "Use DP_QuickSpectralDense; deel.lipdp.convert replaces"),
        (lambda: keras.layers.Dense(36, "relu"), "Use DP_QuickSpectralDense and DP_ReLU; deel.lipdp.convert"),
        (lambda: keras.layers.Embedding(10, 2), "Use DP_Embedding; "),
        (lambda: keras.layers.BatchNormalization(), "Leave it out: it mixes the examples of a batch"),
        (lambda: keras.layers.Softmax(), "Leave it out: the losses take logits."),
        (lambda: keras.layers.Activation("softmax"), "Leave it out: the losses take logits."),
        (lambda: keras.layers.GaussianNoise(0.1), "Its random numbers come from a known seed: leave it out"),
        (lambda: keras.layers.ZeroPadding2D(), "Use DP_GNP_Factory\\(keras.layers.ZeroPadding2D\\); "),
        (Own, "No counterpart of .*Own is known: subclass DPLayer"),
    ],
)
@pytest.mark.parametrize("cls", [DP_Sequential, DP_Model, None])
def test_a_plain_layer_is_refused_by_the_name_of_its_counterpart(make, remedy, cls):
    """None: a list whose layers were not built yet."""
    layers = dense_list(make()) if "ZeroPadding" not in remedy else [DP_BoundedInput(3.0, input_shape=SHAPE), make()]
    if cls is None:
        layers[0] = DP_BoundedInput(3.0)
    with pytest.raises(TypeError, match=f"a layer with bounds .*{remedy}"):
        model(layers, cls=cls or DP_Sequential)


def test_plain_merges_are_refused_by_the_name_of_their_counterpart():
    for merge in (keras.layers.Add(), keras.ops.add, lambda pair: pair[0] + pair[1]):
        inputs = keras.Input(SHAPE)
        x = DP_Flatten()(DP_BoundedInput(3.0)(inputs))
        pair = [DP_QuickSpectralDense(4)(x) for _ in range(2)]
        outputs = merge(*pair) if merge is keras.ops.add else merge(pair)
        with pytest.raises(TypeError, match="a layer with bounds .*Use DP_MergeResidual; .*DP_Add is the sum"):
            DP_Model(inputs=inputs, outputs=outputs, dp_parameters=parameters(), dataset_metadata=metadata())


@BOTH
def test_a_layer_that_states_nothing(cls):
    class Silent(DPLayer, keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

        def compute_output_shape(self, input_shape):
            return input_shape

    private = model(dense_list(Silent(name="silent")), cls=cls)
    with pytest.raises(TypeError, match="Silent 'silent'.*propagate_inputs"):
        private.train_on_batch(*data(8))
    assert private.ledger.steps == 0


@BOTH
def test_no_input_guard(cls):
    with pytest.raises(ValueError, match="DP_BoundedInput"):
        model(dense_list()[1:], cls=cls)


def test_a_layer_listed_twice():
    square = DP_QuickSpectralDense(36, name="square")
    with pytest.raises(ValueError, match="'square'.*DP_Model"):
        model(dense_list(square, square), cls=DP_Sequential)


@BOTH
def test_two_variables_under_one_key(cls):
    twins = [DP_QuickSpectralDense(36, name="twin"), DP_QuickSpectralDense(36, name="twin")]
    with pytest.raises(ValueError, match="twin"):
        model(dense_list(*twins), cls=cls)


def test_one_variable_in_two_layers():
    square = DP_QuickSpectralDense(36, name="square")
    twice = [layer for wrapper in ("a", "b") for layer in [DP_WrappedResidual(square, name=wrapper)]]
    with pytest.raises(ValueError, match="each variable in one layer.*'a/kernel', 'b/kernel'"):
        model(dense_list(DP_SplitResidual(), *twice, DP_MergeResidual()), cls=DP_Model)


def test_a_trainable_variable_outside_the_list():
    private = DP_Sequential(layer_list(), dp_parameters=parameters(), dataset_metadata=metadata())
    private.extra = private.add_weight(name="extra", shape=(2,))
    with pytest.raises(ValueError, match="extra"):
        private.compile(loss=DP_TauCategoricalCrossentropy())


def test_a_model_built_for_another_shape_than_the_metadata_say():
    layers = [DP_BoundedInput(3.0, input_shape=(5, 5, 1)), *layer_list()[1:]]
    with pytest.raises(ValueError, match=r"\(None, 5, 5, 1\)"):
        model(layers)


def test_activity_regularizer_and_add_loss():
    private = model(dense_list())
    private.layers[-1].activity_regularizer = keras.regularizers.L2(100.0)
    with pytest.raises(ValueError, match="activity_regularizer"):
        private.train_on_batch(*data(8))

    class Adds(DP_Flatten):
        def call(self, inputs):
            self.add_loss(keras.ops.sum(inputs**2))
            return super().call(inputs)

    private = model([DP_BoundedInput(3.0, input_shape=SHAPE), Adds(), DP_QuickSpectralDense(4)])
    private(data(8)[0])
    with pytest.raises(ValueError, match="add_loss"):
        private.train_on_batch(*data(8))


def test_a_layer_built_for_another_image_size():
    conv = DP_QuickSpectralConv2D(4, 3, padding="same", name="conv")
    conv.build((None, 2, 2, 1))  # its certificate and window count hold there only
    layers = [DP_BoundedInput(3.0, input_shape=SHAPE), conv, DP_Flatten(), DP_QuickSpectralDense(4)]
    with pytest.raises(ValueError, match=r"conv.*\(None, 2, 2, 1\)"):
        model(layers)


def test_layers_changed_after_construction():
    x, y = data(8)
    for change in (
        lambda layer: setattr(layer, "activation", lambda z: 10 * z),
        lambda layer: setattr(layer, "use_bias", True),
        lambda layer: setattr(layer.kernel, "constraint", None),
    ):
        private = model(dense_list())
        change(private.layers[-1])
        with pytest.raises(ValueError, match="Make a new layer"):
            private.train_on_batch(x, y)


def test_bounds_beyond_single_precision():
    x, y = data(8)
    with pytest.raises(ValueError, match="stddev"):  # it would be flushed to zero
        model([DP_BoundedInput(1e-36, input_shape=SHAPE), *dense_list()[1:]]).train_on_batch(x, y)
    overlapping = [DP_ScaledL2NormPooling2D(2, strides=1, padding="same") for _ in range(2)]
    layers = [DP_BoundedInput(1e15, input_shape=SHAPE), *overlapping, DP_Flatten(), DP_QuickSpectralDense(4)]
    with pytest.raises(ValueError, match="output norm"):
        model(layers).train_on_batch(x, y)


def test_mixed_precision():
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        model(dense_list(dtype="mixed_bfloat16"))


@pytest.mark.parametrize("loss", ["mse", None, keras.losses.Huber(), ["mse", "mse"]])
def test_a_loss_without_a_bound(loss):
    private = model(dense_list())
    with pytest.raises(ValueError, match="deel.lipdp.losses") as refusal:
        private.compile(loss=loss)
    one_loss = loss is not None and not isinstance(loss, list)
    assert ("from_logits=True" in str(refusal.value)) is one_loss


@pytest.mark.parametrize(("num_outputs", "warnings"), [(None, 1), (NUM_CLASSES, 0)])
def test_a_mean_over_an_unstated_number_of_outputs_warns(num_outputs, warnings, caplog):
    private = model(dense_list(), loss=DP_TauBCE(num_outputs=num_outputs))
    said = [record for record in caplog.records if "num_outputs=4" in record.getMessage()]
    assert len(said) == warnings
    expected = 3.0 / (NUM_CLASSES**0.5 if num_outputs else 1.0) * (1 + ROUNDING_SLACK)
    assert compute_gradient_bounds(private)["logits/kernel"] == pytest.approx(expected)


def test_a_foreign_loss_with_the_remedy_is_accepted():
    x, y = data(8)
    private = model([*dense_list(), DP_ClipGradient(0.5)], loss=keras.losses.Huber())
    private.train_on_batch(x, y)
    assert compute_gradient_bounds(private)["logits/kernel"] == pytest.approx(3.0 * 0.5 * (1 + ROUNDING_SLACK))


def warnings_of(caplog, words):
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


@pytest.mark.parametrize(
    ("loss", "remedy"),
    [
        ("categorical_crossentropy", "CategoricalCrossentropy"),
        ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"),
        ("bce", "BinaryCrossentropy"),
        (keras.losses.BinaryCrossentropy(), "BinaryCrossentropy"),
        (keras.losses.CategoricalFocalCrossentropy(), "CategoricalFocalCrossentropy"),
    ],
)
@BOTH
def test_a_loss_of_probabilities_on_logits_warns(loss, remedy, cls, caplog):
    private = model([*dense_list(), DP_ClipGradient(0.5)], cls=cls, loss=loss)
    [warning] = warnings_of(caplog, "takes probabilities")
    assert private.name in warning and f"keras.losses.{remedy}(from_logits=True)" in warning
    assert isinstance(getattr(keras.losses, remedy)(from_logits=True), keras.losses.Loss)
    assert "deel.lipdp.losses" in warning


def _own_loss(y_true, y_pred, from_logits=False):
    return keras.losses.mean_squared_error(y_true, y_pred)


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        ([], keras.losses.CategoricalCrossentropy(from_logits=True)),
        ([], keras.losses.Huber()),
        ([], "mse"),
        ([DP_Lambda(keras.activations.sigmoid, lipschitz_constant=0.25, norm_at_zero=1.0)], "binary_crossentropy"),
        ([DP_Lambda(tf.nn.softmax, lipschitz_constant=0.5, norm_at_zero=1.0)], "categorical_crossentropy"),
        ([], _own_loss),
    ],
)
def test_a_loss_of_what_the_model_gives_does_not_warn(last, loss, caplog):
    model([*dense_list(), *last, DP_ClipGradient(0.5)], loss=loss)
    assert not warnings_of(caplog, "takes probabilities")


@pytest.mark.parametrize(("upper_bound", "count"), [(3.0, 0), (0.5, 0), (3.1, 1), (300.0, 1)])
@BOTH
def test_a_guard_wider_than_the_data_warns(upper_bound, count, cls, caplog):
    model([DP_BoundedInput(upper_bound, input_shape=SHAPE), *dense_list()[1:]], cls=cls)
    found = warnings_of(caplog, "max_norm=3 of the metadata")
    assert len(found) == count and all(f"upper_bound={upper_bound:g}" in warning for warning in found)


def test_dense_labels_for_a_one_hot_loss():
    x, y = data(8)
    private = model(dense_list())
    with pytest.raises(ValueError, match="one-hot"):
        private.train_on_batch(x, y.argmax(1))
    assert private.ledger.steps == 0


@pytest.mark.parametrize("labels", [(8,), (8, 1), (8, 2)])
def test_one_output_for_a_one_hot_loss(labels):
    private = model([*dense_list()[:-1], DP_QuickSpectralDense(1)])
    with pytest.raises(ValueError, match=r"two or more classes. Received: logits of shape .*1\). Use DP_TauBCE"):
        private.train_on_batch(data(8)[0], np.zeros(labels, "float32"))
    assert private.ledger.steps == 0


@pytest.mark.parametrize("loss_weights", [10, [10.0], -1, [0.5, 0.5]])
def test_loss_weights(loss_weights):
    with pytest.raises(ValueError, match="loss_weights"):
        model().compile(loss=DP_TauCategoricalCrossentropy(), loss_weights=loss_weights)


def test_class_weights_above_one():
    x, y = data(8)
    private = model()
    with pytest.raises(ValueError, match="largest"):
        private.fit(x, y, class_weight={0: 10.0, 1: 1.0, 2: 1.0, 3: 1.0})
    with pytest.raises(ValueError, match="class_weight to be a dict.*'balanced'"):
        private.fit(x, y, class_weight="balanced")
    private.fit(x, y, class_weight={0: 1.0, 1: 0.1, 2: 0.1, 3: 0.1}, verbose=0)
    assert private.ledger.steps == 1


def test_a_data_set_needs_a_weight_for_each_class():
    x, y = data(40)
    private = model()
    for weights, missing in [({0: 1.0, 1: 0.5}, [2, 3]), ({0: 1.0, 3: 0.5}, [1, 2])]:
        with pytest.raises(
            ValueError, match=rf"classes 0 to 3. Received: none for \{missing}. Give the others weight 1"
        ):
            private.fit(poisson_batches(x, y, 8), class_weight=weights)
    assert private.ledger.steps == 0
    private.fit(poisson_batches(x, y, 8), class_weight=dict.fromkeys(range(4), 0.5), verbose=0)
    private.fit(x, y, class_weight={0: 1.0, 1: 0.5}, verbose=0)  # Keras gives the others weight 1 here
    one = model([*dense_list()[:-1], DP_QuickSpectralDense(1)], loss=DP_TauBCE(num_outputs=1))
    for classes in (None, 1):  # 1 is what `prepare_tabular_data` makes of a column of labels
        object.__setattr__(one.dataset_metadata, "nb_classes", classes)
        with pytest.raises(ValueError, match=r"classes 0 to 1. Received: none for \[1\]"):
            one.fit(poisson_batches(x, y[:, :1], 8), class_weight={0: 1.0})


def test_a_data_set_is_not_split_for_validation():
    x, y = data(40)
    private = model()
    batches = poisson_batches(x, y, 8)
    with pytest.raises(ValueError, match="validation_split=0.2 with a data set.*validation_data="):
        private.fit(batches, validation_split=0.2)
    assert private.ledger.steps == 0
    for arguments in ({"validation_split": 0.0}, {"validation_split": 0.2, "validation_data": (x, y)}):
        private.fit(batches, verbose=0, **arguments)
    private.fit(x, y, validation_split=0.2, verbose=0)


def test_training_without_noise_says_that_nothing_is_private(caplog):
    x, y = data(40)
    for multiplier, count in [(0.0, 1), (1.0, 0)]:
        caplog.clear()
        model(noise_multiplier=multiplier).fit(poisson_batches(x, y, 8), epochs=2, verbose=0)
        assert len(warnings_of(caplog, "nothing is private")) == count


def test_undeclared_sampling_is_said_with_the_remedy(caplog):
    x, y = data(40)
    model().fit(x, y, verbose=0)
    [warning] = warnings_of(caplog, "not declared")
    assert "deel.lipdp.sampling.poisson_batches(x, y, batch_size)" in warning


def test_batch_size_that_contradicts_the_metadata():
    x, y = data(40)
    private = model(batch_size=8)
    batched = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    for arguments in ((x, y, 16), (batched,), (batched.map(lambda a, b: (a, b)).prefetch(1),)):
        with pytest.raises(ValueError, match="batch_size=16"):
            private.fit(*arguments)
    with pytest.raises(ValueError, match="40 examples and batch size 8"):
        private.fit(poisson_batches(x[:30], y[:30], 8))
    with pytest.raises(ValueError, match="batch size 5"):
        private.fit(poisson_batches(x, y, 5))
    assert private.ledger.steps == 0


def test_data_that_only_claim_to_be_poisson():
    x, y = data(40)
    private = model(sampling="poisson")
    for source in ((x, y), (poisson_batches(x, y, 8).repeat(2),)):
        with pytest.raises(ValueError, match="poisson_batches"):
            private.fit(*source)
    private.fit(poisson_batches(x, y, 8, map_fn=lambda a, b: (a[:, ::-1], b)), verbose=0)
    assert private.ledger.steps == 5


def test_debug_needs_eager_and_then_logs(caplog):
    x, y = data(8)
    with pytest.raises(ValueError, match="run_eagerly=True"):
        model(debug=True)
    private = model(debug=True, compile_arguments={"run_eagerly": True})
    with caplog.at_level("DEBUG", logger="deel.lipdp"):
        private.train_on_batch(x, y)
    text = caplog.text
    assert "conv_a" in text and "gradient bound" in text and "noise stddev" in text


@pytest.mark.parametrize("shape", [(8, 36), (8, 6, 6), (8, 7, 6, 1), (8, 6, 6, 2)])
def test_wrong_rank_or_shape(shape):
    private = model(layer_list()[:4] + dense_list()[1:])
    with pytest.raises(ValueError, match="inputs of shape"):
        private.train_on_batch(np.zeros(shape, "float32"), data(8)[1])
    assert private.ledger.steps == 0


@BOTH
def test_wrong_types_of_arguments(cls):
    with pytest.raises(TypeError, match="dp_parameters"):
        cls(layer_list(), dp_parameters={"delta": 1}, dataset_metadata=metadata())
    with pytest.raises(TypeError, match="dataset_metadata"):
        cls(layer_list(), dp_parameters=parameters(), dataset_metadata=None)


def test_several_replicas():
    private = model()

    class Two:
        num_replicas_in_sync = 2

    private._distribute_strategy = Two()
    with pytest.raises(ValueError, match="one device"):
        private.make_train_function()


def test_training_before_compile():
    private = DP_Sequential(layer_list(), dp_parameters=parameters(), dataset_metadata=metadata())
    with pytest.raises(ValueError):
        private.fit(*data(40))


def test_plans():
    private = model(noise_multiplier=5.0, sampling="poisson")
    epochs = get_max_epochs(2.0, private, accountant="pld")
    assert get_eps_delta(private, epochs, "pld")[0] <= 2.0 < get_eps_delta(private, epochs + 1, "pld")[0]
    x, y = data(40)
    private.fit(poisson_batches(x, y, 8), epochs=2, verbose=0)
    assert get_max_epochs(2.0, private, accountant="pld") == epochs - 2
    assert get_max_epochs(2.0, private, epochs_max=1) == 1
    assert get_max_epochs(1e-6, private) == 0
    assert get_max_epochs(2.0, model(noise_seed=1)) == 0
    for call in (
        lambda: get_max_epochs(0.0, private),
        lambda: get_eps_delta(private, -1),
        lambda: get_eps_delta(private, accountant="gdp"),
    ):
        with pytest.raises(ValueError):
            call()


def test_signal_to_noise():
    x, y = data(8)
    private = model()
    ratios, norms, bounds = private.signal_to_noise_elementwise((x[:5], y[:5]))
    assert list(ratios) == ["conv_a/kernel", "conv_b/kernel", "dense/kernel"]
    assert all(ratio.shape == (5,) and (0 < ratio).all() and (ratio <= 1).all() for ratio in ratios.values())
    for key in ratios:
        np.testing.assert_allclose(ratios[key], norms[key] / bounds[key])
    mean_ratios, _, _ = private.signal_to_noise_average((x, y))
    each, _, _ = private.signal_to_noise_elementwise((x, y))
    assert all(0 < mean_ratios[key] <= each[key].mean() + 1e-6 for key in each)  # triangle inequality
    with pytest.raises(ValueError, match="8 examples"):
        private.signal_to_noise_average((x[:5], y[:5]))


def test_signal_to_noise_sees_what_was_changed_and_tensorflow_does_not_complain(caplog):
    x, y = data(8)
    private = model(dense_list())
    before = [private.signal_to_noise_elementwise((x, y))[1]["logits/kernel"].max() for _ in range(6)]
    private.loss_function.tau *= 20.0
    assert before == before[:1] * 6 != [private.signal_to_noise_elementwise((x, y))[1]["logits/kernel"].max()] * 6
    assert not warnings_of(caplog, "retracing")


@BOTH
def test_building_and_fitting_raise_no_warning(cls, recwarn):
    x, y = data(40)
    private = model(cls=cls)
    private.fit(poisson_batches(x, y, 8), verbose=0)
    own = [w for w in recwarn if "shuffle" in str(w.message) or "input_shape" in str(w.message)]
    assert not own
