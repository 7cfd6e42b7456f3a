"""What the servers themselves say about a configuration: small questions, each answer judged for itself."""

from .run import Checked, check_servers

__all__ = ["Checked", "check_servers"]
