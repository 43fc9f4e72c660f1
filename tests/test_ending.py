"""Sessions of revoked leases, on real parts: a pod's credential is connected with, its lease is revoked, its sessions end and others do not."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from django.utils import timezone
from psycopg import sql

from audit import doctor, users
from demo import processes
from leases import checks, clients, ending, jobs, monitors, revoke, sessions
from leases.databases import Backends, MayNotEnd, UserForgotten
from leases.models import ActionStep, Database, Lease, Revocation, Vault
from leases.models.actions import RevocationState
from leases.vault import VaultDenied
from tests import workers
from tests.world import TestPod, World

pytestmark = pytest.mark.django_db

POLICY = Path(__file__).resolve().parent.parent / "deploy/vault/leasehold-respond.hcl"
STEPS = ["sessions seen", "Vault answered", "lease gone", "database user gone", "sessions ended"]

Connect = Callable[[], psycopg.Connection]


class Held:
    """A lease that a pod holds, and sessions under its user."""

    def __init__(self, world: World, pod: TestPod, stack: ExitStack) -> None:
        pod.log_in()
        answer = pod.read_credentials()
        workers.read_streams()
        self.world, self.stack, self.data = world, stack, answer["data"]
        self.user = str(self.data["username"])
        Lease.objects.filter(lease_id=answer["lease_id"]).update(database_user=self.user, database_user_by="audit hash")
        self.lease = Lease.objects.select_related("database__vault", "vault").get(lease_id=answer["lease_id"])

    def connect(self, database: str = "orders", **options: str) -> psycopg.Connection:
        account = f"{self.user}:{self.data['password']}"
        address = f"postgresql://{account}@127.0.0.1:{self.world.postgres.port}/{database}"
        return self.stack.enter_context(psycopg.connect(address, autocommit=True, **options))  # type: ignore[arg-type]


@pytest.fixture
def hold(configured: World) -> Iterator[Callable[[], Held]]:
    monitors.forget()
    ending._away.clear()
    with ExitStack() as stack:
        yield lambda: Held(configured, configured.pod("storefront"), stack)
    monitors.forget()
    ending._away.clear()


@pytest.fixture
def held(hold: Callable[[], Held]) -> Held:
    return hold()


def lives(session: psycopg.Connection) -> bool:
    try:
        session.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def revoked(lease: Lease) -> Revocation:
    action = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
    revocation = action.revocations.get()
    revoke.carry_out(revocation.pk)
    revocation.refresh_from_db()
    return revocation


def steps(revocation: Revocation) -> dict[str, ActionStep]:
    """The last one of each name, in the order in which they came."""
    return {step.name: step for step in revocation.action.steps.exclude(lease_id="").order_by("at", "id")}


def again(revocation: Revocation) -> None:
    """As somebody who presses retry."""
    assert jobs.retry(revocation.action.job, by="ada", now=timezone.now()) == 1
    ending._away.clear()
    revoke.carry_out(revocation.pk)
    revocation.refresh_from_db()


def admin(world: World, *statements: str) -> None:
    with psycopg.connect(world.postgres.dsn(), autocommit=True) as session:
        for statement in statements:
            session.execute(sql.SQL(statement))


# --- with an account that may end them ---------------------------------------------------------------------------


def test_sessions_of_a_revoked_lease_are_ended_and_those_of_others_live_on(hold: Callable[[], Held]) -> None:
    held, other = hold(), hold()
    first, elsewhere, others = held.connect(application_name="web"), held.connect("postgres"), other.connect()
    pid = first.info.backend_pid
    began = time.monotonic()
    revocation = revoked(held.lease)
    took = time.monotonic() - began
    assert [lives(one) for one in (first, elsewhere, others)] == [False, False, True]
    assert revocation.state == RevocationState.VERIFIED
    told = steps(revocation)
    assert list(told) == STEPS
    assert {step.outcome for step in told.values()} == {"ok"}
    assert f"{held.user} had 2 sessions on orders: " in told["sessions seen"].detail
    assert f"{pid} from 127.0.0.1:" in told["sessions seen"].detail
    assert " in orders (web), since " in told["sessions seen"].detail
    assert told["sessions ended"].detail.startswith(f"2 sessions of {held.user} ended: ")
    assert told["sessions ended"].detail.endswith("None lives on orders")
    # an operator waits for it
    assert took < 5


def test_without_sessions_it_is_verified_and_says_that_there_were_none(held: Held) -> None:
    revocation = revoked(held.lease)
    assert revocation.state == RevocationState.VERIFIED
    assert steps(revocation)["sessions seen"].detail == f"{held.user} had no session on orders"
    assert steps(revocation)["sessions ended"].detail == f"{held.user} had none; none lives on orders"


def test_a_session_that_took_another_role_is_ended_too(configured: World, held: Held) -> None:
    admin(configured, f'GRANT orders_owner TO "{held.user}"')
    with psycopg.connect(configured.postgres.dsn("orders_owner", "orders"), autocommit=True) as owner:
        session = held.connect()
        session.execute("SET ROLE orders_owner")
        assert revoked(held.lease).state == RevocationState.VERIFIED
        assert [lives(session), lives(owner)] == [False, True]


def test_a_session_that_began_after_the_look_is_ended_too_and_counted(held: Held) -> None:
    first = held.connect()
    seen = ending.snapshot(held.lease)
    late = held.connect()
    held.world.admin.sys.revoke_lease(held.lease.lease_id)
    assert [lives(first), lives(late)] == [True, True]
    assert held.lease.database is not None
    ended = ending.end(held.lease.database, seen)
    assert [lives(first), lives(late)] == [False, False]
    assert (ended.outcome, ended.survivors) == ("ok", ())
    assert "1 of them began after the first look" in ended.detail


def test_what_has_ended_by_itself_is_told_so(held: Held) -> None:
    first = held.connect()
    seen = ending.snapshot(held.lease)
    first.close()
    processes.wait_until(lambda: not ending.snapshot(held.lease).backends, what="its end", seconds=5)
    assert held.lease.database is not None
    assert "1 had ended by then without Leasehold" in ending.end(held.lease.database, seen).detail


def test_what_was_seen_is_kept_to_the_last_digit(held: Held) -> None:
    held.connect()
    seen = ending.snapshot(held.lease)
    action = revoke.request(leases=[held.lease], by="ada", reason="drill", now=timezone.now())
    Revocation.objects.update(sessions=ending.freeze(seen))
    kept = ending.thaw(action.revocations.get().sessions)
    assert kept == seen
    assert seen.backends[0].began_at is not None
    assert seen.user_oid is not None


def test_a_session_that_does_not_end_is_named_and_nothing_is_green(configured: World, held: Held) -> None:
    session, stuck = held.connect(), held.connect(application_name="stuck")
    # a server process that does not react, as in an endless loop of an extension
    os.kill(stuck.info.backend_pid, signal.SIGSTOP)
    try:
        revocation = revoked(held.lease)
        assert not lives(session)
        assert revocation.state == RevocationState.UNVERIFIED
        told = steps(revocation)
        assert (told["database user gone"].outcome, told["sessions ended"].outcome) == ("ok", "failed")
        said = told["sessions ended"].detail
        assert said.startswith(f"1 session of {held.user} still lives on orders after 3 s: {stuck.info.backend_pid} ")
        assert "(stuck)" in said
        assert "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = " in said
    finally:
        os.kill(stuck.info.backend_pid, signal.SIGCONT)
    again(revocation)
    assert revocation.state == RevocationState.VERIFIED
    assert steps(revocation)["sessions ended"].outcome == "ok"


# --- without one, or where it does not work ----------------------------------------------------------------------


def test_without_a_responding_account_open_sessions_are_named_with_the_words_that_end_them(
    configured: World, held: Held
) -> None:
    Database.objects.update(respond=None)
    held.lease.refresh_from_db()
    session = held.connect()
    revocation = revoked(held.lease)
    assert lives(session)
    assert revocation.state == RevocationState.UNVERIFIED
    said = steps(revocation)["sessions ended"]
    assert said.outcome == "failed"
    assert f"1 session of {held.user} still lives on orders: {session.info.backend_pid} from 127.0.0.1:" in said.detail
    assert "docs/databases.md" in said.detail
    command = said.detail.partition("as an administrator: ")[2].partition(";")[0]
    admin(configured, command)
    assert not lives(session)
    again(revocation)
    assert revocation.state == RevocationState.VERIFIED
    assert "1 session" in steps(revocation)["sessions ended"].detail


def test_without_a_responding_account_none_seen_by_whom_sees_all_is_verified(held: Held) -> None:
    Database.objects.update(respond=None)
    held.lease.refresh_from_db()
    assert revoked(held.lease).state == RevocationState.VERIFIED


def test_an_account_that_may_not_end_them_says_what_it_lacks_and_names_them(configured: World, held: Held) -> None:
    admin(configured, "REVOKE pg_signal_backend FROM leasehold_responder")
    session = held.connect()
    try:
        revocation = revoked(held.lease)
    finally:
        admin(configured, "GRANT pg_signal_backend TO leasehold_responder")
    assert lives(session)
    assert revocation.state == RevocationState.UNVERIFIED
    said = steps(revocation)["sessions ended"]
    assert said.outcome == "failed"
    assert f"{session.info.backend_pid} from 127.0.0.1:" in said.detail
    assert 'GRANT pg_read_all_stats, pg_signal_backend TO "leasehold_responder"' in said.detail
    again(revocation)
    assert not lives(session)
    assert revocation.state == RevocationState.VERIFIED


def test_a_wrong_password_ends_nothing_is_told_and_is_not_repeated(
    configured: World, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = configured.folder / "orders-respond.dsn"
    right = file.read_text()
    file.write_text(right.replace(str(urlsplit(right).password), "surely-not-this-one"))
    session = held.connect()
    revocation = revoked(held.lease)
    assert lives(session)
    assert revocation.state == RevocationState.UNVERIFIED
    told = steps(revocation)
    # the account that looks sees for it
    assert told["sessions seen"].outcome == "ok"
    assert "authentication failed" in told["sessions ended"].detail
    everything = caplog.text + "".join(step.detail for step in told.values()) + repr(revocation.sessions)
    assert "surely-not-this-one" not in everything
    assert held.data["password"] not in everything


def test_a_database_that_does_not_answer_holds_no_revocation_up_and_is_not_waited_for_again(
    configured: World, hold: Callable[[], Held]
) -> None:
    nowhere = f"postgresql://someone:secret-word@127.0.0.1:{processes.free_port()}/orders"
    held, next_one = hold(), hold()
    for name in ("orders.dsn", "orders-respond.dsn"):
        (configured.folder / name).write_text(nowhere)
    session = held.connect()
    revocation = revoked(held.lease)
    assert revocation.state == RevocationState.UNVERIFIED
    told = steps(revocation)
    assert told["Vault answered"].outcome == told["lease gone"].outcome == "ok"
    assert told["sessions seen"].outcome == told["sessions ended"].outcome == "unverified"
    assert "cannot be reached" in told["sessions seen"].detail
    assert "secret-word" not in repr([step.detail for step in told.values()])
    assert lives(session)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(nowhere, connect_timeout=1)
    # what it was is remembered, not asked for again
    (configured.folder / "orders-respond.dsn").unlink()
    assert "cannot be reached" in steps(revoked(next_one.lease))["sessions seen"].detail


def test_a_wrong_address_of_the_account_that_ends_leaves_the_one_that_looks(configured: World, held: Held) -> None:
    nowhere = f"postgresql://someone:secret-word@127.0.0.1:{processes.free_port()}/orders"
    (configured.folder / "orders-respond.dsn").write_text(nowhere)
    session = held.connect()
    revocation = revoked(held.lease)
    assert lives(session)
    told = steps(revocation)
    assert (told["sessions seen"].outcome, told["sessions ended"].outcome) == ("ok", "failed")
    assert f"{session.info.backend_pid} from 127.0.0.1:" in told["sessions ended"].detail
    assert "cannot be reached" in told["sessions ended"].detail


def test_a_number_that_was_learned_on_another_server_is_not_used(held: Held) -> None:
    session = held.connect()
    seen = ending.snapshot(held.lease)
    held.world.admin.sys.revoke_lease(held.lease.lease_id)
    assert ending.snapshot(held.lease, before=seen).backends == seen.backends
    elsewhere = replace(seen, server=replace(seen.server, identity="postgresql 7 10.0.0.9:5432"))
    with pytest.raises(UserForgotten):
        ending.snapshot(held.lease, before=elsewhere)
    assert lives(session)


def test_what_could_not_be_seen_before_is_found_afterwards_by_the_number_that_samples_knew(
    configured: World, held: Held
) -> None:
    session = held.connect()
    database = Database.objects.select_related("vault").get(name="orders")
    sessions.sample_database(database, now=timezone.now())
    file = configured.folder / "orders-respond.dsn"
    right = file.read_text()
    Database.objects.update(monitor=None)
    file.unlink()
    held.lease.refresh_from_db()
    action = revoke.request(leases=[held.lease], by="ada", reason="drill", now=timezone.now())
    revocation = action.revocations.get()
    revoke.carry_out(revocation.pk)
    revocation.refresh_from_db()
    assert revocation.state == RevocationState.UNVERIFIED
    assert revocation.sessions is None
    assert "orders-respond.dsn" in steps(revocation)["sessions seen"].detail
    file.write_text(right)
    assert lives(session)
    assert ending.finish(held.lease, None).outcome == "ok"
    assert not lives(session)


def test_a_dropped_user_whose_number_nobody_knew_is_told_so_where_others_left_sessions(
    configured: World, hold: Callable[[], Held]
) -> None:
    held, other = hold(), hold()
    configured.admin.sys.revoke_lease(held.lease.lease_id)
    # nobody left any: then this one did not either
    assert ending.finish(held.lease, None).outcome == "ok"
    session = other.connect()
    configured.admin.sys.revoke_lease(other.lease.lease_id)
    ended = ending.finish(held.lease, None)
    assert ended.outcome == "unverified"
    assert "the number that it had is not known" in ended.detail
    assert lives(session)


def test_a_guess_is_not_enough_to_end_a_session(held: Held) -> None:
    Lease.objects.update(database_user_by="time and name")
    held.lease.refresh_from_db()
    session = held.connect()
    revocation = revoked(held.lease)
    assert lives(session)
    assert revocation.state == RevocationState.UNVERIFIED
    assert "is a guess by time and name, so none of its sessions is ended" in steps(revocation)["sessions ended"].detail


def test_another_server_behind_the_address_proves_nothing(held: Held) -> None:
    session = held.connect()
    seen = ending.snapshot(held.lease)
    elsewhere = replace(seen, server=replace(seen.server, identity="postgresql 7 10.0.0.9:5432", data="postgresql 7 "))
    assert held.lease.database is not None
    ended = ending.end(held.lease.database, replace(elsewhere, backends=()))
    assert ended.outcome == "unverified"
    assert "before it was postgresql 7 10.0.0.9:5432" in ended.detail
    assert lives(session)
    # the same one at another address of its own
    here = replace(seen, server=replace(seen.server, identity=seen.server.data + "10.0.0.9:5432"))
    assert ending.end(held.lease.database, here).outcome == "ok"


def test_the_server_itself_ends_all_by_a_restart(configured: World, held: Held) -> None:
    seen = ending.snapshot(held.lease)
    assert held.lease.database is not None
    started_at = seen.server.started_at
    assert started_at is not None
    before = replace(seen, server=replace(seen.server, started_at=started_at - timedelta(hours=1)))
    assert ending.end(held.lease.database, before).outcome == "ok"


# --- workers that are lost ---------------------------------------------------------------------------------------


def test_a_worker_that_is_lost_after_the_look_leaves_what_it_saw_to_the_next(held: Held) -> None:
    session = held.connect()
    action = revoke.request(leases=[held.lease], by="ada", reason="drill", now=timezone.now())
    revocation = action.revocations.get()
    assert revoke.begin(revocation)
    revoke._see_sessions(revocation, again=False)
    # Vault was told, and nobody noted its answer
    held.world.admin.sys.revoke_lease(held.lease.lease_id)
    Revocation.objects.update(claimed_until=timezone.now() - timedelta(minutes=1))
    revoke.carry_out(revocation.pk)
    revocation.refresh_from_db()
    assert not lives(session)
    assert revocation.state == RevocationState.VERIFIED
    assert steps(revocation)["Vault answered"].outcome == "unverified"


def test_while_vault_is_waited_for_the_same_sight_is_noted_once(held: Held) -> None:
    held.connect()
    action = revoke.request(leases=[held.lease], by="ada", reason="drill", now=timezone.now())
    revocation = action.revocations.get()
    revoke._see_sessions(revocation, again=False)
    revoke._see_sessions(revocation, again=True)
    assert action.steps.filter(name="sessions seen").count() == 1
    held.connect()
    revoke._see_sessions(revocation, again=True)
    assert action.steps.filter(name="sessions seen").count() == 2
    revocation.refresh_from_db()
    kept = ending.thaw(revocation.sessions)
    assert kept is not None
    assert len(kept.backends) == 2


# --- its password from Vault, and what is missing ----------------------------------------------------------------


@pytest.fixture
def static(configured: World) -> Iterator[Database]:
    """The account's password is Vault's, which rotates it; only the responding account may read it."""
    configured.postgres.create_role("vaults_responder")
    admin(
        configured,
        "GRANT pg_read_all_stats, pg_signal_backend TO vaults_responder",
        "GRANT vaults_responder TO openbao_orders WITH ADMIN OPTION",
    )
    vault = configured.admin
    before = vault.read("database/config/orders")["data"]["allowed_roles"]
    vault.write_data(
        "database/config/orders",
        data={"allowed_roles": [*before, "leasehold-respond"], "verify_connection": False},
    )
    vault.write_data(
        "database/static-roles/leasehold-respond",
        data={"db_name": "orders", "username": "vaults_responder", "rotation_period": "1h"},
    )
    address = f"postgresql://127.0.0.1:{configured.postgres.port}/orders"
    Database.objects.filter(name="orders").update(respond={"static_role": "leasehold-respond", "address": address})
    monitors.forget()
    yield Database.objects.select_related("vault").get(name="orders")
    monitors.forget()
    vault.sys.create_or_update_policy("leasehold-respond", POLICY.read_text())
    vault.delete("database/static-roles/leasehold-respond")
    vault.write_data("database/config/orders", data={"allowed_roles": before, "verify_connection": False})


def commented(line: str) -> str:
    """A rule that the delivered policy has as a comment, taken out of it."""
    text = POLICY.read_text()
    begin = text.index(f'# path "{line}"')
    rule = text[begin : text.index("# }", begin) + 3]
    return "\n".join(row.removeprefix("# ") for row in rule.splitlines()) + "\n"


def test_the_responding_client_reads_its_password_from_vault_and_the_observing_one_may_not(
    configured: World, static: Database, held: Held
) -> None:
    with pytest.raises(VaultDenied, match="database/static-creds/leasehold-respond") as caught:
        clients.ask_responder(static, lambda kind, dsn: kind.check_responder(dsn))
    assert 'path "database/static-creds/leasehold-respond" { capabilities = ["read"] }' in caught.value.fix
    policy = POLICY.read_text() + commented("database/static-creds/leasehold-respond")
    configured.admin.sys.create_or_update_policy("leasehold-respond", policy)
    session = held.connect()
    held.lease.refresh_from_db()
    assert revoked(held.lease).state == RevocationState.VERIFIED
    assert not lives(session)
    with pytest.raises(VaultDenied):
        clients.observer(static.vault).database_credential("database/static-creds/leasehold-respond")


def test_what_the_account_may_not_do_is_told_before_it_is_needed(configured: World) -> None:
    def told() -> doctor.Finding:
        return next(one for one in doctor.examine() if one.what == "database demo/database/orders, ending sessions")

    database = Database.objects.select_related("vault").get(name="orders")
    assert told() == doctor.Finding("database demo/database/orders, ending sessions", True)
    admin(configured, "REVOKE pg_signal_backend FROM leasehold_responder")
    try:
        with pytest.raises(MayNotEnd):
            checks.check_responding(database)
        assert "GRANT pg_read_all_stats, pg_signal_backend" in told().fix
    finally:
        admin(configured, "GRANT pg_signal_backend TO leasehold_responder")
    Database.objects.update(respond=None)
    assert (told().ok, "Sessions of a revoked lease live on in orders" in told().hint) == (True, True)
    # nothing can be revoked: nothing to say
    Vault.objects.update(respond=None)
    assert told().hint == ""


def test_a_user_that_is_known_by_its_hash_is_enough(configured: World) -> None:
    pod = configured.pod("billing-api")
    lease_id = workers.issue(pod)
    database = Database.objects.get(name="billing")
    users.match(database, users.unknown_names(database), now=timezone.now())
    seen: Backends = ending.snapshot(Lease.objects.select_related("database__vault").get(lease_id=lease_id))
    assert seen.backends == ()
