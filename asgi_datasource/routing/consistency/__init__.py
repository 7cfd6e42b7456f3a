"""Causal consistency across requests: signed tokens, and the WAL positions that a client's reads require."""

from .token import NOTHING_SEEN, Mark, Token, TokenSigner, scope_of

__all__ = ["NOTHING_SEEN", "Mark", "Token", "TokenSigner", "scope_of"]
