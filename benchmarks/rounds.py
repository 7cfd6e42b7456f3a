"""Rounds in which the sides take turns: the machine is noisy, so only what ran side by side is compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median


def interleaved(sides: Sequence[str], rounds: int) -> Iterator[str]:
    """Name the side whose turn it is, `rounds` times each; every round starts with another side.

    The shifting start keeps a side from always running right after the same neighbour, whose garbage, dirty pages
    or warmed caches would then count for or against it every time.
    """
    for number in range(rounds):
        shift = number % len(sides)
        yield from sides[shift:]
        yield from sides[:shift]


def paired_ratios(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    """The median of the ratios of each round, and the quartiles around it (the smallest and largest of few rounds).

    A ratio of medians would mix a quiet round of one side with a noisy round of the other.
    """
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True) if a > 0 and b > 0]
    if not ratios:
        raise ValueError("no round measured more than zero on both sides: raise the number of calls a round")
    ratios.sort()
    quarter = len(ratios) // 4
    return median(ratios), ratios[quarter], ratios[-1 - quarter]
