"""Tenants made, moved and taken away: each operation a row of steps in a table, taken up again where it stopped."""

from .ledger import Operation, Placement, Record
from .plan import ProvisioningPlan, Site, compile_provisioning
from .provisioner import Provisioner

__all__ = [
    "Operation",
    "Placement",
    "Provisioner",
    "ProvisioningPlan",
    "Record",
    "Site",
    "compile_provisioning",
]
