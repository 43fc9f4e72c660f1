"""What is missing, with the exact fix: every part that an installation needs, tried now."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone
from kombu.exceptions import OperationalError

from audit import dblog, follow, heads, retention
from audit.findings import queries as findings
from audit.ingest import position_of
from audit.models import DatabaseLog, Housekeeping, Signing, Stream
from audit.notices import queries as notices
from leases import checks
from leases.errors import Doubt, SourceError
from leases.models import Action, AuthMount, Cluster, Database, Policy, Vault

FEWEST_DAYS_AHEAD = 2
# a day, and some time for a partition that was in use
LONGEST_UNKEPT = timedelta(hours=26)
UNSIGNED = (
    "The heads of the chains are not signed: whoever takes over the database could rewrite a chain unnoticed. "
    "Add [heads] to leasehold.toml (docs/integrity.md)."
)

UNTOLD = (
    "Nobody is told of findings who does not look at the page. Add [[notices]] to leasehold.toml (docs/notices.md)."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried. Where it is not ok, `cause` says what is wrong and `fix` what to do.

    `hint`: what could be better where nothing is wrong.
    """

    what: str
    ok: bool
    cause: str = ""
    fix: str = ""
    hint: str = ""


class _Wrong(SourceError):
    """A check of this module failed."""


def examine() -> Iterator[Finding]:
    """Tries everything, cheapest first. Stops after the database, without which nothing else is known."""
    for what, check in (
        ("database", database),
        ("migrations", migrations),
        ("database rights", rights),
    ):
        finding = _try(what, check)
        yield finding
        if not finding.ok:
            return
    yield (answers := _try("broker", broker))
    if answers.ok:
        yield _try("workers", workers)
    yield _try("configuration", configured)
    yield _try("housekeeping", house)
    yield _try("findings", looked)
    signed = _try("signed heads", signed_heads)
    yield signed if not signed.ok or Policy.current().heads_key else replace(signed, hint=UNSIGNED)
    yield from told()
    # before the vaults, whose log-in may wait for a cluster's TokenReview
    yield from clusters()
    for vault in Vault.objects.filter(retired=False).order_by("name"):
        yield _try(f"vault {vault.name}", partial(checks.check_vault, vault))
        if vault.respond:
            yield _try(f"vault {vault.name}, revoking", partial(checks.check_responder, vault))
        yield _try(f"vault {vault.name}, auth mounts", partial(auth_mounts, vault))
    for database_ in Database.objects.filter(vault__retired=False).select_related("vault").order_by("id"):
        yield _try(f"database {database_.path}", partial(checks.check_database, database_, now=timezone.now()))
        yield _try(f"database {database_.path}, ending sessions", partial(checks.check_responding, database_))
    for stream in Stream.objects.filter(retired=False).select_related("device__vault").order_by("id"):
        yield _try(f"stream {stream}", partial(readable, stream))
    for log in DatabaseLog.objects.filter(retired=False).order_by("path", "id"):
        yield _try(str(log), partial(dblog.try_to_read, log))


def clusters() -> Iterator[Finding]:
    """Each cluster: pods, what owns them, and (as a hint, since it may be left out) what operators fetch."""
    for cluster in Cluster.objects.filter(retired=False).order_by("name"):
        yield (reached := _try(f"cluster {cluster.name}", partial(checks.check_cluster, cluster)))
        if reached.ok:
            yield _try(f"cluster {cluster.name}, owners of pods", partial(checks.check_owners, cluster))
            fetched = _try(f"cluster {cluster.name}, fetched secrets", partial(checks.check_fetched, cluster))
            yield Finding(fetched.what, True, hint=f"{fetched.cause}. {fetched.fix}" if not fetched.ok else "")


def _try(what: str, check: Callable[[], object]) -> Finding:
    """A check that returns a doubt is passed with a hint."""
    try:
        told = check()
    except SourceError as error:
        return Finding(what, False, error.cause, error.fix)
    except Exception as error:
        # the text of a foreign error may hold anything, so only its type is named
        return Finding(
            what, False, f"It failed in a way nobody thought of ({type(error).__name__})", "Look at the workers' logs."
        )
    return Finding(what, True, hint=f"{told.cause}. {told.fix}" if isinstance(told, Doubt) else "")


def database() -> None:
    try:
        connection.ensure_connection()
    except DatabaseError as error:
        host, port = connection.settings_dict["HOST"], connection.settings_dict["PORT"] or 5432
        raise _Wrong(
            f"Leasehold's own database at {host}:{port} does not answer: {str(error).splitlines()[0][:200]}",
            "Start PostgreSQL, or correct LEASEHOLD_DATABASE_URL.",
        ) from error


def migrations() -> None:
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        raise _Wrong(
            f"{len(plan)} migrations are not applied, the first is {plan[0][0]}",
            "Run `manage.py migrate` as the owner.",
        )


def rights() -> None:
    """The application must not be able to rewrite history, nor to give itself that right."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT has_table_privilege(%s, 'DELETE'), c.relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user), "
            "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user) FROM pg_class c WHERE c.oid = %s::regclass",
            [Action._meta.db_table, Action._meta.db_table],
        )
        may_delete, owns, superuser = cursor.fetchone()
    if may_delete or owns or superuser:
        raise _Wrong(
            "The application's database role can rewrite history",
            "Let LEASEHOLD_DATABASE_URL name a plain role and only LEASEHOLD_OWNER_DATABASE_URL the owner (docs/install.md).",
        )


def broker() -> None:
    try:
        client = redis.Redis.from_url(settings.CELERY_BROKER_URL, socket_connect_timeout=2, socket_timeout=2)
        client.ping()
        client.close()
    except (redis.RedisError, OSError) as error:
        raise _Wrong(
            f"The broker does not answer ({type(error).__name__})",
            "Start Redis or Valkey, or correct LEASEHOLD_BROKER_URL.",
        ) from error


def workers() -> None:
    """At least one worker on each queue."""
    from celery import current_app

    try:
        queues = current_app.control.inspect(timeout=1.5).active_queues() or {}
    except (redis.RedisError, OSError, ConnectionError, OperationalError):
        queues = {}
    served = {queue["name"] for worker in queues.values() for queue in worker}
    wanted = {"ingest", "watch", "leases", "actions", "reports"}
    if missing := sorted(wanted - served):
        raise _Wrong(
            f"No worker serves the queues {', '.join(missing)}",
            f"Start one: `celery -A dashboard worker -Q {','.join(missing)}`, and `celery -A dashboard beat`.",
        )


def configured() -> None:
    if not Vault.objects.filter(retired=False).exists():
        raise _Wrong(
            "Nothing is configured yet", "Copy leasehold.example.toml, fill it in and run `manage.py configure`."
        )


def house() -> None:
    """As the worker that keeps it has written down: only that one has the archive."""
    now, house = timezone.now(), Housekeeping.objects.filter(pk=1).first()
    start = "Start beat and a worker of the queue `reports`, and see what `manage.py retention` says there."
    if house and house.cause:
        raise _Wrong(house.cause, house.fix)
    if (days := retention.days_ahead(now=now)) < FEWEST_DAYS_AHEAD:
        raise _Wrong(f"The daily partitions are made for {max(days, 0)} days ahead, which should be more", start)
    if house is None or now - house.kept_at > LONGEST_UNKEPT:
        since = f"since {house.kept_at:%Y-%m-%d %H:%M} UTC" if house else "so far"
        raise _Wrong(f"Housekeeping has not come to its end {since}", start)


def looked() -> None:
    """Before the first look there is nothing to judge: whether the workers are there is told elsewhere."""
    look = findings.last_look()
    if look and findings.is_late(look, now=timezone.now()):
        raise _Wrong(
            f"The rules that make findings have not run since {look.at:%Y-%m-%d %H:%M} UTC",
            "Start beat and a worker of the queue `leases`, and look at that worker's log for look_for_findings.",
        )


def signed_heads() -> None:
    """As the worker that signs them has written down: only that one has the key."""
    if not Policy.current().heads_key:
        return
    state = Signing.objects.filter(pk=1).first()
    if state and state.cause:
        raise _Wrong(state.cause, state.fix)
    newest = max(filter(None, [heads.delivered_until(), state.since if state else None]), default=None)
    if newest is None or timezone.now() - newest > heads.LONGEST_UNSIGNED:
        raise _Wrong(
            "No signed heads were delivered " + (f"since {newest:%Y-%m-%d %H:%M} UTC" if newest else "so far"),
            "Start beat and a worker of the queue `reports`, and look at that worker's log.",
        )


def told() -> Iterator[Finding]:
    """Each receiver of notices, as the worker that sends them has written down: only that one has the secrets."""
    receivers = notices.told_how()
    if not receivers:
        yield Finding("notices", True, hint=UNTOLD)
    for receiver in receivers:
        yield _try(f"notices to {receiver.receiver.name}", partial(told_one, receiver))


def told_one(told: notices.ToldHow) -> None:
    if told.failing:
        since = f", since {told.receiver.failing_since:%Y-%m-%d %H:%M} UTC" if told.receiver.failing_since else ""
        raise _Wrong(f"{told.receiver.cause}{since}", told.receiver.fix)
    if notices.is_late(told, now=timezone.now()):
        raise _Wrong(
            f"Findings wait to be told since {told.waits_since:%Y-%m-%d %H:%M} UTC",
            "Start beat and a worker of the queue `reports`, and look at that worker's log for send_notices.",
        )


def auth_mounts(vault: Vault) -> None:
    if not AuthMount.objects.filter(vault=vault).exists():
        raise _Wrong(
            f"No auth mount of vault {vault.name} is tied to a cluster, so no login can be tied to a service account",
            "Add [[clusters.auth_mounts]] to leasehold.toml and run `manage.py configure`.",
        )


def readable(stream: Stream) -> None:
    if stream.refused:
        raise _Wrong(
            stream.refused, "Enable the device without log_raw under a new path, then name that in leasehold.toml."
        )
    if stream.pushed and not stream.push_token_sha256:
        raise _Wrong(
            "Its log shipper has no token yet",
            f"Make one: `manage.py push_token {stream.device.vault.name} {stream.device.name} {stream.node}`.",
        )
    if stream.path:
        follow.read(Path(stream.path), position_of(stream))
