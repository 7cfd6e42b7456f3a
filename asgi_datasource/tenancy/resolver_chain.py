"""Combines resolvers: the first answer wins, or all answers must agree."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.types import Scope

from .path_prefix import PathPrefixes, move_path, route_path
from .resolution import Answer, Resolution, TenantResolver, all_reads, bad_request, reads_of


def chain(resolvers: Sequence[TenantResolver]) -> TenantResolver:
    """Combine resolvers in order; the first answer wins.

    Returns:
        One resolver, whose answers are not checked yet.
    """
    return resolvers[0] if len(resolvers) == 1 else Chain(resolvers)


class Chain:
    """Runs resolvers in order; the first answer wins."""

    __slots__ = ("_resolvers", "reads")

    def __init__(self, resolvers: Sequence[TenantResolver]) -> None:
        self._resolvers = tuple(resolvers)
        self.reads = all_reads(self._resolvers)

    def __call__(self, scope: Scope, /) -> Answer | Awaitable[Answer]:
        for index, resolver in enumerate(self._resolvers):
            answer = resolver(scope)
            if answer is None:
                continue
            if isinstance(answer, str | Resolution):
                return answer
            return self._resolve_later(answer, index + 1, scope)
        return None

    async def _resolve_later(self, waiting: Awaitable[Answer], following: int, scope: Scope) -> Answer:
        answer = await waiting
        for resolver in self._resolvers[following:]:
            if answer is not None:
                break
            given = resolver(scope)
            answer = given if given is None or isinstance(given, str | Resolution) else await given
        return answer


class Agreement:
    """Runs all resolvers: those that answer must name the same tenant.

    For requests that name the tenant twice, such as by domain and by token: a token of one tenant is refused on the
    domain of another.

    Resolvers that move a part of the path run first, so that the others, and their `paths`, see the path that the
    application's routes see.

    Args:
        resolvers: The resolvers.
        canonical: Maps aliases to names.
    """

    __slots__ = ("_canonical", "_resolvers", "reads")

    def __init__(self, resolvers: Sequence[TenantResolver], canonical: Callable[[str], str]) -> None:
        self._resolvers = tuple(sorted(resolvers, key=lambda resolver: not moves_path(resolver)))
        self._canonical = canonical
        self.reads = all_reads(resolvers)

    def __call__(self, scope: Scope, /) -> Answer | Awaitable[Answer]:
        answers: list[str | Resolution] = []
        for index, resolver in enumerate(self._resolvers):
            answer = resolver(scope)
            if answer is None:
                continue
            if not isinstance(answer, str | Resolution):
                return self._finish(answers, answer, index + 1, scope)
            answers.append(answer)
            scope = _moved(scope, answer)
        return self._agreed(answers)

    async def _finish(
        self, answers: list[str | Resolution], waiting: Awaitable[Answer], following: int, scope: Scope
    ) -> Answer:
        answer = await waiting
        if answer is not None:
            answers.append(answer)
            scope = _moved(scope, answer)
        for resolver in self._resolvers[following:]:
            given = resolver(scope)
            answer = given if given is None or isinstance(given, str | Resolution) else await given
            if answer is not None:
                answers.append(answer)
                scope = _moved(scope, answer)
        return self._agreed(answers)

    def _agreed(self, answers: Sequence[str | Resolution]) -> Answer:
        if not answers:
            return None
        names = {self._canonical(answer if isinstance(answer, str) else answer.name) for answer in answers}
        if len(names) > 1:
            raise bad_request("the request names more than one tenant")
        # A `Resolution` carries the prefix to move.
        return next((answer for answer in answers if isinstance(answer, Resolution)), answers[0])


def moves_path(resolver: TenantResolver) -> bool:
    """Whether a resolver may move a part of the path to `root_path`."""
    return bool(getattr(resolver, "moves_path", False))


def _moved(scope: Scope, answer: str | Resolution) -> Scope:
    prefix = "" if isinstance(answer, str) else answer.prefix
    return move_path(scope, prefix) if prefix else scope


class PathRuleResolver:
    """A resolver that runs for some paths only."""

    __slots__ = ("_paths", "_resolve", "moves_path", "reads")

    def __init__(self, resolve: TenantResolver, paths: Sequence[str]) -> None:
        self._resolve = resolve
        self._paths = PathPrefixes(paths)
        self.reads = reads_of(resolve)
        self.moves_path = moves_path(resolve)

    def __call__(self, scope: Scope, /) -> Answer | Awaitable[Answer]:
        return self._resolve(scope) if self._paths.matches(route_path(scope)) else None
