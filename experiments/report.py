"""Writes docs/results.md and its plots from the results of the accuracy studies.

python experiments/report.py
"""

import json
import math
import pathlib
import statistics

ROOT = pathlib.Path(__file__).parents[1]
STUDIES = {"MNIST": "MNIST", "FashionMNIST": "Fashion-MNIST", "CIFAR10": "CIFAR-10"}
#: What others report of the tables: area at epsilon at most 1, clipped and clipless (Bethune et al., 2024).
TABLES = {
    "campaign": (90.0, 82.2),
    "celeba": (96.6, 96.5),
    "magic": (90.7, 89.7),
    "shuttle": (98.3, 99.4),
    "skin": (100.0, 99.8),
    "yeast": (66.8, 75.1),
}

INTRODUCTION = """\
# Results

Accuracy on the test set, read once, after the last step of a training on the whole training set: mean and standard
deviation of three independent runs with fresh noise. Epsilon is that of adding or removing one example, with Poisson
sampling, at delta 1e-5 (1e-6 for tables of more than 90,000 rows), by the PLD accountant; by RDP in brackets. Settings
were chosen on held-out parts of the training sets; the last column says how many trainings on that data were looked at
before, which epsilon does not cover. Each row is made by `python experiments/STUDY/run.py --points POINT`, and this
page by `python experiments/report.py` from `experiments/*/results/*.json`. What a step costs is in
[Benchmarks](benchmarks.md).

Points named `features` train one linear layer on features that were fitted to *drawn* images and saw no record
(`deel.lipdp.features`); `lipdp train --recipe mnist`, `fashion_mnist` and `cifar10` do the same. Points named `pixels`
train every layer, from pixels to logits: a convolution that starts as a short-time Fourier transform, its moduli, and a
linear layer (recipes `mnist_pixels` and so on). The convolution moves at 0.3 % of
the learning rate, on CIFAR-10 at 0.03 %.
"""


def results(study):
    """Result files of a study by point, in the order of its settings."""
    folder = ROOT / "experiments" / study
    points = json.loads((folder / "settings.json").read_text())["points"]
    paths = {point["name"]: folder / "results" / f"{point['name']}.json" for point in points}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def percent(result, metric, digits):
    mean, deviation = result[f"test_{metric}_mean"], result[f"test_{metric}_stdev"]
    return f"{100 * mean:.{digits}f} ± {100 * deviation:.{digits}f}"


def budget(result):
    return f"{result['epsilon_pld_max']:.3f} ({result['epsilon_rdp_max']:.3f})"


def image_section(study, title, published):
    lines = [f"## {title}", "", f"![Accuracy against epsilon]({plot(study, title, published)})", ""]
    lines += ["| point | epsilon | test accuracy, % | tried before |", "|---|---|---|---|"]
    for name, result in results(study).items():
        lines.append(
            f"| `{name}` | {budget(result)} | {percent(result, 'accuracy', 2)} | {result['runs_tried_before']} |"
        )
    for name, curve in published.items():
        for epsilon, accuracy in curve.get(study, ()):
            lines.append(f"| {name} | {epsilon:g} | {accuracy:g} | |")
    return [*lines, ""]


def plot(study, title, published):
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "lipdp", "font.size": 10})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    families = {}
    for name, result in results(study).items():
        point = result["epsilon_pld_max"], 100 * result["test_accuracy_mean"], 100 * result["test_accuracy_stdev"]
        families.setdefault(name.split("-")[0], []).append(point)
    for family, points in families.items():
        x, y, error = zip(*sorted(points), strict=True)
        axes.errorbar(x, y, yerr=error, marker="o", capsize=3, linewidth=2, label=f"lipdp, {family}")
    for (name, curve), marker in zip(published.items(), "sv^DP", strict=True):
        if study in curve:
            axes.plot(*zip(*curve[study], strict=True), marker=marker, linestyle="--", linewidth=1, label=name)
    axes.set(xscale="log", xlabel="epsilon, delta 1e-5", ylabel="test accuracy, %", title=title)
    axes.set_xticks([1, 2, 3, 8], ["1", "2", "3", "8"])
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = ROOT / "docs" / "results" / f"{study}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return f"results/{path.name}"


def table_section():
    lines = [
        "## Tables",
        "",
        "Area under the ROC curve, in percent, on a fifth of each table of ADBench; the published figures are for",
        "epsilon at most 1 and splits of their own.",
        "",
        "| table | epsilon | area | clipped, published | clipless, published | tried before |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results("tabular").items():
        clipped, clipless = TABLES[name]
        lines.append(
            f"| {name} | {budget(result)} | {percent(result, 'auroc', 2)} | {clipped} | {clipless} "
            f"| {result['runs_tried_before']} |"
        )
    return [*lines, ""]


def certified_section():
    result = json.loads((ROOT / "experiments" / "certified" / "results" / "cifar10.json").read_text())
    shares = result["certified_accuracy_mean"]
    return [
        "## Certified accuracy",
        "",
        "Share of test images, in percent, that are classified right whatever is added to them within a radius:",
        "Euclidean norm, pixels in [0, 1]. CIFAR-10, a private linear layer on a scattering transform,",
        "scaled to norm 1, certified from the image on (`deel.lipdp.robustness`).",
        f"Epsilon {result['epsilon_pld_max']:.3f} at delta 1e-5, mean of three runs,",
        f"{result['runs_tried_before']} trainings looked at before; `python experiments/certified/run.py`.",
        "Published for clipless training at epsilon 20: 39.1 at 1/255 and 30.9 at 4/255 (Bethune et al., 2024).",
        "",
        "| radius | " + " | ".join(shares) + " |",
        "|---" * (1 + len(shares)) + "|",
        "| certified | " + " | ".join(f"{100 * share:.1f}" for share in shares.values()) + " |",
        "",
    ]


def pixel_certificates():
    """Rows of certified accuracy of the networks on pixels, where every run has them."""
    rows = []
    for study, title in STUDIES.items():
        for name, result in results(study).items():
            certified = [run["metrics"].get("certified_accuracy") for run in result["runs"]]
            if all(certified):
                mean = [statistics.mean(shares) for shares in zip(*(one["accuracy"] for one in certified), strict=True)]
                rows.append((f"{title}, `{name}`", certified[0]["radius"], mean))
    return rows


def certified_pixels_section():
    rows = pixel_certificates()
    if not rows:
        return []
    radii = " | ".join(f"{round(255 * radius)}/255" for radius in rows[0][1])
    lines = ["Networks on pixels, by the same commands as their accuracy:", "", f"| | {radii} |"]
    lines.append("|---" * (1 + len(rows[0][1])) + "|")
    lines += [f"| {name} | " + " | ".join(f"{100 * share:.1f}" for share in mean) + " |" for name, _, mean in rows]
    return [*lines, ""]


def ablation_section():
    path = ROOT / "experiments" / "ablation" / "results" / "fashion_mnist.json"
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    levers = {name: [run["val_accuracy"] for run in lever["runs"]] for name, lever in result["levers"].items()}
    base = statistics.mean(levers["base"])
    spread = 100 * math.sqrt(statistics.mean(statistics.variance(scores) for scores in levers.values()))
    lines = [
        "## What each lever is worth",
        "",
        "One change at a time to one training: Fashion-MNIST from pixels, nine tenths of the training set, epsilon",
        f"{result['epsilon']:g}, {result['recipe']['epochs']} epochs; accuracy on the last tenth, in percent, and what",
        "the change adds. The base is the recipe at half its epochs, learning rate",
        f"{result['recipe']['learning_rate']:g}; nothing was tuned for this table, so that a change may do better at a",
        f"rate of its own. Runs of one change are {spread:.2f} points apart (pooled standard deviation).",
        f"`{result['command']}`.",
        "",
        "| change | runs | accuracy | adds |",
        "|---|---|---|---|",
    ]
    for name, scores in levers.items():
        mean = statistics.mean(scores)
        adds = "" if name == "base" else f"{round(100 * (mean - base), 1) + 0.0:+.1f}"
        lines.append(f"| {name} | {len(scores)} | {100 * mean:.1f} | {adds} |")
    return [*lines, ""]


def main():
    published = json.loads((ROOT / "experiments" / "published.json").read_text())
    lines = [INTRODUCTION]
    for study, title in STUDIES.items():
        lines += image_section(study, title, published)
    lines += table_section() + certified_section() + certified_pixels_section() + ablation_section()
    lines += ["## Sources", ""] + [f"- {name}: {curve['source']}" for name, curve in published.items()]
    lines += ["", "Other measurements are listed in the repository's `experiments/README.md`."]
    (ROOT / "docs" / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
