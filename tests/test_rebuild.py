"""`manage.py rebuild`: from the blocks alone the same rows again, whatever became of them; and what no block tells stays."""

import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.utils import timezone

from audit import ingest, rebuild, tasks
from audit.models import AttributionChange, Device, RawBlock, Stream
from leases import lists, lookups
from leases.models import ActionStep, AuthMount, Lease, Login, Policy, Revocation, Vault
from leases.vault import LeaseTimes
from tests import factories, scenario
from tests.dump import Row, differences, dump_of_rows
from tests.scenario import DEVICES, Scene, take
from tests.world import World

pytestmark = pytest.mark.django_db
A, B = DEVICES


@pytest.fixture(scope="module")
def played(world: World) -> Scene:
    return scenario.play(world)


@pytest.fixture
def scene(played: Scene, db: None, tmp_path: Path) -> Scene:
    """A ledger that has lived: two devices in turns, odd lines, duplicates, a conflict, lookups, a list, revocations."""
    scenario.prepare(played, tmp_path)
    a, b = played.lines[A], played.lines[B]
    now = played.now - timedelta(minutes=1)
    forged = a[20].replace(b'"remote_address":"', b'"remote_address":"9')
    odd = [b"not JSON at all\n", a[3][:200] + a[4], b'{"time":"1999-01-01T00:00:00Z","type":"request"}\n', forged]
    for begin in range(0, max(len(a), len(b)), 9):
        now += timedelta(milliseconds=700)
        take(B, b[begin : begin + 4], now=now)
        # told again: some of it in blocks with new lines, some in none
        take(A, a[max(0, begin - 3) : begin + 9] + odd[begin // 9 % 4 : begin // 9 % 4 + 1], now=now)
        take(B, b[begin + 2 : begin + 9], now=now)
        take(A, a[begin : begin + 2], now=now)
        if begin == 45:
            api_told(now=now)
    return played


def api_told(*, now: datetime) -> None:
    """What the lease API and people did meanwhile."""
    vault = Vault.objects.get()
    first, second, *_ = Lease.objects.exclude(request_id="").order_by("id")
    lookups.take_times(
        first,
        LeaseTimes(
            lease_id=first.lease_id,
            issued_at=now - timedelta(minutes=1),
            expires_at=now + timedelta(minutes=1),
            last_renewal_at=None,
            renewable=True,
            revoke_error="",
            ttl_seconds=60,
        ),
        now=now,
    )
    lookups.end_gone(second, now=now)
    Lease.objects.filter(pk=first.pk).update(database_user="v-known-by-its-hash")
    lists.take_in(vault, "database/creds/my-role/listed-and-never-read", now=now)
    action = factories.action(first, state="verified")
    factories.step(action, first, "Vault answered")
    # enabled anew, as far as the product knows: what comes now is of another salt
    Device.objects.filter(name=B).update(salt_epoch=2)


def known() -> dict[str, list[Row]]:
    return dump_of_rows(Vault.objects.get())


def rebuilt(**options: Any) -> dict[str, Any]:
    output = io.StringIO()
    call_command("rebuild", json=True, stdout=output, **options)
    return dict(json.loads(output.getvalue())[0])


def nothing_differs(one: dict[str, list[Row]], other: dict[str, list[Row]]) -> None:
    found = differences(one, other)
    assert not found, "\n".join(found[:12])


def told_elsewhere() -> list[Any]:
    return [
        list(model.objects.order_by("pk").values()) for model in (AttributionChange, Revocation, ActionStep, RawBlock)
    ]


def test_an_untouched_ledger_is_the_same_after_it(scene: Scene) -> None:
    before, elsewhere = known(), told_elsewhere()
    stamps = list(Lease.objects.order_by("id").values_list("id", "updated_at"))
    assert before["conflicts"]
    assert before["rejected"]
    result = rebuilt(vault="demo")
    nothing_differs(before, known())
    assert told_elsewhere() == elsewhere
    assert list(Lease.objects.order_by("id").values_list("id", "updated_at")) == stamps
    assert (result["leases"], result["attributions"], result["since"]) == (0, 0, None)
    assert result["events"] == len(before["events"])
    rebuilt()
    nothing_differs(before, known())


_DAMAGE = {
    "events gone": "DELETE FROM audit_event",
    "some events gone": "DELETE FROM audit_event WHERE kind = 4",
    "events falsified": "UPDATE audit_event SET own = NOT own, kind = 0, at = at + interval '1 second', error_text_id = NULL",
    "sightings gone": "DELETE FROM audit_furthersighting; UPDATE audit_event SET token_id = NULL, request_block = NULL WHERE response_at IS NOT NULL",
    "sightings falsified": "UPDATE audit_furthersighting SET token_id = NULL, request_block = 1; UPDATE audit_event SET response_block = 1",
    "hours falsified": "UPDATE audit_hourly SET events = events * 2, own = 0",
    "hours gone": "DELETE FROM audit_hourly",
    "hours made up": "UPDATE audit_hourly SET hour = hour + interval '3 hours'",
    "renewals falsified": "UPDATE audit_renewals SET count = 77",
    "renewals gone": "DELETE FROM audit_renewals; UPDATE leases_lease SET renewals = 0, last_renewal_at = NULL WHERE looked_up_at IS NULL",
    "hashes falsified": "UPDATE audit_hash SET lease_name_id = (SELECT min(lease_name_id) FROM audit_hash)",
    "endings gone": "DELETE FROM audit_ending; UPDATE leases_lease SET end_seen_at = NULL, end_seen_reason = '', end_seen_evidence = ''",
    "ends falsified": "UPDATE leases_lease SET end_seen_at = now(), end_seen_reason = 'by prefix' WHERE state <> 'ended'",
    "tokens without a login": "UPDATE audit_token SET login_id = NULL",
    "leases without their read": "UPDATE leases_lease SET request_id = '', accessed_at = NULL, source_ip = ''",
    "leases read otherwise": "UPDATE leases_lease SET accessed_at = accessed_at - interval '3 years', source_ip = '6.6.6.6', renewals = 9",
    "leases without a login": "UPDATE leases_lease SET login_id = NULL",
    "logins falsified": "UPDATE leases_login SET address = '6.6.6.6', service_account = 'root', own = NOT own, ended_at = now()",
    "logins at another time": "UPDATE leases_login SET logged_in_at = logged_in_at - interval '10 minutes'",
    "tokens of leases gone": "DELETE FROM audit_leasetoken",
    "coverage gone in part": "UPDATE audit_coverage SET pairs = 0, unpaired = 0, lines = 0, rejected = 0, lag_seconds = 0",
    "counters falsified": "UPDATE audit_stream SET parts = parts + 5, lines = lines + 5, last_line_at = NULL",
    "all of it": "DELETE FROM audit_event; DELETE FROM audit_furthersighting; DELETE FROM audit_hourly; DELETE FROM audit_renewals;"
    " DELETE FROM audit_hash; DELETE FROM audit_ending; DELETE FROM audit_leasetoken; UPDATE audit_token SET login_id = NULL;"
    " UPDATE leases_lease SET request_id = '', accessed_at = NULL, source_ip = '', login_id = NULL, renewals = 0",
}


@pytest.mark.parametrize(
    "damage", ["all of it", *(pytest.param(name, marks=pytest.mark.slow) for name in _DAMAGE if name != "all of it")]
)
def test_what_was_damaged_is_as_it_was(scene: Scene, damage: str) -> None:
    before = known()
    with connection.cursor() as cursor:
        cursor.execute(_DAMAGE[damage])
    history = AttributionChange.objects.count()
    assert differences(before, known())
    rebuilt()
    nothing_differs(before, known())
    assert AttributionChange.objects.count() == history


def quietly(done: int, total: int) -> None:
    assert 0 < done <= total


def test_what_is_older_than_retention_stays_and_what_is_younger_is_made_again(scene: Scene) -> None:
    before = known()
    # the first of the scene's two days is over by then
    later = scene.now + timedelta(days=Policy.current().event_days)
    result = rebuild.rebuild(Vault.objects.get(), now=later, on_progress=quietly)
    assert result.since is not None
    assert result.since.date() == scene.now.date()
    assert 0 < result.events < len(before["events"])
    nothing_differs(before, known())
    with connection.cursor() as cursor:
        for table in ("audit_event", "audit_furthersighting"):
            cursor.execute(f"DELETE FROM {table} WHERE at >= %s", [result.since])
        cursor.execute("UPDATE audit_hourly SET events = 99 WHERE hour >= %s", [result.since])
        cursor.execute(
            "UPDATE leases_lease SET request_id = '', login_id = NULL WHERE accessed_at >= %s", [result.since]
        )
    rebuild.rebuild(Vault.objects.get(), now=later, on_progress=quietly)
    nothing_differs(before, known())


def test_a_rebuild_that_is_stopped_leaves_everything_as_it_was(scene: Scene) -> None:
    Lease.objects.update(renewals=7)
    before = known()

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild.rebuild(Vault.objects.get(), now=timezone.now(), on_progress=stop)
    nothing_differs(before, known())


def test_a_lease_that_is_gone_comes_back_and_a_login_that_never_was_goes(scene: Scene) -> None:
    lease = Lease.objects.exclude(login=None).exclude(certainty="unknown").order_by("id").last()
    assert lease is not None
    count, said = Lease.objects.count(), (lease.request_id, lease.login, lease.certainty, lease.pod, lease.end_seen_at)
    lease.delete()
    made_up = Login.objects.create(
        vault=lease.vault, request_id="made up", logged_in_at=timezone.now(), mount_path="x", service_account="root"
    )
    rebuilt()
    found = Lease.objects.get(lease_id=lease.lease_id)
    assert Lease.objects.count() == count
    assert (found.request_id, found.login, found.certainty, found.pod, found.end_seen_at) == said
    assert not Login.objects.filter(pk=made_up.pk).exists()


def test_a_mount_that_was_registered_later_names_holders_and_each_change_is_written_down(
    played: Scene, db: None, tmp_path: Path
) -> None:
    scenario.prepare(played, tmp_path)
    mount = AuthMount.objects.get(path="kubernetes")
    AuthMount.objects.filter(pk=mount.pk).delete()
    take(A, played.lines[A], now=played.now)
    unknown = Lease.objects.filter(certainty="unknown").count()
    assert unknown
    mount.save(force_insert=True)
    history = AttributionChange.objects.count()
    assert rebuilt()["attributions"] == unknown
    assert not Lease.objects.filter(certainty="unknown").exists()
    assert AttributionChange.objects.count() == history + unknown


def test_a_list_that_comes_meanwhile_is_no_obstacle(scene: Scene) -> None:
    lease = Lease.objects.exclude(login=None).order_by("id").last()
    assert lease is not None
    lease_id, vault = lease.lease_id, lease.vault
    lease.delete()
    came: list[Lease | None] = []

    def listed(done: int, total: int) -> None:
        if done == total:
            # what another connection would have committed
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE pg_temp.leases_lease RENAME TO hidden")
            came.append(lists.take_in(vault, lease_id, now=timezone.now()))
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE pg_temp.hidden RENAME TO leases_lease")

    rebuild.rebuild(vault, now=timezone.now(), on_progress=listed)
    (found,) = came
    assert found is not None
    found.refresh_from_db()
    assert (found.request_id, found.login) == (lease.request_id, lease.login)
    assert found.tokens.exists()


def test_one_vault_alone_is_made_again(scene: Scene) -> None:
    other = factories.vault("other")
    factories.event(factories.lease(vault=other))
    before = dump_of_rows(other)
    rebuilt(vault="demo")
    nothing_differs(before, dump_of_rows(other))
    with pytest.raises(CommandError, match="no vault nowhere"):
        call_command("rebuild", vault="nowhere")


# committed for real: another connection has to see it, or to change what the application's role may not
committed = pytest.mark.django_db(transaction=True, databases=["default", "owner"])


@committed
def test_lines_that_are_gone_leave_their_days_as_they_are(scene: Scene) -> None:
    before = known()
    first_day = scene.begin.date()
    with connections["owner"].cursor() as cursor:
        cursor.execute("DELETE FROM audit_blocklines WHERE until::date = %s", [first_day])
        assert cursor.rowcount
    result = rebuilt()
    assert result["since"].startswith(scene.now.date().isoformat())
    nothing_differs(before, known())


@committed
def test_nothing_is_made_from_a_chain_that_was_touched(scene: Scene) -> None:
    before = known()
    for statement in (
        "UPDATE audit_blocklines SET data = (SELECT data FROM audit_blocklines ORDER BY sequence LIMIT 1) WHERE sequence = 3",
        "UPDATE audit_rawblock SET salt_epoch = 9 WHERE sequence = 2",
    ):
        with connections["owner"].cursor() as cursor:
            cursor.execute(statement)
        with pytest.raises(CommandError, match=r"altered.*Nothing was changed"):
            rebuilt()
        nothing_differs(before, known())


@committed
def test_nothing_is_ingested_meanwhile_and_the_follower_goes_on_after_it(scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_bytes(b"".join(scene.lines[A]))
    stream = Stream.objects.get(device__name=A)
    Stream.objects.filter(pk=stream.pk).update(path=str(file), offset=0, file_inode="", file_start="")
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtext('rebuild'), %s)", [Vault.objects.get().pk])
        with pytest.raises(ingest.Rebuilding):
            take(A, scene.lines[A][:1], now=scene.now)
        assert tasks.read_on(stream.pk) is None
        with pytest.raises(CommandError, match="being rebuilt"):
            call_command("ingest", str(file), vault="demo", device=A)
        cursor.execute("SELECT pg_advisory_unlock(hashtext('rebuild'), %s)", [Vault.objects.get().pk])
    assert tasks.read_on(stream.pk)
