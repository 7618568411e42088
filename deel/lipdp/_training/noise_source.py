"""Where the noise comes from: a counter-based generator by default, a cryptographic one on request."""

import os

import numpy as np
import tensorflow as tf
from scipy.special import ndtri

from deel.lipdp import _checks, _scalars

__all__ = ["NoiseSource", "SecureNoiseSource", "make_noise_source"]

# Normals that are summed into one by the secure source, as Holohan and Braghin (2021) advise; a power of 4, so that
# division by the square root is exact.
_SUMMED = 4

# The secure source counts in units of stddev / 2^32. Rounding to units moves two neighbouring gradients of d entries
# apart by at most sqrt(d) units: 2.4e-7 stddev for a million parameters, far inside the slack of the bounds.
_UNITS = 2.0**32

_CHUNK = 2**16  # entries made at a time: the words of one chunk stay in the processor's cache


class NoiseSource:
    """Gaussian noise from a 128-bit key and a counter that never repeats within the life of the key.

    The key comes from the operating system, or from a seed for tests and studies. It is in no checkpoint, log or
    config. Philox, the generator, is fast and statistically sound; it is not a cryptographic one.

    Args:
        seed: int or None.

    Attributes:
        seeded: bool, whether the noise can be known from a seed.
        draws: int64 variable, how often noise was drawn.
    """

    def __init__(self, seed=None):
        self.seeded = seed is not None
        if seed is None:
            key = np.frombuffer(os.urandom(16), dtype=np.int64)
        else:
            key = np.random.SeedSequence(seed).generate_state(2, np.uint64).view(np.int64)
        self._key = tf.Variable(key, trainable=False, name="noise_key")
        self.draws = tf.Variable(0, dtype=tf.int64, trainable=False, name="noise_draws")

    def __getstate__(self):
        raise TypeError("NoiseSource holds a secret key and cannot be copied or pickled.")

    def add(self, gradients, stddevs):
        """Adds independent noise to each tensor; one call of the generator for all of them.

        The generator makes words and not normals: TensorFlow's own normals end at 5.68 standard deviations, those of
        `_normals_in_pairs` at 9.49, and it is three times as fast. The draw's number goes into the key directly, which
        keeps all its 128 bits (folding it in with `stateless_fold_in` would keep 64).

        Args:
            gradients: list of tensors.
            stddevs: list of float or scalar tensor, one for each tensor.

        Returns:
            list of tensors.
        """
        if _all_zero(stddevs):
            return list(gradients)
        draw = self.draws.assign_add(1)
        seed = tf.stack([tf.bitwise.bitwise_xor(self._key[0], draw), self._key[1]])
        sizes = [int(np.prod(g.shape)) for g in gradients]
        pairs = -(-sum(sizes) // 2)
        words = tf.random.stateless_uniform(
            [pairs + -(-pairs // 2)], seed, minval=None, maxval=None, dtype=tf.uint64, alg="philox"
        )
        angles = tf.reshape(tf.bitcast(words[pairs:], tf.int32), [-1])[:pairs]
        noise = tf.split(_normals_in_pairs(words[:pairs], angles)[: sum(sizes)], sizes)
        return [
            g + tf.cast(tf.reshape(n, g.shape), g.dtype) * tf.cast(stddev, g.dtype)
            for g, n, stddev in zip(gradients, noise, stddevs, strict=True)
        ]


class SecureNoiseSource:
    """Gaussian noise from ChaCha20, added to the gradient in integers.

    Every chunk of noise has a 256-bit key of its own from the operating system that is kept nowhere: there is no state
    to save, and none that a fork of the process could repeat. It runs on the CPU, outside XLA.

    Three things make the low bits of the result say less about the gradient than those of a floating-point sum do.
    Normals come by inversion from 64-bit words, symmetric and 9.15 standard deviations far. Four are summed, so that
    nobody can run through all values the noise can take (Mironov 2012; Holohan and Braghin 2021; Jin, McMurtry,
    Rubinstein and Ohrimenko 2022). And both the gradient and the noise are rounded to multiples of stddev / 2^32
    *before* they are added, as in Google's Secure Noise Generation (2020): integers add without error, and the result
    is a function of their sum alone, so its precision does not depend on the gradient (Haney, Desfontaines, Hartman,
    Shrestha and Hay 2022: summing draws alone does not answer that). How far the rounded noise is from a rounded
    Gaussian is tested and not proved.

    Raises:
        ImportError: if the package `cryptography` is not installed.
    """

    seeded = False

    def __init__(self):
        _chacha20()  # a missing library shows now and not at the first step
        self.draws = tf.Variable(0, dtype=tf.int64, trainable=False, name="noise_draws")

    def __getstate__(self):
        raise TypeError("SecureNoiseSource makes secret noise and cannot be copied or pickled.")

    def add(self, gradients, stddevs):
        """Adds independent noise to each tensor. Arguments and result: see `NoiseSource.add`."""
        if _all_zero(stddevs):
            return list(gradients)
        self.draws.assign_add(1)
        sizes = [int(np.prod(g.shape)) for g in gradients]
        # A stateful operation: TensorFlow neither folds it into a constant nor merges two of them.
        noise = tf.numpy_function(lambda: _integer_noise(sum(sizes)), [], tf.float64, stateful=True)
        noise = tf.split(tf.ensure_shape(noise, [sum(sizes)]), sizes)
        return [_add_in_units(g, n, stddev) for g, n, stddev in zip(gradients, noise, stddevs, strict=True)]


def make_noise_source(parameters):
    """The noise source that `DPParameters` call for.

    Args:
        parameters: `DPParameters`.

    Returns:
        `SecureNoiseSource` or `NoiseSource`.

    Raises:
        ImportError: if they ask for secure noise and the package `cryptography` is not installed.
    """
    return SecureNoiseSource() if parameters.secure_noise else NoiseSource(parameters.noise_seed)


def _all_zero(stddevs):
    return all(_scalars.is_constant(stddev) and stddev == 0 for stddev in stddevs)


def _normals_in_pairs(radii, angles):
    """Independent standard normals by the method of Box and Muller, two for each pair of words; float32.

    The radius is `sqrt(-2 log u)` for u a multiple of 2^-64 in single precision, which keeps its 24 leading bits
    however small it is: the smallest gives 9.49.

    Args:
        radii: uint64 tensor (n,), uniform.
        angles: int32 tensor (n,), uniform.

    Returns:
        float32 tensor (2 n,).
    """
    uniform = (tf.cast(radii, "float32") + 0.5) * np.float32(2.0**-64)
    radius = tf.sqrt(-2.0 * tf.math.log(uniform))
    angle = tf.cast(angles, "float32") * np.float32(np.pi * 2.0**-31)
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=0)


def _add_in_units(gradient, noise, stddev):
    """The gradient in units of stddev / 2^32, plus noise of whole units, times the unit."""
    # tf.cast would take a Python float through single precision.
    stddev = tf.constant(stddev, "float64") if _scalars.is_constant(stddev) else tf.cast(stddev, "float64")
    # Of several stddevs one may be 0: nothing is released there, rather than a gradient without noise.
    integers = tf.round(tf.math.divide_no_nan(tf.cast(gradient, "float64"), stddev) * _UNITS)
    # Beyond 2^53 float64 rounds the sum: correctly, hence still as a function of the exact sum alone.
    total = integers + tf.reshape(noise, gradient.shape)
    return tf.cast(total * (stddev / _UNITS), gradient.dtype)


def _integer_noise(count):
    """`count` independent normals of stddev 2^32, rounded to integers; float64."""
    noise = np.empty(count)
    for start in range(0, count, _CHUNK):
        part = noise[start : start + _CHUNK]
        words = np.frombuffer(_keystream(8 * _SUMMED * part.size), np.uint64).reshape(_SUMMED, part.size)
        np.rint(_normals(words).sum(0) * (_UNITS / np.sqrt(_SUMMED)), out=part)
    return noise


def _normals(words):
    """Standard normals by inversion, from uniform 64-bit words: a sign, and 63 bits of the tail's probability."""
    # Both tails come from small probabilities, where float64 is finest; half a step keeps the smallest above zero.
    tail = ((words >> np.uint64(1)).astype("float64") + 0.5) * 2.0**-64
    return np.where(words & np.uint64(1), -1.0, 1.0) * ndtri(tail)


def _keystream(size):
    """`size` bytes of ChaCha20, under a key that exists for this call only."""
    encryptor = _chacha20()(os.urandom(32))
    return encryptor.update(bytes(size))


def _chacha20():
    """The function from a 32-byte key to an encryptor."""
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    except ImportError as error:
        raise ImportError(
            _checks.message(
                "DPParameters",
                "the package cryptography, for secure_noise=True",
                "it is not installed",
                "Run: pip install lipdp[secure]",
            )
        ) from error
    # The nonce may be constant, since no key is used twice.
    return lambda key: Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
