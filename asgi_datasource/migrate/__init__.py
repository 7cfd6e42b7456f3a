"""Migrations for every datasource and every tenant: planned, checksummed, guarded by locks, resumable."""

from .directives import Directives, Phase
from .fan_out import Events
from .files import Folder, Kind, Migration, Problem, Scope, read_folder
from .migrator import Migrator
from .plan import Finding, Trouble
from .report import MigrationReport, Verdict, named
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
    "Phase",
    "Problem",
    "Progress",
    "Scope",
    "SqlError",
    "Standing",
    "Statement",
    "Trouble",
    "Verdict",
    "checksum",
    "counts",
    "named",
    "read_folder",
    "split",
]
