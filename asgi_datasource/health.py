"""Health checks: `HealthApp(registry)` for an orchestrator's probes, `registry.health()` for code."""

from __future__ import annotations

from .asgi.health_app import HealthApp
from .registry.health import Health

__all__ = ["Health", "HealthApp"]
