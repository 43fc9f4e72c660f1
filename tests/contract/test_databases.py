"""What every module of leases/databases gives, held against a real server of each kind (tests/contract/kinds.py)."""

import logging
import re
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from demo import processes
from leases import databases
from leases.databases import (
    Backends,
    DatabaseDenied,
    DatabaseError,
    DatabaseUnreachable,
    Kind,
    MayNotEnd,
    Sample,
    SeenSession,
    SessionsHidden,
    UnknownKind,
)
from leases.databases.kept import keeping
from tests.contract.kinds import KINDS, Client, Subject

_NAME = "v-kubernet-my-role-AbCdEfGhIjKl"
_OTHER = "v-kubernet-other-MnOpQrStUvWx"


@pytest.fixture(scope="module", params=[pytest.param(kind, id=kind.word, marks=kind.marks) for kind in KINDS])
def subject(request: pytest.FixtureRequest, run_folder: Path) -> Iterator[Subject]:
    """A server of its own, which a test may restart."""
    server: Subject = request.param(run_folder / f"contract-{request.param.word}")
    yield server
    server.stop()


@pytest.fixture
def kind(subject: Subject) -> Iterator[Kind]:
    """The module that speaks to it. What a test made is dropped."""
    yield databases.get(subject.word)
    for name in (_NAME, _OTHER):
        subject.drop_user(name)


@pytest.fixture
def user(subject: Subject, kind: Kind) -> str:
    subject.make_user(_NAME)
    return _NAME


@pytest.fixture
def client(subject: Subject, user: str) -> Iterator[Client]:
    """An open session of that user."""
    opened = subject.connect(user)
    yield opened
    opened.close()


def one(sample: Sample) -> SeenSession:
    (session,) = sample.sessions
    return session


def test_every_word_of_the_configuration_is_held_to_this() -> None:
    assert {databases.get(word) for word in databases.kinds()} == {databases.get(kind.word) for kind in KINDS}


def test_an_unknown_kind_is_named() -> None:
    assert databases.kinds() == ("postgresql", "mariadb", "mysql")
    with pytest.raises(UnknownKind, match="'oracle' cannot be read"):
        databases.get("oracle")


# the account


def test_a_sample_names_the_database_of_its_account(subject: Subject, kind: Kind) -> None:
    address = urlsplit(subject.account("contract_here"))._replace(path="/orders").geturl()
    assert kind.sample(address, with_users=False).database == "orders"


def test_the_account_of_the_docs_is_enough(subject: Subject, kind: Kind, user: str) -> None:
    kind.check(subject.monitor)
    assert [found.name for found in kind.dynamic_users(subject.monitor)] == [user]
    assert kind.user_exists(subject.monitor, user)
    assert kind.sample(subject.monitor, with_users=True).users is not None


def test_an_account_that_may_only_log_in_is_told_so_and_never_that_nobody_is_there(
    subject: Subject, kind: Kind, client: Client
) -> None:
    for ask in (kind.check, lambda dsn: kind.sample(dsn, with_users=False)):
        with pytest.raises(DatabaseDenied, match=r"GRANT .* TO .*contract_bare"):
            ask(subject.bare)


def test_a_wrong_password_is_denied_and_not_repeated(
    subject: Subject, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = subject.monitor.replace(str(urlsplit(subject.monitor).password), "surely-not-this-one")
    with pytest.raises(DatabaseDenied) as caught:
        kind.check(wrong)
    assert "contract_monitor" in caught.value.cause
    assert "Check user" in caught.value.fix
    assert "surely-not-this-one" not in f"{caught.value} {caught.value.__cause__!r} {caplog.text}"


def test_a_server_that_is_not_there_is_unreachable_and_named(subject: Subject, kind: Kind) -> None:
    port = processes.free_port()
    with pytest.raises(
        DatabaseUnreachable, match=f"(?i){subject.word} at 127.0.0.1:{port} cannot be reached"
    ) as caught:
        kind.sample(f"{subject.scheme}://someone:secret-word@127.0.0.1:{port}/orders", with_users=True)
    assert "secret-word" not in str(caught.value)


def test_a_host_that_has_no_address_is_unreachable(subject: Subject, kind: Kind) -> None:
    with pytest.raises(DatabaseUnreachable):
        kind.check(f"{subject.scheme}://someone:secret-word@no-such-host.invalid/orders")


@pytest.mark.parametrize("address", ["oracle://someone:secret-word@host/orders", "someone:secret-word"])
def test_an_address_that_is_none_is_told_without_repeating_it(subject: Subject, kind: Kind, address: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        kind.check(address)
    assert "secret-word" not in "".join(traceback.format_exception(caught.value, limit=0))
    assert f"{subject.scheme}://" in caught.value.fix


# users


def test_dynamic_users_are_those_that_vault_named_in_order(subject: Subject, kind: Kind, user: str) -> None:
    subject.make_user(_OTHER)
    users = kind.dynamic_users(subject.monitor)
    assert [found.name for found in users] == [_NAME, _OTHER]
    sampled = kind.sample(subject.monitor, with_users=True).users
    assert sampled is not None
    assert sorted(sampled, key=lambda found: found.name) == users
    assert kind.sample(subject.monitor, with_users=False).users is None


def test_a_server_without_dynamic_users_has_none(subject: Subject, kind: Kind) -> None:
    assert kind.dynamic_users(subject.monitor) == []
    sample = kind.sample(subject.monitor, with_users=True)
    assert (sample.users, sample.sessions) == ((), ())


def test_a_user_exists_until_it_is_dropped(subject: Subject, kind: Kind) -> None:
    assert not kind.user_exists(subject.monitor, _NAME)
    subject.make_user(_NAME)
    assert kind.user_exists(subject.monitor, _NAME)
    assert not kind.user_exists(subject.monitor, _NAME.lower())
    assert not kind.user_exists(subject.monitor, _NAME[:-1])
    subject.drop_user(_NAME)
    assert not kind.user_exists(subject.monitor, _NAME)


# sessions


def test_a_sample_shows_who_is_connected_from_where_to_what(
    subject: Subject, kind: Kind, user: str, client: Client
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    sample = kind.sample(subject.monitor, with_users=False)
    session = one(sample)
    assert (session.user, session.database) == (user, "orders")
    assert (session.address, session.port) == ("127.0.0.1", client.port)
    assert session.state
    assert session.pid > 0
    # some servers do not tell when a session began
    assert session.started_at is None or before - timedelta(minutes=1) < session.started_at <= sample.at
    assert before < sample.at < datetime.now(UTC) + timedelta(seconds=2)
    assert sample.at.tzinfo is UTC
    assert 0 < sample.took_ms < 200
    assert sample.server.version[0].isdecimal()


def test_a_session_has_one_key_in_all_samples_and_another_one_has_another(
    subject: Subject, kind: Kind, user: str, client: Client
) -> None:
    key, second = one(kind.sample(subject.monitor, with_users=False)).key, subject.connect(user)
    keys = set()
    # over the turn of at least one second
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        keys |= {session.key for session in kind.sample(subject.monitor, with_users=False).sessions}
    second.close()
    assert key in keys
    assert len(keys) == 2


def test_a_session_that_ended_is_not_in_the_next_sample(subject: Subject, kind: Kind, client: Client) -> None:
    assert len(kind.sample(subject.monitor, with_users=False).sessions) == 1
    client.close()
    processes.wait_until(
        lambda: not kind.sample(subject.monitor, with_users=False).sessions, what="its end in a sample", seconds=5
    )


def test_sessions_of_others_are_left_out_and_own_ones_too_when_vault_made_the_account(
    subject: Subject, kind: Kind, user: str, client: Client
) -> None:
    subject.make_user("contract_somebody")
    dsn = subject.account(_OTHER)
    other, own = subject.connect("contract_somebody"), subject.connect(_OTHER, database="")
    sample = kind.sample(dsn, with_users=True)
    other.close()
    own.close()
    assert one(sample).user == user
    assert sample.users is not None
    assert {found.name for found in sample.users} == {user}


def test_a_session_whose_user_was_dropped_is_still_told(
    subject: Subject, kind: Kind, user: str, client: Client
) -> None:
    before = one(kind.sample(subject.monitor, with_users=False))
    subject.drop_user(user)
    sample = kind.sample(subject.monitor, with_users=True)
    after = one(sample)
    assert after.key == before.key
    # by its name, or by what is left of it
    assert after.user == user or (after.user == "" and after.user_oid == before.user_oid is not None)
    assert (before.user_is_gone, after.user_is_gone) == (False, True)
    assert sample.users == ()


# ending sessions


def backends(subject: Subject, kind: Kind, *, oid: int | None = None) -> Backends:
    return kind.backends(subject.responder, _NAME, user_oid=oid)


def test_a_users_sessions_are_told_on_the_whole_server_each_by_the_key_of_samples(
    subject: Subject, kind: Kind, user: str, client: Client
) -> None:
    subject.make_user(_OTHER)
    other, second = subject.connect(_OTHER, database=""), subject.connect(user, database="")
    sample, found = kind.sample(subject.monitor, with_users=False), backends(subject, kind)
    other.close()
    assert {seen.key for seen in found.backends} == {seen.key for seen in sample.sessions if seen.user == user}
    assert {seen.port for seen in found.backends} == {client.port, second.port}
    assert {(seen.user, seen.address) for seen in found.backends} == {(user, "127.0.0.1")}
    assert (found.server.identity, found.server.started_at) == (sample.server.identity, sample.server.started_at)
    # what only looks sees the same
    assert kind.backends(subject.monitor, user) == found
    second.close()


def test_a_user_without_sessions_has_none(subject: Subject, kind: Kind, user: str) -> None:
    assert backends(subject, kind).backends == ()


def test_what_was_seen_is_ended_and_nothing_else(subject: Subject, kind: Kind, user: str, client: Client) -> None:
    subject.make_user(_OTHER)
    second, other = subject.connect(user, database=""), subject.connect(_OTHER)
    seen = backends(subject, kind)
    later = subject.connect(user)
    ended = kind.terminate(subject.responder, seen.backends, seconds=3)
    assert ended.told == {backend.key for backend in seen.backends}
    assert ended.survivors == frozenset()
    assert ended.server == seen.server
    assert [one.lives() for one in (client, second, later, other)] == [False, False, True, True]
    assert {backend.port for backend in backends(subject, kind).backends} == {later.port}
    later.close()
    other.close()


def test_ending_what_has_ended_does_nothing(subject: Subject, kind: Kind, client: Client) -> None:
    seen = backends(subject, kind)
    client.close()
    processes.wait_until(lambda: not backends(subject, kind).backends, what="its end", seconds=5)
    ended = kind.terminate(subject.responder, seen.backends, seconds=3)
    assert (ended.told, ended.survivors) == (frozenset(), frozenset())
    assert kind.terminate(subject.responder, (), seconds=3).told == frozenset()


def test_another_session_under_the_same_number_lives_on(subject: Subject, kind: Kind, client: Client) -> None:
    (seen,) = backends(subject, kind).backends
    began_at = seen.began_at and seen.began_at - timedelta(microseconds=1)
    start, _, number = seen.key.partition(".")
    # as it was before its number came back
    before = replace(seen, key=f"{int(start, 16) - 1:x}.{number}", began_at=began_at)
    ended = kind.terminate(subject.responder, [before], seconds=3)
    assert (ended.told, ended.survivors) == (frozenset(), frozenset())
    assert client.lives()


def test_sessions_of_a_dropped_user_are_told_and_ended(subject: Subject, kind: Kind, user: str, client: Client) -> None:
    seen, late = backends(subject, kind), subject.connect(user)
    subject.drop_user(user)
    assert client.lives()
    after = backends(subject, kind, oid=seen.user_oid)
    assert {backend.port for backend in after.backends} == {client.port, late.port}
    assert set(seen.backends) < set(after.backends)
    assert kind.terminate(subject.responder, after.backends, seconds=3).survivors == frozenset()
    assert [client.lives(), late.lives()] == [False, False]
    assert backends(subject, kind, oid=seen.user_oid).backends == ()


def test_a_session_in_the_middle_of_a_statement_is_ended(subject: Subject, kind: Kind, user: str) -> None:
    sleeping = subject.connect(user)
    asleep = threading.Thread(target=sleeping.sleep)
    asleep.start()
    processes.wait_until(
        lambda: any(
            one.state in {"active", "Query"} for one in kind.sample(subject.monitor, with_users=False).sessions
        ),
        what="its statement",
        seconds=5,
    )
    assert kind.terminate(subject.responder, backends(subject, kind).backends, seconds=3).survivors == frozenset()
    asleep.join(5)
    assert not asleep.is_alive()
    sleeping.close()


def test_after_a_restart_nothing_of_what_was_seen_is_there(
    subject: Subject, kind: Kind, user: str, client: Client
) -> None:
    seen = backends(subject, kind)
    time.sleep(1.1)
    subject.restart()
    opened = subject.connect(user)
    ended = kind.terminate(subject.responder, seen.backends, seconds=3)
    assert (ended.told, ended.survivors) == (frozenset(), frozenset())
    assert ended.server.identity == seen.server.identity
    assert opened.lives()
    opened.close()


def test_the_responding_account_of_the_docs_is_enough_and_others_are_told_what_they_lack(
    subject: Subject, kind: Kind, client: Client
) -> None:
    kind.check_responder(subject.responder)
    seen = backends(subject, kind).backends
    for try_it in (kind.check_responder, lambda dsn: kind.terminate(dsn, seen, seconds=1)):
        with pytest.raises(MayNotEnd, match=r"contract_monitor.* may not end other users' sessions") as caught:
            try_it(subject.monitor)
        assert re.search(r"GRANT .* TO .*contract_monitor", caught.value.fix)
        # blind, it would take all for ended
        with pytest.raises(SessionsHidden, match=r"GRANT .* TO .*contract_bare"):
            try_it(subject.bare)
    with pytest.raises(SessionsHidden):
        kind.backends(subject.bare, _NAME)
    assert client.lives()


def test_what_is_to_be_typed_by_hand_ends_them(subject: Subject, kind: Kind, user: str, client: Client) -> None:
    second = subject.connect(user)
    seen = backends(subject, kind)
    subject.drop_user(user)
    subject.run(kind.by_hand(seen))
    processes.wait_until(lambda: not client.lives() and not second.lives(), what="their end", seconds=5)
    second.close()


def test_a_server_is_the_same_after_a_restart_and_its_sessions_are_others(
    subject: Subject, kind: Kind, user: str, client: Client
) -> None:
    before = kind.sample(subject.monitor, with_users=False)
    # the second in which a server came up is part of the keys
    time.sleep(1.1)
    subject.restart()
    opened = subject.connect(user)
    after = kind.sample(subject.monitor, with_users=False)
    opened.close()
    assert after.server.identity == before.server.identity
    assert before.server.started_at is not None
    assert after.server.started_at is not None
    assert before.server.started_at < after.server.started_at <= after.at
    assert one(before).key != one(after).key


def test_a_connection_that_is_kept_answers_the_next_question_and_one_that_broke_is_replaced(
    subject: Subject, kind: Kind, user: str
) -> None:
    with keeping():
        assert kind.user_exists(subject.monitor, user)
        subject.make_user(_OTHER)
        # what it answers is of now, though its connection is older
        assert kind.user_exists(subject.monitor, _OTHER)
        assert kind.backends(subject.monitor, user).backends == ()
        subject.restart()
        with pytest.raises(DatabaseError):
            kind.user_exists(subject.monitor, user)
        assert kind.user_exists(subject.monitor, user)
    assert kind.user_exists(subject.monitor, user)


def test_two_servers_are_told_apart(subject: Subject, kind: Kind, run_folder: Path) -> None:
    second: Subject = next(one for one in KINDS if one.word == subject.word)(run_folder / f"second-{subject.word}")
    try:
        identities = {kind.sample(dsn, with_users=False).server.identity for dsn in (subject.monitor, second.monitor)}
    finally:
        second.stop()
    assert len(identities) == 2
    # and what is down is unreachable, not empty
    with pytest.raises(DatabaseUnreachable):
        kind.sample(second.monitor, with_users=False)
