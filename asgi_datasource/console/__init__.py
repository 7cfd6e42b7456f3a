"""The console: pages of operations for the process that serves them, mountable and off by default.

`Console(registry, guard=...)` is an ASGI application. Nothing is recorded, and nothing can be reached, until an
application makes one and mounts it.
"""

from .app import Console, Guard

__all__ = ["Console", "Guard"]
