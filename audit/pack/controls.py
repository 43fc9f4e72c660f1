"""Which controls of which framework a pack supports, and what it does not show. Data: one TOML file for each framework."""

import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

SHIPPED = Path(__file__).parent / "frameworks"

# what a control may rest on: parts of the pack, and where each stands in the PDF
PARTS = {
    "completeness": "Completeness statement",
    "certainty": "Certainty statement",
    "databases": "Access by database",
    "workloads": "Access by workload",
    "lifetimes": "Credential lifetimes",
    "revocations": "Revocations",
    "exceptions": "Exceptions",
    "sample": "Population and sample",
    "review": "Access review",
    "verification": "Verification",
}


class UnusableFramework(Exception):
    """A file of a framework cannot be used; the message says which and why."""


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`parts`: names of PARTS. `shows` and `does_not_show`: sentences in our words; the framework's own text is not repeated."""

    id: str
    title: str
    parts: list[str]
    shows: str
    does_not_show: str


class Framework(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    edition: str
    controls: list[Control]


def read(folders: Iterable[Path]) -> list[Framework]:
    """All of these folders, by the names of their files; a file of a later folder stands for the one of the same name before it.

    Raises UnusableFramework.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        files |= {file.name: file for file in sorted(folder.glob("*.toml"))}
    return [_read(files[name]) for name in sorted(files)]


def _read(file: Path) -> Framework:
    try:
        framework = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Framework)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UnusableFramework(
            f'{file.name} is no framework: {error}. docs/evidence.md, "Controls", has its form.'
        ) from error
    for control in framework.controls:
        for part in control.parts:
            if part not in PARTS:
                raise UnusableFramework(
                    f"{file.name}, {control.id}: {part!r} is no part of a pack. Parts are {', '.join(PARTS)}."
                )
    return framework
