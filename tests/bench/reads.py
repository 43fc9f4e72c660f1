"""One question, "accesses per service account and database in 24 h", to the database and to the file; one answer."""

import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from tests.bench import product
from tests.bench.figures import Figure, Void, progress
from tests.bench.log import Log

Answer = list[tuple[str, str, int]]

# only what issued a lease counts: not a denied read, nor one of an unknown role, which has no error in the log.
# times have different lengths; cut to seconds and without a zone, a bound compares rightly with all of them
_JQ = """
select(.type == "response" and .error == null and .response.secret.lease_id != null and (.request.path | contains("/creds/"))
       and (.request.path | startswith("sys/") | not) and .time >= $from and .time < $to)
| "\\(.auth.metadata.service_account_namespace)/\\(.auth.metadata.service_account_name) \\(.request.path)"
"""
_DUCKDB = """
SELECT auth.metadata.service_account_namespace || '/' || auth.metadata.service_account_name, request.path, count(*)
FROM read_json(?, format = 'newline_delimited', columns = {
  'time': 'VARCHAR', 'type': 'VARCHAR', 'error': 'VARCHAR', 'request': 'STRUCT(path VARCHAR)',
  'auth': 'STRUCT(metadata STRUCT(service_account_namespace VARCHAR, service_account_name VARCHAR))',
  'response': 'STRUCT(secret STRUCT(lease_id VARCHAR))'})
WHERE type = 'response' AND error IS NULL AND response.secret.lease_id IS NOT NULL
  AND contains(request.path, '/creds/') AND NOT starts_with(request.path, 'sys/') AND time >= ? AND time < ?
GROUP BY ALL
"""


def figures(log: Log, *, vault: str, times: int) -> list[Figure]:
    """Medians. Raises Void unless every answer is what the log's generator counted."""
    own = median("the product's read", lambda: _product(log, vault), log, times=times)
    found = [Figure("the product's read, ms", own * 1000)]
    for name, missing, ask in (
        ("grep + jq", missing_jq(), lambda: grep_and_jq(log.path, *log.window)),
        ("DuckDB", missing_duckdb(), lambda: duckdb(log.path, *log.window)),
    ):
        if missing:
            progress(f"{name} is left out: {missing}")
            continue
        seconds = median(name, ask, log, times=times)
        found += [
            Figure(f"{name} from the file, ms", seconds * 1000),
            Figure(f"{name} / the product's read (time)", seconds / own, at_least=1),
        ]
    return found


def median(name: str, ask: Callable[[], Answer], log: Log, *, times: int) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        answer = ask()
        seconds.append(time.perf_counter() - began)
        if answer != log.accesses:
            raise Void(f"{name} answers {len(answer)} rows that are not the log's {len(log.accesses)}")
    return statistics.median(seconds)


def _product(log: Log, vault: str) -> Answer:
    return product.accesses_per_service_account(vault=vault, from_at=log.window[0], to_at=log.window[1])


def grep_and_jq(path: Path, from_at: datetime, to_at: datetime) -> Answer:
    """grep takes out the few lines that can count (the fastest of five ways that were tried), jq reads them."""
    command = (
        f'LC_ALL=C grep -F \'"mount_type":"database"\' {shlex.quote(str(path))}'
        ' | LC_ALL=C grep -F \'"type":"response"\''
        f" | jq -r --arg from {_bound(from_at)} --arg to {_bound(to_at)} {shlex.quote(_JQ)}"
        " | LC_ALL=C sort | uniq -c"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return sorted((account, credentials, int(times)) for times, account, credentials in rows)


def duckdb(path: Path, from_at: datetime, to_at: datetime) -> Answer:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        rows = connection.execute(_DUCKDB, [str(path), _bound(from_at), _bound(to_at)]).fetchall()
    return sorted((str(account), str(credentials), int(times)) for account, credentials, times in rows)


def _bound(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S")


def missing_jq() -> str:
    return "" if shutil.which("jq") else "jq is not installed: apt-get install jq"


def missing_duckdb() -> str:
    return "" if find_spec("duckdb") else "duckdb is not installed: make install"
