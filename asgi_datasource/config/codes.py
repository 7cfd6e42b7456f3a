"""Every kind of problem explained, for `asgi-datasource rule`, documentation and SARIF; `codes.yaml` has the text."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from functools import lru_cache

from .diagnostics import Code, docs_of
from .yaml_text import read_yaml


@dataclass(frozen=True, slots=True)
class Explained:
    """The explanation of a code.

    Attributes:
        code: The code.
        title: What is wrong, in a few words.
        text: Why it matters and what to do: a paragraph of Markdown.
        wrong: A fragment of YAML that has the problem; empty where a document alone cannot show it.
        right: The fragment without the problem.
    """

    code: Code
    title: str
    text: str
    wrong: str = ""
    right: str = ""

    @property
    def docs(self) -> str:
        """The command that prints it."""
        return docs_of(self.code)

    def as_markdown(self) -> str:
        """The whole explanation, without a heading."""
        parts = [f"**{self.title}.**", self.text]
        if self.wrong:
            parts += ["Wrong:", f"```yaml\n{self.wrong}```"]
        if self.right:
            parts += ["Right:", f"```yaml\n{self.right}```"]
        return "\n\n".join(parts) + "\n"


def explain_code(code: Code) -> Explained:
    """The explanation of a code."""
    return _explanations()[code]


@lru_cache(maxsize=1)
def _explanations() -> dict[Code, Explained]:
    """The content of `codes.yaml`, read on first use: most processes explain nothing."""
    content = pkgutil.get_data(__name__, "codes.yaml") or b""
    document, _ = read_yaml(content.decode(), "codes.yaml")
    return {Code(code): Explained(Code(code), **entry) for code, entry in document.items()}
