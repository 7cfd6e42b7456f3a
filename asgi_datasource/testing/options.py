"""The arguments of `EmbeddedCluster`, for those who pass them on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from .settings import Setting


class ClusterOptions(TypedDict, total=False):
    """Keyword arguments of `EmbeddedCluster`; each means what it means there."""

    replicas: int
    version: int | None
    settings: Mapping[str, Setting] | None
    directory: Path | str | None
    cache_dir: Path | str | None
