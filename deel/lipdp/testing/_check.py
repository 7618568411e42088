"""`check_dp_layer`: everything the library asks of a layer, tried on one layer."""

import functools
import operator
import re
import textwrap
from collections.abc import Mapping, Sequence

from deel.lipdp.layers import DPLayer
from deel.lipdp.testing._contract import CHECKS, Trial
from deel.lipdp.testing._search import WorstCase
from deel.lipdp.testing._subject import Subject

__all__ = ["LayerCheckError", "check_dp_layer"]


class LayerCheckError(AssertionError):
    """What `check_dp_layer` found wrong with a layer.

    Args:
        layer: the layer.
        failures: dict, name of a check -> list of str.
        passed: int, number of checks that found nothing.
    """

    def __init__(self, layer: DPLayer, failures: Mapping[str, list[str]], passed: int) -> None:
        self.failures = failures
        lines = [f"- {name}: {text}" for name, texts in failures.items() for text in texts]
        total = len(failures) + passed
        head = f"{type(layer).__name__} '{layer.name}' fails {len(failures)} of {total} checks:"
        super().__init__("\n".join([head, *lines]))


def check_dp_layer(
    layer: DPLayer,
    input_shape: Sequence[int] | Sequence[Sequence[int]],
    *,
    input_bound: float | tuple[float, ...] = 1.0,
    gradient_bound: float | tuple[float, ...] = 1.0,
    restarts: int = 4,
    steps: int = 10,
    seed: int = 0,
) -> WorstCase:
    """Tries to show that a layer breaks what `DPLayer` asks of it. For anyone who writes a layer.

    What is tried, by the name that a failure is reported under:

    - `bound_values`: bounds are positive and finite Python floats (a float64 scalar tensor only where a weight that is
      not trained enters), as many as inputs and outputs; they never fall when a bound they get rises; small gradient
      bounds are only multiplied, a float64 tensor as gradient bound too; `has_parameters` and `check` agree;
    - `bounds`: none is exceeded by what `search_worst_case` finds over inputs, cotangents and admissible weights;
    - `bounds_after_updates`: nor after optimizer steps of pure noise, of size 0.1, 10 and 10,000;
    - `zero_input`, `extreme_inputs`: outputs and gradients are finite and within the bounds at zeros, ties, half-black,
      denormal, tiny and huge inputs, with cotangents from 1e-30 to 1e10;
    - `examples_independent`: another example in the batch changes no bit of an example's output and gradient; the
      parameter gradient of a batch is the sum of those of its examples;
    - `batch_sizes`: the same results in batches of 1, 2 and 7; an empty batch gives an empty output, gradient zero;
    - `no_state`: a call repeated gives the same, and changes no weight;
    - `output_shape`: `compute_output_shape` tells the truth;
    - `config`: the layer made anew from `get_config`, through JSON, has the same type, bounds, outputs and gradients;
    - `saving`: so has the layer of a model saved to a `.keras` file and loaded again;
    - `weights_from_outside`: weights set or loaded from outside the admissible set are brought back, others kept.

    Where a layer acts differently in training, all of it is tried in both modes. A layer that draws random numbers
    takes them from a `keras.random.SeedGenerator`, as Keras's own layers do: it is rewound between two calls to be
    compared. Batches of different sizes draw different numbers, so they are not compared then.

    Args:
        layer: a `DPLayer`, built or not, with one trainable variable at most. Its weights are put back afterwards. Its
            class has to be registered (`keras.saving.register_keras_serializable`) to be saved and loaded.
        input_shape: tuple of int, shape of one example, without the batch axis; for a layer with several inputs a list
            of such tuples.
        input_bound, gradient_bound: float > 0, norms of input and cotangent at which bounds are tried; a tuple of them
            states one for each input or output.
        restarts, steps: int, size of the search, see `search_worst_case`.
        seed: int.

    Returns:
        `WorstCase`: the largest norms found, each over its bound. Far below 1, the bound is loose (twice the bound is
        twice the noise) or the search did not find the worst case.

    Raises:
        LayerCheckError: an `AssertionError` that lists everything found wrong.
        TypeError, ValueError: if the layer cannot be tried at all.

    Example:

    >>> from deel.lipdp import layers, testing
    >>> worst = testing.check_dp_layer(layers.DP_QuickSpectralDense(3), (5,), restarts=1, steps=3)
    >>> round(worst.parameter_gradient, 2)
    1.0
    """
    subject = Subject("check_dp_layer", layer, input_shape, input_bound, gradient_bound)
    trial = Trial(subject, restarts, steps, seed)
    failures, cause = {}, None
    for name, check in CHECKS.items():
        with subject.kept():
            found = []
            try:
                found.extend(check(trial))
            except Exception as error:
                found.append(_described(error))
                cause = cause or error
            if found:
                failures[name] = found
    if failures:
        raise LayerCheckError(layer, failures, len(CHECKS) - len(failures)) from cause
    return functools.reduce(operator.or_, trial.found)


def _described(error):
    # Keras colours its messages and spreads them over many lines.
    text = re.sub(r"\x1b\[[0-9;]*m", "", f"raised {type(error).__name__}: {error}")
    return textwrap.shorten(text, 400)
