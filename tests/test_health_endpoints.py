"""/healthz, /readyz and /metrics: for probes and Prometheus, without a log-in and without secrets."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connections
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from audit.models import HeadsDocument, Housekeeping, Look, Signing, Stream
from demo.processes import free_port
from leases.models import Action, Job, WatchPeriod
from leases.models.sources import SourceKind
from tests import factories

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def ready(client: Client) -> tuple[int, dict[str, Any]]:
    response = client.get("/readyz")
    return response.status_code, json.loads(response.content)


def samples(response: Any) -> dict[tuple[str, tuple[str, ...]], float]:
    """Value by name and label values in the order of the labels' names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.content.decode())
        for sample in family.samples
    }


def test_health_needs_nothing_but_the_process(client: Client, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        response = client.get("/healthz")
    assert response.status_code == 200
    assert json.loads(response.content)["ok"] is True


def test_ready_when_everything_answers(client: Client) -> None:
    factories.watched()
    status, answer = ready(client)
    assert (status, answer["ready"]) == (200, True), answer
    assert answer["vaults"] == {"demo": {"ok": True, "status": "ok"}}
    assert answer["clusters"]["demo"]["ok"]
    assert set(answer["databases"]) == {"demo/database/orders", "demo/database/billing"}
    assert answer["streams"]["demo/file-a/bao-0"] == {
        "ok": True,
        "status": "ok",
        "lag_seconds": 0.0,
        "lag_bytes": 0,
    }
    assert answer["broker"] == answer["database"] == {"ok": True}


@pytest.mark.parametrize(
    ("kind", "name", "group"),
    [
        (SourceKind.VAULT, "demo", "vaults"),
        (SourceKind.CLUSTER, "demo", "clusters"),
        (SourceKind.DATABASE, "demo/database/orders", "databases"),
        (SourceKind.STREAM, "demo/file-b/bao-0", "streams"),
    ],
)
def test_not_ready_when_one_source_fails_and_the_answer_names_it(
    client: Client, kind: SourceKind, name: str, group: str
) -> None:
    factories.watched()
    factories.source(kind, name, ok=False, cause="It is sealed", fix="Unseal it.")
    status, answer = ready(client)
    assert (status, answer["ready"]) == (503, False)
    assert answer[group][name]["status"] == "failing"
    assert (answer[group][name]["cause"], answer[group][name]["fix"]) == ("It is sealed", "Unseal it.")


def test_not_ready_when_nobody_asks_any_more(client: Client) -> None:
    factories.watched()
    factories.source(SourceKind.VAULT, "demo", checked=16)
    status, answer = ready(client)
    assert status == 503
    assert answer["vaults"]["demo"]["status"] == "stale"


def test_not_ready_before_a_source_was_asked_once(client: Client) -> None:
    factories.vault()
    status, answer = ready(client)
    assert status == 503
    assert answer["vaults"]["demo"]["status"] == "waiting"


def test_a_stream_that_is_refused_is_failing(client: Client) -> None:
    factories.watched()
    factories.stream("raw", refused="raw secrets where an HMAC must stand")
    status, answer = ready(client)
    assert status == 503
    assert "raw secrets" in answer["streams"]["demo/raw/bao-0"]["cause"]


def test_not_ready_without_the_broker(client: Client, settings: Settings) -> None:
    factories.watched()
    settings.CELERY_BROKER_URL = f"redis://:a-password@127.0.0.1:{free_port()}/0"
    status, answer = ready(client)
    assert status == 503
    assert answer["broker"]["cause"] == "The broker does not answer"
    assert "a-password" not in json.dumps(answer)


def test_a_wrong_password_of_the_broker_is_named_and_not_shown(client: Client, settings: Settings) -> None:
    factories.watched()
    right = django_settings.CELERY_BROKER_URL
    settings.CELERY_BROKER_URL = right.replace(right.partition("://:")[2].partition("@")[0], "wrong-password")
    answer = ready(client)[1]
    assert answer["broker"]["cause"] == "The broker refuses the log-in"
    assert "wrong-password" not in json.dumps(answer)


@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_a_probe_says_that_the_own_database_is_down(client: Client) -> None:
    connection = connections["default"]
    connection.close()
    port = connection.settings_dict["PORT"]
    connection.settings_dict["PORT"] = str(free_port())
    try:
        status, answer = ready(client)
        scrape = client.get("/metrics")
        health = client.get("/healthz")
        page = client.get("/no-such-page")
    finally:
        connection.settings_dict["PORT"] = port
        connection.close()
    assert status == 503
    assert answer["database"]["cause"] == "The database does not answer"
    assert scrape.status_code == 503
    assert health.status_code == 200
    assert page.status_code == 404


@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_a_page_says_that_the_own_database_is_down_without_needing_it() -> None:
    client = Client(raise_request_exception=False)
    client.force_login(factories.user("operator", "viewer"))
    connection = connections["default"]
    connection.close()
    port = connection.settings_dict["PORT"]
    connection.settings_dict["PORT"] = str(free_port())
    try:
        pages = {path: client.get(path) for path in ("/", "/no-such-page")}
    finally:
        connection.settings_dict["PORT"] = port
        connection.close()
    for path, response in pages.items():
        assert response.status_code == 503, path
        assert b"does not answer" in response.content
        assert b"LEASEHOLD_DATABASE_URL" in response.content
        assert response["Retry-After"] == "5"


def test_the_numbers_are_those_of_the_ledger(client: Client) -> None:
    scene = factories.scene()
    now = timezone.now()
    Stream.objects.filter(device__name="file-b").update(
        unread_bytes=512,
        lines=48_216,
        parts=48_200,
        duplicates=4,
        rejected=3,
        expired=7,
        conflicts=2,
        redacted=2,
        last_line_at=now - timedelta(seconds=90),
    )
    factories.source(SourceKind.CLUSTER, "demo", ok=False, cause="no route", fix="mend it")
    values = samples(client.get("/metrics"))
    # labels in alphabetical order: certainty, database, state, vault
    assert values["leasehold_leases_live", ("exact", "billing", "live", "demo")] == 4
    assert values["leasehold_leases_live", ("unknown", "", "live", "demo")] == 1
    assert values["leasehold_leases_live", ("exact", "orders", "irrevocable", "demo")] == 1
    assert values["leasehold_source_up", ("vault", "demo")] == 1
    assert values["leasehold_source_up", ("cluster", "demo")] == 0
    assert values["leasehold_stream_lag_bytes", ("file-b", "bao-0", "demo")] == 512
    assert values["leasehold_stream_lag_seconds", ("file-b", "bao-0", "demo")] >= 1
    assert values["leasehold_stream_lag_seconds", ("file-a", "bao-0", "demo")] == 0
    told = {
        name: values[f"leasehold_stream_{name}_total", ("file-b", "bao-0", "demo")]
        for name in ("lines", "parts", "duplicates", "rejected", "expired", "conflicts", "redacted", "gaps")
    }
    assert told == {
        "lines": 48_216,
        "parts": 48_200,
        "duplicates": 4,
        "rejected": 3,
        "expired": 7,
        "conflicts": 2,
        "redacted": 2,
        "gaps": 0,
    }
    assert values["leasehold_stream_gaps_total", ("file-a", "bao-0", "demo")] == 4
    last_line = values["leasehold_stream_last_line_timestamp_seconds", ("file-b", "bao-0", "demo")]
    assert last_line == pytest.approx(now.timestamp() - 90, abs=0.001)
    assert values["leasehold_revocations", ("verified",)] == 3
    assert values["leasehold_findings_open", ("lease explosion", "high")] == 1
    assert ("leasehold_findings_open", ("root token used", "high")) not in values
    assert sum(1 for name, _ in values if name == "leasehold_build_info") == 1
    assert scene


def test_every_metric_stands_in_the_docs_and_none_that_is_not_there(client: Client) -> None:
    factories.scene()
    Housekeeping.objects.update_or_create(pk=1, defaults={"kept_at": timezone.now()})
    Signing.objects.create(pk=1, since=timezone.now())
    Look.objects.create(pk=1, at=timezone.now(), seconds=0.3)
    HeadsDocument.objects.create(number=1, at=timezone.now(), delivered_at=timezone.now())
    WatchPeriod.objects.create(cluster=factories.cluster(), from_at=timezone.now(), to_at=timezone.now())
    factories.sampling(factories.database())
    Job.objects.get_or_create(action=Action.objects.order_by("at")[0], defaults={"updated_at": timezone.now()})
    told = {name for name, _ in samples(client.get("/metrics"))}
    table = (Path(__file__).resolve().parent.parent / "docs/install.md").read_text()
    assert set(re.findall(r"^\| `(leasehold_\w+)` \|", table, re.M)) == told


def test_probes_tell_no_identity_no_address_and_no_reference_to_a_secret(client: Client) -> None:
    scene = factories.scene()
    told = b"".join(client.get(path).content for path in ("/healthz", "/readyz", "/metrics")).decode()
    lease = scene["lease"]
    for hidden in (
        lease.lease_id,
        lease.pod,
        lease.service_account,
        lease.source_ip,
        "/etc/leasehold",
        "http://",
        "operator",
    ):
        assert hidden not in told


def test_a_scrape_asks_as_often_for_many_rows_as_for_few(client: Client, django_assert_max_num_queries: Any) -> None:
    factories.watched()
    for _ in range(30):
        factories.lease()
    with django_assert_max_num_queries(28):
        client.get("/metrics")
