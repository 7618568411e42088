"""What the user declares: the privacy parameters and the public facts about the data."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from deel.lipdp import _checks
from deel.lipdp._types import Strategy

__all__ = ["DPParameters", "DatasetMetadata", "STRATEGIES"]

# Every accepted spelling -> the strategy it means. "local" is what published examples of the method write.
STRATEGIES = {
    "per-layer": "per-layer",
    "local": "per-layer",
    "global": "global",
    "optimal": "optimal",
}


@dataclasses.dataclass(frozen=True)
class DPParameters:
    """Noise and privacy parameters of a training.

    Args:
        noisify_strategy: `"per-layer"` (alias `"local"`): each variable gets noise in proportion to its own gradient
            bound, times the `nm_coef` of its layer; `"global"`: every variable gets one stddev, in proportion to the
            norm of all bounds together; `"optimal"`: the allocation with the least total noise energy for the same
            privacy, where the noise on a layer counts as divided by its `nm_coef`.
        noise_multiplier: float >= 0, stddev of the noise over the L2 sensitivity: of one layer for `"per-layer"`, of
            all the gradients together otherwise. Zero adds no noise and reports infinite epsilon.
        delta: float in (0, 1), the probability the guarantee leaves out; well below one over the number of examples.
        noise_seed: int or None. An int makes the noise reproducible, for tests and studies only: whoever knows the seed
            can subtract the noise, so epsilon is reported as infinite.
        secure_noise: bool. True draws the noise from a cryptographic generator and adds it in integers: slower, and
            without XLA. `SECURITY.md` says what that protects against. Needs `pip install lipdp[secure]`.

    Raises:
        TypeError: for an unknown strategy or an argument of the wrong type.
        ValueError: for a number out of range, or for secure noise from a seed.
    """

    noisify_strategy: Strategy
    noise_multiplier: float
    delta: float
    noise_seed: int | None = None
    secure_noise: bool = False

    def __post_init__(self):
        who = "DPParameters"
        strategy = _checks.choice(who, "noisify_strategy", self.noisify_strategy, STRATEGIES, error=TypeError)
        multiplier = _checks.number(who, "noise_multiplier", self.noise_multiplier, at_least=0.0)
        delta = _checks.number(who, "delta", self.delta, above=0.0, below=1.0)
        object.__setattr__(self, "noisify_strategy", strategy)
        object.__setattr__(self, "noise_multiplier", multiplier)
        object.__setattr__(self, "delta", delta)
        if self.noise_seed is not None:
            seed = _checks.integer(who, "noise_seed", self.noise_seed, at_least=0)
            object.__setattr__(self, "noise_seed", seed)
        if not isinstance(self.secure_noise, bool):
            received = f"secure_noise={self.secure_noise!r}"
            raise TypeError(_checks.message(who, "secure_noise to be True or False", received, "Pass a bool."))
        if self.secure_noise and self.noise_seed is not None:
            raise ValueError(
                _checks.message(
                    who,
                    "no noise_seed together with secure_noise=True",
                    f"noise_seed={self.noise_seed}",
                    "Noise from a known seed protects nothing: leave one of them out.",
                )
            )


@dataclasses.dataclass(frozen=True)
class DatasetMetadata:
    """Public facts about the training data. They must not be computed from private records.

    Args:
        input_shape: tuple of int, shape of one example, without the batch axis.
        nb_classes: int or None, number of classes.
        nb_samples_train: int, number of training examples n.
        nb_samples_test: int or None, number of test examples.
        class_names: sequence of str or None.
        nb_steps_per_epochs: int or None, steps in one epoch; `ceil(n / batch_size)` when None.
        batch_size: int, the constant B by which the summed gradient is divided: the expected size of a Poisson batch.
        max_norm: float, bound on the Euclidean norm of one example; what `DP_BoundedInput` enforces.
        sampling: `"poisson"` or `"shuffled"` when that sampler makes the batches, None (not declared) otherwise.
            Training data that were not made by such a sampler are refused when this says they were.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for a number out of range or an unknown sampling.
    """

    input_shape: tuple[int, ...]
    nb_samples_train: int
    batch_size: int
    max_norm: float
    nb_classes: int | None = None
    nb_samples_test: int | None = None
    class_names: Sequence[str] | None = None
    nb_steps_per_epochs: int | Any = None  # Any for the None that it may be made with, and then is not
    sampling: Literal["poisson", "shuffled", "undeclared"] | None = None

    def __post_init__(self):
        who = "DatasetMetadata"
        if not isinstance(self.input_shape, (tuple, list)):
            raise TypeError(
                _checks.message(
                    who,
                    "input_shape to be a tuple of integers",
                    f"input_shape={self.input_shape!r}",
                    "Pass the shape of one example, without the batch axis.",
                )
            )
        clean = {
            "input_shape": tuple(_checks.integer(who, "input_shape", d) for d in self.input_shape),
            "nb_samples_train": _checks.integer(who, "nb_samples_train", self.nb_samples_train),
            "batch_size": _checks.integer(
                who,
                "batch_size",
                self.batch_size,
                at_most=int(self.nb_samples_train),
                remedy="A batch cannot be larger than the training set.",
            ),
            "max_norm": _checks.number(who, "max_norm", self.max_norm, above=0.0),
        }
        for name, least in (("nb_classes", 1), ("nb_samples_test", 0)):
            if getattr(self, name) is not None:
                clean[name] = _checks.integer(who, name, getattr(self, name), at_least=least)
        steps = math.ceil(clean["nb_samples_train"] / clean["batch_size"])
        if self.nb_steps_per_epochs is not None:
            steps = _checks.integer(who, "nb_steps_per_epochs", self.nb_steps_per_epochs)
        clean["nb_steps_per_epochs"] = steps
        if self.class_names is not None:
            clean["class_names"] = tuple(str(name) for name in self.class_names)
        clean["sampling"] = _checks.choice(
            who,
            "sampling",
            self.sampling,
            {None: None, "undeclared": None, "poisson": "poisson", "shuffled": "shuffled"},
        )
        for name, value in clean.items():
            object.__setattr__(self, name, value)
