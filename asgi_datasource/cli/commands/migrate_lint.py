"""`asgi-datasource migrate lint`: unsafe DDL, in the formats of `validate`."""

from __future__ import annotations

from pathlib import Path

from ...config import Config, Diagnostic, Suppressed
from ...migrate import Kind, lint_file, read_folder
from ..command import CannotRun
from ..rendering import Report


def lint_folders(config: Config, *, is_strict: bool, since: int | None = None) -> Report:
    """Check every folder of migrations.

    Args:
        config: A checked configuration.
        is_strict: Whether warnings count like errors.
        since: Leave out versions up to this one, and baselines.

    Raises:
        CannotRun: The engine has no SQL files.
    """
    migrate = config.migrate
    if migrate is None or migrate.engine != "sql":
        raise CannotRun("the lint reads SQL files", "Set migrate.engine: sql.")
    folders = dict.fromkeys(Path(path) for path in (migrate.folder, *migrate.folders.values()) if path is not None)
    found: list[Diagnostic] = []
    allowed: list[Suppressed] = []
    files: list[str] = []
    for folder in folders:
        for migration in sorted(read_folder(folder), key=lambda file: (file.scope, str(file.path))):
            is_old = since is not None and migration.kind is not Kind.REPEATABLE and migration.version <= since
            if migration.is_python or is_old:
                continue
            diagnostics, ignored = lint_file(migration)
            found += diagnostics
            allowed += ignored
            files.append(str(migration.path))
    return Report("lint", tuple(files) or tuple(map(str, folders)), tuple(found), tuple(allowed), is_strict=is_strict)
