"""Arithmetic on bounds: Python floats wherever they are constants, float64 scalar tensors where a clip value moves."""

import math

from keras import ops

__all__ = ["is_constant", "maximum", "minimum", "sqrt"]


def is_constant(value):
    """Whether a bound is known without running the graph."""
    return isinstance(value, (int, float))


def minimum(a, b):
    """The smaller of two bounds."""
    return min(a, b) if is_constant(a) and is_constant(b) else ops.minimum(_tensor(a), _tensor(b))


def maximum(a, b):
    """The larger of two bounds."""
    return max(a, b) if is_constant(a) and is_constant(b) else ops.maximum(_tensor(a), _tensor(b))


def sqrt(value):
    """The square root of a bound."""
    return math.sqrt(value) if is_constant(value) else ops.sqrt(value)


def _tensor(value):
    # A cast would take a Python float through single precision.
    return ops.convert_to_tensor(value, dtype="float64") if is_constant(value) else ops.cast(value, "float64")
