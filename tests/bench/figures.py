"""A measured figure, the bound that it must keep, and the line that says whether it does."""

import sys
import time
from dataclasses import dataclass

_BEGAN = time.monotonic()


class Void(Exception):
    """The measurement means nothing, whatever its figures: lines were lost, or answers differ."""


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` in what `name` says; a figure without a bound is there to be compared."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def falls_short(self) -> bool:
        below = self.at_least is not None and self.value < self.at_least
        return below or (self.at_most is not None and self.value > self.at_most)


def verdict(figure: Figure) -> str:
    """One line of the table: name, value, bound, verdict."""
    bound = ""
    if figure.at_least is not None:
        bound = f"at least {figure.at_least:g}"
    elif figure.at_most is not None:
        bound = f"at most {figure.at_most:g}"
    said = ("falls short" if figure.falls_short else "holds") if bound else ""
    return f"{figure.name:<58} {number(figure.value):>12}  {bound:<14} {said}".rstrip()


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(figures: list[Figure]) -> None:
    for figure in figures:
        print(verdict(figure), flush=True)


def progress(text: str) -> None:
    """What is being done, on stderr, so that the table stays alone on stdout."""
    print(f"[{time.monotonic() - _BEGAN:6.1f} s] {text}", file=sys.stderr, flush=True)
