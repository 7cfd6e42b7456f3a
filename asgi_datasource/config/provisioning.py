"""How tenants are made, in the document."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .kinds import DatabaseIdentifier, FilePath, SetUpStep
from .sections import OMISSIBLE, Section


class ProvisioningConfig(Section):
    """How tenants are made, moved and taken away, by `asgi-datasource tenants` and `registry.provision`."""

    set_up: tuple[SetUpStep, ...] = Field(
        default=(),
        title="Set-up",
        description=(
            "What is run in the new tenant's place before it turns active, in this order, each once: files of SQL, and"
            " functions of the application's as package.module:function, async or not, that are given the tenant and a"
            " psycopg connection inside a transaction there."
        ),
        examples=[["sql/tenant.sql", "shop.tenants:seed"]],
    )
    template: Annotated[DatabaseIdentifier | None, OMISSIBLE] = Field(
        default=None,
        title="Template database",
        description="What a tenant's own database is copied from; template1 unless told otherwise.",
        examples=["tenant_template"],
    )
    dump_folder: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="Folder of dumps",
        description="Where drop keeps a dump of what it takes away.",
        examples=["/var/backups/tenants"],
    )
    programs: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="PostgreSQL's programs",
        description="The folder of pg_dump and pg_restore; those of the PATH unless told otherwise.",
        examples=["/usr/lib/postgresql/18/bin"],
    )
