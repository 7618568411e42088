"""How far RDP can be above PLD: the sweep behind the limit of `compare_accountants`. Takes five minutes.

    python experiments/accounting/gap.py --output experiments/accounting/results/gap.json

Each plan is one event with Poisson sampling (probability 1: without amplification). `rare` is the RDP epsilon of a
single amplified step. `ratio_needed` is the least factor a for which `a * max(pld, rare) + 0.005` is at least the RDP
epsilon: the limit has 1.8.
"""

import argparse
import itertools
import json
import pathlib

from deel.lipdp.accounting import GaussianStep, PLDAccountant, PoissonSampling, RDPAccountant

PROBABILITIES = (1e-4, 1e-3, 4e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
MULTIPLIERS = (0.5, 0.7, 1.0, 2.0, 4.0, 10.0, 30.0)
STEPS = (1, 10, 100, 1000, 10_000, 100_000)
DELTAS = (1e-3, 1e-5, 1e-7, 1e-9)
LARGEST_EPSILON, LARGEST_COMPARED = 50.0, 20.0


def sweep():
    rdp, pld = RDPAccountant(), PLDAccountant()
    for probability, multiplier, steps, delta in itertools.product(PROBABILITIES, MULTIPLIERS, STEPS, DELTAS):
        step = GaussianStep(PoissonSampling(probability), multiplier)
        by_rdp = rdp.epsilon([(step, steps)], delta)
        if by_rdp <= LARGEST_EPSILON:
            yield {
                "sampling_probability": probability,
                "noise_multiplier": multiplier,
                "steps": steps,
                "delta": delta,
                "rdp": by_rdp,
                "pld": pld.epsilon([(step, steps)], delta),
                "rare": rdp.epsilon([(step, 1)], delta) if probability < 1 else 0.0,
            }


def ratio(row):
    return row["rdp"] / row["pld"]


def ratio_needed(row):
    return (row["rdp"] - 0.005) / max(row["pld"], row["rare"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = list(sweep())
    usual = [row for row in rows if row["pld"] >= 0.1]
    compared = [row for row in rows if row["rdp"] <= LARGEST_COMPARED]
    result = {
        "command": "python experiments/accounting/gap.py",
        "plans": len(rows),
        "rdp_below_pld": sum(row["rdp"] < row["pld"] for row in rows),
        "pld_at_least_0.1": {
            "plans": len(usual),
            "least_ratio": round(min(map(ratio, usual)), 4),
            "median_ratio": round(sorted(map(ratio, usual))[len(usual) // 2], 4),
            "largest_ratio": round(max(map(ratio, usual)), 4),
        },
        "rdp_at_most_20": {"plans": len(compared), "ratio_needed": round(max(map(ratio_needed, compared)), 4)},
        "widest": sorted(usual, key=ratio)[-10:],
        "nearest_the_limit": sorted(compared, key=ratio_needed)[-10:],
    }
    print(json.dumps({key: value for key, value in result.items() if not isinstance(value, list)}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
