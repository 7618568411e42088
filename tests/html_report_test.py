"""The page about finished runs: what is on it, and that it stands alone."""

import base64
import html.parser
import json
import re

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from typer.testing import CliRunner

from deel.lipdp import html_report
from deel.lipdp.cli import app
from deel.lipdp.html_report import write_report
from deel.lipdp.training_run import train

SPREAD = {"q5": 0.1, "q25": 0.15, "q50": 0.2, "q75": 0.5, "q95": 0.9, "max": 1.0}


def run_folder(folder, card="# Privacy card\n\n| | |\n|---|---|\n| Delta | 1e-05 |\n", **changes):
    folder.mkdir(parents=True)
    files = {
        "privacy": {
            "epsilon": 1.23451,
            "delta": 1e-5,
            "seeded": False,
            "num_examples": 1000,
            "batch_size": 100,
            "warning": None,
            "statement": "The weights are private.",
            "noise_stddevs": {"conv/kernel": 3.0, "dense/kernel": 0.1},
        },
        "metrics": {
            "test_accuracy": 0.875,
            "val_accuracy": None,
            "certified_accuracy": {"radius": [0.0, 0.1], "accuracy": [0.875, 0.5]},
            "tightness": {"conv/kernel": SPREAD, "dense/kernel": SPREAD},
        },
        "history": {"epsilon": [0.5, 1.23451], "accuracy": [0.5, 0.75], "val_accuracy": [0.25, 0.625]},
    }
    for name, content in files.items():
        content.update(changes.get(name, {}))
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "privacy_card.md").write_text(card)
    return folder


class _Page(html.parser.HTMLParser):
    """Balanced tags, addresses, and the text outside the style sheet."""

    def __init__(self, source):
        super().__init__()
        self.open, self.addresses, self.anchors, self.text = [], [], set(), ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "hr", "br"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                self.addresses.append(value)
            if name == "id":
                self.anchors.add("#" + value)
            if tag == "img" and name == "alt":
                self.text += f" [{value}] "

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""


def page_of(*runs, output):
    return _Page(write_report(runs, output).read_text(encoding="utf-8"))


def drawings(page):
    return [base64.b64decode(a.split(",")[1]).decode() for a in page.addresses if a.startswith("data:image/svg+xml")]


def labels(drawing):
    """What is written in a drawing: Matplotlib leaves each text as a comment beside its outlines."""
    return re.findall(r"<!-- (.*?) -->", drawing)


def test_the_page_stands_alone_and_holds_what_the_files_say(tmp_path):
    page = page_of(run_folder(tmp_path / "one"), run_folder(tmp_path / "two"), output=tmp_path / "page.html")
    outside = [a for a in page.addresses if not a.startswith("data:image/svg+xml;base64,")]
    assert sorted(outside) == ["#run-1", "#run-2"] and set(outside) <= page.anchors
    for text in ("one", "two", "1.2346", "87.50 %", "1000", "1e-05", "Privacy card"):  # epsilon is rounded up
        assert text in page.text
    accuracy, certified, *bars = drawings(page)
    assert {"training: one", "held out: one", "test: two"} <= set(labels(accuracy))
    assert {"run one", "run two"} <= set(labels(certified))
    assert len(bars) == 4 and all({"conv/kernel", "dense/kernel"} <= set(labels(bar)) for bar in bars)
    assert "<svg" in accuracy and "[one: tightness of the bounds]" in page.text


@pytest.mark.parametrize("name", ["run{}", "mnist-epsilon{}-20261127-140000", "a" * 60 + "{}"])
def test_the_legend_of_many_runs_covers_no_curve(name, tmp_path, monkeypatch):
    drawn, chart = [], html_report._chart

    def kept(axes, title):
        result = chart(axes, title)
        drawn.append(axes)
        return result

    monkeypatch.setattr(html_report, "_chart", kept)
    for count in (1, 6):
        write_report([run_folder(tmp_path / str(count) / name.format(i)) for i in range(count)], tmp_path / "page.html")
    with_legend = [axes for axes in drawn if axes.figure.legends]
    assert len(with_legend) == 4  # accuracy and certified accuracy, twice
    heights = []
    for axes in with_legend:
        assert axes.get_legend() is None
        [legend] = axes.figure.legends
        canvas = FigureCanvasAgg(axes.figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        legend, curves = legend.get_window_extent(renderer), axes.get_tightbbox(renderer)
        assert not legend.overlaps(curves)
        assert legend.x0 >= 0 and legend.y0 >= 0 and legend.x1 <= axes.figure.bbox.x1
        heights.append(axes.get_window_extent(renderer).height)
    assert min(heights) > 0.85 * max(heights)  # the figure grows, the curves do not shrink


def test_what_a_run_does_not_have_is_left_out(tmp_path):
    folder = run_folder(tmp_path / "bare", privacy={"epsilon": None, "seeded": True, "noise_stddevs": None})
    for name in ("metrics.json", "history.json", "privacy_card.md"):
        (folder / name).unlink()
    page = page_of(folder, output=tmp_path / "page.html")
    assert drawings(page) == []
    assert "none: seeded" in page.text and "The weights are private." in page.text


def test_null_values_are_not_drawn(tmp_path):
    """A release without noise has an infinite epsilon, which is null in JSON."""
    noise = {"conv/kernel": 0.0, "dense/kernel": 0.0}
    unbounded = {"privacy": {"epsilon": None, "noise_stddevs": noise}, "history": {"epsilon": [None, None]}}
    page = page_of(run_folder(tmp_path / "run", **unbounded), output=tmp_path / "page.html")
    assert len(drawings(page)) == 2  # no accuracy against epsilon, and no noise
    assert "infinite" in page.text


def test_tightness_as_an_earlier_version_wrote_it_is_left_out(tmp_path):
    old = {"metrics": {"tightness": {"dense/kernel": {"q5": 0.1, "median": 0.2, "q95": 0.9, "max": 1.0}}}}
    page = page_of(run_folder(tmp_path / "run", **old), output=tmp_path / "page.html")
    assert len(drawings(page)) == 3 and "tightness" not in page.text


def test_nothing_in_a_run_is_taken_for_markup(tmp_path):
    name = "_<b>&$x^$"  # Matplotlib has marks of its own
    attack = {"privacy": {"warning": "<script>1</script>"}, "metrics": {"command": "<img src=x>"}}
    folder = run_folder(tmp_path / name, card="<script>alert(1)</script>\n", **attack)
    source = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in source and "<img src=x" not in source and "<b>" not in source
    assert name in _Page(source).text


@pytest.mark.parametrize("runs, names", [(("a/run", "b/run"), ("a/run", "b/run")), (("a/run",), ("run",))])
def test_runs_are_told_apart_by_the_end_of_their_paths(runs, names, tmp_path):
    folders = [run_folder(tmp_path / run) for run in runs]
    source = write_report(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"<title>lipdp report: {', '.join(names)}</title>" in source


def test_a_run_may_be_there_twice(tmp_path):
    folder = run_folder(tmp_path / "run")
    source = write_report([folder, folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert source.count("(1)</a>") == source.count("(2)</a>") == 1


def test_bad_arguments_are_refused_with_a_remedy(tmp_path):
    folder = run_folder(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    run_folder(tmp_path / "runs" / "one")
    cut = run_folder(tmp_path / "cut")
    (cut / "metrics.json").write_text('{"test')
    for runs, output, text in [
        ([], "page.html", "a run folder or several.*Name folders"),
        ([tmp_path / "empty"], "page.html", "with privacy.json.*empty.*lipdp train"),
        ([tmp_path / "runs"], "page.html", r"with privacy.json.*Name the runs in that folder: .*runs/\*"),
        ([cut], "page.html", "expected JSON.*metrics.json.*train again"),
        ([folder], "page.txt", "ends in .html.*page.txt"),
        ([folder], "no/page.html", "in a folder that exists"),
    ]:
        with pytest.raises(ValueError, match=f"(?s)lipdp report.*{text}"):
            write_report(runs, tmp_path / output)
    assert not list(tmp_path.glob("page*"))


def test_command_on_a_real_run(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    run = train("digits", 8.0, "run", epochs=2, progress=False)
    assert "Gradient norms" not in caplog.text  # they are those of test examples
    spread = run.metrics["tightness"]
    assert spread.keys() == run.privacy["noise_stddevs"].keys() == run.privacy["bounds"].keys()
    for values in spread.values():
        assert list(values) == ["q5", "q25", "q50", "q75", "q95", "max"]
        assert 0.0 <= values["q5"] and list(values.values()) == sorted(values.values()) and values["max"] <= 1.0
    result = CliRunner().invoke(app, ["report", "run", "--output", "page.html"])
    assert result.exit_code == 0 and result.output.split() == ["report", "page.html"]
    page = _Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(drawings(page)) == 4 and "differentially private" in page.text
    result = CliRunner().invoke(app, ["report", "other"])
    assert result.exit_code == 2 and "privacy.json" in result.output and "Traceback" not in result.output
