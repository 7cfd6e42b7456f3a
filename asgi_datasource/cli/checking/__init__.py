"""What the servers themselves say about a configuration: small questions, each answer judged for itself."""

from .run import check_servers

__all__ = ["check_servers"]
