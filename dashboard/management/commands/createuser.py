"""`createuser NAME --group viewer|responder --password-env VAR`: makes or changes a user; safe to run twice."""

import os
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import Group, User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from dashboard.access import GROUPS


class Command(BaseCommand):
    help = "Makes a user, or changes the group or password of one that exists. Safe to run twice."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--group", required=True, choices=GROUPS, help="viewer reads, responder may also revoke")
        parser.add_argument(
            "--password-env",
            metavar="VAR",
            help="environment variable that holds the password; needed for a new user, optional for an existing one",
        )

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"]
        user = User.objects.filter(username=name).first()
        password = self._password(options["password_env"], user or User(username=name))
        if user is None:
            if password is None:
                raise CommandError(f"{name} is new: name the variable with the password, --password-env VAR.")
            user = User(username=name)
            try:
                user.clean_fields(exclude=["password"])
            except ValidationError as error:
                raise CommandError("; ".join(error.messages)) from error
        # an unchanged password is left alone: setting it anew would end the user's sessions
        if password is not None and not (user.pk and user.check_password(password)):
            user.set_password(password)
        user.is_active = True
        user.save()
        user.groups.remove(*Group.objects.filter(name__in=GROUPS).exclude(name=options["group"]))
        user.groups.add(Group.objects.get_or_create(name=options["group"])[0])
        self.stdout.write(f"{name} is in the group {options['group']}.")

    def _password(self, variable: str | None, user: User) -> str | None:
        if variable is None:
            return None
        password = os.environ.get(variable, "")
        if not password:
            raise CommandError(f"{variable} is not set or empty: put the password there.")
        try:
            validate_password(password, user)
        except ValidationError as error:
            raise CommandError("The password is too weak: " + " ".join(error.messages)) from error
        return password
