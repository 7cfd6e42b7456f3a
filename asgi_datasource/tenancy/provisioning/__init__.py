"""Tenants created, moved and dropped: each operation is a row of steps in a table, and goes on where it stopped."""

from .ledger import Operation, Placement, Record, UnderWay
from .plan import ProvisioningPlan, Site, compile_provisioning
from .provisioner import Provisioner, TenantMigrations

__all__ = [
    "Operation",
    "Placement",
    "Provisioner",
    "ProvisioningPlan",
    "Record",
    "Site",
    "TenantMigrations",
    "UnderWay",
    "compile_provisioning",
]
