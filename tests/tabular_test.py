"""Tables: where ADBench's come from, random waves as features, and the data sets handed to `fit`."""

import dataclasses
import hashlib
import os

import keras
import numpy as np
import pytest

from deel.lipdp import DP_Accountant, DP_Sequential, DPParameters, _adbench, layers, pipeline
from deel.lipdp.features import FourierFeatures
from deel.lipdp.losses import DP_TauBCE
from deel.lipdp.sampling import sampling_of


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(keras.utils.get_file.__globals__["config"], "keras_home", lambda: str(home))
    return home


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A small file under a real name, and its digest in the table of facts."""
    monkeypatch.delenv("LIPDP_DATA_DIR", raising=False)
    path, rng = tmp_path / "files" / "47_yeast.npz", np.random.default_rng(0)
    path.parent.mkdir()
    np.savez(path, X=rng.normal(size=(50, 8)), y=rng.integers(0, 2, size=50))
    facts = dataclasses.replace(_adbench.TABLES["yeast"], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(_adbench.TABLES, "yeast", facts)
    return path


def test_table_is_split_by_its_length_alone(table):
    x_train, y_train, x_test, y_test = pipeline.load_adbench_data("yeast", table.parent)
    assert x_train.shape == (40, 8) and y_train.shape == (40, 1) and x_test.shape == (10, 8) and y_test.shape == (10, 1)
    assert {array.dtype.name for array in (x_train, y_train, x_test, y_test)} == {"float32"}
    with np.load(table) as archive:
        rows = {row.tobytes(): label for row, label in zip(archive["X"].astype("f4"), archive["y"], strict=True)}
    together = np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test])[:, 0]
    assert {row.tobytes(): label for row, label in zip(*together, strict=True)} == rows
    again = pipeline.load_adbench_data("yeast", table.parent)
    np.testing.assert_array_equal(again[2], x_test)


def test_folder_of_the_collection_is_searched_too(table, tmp_path, monkeypatch):
    (tmp_path / "files").rename(tmp_path / "adbench")
    monkeypatch.setenv("LIPDP_DATA_DIR", str(tmp_path))
    assert len(pipeline.load_adbench_data("yeast")[0]) == 40


def test_table_is_downloaded_where_no_folder_is_named(table, keras_home, monkeypatch):
    """The real download code, from a local address."""
    monkeypatch.setattr(_adbench, "_ORIGIN", table.parent.as_uri() + "/")
    assert len(pipeline.load_adbench_data("yeast")[0]) == 40
    assert list(keras_home.rglob("47_yeast.npz"))


def test_failed_download_names_the_file_to_bring(keras_home, monkeypatch, tmp_path):
    monkeypatch.delenv("LIPDP_DATA_DIR", raising=False)
    monkeypatch.setattr(_adbench, "_ORIGIN", tmp_path.as_uri() + "/nothing/")
    with pytest.raises(ValueError, match="put 33_skin.npz in a folder.*LIPDP_DATA_DIR"):
        pipeline.load_adbench_data("skin")


def test_other_files_are_refused(table):
    with pytest.raises(ValueError, match="dataset_name.*thyroid"):
        pipeline.load_adbench_data("thyroid", table.parent)
    with pytest.raises(ValueError, match="nothing there"):
        pipeline.load_adbench_data("skin", table.parent)
    table.write_bytes(table.read_bytes() + b"0")
    with pytest.raises(ValueError, match="SHA-256.*another file"):
        pipeline.load_adbench_data("yeast", table.parent)


@pytest.mark.skipif("LIPDP_DATA_DIR" not in os.environ, reason="LIPDP_DATA_DIR names no folder with real data")
@pytest.mark.parametrize("name", sorted(_adbench.TABLES))
def test_real_tables_have_the_stated_size(name):
    facts = _adbench.TABLES[name]
    x, y = _adbench.read_table(name)
    assert x.shape == (facts.rows, facts.columns) and y.shape == (facts.rows,)
    assert set(np.unique(y)) == {0, 1} and np.all(np.isfinite(x))


# Random waves


def test_waves_have_norm_one_whatever_the_row():
    rows = np.random.default_rng(0).normal(size=(8, 5))
    rows[1], rows[2], rows[3], rows[4] = 0.0, np.nan, 1e300, -np.inf
    for compress in (False, True):
        features = FourierFeatures(units=24, scales=(0.3, 1.0), compress=compress)(rows)
        norms = np.linalg.norm(features.astype("float64"), axis=1)
        assert features.shape == (8, 24) and features.dtype == "float32"
        assert np.all(norms <= 1.0) and np.all(norms > 1.0 - 1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e9, 1.7e18])
def test_waves_treat_each_row_alone(scale):
    """Of angles as large as these a matrix product would leave nothing, in another way at each place of a batch."""
    rows = (scale * (1.0 + 0.01 * np.random.default_rng(0).normal(size=(600, 10)))).astype("float32")
    function = FourierFeatures()
    np.testing.assert_allclose(function(rows)[1:], function(rows[1:]), atol=1e-7)
    np.testing.assert_allclose(function(rows)[7:8], function(rows[7:8]), atol=1e-7)


def test_waves_depend_on_the_seed():
    rows, function = np.random.default_rng(0).normal(size=(3, 5)), FourierFeatures(units=12)
    assert not np.allclose(function(rows[:1]), FourierFeatures(units=12, seed=1)(rows[:1]), atol=0.01)


def test_inner_products_of_waves_near_the_gaussian_kernel():
    """`E cos(w (x - y)) = exp(-scale^2 |x - y|^2 / 2)`; the mean of 20,000 cosines is within 0.03 of it."""
    rows = np.random.default_rng(0).normal(size=(6, 3))
    features = FourierFeatures(units=40_000, scales=(0.7,))(rows)
    distances = np.square(rows[:, None] - rows[None]).sum(axis=-1)
    np.testing.assert_allclose(features @ features.T, np.exp(-0.5 * 0.7**2 * distances), atol=0.03)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"units": 10, "scales": (1.0, 2.0)}, "multiple"), ({"scales": ()}, "scale"), ({"scales": (0.0,)}, "scales")],
)
def test_bad_waves_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FourierFeatures(**kwargs)
    with pytest.raises(ValueError, match="rows"):
        FourierFeatures()(np.zeros((2, 3, 4)))


# Data sets


def rows_and_labels(n=200, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, (x[:, :1] * x[:, 1:2] > 0).astype("float32")


def test_prepared_table_is_bounded_sampled_and_described():
    (x, y), (x_test, y_test) = rows_and_labels(), rows_and_labels(50, seed=1)
    x[0], x[1] = 1e6, 1e60
    train, test, metadata = pipeline.prepare_tabular_data(x, y, x_test, y_test, 20, pipeline.bound_clip_value(2.0))
    assert metadata.max_norm == 2.0 and metadata.input_shape == (4,) and metadata.nb_classes == 1
    assert (metadata.nb_samples_train, metadata.nb_samples_test) == (200, 50) and metadata.sampling == "poisson"
    assert sampling_of(train).sampling.sampling_probability == 0.1
    rows = np.concatenate([part for part, _ in train] + [part for part, _ in test])
    assert np.linalg.norm(rows.astype("float64"), axis=1).max() <= 2.0
    train, held_out, metadata = pipeline.prepare_tabular_data(
        x, y, x_test, y_test, 20, front_end=[FourierFeatures(6)], validation_fraction=0.25, sampling=None
    )
    assert metadata.max_norm == 1.0 and metadata.input_shape == (6,) and metadata.sampling is None
    assert sum(len(part) for part, _ in train) == 150 and sum(len(part) for part, _ in held_out) == 50


def test_rows_that_nothing_bounds_and_arrays_that_do_not_match_are_refused():
    x, y = rows_and_labels(20)
    for front_end in ((), [layers.DP_LayerCentering()]):
        with pytest.raises(ValueError, match="bound on the norm of a row.*bound_clip_value"):
            pipeline.prepare_tabular_data(x, y, x, y, 5, front_end=front_end)
    bound = pipeline.bound_clip_value(1.0)
    for other in [(x, y, x[:, :3], y), (x, y, x, np.concatenate([y, y], axis=1))]:
        with pytest.raises(ValueError, match="rows of one shape"):
            pipeline.prepare_tabular_data(*other, 5, front_end=[FourierFeatures(6)])
    for bad in [(x[:-1], y, x, y), (x, y[:, 0], x, y), (x, y, x[:, :, None], y), (x, y, x[:0], y[:0])]:
        with pytest.raises(ValueError, match="x_(train|test) of shape"):
            pipeline.prepare_tabular_data(*bad, 5, bound)


def test_a_linear_model_on_waves_learns_what_no_line_separates():
    (x, y), (x_test, y_test) = rows_and_labels(4000), rows_and_labels(1000, seed=1)
    front_end = [FourierFeatures(units=100, scales=(1.0,))]
    train, test, metadata = pipeline.prepare_tabular_data(x, y, x_test, y_test, 1000, front_end=front_end, seed=1)
    model = DP_Sequential(
        [
            layers.DP_BoundedInput(metadata.max_norm, input_shape=metadata.input_shape),
            layers.DP_ContractiveDense(1),
            layers.DP_ClipGradient(0.5),
        ],
        dp_parameters=DPParameters("optimal", 1.0, 1e-4, noise_seed=1),
        dataset_metadata=metadata,
    )
    model.compile(
        keras.optimizers.SGD(0.2, momentum=0.9), DP_TauBCE(40.0), metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)]
    )
    model.fit(train, epochs=20, verbose=0, callbacks=[DP_Accountant(accountant="rdp")])
    # Guessing is right in half of the cases, and so is every linear function of the rows.
    assert model.evaluate(test, verbose=0, return_dict=True)["binary_accuracy"] > 0.8
