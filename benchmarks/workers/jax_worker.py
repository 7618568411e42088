"""Steps of JAX: `plain`, `optax` (its differentially private gradients, by vmap) and `jax_privacy` (microbatches)."""

from worker import pin_to_one_core, serve

pin_to_one_core()

import functools  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax_privacy  # noqa: E402
import optax  # noqa: E402
import optax.contrib  # noqa: E402
import workloads  # noqa: E402

MAX_GRAD_NORM = 1.0
NOISE_MULTIPLIER = 1.0
MICROBATCH = 16


def _apply(layer, parameters, x):
    match layer:
        case workloads.Conv():
            strides = (layer.strides, layer.strides)
            numbers = ("NHWC", "HWIO", "NHWC")
            kernel = parameters.pop(0)
            return jax.lax.conv_general_dilated(x, kernel, strides, layer.padding.upper(), dimension_numbers=numbers)
        case workloads.Activation():
            return jax.nn.relu(x)
        case workloads.Pool():
            window, strides = (1, layer.size, layer.size, 1), (1, layer.strides, layer.strides, 1)
            return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")
        case workloads.Flatten():
            return x.reshape(len(x), -1)
        case workloads.Dense():
            return x @ parameters.pop(0)


def forward(workload, parameters, x):
    parameters = list(parameters)
    for layer in workload.layers:
        x = _apply(layer, parameters, x)
    return x


def initial_parameters(workload):
    """Kernels, their shapes found by passing an example through the layers before."""
    x, parameters = jnp.zeros((1, *workload.input_shape)), []
    for layer in workload.layers:
        own = []
        if isinstance(layer, workloads.Conv):
            own = [(layer.kernel_size, layer.kernel_size, x.shape[-1], layer.filters)]
        if isinstance(layer, workloads.Dense):
            own = [(x.shape[-1], layer.units)]
        own = [0.1 * jax.random.normal(jax.random.key(len(parameters)), shape) for shape in own]
        parameters += own
        x = _apply(layer, list(own), x)
    return parameters


def make_step(arm, workload, batch_size):
    parameters = initial_parameters(workload)
    x = jax.random.uniform(jax.random.key(1), (batch_size, *workload.input_shape))
    y = jax.random.randint(jax.random.key(2), (batch_size,), 0, workload.num_classes)
    optimizer = optax.sgd(1e-2, momentum=0.9)

    def loss(parameters, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(forward(workload, parameters, x), y).mean()

    if arm == "plain":
        gradients = jax.grad(loss)
    elif arm == "optax":
        optimizer = optax.contrib.dpsgd(1e-2, MAX_GRAD_NORM, NOISE_MULTIPLIER, 0, momentum=0.9)

        def gradients(parameters, x, y):
            one = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))
            return one(parameters, x[:, None], y[:, None])

    else:
        clipped = jax_privacy.clipped_grad(
            loss, l2_clip_norm=MAX_GRAD_NORM, batch_argnums=(1, 2), normalize_by=batch_size, microbatch_size=MICROBATCH
        )
        noise = jax_privacy.noise_addition.gaussian_privatizer(
            stddev=NOISE_MULTIPLIER * clipped.sensitivity(), prng_key=jax.random.key(0)
        )
        optimizer = optax.chain(noise, optimizer)
        gradients = clipped

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(parameters, state, x, y):
        updates, state = optimizer.update(gradients(parameters, x, y), state, parameters)
        return optax.apply_updates(parameters, updates), state

    held = [parameters, optimizer.init(parameters)]

    def step():
        held[:] = update(*held, x, y)
        jax.block_until_ready(held)

    versions = {"jax": jax.__version__, "optax": optax.__version__, "jax-privacy": jax_privacy.__version__}
    return step, versions


if __name__ == "__main__":
    serve(make_step)
