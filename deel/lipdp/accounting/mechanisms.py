"""`DPGD_Mechanism`, the established entry point for users of autodp."""

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from deel.lipdp import _checks
from deel.lipdp.accounting.accountants import RDPAccountant
from deel.lipdp.accounting.events import GaussianStep, PoissonSampling
from deel.lipdp.accounting.relations import merge

if TYPE_CHECKING:
    from autodp.autodp_core import Mechanism

__all__ = ["DPGD_Mechanism"]


def _of_all_layers(who, noise_multiplier):
    return _checks.number(who, "noise_multipliers", noise_multiplier, at_least=0.0)


def _of_each_layer(who, noise_multipliers):
    try:
        multipliers = list(noise_multipliers)
    except TypeError:
        multipliers = []
    if not multipliers:
        expected = "noise_multipliers to be a non-empty sequence of numbers, one per layer"
        received = f"noise_multipliers={noise_multipliers!r}"
        remedy = "Use mode='global' for one joint multiplier."
        raise TypeError(_checks.message(who, expected, received, remedy))
    multipliers = [_checks.number(who, "noise_multipliers", value, at_least=0.0) for value in multipliers]
    if min(multipliers) == 0.0:
        return 0.0  # one layer without noise: no privacy at all
    # hypot, because squares of extreme multipliers overflow
    return 1.0 / math.hypot(*(1.0 / multiplier for multiplier in multipliers))


_MODES = {"global": _of_all_layers, "per-layer": _of_each_layer, "local": _of_each_layer}


class DPGD_Mechanism:
    """Noisy gradient descent with Poisson sampling, as one mechanism priced by RDP.

    Releases the noisy gradients of all steps. The neighbouring relation is `add_or_remove_one`; each example enters
    each step independently with probability `prob`, and `prob=1` is full-batch descent.

    It can be given to an autodp `Composition`: every attribute of an autodp `Mechanism` (`RenyiDP`, `get_approxDP`,
    ...) is read from `as_autodp()`. It is not a subclass of `Mechanism`, since autodp takes seconds to import.

    Args:
        mode: `"global"`: `noise_multipliers` is one float, stddev of the noise over the L2 sensitivity of all gradients
            together. `"per-layer"` or `"local"`: a list of floats sigma_k, each stddev over the sensitivity of its own
            layer; together they are one Gaussian of multiplier `1 / sqrt(sum of 1 / sigma_k^2)`.
        prob: float in (0, 1], the Poisson sampling probability.
        noise_multipliers: float >= 0 or list of them, see `mode`. Zero costs infinite epsilon.
        num_grad_steps: int >= 0, number of steps.
        delta: float in (0, 1).
        name: str, the name in autodp's compositions.

    Attributes:
        delta: float, as given.
        epsilon: float >= 0, the RDP epsilon of all steps at `delta`.
        noise_multiplier: float, the joint one.
        params: dict of the above, as autodp names it.

    Raises:
        TypeError: for an unknown mode or an argument of the wrong type.
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        mode: Literal["global", "per-layer", "local"],
        prob: float,
        noise_multipliers: float | Iterable[float],
        num_grad_steps: int,
        delta: float,
        name: str = "DPGD_Mechanism",
    ) -> None:
        who = "DPGD_Mechanism"
        joint = _checks.choice(who, "mode", mode, _MODES, error=TypeError)
        self.noise_multiplier = joint(who, noise_multipliers)
        prob = _checks.number(who, "prob", prob, above=0.0, at_most=1.0)
        steps = _checks.integer(who, "num_grad_steps", num_grad_steps, at_least=0)
        self.delta = _checks.number(who, "delta", delta, above=0.0, below=1.0)
        self.name = str(name)
        self.params = {"prob": prob, "noise_multiplier": self.noise_multiplier, "num_grad_steps": steps}
        self._entries = [(GaussianStep(PoissonSampling(prob), self.noise_multiplier), steps)]

    @functools.cached_property
    def epsilon(self) -> float:
        """float, epsilon of all steps at `delta`; computed when first read."""
        return RDPAccountant().epsilon(self._entries, self.delta)

    def as_autodp(self) -> "Mechanism":
        """Returns the `autodp.autodp_core.Mechanism` of all steps, made when first asked for."""
        return self._autodp

    @functools.cached_property
    def _autodp(self):
        from autodp.autodp_core import Mechanism

        terms = merge(self.name, self._entries)
        if any(term.multiplier == 0.0 for term in terms):
            mechanism = Mechanism()  # autodp's initial state: every divergence and epsilon infinite
        elif terms:
            mechanism = RDPAccountant()._compose(terms)
        else:
            mechanism = Mechanism()
            mechanism.propagate_updates(lambda order: 0.0, "RDP")
        mechanism.name, mechanism.params = self.name, dict(self.params)
        return mechanism

    def __getattr__(self, name: str) -> Any:
        # Only for names not found here. Private ones would recurse while unpickling.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._autodp, name)
