"""Migrations for every datasource and every tenant: planned, checksummed, guarded by locks, resumable."""

from .directives import Directives, Phase
from .fan_out import Events
from .files import Folder, Kind, Migration, Problem, Scope, read_folder
from .lint import lint_file
from .migrator import Migrator, has_migrations
from .new_tenants import NewTenants
from .plan import Finding, Trouble
from .report import MigrationReport, Verdict, named
from .skew import SkewWatch
from .sql_tokens import SqlError, Statement, checksum, split
from .survey import Progress, Standing, counts

__all__ = [
    "Directives",
    "Events",
    "Finding",
    "Folder",
    "Kind",
    "Migration",
    "MigrationReport",
    "Migrator",
    "NewTenants",
    "Phase",
    "Problem",
    "Progress",
    "Scope",
    "SkewWatch",
    "SqlError",
    "Standing",
    "Statement",
    "Trouble",
    "Verdict",
    "checksum",
    "counts",
    "has_migrations",
    "lint_file",
    "named",
    "read_folder",
    "split",
]
