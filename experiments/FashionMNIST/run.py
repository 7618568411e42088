"""Accuracy on FashionMNIST at privacy budgets; see `experiments/study.py`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import study

if __name__ == "__main__":
    study.main(pathlib.Path(__file__).parent, __doc__)
