"""The folder of a finished training run: it appears whole or not at all."""

import contextlib
import json
import math
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

from deel.lipdp import _checks
from deel.lipdp._charts import add_legend, new_axes, save_png
from deel.lipdp._types import PathLike

__all__ = ["FILES", "check_output", "new_run_folder", "write_certified", "write_curve", "write_json"]

#: What a run may hold. Only networks on pixels are certified.
FILES = (
    "history.json",
    "privacy.json",
    "privacy_card.md",
    "metrics.json",
    "model.keras",
    "curve.png",
    "certified.png",
)


def _refuse(expected, received, remedy):
    raise ValueError(_checks.message("run folder", expected, received, remedy))


def check_output(output: PathLike, overwrite: bool = False) -> pathlib.Path:
    """Says early whether a run can be written to `output`; writes nothing.

    Args:
        output: str or path; a folder that does not exist yet, or an empty one.
        overwrite: bool, whether it may hold an earlier run, and nothing else.

    Returns:
        `pathlib.Path`, absolute.

    Raises:
        TypeError: if `output` is no path.
        ValueError: if it is no folder, holds something, or cannot be made.
    """
    try:
        output = pathlib.Path(output).resolve()
    except TypeError as error:
        remedy = "Pass a str or a pathlib.Path."
        raise TypeError(_checks.message("run folder", "output to be a path", f"{output!r}", remedy)) from error
    if output.is_dir():
        found = sorted(path.name for path in output.iterdir())
        is_run = "privacy.json" in found and set(found) <= set(FILES)
        if found and not (overwrite and is_run):
            # Whatever is not a run is never deleted, and the epsilon of a run is not forgotten by accident.
            remedy = "Name another folder" + (
                ", or pass overwrite (--overwrite) to replace that run." if is_run else "."
            )
            _refuse("output to be a new or empty folder", f"'{output}' with {', '.join(found[:5])}", remedy)
    elif output.exists():
        _refuse("output to be a folder", f"'{output}', a file", "Name another folder.")
    parent = next(path for path in output.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        _refuse("output in a folder that can be written to", f"'{parent}'", "Name another folder.")
    return output


@contextlib.contextmanager
def new_run_folder(output: PathLike, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Context manager: gives a temporary folder beside `output` that becomes `output` when the block ends well.

    An exception in the block deletes the temporary folder; a kill leaves it under its hidden name.

    Args:
        output, overwrite: see `check_output`.

    Raises:
        ValueError: before the block runs, if `output` cannot be written.
    """
    output = check_output(output, overwrite)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        _refuse("output in a folder that can be written to", f"'{output}' ({error})", "Name another folder.")
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # A failure from here on leaves the temporary folder: what is in it was paid for.
    if overwrite and output.exists():
        replaced = temporary.with_suffix(".old")
        os.replace(output, replaced)
        os.replace(temporary, output)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        if output.exists():
            output.rmdir()  # it was empty; Windows cannot rename onto it, and if something came in, this refuses
        os.replace(temporary, output)


def json_safe(value: Any) -> Any:
    """The same content in what JSON can hold: plain numbers, and None for infinity and NaN."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if hasattr(value, "item"):  # NumPy and TensorFlow scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: PathLike, content: dict[str, Any]) -> dict[str, Any]:
    """Writes a dict as JSON that any parser reads, and returns what was written."""
    content = json_safe(content)
    pathlib.Path(path).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return content


def write_curve(path: PathLike, history: dict[str, list[Any]]) -> None:
    """Draws accuracy against epsilon, against epochs where no epsilon holds (seeded runs)."""
    from matplotlib.ticker import MaxNLocator

    epsilon = history.get("epsilon", [None])
    private = all(value is not None and math.isfinite(value) for value in epsilon)
    axes = new_axes()
    for key, label, marker in (("accuracy", "training", "."), ("val_accuracy", "validation", "o")):
        if key in history:
            values = history[key]
            axes.plot(epsilon if private else range(1, len(values) + 1), values, marker=marker, ms=4, label=label)
    axes.set_xlabel(f"epsilon, at delta = {history['delta'][-1]:g}" if private else "epoch (seeded: no epsilon holds)")
    if not private:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("accuracy")
    add_legend(axes)
    save_png(axes, path)


def write_certified(path: PathLike, certified: dict[str, list[float]]) -> None:
    """Draws certified accuracy against the radius, both lists in a dict."""
    axes = new_axes()
    axes.plot(certified["radius"], certified["accuracy"], marker="o", ms=4)
    axes.set_xlabel("radius: Euclidean norm of the change of an image, pixels in [0, 1]")
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("certified accuracy, test set")
    save_png(axes, path)
