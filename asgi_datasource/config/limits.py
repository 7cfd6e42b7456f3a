"""Bounds on documents: far above any real document, far below what exhausts a machine."""

from __future__ import annotations

from typing import Final

MAX_BYTES: Final = 64 * 1024 * 1024
"""Longest file; 100,000 tenants are about 8 MB."""
MAX_DEPTH: Final = 32
"""Deepest nesting; the document needs seven levels."""
MAX_FILES: Final = 10_000
"""Most included files of a document."""
MAX_ENTRIES: Final = 100_000
"""Most directory entries that all patterns of `include` visit together."""
MAX_ALIASED_NODES: Final = 100_000
"""Most values that all aliases of a YAML text expand to."""
MAX_SECRET_BYTES: Final = 64 * 1024
"""Longest file behind a `{file: path}`."""
MAX_DIAGNOSTICS: Final = 1000
"""Most problems of one stage that are reported; more than that usually have a common cause."""
MAX_COMPARISONS: Final = 50_000
"""Most comparisons of one check for did-you-mean: half a second at worst."""
COMMAND_TIMEOUT_S: Final = 10.0
"""Longest run of the program behind a `{command: [...]}`."""
