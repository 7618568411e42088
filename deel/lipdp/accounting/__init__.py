"""Privacy accounting: what was released (events), what it costs (accountants), what it takes (calibration)."""

from deel.lipdp.accounting.accountants import (
    ACCOUNTANTS,
    PLDAccountant,
    RDPAccountant,
    compute_epsilon,
    get_accountant,
)
from deel.lipdp.accounting.calibration import calibrate_noise, max_steps
from deel.lipdp.accounting.comparison import AccountantComparison, compare_accountants
from deel.lipdp.accounting.events import (
    GaussianStep,
    LaplaceStep,
    PoissonSampling,
    ShuffledSampling,
    UndeclaredSampling,
    event_from_config,
    event_to_config,
)
from deel.lipdp.accounting.mechanisms import DPGD_Mechanism
from deel.lipdp.accounting.relations import RELATIONS, neighboring_relation
from deel.lipdp.accounting.search import compute_search_epsilon

__all__ = [
    "ACCOUNTANTS",
    "RELATIONS",
    "AccountantComparison",
    "DPGD_Mechanism",
    "GaussianStep",
    "LaplaceStep",
    "PLDAccountant",
    "PoissonSampling",
    "RDPAccountant",
    "ShuffledSampling",
    "UndeclaredSampling",
    "calibrate_noise",
    "compare_accountants",
    "compute_epsilon",
    "compute_search_epsilon",
    "event_from_config",
    "event_to_config",
    "get_accountant",
    "max_steps",
    "neighboring_relation",
]
