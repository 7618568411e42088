"""Empirical audits: attempts to show that a training does less than it declares.

An audit that fails shows a fault. One that passes shows that this attempt found none, and its power says how much that
is worth. Their reports are computed without noise and are not covered by epsilon.
"""

from deel.lipdp.audit._report import AuditError
from deel.lipdp.audit._statistics import epsilon_lower_bound, gaussian_epsilon, mechanism_power, one_run_power
from deel.lipdp.audit.examples import hard_examples, hard_weights
from deel.lipdp.audit.mechanism import MechanismReport, audit_mechanism
from deel.lipdp.audit.one_run import OneRunReport, audit_one_run
from deel.lipdp.audit.recipe import audit_recipe
from deel.lipdp.audit.sensitivity import SensitivityAudit, SensitivityReport, audit_sensitivity

__all__ = [
    "AuditError",
    "MechanismReport",
    "OneRunReport",
    "SensitivityAudit",
    "SensitivityReport",
    "audit_mechanism",
    "audit_one_run",
    "audit_recipe",
    "audit_sensitivity",
    "epsilon_lower_bound",
    "gaussian_epsilon",
    "hard_examples",
    "hard_weights",
    "mechanism_power",
    "one_run_power",
]
