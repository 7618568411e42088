"""Names for the types that public signatures share."""

import os
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

__all__ = [
    "Activation",
    "Bound",
    "BoundedMap",
    "Initializer",
    "Ints",
    "LogFn",
    "PathLike",
    "Shape",
    "Strategy",
    "Tensor",
]

# A tensor of the backend, a symbolic one, a variable or an array: what Keras's operations take has no common class.
Tensor: TypeAlias = Any

# Sizes of axes. None is one that is not known, such as the batch; Any stands for it, since no check of a shape tells
# a type checker which sizes are known.
Shape: TypeAlias = tuple[int | Any, ...]

# A bound on a gradient: a float, or a float64 scalar tensor where a clip value moves.
Bound: TypeAlias = float | Tensor

# One integer or several, one for each axis: what `_checks.integers` takes.
Ints: TypeAlias = int | tuple[int, ...] | list[int]

# What Keras makes an initializer of: a name, a configuration, an initializer.
Initializer: TypeAlias = str | dict[str, Any] | Callable[..., Tensor]

# An activation of a layer with a kernel: its name, or Keras's function itself.
Activation: TypeAlias = str | Callable[[Tensor], Tensor] | None

PathLike: TypeAlias = str | os.PathLike[str]

# Where callbacks report to; see `_reporting.resolve_log_fn`.
LogFn: TypeAlias = Literal["all", "logging", "wandb"] | Callable[[dict[str, Any]], object]

# The keys of `parameters.STRATEGIES`.
Strategy: TypeAlias = Literal["optimal", "global", "per-layer", "local"]


class BoundedMap(Protocol):
    """A function of arrays (n, ...) that treats examples independently, and the norm of one that it guarantees."""

    @property
    def bound(self) -> float: ...

    def __call__(self, x: np.ndarray, /) -> np.ndarray: ...
