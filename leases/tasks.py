"""Celery tasks: ids in, one verb, safe to run twice. A source that fails waits by its backoff; nothing here crashes on it."""

import logging
import time

from celery import shared_task
from django.utils import timezone

from leases import checks, contain, health, jobs, lists, lookups, meter, revoke, sessions, watch
from leases.databases import SessionsHidden
from leases.errors import Doubt
from leases.models import Cluster, Database, Vault
from leases.models.sources import SourceKind
from leases.turns import turn

log = logging.getLogger(__name__)

# how long one turn at a watch or a follow may last; well below the 30 s that a task may take
TURN_SECONDS = 15.0
# how often beat looks for what was left half done
RESUME_SECONDS = 2.0
# one vault's slice of a round of lookups
LOOK_UP_SECONDS = 0.5


@shared_task
def watch_clusters() -> None:
    """Starts a watch for each cluster; one that is watched already is left alone by its turn."""
    for cluster in Cluster.objects.filter(retired=False).order_by("id"):
        if health.may_ask(SourceKind.CLUSTER, cluster.name, now=timezone.now()):
            watch_cluster.apply_async((cluster.pk,), expires=3)


@shared_task
def watch_cluster(cluster_id: int) -> None:
    with turn("watch", cluster_id) as mine:
        if not mine:
            return
        cluster = Cluster.objects.get(pk=cluster_id)
        with health.asking(SourceKind.CLUSTER, cluster.name, vouches=False):
            watch.follow(cluster, seconds=TURN_SECONDS, on_change=lambda: pods_changed(cluster))
    if health.may_ask(SourceKind.CLUSTER, cluster.name, now=timezone.now()):
        watch_cluster.apply_async((cluster_id,), expires=3)


def pods_changed(cluster: Cluster) -> None:
    """After each proven stretch of a watch: the cluster answers, though it may not show everything."""
    health.report_ok(SourceKind.CLUSTER, cluster.name, now=timezone.now(), doubt=watch.missing_rules(cluster))


@shared_task
def look_up_due_leases() -> None:
    """Looks up what is due now and, for a second, what becomes due: a new lease has its times at once.

    With a backlog each vault gets a slice of the time, and the next round goes on.
    """
    deadline = time.monotonic() + 0.9
    while True:
        busy = [look_up_vault(vault) for vault in Vault.objects.filter(retired=False).order_by("id")]
        if time.monotonic() >= deadline:
            return
        if not any(busy):
            time.sleep(0.2)


def look_up_vault(vault: Vault) -> bool:
    """Whether there was something to look up."""
    now = timezone.now()
    if not lookups.due(vault, now=now, limit=1) or not health.may_ask(SourceKind.VAULT, vault.name, now=now):
        return False
    done = 0
    with turn("look up", vault.pk) as mine:
        if mine:
            with health.asking(SourceKind.VAULT, vault.name, vouches=False):
                done = lookups.look_up_due(vault, now=now, seconds=LOOK_UP_SECONDS)
    return done > 0


@shared_task
def check_vaults() -> None:
    """Is each vault there, unsealed, and are the databases' monitoring accounts working?

    A vault that has been unsealed is noticed at the next round, however long its wait: what happens meanwhile is not to be
    looked up too late. sys/health needs no token and costs nothing.
    """
    for vault in Vault.objects.filter(retired=False).order_by("id"):
        if health.may_ask(SourceKind.VAULT, vault.name, now=timezone.now()) or checks.is_open(vault):
            with health.asking(SourceKind.VAULT, vault.name, vouches=False):
                doubt = checks.check_vault(vault)
                health.report_ok(SourceKind.VAULT, vault.name, now=timezone.now(), doubt=doubt)
    for database in Database.objects.exclude(monitor=None).select_related("vault").order_by("id"):
        if health.may_ask(SourceKind.DATABASE, database.path, now=timezone.now()):
            with health.asking(SourceKind.DATABASE, database.path, vouches=False):
                doubt = checks.check_database(database, now=timezone.now())
                health.report_ok(SourceKind.DATABASE, database.path, now=timezone.now(), doubt=doubt)


@shared_task
def sample_databases() -> None:
    """Starts a sample of each database whose time has come."""
    now = timezone.now()
    for database in sessions.due(now=now):
        if health.may_ask(SourceKind.DATABASE, database.path, now=now):
            sample_database.apply_async((database.pk,), expires=3)


@shared_task(soft_time_limit=20, time_limit=25)
def sample_database(database_id: int) -> None:
    """One sample; what a database hides is a doubt about it, since its users are checked all the same."""
    with turn("sample", database_id) as mine:
        now = timezone.now()
        # another worker may have taken it meanwhile
        for database in sessions.due(now=now, only=database_id) if mine else []:
            with health.asking(SourceKind.DATABASE, database.path, vouches=False):
                try:
                    sessions.sample_database(database, now=now)
                    doubt = sessions.doubt(database, now=timezone.now())
                except SessionsHidden as error:
                    doubt = Doubt(error.cause, error.fix)
                health.report_ok(SourceKind.DATABASE, database.path, now=timezone.now(), doubt=doubt)


@shared_task
def reconcile_leases() -> None:
    """LIST per role for each vault whose time has come (reconcile_seconds); a long round goes on at the next turn."""
    for vault in Vault.objects.filter(retired=False).order_by("id"):
        now = timezone.now()
        if not lists.is_due(vault, now=now) or not health.may_ask(SourceKind.VAULT, vault.name, now=now):
            continue
        with turn("reconcile", vault.pk) as mine:
            if mine:
                with health.asking(SourceKind.VAULT, vault.name, vouches=False):
                    until = time.monotonic() + TURN_SECONDS
                    log.info("reconciled %s: %s", vault.name, lists.reconcile(vault, now=now, until=until))


@shared_task
def work_on_job(job_id: int, lane: int = 0) -> None:
    """One short turn; the next one is queued behind whatever was asked meanwhile."""
    goes_on = jobs.work_on(job_id, lane)
    meter.flush(now=timezone.now())
    if goes_on:
        work_on_job.delay(job_id, lane)


def start_job(job_id: int) -> None:
    """Queues a turn of each of its lanes; of one that goes on already this is the end."""
    for lane in jobs.lanes(job_id):
        # beat asks again before that
        work_on_job.apply_async((job_id, lane), expires=RESUME_SECONDS * 2)


@shared_task
def carry_out_revocation(revocation_id: int) -> None:
    revoke.carry_out(revocation_id)
    meter.flush(now=timezone.now())


@shared_task
def resume_stuck_revocations() -> None:
    """What a lost worker or broker left half done goes on."""
    now = timezone.now()
    for revocation_id in revoke.stuck(now=now):
        carry_out_revocation.delay(revocation_id)
    for job_id in jobs.due(now=now):
        start_job(job_id)


@shared_task
def look_at_identities(plan_id: str) -> None:
    contain.look_at_identities(plan_id, now=timezone.now())
    meter.flush(now=timezone.now())


@shared_task
def carry_out_containment(containment_id: int) -> None:
    """One short turn; the next one is queued behind whatever was asked meanwhile. What has to wait long the sweep takes up."""
    seconds = contain.carry_out(containment_id)
    meter.flush(now=timezone.now())
    if seconds is not None and seconds <= contain.CATCH_UP.total_seconds():
        carry_out_containment.apply_async((containment_id,), countdown=seconds)


@shared_task
def resume_stuck_containments() -> None:
    for containment_id in contain.stuck(now=timezone.now()):
        carry_out_containment.delay(containment_id)
