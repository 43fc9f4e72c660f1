"""Fixtures for tests of the site: users of each group, logged in."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import psycopg
import pytest
from django.db import connections
from django.test import Client
from django.test.utils import setup_databases, teardown_databases
from pytest_django import DjangoDbBlocker

from audit import intern
from dashboard import live
from demo.postgres import Postgres
from tests import factories

if TYPE_CHECKING:
    from tests.world import World


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With -n, tests of one file stay together (they share what is costly to make), and so do all that bring a demo up."""
    for item in items:
        group = "demo" if item.get_closest_marker("demo") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_blocker: DjangoDbBlocker, postgres: Postgres
) -> Iterator[None]:
    """The owner makes and migrates the test database; tests use it as the application's role, with just its rights."""
    with django_db_blocker.unblock():
        databases = setup_databases(verbosity=0, interactive=False, aliases=dict.fromkeys(("default", "owner")))
    yield
    with django_db_blocker.unblock():
        connections.close_all()
        # one that was opened in another context (a thread's, Playwright's) is not among these
        with psycopg.connect(postgres.dsn(), autocommit=True) as server:
            name = connections["default"].settings_dict["NAME"]
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        teardown_databases(databases, verbosity=0)


@pytest.fixture(autouse=True)
def _nothing_interned() -> None:
    """Each test rolls its rows back, and with them the ids that this process remembers."""
    intern.forget()


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees at once what it has just done; what is kept for a moment has tests of its own."""
    live.forget()
    monkeypatch.setattr(live, "KEEP", 0.0)


@pytest.fixture
def configured(world: "World", db: None) -> "World":
    """The world as `manage.py configure` knows it, with every stream read up to now and the watch begun."""
    from tests import workers

    workers.configure(world)
    return world


@pytest.fixture
def log_in(db: None) -> Callable[..., Client]:
    """log_in("viewer") gives a client whose user is in these groups; log_in() one in none."""

    def logged_in(*groups: str) -> Client:
        client = Client()
        client.force_login(factories.user("-".join(("user", *groups)), *groups, password=None))
        return client

    return logged_in


@pytest.fixture
def viewer(log_in: Callable[..., Client]) -> Client:
    return log_in("viewer")


@pytest.fixture
def responder(log_in: Callable[..., Client]) -> Client:
    return log_in("responder")
