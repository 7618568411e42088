"""What a trained model has spent, for people and for programs: `privacy.json` and a privacy card in Markdown."""

import dataclasses
import importlib.metadata
import json
import math
import pathlib
import platform
from collections.abc import Mapping
from typing import Any, cast

import keras

from deel.lipdp._types import PathLike
from deel.lipdp.accounting import (
    PoissonSampling,
    UndeclaredSampling,
    compare_accountants,
    compute_epsilon,
    neighboring_relation,
)
from deel.lipdp.bounds import compute_gradient_bounds
from deel.lipdp.noise import noise_stddevs
from deel.lipdp.run_folder import write_json

__all__ = ["privacy_card", "privacy_report", "save_privacy_statement"]

_LIBRARIES = ("lipdp", "keras", "tensorflow", "numpy", "scipy", "deel-lip", "dp-accounting", "autodp")

_RELATIONS = {
    "add_or_remove_one": "adding or removing any single example",
    "zero_out": "replacing any single example by a null record that keeps its place",
    "replace_one": "replacing any single example by any other",
}

_MECHANISMS = {"GaussianStep": "Gaussian noise", "LaplaceStep": "Laplace noise"}

_NOT_COVERED = (
    "the loss and the metrics on training data (history.json, curve.png, logs): they are computed without noise",
    "validation and test examples, on which exact metrics are reported",
    "choices made by looking at such metrics, of hyper-parameters or of one run among several: each run spends its own "
    "epsilon (deel.lipdp.accounting.compute_search_epsilon prices a search)",
    "someone with several examples in the data: with k of them the protection is that of a k times larger change",
    "anyone who learns the random draws of noise or batches: they are secret keys",
    "attacks on floating-point rounding and on timing: they are outside the proof",
)


def privacy_report(model: keras.Model, target_epsilon: float | None = None) -> dict[str, Any]:
    """What a model has spent, under which assumptions.

    Args:
        model: a `DP_Sequential` or `DP_Model`, built and compiled.
        target_epsilon: float or None, the budget it was calibrated for.

    Returns:
        dict of plain values for `privacy.json`. Every epsilon is None if noise or batches were seeded, and where the
        accountant cannot price the relation; infinite (null in `privacy.json`) if something was released without noise.
    """
    parameters, metadata, ledger = model.dp_parameters, model.dataset_metadata, model.ledger
    entries = ledger.entries()
    bounds = compute_gradient_bounds(model)
    seeded = parameters.noise_seed is not None or ledger.seeded
    relation = neighboring_relation(entries)
    names = ("epsilon_pld", "epsilon_rdp", "epsilon_without_amplification", "epsilon_replace_one")
    prices, epsilon, warning = dict.fromkeys(names), None, None
    if not seeded:
        compared = compare_accountants(entries, parameters.delta)
        unamplified = [(_without_amplification(event), count) for event, count in entries]
        prices = {
            "epsilon_pld": compared.epsilon_pld,
            "epsilon_rdp": compared.epsilon_rdp,
            "epsilon_without_amplification": compute_epsilon(unamplified, parameters.delta, "pld", "zero_out"),
            "epsilon_replace_one": _replace_one(entries, parameters.delta),
        }
        warning = compared.warning
        # Where one of the two libraries must be wrong, the guarantee that is stated is the weaker one.
        epsilon = max(compared.epsilon_pld, cast(float, compared.epsilon_rdp)) if warning else compared.epsilon_pld
    report = {
        "epsilon": epsilon,
        "delta": parameters.delta,
        **prices,
        "target_epsilon": target_epsilon,
        "warning": warning,
        "seeded": seeded,
        "unit_of_privacy": "one training example",
        "neighboring_relation": relation,
        "releases": [_release(event, count) for event, count in entries],
        "num_examples": metadata.nb_samples_train,
        "batch_size": metadata.batch_size,
        "strategy": parameters.noisify_strategy,
        "noise_multiplier": parameters.noise_multiplier,
        "secure_noise": parameters.secure_noise,
        "bounds": bounds,
        "noise_stddevs": noise_stddevs(model, bounds),
        "ledger": json.loads(ledger.to_json()),
        "not_covered": list(_NOT_COVERED),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    return {**report, "statement": _statement(report)}


def _without_amplification(event):
    poisson = isinstance(event.sampling, PoissonSampling)
    return dataclasses.replace(event, sampling=UndeclaredSampling()) if poisson else event


def _replace_one(entries, delta):
    try:
        return compute_epsilon(entries, delta, "pld", "replace_one")
    except ValueError:  # a mechanism without a known price under this relation
        return None


def _release(event, count):
    return {
        "mechanism": type(event).__name__,
        "count": count,
        "unit": event.sampling.unit,
        "joint_noise_multiplier": event.noise_multiplier,
        "sampling": event.sampling.name,
        "sampling_probability": getattr(event.sampling, "sampling_probability", None),
    }


def _versions():
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu, say: no reason to lose a training
            versions[name] = "unknown"
    return versions


def _rounded_up(epsilon):
    """Four decimals; a guarantee is never stated smaller than it is."""
    return "infinite" if math.isinf(epsilon) else f"{math.ceil(epsilon * 1e4) / 1e4:.4f}"


def _statement(report):
    if report["seeded"]:
        return (
            "No privacy: noise or batches come from a known seed, so that the noise can be subtracted. "
            "This run is for studies on public data."
        )
    if report["epsilon"] == math.inf:
        return "No privacy: some release was made without noise."
    return (
        f"The weights, at every step and at the end, are ({_rounded_up(report['epsilon'])}, {report['delta']!r})-"
        f"differentially private. The unit of protection is {report['unit_of_privacy']}: "
        f"{_RELATIONS[report['neighboring_relation']]} changes the probability of any outcome by a factor "
        "of at most exp(epsilon), up to delta. "
        f"This holds for {_in_words(report['releases'])}. "
        f"The number of examples ({report['num_examples']}), the batch size ({report['batch_size']}), the architecture "
        "and the other settings count as public constants. Not covered: " + "; ".join(report["not_covered"]) + "."
    )


def _in_words(releases):
    return ", and ".join(map(_release_in_words, releases)) or "no release at all"


def _release_in_words(release):
    unit = release["unit"] if release["count"] == 1 else {"step": "steps", "pass": "passes"}[release["unit"]]
    text = f"{release['count']} {unit} of {_MECHANISMS[release['mechanism']]} with joint noise multiplier "
    text += f"{release['joint_noise_multiplier']:.6g} under {release['sampling']} sampling"
    if release["sampling_probability"] is None:
        return text
    return f"{text}, which each example enters independently with probability {release['sampling_probability']:.6g}"


def privacy_card(report: Mapping[str, Any]) -> str:
    """The privacy card of a model: one page of Markdown for a data-protection officer.

    Args:
        report: dict from `privacy_report`.

    Returns:
        str.
    """

    def number(value):
        return "not available" if value is None else _rounded_up(value)

    rows = [
        ("Unit of privacy", report["unit_of_privacy"]),
        ("Neighbouring data sets", _RELATIONS[report["neighboring_relation"]]),
        ("Delta", repr(report["delta"])),
        ("Epsilon (PLD accountant)", number(report["epsilon_pld"])),
        ("Epsilon (RDP accountant)", number(report["epsilon_rdp"])),
        ("Epsilon (PLD) without amplification by sampling", number(report["epsilon_without_amplification"])),
        ("Epsilon (PLD) when one example is replaced by another", number(report["epsilon_replace_one"])),
        ("Training examples", report["num_examples"]),
        ("Batch size", report["batch_size"]),
        ("Noise strategy", report["strategy"]),
        ("Noise from a cryptographic generator", "yes" if report["secure_noise"] else "no"),
    ]
    releases = [
        f"| {_MECHANISMS[r['mechanism']]} | {r['count']} | {r['unit']} | {r['joint_noise_multiplier']:.6g} | "
        f"{r['sampling']} | {'-' if r['sampling_probability'] is None else format(r['sampling_probability'], '.6g')} |"
        for r in report["releases"]
    ]
    return "\n".join(
        [
            "# Privacy card",
            "",
            report["statement"].split(" Not covered:")[0],
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            "## What was released",
            "",
            "| mechanism | count | unit | joint noise multiplier | sampling | probability |",
            "|---|---|---|---|---|---|",
            *releases,
            "",
            "## What is not covered",
            "",
            *(f"- {item[0].upper()}{item[1:]}." for item in report["not_covered"]),
            *(["", f"**Warning.** {report['warning']}"] if report["warning"] else []),
            "",
            "## Made with",
            "",
            ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
            "",
        ]
    )


def save_privacy_statement(model: keras.Model, folder: PathLike, target_epsilon: float | None = None) -> dict[str, Any]:
    """Writes `privacy.json` and `privacy_card.md` into a folder, beside the saved model.

    Args:
        model: a `DP_Sequential` or `DP_Model`, built and compiled.
        folder: str or path of an existing folder.
        target_epsilon: float or None, the budget it was calibrated for.

    Returns:
        dict, the content of `privacy.json`.
    """
    folder = pathlib.Path(folder)
    report = privacy_report(model, target_epsilon)
    (folder / "privacy_card.md").write_text(privacy_card(report), encoding="utf-8")  # knows infinity, unlike JSON
    return write_json(folder / "privacy.json", report)
