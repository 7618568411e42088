"""All audits of the training step of one network: the work behind `lipdp audit`."""

import dataclasses
from collections.abc import Iterator
from typing import cast

import keras
import numpy as np

from deel.lipdp import _checks, layers
from deel.lipdp.accounting import calibrate_noise
from deel.lipdp.audit._recording import ExampleGradients
from deel.lipdp.audit._report import Report
from deel.lipdp.audit._statistics import gaussian_distance, gaussian_epsilon, mechanism_power, one_run_power
from deel.lipdp.audit.examples import hard_examples, hard_weights
from deel.lipdp.audit.mechanism import audit_mechanism
from deel.lipdp.audit.one_run import audit_one_run
from deel.lipdp.audit.sensitivity import audit_sensitivity
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Sequential
from deel.lipdp.parameters import DatasetMetadata, DPParameters
from deel.lipdp.pipeline import load_images

__all__ = ["audit_recipe", "audited_model"]

_RUNS = 400
_TRIALS = 600
_FALSE_ALARM = 1e-3
_EXAMPLES, _BATCH = 64, 56  # of the sensitivity audit
_COPIES = 3  # of the hardest example, so that one of them is in the first batch (all are left out once in 512)


def audited_model(dp_parameters: DPParameters, dataset_metadata: DatasetMetadata) -> DP_Sequential:
    """A small network for 8 x 8 images whose gradients come close to their bounds.

    An audit sees a bound that is too small only by what its examples attain of it. The recipes have a bound that none
    gets near, that of their first layer, and take little noise for it.

    Args:
        dp_parameters: `DPParameters`.
        dataset_metadata: `DatasetMetadata`.

    Returns:
        A compiled `DP_Sequential`.
    """
    stack = [
        layers.DP_BoundedInput(dataset_metadata.max_norm, input_shape=dataset_metadata.input_shape),
        layers.DP_LayerCentering(),
        layers.DP_NormalizeToBall(1.0),
        layers.DP_QuickSpectralConv2D(16, 2, strides=2, padding="same", name="conv"),
        layers.DP_Abs(),
        layers.DP_Flatten(),
        layers.DP_QuickSpectralDense(64, name="dense"),
        layers.DP_Abs(),
        layers.DP_QuickSpectralDense(cast(int, dataset_metadata.nb_classes), name="logits"),
        layers.DP_ClipGradient(0.3),
    ]
    model = DP_Sequential(stack, dp_parameters=dp_parameters, dataset_metadata=dataset_metadata)
    model.compile(keras.optimizers.SGD(1.0, momentum=0.9), DP_TauCategoricalCrossentropy(40.0))
    return model


def audit_recipe(
    epsilon: float, *, delta: float = 1e-4, canaries: int = 40, confidence: float = 0.95, seed: int = 0
) -> Iterator[tuple[str, Report, str]]:
    """Audits the training step of `audited_model`, on public data.

    The sensitivity and the mechanism are audited at weights and on examples that are hard on the bounds. Each training
    of the mechanism and of the one-run audit is of one step that everyone takes part in, with the noise for which that
    costs `epsilon`: sampling would only hide what a step gives away. The one-run audit trains 400 times, on 400 times
    the canaries.

    Args:
        epsilon: float > 0, what one audited step declares at `delta`.
        delta: float in (0, 1).
        canaries: int >= 2, of each training of the one-run audit. More of them are more alike.
        confidence: float in (0, 1), of the one-run audit: a sound mechanism fails it at most this rarely,
            `1 - confidence`. The other two audits fail one at most once in a thousand times.
        seed: int, of canaries, coins and batches. The noise is secret, except that of the sensitivity audit.

    Yields:
        (name, report, power): the name of an audit, its report, and a str that says what it can find.

    Raises:
        TypeError, ValueError: for arguments out of range.
    """
    who = "audit_recipe"
    canaries = _checks.integer(who, "canaries", canaries, at_least=2)
    confidence = _checks.number(who, "confidence", confidence, above=0.0, below=1.0)
    seed = _checks.integer(who, "seed", seed, at_least=0)
    multiplier = calibrate_noise(epsilon, delta, canaries, canaries, 1, accountant="pld")
    data = load_images("digits")
    metadata = DatasetMetadata(
        input_shape=data.x_train.shape[1:],
        nb_samples_train=canaries,
        batch_size=canaries,
        max_norm=data.max_norm,
        nb_classes=len(data.class_names),
    )

    def build(weights=None, noise_seed=None, **sizes):
        parameters = DPParameters("optimal", multiplier, delta, noise_seed)
        model = audited_model(parameters, dataclasses.replace(metadata, **sizes))
        if weights is not None:
            model.set_weights(weights)  # those the examples are chosen for
        return model

    labels = np.eye(len(data.class_names), dtype="float32")
    first = build()
    easy = first.get_weights()
    hard, *hardest = hard_weights(first, labels, seed=seed)
    first.set_weights(hard)
    x, y = hard_examples(first, labels, _EXAMPLES - _COPIES, seed=seed)
    x, y = (np.concatenate([one] * _COPIES + [rest]) for one, rest in zip(hardest, (x, y), strict=True))

    sensitivity = audit_sensitivity(
        lambda: build(hard, seed, nb_samples_train=_EXAMPLES, batch_size=_BATCH),
        x,
        y,
        suspects=np.arange(_EXAMPLES),
        false_alarm=_FALSE_ALARM,
        seed=seed,
    )
    attained = ", ".join(f"{key} {sensitivity.distances[key] / bound:.0%}" for key, bound in sensitivity.bounds.items())
    yield (
        "sensitivity",
        sensitivity,
        f"finds noise too small by {max(sensitivity.noise_shortfalls.values()):.1%} with probability 0.999, and bounds "
        f"below what its examples attain: {attained}",
    )

    mechanism = audit_mechanism(lambda: build(hard), x, y, trials=_TRIALS, false_alarm=_FALSE_ALARM)
    distance = 2 * mechanism.attained * mechanism.declared_distance
    power = mechanism_power(distance, mechanism.declared_distance, mechanism.trials, mechanism.false_alarm)
    yield "mechanism", mechanism, f"finds halved noise with probability {power:.3f}"

    # At the hard weights gradients are long and alike; here they can be told apart.
    first.set_weights(easy)
    x, y = hard_examples(
        first, labels, canaries, distinct=True, candidates=data.x_train[:200], tries=max(400, canaries), seed=seed
    )
    gradients = ExampleGradients(first)(x, y)
    one_run = audit_one_run(lambda: build(easy), x, y, runs=_RUNS, confidence=confidence, seed=seed)
    power = one_run_power(
        gaussian_epsilon(2 * gaussian_distance(one_run.declared_epsilon, delta), delta),
        one_run.declared_epsilon,
        delta,
        one_run.canaries,
        one_run.guesses,
        confidence,
        products=gradients @ gradients.T,
    )
    yield "one run", one_run, f"finds halved noise with probability {power:.3f}"
