"""Which rule for routes makes another one unreachable."""

from __future__ import annotations


def split_match(match: str) -> tuple[str | None, tuple[str, ...]]:
    """A rule's `match`, taken apart.

    Returns:
        The method, None for any; and the segments of the path, `*` for any one and `**`, at the end, for any rest.
    """
    method, space, path = match.partition(" ")
    if not space:
        method, path = "*", match
    return None if method == "*" else method, tuple(path[1:].split("/"))


def covers(match: str, other: str) -> bool:
    """Whether every request that `other` matches is matched by `match` as well."""
    method, segments = split_match(match)
    other_method, other_segments = split_match(other)
    if method is not None and method != other_method:
        return False
    if segments[-1] == "**":
        # `/a/**` also matches `/a`; `/**` matches everything.
        front = segments[:-1]
        return len(other_segments) >= len(front) and _covers_each(front, other_segments[: len(front)])
    return (
        len(segments) == len(other_segments) and other_segments[-1] != "**" and _covers_each(segments, other_segments)
    )


def _covers_each(segments: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return all(
        segment == other or (segment == "*" and other != "**" and other != "")
        for segment, other in zip(segments, others, strict=True)
    )
