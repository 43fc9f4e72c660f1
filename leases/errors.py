"""The one shape of errors that an operator sees: what is wrong, and what to do."""

from dataclasses import dataclass


class SourceError(Exception):
    """A source did not do what was asked. `cause` and `fix` are sentences for an operator and hold no secret."""

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(cause, fix)
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.cause}. {self.fix}"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A source answers, but something cannot be learned from it. For an operator, like a SourceError."""

    cause: str
    fix: str
