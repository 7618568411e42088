"""Features fitted to drawn images: each image alone, norm at most 1, and nothing learned from what passes through."""

import os

import numpy as np
import pytest

from deel.lipdp import _front_end, features
from deel.lipdp.features import SceneFeatures, StrokeFeatures, deskew, draw_strokes

MAPS = {
    "scenes": (lambda: SceneFeatures(), (32, 32, 3), 1920),
    "scenes, grey and small": (lambda: SceneFeatures(grid=4, mirrored=False), (28, 28, 1), 7680),
    "strokes": (lambda: StrokeFeatures(scales=2, angles=4, drawn=300), (28, 28, 1), 7 * 7 * 25),
}


def random_images(n, shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype("float32")


@pytest.fixture(params=list(MAPS))
def case(request):
    make, shape, width = MAPS[request.param]
    return make(), shape, width


def test_features_have_norm_one_whatever_the_image(case):
    function, shape, width = case
    images = random_images(6, shape)
    images[1], images[2], images[3], images[4] = 0.0, 1.0, np.nan, 1e30
    images[5, 0, 0, 0] = np.inf
    rows = function(images)
    assert rows.shape == (6, width) and rows.dtype == "float32"
    norms = np.linalg.norm(rows.astype("float64"), axis=1)
    assert function.bound == 1.0 and np.all(np.isfinite(norms)) and norms.max() <= 1.0
    assert norms[0] > 1.0 - 1e-6


def test_each_image_is_treated_alone(case, monkeypatch):
    """Neither other images, nor their number, nor those that came before change a single bit of what one gives."""
    function, shape, _ = case
    monkeypatch.setattr(_front_end, "_BATCH", 8)
    images = random_images(11, shape)
    alone = function(images[:1])
    hostile = np.concatenate([np.full_like(images[:1], np.nan), 1e30 * images[1:3], images[:1], images[3:]])
    np.testing.assert_array_equal(function(hostile)[3:4], alone)
    np.testing.assert_array_equal(function(np.concatenate([images[1:], images[:1]]))[-1:], alone)
    np.testing.assert_array_equal(function(images[:1]), alone)


def test_maps_made_anew_are_the_same():
    """Whoever draws the strokes and loads the weights gets the same features, so a model can be used elsewhere."""
    for make, shape, _ in MAPS.values():
        image = random_images(1, shape)
        first = make()(image)
        features._scene_network.cache_clear()
        features._stroke_network.cache_clear()
        np.testing.assert_array_equal(make()(image), first)


def test_strokes_for_images_of_several_sizes_do_not_mix():
    function = StrokeFeatures(scales=1, angles=2, drawn=50)
    small, large = random_images(2, (8, 8, 1)), random_images(2, (16, 16, 1))
    first = function(small)
    assert function(large).shape != first.shape
    np.testing.assert_array_equal(function(small), first)


@pytest.mark.parametrize("name", list(MAPS))
def test_settings_cannot_be_changed_behind_a_cache(name):
    make, _, _ = MAPS[name]
    with pytest.raises(AttributeError):
        make().bound = 2.0
    assert make().cache_key == make().cache_key != SceneFeatures(grid=1).cache_key


def test_mirrored_features_do_not_see_left_and_right():
    image = random_images(1, (32, 32, 3))
    both, one = SceneFeatures(mirrored=True), SceneFeatures(mirrored=False)
    np.testing.assert_array_equal(both(image[:, :, ::-1]), both(image))
    assert np.linalg.norm(one(image[:, :, ::-1]) - one(image)) > 0.1


def test_small_images_stand_in_the_middle_of_zeros():
    image = random_images(1, (28, 28, 1))
    framed = np.repeat(np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0))), 3, axis=-1)
    np.testing.assert_array_equal(SceneFeatures()(image), SceneFeatures()(framed))


def test_strokes_are_white_in_their_own_features():
    """Over the drawn images the channels vary alike in all directions, below 1 by the ridge alone."""
    network, mean, matrix = features._stroke_network(28, scales=1, angles=4, drawn=200)
    maps = features._stroke_maps(network, draw_strokes(200)) - mean
    # The one that no machine turns: what is the same in double precision may be rounded to neighbours in single.
    np.testing.assert_allclose(matrix, matrix.T, rtol=2.0**-23, atol=len(matrix) * 2.0**-52 * np.abs(matrix).max())
    maps, matrix = maps.astype("float64"), matrix.astype("float64")
    rows = (maps @ matrix).reshape(-1, maps.shape[-1])
    covariance = rows.T @ rows / len(rows)
    plain = np.linalg.eigvalsh(np.cov(maps.reshape(-1, maps.shape[-1]).T, bias=True))
    # Entries of the matrix and of the maps are rounded to single precision. The map that whitens has norm 1 on whitened
    # rows, so by Weyl an eigenvalue moves by twice the norm of what rounding adds to a row.
    rounded = 2.0**-24 * np.linalg.norm(matrix) * np.sqrt([plain.max(), plain.sum()]).sum()
    ideal = plain / (plain + 0.1 * plain.mean())
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance), ideal, rtol=0.0, atol=2.0 * rounded)
    assert rounded < 5e-6


def test_deskew_centres_and_uprights():
    rows, cols = np.mgrid[:28, :28]
    slanted = np.exp(-((cols - 6.0 - 0.5 * rows) ** 2) / 4.0) * ((rows > 3) & (rows < 20))
    images = np.stack([slanted, np.zeros((28, 28))])[..., None].astype("float32")
    upright, empty = deskew(images)[..., 0]
    mass = upright.sum()
    row, col = (rows * upright).sum() / mass, (cols * upright).sum() / mass
    assert abs(row - 13.5) < 0.1 and abs(col - 13.5) < 0.1
    tilt = ((rows - row) * (cols - col) * upright).sum() / ((rows - row) ** 2 * upright).sum()
    assert abs(tilt) < 0.02
    assert not empty.any() and images[0, 10, 11, 0] == np.float32(slanted[10, 11])  # the argument is left alone


def test_strokes_are_images_and_repeatable():
    images = draw_strokes(20, size=28, seed=3)
    assert images.shape == (20, 28, 28, 1) and images.dtype == "float32"
    assert images.min() >= 0.0 and images.max() <= 1.0
    assert np.all(images.max(axis=(1, 2, 3)) > 0.9) and 0.02 < images.mean() < 0.3
    np.testing.assert_array_equal(images, draw_strokes(20, size=28, seed=3))
    assert not np.array_equal(images, draw_strokes(20, size=28, seed=4))


@pytest.mark.parametrize(
    ("make", "images", "message"),
    [
        (lambda: SceneFeatures(grid=3), None, "grid"),
        (lambda: StrokeFeatures(drawn=0), None, "drawn"),
        (lambda: StrokeFeatures(scales=0), None, "scales"),
        (SceneFeatures, np.zeros((2, 32, 32, 2)), "1 or 3"),
        (SceneFeatures, np.zeros((32, 32, 3)), "images"),
        (StrokeFeatures, np.zeros((2, 28, 28, 3)), "1\\)"),
        (StrokeFeatures, np.zeros((2, 28, 20, 1)), "square"),
        (lambda: deskew, np.zeros((2, 28, 28)), "deskew"),
    ],
)
def test_bad_arguments_are_refused(make, images, message):
    with pytest.raises(ValueError, match=message):
        make()(images)


@pytest.mark.skipif("LIPDP_DATA_DIR" not in os.environ, reason="LIPDP_DATA_DIR names no folder with real data")
def test_scene_features_of_photographs_are_worth_more_than_pixels():
    """Ridge regression on 2,000 images of CIFAR-10, without noise: far above the same on pixels, on 1,000 others."""
    with np.load(os.path.join(os.environ["LIPDP_DATA_DIR"], "cifar10.npz")) as archive:
        x, y = archive["x_train"][:3000] / np.float32(255.0), archive["y_train"][:3000].reshape(-1)

    def accuracy(rows):
        rows = rows - rows[:2000].mean(axis=0)
        gram = rows[:2000] @ rows[:2000].T
        one_hot = np.eye(10)[y[:2000]] - 0.1
        kernel = np.linalg.solve(gram + 0.3 * np.trace(gram) / 2000 * np.eye(2000), one_hot)
        return np.mean((rows[2000:] @ rows[:2000].T @ kernel).argmax(axis=1) == y[2000:])

    pixels, scenes = accuracy(x.reshape(3000, -1)), accuracy(SceneFeatures()(x))
    assert scenes > pixels + 0.15
