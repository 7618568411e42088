"""The example in the guide to auditing runs and says what the guide says."""

import pathlib
import re

import pytest

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "auditing.md"


@pytest.mark.full
def test_the_example_of_the_guide_runs(capsys):
    example, table = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    compile(table, GUIDE.name, "exec")  # a minute's work
    exec(compile(example, GUIDE.name, "exec"), {"__name__": "auditing"})
    printed = capsys.readouterr().out
    assert printed.count("pass: ") == 2
    assert float(re.search(r"finds halved noise with probability (\S+)", printed)[1]) > 0.8
