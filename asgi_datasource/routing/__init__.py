"""Which server: the intent, the pin, and the one function that chooses."""

from .choose import Choice, Node, Picture, Reason, Role, Route, choose
from .intent import AccessIntent, intent_of_method
from .pin import ReadAfterWritePin

__all__ = [
    "AccessIntent",
    "Choice",
    "Node",
    "Picture",
    "ReadAfterWritePin",
    "Reason",
    "Role",
    "Route",
    "choose",
    "intent_of_method",
]
