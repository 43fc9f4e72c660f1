"""Pytest plugin: real servers in .test/<pid>/, started before Django's settings are read, gone when the run ends.

Loaded with `-p tests.services`. PostgreSQL and Valkey always run; OpenBao and the Kubernetes API start with the first
test that asks for them.
"""

import atexit
import os
import secrets
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo import openbao as openbao_server
from demo import postgres as postgres_server
from demo import valkey as valkey_server

if TYPE_CHECKING:
    from demo.kube import Cluster
    from tests.world import World

_ROOT = Path(__file__).resolve().parent.parent / ".test"
_FOLDER = _ROOT / str(os.getpid())


class _Running:
    """The two servers that Django's settings need."""

    postgres: postgres_server.Postgres | None = None
    valkey: valkey_server.Valkey | None = None


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests() -> Generator[None]:
    """A wrapper runs before pytest-django's own hook, which reads the settings."""
    _start()
    return (yield)


def pytest_unconfigure() -> None:
    _end()


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """A folder of this run (mode 0700), removed at its end."""
    return _FOLDER


@pytest.fixture(scope="session")
def postgres() -> postgres_server.Postgres:
    """The PostgreSQL server that Django's test database is on, too."""
    assert _Running.postgres is not None
    return _Running.postgres


@pytest.fixture(scope="session")
def valkey() -> valkey_server.Valkey:
    """The broker."""
    assert _Running.valkey is not None
    return _Running.valkey


@pytest.fixture(scope="session")
def openbao(run_folder: Path) -> Iterator[openbao_server.OpenBao]:
    """An unsealed OpenBao (with VAULT_BINARY, Vault), shared by all tests: leave it unsealed."""
    server = openbao_server.start(run_folder / "openbao")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kubernetes_api(run_folder: Path) -> "Iterator[Cluster]":
    """The Kubernetes API: the stand-in, or with KUBEBUILDER_ASSETS a real one."""
    from demo import kube

    cluster = kube.start(run_folder / "kube", tls=True)
    yield cluster
    cluster.stop()


def _start() -> None:
    _remove_stale()
    _FOLDER.mkdir(parents=True, mode=0o700)
    (_FOLDER / "tmp").mkdir()
    # temporary files of tests and of what they start stay in the checkout, too
    os.environ["PYTEST_DEBUG_TEMPROOT"] = os.environ["TMPDIR"] = str(_FOLDER / "tmp")
    atexit.register(_end)
    database = _Running.postgres = postgres_server.start(_FOLDER / "postgres")
    broker = _Running.valkey = valkey_server.start(_FOLDER / "valkey")
    database.create_role("leasehold_owner", "CREATEDB")
    database.create_role("leasehold_app")
    database.create_database("leasehold", owner="leasehold_owner")
    os.environ.update(
        {
            "LEASEHOLD_DATABASE_URL": database.dsn("leasehold_app", "leasehold"),
            "LEASEHOLD_OWNER_DATABASE_URL": database.dsn("leasehold_owner", "leasehold"),
            "LEASEHOLD_BROKER_URL": broker.url,
            "LEASEHOLD_SECRET_KEY": secrets.token_urlsafe(50),
            "LEASEHOLD_INSECURE_HTTP": "1",
            "LEASEHOLD_CONFIG": str(_FOLDER / "leasehold.toml"),
        }
    )


def _end() -> None:
    """Stops what runs and removes the folder; does nothing the second time."""
    if _Running.valkey is not None:
        _Running.valkey.stop()
    if _Running.postgres is not None:
        _Running.postgres.stop()
    _Running.valkey = _Running.postgres = None
    shutil.rmtree(_FOLDER, ignore_errors=True)


def _remove_stale() -> None:
    """Folders of runs that were killed; their servers ended with them."""
    if not _ROOT.exists():
        return
    for folder in _ROOT.iterdir():
        if folder.name.isdecimal() and (folder == _FOLDER or not Path("/proc", folder.name).exists()):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def world(
    openbao: openbao_server.OpenBao, postgres: postgres_server.Postgres, kubernetes_api: "Cluster", run_folder: Path
) -> "World":
    """OpenBao, two databases and a cluster, set up as `make demo` does."""
    from tests.world import build

    return build(openbao, postgres, kubernetes_api, run_folder / "world")
