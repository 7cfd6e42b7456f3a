"""How large a document may be: far above any real one, far below what hurts."""

from __future__ import annotations

from typing import Final

MAX_BYTES: Final = 64 * 1024 * 1024
"""Longest file; 100,000 tenants are about 8 MB."""
MAX_DEPTH: Final = 32
"""Deepest nesting; the document needs seven levels."""
MAX_FILES: Final = 10_000
"""How many files one document may include."""
MAX_ENTRIES: Final = 100_000
"""How many entries of folders the patterns of `include` may look at, all together."""
MAX_ALIASED_NODES: Final = 100_000
"""How many values all aliases of a YAML text together may stand for."""
MAX_SECRET_BYTES: Final = 64 * 1024
"""Longest file behind a `{file: path}`."""
MAX_DIAGNOSTICS: Final = 1000
"""How many problems of one stage are told; a document with more has one cause."""
MAX_COMPARISONS: Final = 50_000
"""How many words one check compares with what may have been meant: at worst half a second."""
COMMAND_TIMEOUT_S: Final = 10.0
"""How long the program behind a `{command: [...]}` may take."""
