"""Loading images: sources, colour spaces, bounds, splits and the data sets handed to `fit`."""

import gzip
import itertools
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from deel.lipdp import _datasets, _front_end, layers, parameters, pipeline
from deel.lipdp.sampling import sampling_of

REAL_SIZES = {"mnist": (60000, 10000), "fashion_mnist": (60000, 10000), "cifar10": (50000, 10000)}


def arrays(name, n_train=40, n_test=12, seed=0):
    """Random images with the layout of a data set, as its file has them."""
    rng = np.random.default_rng(seed)
    shape = _datasets.FORMATS[name].shape
    shape = shape[:2] if shape[-1] == 1 else shape
    made = {}
    for part, n in (("train", n_train), ("test", n_test)):
        made[f"x_{part}"] = rng.integers(0, 256, size=(n, *shape), dtype=np.uint8)
        made[f"y_{part}"] = rng.integers(0, 10, size=n).astype(np.uint8)
    # The images with the largest norms: the colours at the corners of the cube.
    if len(shape) == 3:
        for i, colour in enumerate(itertools.product((0, 255), repeat=3)):
            made["x_train"][i] = colour
    else:
        made["x_train"][0] = 255
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with small files under the real names; no other source is left."""
    monkeypatch.delenv("LIPDP_DATA_DIR", raising=False)
    for name in REAL_SIZES:
        np.savez(tmp_path / f"{name}.npz", **arrays(name))
    return tmp_path


def norms(x):
    return np.linalg.norm(np.asarray(x, np.float64).reshape(len(x), -1), axis=1)


def metadata_for(n):
    return pipeline.DatasetMetadata(input_shape=(1,), nb_samples_train=n, batch_size=1, max_norm=1.0)


def test_metadata_is_the_class_of_parameters():
    assert pipeline.DatasetMetadata is parameters.DatasetMetadata


@pytest.mark.parametrize(
    "n, delta",
    [(1, 0.1), (9, 0.1), (10, 0.01), (1438, 1e-4), (60000, 1e-5), (90909, 1e-5), (90910, 1e-6), (10**5, 1e-6)],
)
def test_default_delta(n, delta):
    assert pipeline.default_delta_value(metadata_for(n)) == delta
    assert delta * n <= 1 / 1.1 + 1e-12


# Bounding functions


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [1e-3, 1.0, 7.0])
def test_clip_projects_on_the_ball(dtype, value):
    x = np.random.default_rng(0).normal(size=(50, 4, 3, 2)).astype(dtype)
    x *= value * np.linspace(0.01, 1, 50).reshape(-1, 1, 1, 1).astype(dtype)
    original = x.copy()
    clip = pipeline.bound_clip_value(value)
    clipped = clip(x)
    assert clip.bound == value and clipped.dtype == dtype and clipped.shape == x.shape
    np.testing.assert_array_equal(x, original)  # the caller's array is left alone
    before = norms(x)
    inside = before <= value
    assert 0 < inside.sum() < 50
    np.testing.assert_array_equal(clipped[inside], x[inside])
    assert np.all(norms(clipped) <= value)
    factor = (value / before[~inside]).reshape(-1, 1, 1, 1)
    # 2^-22, by which the bound is kept on the safe side of rounding, is 2.4e-7.
    np.testing.assert_allclose(clipped[~inside], x[~inside] * factor, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalize_scales_to_the_norm(dtype):
    x = np.random.default_rng(0).normal(size=(50, 5, 2)).astype(dtype)
    x[7] = 0
    scale = pipeline.bound_normalize(2.5)
    scaled = scale(x)
    assert scale.bound == 2.5 and scaled.dtype == dtype and scaled.shape == x.shape
    expected = np.where(np.arange(50) == 7, 0.0, 2.5)
    np.testing.assert_allclose(norms(scaled), expected, rtol=1e-6)
    assert norms(scaled).max() <= 2.5
    others = np.arange(50) != 7
    cosine = (scaled * x).sum(axis=(1, 2))[others] / norms(scaled)[others] / norms(x)[others]
    np.testing.assert_allclose(cosine, 1, atol=1e-6)


def test_normalize_can_take_each_mean_off_first():
    x = np.random.default_rng(0).random((20, 6)).astype(np.float32)
    x[3] = 0.1  # constant: nothing left but rounding, which stays zero
    centred = pipeline.bound_normalize(center=True)(x)
    np.testing.assert_allclose(centred.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(norms(centred), np.arange(20) != 3, rtol=1e-6)


@pytest.mark.parametrize(
    "bound", [pipeline.bound_clip_value(3.0), pipeline.bound_normalize(3.0), pipeline.bound_normalize(3.0, center=True)]
)
def test_bounds_survive_odd_values_and_treat_examples_apart(bound):
    top, low = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    x[1] = np.nan
    x[2, :3] = [np.inf, -np.inf, np.nan]
    x[3], x[4], x[5, 0] = -top, low, top
    together = bound(x)
    assert np.isfinite(together).all() and norms(together).max() <= 3.0
    assert np.all(together[1] == 0)
    np.testing.assert_array_equal(together, np.concatenate([bound(x[i : i + 1]) for i in range(8)]))
    assert bound(x[:0]).shape == (0, 6)
    wide = bound(np.full((1, 10), 1e308))  # the norm itself overflows float64
    assert np.isfinite(wide).all() and norms(wide) <= 3.0
    assert bound(np.full((1, 10), 200, np.uint8)).dtype == np.float32


@pytest.mark.parametrize("make", [pipeline.bound_clip_value, pipeline.bound_normalize])
def test_bounds_are_checked(make):
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"{make.__name__}.*value"):
            make(value)
    with pytest.raises(TypeError, match="value='1'"):
        make("1")
    with pytest.raises(AttributeError):
        make(1.0).bound = 2.0


# Sources


@pytest.mark.parametrize("name", REAL_SIZES)
def test_files_are_read_into_the_layout_of_a_model(folder, name):
    raw = arrays(name)
    data = pipeline.load_images(name, data_dir=folder)
    shape = _datasets.FORMATS[name].shape
    assert data.x_train.shape == (40, *shape) and data.x_test.shape == (12, *shape)
    assert {a.dtype for a in (data.x_train, data.y_train, data.x_test, data.y_test)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(data.x_train.reshape(40, -1), raw["x_train"].reshape(40, -1) / 255.0, rtol=1e-6)
    for part in ("train", "test"):
        labels = getattr(data, f"y_{part}")
        np.testing.assert_array_equal(labels.argmax(axis=1), raw[f"y_{part}"])
        assert labels.shape[1] == 10 and np.all(labels.sum(axis=1) == 1)
    assert len(data.class_names) == 10


def test_the_environment_names_the_folder_and_the_argument_wins(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LIPDP_DATA_DIR", str(folder))
    assert len(pipeline.load_images("mnist").x_train) == 40
    other = tmp_path_factory.mktemp("other")
    np.savez(other / "mnist.npz", **arrays("mnist", n_train=7))
    assert len(pipeline.load_images("mnist", data_dir=str(other)).x_train) == 7


def test_digits_need_no_folder_and_never_change(monkeypatch, tmp_path):
    monkeypatch.setenv("LIPDP_DATA_DIR", str(tmp_path))  # empty: not asked
    data = pipeline.load_images()
    assert data.x_train.shape == (1438, 8, 8, 1) and data.x_test.shape == (359, 8, 8, 1)
    assert data.x_train.min() == 0.0 and data.x_train.max() == 1.0
    assert data.max_norm == 8.0
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.testing.assert_allclose(np.concatenate([data.x_train, data.x_test])[..., 0] * 16, digits.images)
    np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_test]).argmax(axis=1), digits.target)


def test_a_missing_file_is_not_replaced_by_a_download(tmp_path, monkeypatch):
    def fail():
        raise AssertionError("downloaded")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    with pytest.raises(ValueError, match=r"mnist\.npz.*nothing there.*LIPDP_DATA_DIR"):
        pipeline.load_images("mnist", data_dir=tmp_path)
    monkeypatch.setenv("LIPDP_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"mnist\.npz.*nothing there"):
        pipeline.load_images("mnist")


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(x_test=None), "x_test"),
        (dict(x_train=np.zeros((40, 28, 27), np.uint8)), r"'x_train'.*\(n, 28, 28, 1\) or \(n, 28, 28\).*\(40, 28, 27"),
        (dict(x_train=np.zeros((40, 28, 28), np.float32)), "'x_train'.*uint8.*float32"),
        (dict(y_test=np.full(12, 10)), r"'y_test'.*0\.\.9"),
        (dict(y_train=np.full(40, -1)), "'y_train'"),
        (dict(y_train=np.zeros(40)), "'y_train'.*float64"),
        (dict(y_train=np.zeros((40, 10), int)), "'y_train'"),
        (dict(y_train=np.zeros(39, int)), "'y_train'.*39 labels, 40 images"),
        (dict(x_test=np.zeros((0, 28, 28), np.uint8), y_test=np.zeros(0, int)), "at least one"),
        (dict(y_train=np.array([None] * 40)), "npz"),  # a pickle, which is code
    ],
)
def test_a_malformed_file_is_named(tmp_path, change, text):
    content = {key: value for key, value in (arrays("mnist") | change).items() if value is not None}
    np.savez(tmp_path / "mnist.npz", **content)
    with pytest.raises(ValueError, match=rf"mnist\.npz.*{text}"):
        pipeline.load_images("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"mnist\.npz.*x_train, y_train, x_test, y_test"):
        pipeline.load_images("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", REAL_SIZES)
def test_keras_is_asked_without_a_folder(name, monkeypatch):
    monkeypatch.delenv("LIPDP_DATA_DIR", raising=False)
    made = arrays(name)
    answer = (made["x_train"], made["y_train"][:, None]), (made["x_test"], made["y_test"][:, None])
    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", lambda: answer)
    data = pipeline.load_images(name)
    np.testing.assert_array_equal(data.y_test.argmax(axis=1), made["y_test"])


def test_a_failed_download_says_what_to_do(monkeypatch):
    monkeypatch.delenv("LIPDP_DATA_DIR", raising=False)

    def fail():
        raise OSError("no route to host")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(ValueError, match=r"no route to host.*cifar10\.npz.*LIPDP_DATA_DIR"):
        pipeline.load_images("cifar10")


def test_the_code_of_keras_reads_what_it_downloaded(tmp_path):
    # Keras looks in KERAS_HOME before it downloads, and reads that variable when imported: hence a process of its own.
    made, home = arrays("fashion_mnist"), tmp_path / "datasets" / "fashion-mnist"
    home.mkdir(parents=True)
    for part, stem in (("train", "train"), ("test", "t10k")):
        for kind, rank, header in (("x", "images-idx3", 16), ("y", "labels-idx1", 8)):
            content = bytes(header) + made[f"{kind}_{part}"].tobytes()
            (home / f"{stem}-{rank}-ubyte.gz").write_bytes(gzip.compress(content))
    code = (
        "from deel.lipdp.pipeline import load_images; x = load_images('fashion_mnist').x_train; print(x.shape, x.sum())"
    )
    env = {key: value for key, value in os.environ.items() if key != "LIPDP_DATA_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"KERAS_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    shape, total = result.stdout.strip().splitlines()[-1].rsplit(" ", 1)
    assert shape == "(40, 28, 28, 1)"
    assert float(total) == pytest.approx(made["x_train"].sum() / 255.0, rel=1e-4)  # a float32 sum


# Colour spaces and their bounds


@pytest.mark.parametrize(
    "colorspace, channels, convert",
    [
        ("RGB", 3, None),
        ("grayscale", 1, tf.image.rgb_to_grayscale),
        ("HSV", 3, tf.image.rgb_to_hsv),
        ("YIQ", 3, tf.image.rgb_to_yiq),
        ("YUV", 3, tf.image.rgb_to_yuv),
    ],
)
def test_colorspaces(folder, monkeypatch, colorspace, channels, convert):
    rgb = pipeline.load_images("cifar10", data_dir=folder).x_train
    monkeypatch.setattr(_datasets, "_CHUNK", 7)  # several chunks, the last one partial
    data = pipeline.load_images("cifar10", data_dir=folder, colorspace=colorspace)
    assert data.x_train.shape == (40, 32, 32, channels) and data.x_train.dtype == np.float32
    np.testing.assert_allclose(data.x_train, convert(rgb) if convert else rgb, atol=1e-6)
    assert norms(data.x_train).max() <= data.max_norm


@pytest.mark.parametrize("colorspace", _datasets.PIXEL_NORMS)
def test_pixel_norms_are_the_supremum_over_the_cube(colorspace):
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    near_red = [[1, 0, 10.0**-k] for k in range(1, 7)]  # where HSV is largest
    inside = np.random.default_rng(0).random((100000, 3))
    pixels = np.concatenate([corners, near_red, inside]).astype(np.float32)
    found = np.linalg.norm(_datasets.to_colorspace(pixels[:, None, None], colorspace).astype(np.float64), axis=-1).max()
    bound = _datasets.PIXEL_NORMS[colorspace]
    # Sound and tight; the weights of grayscale sum to 0.9999.
    assert 0.9998 * bound <= found <= bound


def test_one_channel_stays_one_channel(folder):
    default = pipeline.load_images("mnist", data_dir=folder)
    gray = pipeline.load_images("mnist", data_dir=folder, colorspace="grayscale")
    np.testing.assert_array_equal(default.x_train, gray.x_train)
    assert default.max_norm == gray.max_norm == 28.0 == norms(default.x_train).max()  # a white image reaches it
    with pytest.raises(ValueError, match="colorspace='HSV'.*1 channel"):
        pipeline.load_images("mnist", data_dir=folder, colorspace="HSV")
    with pytest.raises(ValueError, match="'RGB', 'grayscale', 'HSV', 'YIQ', 'YUV'.*colorspace='rgb'"):
        pipeline.load_images("cifar10", data_dir=folder, colorspace="rgb")


def test_unknown_names_are_refused_with_the_list():
    with pytest.raises(ValueError, match="'digits', 'mnist', 'fashion_mnist', 'cifar10'.*dataset_name='imagenet'"):
        pipeline.load_images("imagenet")


def test_max_norm_does_not_depend_on_the_records(folder):
    np.savez(folder / "cifar10.npz", **{k: v // 5 for k, v in arrays("cifar10").items()})
    assert pipeline.load_images("cifar10", data_dir=folder).max_norm == pytest.approx(math.sqrt(32 * 32 * 3))


def test_bound_fct_bounds_both_parts_and_is_the_max_norm(folder, monkeypatch):
    monkeypatch.setattr(_datasets, "_CHUNK", 7)
    data = pipeline.load_images("cifar10", folder, "YIQ", pipeline.bound_clip_value(5.0))
    assert data.max_norm == 5.0
    assert norms(data.x_train).max() <= 5.0 and norms(data.x_test).max() <= 5.0
    with pytest.raises(TypeError, match="bound_fct.*attribute `bound`"):
        pipeline.load_images("cifar10", folder, bound_fct=lambda x: x)

    class Flat:
        bound = 1.0

        def __call__(self, x):
            return x.reshape(len(x), -1)

    with pytest.raises(ValueError, match="bound_fct to keep the shape"):
        pipeline.load_images("cifar10", folder, bound_fct=Flat())


def test_front_end_is_applied_once_and_bounds_what_it_gives(folder, monkeypatch):
    monkeypatch.setattr(_front_end, "_BATCH", 9)
    images = pipeline.load_images("cifar10", folder)
    front_end = [layers.DP_Scattering2D(scales=2, angles=2), layers.DP_GroupNormalization(9, radius=3.0)]
    data = pipeline.load_images("cifar10", folder, front_end=front_end)
    assert data.max_norm == 3.0
    assert data.x_train.shape == (40, 8, 8, 27) and data.x_test.shape == (12, 8, 8, 27)
    assert data.x_train.dtype == "float32"
    for x, features in ((images.x_train, data.x_train), (images.x_test, data.x_test)):
        # Single precision, entries below 1, in batches of another size.
        np.testing.assert_allclose(features, front_end[1](front_end[0](x)), atol=1e-6)
        assert norms(features).max() <= 3.0 * (1 + 1e-6)
    scattered = pipeline.load_images("cifar10", folder, front_end=[layers.DP_Scattering2D(scales=2, angles=2)])
    assert scattered.max_norm == images.max_norm
    ds_train, _, metadata = pipeline.load_and_prepare_images_data("cifar10", 8, front_end=front_end, data_dir=folder)
    assert metadata.input_shape == (8, 8, 27) and metadata.max_norm == 3.0
    assert ds_train.element_spec[0].shape[1:] == (8, 8, 27)


@pytest.mark.parametrize(
    ("front_end", "error", "message"),
    [
        ([layers.DP_QuickSpectralDense(3)], ValueError, "no variables.*kernel.*DP_QuickSpectralDense"),
        ([keras.layers.Flatten()], TypeError, "layer with bounds.*Flatten"),
        ([layers.DP_Flatten(dtype="mixed_float16")], ValueError, "one precision.*mixed_float16"),
        ([layers.DP_Lambda(tf.identity, lipschitz_constant=1e16), layers.DP_Flatten()], ValueError, "max_norm=.*e.17"),
    ],
)
def test_front_end_is_fixed_and_has_bounds(folder, front_end, error, message):
    with pytest.raises(error, match=message):
        pipeline.load_images("cifar10", folder, front_end=front_end)


def test_front_end_built_for_other_images_is_refused(folder):
    """Its constants, and so the bound, are those of one shape."""
    average = layers.DP_GlobalAveragePooling2D(keepdims=True)
    pipeline.load_images("cifar10", folder, front_end=[average])
    with pytest.raises(ValueError, match="DP_GlobalAveragePooling2D.*Make a new layer"):
        pipeline.load_images("digits", front_end=[average])
    average = layers.DP_GlobalAveragePooling2D(keepdims=True)
    with pytest.raises(ValueError, match="DP_GlobalAveragePooling2D.*Make a new layer"):
        pipeline.load_images("digits", front_end=[average, average])


class Doubled:
    """A feature map that counts its calls."""

    bound, calls, cache_key = 7.0, 0, "Doubled"

    def __call__(self, x):
        Doubled.calls += 1
        return np.concatenate([x, x], axis=-1)


def test_feature_maps_and_layers_follow_one_another(folder):
    images = pipeline.load_images("mnist", folder)
    data = pipeline.load_images("mnist", folder, front_end=[layers.DP_Flatten(), Doubled(), layers.DP_LayerCentering()])
    assert data.x_train.shape == (40, 2 * 784) and data.max_norm == 7.0
    flat = images.x_train.reshape(40, -1)
    # Pixels and means up to 1, subtracted in single precision; the means of 1,568 numbers.
    np.testing.assert_allclose(data.x_train[:, :784], flat - flat.mean(axis=1, keepdims=True), rtol=0.0, atol=5e-7)


def test_callable_without_a_bound_is_refused(folder):
    with pytest.raises(TypeError, match="state as `bound` the norm"):
        pipeline.load_images("mnist", folder, front_end=[np.tanh])


def test_cache_holds_what_came_out_and_is_found_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Doubled, "calls", 0)
    cache = tmp_path / "new" / "cache"

    def load(name="mnist", front_end=None, **kwargs):
        front_end = front_end or [layers.DP_LayerCentering(), Doubled()]
        return pipeline.load_images(name, folder, front_end=front_end, cache_dir=cache, **kwargs)

    plain = pipeline.load_images("mnist", folder, front_end=[layers.DP_LayerCentering(), Doubled()])
    first, calls = load(), Doubled.calls
    again = load()
    assert Doubled.calls == calls and len(list(cache.iterdir())) == 2
    for data in (first, again):
        np.testing.assert_array_equal(data.x_train, plain.x_train)
        np.testing.assert_array_equal(data.x_test, plain.x_test)
        assert data.max_norm == plain.max_norm == 7.0
    # As private as the images: for its owner's eyes.
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o600}
    # Other images, and another front end, have files of their own.
    load("fashion_mnist", bound_fct=pipeline.bound_clip_value(2.0))
    load(front_end=[layers.DP_LayerCentering(axis=(1, 2)), Doubled()])
    assert Doubled.calls > calls and len(list(cache.iterdir())) == 6


def cut(content):
    return content[: len(content) // 2]


def flipped(content):
    """One bit of the numbers is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda content: b"PK\x03\x04", lambda content: b""])
def test_damaged_cache_is_made_anew(folder, tmp_path, damage):
    cache = tmp_path / "cache"
    first = pipeline.load_images("mnist", folder, front_end=[Doubled()], cache_dir=cache)
    for path in cache.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    again = pipeline.load_images("mnist", folder, front_end=[Doubled()], cache_dir=cache)
    np.testing.assert_array_equal(again.x_train, first.x_train)
    np.testing.assert_array_equal(again.x_test, first.x_test)


class Middle:
    """Changes the shape, so that layers behind it have other bounds than on images."""

    bound, cache_key = 1.0, "Middle"

    def __call__(self, x):
        return pipeline.bound_normalize(1.0)(x[:, 2:6, 2:6])


def test_cached_features_have_the_bound_that_they_were_made_with(tmp_path):
    loads = [
        pipeline.load_images(
            "digits", front_end=[Middle(), layers.DP_GlobalAveragePooling2D()], cache_dir=tmp_path / "cache"
        )
        for _ in range(2)
    ]
    assert loads[0].max_norm == loads[1].max_norm == 0.25
    assert norms(loads[1].x_train).max() <= 0.25


def test_cache_tells_arithmetic_apart(folder, tmp_path):
    """A policy that makes layers work in half precision without being told."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        pipeline.load_images("mnist", folder, front_end=[Doubled()], cache_dir=tmp_path / "cache")
    finally:
        keras.config.set_dtype_policy("float32")
    pipeline.load_images("mnist", folder, front_end=[Doubled()], cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 4


class Nameless:
    bound = 1.0

    def __call__(self, x):
        return x


class OwnLayer(layers.DP_LayerCentering):
    pass


@pytest.mark.parametrize(
    "step",
    [Nameless(), OwnLayer(), layers.DP_Lambda(tf.identity, lipschitz_constant=1.0)],
    ids=["callable", "own layer", "lambda"],
)
def test_cache_is_refused_where_it_could_be_taken_for_another(folder, tmp_path, step):
    pipeline.load_images("mnist", folder, front_end=[step])
    with pytest.raises(ValueError, match="cache_key.*leave cache_dir out"):
        pipeline.load_images("mnist", folder, front_end=[step], cache_dir=tmp_path / "cache")


def test_front_end_that_loses_rows_is_refused(folder):
    class Loses(Nameless):
        def __call__(self, x):
            return x[1:]

    with pytest.raises(ValueError, match="one row for each of 40.*39 rows"):
        pipeline.load_images("mnist", folder, front_end=[Loses()])


# Splits and data sets


def test_hold_out_is_a_fixed_partition(folder):
    data = pipeline.load_images("mnist", data_dir=folder)
    (x, y), (held_x, held_y) = data.hold_out(0.1)
    assert len(x) == len(y) == 36 and len(held_x) == len(held_y) == 4
    everything = np.concatenate([x, held_x])
    rows = {image.tobytes(): label for image, label in zip(data.x_train, data.y_train.argmax(axis=1), strict=True)}
    assert len(rows) == 40 and {image.tobytes() for image in everything} == set(rows)
    for image, label in zip(everything, np.concatenate([y, held_y]).argmax(axis=1), strict=True):
        assert rows[image.tobytes()] == label
    np.testing.assert_array_equal(data.hold_out(0.1)[1][0], held_x)
    for fraction in (0.0, 1.0, 0.001):
        with pytest.raises(ValueError, match="hold_out"):
            data.hold_out(fraction)


def test_hold_out_depends_on_places_only(folder):
    first = pipeline.load_images("mnist", data_dir=folder)
    places = pipeline.ImageData(
        np.arange(40.0), first.y_train[::-1], first.x_test, first.y_test, first.class_names, first.max_norm
    )
    (_, _), (held, _) = places.hold_out(0.25)
    np.testing.assert_array_equal(first.hold_out(0.25)[1][0], first.x_train[held.astype(int)])


def test_the_defaults_are_poisson_digits():
    train, test, metadata = pipeline.load_and_prepare_images_data()
    info = sampling_of(train)
    assert (info.num_examples, info.batch_size, info.steps, info.seeded) == (1438, 256, 6, False)
    assert metadata == pipeline.DatasetMetadata(
        input_shape=(8, 8, 1),
        nb_samples_train=1438,
        batch_size=256,
        max_norm=8.0,
        nb_classes=10,
        nb_samples_test=359,
        class_names=tuple("0123456789"),
        nb_steps_per_epochs=6,
        sampling="poisson",
    )
    assert [tuple(spec.shape) for spec in train.element_spec] == [(None, 8, 8, 1), (None, 10)]
    assert train.element_spec == test.element_spec
    expected = pipeline.load_images()
    np.testing.assert_array_equal(np.concatenate([x for x, _ in test]), expected.x_test)
    np.testing.assert_array_equal(np.concatenate([y for _, y in test]), expected.y_test)


@pytest.mark.parametrize("sampling", [None, "undeclared"])
def test_undeclared_sampling_is_a_plain_shuffle(sampling):
    train, _, metadata = pipeline.load_and_prepare_images_data(batch_size=100, sampling=sampling)
    assert metadata.sampling is None and sampling_of(train) is None
    assert metadata.nb_steps_per_epochs == len(train) == 15
    batches = [x.numpy() for x, _ in train]
    assert [len(x) for x in batches] == [100] * 14 + [38]
    x = pipeline.load_images().x_train
    seen = np.concatenate(batches)
    assert not np.array_equal(seen, x)
    assert sorted(image.tobytes() for image in seen) == sorted(image.tobytes() for image in x)


def test_a_validation_part_takes_the_place_of_the_test_set(folder):
    train, held_out, metadata = pipeline.load_and_prepare_images_data(
        "cifar10", 9, "HSV", pipeline.bound_normalize(2.0), data_dir=folder, validation_fraction=0.25, seed=4
    )
    assert (metadata.nb_samples_train, metadata.nb_samples_test, metadata.nb_steps_per_epochs) == (30, 10, 4)
    assert metadata.max_norm == 2.0 and metadata.input_shape == (32, 32, 3)
    assert sampling_of(train).num_examples == 30 and sampling_of(train).seeded
    data = pipeline.load_images("cifar10", folder, "HSV", pipeline.bound_normalize(2.0))
    np.testing.assert_array_equal(np.concatenate([x for x, _ in held_out]), data.hold_out(0.25)[1][0])


@pytest.mark.parametrize(
    "arguments, text",
    [
        (dict(sampling="shuffled"), "sampling='shuffled'"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=2000), "batch_size=2000"),
        (dict(validation_fraction=1.0), "validation_fraction=1.0"),
        (dict(dataset_name="minst"), "dataset_name='minst'"),
    ],
)
def test_bad_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        pipeline.load_and_prepare_images_data(**arguments)


@pytest.mark.skipif(not os.environ.get("LIPDP_DATA_DIR"), reason="LIPDP_DATA_DIR names no folder with real data")
@pytest.mark.parametrize("name", REAL_SIZES)
def test_real_files(name):
    data = pipeline.load_images(name)
    n_train, n_test = REAL_SIZES[name]
    assert data.x_train.shape == (n_train, *_datasets.FORMATS[name].shape) and len(data.x_test) == n_test
    assert data.x_train.min() == 0.0 and data.x_train.max() == 1.0
    assert norms(data.x_test).max() <= data.max_norm
    assert np.abs(data.y_test.mean(axis=0) - 0.1).max() < 0.02  # the classes are balanced, MNIST roughly so
