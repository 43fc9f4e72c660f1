"""`migrate`, as the role that owns the tables: the application's own role cannot."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.core.management.commands import migrate


class Command(migrate.Command):
    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.set_defaults(database="owner")

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        # before the system checks, which would fail on the missing connection without saying why
        if options["database"] not in settings.DATABASES:
            raise CommandError(
                "LEASEHOLD_OWNER_DATABASE_URL is not set: migrations run as the role that owns the tables."
            )
        return super().get_check_kwargs(options)
