"""What accounting costs while a model trains: epsilon after each epoch, and of a plan of 1,000 epochs.

    python experiments/accounting/run.py --output experiments/accounting/results/speed.json

One accountant object is kept between the epochs, as `DP_Accountant` keeps it. For each ledger (one distinct event, or
several) and each accountant: the first call, which computes the curve of one step; the calls after each of the next
epochs; the plan of 1,000 epochs; and, for RDP, epsilon after every epoch from 1 to 1,000. Each round starts with new
accountants; the importing of the libraries beneath is timed apart. Medians over the rounds, wall clock, one core.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

DELTA = 1e-5
EPOCHS = 1000
TARGETS_S = {"after_an_epoch": 0.2, "plan": 2.0}


def ledgers():
    """Name -> (events with their counts an epoch)."""
    from deel.lipdp.accounting import (
        GaussianStep,
        LaplaceStep,
        PoissonSampling,
        ShuffledSampling,
        UndeclaredSampling,
    )

    poisson = {
        "mnist, batch 256": (256 / 60000, 1.1, 235),
        "mnist, batch 2048": (2048 / 60000, 4.0, 30),
        "cifar, batch 512": (512 / 50000, 1.0, 98),
        "little noise": (0.005, 0.6, 200),
    }
    steps = {name: [(GaussianStep(PoissonSampling(q), noise), n)] for name, (q, noise, n) in poisson.items()}
    return {
        **steps,
        "shuffled": [(GaussianStep(ShuffledSampling(), 10.0), 1)],
        "two events": [*steps["mnist, batch 2048"], (LaplaceStep(UndeclaredSampling(), 100.0), 1)],
    }


def timed(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def import_libraries():
    """Each library with the modules that an accountant imports on its first call."""
    import importlib

    modules = ("autodp.mechanism_zoo", "autodp.transformer_zoo", "dp_accounting.pld.privacy_loss_distribution")
    return {name: round(timed(importlib.import_module, name), 3) for name in (*modules, "scipy.optimize")}


def measure(name, ledger, relation, epochs):
    """Times of one round, in seconds; the accountant is new, the libraries are loaded."""
    from deel.lipdp.accounting import get_accountant

    accountant = get_accountant(name)

    def price(epoch):
        accountant.epsilon([(event, epoch * count) for event, count in ledger], DELTA, relation)

    first = timed(price, 1)
    after = [timed(price, epoch) for epoch in range(2, epochs + 2)]
    plan = timed(price, EPOCHS)
    every = sum(timed(price, epoch) for epoch in range(1, EPOCHS + 1)) if name == "rdp" else None
    return {"first": first, "after": after, "plan": plan, "every": every}


def summary(rounds):
    after = [value for result in rounds for value in result["after"]]
    row = {
        "first_call_s": statistics.median(result["first"] for result in rounds),
        "after_an_epoch_s": statistics.median(after),
        "slowest_after_an_epoch_s": max(after),
        "plan_of_1000_epochs_s": statistics.median(result["plan"] for result in rounds),
    }
    plan = row["plan_of_1000_epochs_s"]
    if rounds[0]["every"] is not None:
        plan = row["every_epoch_to_1000_s"] = statistics.median(result["every"] for result in rounds)
    within = row["after_an_epoch_s"] < TARGETS_S["after_an_epoch"] and plan < TARGETS_S["plan"]
    return {**{key: round(value, 5) for key, value in row.items()}, "within_targets": within}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="epochs after the first one that are timed")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    result = {
        "command": "python experiments/accounting/run.py",
        "rounds": arguments.rounds,
        "epochs": arguments.epochs,
        "delta": DELTA,
        "targets_s": TARGETS_S,
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "import_s": import_libraries(),
        "ledgers": {},
    }
    cases = [(title, ledger, None) for title, ledger in ledgers().items()]
    cases.append(("mnist, batch 256, replace_one", ledgers()["mnist, batch 256"], "replace_one"))
    for title, ledger, relation in cases:
        names = ("pld",) if relation else ("rdp", "pld")
        rows = {}
        for name in names:
            rounds = [measure(name, ledger, relation, arguments.epochs) for _ in range(arguments.rounds)]
            rows[name] = summary(rounds)
        result["ledgers"][title] = rows
        print(title, json.dumps(rows))
    result["within_targets"] = all(
        row["within_targets"] for rows in result["ledgers"].values() for row in rows.values()
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
