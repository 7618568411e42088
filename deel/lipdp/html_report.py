"""One page about finished runs, to look at in a browser: `lipdp report`."""

import base64
import importlib.resources
import io
import json
import math
import pathlib
from collections.abc import Sequence

from deel.lipdp import _checks
from deel.lipdp._charts import add_legend, draw_tightness, name_rows, new_axes, plain
from deel.lipdp._types import PathLike

__all__ = ["write_report"]

_WHO = "lipdp report"


def write_report(runs: Sequence[PathLike], output: PathLike = "report.html") -> pathlib.Path:
    """Writes one self-contained HTML page about one or several runs.

    It shows accuracy against epsilon, certified accuracy, how tight the bounds are, how much noise each variable bears,
    and the privacy card of each run: what its files hold, and no more. Nothing is computed anew, so the page costs no
    privacy; what the files say of training and test examples is on it, and not covered by epsilon.

    Args:
        runs: sequence of str or path, run folders of `lipdp train`, or folders of `save_privacy_statement`.
        output: str or path of the page; a page that is there is replaced.

    Returns:
        `pathlib.Path` of the page.

    Raises:
        ValueError: for no run, a folder without `privacy.json`, a file that is not JSON, or an output that does not end
            in `.html` or whose folder does not exist.
    """
    import jinja2

    output = pathlib.Path(output)
    if output.suffix != ".html" or not output.parent.is_dir():
        _refuse("an output that ends in .html, in a folder that exists", f"'{output}'", "Name another file.")
    if not runs:
        _refuse("a run folder or several", "none", "Name folders that lipdp train wrote.")
    contents = [_read(pathlib.Path(run)) for run in runs]
    for run, name in zip(contents, _short_names([run["folder"] for run in contents]), strict=True):
        run["name"] = name
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"share": _share, "epsilon": _epsilon}
    source = importlib.resources.files("deel.lipdp").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        runs=contents,
        accuracy=_accuracy_chart(contents),
        certified=_certified_chart(contents),
        bars=[chart for run in contents for chart in (_tightness_chart(run), _noise_chart(run)) if chart],
    )
    output.write_text(page, encoding="utf-8")
    return output


def _refuse(expected, received, remedy):
    raise ValueError(_checks.message(_WHO, expected, received, remedy))


def _read(folder):
    """What the files of a run say; empty dicts for those it does not have."""
    if not (folder / "privacy.json").is_file():
        remedy = "Name a folder of lipdp train, or of deel.lipdp.statement.save_privacy_statement."
        if any(folder.glob("*/privacy.json")):
            remedy = f"Name the runs in that folder: {folder / '*'}"
        _refuse("a run folder with privacy.json", f"'{folder}'", remedy)
    run = {"folder": folder.resolve()}
    for name in ("privacy", "metrics", "history"):
        path = folder / f"{name}.json"
        try:
            run[name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            _refuse("JSON", f"'{path}' ({error})", "The file was changed or cut short; train again.")
    card = folder / "privacy_card.md"
    run["card"] = _html(card.read_text(encoding="utf-8")) if card.exists() else None
    return run


def _html(markdown):
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)


def _short_names(folders):
    """The end of each path, as long as it takes to tell them apart; numbered where one folder is there twice."""
    parts = [folder.parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _share(value):
    return "–" if value is None else f"{100 * value:.2f} %"


def _epsilon(value):
    return f"{math.ceil(value * 1e4) / 1e4:.4f}"  # never smaller than it is


def _accuracy_chart(runs):
    axes = new_axes()
    for number, run in enumerate(runs):
        history, colour = run["history"], f"C{number % 10}"
        epsilons = history.get("epsilon", [])
        for key, style, text in (("accuracy", ":", "training"), ("val_accuracy", "-", "held out")):
            points = [pair for pair in zip(epsilons, history.get(key, []), strict=False) if None not in pair]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=f"{text}: {plain(run['name'])}")
        test, epsilon = run["metrics"].get("test_accuracy"), run["privacy"].get("epsilon")
        if None not in (test, epsilon):
            axes.plot([epsilon], [test], "D", color=colour, label=f"test: {plain(run['name'])}")
    axes.set_xlabel("epsilon")
    axes.set_ylabel("accuracy")
    return _chart(axes, "Accuracy against epsilon")


def _certified_chart(runs):
    axes = new_axes()
    for number, run in enumerate(runs):
        certified = run["metrics"].get("certified_accuracy")
        if certified:
            colour = f"C{number % 10}"
            label = f"run {plain(run['name'])}"
            axes.plot(certified["radius"], certified["accuracy"], "o-", ms=3, color=colour, label=label)
    axes.set_xlabel("radius: Euclidean norm of the change of an image")
    axes.set_ylabel("certified accuracy, test set")
    axes.set_ylim(bottom=0.0)
    return _chart(axes, "Certified accuracy: right for every change of that norm")


def _tightness_chart(run):
    spreads = run["metrics"].get("tightness")
    if not spreads or any("q50" not in spread for spread in spreads.values()):  # by an earlier version
        return None
    return _chart(draw_tightness(spreads, "a test example"), f"{run['name']}: tightness of the bounds")


def _noise_chart(run):
    stddevs, batch_size = run["privacy"].get("noise_stddevs"), run["privacy"].get("batch_size")
    if not stddevs or None in stddevs.values() or not all(stddevs.values()):  # what is released without noise
        return None
    axes = new_axes(len(stddevs))
    axes.plot([stddev / batch_size for stddev in stddevs.values()], range(len(stddevs)), "o")
    name_rows(axes, list(stddevs))
    axes.set_xscale("log")
    axes.set_xlabel("standard deviation of the noise on each entry of the mean gradient")
    return _chart(axes, f"{run['name']}: noise")


def _chart(axes, title):
    """The chart as an address that holds all of it, or None where nothing was drawn."""
    if not axes.has_data():
        return None
    add_legend(axes)
    drawn = io.BytesIO()
    axes.figure.savefig(drawn, format="svg", metadata={"Date": None})
    return {"title": title, "source": "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()}
