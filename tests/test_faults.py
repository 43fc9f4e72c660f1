"""A fault is a normal day: each one becomes a source's state with cause and fix, is retried with backoff, loses nothing."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

import audit.tasks
import leases.tasks
from audit import configuration, doctor
from audit.management.commands.ingest import stream_named
from audit.models import (
    AttributionChange,
    Conflict,
    Dropped,
    FindingChange,
    Gap,
    Moved,
    RawBlock,
    RejectedLine,
    Stream,
    Text,
    What,
    Who,
)
from leases import health
from leases.configuration import load
from leases.models import Action, ActionStep, Cluster, SourceState, Vault
from leases.models.sources import SourceKind
from tests.world import World

pytestmark = pytest.mark.django_db


@pytest.fixture
def configured(world: World) -> World:
    (world.folder / "leasehold.toml").write_text(world.toml())
    configuration.apply(load(world.folder / "leasehold.toml"))
    return world


def state(kind: SourceKind, name: str) -> SourceState:
    return SourceState.objects.get(kind=kind, name=name)


def again() -> None:
    """As if the wait until the next try were over."""
    SourceState.objects.update(retry_at=timezone.now())


def found(what: str) -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.what == what)


def test_when_all_is_well_every_source_says_so(configured: World) -> None:
    leases.tasks.check_vaults()
    assert state(SourceKind.VAULT, "demo").ok
    assert state(SourceKind.DATABASE, "demo/database/orders").ok


def test_a_sealed_vault_is_named_with_its_fix_and_answers_again_when_unsealed(configured: World) -> None:
    leases.tasks.check_vaults()
    configured.openbao.seal()
    try:
        leases.tasks.check_vaults()
        sealed = state(SourceKind.VAULT, "demo")
        doctors = found("vault demo")
    finally:
        configured.openbao.unseal()
    assert not sealed.ok
    assert "sealed" in sealed.cause
    assert "unseal" in sealed.fix
    assert (doctors.ok, "sealed" in doctors.cause) == (False, True)
    # at the next round, however long its wait had grown
    SourceState.objects.update(retry_at=timezone.now() + health.LONGEST_WAIT)
    leases.tasks.check_vaults()
    assert state(SourceKind.VAULT, "demo").ok


def test_a_wrong_address_of_vault_is_named_and_waits_longer_each_time(configured: World) -> None:
    Vault.objects.update(address="http://127.0.0.1:1")
    waits = []
    for _ in range(4):
        leases.tasks.check_vaults()
        failing = state(SourceKind.VAULT, "demo")
        waits.append((failing.retry_at - failing.checked_at).total_seconds())
        again()
    assert waits == [1, 2, 4, 8]
    assert "127.0.0.1:1" in failing.cause
    assert health.wait_after(50) == health.LONGEST_WAIT
    assert not found("vault demo").ok


def test_a_failing_source_is_left_alone_until_its_wait_is_over(configured: World) -> None:
    Vault.objects.update(address="http://127.0.0.1:1")
    leases.tasks.check_vaults()
    leases.tasks.check_vaults()
    assert state(SourceKind.VAULT, "demo").failures == 1


def test_a_missing_capability_is_named_with_the_path_and_the_policy(configured: World) -> None:
    policy = Path(__file__).resolve().parent.parent / "deploy/vault/leasehold-observe.hcl"
    configured.admin.sys.create_or_update_policy(
        "leasehold-observe", 'path "sys/leases/lookup" { capabilities = ["update"] }'
    )
    try:
        leases.tasks.check_vaults()
        denied = state(SourceKind.VAULT, "demo")
    finally:
        configured.admin.sys.create_or_update_policy("leasehold-observe", policy.read_text())
    assert not denied.ok
    assert "capability" in denied.cause
    assert "leasehold-observe.hcl" in denied.fix


def test_an_unreachable_kubernetes_is_named(configured: World) -> None:
    Cluster.objects.update(address="https://127.0.0.1:1")
    leases.tasks.watch_cluster(Cluster.objects.get().pk)
    assert not state(SourceKind.CLUSTER, "demo").ok
    assert "127.0.0.1:1" in state(SourceKind.CLUSTER, "demo").cause
    assert not found("cluster demo").ok


def test_an_unreachable_database_is_named_without_its_password(configured: World) -> None:
    (configured.folder / "orders.dsn").write_text("postgresql://monitor:hunter2secret@127.0.0.1:1/orders")
    leases.tasks.check_vaults()
    failing = state(SourceKind.DATABASE, "demo/database/orders")
    assert not failing.ok
    assert "hunter2secret" not in failing.cause + failing.fix
    assert state(SourceKind.DATABASE, "demo/database/billing").ok


def test_a_missing_secret_file_is_named(configured: World) -> None:
    (configured.folder / "orders.dsn").unlink()
    leases.tasks.check_vaults()
    assert "orders.dsn" in state(SourceKind.DATABASE, "demo/database/orders").cause


def test_a_missing_audit_file_is_named_and_read_from_its_place_when_it_is_back(
    configured: World, tmp_path: Path
) -> None:
    stream = Stream.objects.select_related("device__vault").order_by("id").first()
    assert stream is not None
    log = tmp_path / "audit.log"
    Stream.objects.filter(pk=stream.pk).update(path=str(log))
    audit.tasks.read_on(stream.pk)
    assert "audit.log" in state(SourceKind.STREAM, str(stream)).cause
    log.write_text('{"time":"2026-11-20T10:00:00Z","type":"request","request":{"id":"1","path":"sys/mounts"}}\n')
    assert audit.tasks.read_on(stream.pk)
    assert state(SourceKind.STREAM, str(stream)).ok
    stream.refresh_from_db()
    assert stream.lines == 1


def test_a_device_that_writes_raw_secrets_is_refused_before_anything_is_stored(
    configured: World, tmp_path: Path
) -> None:
    stream = Stream.objects.select_related("device__vault").order_by("id").first()
    assert stream is not None
    log = tmp_path / "raw.log"
    log.write_text(
        '{"time":"2026-11-20T10:00:00Z","type":"request","request":{"id":"1","path":"sys/mounts"}}\n'
        '{"time":"2026-11-20T10:00:00Z","type":"request","auth":{"client_token":"hvs.verysecret"},"request":{"id":"2"}}\n'
    )
    Stream.objects.filter(pk=stream.pk).update(path=str(log))
    assert audit.tasks.read_on(stream.pk) is None
    stream.refresh_from_db()
    assert "auth.client_token" in stream.refused
    assert (stream.lines, RawBlock.objects.filter(stream=stream).count()) == (0, 0)
    assert "verysecret" not in stream.refused + state(SourceKind.STREAM, str(stream)).cause


def test_a_lookup_policy_without_sudo_is_named(configured: World) -> None:
    policy = Path(__file__).resolve().parent.parent / "deploy/vault/leasehold-observe.hcl"
    configured.admin.sys.create_or_update_policy(
        "leasehold-observe", policy.read_text().replace('"list", "sudo"', '"list"')
    )
    try:
        finding = found("vault demo")
    finally:
        configured.admin.sys.create_or_update_policy("leasehold-observe", policy.read_text())
    assert not finding.ok
    assert "sudo" in finding.cause


def test_a_log_from_the_command_line_does_not_make_the_live_vault_fail(configured: World) -> None:
    stream_named("demo", "a-device-that-vault-does-not-have", "elsewhere")
    audit.tasks.check_salts()
    assert not SourceState.objects.filter(kind=SourceKind.VAULT, ok=False).exists()


@pytest.mark.parametrize(
    "model",
    [
        Action,
        ActionStep,
        AttributionChange,
        Conflict,
        Dropped,
        FindingChange,
        Gap,
        Moved,
        RawBlock,
        RejectedLine,
        Text,
        What,
        Who,
    ],
)
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET id = id", "TRUNCATE {}"])
def test_the_applications_role_cannot_rewrite_history(model: type[Action], statement: str) -> None:
    with pytest.raises(DatabaseError, match="permission denied"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement.format(model._meta.db_table))


def test_the_applications_role_owns_no_table() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)"
        )
        assert cursor.fetchall() == []


def test_a_source_that_was_never_asked_may_be_asked() -> None:
    assert health.may_ask(SourceKind.VAULT, "nobody", now=timezone.now())


def test_the_state_of_a_source_is_rewritten_only_now_and_then() -> None:
    now = timezone.now()
    health.report_ok(SourceKind.VAULT, "v", now=now)
    health.report_ok(SourceKind.VAULT, "v", now=now + timedelta(seconds=1))
    assert state(SourceKind.VAULT, "v").checked_at == now
    health.report_ok(SourceKind.VAULT, "v", now=now + timedelta(seconds=3))
    assert state(SourceKind.VAULT, "v").checked_at == now + timedelta(seconds=3)
