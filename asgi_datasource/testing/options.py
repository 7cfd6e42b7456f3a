"""The keyword arguments of `EmbeddedCluster` as a type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from .settings import Setting


class ClusterOptions(TypedDict, total=False):
    """Keyword arguments of `EmbeddedCluster`, with the same meaning."""

    replicas: int
    version: int | None
    settings: Mapping[str, Setting] | None
    directory: Path | str | None
    cache_dir: Path | str | None
