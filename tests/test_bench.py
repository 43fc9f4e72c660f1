"""The bench itself: its log is what it says, its references compare the same thing, its verdicts tell what is missed."""

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from audit.lines import Half, read
from audit.models import Kind
from audit.secrets import suspects
from demo.postgres import Postgres
from tests.bench import database, decode, product, reads, sessions
from tests.bench.figures import Figure, Void, verdict
from tests.bench.log import Log, write
from tests.bench.server_copy import SCHEMA, server_copy

BEGIN = datetime(2026, 11, 3, 5, tzinfo=UTC)
LINES = 20_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return write(tmp_path_factory.mktemp("bench") / "log", lines=LINES, begin=BEGIN)


@pytest.fixture(scope="module")
def halves(log: Log) -> list[Half]:
    """Every line as the product reads it; a rejected or refused one would raise."""
    return [read(line) for line in log.path.read_bytes().splitlines()]


def test_the_log_is_accepted_in_full_and_holds_no_token(log: Log, halves: list[Half]) -> None:
    assert len(halves) == log.lines == LINES
    assert suspects(log.path.read_bytes()) == []


def test_each_request_has_one_request_line_and_one_response_line_after_it(log: Log, halves: list[Half]) -> None:
    kinds: dict[str, list[bool]] = {}
    for half in halves:
        kinds.setdefault(half.request_id, []).append(half.is_response)
    assert len(kinds) == log.requests
    assert set(map(tuple, kinds.values())) == {(False, True)}


def test_the_log_is_the_same_each_time_and_another_run_shares_no_id_with_it(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("first", "again", "other")]
    for path, run in zip(paths, (1, 1, 2), strict=True):
        write(path, lines=3000, begin=BEGIN, run=run)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    for one in (rb'"request":\{"id":"([^"]+)"', rb'"accessor":"([^"]+)"', rb'"lease_id":"([^"]+)"'):
        # the accessor of a mount, in the answer of ui/mounts, is no token's
        shared = set(re.findall(one, first)) & set(re.findall(one, other))
        assert len(shared) <= (1 if b"accessor" in one else 0)


def test_lines_are_as_long_as_real_ones_and_a_few_requests_in_a_hundred_issue_a_lease(
    log: Log, halves: list[Half]
) -> None:
    assert 1500 < log.path.stat().st_size / log.lines < 1900
    leases = {half.lease_id for half in halves if half.lease_id}
    assert len(leases) == log.leases
    assert 0.02 <= log.leases / log.requests <= 0.04


def test_times_are_mostly_ascending_and_cross_midnight(log: Log, halves: list[Half]) -> None:
    behind = [later.at - earlier.at for earlier, later in pairwise(halves)]
    backwards = [-gap for gap in behind if gap < timedelta(0)]
    assert 0 < len(backwards) < LINES / 50
    assert max(backwards) <= timedelta(milliseconds=60)
    assert {half.at.date() for half in halves} == {BEGIN.date(), BEGIN.date() + timedelta(days=1)}
    lengths = Counter(len(json.loads(line)["time"]) for line in log.path.read_bytes().splitlines()[:2000])
    assert set(lengths) <= set(range(22, 31))
    assert lengths[30] > lengths[29] > 0


def test_a_lease_has_one_hash_and_a_token_one_accessor(halves: list[Half]) -> None:
    hashes: dict[str, set[str]] = {}
    for half in halves:
        if half.answer and half.answer.data_lease_id and half.lease_id:
            hashes.setdefault(half.lease_id, set()).add(half.answer.data_lease_id)
    assert len(hashes) > 100
    assert all(len(found) == 1 for found in hashes.values())
    logins = [half.answer.new_accessor for half in halves if half.answer and half.kind == Kind.LOGIN]
    assert len(set(logins)) == len(logins) > 0
    assert {half.accessor for half in halves} - {""} == set(logins)


def test_every_kind_of_request_is_in_the_log(halves: list[Half]) -> None:
    paths = {re.sub(r"(creds|mounts|data|revoke)/.*", r"\1", half.what[2]) for half in halves}
    assert paths == {
        "auth/kubernetes/login",
        "auth/token/lookup-self",
        "auth/token/renew-self",
        "database/creds",
        "secret/data",
        "sys/internal/ui/mounts",
        "sys/leases/renew",
        "sys/leases/revoke",
        "warehouse/creds",
    }
    assert {half.error for half in halves} == {"", "1 error occurred:\n\t* permission denied\n\n"}
    unknown = [half for half in halves if half.what[2].endswith("-old")]
    assert unknown
    assert not any(half.lease_id or half.error for half in unknown)


def test_grep_and_jq_find_what_was_put_into_the_log(log: Log) -> None:
    if missing := reads.missing_jq():
        pytest.skip(missing)
    assert log.accesses
    assert reads.grep_and_jq(log.path, *log.window) == log.accesses


def test_duckdb_finds_what_was_put_into_the_log(log: Log) -> None:
    if missing := reads.missing_duckdb():
        pytest.skip(missing)
    assert reads.duckdb(log.path, *log.window) == log.accesses


@pytest.mark.django_db
def test_the_product_finds_what_was_put_into_the_log(tmp_path: Path) -> None:
    log = write(tmp_path / "log", lines=2000, begin=BEGIN)
    assert product.pipeline(log.path, vault="bench") == log.lines
    assert product.requests(vault="bench") == log.requests
    found = product.accesses_per_service_account(vault="bench", from_at=log.window[0], to_at=log.window[1])
    assert found == log.accesses


def test_an_answer_that_differs_makes_the_measurement_void(log: Log) -> None:
    with pytest.raises(Void, match="somebody"):
        reads.median("somebody", lambda: log.accesses[1:], log, times=1)


def test_a_lost_line_makes_the_measurement_void(log: Log) -> None:
    with pytest.raises(Void, match="msgspec"):
        decode.decode_alone(log.path, lines=log.lines + 1)


TABLES = """
CREATE TABLE part (id bigint GENERATED ALWAYS AS IDENTITY, at date NOT NULL, what text NOT NULL CHECK (what <> ''),
                   length int GENERATED ALWAYS AS (length(what)) STORED, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE INDEX ON part (what) WHERE what <> 'x';
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2026-11-01') TO ('2026-11-02') WITH (fillfactor = 70);
CREATE INDEX ON part_1 USING hash (what);
CREATE TABLE part_rest PARTITION OF part DEFAULT PARTITION BY RANGE (at);
CREATE TABLE part_rest_rest PARTITION OF part_rest DEFAULT;
INSERT INTO part (at, what) SELECT date '2026-11-01' + n % 3, E'w\\t\\\\' || n FROM generate_series(1, 900) n;
"""


def test_the_servers_copy_fills_the_same_partitions_and_indexes(postgres: Postgres) -> None:
    shape = """
        SELECT c.relname, c.relkind::text, c.reloptions::text, pg_get_expr(c.relpartbound, c.oid),
               (SELECT array_agg(regexp_replace(pg_get_indexdef(indexrelid), '^.* USING', '') ORDER BY 1)
                FROM pg_index WHERE indrelid = c.oid)
        FROM pg_class c WHERE c.relnamespace = %s::regnamespace AND c.relname LIKE 'part%%' AND c.relkind IN ('r', 'p')
        ORDER BY 1
    """
    with database.superuser(postgres) as cursor:
        try:
            cursor.execute(TABLES)
            assert set(server_copy(postgres, ["part"])) == {"part"}
            theirs, ours = (cursor.execute(shape, [schema]).fetchall() for schema in ("public", SCHEMA))
            assert theirs == ours
            assert len(ours) == 4
            counted = [
                cursor.execute(
                    f"SELECT tableoid::regclass::text LIKE '%part_1', count(*), sum(length) FROM {part} GROUP BY 1 ORDER BY 1"
                ).fetchall()
                for part in ("public.part", f"{SCHEMA}.part")
            ]
            assert counted[0] == counted[1]
        finally:
            cursor.execute(f"DROP TABLE IF EXISTS public.part; DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def test_a_bound_that_is_missed_falls_short() -> None:
    assert "falls short" in verdict(Figure("ratio", 0.39, at_least=0.4))
    assert "falls short" in verdict(Figure("bytes", 501, at_most=500))
    assert verdict(Figure("ratio", 0.4, at_least=0.4)).endswith("holds")
    assert verdict(Figure("bytes", 500, at_most=500)).endswith("holds")
    assert verdict(Figure("lines/s", 1_234_567)).endswith("1,234,567")


@pytest.mark.django_db
def test_the_sample_of_real_sessions_is_held_against_a_reference_and_a_bound() -> None:
    figures = {figure.name: figure for figure in sessions.measure(sessions=24)}
    sample = figures["one sample of 24 sessions, ms on the server"]
    assert sample.at_most == sessions.BOUND
    assert 0 < figures["SELECT count(*) FROM pg_stat_activity, ms on the server"].value < sample.value
