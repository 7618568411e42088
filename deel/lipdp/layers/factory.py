"""Layers of other libraries, on the caller's word that they are 1-Lipschitz."""

import functools

import keras

from deel.lipdp import _checks
from deel.lipdp._types import Shape
from deel.lipdp.layers._base import DPLayer, NonExpansive

__all__ = ["DP_GNP_Factory"]

# Keras's own layers that are 1-Lipschitz and zero at zero for all their arguments, and so are the gradients TensorFlow
# computes for them (at a tie, that of a maximum over axes is shared in equal parts, of norm below 1).
_SOUND_IN_KERAS = frozenset(
    [f"{kind}{axes}D" for kind in ("Cropping", "GlobalMaxPooling", "ZeroPadding") for axes in (1, 2, 3)]
    + ["Flatten", "Identity", "Permute", "Reshape"]
)

_RANDOM = "draws its masks from a known seed"

# Never sound, nor anything derived from them: class -> (why, what to use).
_UNSOUND = {
    keras.layers.BatchNormalization: ("mixes examples", "DP_LayerCentering"),
    keras.layers.Dropout: (_RANDOM, "DP_Dropout"),
    keras.layers.AlphaDropout: (_RANDOM, "DP_Dropout"),
    keras.layers.GaussianDropout: (_RANDOM, "DP_Dropout"),
    keras.layers.GaussianNoise: (_RANDOM, "DP_Dropout"),
    keras.layers.Lambda: ("has the constant of its function", "DP_Lambda, which asks for it"),
    keras.layers.InputLayer: ("is the entrance of a model", "DP_InputLayer"),
    keras.Model: ("is a model", "its layers one by one"),
}


def _refuse(who, expected, received, remedy, error=ValueError):
    raise error(_checks.message(who, expected, received, remedy))


class _Claimed(NonExpansive):
    """What a class of `DP_GNP_Factory` checks of each layer made from it."""

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.check()

    def check(self) -> None:
        who = f"{type(self).__name__} '{self.name}'"
        if self.variables:
            names = [variable.name for variable in self.variables]
            _refuse(who, "a layer without variables", f"{names}", "Subclass DPLayer and derive bounds for them.")
        constant = getattr(self, "k_coef_lip", 1.0)  # deel-lip's name for the constant of a layer
        if not 0.0 <= constant <= 1.0:
            _refuse(who, "a 1-Lipschitz layer", f"k_coef_lip={constant}", "Leave k_coef_lip at 1.")


def DP_GNP_Factory(layer_cls: type[keras.layers.Layer]) -> type[NonExpansive]:
    """A layer with bounds, made of a Keras layer class that **the caller claims** to be non-expansive.

    The claim, for every argument the class is then used with: 1-Lipschitz in the Euclidean norm of one example, zero at
    zero, without variables, and no example looks at another; in training as in inference, and for the gradient that the
    framework computes too, which at ties and kinks may be larger than the function's. Nothing in the library can prove
    it, and a false claim voids epsilon. What can be recognised as unsound is refused; to try the rest, run
    `deel.lipdp.testing.check_dp_layer` or `search_worst_case` on the layer in a test of your own.

    Meant for layers like deel-lip's `ScaledL2NormPooling2D`, or Keras's `ZeroPadding2D`. Most of Keras's own layers
    are 1-Lipschitz for some arguments only and are refused: they have counterparts in `deel.lipdp.layers`.

    Args:
        layer_cls: subclass of `keras.layers.Layer`.

    Returns:
        A subclass of it named `DP_<name>`, the same one for the same class, registered for saving under the package
        `deel-lipdp-gnp`. To load a model that uses it, call the factory first.

    Bounds: those of `NonExpansive`, on the caller's claim: `input_bound` and `gradient_bound`.

    Raises:
        TypeError: if `layer_cls` is no layer class, or has bounds already.
        ValueError: for a class known to break the claim. Its layers raise it too, at build and before training, if they
            hold variables or state a constant above 1 (deel-lip's `k_coef_lip`).

    Example:

    >>> import keras
    >>> from deel.lipdp.layers import DP_GNP_Factory
    >>> DP_GNP_Factory(keras.layers.ZeroPadding2D)(padding=2).propagate_inputs(1.0)
    1.0
    """
    who = "DP_GNP_Factory"
    if not isinstance(layer_cls, type) or not issubclass(layer_cls, keras.layers.Layer):
        _refuse(
            who,
            "a class of Keras layers",
            f"{layer_cls!r}",
            "Pass the class itself; for a function see DP_Lambda.",
            TypeError,
        )
    received = f"{layer_cls.__module__}.{layer_cls.__name__}"
    if issubclass(layer_cls, DPLayer):
        _refuse(who, "a layer without bounds of its own", received, "Use it as it is.", TypeError)
    for unsound, (reason, remedy) in _UNSOUND.items():
        if issubclass(layer_cls, unsound):
            _refuse(who, "a non-expansive layer", f"{received}, which {reason}", f"Use {remedy}.")
    if any(base.__module__.startswith("deel.lip.") and base.__name__ == "GroupSort" for base in layer_cls.__mro__):
        _refuse(
            who,
            "a non-expansive layer",
            f"{received}, whose gradient at ties is 1.41 times too large",
            "Use DP_GroupSort or DP_FullSort.",
        )
    if layer_cls.__module__.split(".")[0] == "keras" and layer_cls.__name__ not in _SOUND_IN_KERAS:
        _refuse(
            who,
            f"one of Keras's layers {sorted(_SOUND_IN_KERAS)}, or one of another library",
            received,
            "Use its counterpart in deel.lipdp.layers, or DP_Lambda with a constant that you can prove.",
        )
    return _make(layer_cls)  # type: ignore[arg-type]  # mypy takes no class for hashable


@functools.cache
def _make(layer_cls):
    name = f"DP_{layer_cls.__name__}"
    doc = f"`{layer_cls.__name__}`, non-expansive by the claim made to `DP_GNP_Factory`."
    made = type(name, (_Claimed, layer_cls), {"__doc__": doc, "__module__": layer_cls.__module__})
    registered = f"DP_{keras.saving.get_registered_name(layer_cls)}"
    return keras.saving.register_keras_serializable(package="deel-lipdp-gnp", name=registered)(made)
