"""The section `migrate`: how the schemas of datasources and tenants are changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from . import values
from .kinds import DatasourceName, Duration, FilePath, FixedTenant, Parallel, StageName
from .sections import OMISSIBLE, Section, duration_field, mapping_field


class StageConfig(Section):
    """One of the stages in which tenants are migrated; the next one begins when this one has had no failure."""

    name: StageName = Field(title="Name", description="Its name in reports.", examples=["canary"])
    tenants: Annotated[tuple[FixedTenant, ...] | None, OMISSIBLE] = Field(
        default=None,
        title="Tenants",
        description="The tenants of the stage. Without it: all that no stage before has.",
        examples=[["acme"]],
    )


class MigrateConfig(Section):
    """How `asgi-datasource migrate`, the start of the application and the provisioning of tenants change schemas."""

    engine: Annotated[Literal["sql", "alembic"], values.word("MigrateEngine", "sql", "alembic")] = Field(
        default="sql",
        title="Engine",
        description="sql: the files of folder. alembic: the Alembic environment of script_location, for each tenant.",
        examples=["sql"],
    )
    folder: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="Folder",
        description="The folder with shared/ (run once for each database) and tenant/ (once for each tenant).",
        examples=["migrations"],
    )
    folders: dict[DatasourceName, FilePath] = mapping_field(
        title="Folders of datasources",
        description="Datasources with migrations of their own, in place of those of folder.",
        examples=[{"reports": "migrations/reports"}],
    )
    datasources: Annotated[tuple[DatasourceName, ...] | None, OMISSIBLE] = Field(
        default=None,
        title="Datasources",
        description="The datasources that are migrated; default: all on PostgreSQL.",
        examples=[["orders"]],
    )
    script_location: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="Script location",
        description="Alembic's script_location: the folder with env.py and versions/.",
        examples=["alembic"],
    )
    at_startup: Annotated[Literal["check", "apply", "off"], values.word("AtStartup", "check", "apply", "off")] = Field(
        default="check",
        title="At the start",
        description=(
            "check: the application does not start while migrations are pending. apply: it applies them first; of"
            " several processes, one applies each. off: it starts."
        ),
        examples=["check"],
    )
    behind: Annotated[Literal["ignore", "refuse"], values.word("Behind", "ignore", "refuse")] = Field(
        default="ignore",
        title="Tenants behind",
        description=(
            "refuse: requests of a tenant below the version of this application's files are answered with 503; its"
            " version is read in the background, never in a request. ignore: they are served."
        ),
        examples=["refuse"],
    )
    concurrency: Parallel = Field(
        default=4,
        title="Concurrency",
        description="How many tenants of a datasource are migrated at a time; more over a slow network.",
        examples=[4],
    )
    lock_timeout_s: Duration = duration_field(
        "3s",
        alias="lock_timeout",
        title="Lock timeout",
        description=(
            "How long a migration may wait for a lock; all queries of the table wait behind it. It is retried after a"
            " pause, five times."
        ),
        examples=["3s"],
    )
    on_error: Annotated[Literal["continue", "stop"], values.word("OnError", "continue", "stop")] = Field(
        default="continue",
        title="On an error",
        description="continue: a tenant that fails stays behind, the others go on. stop: no other tenant begins.",
        examples=["continue"],
    )
    max_failures: Parallel = Field(
        default=10,
        title="Most failures",
        description="With continue: how many tenants may fail before no other one begins.",
        examples=[10],
    )
    out_of_order: Annotated[Literal["error", "allow"], values.word("OutOfOrder", "error", "allow")] = Field(
        default="error",
        title="Out of order",
        description=(
            "What a migration below the highest one that has run is, such as after a late merge. error: it is reported"
            " and the schema stays as it is. allow: it runs."
        ),
        examples=["error"],
    )
    missing: Annotated[Literal["error", "ignore"], values.word("Missing", "error", "ignore")] = Field(
        default="error",
        title="Missing files",
        description=(
            "What a migration is that has run and has no file. error: it is reported and the schema stays as it is."
            " ignore: it is passed over."
        ),
        examples=["error"],
    )
    stages: tuple[StageConfig, ...] = Field(
        default=(),
        title="Stages",
        description="Tenants in an order: a stage begins when the one before has had no failure.",
        examples=[[{"name": "canary", "tenants": ["acme"]}, {"name": "rest"}]],
    )
