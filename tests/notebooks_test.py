"""The tutorials run from the first cell to the last, and are committed with what they print."""

import pathlib
import re

import nbformat
import numpy as np
import papermill
import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"

# Settings that take seconds, in place of those of the cell tagged "parameters".
SMALL = {
    "basic_mnist": {"epochs": 2, "batch_size": 200},
    "advanced_cifar10": {"epochs": 2, "batch_size": 100, "studied": 8},
    "tabular": {"tables": ["campaign"], "epochs": 2},
    "converting": {"epochs": 2, "batch_size": 200, "plain_epochs": 1},
    "auditing": {"epochs": 2, "trials": 60},
}
SHAPES = {"mnist": (28, 28), "fashion_mnist": (28, 28), "cifar10": (32, 32, 3)}


def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in notebook(name).cells if cell.cell_type == "code"]


def draw_images(folder):
    """Files like those of the data sets, of a thousand drawn images each."""
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        arrays = {}
        for part, count in (("train", 1000), ("test", 200)):
            labels = rng.integers(0, 10, count)
            images = rng.integers(0, 100, (count, *shape))
            images[np.arange(count), labels] += 150  # a bright line, in the row of the class
            arrays |= {f"x_{part}": images.astype("uint8"), f"y_{part}": labels}
        np.savez(folder / f"{name}.npz", **arrays)


DRAWN_TABLE = """
def load_adbench_data(table):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 5)).astype("float32")
    y = (x[:, :1] > 1.0).astype("float32")
    return x[200:], y[200:], x[:200], y[:200]
"""


@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name, tmp_path, monkeypatch):
    draw_images(tmp_path)
    monkeypatch.setenv("LIPDP_DATA_DIR", str(tmp_path))
    content = notebook(name)
    if name == "tabular":  # the loader wants the collection's own file
        [imports] = [cell for cell in content.cells if "import bound_clip_value" in cell.source]
        imports.source += DRAWN_TABLE
    nbformat.write(content, tmp_path / "small.ipynb")
    [parameters] = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
    for parameter in SMALL[name]:  # papermill would take a name that is not used
        assert re.search(rf"^{parameter} = ", parameters.source, re.MULTILINE)
    papermill.execute_notebook(
        tmp_path / "small.ipynb",
        tmp_path / "done.ipynb",
        SMALL[name],
        cwd=tmp_path,
        kernel_name="python3",
        progress_bar=False,
        log_output=False,
    )


def test_every_tutorial_is_tried_and_in_the_site():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SMALL)
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"notebooks/{name}.ipynb" in site for name in SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_committed_has_its_outputs_in_order_and_tells_no_paths(name):
    cells = code_cells(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # Not the pictures: their letters are chance.
    printed = "".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert not [cell.source for cell in cells if "print(" in cell.source and not cell.outputs]
    assert printed and not re.search(r"Traceback|site-packages|/home/|/root/|/tmp/|oneDNN|cuda", printed)
    assert "papermill" not in notebook(name).metadata
    assert not any("execution" in cell.metadata for cell in cells)


def test_the_badges_of_the_readme_open_the_tutorials():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = re.findall(r"https://colab.research.google.com/github/([\w-]+/[\w-]+)/blob/main/(\S+?)\)", readme)
    assert [path for _, path in badges] == [f"docs/notebooks/{name}.ipynb" for name in SMALL]
    [repository] = {repository for repository, _ in badges}
    assert f'url="https://github.com/{repository}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f"git clone https://github.com/{repository} " in readme
    for name in SMALL:
        [first, *_] = code_cells(name)
        assert f"%pip install --quiet git+https://github.com/{repository}.git" in first.source
