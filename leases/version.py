"""The version of this release, as pyproject.toml has it too."""

VERSION = "0.1.0"
