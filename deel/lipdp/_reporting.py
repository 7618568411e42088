"""What callbacks report, and where to: `log_fn` becomes one callable that takes a dict."""

import importlib.util
import logging
import sys

import numpy as np

from deel.lipdp import _checks

__all__ = ["resolve_log_fn", "spread"]

_logger = logging.getLogger("deel.lipdp")

_QUANTILES = {"q5": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def spread(values):
    """How numbers are spread out: dict of floats, quantiles by their percentage (`"q50"` is the median) and `"max"`."""
    quantiles = np.quantile(values, list(_QUANTILES.values()))
    return dict(zip(_QUANTILES, quantiles.tolist(), strict=True))


def _to_logging(values):
    _logger.info("%s", values)


def _to_wandb(values):
    import wandb

    def drawn(counts):
        return wandb.Histogram(np_histogram=(counts, np.linspace(0.0, 1.0, len(counts) + 1)))

    # The only lists that callbacks report are counts in equal parts of [0, 1].
    wandb.log({key: drawn(value) if isinstance(value, list) else value for key, value in values.items()})


def _checked_wandb():
    if importlib.util.find_spec("wandb") is None:
        raise ImportError("log_fn='wandb' needs wandb: pip install lipdp[wandb]")
    return _to_wandb


def _to_all(values):
    _to_logging(values)
    wandb = sys.modules.get("wandb")  # a run can only be active in a wandb that was imported
    if wandb is not None and getattr(wandb, "run", None) is not None:
        _to_wandb(values)


_LOG_FNS = {"all": lambda: _to_all, "logging": lambda: _to_logging, "wandb": _checked_wandb}


def resolve_log_fn(log_fn):
    """Returns the callable for `"all"`, `"logging"`, `"wandb"` or a callable itself.

    Raises:
        ImportError: for `"wandb"` when it is not installed.
        ValueError: for another name.
    """
    if callable(log_fn):
        return log_fn
    return _checks.choice("log_fn", "log_fn", log_fn, _LOG_FNS, remedy="Or pass a callable.")()
