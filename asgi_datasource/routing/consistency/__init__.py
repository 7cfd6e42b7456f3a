"""What a client has seen: the signed token that carries it, and the positions that bind its next reads."""

from .token import NOTHING_SEEN, Mark, Token, TokenSigner, scope_of

__all__ = ["NOTHING_SEEN", "Mark", "Token", "TokenSigner", "scope_of"]
