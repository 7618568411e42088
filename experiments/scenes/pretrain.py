"""Trains the network of `deel.lipdp.features.SceneFeatures` on drawn scenes. No photograph, and no record, is involved.

    KERAS_BACKEND=jax python experiments/scenes/pretrain.py --output deel/lipdp/scenes.npz

A scene is a heap of coloured, partly striped leaves of random shapes, seen twice from different places and in different
light; the network learns to tell which two views belong together (Chen et al., "A simple framework for contrastive
learning of visual representations", 2020; on images of random processes: Baradad et al., "Learning to see by looking at
noise", 2021; for private training: Tang et al., "Differentially private image classification by learning priors from
random processes", 2023). Scenes are drawn on the accelerator, 4,096 new ones for each step. Seven minutes on one H200;
needs `jax` beside Keras.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras import layers

SIZE = 32
LEAVES = 64
_SIDE = np.arange(SIZE) - (SIZE - 1) / 2
GRID = np.stack(np.meshgrid(_SIDE, _SIDE, indexing="ij"), -1).reshape(-1, 2).astype("float32")
#: How views differ: share of the scene in sight, rotation, saturation, share of grey views, hue, contrast, brightness.
VIEWS = {"area": 0.2, "rotation": 0.2, "saturation": 0.4, "grey": 0.15, "hue": 0.25, "contrast": 0.25, "light": 0.08}
ONE_VIEW = {"area": 0.999, **dict.fromkeys(["rotation", "saturation", "grey", "hue", "contrast", "light"], 0.0)}


def draw_scene(key):
    """Leaves of one scene: a dict of arrays with one row for each leaf, the topmost first."""
    keys = jax.random.split(key, 25)
    uniform, normal, k = jax.random.uniform, jax.random.normal, LEAVES
    smallest = jnp.exp(uniform(keys[23], (), minval=np.log(1.6), maxval=np.log(7.0)))
    light = 0.5 + 0.17 * normal(keys[8], ()) + 0.07 * normal(keys[9], (3,))
    spread, chroma = jnp.exp(0.3 * normal(keys[10], ())), jnp.exp(0.5 * normal(keys[11], ()))
    colour = light + 0.2 * spread * normal(keys[12], (k, 1)) + 0.08 * chroma * normal(keys[13], (k, 3))
    return {
        # Density r^-3, which makes the statistics alike at all scales (Lee, Mumford and Huang, 2001).
        "radius": 1 / jnp.sqrt(uniform(keys[0], (k,), minval=1 / 22.0**2, maxval=1 / smallest**2)),
        "place": uniform(keys[1], (k, 2), minval=-10.0, maxval=42.0),
        "aspect": jnp.exp(0.45 * normal(keys[2], (k,))),
        "angle": uniform(keys[3], (k,), maxval=2 * np.pi),
        "power": jnp.array([1.0, 1.5, 2.0, 2.0, 2.0, 4.0, 10.0])[jax.random.randint(keys[4], (k,), 0, 7)],
        "bumps": normal(keys[5], (k, 3)) * jnp.array([0.15, 0.12, 0.08]) * (uniform(keys[6], (k, 1)) < 0.5),
        "bump_phases": uniform(keys[7], (k, 3), maxval=2 * np.pi),
        "colour": colour,
        "other_colour": colour + 0.2 * spread * normal(keys[14], (k, 1)) + 0.06 * chroma * normal(keys[15], (k, 3)),
        "striped": uniform(keys[16], (k,)) < 0.5,
        "wavelengths": jnp.exp(uniform(keys[17], (k, 2), minval=np.log(2.5), maxval=np.log(16.0))),
        "wave_angles": uniform(keys[18], (k, 2), maxval=np.pi),
        "wave_phases": uniform(keys[19], (k, 2), maxval=2 * np.pi),
        "chequered": uniform(keys[20], (k,)) < 0.5,
        "sharpness": jnp.exp(uniform(keys[21], (k,), minval=-0.7, maxval=1.5)),
        "shade": 0.012 * normal(keys[22], (k, 2)),
        "blur": jnp.exp(uniform(keys[24], (k,), minval=np.log(0.6), maxval=np.log(4.0))),
    }


def draw_view(key, views):
    """A place to look from, and the light there."""
    keys = jax.random.split(key, 10)
    uniform, normal = jax.random.uniform, jax.random.normal
    scale = jnp.sqrt(uniform(keys[0], (), minval=views["area"], maxval=1.0))
    aspect = jnp.exp(uniform(keys[1], (), minval=-0.2, maxval=0.2))
    angle = views["rotation"] * normal(keys[2], ())
    flip = jnp.where(uniform(keys[3], ()) < 0.5, -1.0, 1.0)
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    saturation = uniform(keys[5], (), minval=1 - views["saturation"], maxval=1 + views["saturation"])
    return {
        "map": turn * scale * jnp.array([aspect, flip / aspect]),
        "shift": uniform(keys[4], (2,), minval=-1.0, maxval=1.0) * (1 - scale) * 16.0,
        "scale": scale,
        "saturation": saturation * jnp.where(uniform(keys[6], ()) < views["grey"], 0.0, 1.0),
        "hue": views["hue"] * normal(keys[7], ()),
        "contrast": jnp.exp(views["contrast"] * normal(keys[8], ())),
        "light": views["light"] * normal(keys[9], ()),
    }


def render(scene, view, key):
    """One scene from one place: pixels (SIZE, SIZE, 3) in [0, 1]."""
    where = GRID @ view["map"].T + view["shift"] + (SIZE - 1) / 2

    def lay(leaf, under):
        pixels, free = under
        apart = where - leaf["place"]
        cos, sin, root = jnp.cos(leaf["angle"]), jnp.sin(leaf["angle"]), jnp.sqrt(leaf["aspect"])
        along, across = (cos * apart[:, 0] + sin * apart[:, 1]) / root, (cos * apart[:, 1] - sin * apart[:, 0]) * root
        u, v = jnp.abs(along) + 1e-4, jnp.abs(across) + 1e-4
        larger, power = jnp.maximum(u, v), leaf["power"]
        distance = larger * ((u / larger) ** power + (v / larger) ** power) ** (1 / power)
        direction = jnp.arctan2(across, along)
        outline = 1 + sum(leaf["bumps"][i] * jnp.cos((i + 2) * direction + leaf["bump_phases"][i]) for i in range(3))
        cover = jax.nn.sigmoid((leaf["radius"] * outline - distance) * 4.0 / leaf["blur"] / view["scale"])
        waves = [
            jnp.sin(
                2
                * np.pi
                * (jnp.cos(leaf["wave_angles"][i]) * apart[:, 0] + jnp.sin(leaf["wave_angles"][i]) * apart[:, 1])
                / leaf["wavelengths"][i]
                + leaf["wave_phases"][i]
            )
            for i in range(2)
        ]
        mix = 0.5 + 0.5 * jnp.tanh(leaf["sharpness"] * (waves[0] + leaf["chequered"] * waves[1]))
        colour = leaf["colour"] + (leaf["striped"] * mix)[:, None] * (leaf["other_colour"] - leaf["colour"])
        colour = colour + (apart @ leaf["shade"])[:, None]
        return pixels + (free * cover)[:, None] * colour, free * (1 - cover)

    def lay_one(i, under):
        return lay({name: rows[i] for name, rows in scene.items()}, under)

    nothing = jnp.zeros((SIZE * SIZE, 3)), jnp.ones(SIZE * SIZE)
    heap = jax.lax.fori_loop(0, LEAVES - 1, lay_one, nothing)
    ground = {name: rows[LEAVES - 1] for name, rows in scene.items()}
    pixels, _ = lay({**ground, "radius": 1e4}, heap)
    grey = pixels.mean(1, keepdims=True)
    pixels = grey + view["saturation"] * (pixels - grey)
    cos, sin = jnp.cos(view["hue"]), jnp.sin(view["hue"]) / np.sqrt(3.0)
    rest = (1 - cos) / 3
    row = [cos + rest, rest - sin, rest + sin]  # a rotation around the grey axis
    pixels = pixels @ jnp.array([row, row[-1:] + row[:-1], row[-2:] + row[:-2]]).T
    mean = pixels.mean()
    pixels = (pixels - mean) * view["contrast"] + mean + view["light"]
    strength, noise = jax.random.split(key)
    pixels = pixels + 0.04 * jax.random.uniform(strength, ()) * jax.random.normal(noise, pixels.shape)
    return jnp.clip(pixels, 0, 1).reshape(SIZE, SIZE, 3)


def draw(key, count, views, times):
    """`times` views of each of `count` new scenes: a list of arrays (count, SIZE, SIZE, 3)."""
    keys = jax.random.split(key, 1 + 2 * times)
    scenes = jax.vmap(draw_scene)(jax.random.split(keys[0], count))
    images = []
    for i in range(times):
        places = jax.vmap(functools.partial(draw_view, views=views))(jax.random.split(keys[1 + 2 * i], count))
        images.append(jax.vmap(render)(scenes, places, jax.random.split(keys[2 + 2 * i], count)))
    return images


def residual_network(width, blocks=2, stages=3):
    """Outputs of its blocks; stage s works on maps of a 2^s-th of the image's side."""

    def convolution(x, filters, size, strides=1):
        x = layers.Conv2D(
            filters, size, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal"
        )(x)
        return layers.BatchNormalization(momentum=0.95)(x)

    inputs = keras.Input((None, None, 3))
    x = layers.ReLU()(convolution(layers.Rescaling(4.0, -2.0)(inputs), width // 2, 3))
    outputs = []
    for stage in range(stages):
        for block in range(blocks):
            filters, strides = width * 2**stage, 2 if block == 0 else 1
            branch = convolution(layers.ReLU()(convolution(x, filters, 3, strides)), filters, 3)
            skip = convolution(x, filters, 1, strides) if block == 0 else x
            x = layers.ReLU()(layers.Add()([branch, skip]))
            outputs.append(x)
    return keras.Model(inputs, outputs)


def train(arguments):
    """Contrastive training; returns the network and the last value of the loss."""
    network = residual_network(arguments.width)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.GlobalAveragePooling2D()(network(inputs)[-1])
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.95)(layers.Dense(512, use_bias=False)(x)))
    model = keras.Model(inputs, layers.Activation("linear", dtype="float32")(layers.Dense(128, use_bias=False)(x)))
    weights = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]
    means, squares = [jnp.zeros_like(w) for w in weights], [jnp.zeros_like(w) for w in weights]
    batch = arguments.batch_size

    def contrast(weights, state, images):
        z, state = model.stateless_call(weights, state, images, training=True)
        z = z / (1e-6 + jnp.linalg.norm(z, axis=1, keepdims=True))
        half = z.astype(jnp.bfloat16)
        likeness = (half @ half.T).astype(jnp.float32) / arguments.temperature
        likeness = jnp.where(jnp.eye(2 * batch, dtype=bool), -1e9, likeness)
        partner = (z * jnp.roll(z, batch, 0)).sum(1) / arguments.temperature
        return (jax.nn.logsumexp(likeness, 1) - partner).mean(), state

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def step(weights, state, means, squares, key, count, rate):
        images = jnp.concatenate(draw(key, batch, VIEWS, times=2))
        (loss, state), slopes = jax.value_and_grad(contrast, has_aux=True)(weights, state, images)
        means = [0.9 * m + 0.1 * s for m, s in zip(means, slopes, strict=True)]
        squares = [0.98 * q + 0.02 * s * s for q, s in zip(squares, slopes, strict=True)]
        weights = [
            w - rate * (m / (1 - 0.9**count) / (jnp.sqrt(q / (1 - 0.98**count)) + 1e-8) + 1e-4 * w * (w.ndim > 1))
            for w, m, q in zip(weights, means, squares, strict=True)
        ]
        return weights, state, means, squares, loss

    key = jax.random.key(arguments.seed)
    for count in range(1, arguments.steps + 1):
        rate = arguments.learning_rate * min(1, count / 100) * 0.5 * (1 + np.cos(np.pi * count / arguments.steps))
        weights, state, means, squares, loss = step(
            weights, state, means, squares, jax.random.fold_in(key, count), jnp.float32(count), jnp.float32(rate)
        )
        if count % 200 == 0:
            print(count, round(float(loss), 3), flush=True)
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
    return network, float(loss)


def folded(network, blocks):
    """Kernels and biases of the convolutions up to the last of `blocks`, normalisation folded in.

    Returns:
        Dict of arrays, `kernel_<i>` in half precision and `bias_<i>`, in the order in which the layers were made.
    """
    until = network.outputs[max(blocks)]._keras_history.operation
    used = network.layers[: network.layers.index(until) + 1]
    convolutions = [layer for layer in used if isinstance(layer, layers.Conv2D)]
    arrays = {}
    for i, convolution in enumerate(sorted(convolutions, key=_number)):
        [node] = convolution._outbound_nodes
        mean, variance = np.asarray(node.operation.moving_mean), np.asarray(node.operation.moving_variance)
        scale = np.asarray(node.operation.gamma) / np.sqrt(variance + node.operation.epsilon)
        arrays[f"kernel_{i}"] = (np.asarray(convolution.kernel) * scale).astype("float16")
        arrays[f"bias_{i}"] = (np.asarray(node.operation.beta) - mean * scale).astype("float32")
    return arrays


def _number(layer):
    return int(layer.name.rsplit("_", 1)[1]) if layer.name.rsplit("_", 1)[-1].isdigit() else 0


def whitening(network, blocks, images, ridge=0.1, grid=4):
    """Mean maps and whitening matrices of the channels, over drawn scenes.

    Returns:
        Dict of float32 arrays: `mean_<j>` (grid, grid, channels) and `whitening_<j>` (channels, channels) for the j-th
        of `blocks`. What is centred and whitened has norm 1 on the average.
    """
    parts = [[] for _ in blocks]
    for i in range(0, len(images), 512):
        outputs = network(jnp.asarray(images[i : i + 512], jnp.float32) / 255.0, training=False)
        for part, block in zip(parts, blocks, strict=True):
            x = np.asarray(outputs[block], "float32")
            n, side = len(x), x.shape[1] // grid
            part.append(x.reshape(n, grid, side, grid, side, -1).mean((2, 4)))
    arrays = {}
    for j, part in enumerate(parts):
        maps = np.concatenate(part).astype("float64")
        mean = maps.mean(0)
        rows = (maps - mean).reshape(-1, maps.shape[-1])
        values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
        matrix = vectors / np.sqrt(values + ridge * values.mean())
        matrix /= np.sqrt(np.square((maps - mean) @ matrix).sum((1, 2, 3)).mean())
        arrays[f"mean_{j}"], arrays[f"whitening_{j}"] = mean.astype("float32"), matrix.astype("float32")
    return arrays


def drawn_images(count):
    """Scenes as uint8 images, always the same."""
    one = jax.jit(lambda key: draw(key, 256, ONE_VIEW, times=1)[0])
    parts = [np.asarray(one(jax.random.key(1000 + i))) for i in range(count // 256)]
    return (np.concatenate(parts) * 255 + 0.5).astype("uint8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=5707)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--policy", default="mixed_bfloat16")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3], help="blocks whose outputs are features")
    parser.add_argument("--scenes", type=int, default=20480, help="number of scenes for the whitening")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    started = time.perf_counter()
    keras.mixed_precision.set_global_policy(arguments.policy)
    keras.utils.set_random_seed(arguments.seed)
    trained, loss = train(arguments)
    keras.mixed_precision.set_global_policy("float32")
    network = residual_network(arguments.width)
    network.set_weights(trained.get_weights())
    arrays = folded(network, arguments.blocks)
    arrays |= whitening(network, arguments.blocks, drawn_images(arguments.scenes))
    np.savez_compressed(arguments.output, **arrays)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    print(json.dumps({**settings, "loss": loss, "seconds": round(time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
