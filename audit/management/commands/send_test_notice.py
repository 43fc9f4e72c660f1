"""`manage.py send_test_notice [--to NAME]`: sends one message now and says what the receiver answered. Exit code 1 if one fails."""

import sys
import uuid
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from audit.models import Notice, NoticeState, Receiver
from audit.notices import message, queries, receivers, send
from leases.errors import SourceError


class Command(BaseCommand):
    help = "Sends a test message to each receiver of notices, or to one. Run it where the workers of the queue `reports` run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--to", metavar="NAME", help="only to this one")

    def handle(self, *args: Any, **options: Any) -> None:
        rows = queries.receivers()
        if not rows:
            raise CommandError(
                "Nobody is told of findings. Add [[notices]] to leasehold.toml (docs/notices.md) and run `manage.py configure`."
            )
        wanted = [row for row in rows if options["to"] in {None, row.name}]
        if not wanted:
            raise CommandError(f"No receiver is named {options['to']}: there is {', '.join(row.name for row in rows)}.")
        # each one, also after one that failed
        taken = [self._send(receiver) for receiver in wanted]
        if not all(taken):
            sys.exit(1)

    def _send(self, receiver: Receiver) -> bool:
        now = timezone.now()
        test = message.Message(id=f"msg_{uuid.uuid4().hex}", sent_at=now, type=message.TEST, site_url=receiver.site_url)
        try:
            answer = send.post(receiver, test)
        except SourceError as error:
            self.stdout.write(f"FAILED {receiver.name}\n       cause: {error.cause}\n       fix:   {error.fix}")
            return False
        outcome = send.judge(answer, Notice(receiver=receiver, made_at=now, reduced=True, attempts=1), now=now)
        said = message.safe(send.without_address(answer.said, receiver), longest=200)
        self.stdout.write(
            f"{'ok    ' if outcome.state == NoticeState.SENT else 'FAILED'} {receiver.name}: it answered {answer.status}"
            + (f", {said}" if said.strip() else "")
        )
        if outcome.state != NoticeState.SENT:
            self.stdout.write(f"       fix:   {outcome.fix}")
            return False
        send.works(receiver)
        receivers.ask_anew(now=now, name=receiver.name)
        return True
