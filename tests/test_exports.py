"""Exports: what they hold, how they are narrowed, that none runs in a spreadsheet, and that each is an action."""

import csv
import hashlib
import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from audit import exports
from audit.exports.recorded import recorded
from leases.models import Action, ActionStep, Lease
from tests import factories

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def rows(kind: str, /, **where: str) -> list[dict[str, str]]:
    out = io.BytesIO()
    now = timezone.now()
    exports.write(kind, out, from_at=now - 30 * DAY, to_at=now + DAY, where=where)
    return list(csv.DictReader(io.StringIO(out.getvalue().decode(), newline="")))


def values(kind: str, /, **where: str) -> list[dict[str, Any]]:
    out = io.BytesIO()
    now = timezone.now()
    exports.write(kind, out, from_at=now - 30 * DAY, to_at=now + DAY, where=where, form="ndjson")
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("kind", exports.KINDS)
def test_each_kind_says_the_same_as_csv_and_as_ndjson(kind: str) -> None:
    factories.scene()
    as_csv, as_json = rows(kind), values(kind)
    assert len(as_csv) == len(as_json)
    assert as_csv or kind == "events"
    for left, right in zip(as_csv, as_json, strict=True):
        assert list(left) == list(right) == exports.header(kind)
        for name, value in right.items():
            text = "" if value is None else str(value)
            assert left[name] in (text, f"'{text}"), name


def test_rows_are_counted_and_hashed_as_they_go_out() -> None:
    factories.scene()
    out = io.BytesIO()
    now = timezone.now()
    written = exports.write("leases", out, from_at=now - 30 * DAY, to_at=now + DAY)
    assert (written.bytes, written.sha256) == (len(out.getvalue()), hashlib.sha256(out.getvalue()).hexdigest())
    assert written.rows == len(rows("leases")) > 1


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_from_outside_is_run_by_a_spreadsheet(sign: str) -> None:
    lease = factories.lease()
    said = f"{sign}1+1"
    outside = ("database_user", "vault_namespace", "cluster", "certainty_reason", "service_account", "source_ip")
    Lease.objects.filter(pk=lease.pk).update(**dict.fromkeys(outside, said))
    for kind in ("accesses", "leases"):
        (row,) = rows(kind)
        for name in set(outside) & set(row):
            assert row[name] == f"'{said}", name


def test_a_comma_a_quote_and_a_line_feed_stay_in_their_cell() -> None:
    lease = factories.lease()
    said = 'a, "b"\r\nc\\.'
    Lease.objects.filter(pk=lease.pk).update(certainty_reason=said)
    assert [row["certainty_reason"] for row in rows("leases")] == [said]
    assert [row["certainty_reason"] for row in values("leases")] == [said]


def test_leases_are_narrowed_by_what_the_page_can_be_narrowed_by() -> None:
    first = factories.lease()
    other = factories.lease(service_account="other", certainty="service account", pod="", pod_uid="")
    assert {row["lease_id"] for row in rows("leases")} == {first.lease_id, other.lease_id}
    assert [row["lease_id"] for row in rows("leases", service_account="other")] == [other.lease_id]
    assert [row["lease_id"] for row in rows("leases", certainty="service account")] == [other.lease_id]
    assert rows("leases", database="demo/database/none") == []
    named = f"{first.vault.name}/{first.mount}/{first.database.name}" if first.database else ""
    assert {row["lease_id"] for row in rows("leases", database=named)} == {first.lease_id, other.lease_id}
    assert [row["lease_id"] for row in rows("accesses", service_account="other", state="open")] == [other.lease_id]


@pytest.mark.parametrize("kind", exports.KINDS)
def test_every_filter_can_be_asked_for(kind: str) -> None:
    factories.scene()
    for name in exports.filters(kind):
        value = {"own": "false", "severity": "low", "state": "open"}.get(name, "nothing is called so")
        assert isinstance(rows(kind, **{name: value}), list)


def test_a_filter_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(exports.UnknownFilter, match="cannot be narrowed by 'colour', only by address, database"):
        rows("sessions", colour="red")
    with pytest.raises(CommandError, match="cannot be narrowed by colour"):
        export("--where", "colour=red")
    with pytest.raises(CommandError, match="written NAME=VALUE"):
        export("--where", "colour")


def export(*more: str) -> None:
    now = timezone.now()
    call_command("export", "leases", "--from", (now - DAY).isoformat(), "--to", (now + DAY).isoformat(), *more)


def test_an_export_is_an_action_with_who_why_and_what_went_out(tmp_path: Path) -> None:
    factories.lease()
    file = tmp_path / "leases.csv"
    export("--output", str(file), "--by", "ann", "--reason", "audit", "--where", "state=open")
    action = Action.objects.get()
    assert (action.kind, action.by, action.reason) == ("export", "ann", "audit")
    assert action.targets[0]["summary"].endswith("as csv, state open")
    step = ActionStep.objects.get()
    content = file.read_bytes()
    assert (step.outcome, step.detail) == (
        "ok",
        f"1 rows, {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}",
    )


def test_an_export_that_breaks_off_says_how_far_it_came() -> None:
    now = timezone.now()

    def interrupted(at: datetime) -> None:
        with recorded("leases", by="ann", reason="x", from_at=at, to_at=at, form="csv", where={}, now=at) as written:
            written.rows = 7
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        interrupted(now)
    step = ActionStep.objects.get()
    assert (step.outcome, step.detail) == ("failed", "BrokenPipeError: it was not finished; 7 rows had gone out")


def test_it_goes_to_standard_output_without_a_file(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    lease = factories.lease()
    export()
    out = capfdbinary.readouterr().out
    assert lease.lease_id.encode() in out


def test_chosen_rows_come_in_the_order_in_which_they_were_chosen() -> None:
    leases = [factories.lease(age=age) for age in (60, 120, 180)]
    now = timezone.now()
    keys = [lease.pk for lease in (leases[2], leases[0])]
    out = b"".join(exports.chosen("leases", keys, from_at=now - 30 * DAY, to_at=now + DAY, now=now)).decode()
    found = [row["lease_id"] for row in csv.DictReader(io.StringIO(out, newline=""))]
    assert found == [leases[2].lease_id, leases[0].lease_id]
    none = b"".join(exports.chosen("leases", [], from_at=now - DAY, to_at=now + DAY, now=now)).decode()
    assert none == ",".join(exports.header("leases")) + "\n"
