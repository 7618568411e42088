"""Batches taken in parts: the update, the ledger and the noise of one batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from doubles import RecordingSGD, data, model

from deel.lipdp.sampling import AugmultConfig, poisson_batches

# Sums of some dozen numbers around 1, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def recorded_step(microbatch_size, x, y, weights=None, **arguments):
    """Gradients that the optimizer is given for one batch, without noise, and what `train_on_batch` returns."""
    compile_arguments = {"microbatch_size": microbatch_size, "run_eagerly": True}
    keras.utils.set_random_seed(0)
    private = model(
        noise_multiplier=0.0,
        optimizer=RecordingSGD(0.1),
        batch_size=8,
        metrics=["accuracy"],
        compile_arguments=compile_arguments,
        **arguments,
    )
    result = private.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    return private.optimizer.recorded[0], result, private


@pytest.mark.parametrize("microbatch_size", [1, 3, 4, 7, 8, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_parts_give_the_gradient_and_metrics_of_one_batch(microbatch_size, weighted):
    x, y = data(11)
    weights = np.linspace(0.0, 1.0, 11).astype("float32") if weighted else None
    whole, metrics, _ = recorded_step(None, x, y, weights)
    parts, metrics_of_parts, _ = recorded_step(microbatch_size, x, y, weights)
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(one).max() > 1e-3
        np.testing.assert_allclose(one, other, **CLOSE)
    assert metrics == pytest.approx(metrics_of_parts, rel=1e-5)


def test_hostile_rows_are_guarded_in_their_part():
    x, y = data(9)
    x[4], y[7] = np.nan, np.inf
    whole, _, _ = recorded_step(None, x, y)
    parts, _, _ = recorded_step(2, x, y)
    for one, other in zip(whole, parts, strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(one, other, **CLOSE)


def trained(microbatch_size, x, y, *, augmult=None, **arguments):
    """A model after two passes over Poisson batches of many sizes, by a graph."""
    keras.utils.set_random_seed(0)
    private = model(
        optimizer=keras.optimizers.SGD(0.3, momentum=0.9),
        n=len(x),
        batch_size=8,
        sampling="poisson",
        compile_arguments={"microbatch_size": microbatch_size, **arguments},
        noise_seed=1,
    )
    padded = arguments.get("jit_compile", False)
    private.fit(poisson_batches(x, y, 8, seed=2, augmult=augmult, padded=padded), epochs=2, verbose=0)
    return private


@pytest.mark.parametrize("augmult", [None, AugmultConfig(3)], ids=["one", "views"])
def test_noise_and_count_are_those_of_one_batch(augmult):
    """The same seeded noise: had it been drawn for each part, or not once for all, the weights would differ."""
    x, y = data(40)
    whole, parts = trained(None, x, y, augmult=augmult), trained(3, x, y, augmult=augmult)
    assert parts.ledger.entries() == whole.ledger.entries()
    assert int(parts._noise_source.draws.numpy()) == int(whole._noise_source.draws.numpy()) == 10
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # ten steps of the differences above


def test_batches_of_many_sizes_need_one_graph():
    x, y = data(40)
    private = trained(3, x, y)
    traces = []

    class Counting(type(private)):
        def train_step(self, batch):
            traces.append(1)
            return super().train_step(batch)

    private.__class__ = Counting
    private._graphs.functions.clear()
    private.fit(poisson_batches(x, y, 8, seed=3), epochs=2, verbose=0)
    assert len(traces) == 1


def test_parts_under_xla():
    x, y = data(40)
    plain, compiled = trained(3, x, y), trained(3, x, y, jit_compile=True)
    assert compiled.ledger.entries() == plain.ledger.entries()
    assert all(np.isfinite(w).all() for w in compiled.get_weights())
    x, y = data(11)
    private = model(
        noise_multiplier=0.0,
        optimizer=keras.optimizers.SGD(1.0),
        batch_size=8,
        compile_arguments={"microbatch_size": 4, "jit_compile": True},
    )
    reference = model(noise_multiplier=0.0, optimizer=keras.optimizers.SGD(1.0), batch_size=8)
    reference.set_weights(private.get_weights())
    for m in (private, reference):
        m.train_on_batch(x, y)
    for one, other in zip(private.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)  # XLA fuses and reorders


def test_only_the_rows_of_a_part_are_in_memory():
    """The largest tensors of the loop have the rows of a part."""
    x, y = data(64)
    private = model(noise_multiplier=0.0, n=64, batch_size=64, compile_arguments={"microbatch_size": 8})
    private.make_train_function()
    graph = tf.function(lambda a, b: private.train_step((a, b)), autograph=False)
    graph = graph.get_concrete_function(tf.constant(x), tf.constant(y)).graph
    names = {node.op for function in graph.as_graph_def().library.function for node in function.node_def}
    assert "Conv2D" in names
    convolutions = [op for op in graph.get_operations() if op.type == "Conv2D"]
    assert not convolutions  # they are in the loop


def test_microbatch_size_is_saved_and_checked(tmp_path):
    private = model(compile_arguments={"microbatch_size": 4})
    private.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").microbatch_size == 4
    for wrong, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match=f"microbatch_size.*{wrong}"):
            model(compile_arguments={"microbatch_size": wrong})
