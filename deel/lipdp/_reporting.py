"""Turns `log_fn` into one callable that takes a dict; every callback uses it."""

import importlib.util
import logging
import sys

from deel.lipdp import _checks

__all__ = ["resolve_log_fn"]

_logger = logging.getLogger("deel.lipdp")


def _to_logging(values):
    _logger.info("%s", values)


def _to_wandb(values):
    import wandb

    wandb.log(values)


def _checked_wandb():
    if importlib.util.find_spec("wandb") is None:
        raise ImportError("log_fn='wandb' needs wandb: pip install lipdp[wandb]")
    return _to_wandb


def _to_all(values):
    _to_logging(values)
    wandb = sys.modules.get("wandb")  # a run can only be active in a wandb that was imported
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.log(values)


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
