"""Checks of the section `migrate`."""

from __future__ import annotations

from collections.abc import Iterator

from .diagnostics import Code, Diagnostic, Edit, EditKind, Suggestions
from .diagnostics import Path as DiagnosticPath
from .kinds import EVERY_OTHER
from .models import Config
from .semantics_tenancy import absent_datasource


def check_migrate(config: Config) -> Iterator[Diagnostic]:
    """The engine has its folder, and what is named exists."""
    migrate = config.migrate
    if migrate is None:
        return
    key, value = ("folder", migrate.folder) if migrate.engine == "sql" else ("script_location", migrate.script_location)
    if value is None and not (migrate.engine == "sql" and migrate.folders):
        path: DiagnosticPath = ("migrate", key)
        message = f"missing: engine {migrate.engine} needs it"
        example = "migrations" if migrate.engine == "sql" else "alembic"
        edit = Edit(EditKind.ADD, path, example)
        yield Diagnostic(Code.MISSING_KEY, path, message, f"Add it: {key}: {example}.", edit=edit)
    suggestions = Suggestions()
    named: list[tuple[DiagnosticPath, str]] = [(("migrate", "folders", name), name) for name in migrate.folders]
    named += [(("migrate", "datasources", index), name) for index, name in enumerate(migrate.datasources or ())]
    for path, name in named:
        if name not in config.datasources:
            yield absent_datasource(path, name, config, suggestions)
    yield from _stages(config)


def _stages(config: Config) -> Iterator[Diagnostic]:
    stages = () if config.migrate is None else config.migrate.stages
    knows_all = config.tenants_from is None and EVERY_OTHER not in config.tenants
    seen: set[str] = set()
    for index, stage in enumerate(stages):
        path: DiagnosticPath = ("migrate", "stages", index)
        if stage.tenants is None and index < len(stages) - 1:
            message = "this stage has all tenants that are left, and no stage can follow it"
            yield Diagnostic(Code.CONTRADICTION, path, message, "Name its tenants, or put it last.")
        for place, name in enumerate(stage.tenants or ()):
            here = (*path, "tenants", place)
            if name in seen:
                message = "a stage before has this tenant already"
                yield Diagnostic(
                    Code.CONTRADICTION, here, message, "Name it once.", edit=Edit(EditKind.REMOVE, here, is_safe=True)
                )
            elif knows_all and name not in config.tenants:
                yield Diagnostic(Code.UNKNOWN_TENANT, here, "there is no such tenant", "Name one of the tenants.")
            seen.add(name)
