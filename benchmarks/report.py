"""Writes `docs/benchmarks.md` and its plots from the JSON files in `benchmarks/results`.

python benchmarks/report.py
"""

import json
import pathlib

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parent / "docs"
TITLES = {
    "W1": "W1, the tutorial network of TF-Privacy (28x28 images, two convolutions, two dense layers)",
    "W2": "W2, the quick start's shape (28x28 images, convolutions of 32 and 64 filters, one dense layer)",
    "W3": "W3, a VGG for CIFAR-10 (64-64-128-128-256-256)",
    "W4": "W4, a tabular network (3 dense layers of 512)",
}
ARMS = {
    "keras same_layers": "same layers, not private",
    "keras private": "lipdp",
    "keras private_abs": "lipdp, abs and max pooling",
    "opacus ghost": "Opacus, ghost clipping",
    "opacus hooks": "Opacus, hooks",
    "opacus ew": "Opacus, expanded weights",
    "tf_privacy dp_sequential": "TF-Privacy",
    "jax optax": "optax",
    "jax jax_privacy": "JAX-Privacy",
}
FLOORS = {"opacus": "PyTorch", "tf_privacy": "TensorFlow 2.15", "jax": "JAX"}

#: Workloads, batch sizes, and the largest ratio to the same layers and to plain Keras that was aimed at.
TARGETS = [
    (("W2", "W3"), (256,), 1.20, 1.50),
    (("W2", "W3"), (1024,), 1.05, 1.25),
    (("W1", "W4"), (256,), 1.40, 1.80),
    (("W1", "W4"), (4096,), 1.10, 1.25),
]
LARGEST_MEMORY_RATIO = 1.15


def load(name):
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def load_steps():
    """The rows of all frameworks that were measured, those of Keras and its machine first."""
    paths = sorted((HERE / "results").glob("steps_*.json"), key=lambda path: path.stem != "steps_keras")
    parts = [load(path.stem) for path in paths]
    return {"machine": parts[0]["machine"], "rows": [row for part in parts for row in part["rows"]]}


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def find(rows, workload, batch_size, arm="keras private"):
    """The row that the arm is in; None if there is none."""
    matching = (r for r in rows if (r["workload"], r["batch_size"]) == (workload, batch_size) and arm in r["arms"])
    return next(matching, None)


def batches(rows, workload):
    return sorted({row["batch_size"] for row in rows if row["workload"] == workload})


def cell(rows, workload, batch_size, name):
    """Ratio to plain Keras, marked where the row is void."""
    row = find(rows, workload, batch_size, name)
    if row is None:
        return "-"
    arm = row["arms"][name]
    if "failure" in arm:
        return "failed"
    return f"{arm['ratio_to_plain']:.2f}{'' if row['valid'] else ' (void)'}"


def ratio(row, name, other, key="cpu_s"):
    """Ratio of two arms of a row; None where one is missing or the row is void."""
    arms = [row["arms"].get(n, {}).get(key) for n in (name, other)] if row and row["valid"] else [None]
    return None if None in arms else arms[0] / arms[1]


def shown(value):
    return "-" if value is None else f"{value:.2f}"


def step_tables(rows):
    for workload, title in TITLES.items():
        sizes = batches(rows, workload)
        names = [name for name in ARMS if any(find(rows, workload, size, name) for size in sizes)]
        body = []
        for size in sizes:
            floor = find(rows, workload, size)["arms"]["keras plain"]["cpu_s"]
            body.append([size, f"{floor:.4f}", *(cell(rows, workload, size, name) for name in names)])
        header = ["batch", "plain Keras, s", *(ARMS[name] for name in names)]
        yield f"### {title}\n\n{table(header, body)}\n![{workload}](benchmarks/{workload}.svg)\n"


def memory_table(rows):
    names = ["keras plain", *ARMS]
    body = []
    for workload in TITLES:
        for size in batches(rows, workload):
            found = [(find(rows, workload, size, name) or {"arms": {}})["arms"].get(name, {}) for name in names]
            body.append(
                [f"{workload}, {size}", *(f"{arm['peak_mb']:.0f}" if "peak_mb" in arm else "-" for arm in found)]
            )
    return table(["", "plain Keras", *ARMS.values()], body)


def target_table(rows):
    body = []
    for workloads, batches, same, plain in TARGETS:
        for workload in workloads:
            for batch_size in batches:
                row = find(rows, workload, batch_size)
                body.append(
                    [
                        f"{workload}, {batch_size}",
                        f"{shown(ratio(row, 'keras private', 'keras same_layers'))} ({same:.2f})",
                        f"{shown(ratio(row, 'keras private', 'keras plain'))} ({plain:.2f})",
                        f"{shown(ratio(row, 'keras private_abs', 'keras plain'))} ({plain:.2f})",
                        f"{shown(ratio(row, 'keras private', 'keras plain', 'peak_mb'))} ({LARGEST_MEMORY_RATIO:.2f})",
                    ]
                )
    header = ["", "lipdp / same layers", "lipdp / plain", "abs and max pooling / plain", "memory, lipdp / plain"]
    return table(header, body)


def peer_table(rows):
    """How many times a step of the fastest peer takes that of lipdp; each over plain Keras in its own row."""
    body = []
    for workload in TITLES:
        for size in batches(rows, workload):
            peers = {}
            for name in ARMS:
                found = ratio(find(rows, workload, size, name), name, "keras plain")
                if found and name.split()[0] in FLOORS:
                    peers[name] = found
            own = [
                ratio(find(rows, workload, size, n), n, "keras plain") for n in ("keras private", "keras private_abs")
            ]
            if peers and None not in own:
                fastest = min(peers, key=peers.get)
                times = [f"{peers[fastest] / value:.1f}" for value in own]
                body.append([f"{workload}, {size}", ARMS[fastest], *times])
    return table(["", "fastest peer", "its step over lipdp's", "over that with abs and max pooling"], body)


def framework_table(rows):
    header = ["batch 256", *(f"{name} / plain Keras" for name in FLOORS.values())]
    body = [
        [
            workload,
            *(
                shown(ratio(find(rows, workload, 256, f"{name} plain"), f"{name} plain", "keras plain"))
                for name in FLOORS
            ),
        ]
        for workload in TITLES
    ]
    return table(header, body)


def growth_table(rows):
    header = ["", "plain Keras, microseconds an example", "lipdp", "lipdp less the same layers, ms a step"]
    body = []
    for workload in TITLES:
        for size in batches(rows, workload):
            row = find(rows, workload, size)
            arms = {n: row["arms"].get(f"keras {n}", {}).get("cpu_s") for n in ("plain", "private", "same_layers")}
            if None in arms.values():
                continue
            each = [f"{1e6 * arms[name] / size:.1f}" for name in ("plain", "private")]
            more = 1e3 * (arms["private"] - arms["same_layers"])
            body.append([f"{workload}, {size}", *each, f"{more:.1f}"])
    return table(header, body)


def depth_table(rows):
    body = []
    for workload, depth in (("W4", 3), ("W4-6", 6), ("W4-12", 12)):
        row = find(rows, workload, 1024)
        if row:
            times = [row["arms"][f"keras {name}"]["cpu_s"] for name in ("plain", "same_layers", "private")]
            body.append([depth, *(f"{1e3 * t:.1f}" for t in times), f"{1e3 * (times[2] - times[1]):.1f}"])
    return table(["hidden layers", "plain Keras, ms", "same layers", "lipdp", "lipdp less the same layers"], body)


def cost_table(costs):
    body = []
    for workload, model in costs["models"].items():
        for layer in model["projection_ms"]:
            kernel = " x ".join(map(str, layer["kernel"]))
            body.append([f"{workload}, {layer['layer']}, {kernel}", f"{layer['ms']:.2f}"])
        body.append([f"{workload}, noise of {model['parameters']:,} parameters", f"{model['noise_ms']:.2f}"])
    return table(["", "ms a step"], body)


def largest_table(rows):
    names = {"keras plain": "plain Keras", **ARMS, "keras private_parts": "lipdp, in parts of 1,024"}
    body = []
    for row in rows:
        if row["arm"] in names and row["largest"]:
            end = "" if row["failure_at_twice"] else " or more"
            body.append([names[row["arm"]], f"{row['largest']['batch_size']:,}{end}"])
    return table(["W2", "largest batch (power of two)"], body)


def padding_table(padding):
    names = {"unpadded": "as they come", "padded": "padded", "padded_xla": "padded, under XLA"}
    body = [[names[way], f"{1e3 * seconds:.0f}"] for way, seconds in padding["cpu_s_of_a_step"].items()]
    return table([f"Poisson batches of about {padding['batch_size']}, W2", "ms a step"], body)


def page(steps, costs, largest, padding):
    """The text of the page."""
    machine = steps["machine"]
    vectors = "with" if machine["avx512"] else "without"
    versions = {}
    for row in steps["rows"]:
        for name, arm in row["arms"].items():
            versions.setdefault(name.split()[0], {}).update(arm.get("versions") or {})
    used = "; ".join(", ".join(" ".join(pair) for pair in sorted(used.items())) for used in versions.values())
    return f"""# Benchmarks

CPU time of one training step, measured by `make bench` on one core ({machine["processor"]}, {vectors} AVX-512), with
{used}.
All arms of a row take one step in turn, in processes of their own; figures are ratios of medians to plain Keras (ReLU,
max pooling, no biases) in the same row. Plain Keras runs twice, and a row is void where its two medians differ by more
than 5 %. Every other library does what its own documentation shows; none is tuned. The page is written by
`benchmarks/report.py`; raw times, versions and errors are in `benchmarks/results`.

On processors without AVX-512 TensorFlow leaves oneDNN out, and every row of it changes, with privacy or without:
`TF_ENABLE_ONEDNN_OPTS=1` brings it back.

## Ratios to plain Keras

{chr(10).join(step_tables(steps["rows"]))}
## What was aimed at

In brackets the largest ratio that was aimed at.

{target_table(steps["rows"])}
## Beside the fastest peer

{peer_table(steps["rows"])}
## How much of it is the framework's

The peers' frameworks without privacy, over plain Keras:

{framework_table(steps["rows"])}
## Memory

Peak memory of the process over what it held before the model was made, in MB.

{memory_table(steps["rows"])}
Largest batch of W2 with {largest["memory_gib"]:g} GiB for the process:

{largest_table(largest["rows"])}
Other libraries can take a large batch in parts as well, in code around their optimizer; only their single passes were
measured.

## Growth

With the batch, and what privacy adds to the same layers:

{growth_table(steps["rows"])}
With the depth, W4 at batch 1024:

{depth_table(steps["rows"])}
## What does not grow with the batch

Projection of each kernel after an update, certificate included, and noise:

{cost_table(costs)}
## Padding and XLA

{padding_table(padding)}"""


def plots(rows):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "lipdp"
    for workload in TITLES:
        figure, axes = pyplot.subplots(figsize=(8, 4))
        for name, label in ARMS.items():
            points = [
                (row["batch_size"], row["arms"][name]["ratio_to_plain"])
                for row in rows
                if row["workload"] == workload and "ratio_to_plain" in row["arms"].get(name, {})
            ]
            if points:
                style = "o-" if name.startswith("keras") else "s--"
                axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="step over plain Keras", title=workload)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.tight_layout()
        (DOCS / "benchmarks").mkdir(exist_ok=True)
        figure.savefig(DOCS / "benchmarks" / f"{workload}.svg", metadata={"Date": None})
        pyplot.close(figure)


def main():
    steps = load_steps()
    text = page(steps, load("costs"), load("largest"), load("padding"))
    (DOCS / "benchmarks.md").write_text(text, encoding="utf-8")
    plots(steps["rows"])


if __name__ == "__main__":
    main()
