"""Charts of trainings, for files and for the page about runs.

Figures are made without pyplot: no window opens, and the user's own figures are not touched.
"""

import math

__all__ = ["add_legend", "draw_tightness", "name_rows", "new_axes", "plain", "save_png"]

_SIZE = (6.4, 3.6)  # inches
# Of the legend of a chart: inches for each row, and characters that fit beside each other.
_LEGEND_ROW = 0.2
_LEGEND_WIDTH = 94


def new_axes(rows=None):
    """Axes of a new figure, higher with the number of named rows."""
    from matplotlib.figure import Figure

    size = _SIZE if rows is None else (_SIZE[0], 1.2 + 0.4 * rows)
    axes = Figure(figsize=size, layout="constrained").add_subplot()
    axes.grid(alpha=0.3)
    return axes


def plain(text):
    """The text as it stands: Matplotlib would take a dollar sign for the beginning of a formula."""
    return text.replace("$", r"\$")


def name_rows(axes, names):
    """Names the rows 0, 1, ... from the top."""
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def add_legend(axes):
    """Names the curves, if they have names, below the axes: inside, a legend would cover some of many."""
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        columns = max(1, min(3, _LEGEND_WIDTH // (max(map(len, labels)) + 6)))  # 6 for the mark before each
        width, height = axes.figure.get_size_inches()
        axes.figure.set_size_inches(width, height + _LEGEND_ROW * math.ceil(len(labels) / columns))
        axes.figure.legend(loc="outside lower center", ncols=columns, fontsize="small")


def draw_tightness(spreads, examples):
    """Axes with a bar for each variable: gradient norms over their bound, as `_reporting.spread` describes them."""
    axes = new_axes(len(spreads))
    for row, spread in enumerate(spreads.values()):
        axes.plot([spread["q5"], spread["q95"]], [row, row], "-", color="C0", lw=6, alpha=0.35, solid_capstyle="butt")
        axes.plot([spread["q50"]], [row], "|", color="C0", ms=14, mew=3)
        axes.plot([spread["max"]], [row], ".", color="C0")
    name_rows(axes, list(spreads))
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel(f"gradient norm of {examples} over its bound\n5 to 95 %, median, largest")
    return axes


def save_png(axes, path):
    axes.figure.savefig(path, dpi=150)
