"""Findings as they come and go in the database, from facts of the ledger and of real audit lines."""

import io
import json
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import audit.tasks
from audit import configuration, doctor, exports, intern
from audit.findings import log_facts, queries, rules, watch
from audit.models import Device, Finding, FindingChange, FindingKind, Severity, Stream
from leases.configuration import Configuration, ConfigurationError, apply, load, problems
from leases.errors import SourceError
from leases.models import (
    Action,
    Certainty,
    Cluster,
    Database,
    EndReason,
    Lease,
    LeaseState,
    Login,
    Pod,
    Policy,
    Revocation,
    SourceState,
    Vault,
    WatchPeriod,
)
from leases.models.sources import SourceKind
from tests import factories, scenario
from tests.world import TestPod, World

pytestmark = pytest.mark.django_db


def look(now: datetime | None = None) -> dict[str, Finding]:
    """One look; the open findings by kind (one of each in these tests)."""
    watch.look(now=now or timezone.now())
    rows = list(Finding.objects.filter(closed_at=None).order_by("id"))
    return {row.kind: row for row in rows}


def said(row: Finding) -> str:
    return " | ".join([row.summary, *(item["text"] for item in row.evidence)])


def history(row: Finding) -> list[str]:
    return [change.change for change in queries.changes_of(row)]


def close(row: Finding) -> datetime:
    """Returns when."""
    now = timezone.now()
    watch.close(row, by="ada", reason="mended by hand", now=now)
    return now


# --- facts about leases ------------------------------------------------------------------------------------------


def test_a_quiet_evening_has_no_finding() -> None:
    factories.watched()
    now = timezone.now()
    WatchPeriod.objects.create(cluster=factories.cluster(), from_at=now - timedelta(hours=30), to_at=now)
    for number in range(40):
        lease = factories.lease(service_account="checkout", age=number)
        pod(lease)
    factories.lease(certainty=Certainty.UNKNOWN, age=20)
    factories.ended()
    assert look() == {}
    assert not FindingChange.objects.exists()


def pod(lease: Lease, *, ended: float | None = None) -> Pod:
    now = timezone.now()
    return Pod.objects.create(
        cluster=factories.cluster(),
        uid=lease.pod_uid,
        namespace=lease.pod_namespace,
        name=lease.pod,
        service_account=lease.service_account,
        started_at=now - timedelta(hours=2),
        ended_at=None if ended is None else now - timedelta(seconds=ended),
    )


def test_a_service_account_that_piles_up_leases_is_named() -> None:
    holder = {"service_account": "leaky", "pod": "leaky-1", "pod_uid": "uid-1"}
    first = factories.lease(age=3000, left=3000, **holder)
    pod(first)
    for number in range(60):
        factories.lease(age=number, left=3000, **holder)
    factories.ended(ago=20, **holder)
    found = look()[FindingKind.EXPLOSION]
    assert (found.culprit, found.severity) == ("shop/leaky", Severity.HIGH)
    assert "61 live leases; 10 min ago 1" in said(found)
    assert "61 were issued, 0 renewed, 1 ended" in said(found)
    assert "1 pod and 1 role" in said(found)
    assert sum("lease" in item for item in found.evidence) == 10
    assert found.pk in {row.pk for row in queries.concerning(first)}


def test_one_of_many_replicas_that_leaks_is_found_by_its_own_leases() -> None:
    for number in range(40):
        pod(factories.lease(age=3000, left=3000, pod=f"checkout-{number}", pod_uid=f"u-{number}"))
    assert look() == {}
    for number in range(29):
        role = ("my-role", "reports", "other")[number % 3]
        factories.lease(age=3000 - number, left=3000, role=role, pod="checkout-7", pod_uid="u-7")
    assert look() == {}, "30 for three roles are no more than ten for each"
    for number in range(5):
        factories.lease(age=2000 - number, left=3000, role="other", pod="checkout-7", pod_uid="u-7")
    row = look()[FindingKind.EXPLOSION]
    assert row.severity == Severity.MEDIUM
    assert row.summary == "shop/checkout holds 74 live leases, 35 of them pod checkout-7 alone"
    assert "pod checkout-7 alone holds 35, for 3 roles" in said(row)


def test_only_a_pod_that_ended_a_while_ago_is_outlived() -> None:
    just, stays, gone = (factories.lease(service_account=f"sa-{n}", left=7200) for n in range(3))
    pod(just, ended=60)
    pod(stays)
    pod(gone, ended=180)
    found = look()
    assert set(found) == {FindingKind.OUTLIVES_POD}
    row = found[FindingKind.OUTLIVES_POD]
    assert (row.service_account, row.severity) == ("sa-2", Severity.MEDIUM)
    assert row.evidence[0]["lease"] == gone.pk
    assert gone.pod in said(row)


def test_a_holder_is_unknown_only_after_attribution_had_its_time() -> None:
    factories.lease(certainty=Certainty.UNKNOWN, age=rules.ATTRIBUTION_TIME.total_seconds() - 20)
    factories.lease(certainty=Certainty.SERVICE_ACCOUNT, age=900, left=3000)
    assert look() == {}
    old = factories.lease(certainty=Certainty.UNKNOWN, age=900, left=3000)
    row = look()[FindingKind.HOLDER_UNKNOWN]
    assert [item["lease"] for item in row.evidence] == [old.pk]
    Vault.objects.update(retired=True)
    assert look() == {}, "of a log that was only examined nothing is known to be live"


def test_limits_come_from_the_policy_or_from_the_database() -> None:
    factories.lease(age=60, left=3600)
    assert look() == {}
    Policy.objects.create(pk=1, max_lease_ttl_seconds=600)
    row = look()[FindingKind.OVER_TTL]
    assert row.severity == Severity.MEDIUM
    assert "0 of 1 got there by renewals" in said(row)
    Database.objects.update(max_lease_ttl_seconds=7200)
    assert look() == {}
    Database.objects.update(max_lease_ttl_seconds=0)
    assert look() == {}
    Database.objects.update(max_lease_ttl_seconds=60)
    assert look()[FindingKind.OVER_TTL].severity == Severity.HIGH


def test_what_vault_gave_up_is_told_with_its_error() -> None:
    factories.lease(state=LeaseState.IRREVOCABLE, left=-340, revoke_error="role cannot be dropped")
    row = look()[FindingKind.IRREVOCABLE]
    assert (row.severity, "role cannot be dropped" in said(row)) == (Severity.HIGH, True)


def test_another_irrevocable_lease_opens_a_finding_again_that_was_closed_for_the_one_before() -> None:
    first = factories.lease(state=LeaseState.IRREVOCABLE, left=-600, revoke_error="e")
    row = look()[FindingKind.IRREVOCABLE]
    close(row)
    Lease.objects.filter(pk=first.pk).update(
        state=LeaseState.ENDED, ended_at=timezone.now(), end_reason=EndReason.FORCED
    )
    look()
    factories.lease(state=LeaseState.IRREVOCABLE, left=-600, revoke_error="e")
    assert FindingKind.IRREVOCABLE in look()


def test_another_lease_that_outlives_its_pod_opens_the_finding_again() -> None:
    first = factories.lease(service_account="sa", left=7200)
    pod(first, ended=180)
    now = close(look()[FindingKind.OUTLIVES_POD])
    assert look(now + timedelta(minutes=5)) == {}, "the same lease is nothing new"
    Lease.objects.filter(pk=first.pk).update(state=LeaseState.ENDED, ended_at=now, end_reason=EndReason.EXPIRED)
    pod(factories.lease(service_account="sa", left=7200), ended=-10)
    assert look(now + timedelta(minutes=2)) == {}, "it may end within its time"
    assert history(look(now + timedelta(minutes=3))[FindingKind.OUTLIVES_POD]) == ["opened", "closed", "reopened"]


def test_another_lease_whose_holder_is_unknown_opens_the_finding_again() -> None:
    first = factories.lease(certainty=Certainty.UNKNOWN, age=900, left=7200)
    now = close(look()[FindingKind.HOLDER_UNKNOWN])
    Lease.objects.filter(pk=first.pk).update(state=LeaseState.ENDED, ended_at=now, end_reason=EndReason.EXPIRED)
    factories.lease(certainty=Certainty.UNKNOWN, age=60, left=7200)
    assert look(now + timedelta(minutes=3)) == {}
    assert history(look(now + timedelta(minutes=6))[FindingKind.HOLDER_UNKNOWN]) == ["opened", "closed", "reopened"]


def test_two_reads_of_one_login_at_once_are_a_double_issue_and_an_agents_overlap_is_not() -> None:
    first = factories.lease(age=900)
    login = factories.login(first)
    for seconds, other in ((300, login), (0, None)):
        factories.lease(age=900 - seconds, login=other)
    # another login of the same service account, at the same moment
    factories.login(factories.lease(age=899))
    assert look() == {}
    second = factories.lease(age=898, login=login)
    row = look()[FindingKind.ISSUED_TWICE]
    assert row.severity == Severity.LOW
    assert row.evidence[-1]["lease"] == second.pk
    assert look(timezone.now() + timedelta(hours=1)) == {}


def test_two_logins_of_one_pod_that_read_one_role_at_start_are_a_double_issue() -> None:
    """The injector's init container and its sidecar log in each for itself."""
    now = timezone.now()
    for number in range(2):
        login = Login.objects.create(
            vault=factories.vault(), request_id=f"l-{number}", logged_in_at=now, mount_path="kubernetes"
        )
        factories.lease(age=60 - number, login=login, pod="checkout-1", pod_uid="u-1", request_id=str(uuid.uuid4()))
    assert FindingKind.ISSUED_TWICE in look()


def test_replicas_that_start_together_and_agents_that_log_in_again_issue_nothing_twice() -> None:
    for number, age in enumerate((300, 299, 60, 59)):
        replica = number % 2
        lease = factories.lease(age=age, pod=f"checkout-{replica}", pod_uid=f"u-{replica}")
        factories.login(lease)
    assert look() == {}


def test_logins_of_one_service_account_whose_pods_are_not_known_are_not_taken_for_one_pod() -> None:
    for age in (60, 59):
        factories.login(factories.lease(age=age, certainty=Certainty.AMBIGUOUS))
    assert look() == {}


def test_a_failed_revocation_is_told_until_its_lease_has_ended() -> None:
    lease = factories.lease()
    factories.action(lease, state="verified", ago=50)
    assert look() == {}
    action = factories.action(lease, state="failed", ago=20)
    row = look()[FindingKind.REVOCATION_FAILED]
    assert row.evidence[0]["action"] == str(action.pk)
    Lease.objects.update(state="ended", ended_at=timezone.now(), end_reason="expired (inferred)")
    assert look() == {}
    Revocation.objects.update(state="unverified")
    assert look()[FindingKind.REVOCATION_FAILED].severity == Severity.MEDIUM


# --- facts about streams -----------------------------------------------------------------------------------------


def test_streams_tell_of_gaps_of_lag_and_of_what_they_refuse() -> None:
    factories.watched()
    stream = factories.stream("file-a")
    factories.gap(stream, hours_ago=30)
    assert look() == {}
    factories.gap(stream, hours_ago=2, what="4096 bytes were lost")
    Stream.objects.filter(device__name="file-b").update(
        unread_bytes=512, last_line_at=timezone.now() - timedelta(minutes=3)
    )
    refused = factories.stream("raw", refused="auth.client_token stands in plain text")
    factories.conflict(stream)
    found = look()
    assert set(found) == {FindingKind.GAP, FindingKind.LAG, FindingKind.RAW_DEVICE, FindingKind.CONFLICT}
    assert "4096 bytes were lost" in said(found[FindingKind.GAP])
    assert found[FindingKind.RAW_DEVICE].evidence[0]["stream"] == refused.pk
    Stream.objects.update(retired=True)
    assert look() == {}


def test_a_device_that_is_gone_or_anew_is_told_of() -> None:
    factories.watched()
    now = timezone.now()
    Device.objects.filter(name="file-a").update(missing_since=now)
    Device.objects.filter(name="file-b").update(salt_changed_at=now - timedelta(hours=3))
    found = look()
    assert set(found) == {FindingKind.DEVICE_DISABLED, FindingKind.DEVICE_ANEW}
    assert "does not list the audit device file-a" in said(found[FindingKind.DEVICE_DISABLED])
    Device.objects.update(missing_since=None)
    assert set(look(now + timedelta(hours=22))) == set()


def test_a_cluster_whose_watch_stopped_long_ago_is_told_of_and_one_never_watched_is_not() -> None:
    cluster = factories.cluster()
    assert look() == {}
    now = timezone.now()
    WatchPeriod.objects.create(cluster=cluster, from_at=now - timedelta(days=9), to_at=now - timedelta(days=2))
    assert "are not watched" in look()[FindingKind.WATCH_GAP].summary
    Cluster.objects.update(retired=True)
    assert look() == {}


# --- facts from lines that a real server wrote -------------------------------------------------------------------


@pytest.fixture(scope="module")
def evening(world: World) -> dict[str, list[bytes]]:
    """An administrator with a root token, an entity that is disabled and enabled, and a pod that is denied."""
    before = {name: Path(path).stat().st_size for name, path in world.openbao.audit_logs.items()}
    admin = world.admin
    pod = world.pod("storefront")
    pod.log_in()
    entity = admin.secrets.identity.create_or_update_entity("watched-entity")["data"]["id"]
    admin.secrets.identity.update_entity(entity, metadata={"team": "shop"})
    admin.adapter.post(f"/v1/identity/entity/id/{entity}", json={"disabled": True})
    admin.adapter.post("/v1/identity/entity/name/watched-entity", json={"disabled": False})
    for _ in range(25):
        with pytest.raises(AssertionError, match="403"):
            pod.call("GET", "database/creds/not-mine")
    with pytest.raises(AssertionError, match="403"):
        TestPod(world, pod.application, "", "", pod.address).call("GET", "secret/data/one")
    return {
        name: Path(path).read_bytes()[before[name] :].splitlines(keepends=True)
        for name, path in world.openbao.audit_logs.items()
    }


@pytest.fixture
def told(evening: dict[str, list[bytes]], world: World, tmp_path: Path) -> datetime:
    """Both devices' lines of the evening, read; the moment after it."""
    file = tmp_path / "leasehold.toml"
    file.write_text(world.toml())
    configuration.apply(load(file))
    intern.forget()
    now = timezone.now()
    for device, lines in evening.items():
        scenario.take(device, lines, now=now)
    now = timezone.now()
    Stream.objects.update(read_at=now, unread_bytes=0)
    return now


def test_a_real_evening_is_told_with_its_culprits(told: datetime) -> None:
    found = look(told)
    rows = list(Finding.objects.filter(closed_at=None))
    assert {row.kind for row in rows} == {FindingKind.ROOT_TOKEN, FindingKind.ENTITY_CHANGED, FindingKind.DENIALS}
    root = found[FindingKind.ROOT_TOKEN]
    assert (root.culprit, root.severity) == ("root", Severity.HIGH)
    assert "update identity/entity" in said(root)
    denied = found[FindingKind.DENIALS]
    assert denied.culprit == "kubernetes-shop-storefront"
    assert "was denied 25 times" in denied.summary
    assert "25 times: read database/creds/not-mine" in said(denied)
    entities = {row.key.rpartition("/")[2]: row for row in rows if row.kind == FindingKind.ENTITY_CHANGED}
    assert sorted(row.summary.partition(" ")[2] for row in entities.values()) == [
        f"{next(key for key in entities if key != 'watched-entity')} was disabled: its tokens are refused, while its leases live on",
        "watched-entity was enabled: its tokens work",
    ]


def test_a_second_look_changes_nothing_but_when_it_was_seen_last(told: datetime) -> None:
    factories.lease(certainty=Certainty.UNKNOWN, age=900, left=9000)
    gone = factories.lease(left=9000)
    pod(gone, ended=1800)
    factories.gap(factories.stream("file-a"))

    def stored() -> list[dict[str, Any]]:
        return [
            {name: value for name, value in row.items() if name != "last_seen_at"}
            for row in Finding.objects.order_by("id").values()
        ]

    watch.look(now=told)
    first, changes = stored(), FindingChange.objects.count()
    assert len(first) >= 6
    for seconds in (0, 60, 120):
        at = told + timedelta(seconds=seconds)
        looked = watch.look(now=at)
        assert (looked.opened, looked.reopened, looked.closed, looked.open) == (0, 0, 0, len(first))
        assert set(Finding.objects.values_list("last_seen_at", flat=True)) == {at}
    assert stored() == first
    assert FindingChange.objects.count() == changes


def test_own_requests_never_raise_findings_of_use(told: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE audit_event SET own = true")
        cursor.execute("UPDATE audit_hourly SET own = events")
    assert not {FindingKind.ROOT_TOKEN, FindingKind.ENTITY_CHANGED, FindingKind.DENIALS} & set(look(told))


def test_what_happened_a_day_ago_closes_by_itself(told: datetime) -> None:
    look(told)
    later = told + timedelta(hours=26)
    WatchPeriod.objects.create(cluster=Cluster.objects.get(), from_at=told, to_at=later)
    assert not {FindingKind.ROOT_TOKEN, FindingKind.ENTITY_CHANGED, FindingKind.DENIALS} & set(look(later))
    row = Finding.objects.get(kind=FindingKind.ROOT_TOKEN)
    assert (row.closed_why, row.closed_by, history(row)) == ("no longer so", "", ["opened", "closed"])


def test_raw_lines_that_were_dropped_leave_a_change_of_an_entity_told_without_its_kind(told: datetime) -> None:
    assert len(log_facts.rare_events(now=told)) == 4
    with connection.cursor() as cursor:
        cursor.execute("UPDATE audit_event SET request_block = 99, response_block = 99")
    found = look(told)[FindingKind.ENTITY_CHANGED]
    assert "cannot be read any more" in found.summary


def test_a_device_that_vault_has_no_longer_or_with_another_salt_is_noticed_by_asking_it(told: datetime) -> None:
    gone = factories.stream("file-z").device
    audit.tasks.check_salts()
    assert not Device.objects.exclude(pk=gone.pk).filter(missing_since__isnull=False).exists()
    assert "file-z" in look()[FindingKind.DEVICE_DISABLED].summary
    assert not SourceState.objects.filter(kind=SourceKind.VAULT, ok=False).exists()
    Device.objects.filter(name="file-a").update(salt_probe="hmac-sha256:of another salt")
    audit.tasks.check_salts()
    assert "file-a of demo was enabled anew" in look()[FindingKind.DEVICE_ANEW].summary
    epochs = dict(Device.objects.exclude(pk=gone.pk).values_list("name", "salt_epoch"))
    assert epochs == {"file-a": 2, "file-b": 1}
    gone.streams.update(retired=True)
    assert FindingKind.DEVICE_DISABLED not in look(), "one that is followed no longer is nobody's business"


def line(kind: str, path: str, operation: str, *, at: datetime, request_id: str, **auth: Any) -> bytes:
    entry: dict[str, Any] = {
        "time": at.isoformat().replace("+00:00", "Z"),
        "type": kind,
        "auth": {"display_name": "token-deployer", "policies": ["deploy"], "token_type": "service", **auth},
        "request": {
            "id": request_id,
            "operation": operation,
            "path": path,
            "mount_point": f"{path.partition('/')[0]}/",
            "remote_address": "203.0.113.9",
        },
    }
    if kind == "response":
        entry["response"] = {}
    return json.dumps(entry).encode() + b"\n"


def asked(path: str, operation: str, *, times: int = 1, error: str = "", **auth: Any) -> None:
    at = timezone.now()
    lines = b""
    for _ in range(times):
        request_id = str(uuid.uuid4())
        lines += line("request", path, operation, at=at, request_id=request_id, **auth)
        answer = line("response", path, operation, at=at, request_id=request_id, **auth)
        if error:
            answer = json.dumps(json.loads(answer) | {"error": error}).encode() + b"\n"
        lines += answer
    intern.forget()
    factories.read_lines(factories.stream("file-a"), lines)


def test_a_device_that_somebody_disabled_is_told_with_who_did_it() -> None:
    asked("sys/audit/file-b", "delete", error="1 error occurred:\n\t* permission denied\n\n")
    asked("sys/audit", "read")
    asked("sys/audit-hash/file-b", "update")
    assert look() == {}
    asked("sys/audit/file-b", "delete")
    row = look()[FindingKind.DEVICE_DISABLED]
    assert (row.culprit, row.summary) == ("token-deployer", "Audit device file-b of demo was disabled")
    assert "from 203.0.113.9" in said(row)


def test_many_edits_of_entities_hide_no_disabled_device() -> None:
    asked("sys/audit/file-b", "delete")
    asked("identity/entity/id/e-1", "update", times=log_facts.MOST_RARE)
    assert set(look()) == {FindingKind.DEVICE_DISABLED}
    asked("identity/entity/id/e-1", "update")
    found = look()
    assert FindingKind.DEVICE_DISABLED in found
    assert "Of more than 200 edits of entities within 1 d only the newest are looked at" in said(
        found[FindingKind.ENTITY_CHANGED]
    )


def test_the_last_device_logs_no_answer_to_its_own_end_and_is_told_all_the_same() -> None:
    at = timezone.now() - timedelta(seconds=30)
    factories.read_lines(
        factories.stream("file-a"), line("request", "sys/audit/file-a", "delete", at=at, request_id=str(uuid.uuid4()))
    )
    assert look() == {}
    row = look(at + timedelta(seconds=61))[FindingKind.DEVICE_DISABLED]
    assert row.summary == "Audit device file-a of demo was disabled, it seems: no device logged Vault's answer"


def test_entities_that_are_named_in_the_body_alone_are_not_taken_for_one() -> None:
    at, lines = timezone.now(), b""
    for disabled in (True, False):
        request_id = str(uuid.uuid4())
        for kind in ("request", "response"):
            entry = json.loads(line(kind, "identity/entity", "update", at=at, request_id=request_id))
            entry["request"]["data"] = {"name": f"hmac-sha256:{str(int(disabled)) * 64}", "disabled": disabled}
            lines += json.dumps(entry).encode() + b"\n"
    factories.read_lines(factories.stream("file-a"), lines)
    look()
    found = Finding.objects.filter(kind=FindingKind.ENTITY_CHANGED).order_by("summary")
    assert [row.summary.partition(":")[0] for row in found] == [
        "An entity that the log does not name was disabled",
        "An entity that the log does not name was enabled",
    ]


def test_a_static_role_is_told_with_its_reader() -> None:
    asked("database/static-creds/legacy", "read", times=3)
    asked("database/static-roles/legacy", "read")
    row = look()[FindingKind.STATIC_ROLE]
    assert (row.culprit, row.severity) == ("token-deployer", Severity.LOW)
    assert "database/static-creds/legacy" in row.summary
    assert "3 reads within 24 h" in said(row)


def test_nineteen_denials_and_other_errors_are_no_finding() -> None:
    denied = "1 error occurred:\n\t* permission denied\n\n"
    asked("secret/a", "read", times=19, error=denied)
    asked("secret/a", "read", times=30, error="unsupported path")
    nobody: dict[str, Any] = {"display_name": "", "policies": []}
    asked("secret/a", "read", times=19, error=denied, **nobody)
    assert look() == {}
    asked("secret/b", "read", error=denied, **nobody)
    row = look()[FindingKind.DENIALS]
    assert row.culprit == "somebody at 203.0.113.9"


def test_denials_of_one_identity_are_counted_together_whatever_its_tokens_bear() -> None:
    denied = "1 error occurred:\n\t* permission denied\n\n"
    for number in range(4):
        metadata = {"pod": f"checkout-{number}"}
        asked("secret/a", "read", times=5, error=denied, entity_id="e-1", metadata=metadata)
    assert "was denied 20 times" in look()[FindingKind.DENIALS].summary


# --- coming and going --------------------------------------------------------------------------------------------


def unknown_lease() -> Lease:
    return factories.lease(certainty=Certainty.UNKNOWN, age=900, left=100_000)


def test_a_finding_that_comes_back_within_a_day_is_the_same_and_later_a_new_one() -> None:
    unknown_lease()
    now = timezone.now()
    first = look(now)[FindingKind.HOLDER_UNKNOWN]
    Lease.objects.update(certainty=Certainty.SERVICE_ACCOUNT)
    assert look(now + timedelta(minutes=1)) == {}
    Lease.objects.update(certainty=Certainty.UNKNOWN)
    again = look(now + timedelta(hours=20))[FindingKind.HOLDER_UNKNOWN]
    assert (again.pk, again.first_seen_at) == (first.pk, first.first_seen_at)
    assert history(again) == ["opened", "closed", "reopened"]
    Lease.objects.update(certainty=Certainty.SERVICE_ACCOUNT)
    look(now + timedelta(hours=21))
    Lease.objects.update(certainty=Certainty.UNKNOWN, expires_at=now + timedelta(days=9))
    later = look(now + timedelta(hours=60))[FindingKind.HOLDER_UNKNOWN]
    assert later.pk != first.pk


def test_what_a_person_closed_stays_closed_until_it_is_worse_and_is_an_action() -> None:
    unknown_lease()
    now = timezone.now()
    row = look(now)[FindingKind.HOLDER_UNKNOWN]
    action = watch.close(row, by="operator", reason="from before the log was read", now=now)
    with pytest.raises(watch.NotOpen):
        watch.close(row, by="other", reason="me too", now=now)
    assert Action.objects.get() == action
    assert (action.kind, action.by, action.targets[0]["finding"]) == ("close finding", "operator", row.pk)
    out = io.BytesIO()
    exports.write("actions", out, from_at=now, to_at=now + timedelta(seconds=1), form="csv")
    assert b"close finding,operator,from before the log was read,,demo,,," in out.getvalue()
    assert look(now + timedelta(minutes=1)) == {}
    row.refresh_from_db()
    assert row.last_seen_at == now + timedelta(minutes=1)
    unknown_lease()
    worse = look(now + timedelta(minutes=2))[FindingKind.HOLDER_UNKNOWN]
    assert (worse.pk, worse.closed_by, worse.closed_why) == (row.pk, "", "")
    assert history(worse) == ["opened", "closed", "reopened"]
    assert [change.by for change in queries.changes_of(worse)] == ["", "operator", ""]


def test_a_finding_that_grows_worse_says_so_in_its_history() -> None:
    lease = factories.lease(left=1800)
    pod(lease, ended=600)
    assert look()[FindingKind.OUTLIVES_POD].severity == Severity.LOW
    Lease.objects.update(expires_at=timezone.now() + timedelta(hours=5))
    row = look()[FindingKind.OUTLIVES_POD]
    assert (row.severity, history(row)) == (Severity.MEDIUM, ["opened", "worsened"])


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "one_open_finding_of_a_thing"),
        ({"key": "b", "closed_at": timezone.now()}, "a_closed_finding_says_why"),
        ({"key": "b", "closed_by": "operator"}, "a_closed_finding_says_why"),
        ({"key": "b", "first_seen_at": timezone.now() + timedelta(days=1)}, "a_finding_is_seen_first_before_last"),
    ],
)
def test_the_database_keeps_what_a_finding_promises(fields: dict[str, Any], name: str) -> None:
    now = timezone.now()
    sound: dict[str, Any] = {"kind": "x", "key": "a", "severity": 1, "first_seen_at": now, "last_seen_at": now}
    Finding.objects.create(**sound)
    with pytest.raises(IntegrityError, match=name), transaction.atomic():
        Finding.objects.create(**sound | fields)


def test_the_task_looks_and_two_at_once_do_no_harm() -> None:
    unknown_lease()
    audit.tasks.look_for_findings()
    audit.tasks.look_for_findings()
    assert Finding.objects.count() == 1


def test_a_look_asks_as_often_for_a_dozen_of_each_as_for_one() -> None:
    def one_more(number: int) -> None:
        name = f"{number}"
        for _ in range(2):
            factories.lease(certainty=Certainty.UNKNOWN, age=900, left=9000, role=f"role-{name}")
        gone = factories.lease(left=9000, service_account=f"gone-{name}")
        pod(gone, ended=600)
        factories.login(gone)
        factories.lease(left=9000, service_account=f"gone-{name}", login=gone.login)
        factories.lease(state=LeaseState.IRREVOCABLE, left=-9, role=f"role-{name}")
        factories.action(factories.lease(service_account=f"live-{name}"), state="failed")
        asked(f"database/static-creds/{name}", "read", display_name=f"reader-{name}")
        asked("sys/mounts", "read", display_name=f"root-{name}", policies=["root"])
        factories.gap(factories.stream(f"device-{name}"))

    def queries_of_a_look() -> int:
        with CaptureQueriesContext(connection) as captured:
            watch.look(now=timezone.now())
        return len(captured)

    one_more(0)
    queries_of_a_look()
    once = queries_of_a_look()
    for number in range(1, 12):
        one_more(number)
    queries_of_a_look()
    assert Finding.objects.filter(closed_at=None).count() >= 12 * 7
    assert queries_of_a_look() == once
    assert once < 60


def test_doctor_tells_when_the_rules_run_no_more() -> None:
    doctor.looked()
    watch.look(now=timezone.now())
    doctor.looked()
    watch.look(now=timezone.now() - timedelta(minutes=4))
    with pytest.raises(SourceError, match="have not run since"):
        doctor.looked()


# --- configuration and export ------------------------------------------------------------------------------------


def test_limits_are_read_from_the_file_and_negative_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "leasehold.toml"
    text = "[policies]\nmax_lease_ttl_seconds = 3600\nmax_live_leases = 500\n"
    file.write_text(text)
    apply(load(file))
    policy = Policy.current()
    assert (policy.max_lease_ttl_seconds, policy.max_live_leases) == (3600, 500)
    file.write_text(text.replace("500", "-1"))
    with pytest.raises(ConfigurationError, match="max_live_leases is -1"):
        load(file)
    assert problems(Configuration()) == []


def test_findings_that_were_open_in_a_period_are_exported() -> None:
    unknown_lease()
    now = timezone.now()
    look(now)

    def exported(begin: datetime, end: datetime) -> list[dict[str, Any]]:
        out = io.BytesIO()
        exports.write("findings", out, from_at=begin, to_at=end, form="ndjson")
        return [json.loads(row) for row in out.getvalue().splitlines()]

    (row,) = exported(now - timedelta(hours=1), now + timedelta(hours=1))
    assert (row["kind"], row["severity"], row["closed_at"]) == ("holder unknown", "medium", None)
    assert "database/creds/my-role/" in row["evidence"]
    assert not exported(now - timedelta(hours=2), now - timedelta(hours=1))
