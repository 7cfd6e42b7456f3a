"""Migrations for every datasource and every tenant: planned, checksummed, guarded by locks, resumable."""

from .directives import Directives, Phase
from .files import Folder, Kind, Migration, Problem, Scope, read_folder
from .sql_tokens import SqlError, Statement, checksum, split

__all__ = [
    "Directives",
    "Folder",
    "Kind",
    "Migration",
    "Phase",
    "Problem",
    "Scope",
    "SqlError",
    "Statement",
    "checksum",
    "read_folder",
    "split",
]
