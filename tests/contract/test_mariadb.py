"""What leases/databases/mariadb.py relies on beyond the contract of all kinds, held against a real MariaDB."""

import contextlib
import re
import secrets
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pymysql
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from demo import mariadb as server_in_a_folder
from demo import processes
from demo.mariadb import MariaDB
from leases.databases import (
    DatabaseDenied,
    DatabaseError,
    DatabaseUnreachable,
    MayNotEnd,
    SeenSession,
    SessionsHidden,
    mariadb,
)
from tests.contract.kinds import MONITOR_GRANTS, NO_MARIADB, RESPONDER_GRANTS, port_of

pytestmark = NO_MARIADB
_NAME = "v-kubernetes-my-role-AbCdEfGhIjK"


@pytest.fixture(scope="module")
def server(run_folder: Path) -> Iterator[MariaDB]:
    started = server_in_a_folder.start(run_folder / "mariadb")
    started.execute("CREATE DATABASE orders")
    yield started
    started.stop()


@pytest.fixture
def monitor(server: MariaDB) -> str:
    server.create_user("contract_monitor", *MONITOR_GRANTS)
    return server.dsn("contract_monitor")


@pytest.fixture
def responder(server: MariaDB) -> str:
    server.create_user("contract_responder", *RESPONDER_GRANTS)
    return server.dsn("contract_responder")


@pytest.fixture
def with_settings(server: MariaDB) -> Iterator[Callable[..., None]]:
    """Restarts the server with further settings, and after the test without them."""
    yield server.restart
    server.restart()


@pytest.fixture
def session(server: MariaDB) -> Iterator["pymysql.Connection[pymysql.cursors.Cursor]"]:
    """An open session of a dynamic user."""
    server.create_user(_NAME)
    with closing(server.connect(_NAME)) as opened:
        yield opened
    server.execute(f"DROP USER '{_NAME}'@'%'")


def password_of(server: MariaDB, name: str) -> str:
    return str(urlsplit(server.dsn(name)).password)


def seen(dsn: str) -> SeenSession:
    (one,) = mariadb.sample(dsn, with_users=False).sessions
    return one


# the account


def test_without_process_the_missing_grant_is_named_by_check_and_by_each_sample(server: MariaDB) -> None:
    server.create_user("contract_blind", "SELECT (User) ON mysql.user")
    blind = server.dsn("contract_blind")
    for ask in (mariadb.check, lambda dsn: mariadb.sample(dsn, with_users=False)):
        with pytest.raises(SessionsHidden, match="may not see other users' sessions") as caught:
            ask(blind)
        assert "GRANT PROCESS ON *.* TO 'contract_blind'@'%'" in caught.value.fix
    # users are told all the same
    assert mariadb.dynamic_users(blind) == []
    assert not mariadb.user_exists(blind, _NAME)


def test_without_the_names_of_users_the_missing_grant_is_named(server: MariaDB) -> None:
    server.create_user("contract_nameless", "PROCESS ON *.*")
    nameless = server.dsn("contract_nameless")
    for ask in (
        mariadb.check,
        mariadb.dynamic_users,
        lambda dsn: mariadb.user_exists(dsn, _NAME),
        # whether the user of a session is still there is part of each sample
        lambda dsn: mariadb.sample(dsn, with_users=False),
    ):
        with pytest.raises(DatabaseDenied, match="may not read the names of users") as caught:
            ask(nameless)
        assert "GRANT SELECT (User) ON mysql.user TO 'contract_nameless'@'%'" in caught.value.fix


def test_what_else_is_refused_is_named_in_the_servers_words(monitor: str) -> None:
    with (
        pytest.raises(DatabaseDenied, match=r"may not read what a sample needs: .*global_priv"),
        mariadb._session(monitor) as asking,
    ):
        mariadb._ask(asking, "SELECT * FROM mysql.global_priv")


def test_a_question_that_the_server_does_not_know_is_no_matter_of_reaching_it(monitor: str) -> None:
    for unknown, told in (
        ("@@no_such_thing", "does not answer the question: Unknown system variable"),
        # as MariaDB 10.4 says of JSON_ARRAYAGG
        ("JSON_NO_SUCH(1)", "is too old to be asked: .*JSON_NO_SUCH"),
    ):
        with pytest.raises(DatabaseError, match=told) as caught, mariadb._session(monitor) as asking:
            mariadb._ask(asking, f"SELECT {unknown}")
        assert type(caught.value) is DatabaseError


def test_an_answer_that_is_no_sample_is_told_without_its_values(monitor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = mariadb._FOR_MARIADB.replace("AS users", "AS users_, '[\"v-secret' AS users")
    monkeypatch.setattr(mariadb, "_FOR_MARIADB", cut)
    with pytest.raises(DatabaseError, match="is no sample of sessions") as caught:
        mariadb.sample(monitor, with_users=True)
    assert "v-secret" not in str(caught.value)


def test_rights_may_come_by_a_role(server: MariaDB, session: object) -> None:
    server.execute("CREATE OR REPLACE ROLE watchers", *(f"GRANT {grant} TO watchers" for grant in MONITOR_GRANTS))
    server.create_user("contract_by_role")
    server.execute("GRANT watchers TO contract_by_role@'%'", "SET DEFAULT ROLE watchers FOR contract_by_role@'%'")
    mariadb.check(server.dsn("contract_by_role"))
    assert seen(server.dsn("contract_by_role")).user == _NAME


def test_the_right_to_end_sessions_may_come_by_a_role_too(server: MariaDB, session: object) -> None:
    server.execute("CREATE ROLE enders", *(f"GRANT {grant} TO enders" for grant in RESPONDER_GRANTS))
    server.create_user("contract_ends_by_role")
    dsn = server.dsn("contract_ends_by_role")
    server.execute("GRANT enders TO contract_ends_by_role@'%'")
    # a role that is not the default one gives nothing
    with pytest.raises(SessionsHidden):
        mariadb.check_responder(dsn)
    server.execute("SET DEFAULT ROLE enders FOR contract_ends_by_role@'%'")
    mariadb.check_responder(dsn)
    found = mariadb.backends(dsn, _NAME).backends
    assert mariadb.terminate(dsn, found, seconds=3).survivors == frozenset()


def test_a_right_in_one_database_ends_no_sessions(server: MariaDB) -> None:
    server.create_user("contract_owner", "PROCESS ON *.*", "ALL PRIVILEGES ON orders.*")
    with pytest.raises(MayNotEnd, match="may not end other users' sessions") as caught:
        mariadb.check_responder(server.dsn("contract_owner"))
    # what the server says of grants holds the password's hash
    assert not re.search(r"\*[0-9A-F]{40}", "".join(traceback.format_exception(caught.value)))


def test_a_session_that_still_rolls_back_is_a_survivor_until_it_is_gone(server: MariaDB, responder: str) -> None:
    server.create_user(_NAME, "ALL PRIVILEGES ON orders.*")
    with closing(server.connect(_NAME, "orders")) as busy, busy.cursor() as cursor:
        cursor.execute("CREATE TABLE many (id bigint PRIMARY KEY, words text)")
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO many SELECT seq, REPEAT('x', 200) FROM seq_1_to_300000")
        found = mariadb.backends(responder, _NAME).backends
        ended = mariadb.terminate(responder, found, seconds=0)
        assert ended.told == ended.survivors == {found[0].key}
        processes.wait_until(lambda: not mariadb.backends(responder, _NAME).backends, what="its rollback", seconds=60)
        assert mariadb.terminate(responder, found, seconds=0).survivors == frozenset()
    server.execute(f"DROP USER '{_NAME}'@'%'", "DROP TABLE orders.many")


def test_many_sessions_are_ended_and_what_prints_the_words_for_them_is_short(
    server: MariaDB, responder: str, session: object
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(closing(server.connect(_NAME)))
        found = mariadb.backends(responder, _NAME)
        words = mariadb.by_hand(found)
        with server.connect() as root, root.cursor() as cursor:
            cursor.execute(words.partition(";  --")[0].partition("; --")[0])
            printed = {row[0] for row in cursor.fetchall()}
        assert printed == {f"KILL CONNECTION {backend.pid};" for backend in found.backends}
        ended = mariadb.terminate(responder, found.backends, seconds=5)
        assert (len(ended.told), ended.survivors) == (41, frozenset())


def test_a_user_whose_name_differs_in_case_alone_keeps_its_sessions(
    server: MariaDB, responder: str, session: object
) -> None:
    server.create_user(_NAME.upper())
    with closing(server.connect(_NAME.upper())) as other:
        found = mariadb.backends(responder, _NAME).backends
        assert len(found) == 1
        mariadb.terminate(responder, found, seconds=3)
        other.ping(reconnect=False)
    server.execute(f"DROP USER '{_NAME.upper()}'@'%'")


def test_the_account_can_read_no_password_hash(server: MariaDB, monitor: str) -> None:
    with closing(server.connect("contract_monitor")) as opened, opened.cursor() as cursor:
        for statement in (
            "SELECT Password FROM mysql.user",
            "SELECT authentication_string FROM mysql.user",
            "SELECT * FROM mysql.global_priv",
        ):
            with pytest.raises(pymysql.OperationalError, match="denied"):
                cursor.execute(statement)


@pytest.mark.parametrize(
    "address", ["", "://", "mysql://", "mysql://someone:secret-word@:3306", "mysql://someone:secret-word@host:port"]
)
def test_an_address_without_a_host_is_none(address: str) -> None:
    with pytest.raises(DatabaseError, match="not one of MariaDB or MySQL") as caught:
        mariadb.check(address)
    assert "secret-word" not in "".join(traceback.format_exception(caught.value))


def test_a_locked_account_is_denied(server: MariaDB) -> None:
    server.create_user("contract_locked", *MONITOR_GRANTS)
    server.execute("ALTER USER contract_locked@'%' ACCOUNT LOCK")
    with pytest.raises(DatabaseDenied, match="locked"):
        mariadb.check(server.dsn("contract_locked"))


def test_an_account_that_may_not_come_from_here_is_denied(server: MariaDB) -> None:
    server.create_user("contract_elsewhere")
    server.execute("RENAME USER contract_elsewhere@'%' TO contract_elsewhere@'192.0.2.1'")
    with pytest.raises(DatabaseDenied, match="contract_elsewhere"):
        mariadb.check(server.dsn("contract_elsewhere"))


def test_any_password_can_stand_in_the_address(server: MariaDB) -> None:
    server.create_user("contract_special", *MONITOR_GRANTS)
    server.execute("SET PASSWORD FOR contract_special@'%' = PASSWORD('a/b@c:d?e#f%41 ű')")
    address = f"mysql://contract_special:a%2Fb%40c%3Ad%3Fe%23f%2541%20%C5%B1@127.0.0.1:{server.port}"
    mariadb.check(address)
    with pytest.raises(DatabaseDenied) as caught:
        mariadb.check(address.replace("%2541", "%2542"))
    assert "a/b@c" not in f"{caught.value} {caught.value.__cause__!r}"


# the session that it asks in


def test_a_session_is_read_only_limited_in_time_and_in_utc(server: MariaDB) -> None:
    with mariadb._session(server.dsn()) as asking:
        (row,) = mariadb._ask(
            asking, "SELECT @@max_statement_time AS time, @@lock_wait_timeout AS lock_, @@time_zone AS zone"
        )
        assert row == {"time": 5, "lock_": 2, "zone": "+00:00"}
        for statement in ("CREATE TABLE orders.never (id int)", "CREATE USER never", "DROP DATABASE orders"):
            with pytest.raises(pymysql.OperationalError, match="READ ONLY"):
                mariadb._ask(asking, statement)


def test_a_statement_that_takes_too_long_is_cut_off_by_the_server(
    server: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mariadb, "STATEMENT_TIMEOUT_SECONDS", 1)
    with (
        pytest.raises(DatabaseUnreachable, match="did not answer within 1 s"),
        mariadb._session(server.dsn()) as asking,
    ):
        mariadb._ask(asking, "SELECT SLEEP(5) FROM mysql.user")


def test_a_server_that_says_nothing_any_more_is_not_waited_for(
    server: MariaDB, monitor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mariadb, "STATEMENT_TIMEOUT_SECONDS", 1)
    server.process.send_signal(signal.SIGSTOP)  # the kernel still accepts connections
    try:
        with pytest.raises(DatabaseUnreachable, match="did not answer within 1 s"):
            mariadb.check(monitor)
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_a_full_server_is_unreachable(server: MariaDB, monitor: str) -> None:
    server.execute("SET GLOBAL max_connections = 10")
    taken = []
    try:
        with contextlib.suppress(pymysql.OperationalError):
            while True:
                taken.append(server.connect())
        with pytest.raises(DatabaseUnreachable, match="Too many connections"):
            mariadb.check(monitor)
    finally:
        with taken[0].cursor() as cursor:
            cursor.execute("SET GLOBAL max_connections = 2200")
        for opened in taken:
            opened.close()


# sessions


def test_five_hundred_sessions_are_told_by_one_query_of_few_milliseconds(server: MariaDB, monitor: str) -> None:
    server.create_user(_NAME)
    opened = [server.connect(_NAME) for _ in range(500)]
    with closing(server.connect()) as asking, asking.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Com_select'")
        before = int(cursor.fetchone()[1])  # type: ignore[index]
        sample = mariadb.sample(monitor, with_users=True)
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Com_select'")
        asked = int(cursor.fetchone()[1]) - before  # type: ignore[index]
    assert {one.port for one in sample.sessions} == {port_of(one) for one in opened}
    assert len({one.key for one in sample.sessions}) == 500
    assert asked == 1
    assert sample.took_ms < 200
    for one in opened:
        one.close()
    server.execute(f"DROP USER '{_NAME}'@'%'")


def test_a_session_keeps_the_name_of_its_dropped_user(server: MariaDB, monitor: str, session: object) -> None:
    server.execute(f"DROP USER '{_NAME}'@'%'")
    assert (seen(monitor).user, seen(monitor).user_is_gone) == (_NAME, True)
    assert not mariadb.user_exists(monitor, _NAME)
    server.create_user(_NAME)
    assert not seen(monitor).user_is_gone


def test_a_user_of_several_hosts_is_one(server: MariaDB, monitor: str, session: object) -> None:
    server.execute(f"CREATE USER '{_NAME}'@'10.0.0.1'")
    assert [user.name for user in mariadb.dynamic_users(monitor)] == [_NAME]
    users = mariadb.sample(monitor, with_users=True).users
    assert users is not None
    assert [user.name for user in users] == [_NAME]
    server.execute(f"DROP USER '{_NAME}'@'10.0.0.1'")
    assert mariadb.user_exists(monitor, _NAME)


def test_names_may_hold_anything(server: MariaDB, monitor: str) -> None:
    name, database = 'v-"ű\\n', 'a"b\\c, ű'
    server.create_user(name, "SELECT ON *.*")
    server.create_user("V-shouting")
    server.execute(f"CREATE DATABASE `{database}`")
    with closing(server.connect(name, database)), closing(server.connect("V-shouting")):
        sample = mariadb.sample(monitor, with_users=True)
    assert [(one.user, one.database) for one in sample.sessions] == [(name, database)]
    assert sample.users is not None
    assert [user.name for user in sample.users] == [user.name for user in mariadb.dynamic_users(monitor)] == [name]
    assert mariadb.user_exists(monitor, name)
    server.execute(f"DROP DATABASE `{database}`", "DROP USER 'V-shouting'@'%'", "DROP USER 'v-\"ű\\\\n'@'%'")


def test_a_local_socket_has_no_address(server: MariaDB, monitor: str, session: object) -> None:
    with closing(
        pymysql.connect(
            unix_socket=str(server.socket.relative_to(Path.cwd())),
            user=_NAME,
            password=password_of(server, _NAME),
        )
    ):
        places = {(one.address, one.port) for one in mariadb.sample(monitor, with_users=False).sessions}
    assert places == {("127.0.0.1", port_of(session)), ("", None)}  # type: ignore[arg-type]


def test_addresses_of_version_6_are_told(server: MariaDB, monitor: str, with_settings: Callable[..., None]) -> None:
    with_settings("bind-address=127.0.0.1,::1")
    server.create_user(_NAME)
    password = password_of(server, _NAME)
    with (
        closing(pymysql.connect(host="::1", port=server.port, user=_NAME, password=password)) as six,
        closing(server.connect(_NAME)) as four,
    ):
        places = {(one.address, one.port) for one in mariadb.sample(monitor, with_users=False).sessions}
        assert places == {("::1", port_of(six)), ("127.0.0.1", port_of(four))}
    mariadb.check(monitor.replace("127.0.0.1", "[::1]"))


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("10.0.0.7:50412", "10.0.0.7", 50412),
        ("fd00::7:50412", "fd00::7", 50412),
        ("::ffff:10.0.0.7:50412", "10.0.0.7", 50412),
        ("localhost", "", None),
        ("localhost:50412", "localhost", 50412),
        ("web-7.shop.svc:50412", "web-7.shop.svc", 50412),
        ("a-name-that-was-cut-off", "a-name-that-was-cut-off", None),
    ],
)
def test_what_the_process_list_calls_a_host(host: str, address: str, port: int | None) -> None:
    assert mariadb._address(host) == (address, port)


def test_a_server_that_tells_names_instead_of_addresses_does_so_and_no_name_is_made_an_address(
    server: MariaDB, monitor: str, with_settings: Callable[..., None]
) -> None:
    with_settings("skip-name-resolve=OFF")
    server.create_user(_NAME)
    with closing(server.connect(_NAME)) as opened:
        one = seen(monitor)
        # 127.0.0.1 has a name everywhere. It is no local socket, which would be an empty address
        assert (one.address, one.port) == ("localhost", port_of(opened))
    with pytest.raises(ValueError, match="localhost"):
        ip_address(one.address)


def test_a_sample_has_its_cost_also_where_the_clock_stands_still_within_a_statement(
    server: MariaDB, monitor: str, with_settings: Callable[..., None]
) -> None:
    with_settings("sysdate-is-now")
    sample = mariadb.sample(monitor, with_users=True)
    assert 0 < sample.took_ms < 200
    assert abs(sample.at - datetime.now(UTC)) < timedelta(seconds=2)


def test_times_are_in_utc_whatever_the_zone_of_the_server(
    server: MariaDB, monitor: str, with_settings: Callable[..., None]
) -> None:
    with_settings("default-time-zone=-09:30")
    sample = mariadb.sample(monitor, with_users=True)
    assert abs(sample.at - datetime.now(UTC)) < timedelta(seconds=2)
    assert sample.server.started_at is not None
    assert timedelta() <= sample.at - sample.server.started_at < timedelta(minutes=1)


# TLS


@pytest.fixture
def certificates(run_folder: Path) -> Callable[..., dict[str, Path]]:
    """certificates("127.0.0.1") gives paths of `ca`, and of `cert` and `key` of a server of that address."""

    def make(address: str) -> dict[str, Path]:
        folder = run_folder / f"tls-{secrets.token_hex(4)}"
        folder.mkdir()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        keys = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

        def certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool) -> bytes:
            builder = (
                x509.CertificateBuilder(issuer_name=name, subject_name=subject, public_key=key)
                .serial_number(x509.random_serial_number())
                .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
                .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
                .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            )
            if not authority:
                names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
                builder = builder.add_extension(names, critical=False)
            return builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
        paths = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
        paths["ca"].write_bytes(certificate(name, keys[0].public_key(), authority=True))
        paths["cert"].write_bytes(certificate(server_name, keys[1].public_key(), authority=False))
        paths["key"].write_bytes(
            keys[1].private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        for path in paths.values():
            path.chmod(0o644)
        return paths

    return make


def test_a_server_proves_who_it_is_where_an_authority_is_named(
    server: MariaDB,
    monitor: str,
    with_settings: Callable[..., None],
    certificates: Callable[..., dict[str, Path]],
) -> None:
    right, other = certificates("127.0.0.1"), certificates("127.0.0.1")
    with_settings(f"ssl-cert={right['cert']}", f"ssl-key={right['key']}", f"ssl-ca={right['ca']}")
    server.execute("ALTER USER contract_monitor@'%' REQUIRE SSL")
    mariadb.check(f"{monitor}?ssl_ca={right['ca']}")
    # without one it is encrypted where the server can
    mariadb.check(monitor)
    with mariadb._session(f"{monitor}?ssl_ca={right['ca']}") as asking:
        (row,) = mariadb._ask(asking, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        assert row["Value"]
    with pytest.raises(DatabaseError, match="certificate verify failed"):
        mariadb.check(f"{monitor}?ssl_ca={other['ca']}")


def test_a_certificate_of_another_host_is_refused_unless_the_address_says_so(
    server: MariaDB,
    monitor: str,
    with_settings: Callable[..., None],
    certificates: Callable[..., dict[str, Path]],
) -> None:
    paths = certificates("192.0.2.1")
    with_settings(f"ssl-cert={paths['cert']}", f"ssl-key={paths['key']}")
    with pytest.raises(DatabaseError, match="certificate verify failed"):
        mariadb.check(f"{monitor}?ssl_ca={paths['ca']}")
    mariadb.check(f"{monitor}?ssl_ca={paths['ca']}&ssl_verify_identity=false")
    other = certificates("192.0.2.1")
    with pytest.raises(DatabaseError, match="certificate verify failed"):
        mariadb.check(f"{monitor}?ssl_ca={other['ca']}&ssl_verify_identity=false")


def test_a_server_without_tls_gets_no_password_where_an_authority_is_named(
    server: MariaDB, monitor: str, certificates: Callable[..., dict[str, Path]]
) -> None:
    with pytest.raises(DatabaseError, match=r"(?i)ssl"):
        mariadb.check(f"{monitor}?ssl_ca={certificates('127.0.0.1')['ca']}")


@pytest.mark.parametrize("query", ["ssl_mode=REQUIRED", "ssl_cert=/x", "ssl_ca=/x&ssl_verify_identity=no", "ssl_ca"])
def test_a_parameter_that_is_not_known_is_refused(query: str) -> None:
    with pytest.raises(DatabaseError, match=r"TLS in a way that is not known|not one of MariaDB") as caught:
        mariadb.check(f"mysql://someone:secret-word@127.0.0.1/?{query}")
    assert "secret-word" not in str(caught.value)


def test_a_file_of_the_address_that_is_not_there_is_told(monitor: str) -> None:
    with pytest.raises(DatabaseError, match=r"cannot be used: .*No such file.*ssl_ca"):
        mariadb.check(f"{monitor}?ssl_ca=/no/such/file.pem")


# the server of the tests


def test_where_it_is_not_installed_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_in_a_folder, "_found", lambda name: None if name == "my_print_defaults" else tmp_path)
    assert (
        server_in_a_folder.why_not() == "no my_print_defaults: apt-get install mariadb-server-core mariadb-client-core"
    )
    monkeypatch.setattr(server_in_a_folder, "_found", lambda _: None)
    with pytest.raises(processes.NotReady, match=r"MariaDB: no mariadbd, .*: apt-get install mariadb-server-core"):
        server_in_a_folder.start(tmp_path / "nowhere")


def test_it_runs_as_nobody_and_ends_in_order(server: MariaDB) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    owner = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid"))
    assert int(owner) != 0
    before = server.port
    server.stop()
    assert not processes.accepts(before)
    server.restart()
    assert processes.accepts(before)
