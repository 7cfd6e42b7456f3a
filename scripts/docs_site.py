"""Hooks of the documentation site: pages from the repository, links into it, and cross references of docstrings.

The pages in `docs/` are written for the repository: they link to tests, schemas and examples by relative paths. The
site gets these files as well: a Markdown file becomes a page, another file is copied as text. The README is the front
page.
"""

from __future__ import annotations

import builtins
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parent.parent

_FENCED: Final = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"\]\((?!https?:)([^)\s#]*)(#[^)\s]*)?\)")


def site_path(path: str) -> str:
    """The place on the site of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    if path == "CHANGELOG.md":
        return "changelog.md"
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.txt"


def links(text: str) -> Iterator[str]:
    """The relative links of a page, without anchors; samples are not searched."""
    for match in _LINK.finditer(_FENCED.sub("", text)):
        if match[1]:
            yield match[1]


def linked_files(pages: list[str], root: Path = ROOT) -> list[str]:
    """The pages and the files that they link to, as paths in the repository.

    A link that leads nowhere is left out: the strict build reports it.
    """
    found: list[str] = []
    waiting = list(pages)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.append(path)
        if path.endswith(".md"):
            targets = (_resolve(path, link) for link in links((root / path).read_text(encoding="utf-8")))
            waiting += [target for target in targets if (root / target).is_file()]
    return found


def _resolve(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def rewrite_links(text: str, path: str, root: Path = ROOT) -> str:
    """The text of a page with links as on the site; a link to a folder becomes plain text.

    Args:
        text: Its Markdown.
        path: Its path in the repository.
        root: The repository.
    """
    here = posixpath.dirname(site_path(path)) or "."

    def rewrite(match: re.Match[str]) -> str:
        label, link, anchor = match[1], match[2], match[3] or ""
        target = _resolve(path, link)
        if (root / target).is_dir():
            return label
        return f"[{label}]({posixpath.relpath(site_path(target), here)}{anchor})"

    pattern = re.compile(r"\[((?:[^\[\]`]|`[^`]*`)*)\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")
    return _outside_fences(text, lambda part: pattern.sub(rewrite, part))


def _outside_fences(text: str, change: Callable[[str], str]) -> str:
    parts: list[str] = []
    end = 0
    for fence in _FENCED.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


_PATHS: Final[dict[str, str]] = {}
"""Path in the repository of each page, by its path on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page, the changelog, and the files that pages link to."""
    _PATHS.clear()
    pages = [f"docs/{file.src_uri}" for file in files if file.is_documentation_page()]
    for path in linked_files([*pages, "README.md", "CHANGELOG.md"]):
        place = site_path(path)
        _PATHS[place] = path
        if files.get_file_from_path(place) is None:
            # Pages below `source/` are reached by links, not from the navigation.
            inclusion = InclusionLevel.NOT_IN_NAV if place.startswith("source/") else InclusionLevel.INCLUDED
            files.append(File.generated(config, place, content=(ROOT / path).read_bytes(), inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite the links of a page; a page without siblings needs no navigation beside it."""
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])
    return rewrite_links(markdown, _PATHS[page.file.src_uri])


_CODE: Final = re.compile(r"(?<![\[`])`([^`\n]+)`(?![`\]])")
_CALL: Final = re.compile(r"(\w+(?:\.\w+)*)(?:\(.*\))?")
_CLASS: Final = re.compile(r"[A-Z][a-z]+\w*(?:\.\w+)*")
_SEVERAL_WORDS: Final = re.compile(r"(?:[A-Z][a-z]+){2,}")
_JOINT_ARGUMENTS: Final = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.MULTILINE)
_SUBJECTS: Final = {
    "db": "asgi_datasource.DataSession",
    "registry": "asgi_datasource.DataSourceRegistry",
}
"""What the variables of the documentation hold."""
_FOREIGN: Final = frozenset({"ReadyForQuery"})
"""Names of PostgreSQL's protocol that look like classes."""


class CrossReferences(griffe.Extension):
    """Turns code in docstrings into cross references: classes of this package, calls such as `db.commit()`, pages.

    A name that looks like one of this package and does not exist becomes a reference without a target: the strict build
    fails.
    """

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite every docstring of the package."""
        objects = list(_objects(pkg))
        classes = {item.name: item.path for item in objects if item.is_class}
        for item in objects:
            if item.docstring is not None:
                text = _JOINT_ARGUMENTS.sub(_separate, item.docstring.value)
                item.docstring.value = _CODE.sub(partial(_refer_match, item, classes), text)


def _objects(item: griffe.Object) -> Iterator[griffe.Object]:
    yield item
    for member in item.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _separate(match: re.Match[str]) -> str:
    """An entry of its own for each argument of `query, style: As of ...`."""
    return "\n".join(f"{match[1]}{name}: {match[3]}" for name in match[2].split(", "))


def _refer_match(item: griffe.Object, classes: Mapping[str, str], match: re.Match[str]) -> str:
    return refer(item, match[1], classes)


def refer(item: griffe.Object, code: str, classes: Mapping[str, str]) -> str:
    """The Markdown for code in the docstring of an object: a reference, or the code itself.

    Args:
        item: The object.
        code: The text between backticks.
        classes: Paths of the package's classes by name.
    """
    plain = f"`{code}`"
    if code.startswith("docs/") and code.endswith(".md"):
        page = ROOT / code
        return f"[{plain}][{_title_anchor(page) if page.is_file() else code}]"
    call = _CALL.fullmatch(code)
    if call is None or call[1] in _parameters(item):
        return plain
    name = call[1]
    subject, _, members = name.partition(".")
    if subject in _SUBJECTS and members:
        return f"[{plain}][{_SUBJECTS[subject]}.{members.partition('.')[0]}]"
    found = _find(item, name, classes)
    if found is not None:
        # Objects that the reference leaves out stay code.
        return f'<autoref identifier="{found}" optional>{plain}</autoref>'
    if _SEVERAL_WORDS.fullmatch(subject) and subject not in _FOREIGN and not _is_foreign(item, subject):
        return f"[{plain}][{name}]"
    return plain


def _find(item: griffe.Object, name: str, classes: Mapping[str, str]) -> str | None:
    """The path of the object of this package that a name in a docstring means."""
    first, _, rest = name.partition(".")
    if _CLASS.fullmatch(name):
        path = classes.get(first)
        return path and (f"{path}.{rest}" if rest else path)
    owner = item if isinstance(item, griffe.Class) else item.parent
    if rest or not isinstance(owner, griffe.Class):
        return None
    return _members_of(owner).get(name)


@cache
def _members_of(owner: griffe.Class) -> dict[str, str]:
    """Paths of the members of a class, inherited ones too, by name."""
    return {name: member.path for name, member in owner.all_members.items()}


def _is_foreign(item: griffe.Object, name: str) -> bool:
    """Whether a name is Python's, or imported from another library."""
    return hasattr(builtins, name) or name in item.module.imports


def _parameters(item: griffe.Object) -> set[str]:
    parameters: Any = getattr(item, "parameters", ())
    return {parameter.name.lstrip("*") for parameter in parameters}


def _title_anchor(page: Path) -> str:
    """The anchor of the first heading of a page."""
    [title] = re.findall(r"\A# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)[:1]
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
