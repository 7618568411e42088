"""Differentially private training of Lipschitz Keras networks, without per-example gradient clipping.

The public names are those of the modules; the most used are here too, imported on first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which does not see what is imported on first use
    from deel.lipdp.accounting import calibrate_noise as calibrate_noise
    from deel.lipdp.bounds import compute_gradient_bounds as compute_gradient_bounds
    from deel.lipdp.callbacks import DP_Accountant as DP_Accountant
    from deel.lipdp.callbacks import DP_BackupAndRestore as DP_BackupAndRestore
    from deel.lipdp.conversion import conversion_report as conversion_report
    from deel.lipdp.conversion import convert as convert
    from deel.lipdp.model import DP_Model as DP_Model
    from deel.lipdp.model import DP_Sequential as DP_Sequential
    from deel.lipdp.parameters import DatasetMetadata as DatasetMetadata
    from deel.lipdp.parameters import DPParameters as DPParameters
    from deel.lipdp.privacy import get_eps_delta as get_eps_delta
    from deel.lipdp.sampling import poisson_batches as poisson_batches
    from deel.lipdp.sensitivity import get_max_epochs as get_max_epochs

__version__ = "0.1.0"

_LAZY = {
    "DP_Accountant": "callbacks",
    "DP_BackupAndRestore": "callbacks",
    "DP_Model": "model",
    "DP_Sequential": "model",
    "DPParameters": "parameters",
    "DatasetMetadata": "parameters",
    "calibrate_noise": "accounting",
    "compute_gradient_bounds": "bounds",
    "conversion_report": "conversion",
    "convert": "conversion",
    "get_eps_delta": "privacy",
    "get_max_epochs": "sensitivity",
    "poisson_batches": "sampling",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name):
    if name in _LAZY:
        return getattr(importlib.import_module(f"deel.lipdp.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
