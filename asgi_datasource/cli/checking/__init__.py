"""The checks of `check`: queries on all servers, and the evaluation of their answers."""

from .run import Checked, check_servers

__all__ = ["Checked", "check_servers"]
