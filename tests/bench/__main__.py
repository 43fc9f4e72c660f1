"""`python -m tests.bench [--quick] [--only pipeline,copy,read,memory,streams,bytes,sessions,exports,pages,browsers] [--profile]`, as `make bench` runs it.

One line for each figure on stdout, what is being done on stderr. Ends with 0 whatever the figures are, with 1 where a
measurement is void. BENCH_LINES sets the log's length (1,000,000). Memory is measured on it and on a fifth of it, with
BENCH_MEMORY=1 on it and on five times as much (10 GB of disk). `sessions` opens 2,000 of them on a server of its own. `exports` takes out a million
accesses (BENCH_ACCESSES). `pages` (some ten minutes, 10 GB of disk) measures every
page, whole and read by read, with 200,000 leases (BENCH_LEASES) and 1, then 10 million events (BENCH_EVENTS=1000000,10000000). `browsers` measures what 200 open pages cost, over HTTP.
"""

import argparse
import os
import sys
from datetime import UTC, datetime, timedelta
from functools import cache

from tests import services
from tests.bench import database
from tests.bench.figures import Void, progress
from tests.bench.log import Log, write

PARTS = ("pipeline", "copy", "bytes", "read", "streams", "memory", "sessions", "exports", "pages", "browsers")


def main() -> None:
    options = options_of(sys.argv[1:])
    services._start()
    try:
        measure(options)
    except Void as reason:
        sys.exit(f"bench: the measurement is void: {reason}")
    finally:
        services._end()


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100,000 lines, for a look")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar=",".join(PARTS))
    parser.add_argument("--profile", action="store_true", help="also say where the pipeline's time goes")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    options.lines = int(os.environ.get("BENCH_LINES", "100000" if options.quick else "1000000"))
    events = "100000,1000000" if options.quick else "1000000,10000000"
    options.events = [int(text) for text in os.environ.get("BENCH_EVENTS", events).split(",")]
    options.leases = int(os.environ.get("BENCH_LEASES", "20000" if options.quick else "200000"))
    options.accesses = int(os.environ.get("BENCH_ACCESSES", "100000" if options.quick else "1000000"))
    return options


def measure(options: argparse.Namespace) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
    import django

    django.setup()
    from django.core.management import call_command

    # knows the product's models, which need the settings
    from tests.bench import rounds

    progress("migrations")
    call_command("migrate", verbosity=0)
    postgres = services._Running.postgres
    assert postgres is not None
    # what migrations themselves put into the tables
    keep = database.with_rows(postgres)
    # recent, so that no line is past its retention
    begin = datetime.now(UTC).replace(hour=5, minute=0, second=0, microsecond=0) - timedelta(days=2)

    @cache
    def logs(lines: int, run: int) -> Log:
        progress(f"a log of {lines:,} lines")
        return write(services._FOLDER / f"{lines}-{run}.log", lines=lines, begin=begin, run=run)

    if {"pipeline", "copy", "bytes", "read"} & set(options.only):
        rounds.one_stream(postgres, logs, lines=options.lines, only=options.only, profile=options.profile, keep=keep)
    if "streams" in options.only:
        rounds.two_streams(postgres, logs, lines=options.lines, keep=keep)
    if "memory" in options.only:
        rounds.flat_memory(postgres, logs, lines=options.lines, keep=keep)
    if "sessions" in options.only:
        rounds.sessions(postgres, keep=keep)
    if "exports" in options.only:
        rounds.exports(postgres, leases=options.accesses, keep=keep, folder=services._FOLDER)
    if "browsers" in options.only:
        rounds.browsers(postgres, leases=options.leases, keep=keep)
    if "pages" in options.only:
        rounds.pages(postgres, leases=options.leases, events=options.events, keep=keep)


if __name__ == "__main__":
    main()
