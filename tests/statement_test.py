"""What the privacy statement says is what the ledger holds and the accountants answer, and people can read it."""

import functools
import importlib.metadata
import json
import math
import pathlib
import tempfile

import keras
import pytest
from doubles import NUM_CLASSES, data, metadata

from deel.lipdp import statement
from deel.lipdp.accounting import (
    AccountantComparison,
    GaussianStep,
    LaplaceStep,
    PLDAccountant,
    PoissonSampling,
    RDPAccountant,
    ShuffledSampling,
    UndeclaredSampling,
)
from deel.lipdp.bounds import compute_gradient_bounds
from deel.lipdp.dynamic import AdaptiveQuantileClipping
from deel.lipdp.layers import DP_BoundedInput, DP_ClipGradient, DP_QuickSpectralDense
from deel.lipdp.losses import DP_TauCategoricalCrossentropy
from deel.lipdp.model import DP_Sequential
from deel.lipdp.parameters import DPParameters
from deel.lipdp.sampling import poisson_batches, shuffled_batches
from deel.lipdp.statement import privacy_card, privacy_report, save_privacy_statement

DELTA = 1e-5
JOINT = 30.0  # large, so that no epsilon is out of what one compares
POISSON, SHUFFLED, UNDECLARED = PoissonSampling(0.2), ShuffledSampling(), UndeclaredSampling()

# Entries of a ledger: the same without amplification, the relation, and the price if one example replaces another.
LEDGERS = {
    "poisson": ([(GaussianStep(POISSON, JOINT), 40)], [(GaussianStep(UNDECLARED, JOINT), 40)], "add_or_remove_one"),
    "shuffled": ([(GaussianStep(SHUFFLED, JOINT), 3)], [(GaussianStep(SHUFFLED, JOINT), 3)], "zero_out"),
    "undeclared": ([(GaussianStep(UNDECLARED, JOINT), 7)], [(GaussianStep(UNDECLARED, JOINT), 7)], "zero_out"),
    "mixed": (
        [(GaussianStep(POISSON, JOINT), 40), (GaussianStep(SHUFFLED, JOINT), 1), (GaussianStep(UNDECLARED, 50.0), 2)],
        [(GaussianStep(UNDECLARED, JOINT), 41), (GaussianStep(UNDECLARED, 50.0), 2)],
        "zero_out",
    ),
    "adaptive clipping": (
        [(GaussianStep(POISSON, JOINT), 40), (GaussianStep(POISSON, 10.0), 4), (LaplaceStep(POISSON, 40.0), 2)],
        [
            (GaussianStep(UNDECLARED, JOINT), 40),
            (GaussianStep(UNDECLARED, 10.0), 4),
            (LaplaceStep(UNDECLARED, 40.0), 2),
        ],
        "add_or_remove_one",
    ),
    "nothing released": ([], [], "add_or_remove_one"),
}
WITHOUT_REPLACEMENT = ("adaptive clipping",)  # no price is known for amplified Laplace noise


def model(strategy="per-layer", noise_multiplier=1.0, delta=DELTA, last=(), sampling=None, **parameters):
    """One dense layer: what is stated does not depend on the architecture."""
    private = DP_Sequential(
        [DP_BoundedInput(3.0, input_shape=(9,)), DP_QuickSpectralDense(NUM_CLASSES), *last],
        dp_parameters=DPParameters(strategy, noise_multiplier, delta, **parameters),
        dataset_metadata=metadata(40, 8, shape=(9,), sampling=sampling),
    )
    private.compile(keras.optimizers.SGD(0.1), DP_TauCategoricalCrossentropy(2.0))
    return private


def spent(entries, **parameters):
    """A model whose ledger holds these entries."""
    private = model(**parameters)
    for event, count in entries:
        private.ledger.counter(event).assign_add(count)
    return private


def refuse_constant(text):
    raise AssertionError(f"{text} is no JSON")


def written(private, folder, **arguments):
    """What the two files hold, and what the call returned: (dict, str)."""
    returned = save_privacy_statement(private, folder, **arguments)
    content = json.loads((folder / "privacy.json").read_text(encoding="utf-8"), parse_constant=refuse_constant)
    assert returned == content
    return content, (folder / "privacy_card.md").read_text(encoding="utf-8")


@functools.cache
def stated(name):
    """A model with one of the ledgers, and what is written about it: (model, dict, str)."""
    private = spent(LEDGERS[name][0], strategy="global", noise_multiplier=2.0)
    with tempfile.TemporaryDirectory() as folder:
        return private, *written(private, pathlib.Path(folder), target_epsilon=3.0)


def tables(card):
    """The tables of a page of Markdown: lists of rows, each a list of cells; every row as wide as the head."""
    found, lines = [], [*card.splitlines(), ""]
    while lines:
        block = []
        while lines[0].startswith("|"):
            block.append(lines.pop(0))
        lines.pop(0)
        if block:
            rows = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in block]
            assert all(line.endswith("|") for line in block)
            assert {len(row) for row in rows} == {len(rows[0])}, block
            assert set("".join(rows[1])) == {"-"}
            found.append([rows[0], *rows[2:]])
    return found


def bullets(card):
    return [line.removeprefix("- ") for line in card.splitlines() if line.startswith("- ")]


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEDGERS)
def test_numbers_are_those_of_the_accountants(name):
    entries, unamplified, relation = LEDGERS[name]
    _, content, _ = stated(name)
    pld, rdp = PLDAccountant(), RDPAccountant()
    assert content["epsilon"] == content["epsilon_pld"] == pld.epsilon(entries, DELTA)
    assert content["epsilon_rdp"] == rdp.epsilon(entries, DELTA)
    assert content["epsilon_without_amplification"] == pld.epsilon(unamplified, DELTA)
    if name in WITHOUT_REPLACEMENT:
        assert content["epsilon_replace_one"] is None
    else:
        assert content["epsilon_replace_one"] == pld.epsilon(entries, DELTA, "replace_one")
    assert content["neighboring_relation"] == relation
    assert content["delta"] == DELTA and content["target_epsilon"] == 3.0
    assert content["warning"] is None and content["seeded"] is False


def test_amplification_and_replacement_are_told_apart():
    _, report, _ = stated("poisson")
    assert 0.1 < report["epsilon"] < report["epsilon_rdp"]
    assert report["epsilon_without_amplification"] > 3 * report["epsilon"]
    assert report["epsilon_replace_one"] > 1.5 * report["epsilon"]
    _, report, _ = stated("shuffled")
    assert report["epsilon_without_amplification"] == report["epsilon"]  # nothing was amplified


@pytest.mark.parametrize("name", LEDGERS)
def test_facts_are_those_of_the_model(name):
    private, content, _ = stated(name)
    assert content["releases"] == [
        {
            "mechanism": type(event).__name__,
            "count": count,
            "unit": "pass" if event.sampling == SHUFFLED else "step",
            "joint_noise_multiplier": event.noise_multiplier,
            "sampling": event.sampling.name,
            "sampling_probability": 0.2 if event.sampling == POISSON else None,
        }
        for event, count in LEDGERS[name][0]
    ]
    assert content["ledger"] == json.loads(private.ledger.to_json())
    assert content["bounds"] == compute_gradient_bounds(private)
    assert (content["num_examples"], content["batch_size"]) == (40, 8)
    assert (content["strategy"], content["noise_multiplier"]) == ("global", 2.0)
    assert content["secure_noise"] is False
    assert privacy_report(spent([]))["target_epsilon"] is None


def test_versions_are_those_that_run(monkeypatch):
    def version(name):
        if name == "tensorflow":  # as where tensorflow-cpu is installed
            raise importlib.metadata.PackageNotFoundError(name)
        return f"{name} 1.0"

    versions = privacy_report(spent([]))["versions"]
    assert versions["keras"] == importlib.metadata.version("keras")
    assert all(versions.values()) and {"python", "lipdp", "dp-accounting", "autodp"} <= set(versions)
    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = privacy_report(spent([]))["versions"]
    assert versions["tensorflow"] == "unknown" and versions["keras"] == "keras 1.0"


def test_the_weaker_guarantee_is_stated_where_a_library_must_be_wrong(monkeypatch):
    for rdp, pld in ((0.5, 0.9), (2.0, 0.9)):
        compared = AccountantComparison(rdp, pld, "One of the two is wrong.")
        monkeypatch.setattr(statement, "compare_accountants", lambda *args, compared=compared: compared)
        report = privacy_report(spent(LEDGERS["poisson"][0]))
        assert report["epsilon"] == max(rdp, pld) and (report["epsilon_rdp"], report["epsilon_pld"]) == (rdp, pld)
        assert f"({max(rdp, pld):.4f}, 1e-05)" in report["statement"]
        assert "**Warning.** One of the two is wrong." in privacy_card(report)


# -- where nothing holds -------------------------------------------------------------------------------------------


def seeded_noise():
    return spent(LEDGERS["poisson"][0], noise_seed=3)


def seeded_batches():
    private = spent(LEDGERS["poisson"][0])
    private.ledger.seeded = True
    return private


@pytest.mark.parametrize("make", [seeded_noise, seeded_batches])
def test_a_seed_voids_every_epsilon(make, tmp_path):
    content, card = written(make(), tmp_path)
    assert content["seeded"] is True
    prices = {key: value for key, value in content.items() if key.startswith("epsilon")}
    assert len(prices) == 5 and set(prices.values()) == {None}
    assert content["statement"].startswith("No privacy: noise or batches come from a known seed")
    assert "No privacy" in card and card.count("| not available |") == 4
    assert len(content["releases"]) == len(tables(card)[1]) - 1 == 1  # what was done is said all the same


@pytest.mark.parametrize(
    "entries",
    [
        [(GaussianStep(POISSON, 0.0), 1)],
        [(GaussianStep(POISSON, JOINT), 40), (GaussianStep(UNDECLARED, 0.0), 1)],
        [(GaussianStep(POISSON, JOINT), 40), (LaplaceStep(POISSON, 0.0), 1)],
    ],
)
def test_one_release_without_noise_voids_all(entries, tmp_path):
    private = spent(entries)
    assert privacy_report(private)["epsilon"] == math.inf
    content, card = written(private, tmp_path)
    assert content["epsilon"] is content["epsilon_pld"] is content["epsilon_rdp"] is None
    assert content["statement"] == "No privacy: some release was made without noise."
    assert "No privacy" in card and card.count("| infinite |") >= 3 and "0.0000" not in card


# -- the card ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEDGERS)
def test_card_holds_what_the_report_does(name):
    entries, _, relation = LEDGERS[name]
    _, content, card = stated(name)
    facts, releases = tables(card)
    facts = dict(facts[1:])
    assert len(facts) == 11
    for title, key in (
        ("Epsilon (PLD accountant)", "epsilon_pld"),
        ("Epsilon (RDP accountant)", "epsilon_rdp"),
        ("Epsilon (PLD) without amplification by sampling", "epsilon_without_amplification"),
        ("Epsilon (PLD) when one example is replaced by another", "epsilon_replace_one"),
    ):
        if content[key] is None:
            assert facts[title] == "not available"
        else:  # rounded up, never down
            assert content[key] <= float(facts[title]) < content[key] + 1.01e-4
    assert facts["Unit of privacy"] == "one training example"
    words = {"add_or_remove_one": "adding or removing", "zero_out": "null record that keeps its place"}[relation]
    assert words in facts["Neighbouring data sets"] and words in card.split("| | |")[0]
    assert float(facts["Delta"]) == DELTA
    assert (facts["Training examples"], facts["Batch size"]) == ("40", "8")
    assert facts["Noise strategy"] == "global" and facts["Noise from a cryptographic generator"] == "no"
    assert releases[0] == ["mechanism", "count", "unit", "joint noise multiplier", "sampling", "probability"]
    assert releases[1:] == [
        [
            "Laplace noise" if isinstance(event, LaplaceStep) else "Gaussian noise",
            str(count),
            event.sampling.unit,
            f"{event.noise_multiplier:g}",
            event.sampling.name,
            "0.2" if event.sampling == POISSON else "-",
        ]
        for event, count in entries
    ]
    assert bullets(card) == [f"{item[0].upper()}{item[1:]}." for item in content["not_covered"]]
    assert all(f"{name} {version}" in card for name, version in content["versions"].items())


def test_what_is_not_covered_is_complete():
    _, content, _ = stated("poisson")
    listed = " ".join(content["not_covered"])
    for words in (
        "training data (history.json",
        "validation and test",
        "hyper-parameters",
        "several examples",
        "random draws",
        "floating-point",
        "timing",
    ):
        assert words in listed
    assert all(item in content["statement"] for item in content["not_covered"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "poisson",
            "40 steps of Gaussian noise with joint noise multiplier 30 under poisson sampling, which each example "
            "enters independently with probability 0.2.",
        ),
        ("shuffled", "for 3 passes of Gaussian noise with joint noise multiplier 30 under shuffled sampling."),
        ("mixed", "1 pass of Gaussian noise with joint noise multiplier 30 under shuffled sampling, and 2 steps of"),
        ("adaptive clipping", "and 2 steps of Laplace noise with joint noise multiplier 40 under poisson sampling"),
        ("nothing released", "are (0.0000, 1e-05)-differentially private"),
        ("nothing released", "This holds for no release at all."),
    ],
)
def test_statement_says_what_was_released(name, words):
    _, report, _ = stated(name)
    assert words in report["statement"]
    assert "one training example" in report["statement"] and "public constants" in report["statement"]


@pytest.mark.parametrize(("epsilon", "text"), [(0.84991, "0.8500"), (0.8499, "0.8499"), (0.0, "0.0000")])
def test_no_guarantee_is_rounded_down(epsilon, text, monkeypatch):
    compared = AccountantComparison(epsilon, epsilon, None)
    monkeypatch.setattr(statement, "compare_accountants", lambda *args: compared)
    private = spent(LEDGERS["poisson"][0], delta=1 / 59_999)  # six digits of it would be too few
    assert f"({text}, {1 / 59_999!r})-differentially private" in privacy_report(private)["statement"]


# -- after a training ----------------------------------------------------------------------------------------------


def test_statement_of_a_training_with_adaptive_clipping(tmp_path):
    x, y = data(40, shape=(9,))
    private = model("optimal", 20.0, last=[DP_ClipGradient(0.5, dynamic=True)], sampling="poisson")
    batches = poisson_batches(x, y, 8)
    clipping = AdaptiveQuantileClipping(batches, patience=2, noise_multiplier=12.0)
    private.fit(batches, epochs=3, verbose=0, callbacks=[clipping])
    content, card = written(private, tmp_path)
    steps, updates = content["releases"]
    if steps["joint_noise_multiplier"] == 12.0:
        steps, updates = updates, steps
    assert (steps["count"], steps["joint_noise_multiplier"]) == (15, pytest.approx(20.0))
    assert (updates["count"], updates["joint_noise_multiplier"]) == (2, 12.0)  # the first one included
    entries = [(GaussianStep(POISSON, 12.0), 2), (GaussianStep(POISSON, steps["joint_noise_multiplier"]), 15)]
    assert content["epsilon"] == pytest.approx(PLDAccountant().epsilon(entries, DELTA), rel=1e-9)
    assert len(tables(card)[1]) == 3


def test_statement_of_a_training_on_shuffled_batches_with_secure_noise(tmp_path):
    x, y = data(40, shape=(9,))
    private = model("global", 5.0, sampling="shuffled", secure_noise=True)
    private.fit(shuffled_batches(x, y, 8), epochs=2, verbose=0)
    content, card = written(private, tmp_path)
    [release] = content["releases"]
    assert (release["count"], release["unit"], release["sampling"]) == (2, "pass", "shuffled")
    [(event, _)] = private.ledger.entries()
    assert content["epsilon"] == PLDAccountant().epsilon([(GaussianStep(SHUFFLED, event.noise_multiplier), 2)], DELTA)
    assert content["secure_noise"] is True
    assert dict(tables(card)[0])["Noise from a cryptographic generator"] == "yes"
