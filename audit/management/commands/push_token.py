"""`manage.py push_token VAULT DEVICE NODE [--rotate [--at-once]] [--from-file F | --from-env VAR]`: lets a shipper push."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from audit import push
from audit.models import Stream
from leases.references import SecretUnavailable, read_secret


class Command(BaseCommand):
    help = "Makes the bearer token of a pushed stream and prints it, once: only its SHA-256 is kept."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("vault")
        parser.add_argument("device")
        parser.add_argument("node")
        parser.add_argument("--rotate", action="store_true", help="the old token ends when the new one is first used")
        parser.add_argument("--at-once", action="store_true", help="with --rotate: the old token ends now")
        given = parser.add_mutually_exclusive_group()
        given.add_argument("--from-file", metavar="FILE", help="take the token from this file, and print nothing of it")
        given.add_argument("--from-env", metavar="VAR", help="take the token from this environment variable")

    def handle(self, *args: Any, **options: Any) -> None:
        stream = find(options["vault"], options["device"], options["node"])
        token = self._given(options)
        known = token is not None and push.digest(token) == stream.push_token_sha256
        if stream.push_token_sha256 and not options["rotate"] and not known:
            raise CommandError(f"{stream} has a token. --rotate makes a new one.")
        made = token or push.new_token()
        push.set_token(stream, made, at_once=options["at_once"])
        if token is None:
            # alone on standard output, so that it can go into a file
            self.stdout.write(made)
        self.stderr.write(f"{stream}: POST {push.address(stream)} with the header `Authorization: Bearer TOKEN`.")

    def _given(self, options: dict[str, Any]) -> str | None:
        reference = {"file": options["from_file"]} if options["from_file"] else {"env": options["from_env"]}
        if not any(reference.values()):
            return None
        try:
            token = read_secret(reference).strip()
        except SecretUnavailable as error:
            raise CommandError(error.cause) from error
        if len(token) < push.SHORTEST_TOKEN:
            raise CommandError(f"A token has {push.SHORTEST_TOKEN} characters or more, made at random.")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise CommandError("A token stands in an HTTP header: ASCII without spaces.")
        return token


def find(vault: str, device: str, node: str) -> Stream:
    stream = (
        Stream.objects.filter(device__vault__name=vault, device__name=device, node=node, pushed=True, retired=False)
        .select_related("device__vault")
        .first()
    )
    if stream is None:
        raise CommandError(
            f"No pushed stream is named {vault}/{device}/{node}. Write push = true at the node in leasehold.toml and "
            "run `manage.py configure`."
        )
    return stream
