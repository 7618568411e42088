"""Differentially private training of Lipschitz Keras networks, without per-example gradient clipping.

The public names are those of the modules; the most used are here too, imported on first use.
"""

import importlib

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
