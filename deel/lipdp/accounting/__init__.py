"""Privacy accounting: what was released (events), what it costs (accountants), what it takes (calibration)."""

from deel.lipdp.accounting.accountants import (
    ACCOUNTANTS,
    PLDAccountant,
    RDPAccountant,
    compute_epsilon,
    get_accountant,
    neighboring_relation,
)
from deel.lipdp.accounting.calibration import calibrate_noise, max_steps
from deel.lipdp.accounting.events import (
    GaussianStep,
    PoissonSampling,
    UndeclaredSampling,
    event_from_config,
    event_to_config,
)
from deel.lipdp.accounting.mechanisms import DPGD_Mechanism

__all__ = [
    "ACCOUNTANTS",
    "DPGD_Mechanism",
    "GaussianStep",
    "PLDAccountant",
    "PoissonSampling",
    "RDPAccountant",
    "UndeclaredSampling",
    "calibrate_noise",
    "compute_epsilon",
    "event_from_config",
    "event_to_config",
    "get_accountant",
    "max_steps",
    "neighboring_relation",
]
