"""The rules, each with what must not raise it. Pure: no database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit.findings import kinds, log_rules, rules, session_rules
from audit.findings.found import Account, Found, Role, span
from audit.findings.log_rules import Identity
from audit.findings.watch import change_of
from audit.models import Finding, FindingKind, Severity

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
ACCOUNT = Account("demo", "demo", "shop", "checkout")
ROLE = Role("demo", "database", "my-role", "orders")
DEPLOYER = Identity("demo", "token-deployer")
STREAM = log_rules.StreamFact(1, "demo", "demo/file-a/bao-0", last_line_at=NOW)
MINUTE = timedelta(minutes=1)


def words(found: Found) -> str:
    return " | ".join([found.summary, *(item.text for item in found.evidence)])


# --- lease explosion ---------------------------------------------------------------------------------------------

CALM = rules.Growth(ACCOUNT, live=40, issued=2, ended=2, renewed=30, roles=1, pods=40, limit=0)


@pytest.mark.parametrize(
    "growth",
    [
        CALM,
        # a rollout: many leases in a minute, and as many pods
        replace(CALM, live=240, issued=200, ended=0, pods=240),
        # each agent's old lease overlaps with its new one
        replace(CALM, live=80, issued=40, ended=0, pods=40),
        # several roles for each pod
        replace(CALM, live=120, issued=100, ended=0, pods=10, roles=5),
        # a few leases that double are no explosion
        replace(CALM, live=20, issued=10, ended=0, pods=1),
        # much is issued, and as much ends: short leases
        replace(CALM, live=60, issued=500, ended=500, pods=None),
        replace(CALM, live=1000, issued=30, ended=0, pods=None),
        replace(CALM, limit=40),
    ],
)
def test_normal_use_is_no_explosion(growth: rules.Growth) -> None:
    assert not list(rules.a_service_account_takes_ever_more_leases(growth))


def test_leases_that_grow_beyond_pods_and_roles_are_an_explosion_that_names_its_culprit() -> None:
    leak = replace(CALM, live=300, issued=250, ended=10, renewed=3, pods=4)
    (found,) = rules.a_service_account_takes_ever_more_leases(leak)
    assert (found.kind, found.severity, found.account) == (FindingKind.EXPLOSION, Severity.HIGH, ACCOUNT)
    assert found.culprit == "shop/checkout"
    for said in (
        "300 live leases; 10 min ago 60",
        "250 were issued, 3 renewed, 10 ended",
        "instead of renewing",
        "4 pods and 1 role: one lease for each would be 4",
        "twice as many in 12 min",
    ):
        assert said in words(found)


def test_an_explosion_that_takes_its_time_is_of_medium_severity_unless_its_limit_is_near() -> None:
    slow = replace(CALM, live=300, issued=60, ended=0, pods=None)
    (found,) = rules.a_service_account_takes_ever_more_leases(slow)
    assert found.severity == Severity.MEDIUM
    assert "how many pods it has is not known" in words(found)
    (near,) = rules.a_service_account_takes_ever_more_leases(replace(slow, limit=600))
    assert near.severity == Severity.HIGH
    assert "max_live_leases in leasehold.toml (600) is reached in 50 min" in words(near)
    (far,) = rules.a_service_account_takes_ever_more_leases(replace(slow, limit=10_000))
    assert far.severity == Severity.MEDIUM


def test_a_standing_pile_of_leases_is_found_though_it_grows_no_more() -> None:
    (found,) = rules.a_service_account_takes_ever_more_leases(replace(CALM, live=200, pods=3))
    assert found.severity == Severity.MEDIUM
    assert "takes ever more" not in found.summary
    (over,) = rules.a_service_account_takes_ever_more_leases(replace(CALM, limit=39))
    assert over.severity == Severity.HIGH
    assert "is 39: it is passed" in words(over)


# --- other rules on leases ---------------------------------------------------------------------------------------


def test_a_lease_that_ends_soon_after_its_pod_is_a_small_matter_and_a_long_one_is_not() -> None:
    assert not list(rules.leases_outlive_their_pods(rules.Outlived(ACCOUNT, 0, 0, None)))
    (soon,) = rules.leases_outlive_their_pods(rules.Outlived(ACCOUNT, 1, 1, timedelta(minutes=3)))
    (late,) = rules.leases_outlive_their_pods(rules.Outlived(ACCOUNT, 3, 2, timedelta(hours=2)))
    (never,) = rules.leases_outlive_their_pods(rules.Outlived(ACCOUNT, 3, 2, None))
    assert [found.severity for found in (soon, late, never)] == [Severity.LOW, Severity.MEDIUM, Severity.MEDIUM]
    assert soon.summary == "1 lease of shop/checkout still works, though 1 pod that held it has ended"
    assert late.summary == "3 leases of shop/checkout still work, though 2 pods that held them have ended"


@pytest.mark.parametrize("rule", [rules.nobody_knows_who_holds_these_leases, rules.vault_gave_up_revoking_these_leases])
def test_no_lease_is_no_finding(rule: object) -> None:
    assert not list(rule(rules.Group(ROLE, 0)))  # type: ignore[operator]
    (found,) = rule(rules.Group(ROLE, 1200))  # type: ignore[operator]
    assert "1,200 leases for orders as my-role" in found.summary


def test_a_lease_at_its_limit_is_within_policy_and_one_beyond_is_not() -> None:
    at = rules.OverTtl(ROLE, timedelta(hours=1), leases=1, renewed=1, longest=timedelta(hours=1, seconds=2))
    assert not list(rules.leases_live_longer_than_policy_allows(at))
    (found,) = rules.leases_live_longer_than_policy_allows(replace(at, longest=timedelta(hours=2)))
    assert found.severity == Severity.MEDIUM
    assert "1 of 1 got there by renewals" in words(found)
    (found,) = rules.leases_live_longer_than_policy_allows(replace(at, longest=timedelta(days=2)))
    assert found.severity == Severity.HIGH


def test_reading_twice_at_start_is_a_hint() -> None:
    assert not list(rules.credentials_are_issued_twice_at_start(rules.Doubled(ACCOUNT, ROLE, 0)))
    (found,) = rules.credentials_are_issued_twice_at_start(rules.Doubled(ACCOUNT, ROLE, 2))
    assert found.severity == Severity.LOW
    assert "shop/checkout reads orders as my-role twice within 5 s" in found.summary


# --- rules on the log --------------------------------------------------------------------------------------------


def test_a_root_token_is_always_worth_a_look() -> None:
    assert not list(log_rules.a_root_token_is_used(log_rules.RootUse(DEPLOYER, 0, NOW)))
    (found,) = log_rules.a_root_token_is_used(log_rules.RootUse(Identity("demo", "root"), 1, NOW))
    assert found.severity == Severity.HIGH
    assert found.summary == "A root token (root) made 1 request at demo"


def test_a_few_denials_are_a_mistake_and_many_are_a_finding() -> None:
    few = log_rules.Denials(DEPLOYER, log_rules.DENIALS - 1, (("read secret/a", 19),))
    assert not list(log_rules.somebody_is_denied_again_and_again(few))
    (found,) = log_rules.somebody_is_denied_again_and_again(replace(few, times=20))
    assert found.severity == Severity.MEDIUM
    assert "19 times: read secret/a" in words(found)
    (found,) = log_rules.somebody_is_denied_again_and_again(replace(few, times=200))
    assert found.severity == Severity.HIGH
    nobody = Identity("demo", "", address="203.0.113.9")
    (found,) = log_rules.somebody_is_denied_again_and_again(replace(few, by=nobody, times=20))
    assert found.culprit == "somebody at 203.0.113.9"


def test_an_entity_that_was_edited_otherwise_is_no_finding() -> None:
    edited = log_rules.EntityChange(DEPLOYER, "identity/entity/id/abc", NOW, "r1", None)
    assert not list(log_rules.an_entity_was_disabled_or_enabled((edited,)))
    disabled = replace(edited, disabled=True)
    (found,) = log_rules.an_entity_was_disabled_or_enabled((edited, disabled))
    assert found.summary == "Entity abc was disabled: its tokens are refused, while its leases live on"
    assert len(found.evidence) == 1
    enabled = replace(edited, disabled=False, at=NOW + MINUTE)
    (found,) = log_rules.an_entity_was_disabled_or_enabled((enabled, disabled))
    assert "was enabled" in found.summary
    assert [item.text.partition(" by ")[0] for item in found.evidence] == ["enabled", "disabled"]
    (found,) = log_rules.an_entity_was_disabled_or_enabled((replace(edited, readable=False),))
    assert "cannot be read any more" in found.summary


def test_a_device_that_is_listed_and_kept_its_salt_is_no_finding() -> None:
    device = log_rules.Device("demo", "file-a")
    assert not list(log_rules.vault_lists_an_audit_device_no_longer(device))
    assert not list(log_rules.an_audit_device_was_enabled_anew(device))
    (gone,) = log_rules.vault_lists_an_audit_device_no_longer(replace(device, missing_since=NOW))
    assert gone.severity == Severity.HIGH
    (anew,) = log_rules.an_audit_device_was_enabled_anew(replace(device, anew_at=NOW))
    assert anew.severity == Severity.MEDIUM


def test_a_stream_that_is_a_little_behind_is_no_finding_and_a_refused_one_is_not_called_late() -> None:
    assert not list(log_rules.a_stream_is_read_too_late(replace(STREAM, behind=2 * MINUTE)))
    assert not list(log_rules.a_device_logs_raw_secrets(STREAM))
    assert not list(log_rules.audit_lines_are_missing(STREAM, ()))
    late = replace(STREAM, behind=3 * MINUTE)
    (found,) = log_rules.a_stream_is_read_too_late(late)
    assert found.severity == Severity.MEDIUM
    refused = replace(late, refused="auth.client_token stands in plain text")
    assert not list(log_rules.a_stream_is_read_too_late(refused))
    (found,) = log_rules.a_device_logs_raw_secrets(refused)
    assert found.severity == Severity.HIGH


def watched(*periods: tuple[float, float]) -> log_rules.Watched:
    """In minutes ago."""
    return log_rules.Watched("demo", tuple((NOW - a * MINUTE, NOW - b * MINUTE) for a, b in periods), NOW)


def test_a_watch_that_goes_on_or_never_began_has_no_gap() -> None:
    for fine in (watched(), watched((60, 0.5)), watched((60, 30), (30.1, 0)), watched((60, 10), (40, 0))):
        assert not list(log_rules.the_pod_watch_had_a_gap(fine))


def test_a_gap_of_the_watch_is_found_in_the_middle_and_at_its_end() -> None:
    (short,) = log_rules.the_pod_watch_had_a_gap(watched((60, 30), (28, 0)))
    assert (short.severity, short.newest_at) == (Severity.LOW, NOW - 28 * MINUTE)
    assert "no change was seen for 2 min" in words(short)
    (long,) = log_rules.the_pod_watch_had_a_gap(watched((60, 30), (20, 0)))
    assert long.severity == Severity.MEDIUM
    (lasting,) = log_rules.the_pod_watch_had_a_gap(watched((60, 2)))
    assert "are not watched" in lasting.summary


def test_a_failed_revocation_is_worse_than_an_unverified_one() -> None:
    failed = log_rules.FailedRevocation(1, "a", "demo", 7, "database/creds/x/1", "failed", "operator", NOW)
    (high,) = log_rules.a_revocation_did_not_end_its_lease_for_sure(failed)
    (medium,) = log_rules.a_revocation_did_not_end_its_lease_for_sure(replace(failed, state="unverified"))
    assert (high.severity, medium.severity) == (Severity.HIGH, Severity.MEDIUM)


# --- coming and going --------------------------------------------------------------------------------------------


def test_what_a_person_closed_opens_again_only_when_it_is_worse() -> None:
    row = Finding(kind="x", key="y", severity=2, weight=10, closed_at=NOW, closed_why="planned", closed_by="operator")
    same = Found(FindingKind.DENIALS, Severity.MEDIUM, "y", "", weight=10, newest_at=NOW - MINUTE)
    assert change_of(row, same) is None
    assert change_of(row, replace(same, weight=15)) is None
    assert change_of(row, replace(same, weight=16)) == "reopened"
    assert change_of(row, replace(same, severity=Severity.HIGH)) == "reopened"
    assert change_of(row, replace(same, newest_at=NOW + MINUTE)) == "reopened"
    row.closed_by = ""
    assert change_of(row, same) == "reopened"
    row.closed_at = None
    assert change_of(row, replace(same, weight=100)) is None
    assert change_of(row, replace(same, severity=Severity.HIGH)) == "worsened"


@pytest.mark.parametrize(("seconds", "text"), [(59, "59 s"), (60, "1 min"), (7199, "1 h"), (86_400 * 3, "3 d")])
def test_a_span_is_written_in_one_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_each_kind_says_what_it_means_and_what_to_do_and_stands_in_the_docs() -> None:
    docs = (Path(__file__).parent.parent / "docs" / "findings.md").read_text().lower()
    for kind in FindingKind:
        assert kinds.MEANS[kind].endswith(".")
        assert kinds.DO[kind].endswith(".")
        assert f"## {kind.value.lower()}" in docs, kind


# --- sessions, users and logins ----------------------------------------------------------------------------------

TRAVELLED = session_rules.Travelled(
    "demo",
    7,
    "database/creds/my-role/abc",
    "shop/checkout-1",
    ACCOUNT,
    ROLE,
    sessions=1,
    going_on=1,
    newest_at=NOW,
    addresses=("203.0.113.9",),
    culprit="",
)


def test_a_credential_that_travelled_is_a_high_finding_of_its_lease_that_names_who_used_it() -> None:
    assert not list(session_rules.a_credential_is_used_from_elsewhere(replace(TRAVELLED, sessions=0)))
    (found,) = session_rules.a_credential_is_used_from_elsewhere(TRAVELLED)
    assert (found.kind, found.severity, found.key) == (
        FindingKind.ELSEWHERE,
        Severity.HIGH,
        "lease demo database/creds/my-role/abc",
    )
    assert found.summary == "The credential of shop/checkout-1 for orders as my-role was used from 203.0.113.9"
    assert (found.culprit, found.account, found.evidence[0].lease) == ("203.0.113.9", ACCOUNT, 7)
    (found,) = session_rules.a_credential_is_used_from_elsewhere(replace(TRAVELLED, guessed=True))
    assert found.severity == Severity.MEDIUM
    known = replace(TRAVELLED, culprit="tools/debug-7", addresses=("10.0.0.9", "10.0.0.8"), sessions=4, going_on=0)
    (found,) = session_rules.a_credential_is_used_from_elsewhere(known)
    assert found.summary.endswith("was used from 10.0.0.9 (tools/debug-7) and 1 other address")
    assert (found.culprit, found.weight) == ("tools/debug-7", 4)
    assert "4 sessions from elsewhere, all have ended" in words(found)


STRAY = session_rules.StrayLogins(
    ACCOUNT, "203.0.113.9", "", logins=2, newest_at=NOW, seen_directly=True, other_accounts=0
)


@pytest.mark.parametrize(
    "stray",
    [
        # a proxy: others log in from there too
        replace(STRAY, other_accounts=2),
        replace(STRAY, other_accounts=2, pod="mesh/gateway-1"),
        # NAT: none of its pods is ever seen directly
        replace(STRAY, seen_directly=False),
    ],
)
def test_what_stands_between_pods_and_vault_is_no_stray_login(stray: session_rules.StrayLogins) -> None:
    assert not list(session_rules.logins_came_from_no_pod_of_their_service_account([stray]))
    assert not list(session_rules.logins_came_from_no_pod_of_their_service_account([]))


def test_stray_logins_are_one_finding_of_their_service_account() -> None:
    other = replace(STRAY, address="10.0.0.9", pod="tools/debug-7", seen_directly=False, newest_at=NOW - MINUTE)
    (found,) = session_rules.logins_came_from_no_pod_of_their_service_account([other, STRAY])
    assert (found.kind, found.severity, found.key) == (FindingKind.LOGIN_ELSEWHERE, Severity.MEDIUM, ACCOUNT.key)
    assert (found.weight, found.newest_at, found.culprit) == (4, NOW, "203.0.113.9")
    assert found.summary.startswith("shop/checkout logged in from 203.0.113.9 (no pod) and 1 other address")


GHOSTS = session_rules.Ghosts("demo", "pg-1", "orders", users=1, with_sessions=0, unsure=0, newest_at=NOW)


def test_users_without_a_lease_are_grave_where_somebody_uses_them() -> None:
    assert not list(session_rules.database_users_have_no_lease(replace(GHOSTS, users=0, unsure=9)))
    (found,) = session_rules.database_users_have_no_lease(GHOSTS)
    assert (found.severity, found.summary) == (
        Severity.MEDIUM,
        "1 user of orders has no lease: Vault will never drop it",
    )
    (found,) = session_rules.database_users_have_no_lease(replace(GHOSTS, users=3, with_sessions=2, unsure=4))
    assert found.severity == Severity.HIGH
    assert "2 users with open sessions" in words(found)
    assert "4 more users not counted" in words(found)


def test_leases_without_a_user_weigh_by_how_long_they_last() -> None:
    soon = session_rules.Zombies(ROLE, 1, 30 * MINUTE)
    assert not list(session_rules.live_leases_have_no_database_user(replace(soon, leases=0)))
    found = [
        next(session_rules.live_leases_have_no_database_user(replace(soon, longest=longest))).severity
        for longest in (30 * MINUTE, 90 * MINUTE, None)
    ]
    assert found == [Severity.LOW, Severity.MEDIUM, Severity.MEDIUM]


def test_a_session_that_outlives_a_revocation_made_here_is_grave() -> None:
    outliving = session_rules.Outliving("demo", "lease demo x", "shop/a on orders", ACCOUNT, 1, False, NOW)
    assert not list(session_rules.sessions_outlive_their_user(replace(outliving, sessions=0)))
    (found,) = session_rules.sessions_outlive_their_user(outliving)
    assert (found.severity, found.summary) == (
        Severity.MEDIUM,
        "1 session of shop/a on orders goes on, though the user was dropped or the lease ended",
    )
    (found,) = session_rules.sessions_outlive_their_user(replace(outliving, revoked_here=True, sessions=2))
    assert (found.severity, "2 sessions of shop/a on orders go on" in found.summary) == (Severity.HIGH, True)
