"""The second stage of checking: does the document make sense? What a JSON Schema cannot ask."""

from __future__ import annotations

from collections.abc import Iterator

from .diagnostics import Code, Diagnostic, did_you_mean, show
from .models import Config


def check_sense(config: Config) -> list[Diagnostic]:
    """Everything in a well-formed document that cannot be meant."""
    return [*_datasource_names(config)]


def _datasource_names(config: Config) -> Iterator[Diagnostic]:
    known = config.datasources
    default = config.tenancy.default
    if default is not None and default not in known:
        yield _absent(("tenancy", "default"), default, config)
    for name, tenant in config.tenants.items():
        if tenant.datasource not in known:
            yield _absent(("tenants", name, "datasource"), tenant.datasource, config)


def _absent(path: tuple[str, ...], name: str, config: Config) -> Diagnostic:
    meant = did_you_mean(name, config.datasources)
    mend = f"Did you mean {meant!r}?" if meant else f"There are: {', '.join(config.datasources)}."
    return Diagnostic(Code.UNKNOWN_DATASOURCE, path, f"there is no datasource {show(name)}", mend)
