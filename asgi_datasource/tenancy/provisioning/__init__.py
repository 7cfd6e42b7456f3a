"""Creates, moves and drops tenants: each operation is a sequence of recorded steps, and resumes where it stopped."""

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
