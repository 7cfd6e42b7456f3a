"""The section `provisioning`: how tenants are created, moved and dropped."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .kinds import DatabaseIdentifier, FilePath, SetUpStep
from .sections import OMISSIBLE, Section


class ProvisioningConfig(Section):
    """How `asgi-datasource tenants` and `registry.provision` create, move and drop tenants."""

    set_up: tuple[SetUpStep, ...] = Field(
        default=(),
        title="Set-up",
        description=(
            "Steps that set up a new tenant before it becomes active, each run once, in this order: SQL files, and"
            " functions of the application as package.module:function, async or not, that take the tenant and a psycopg"
            " connection inside a transaction."
        ),
        examples=[["sql/tenant.sql", "shop.tenants:seed"]],
    )
    template: Annotated[DatabaseIdentifier | None, OMISSIBLE] = Field(
        default=None,
        title="Template database",
        description="The template of a tenant's own database; default: template1.",
        examples=["tenant_template"],
    )
    dump_folder: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="Directory of dumps",
        description="The directory for the dumps that drop keeps.",
        examples=["/var/backups/tenants"],
    )
    programs: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="PostgreSQL's programs",
        description="The directory of pg_dump and pg_restore; default: those on the PATH.",
        examples=["/usr/lib/postgresql/18/bin"],
    )
