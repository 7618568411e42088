"""Checks that try to break what a layer states, for this library and for people who write layers."""

from deel.lipdp.testing._check import LayerCheckError, check_dp_layer
from deel.lipdp.testing._search import ROUNDING_TOLERANCE, WorstCase, search_worst_case

__all__ = ["ROUNDING_TOLERANCE", "LayerCheckError", "WorstCase", "check_dp_layer", "search_worst_case"]
