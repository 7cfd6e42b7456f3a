"""Tenants made, moved and taken away: each operation a row of steps in a table, taken up again where it stopped."""

from .plan import ProvisioningPlan, Site, compile_provisioning
from .provisioner import Provisioner
from .records import Operation, Placement, Record

__all__ = [
    "Operation",
    "Placement",
    "Provisioner",
    "ProvisioningPlan",
    "Record",
    "Site",
    "compile_provisioning",
]
