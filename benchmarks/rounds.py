"""Alternating rounds of all sides: the machine is noisy, so only figures of the same round are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median


def interleaved(sides: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield each side `rounds` times, in turns; every round starts with another side.

    With a fixed start, a side would always run after the same other side, and its garbage, dirty pages
    and warm caches would affect the same side in every round.
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
