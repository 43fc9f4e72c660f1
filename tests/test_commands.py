"""The command line: bad input gets an error that says what to do, and each command can be run twice."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command

from audit.models import Stream
from leases.configuration import ConfigurationError, load
from leases.models import AuthMount, Certainty, Lease, Pod, Vault
from tests.world import World

pytestmark = pytest.mark.django_db

LOGIN = "hmac-sha256:" + "1" * 64
USER = "hmac-sha256:" + "2" * 64


def run(*arguments: Any, **options: Any) -> str:
    output = io.StringIO()
    call_command(*(str(argument) for argument in arguments), stdout=output, **options)
    return output.getvalue()


def log(path: Path) -> Path:
    """A Kubernetes login and a credential read, as the log of a foreign vault shows them."""
    metadata = {"service_account_name": "web", "service_account_namespace": "shop", "role": "web"}
    entries = [
        {
            "time": "2026-11-20T10:00:00Z",
            "type": "response",
            "request": {
                "id": "login-1",
                "operation": "update",
                "path": "auth/kubernetes/login",
                "mount_point": "auth/kubernetes/",
                "remote_address": "10.1.2.3",
            },
            "response": {"auth": {"client_token": LOGIN, "accessor": LOGIN, "metadata": metadata}},
        },
        {
            "time": "2026-11-20T10:00:01Z",
            "type": "response",
            "auth": {"client_token": LOGIN, "accessor": LOGIN, "metadata": metadata},
            "request": {
                "id": "read-1",
                "operation": "read",
                "path": "database/creds/my-role",
                "mount_point": "database/",
                "remote_address": "10.1.2.3",
            },
            "response": {
                "secret": {"lease_id": "database/creds/my-role/abc"},
                "data": {"username": USER, "password": USER},
            },
        },
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def pods(path: Path) -> Path:
    path.write_text(
        json.dumps(
            {
                "namespace": "shop",
                "name": "web-1",
                "uid": "u-1",
                "service_account": "web",
                "ips": ["10.1.2.3"],
                "started_at": "2026-11-20T09:00:00Z",
                "ended_at": "2026-11-20T11:00:00Z",
            }
        )
    )
    return path


@pytest.mark.parametrize("first", ["log", "pods"])
def test_a_foreign_log_and_its_pods_name_the_holder_whichever_comes_first(tmp_path: Path, first: str) -> None:
    def take_log() -> None:
        result = json.loads(run("ingest", log(tmp_path / "a.log"), vault="v", device="d", json=True))
        assert (result["lines"], result["events"], result["rejected"], result["unpaired"]) == (2, 2, 0, 2)

    def take_pods() -> None:
        run("import_pods", pods(tmp_path / "pods.ndjson"), cluster="c", auth_mount="kubernetes", vault="v")

    for step in (take_log, take_pods) if first == "log" else (take_pods, take_log):
        step()
    lease = Lease.objects.get()
    assert (lease.certainty, lease.pod, lease.service_account) == (Certainty.INFERRED, "web-1", "web")


def test_a_log_that_is_taken_twice_counts_duplicates_and_changes_nothing(tmp_path: Path) -> None:
    file = log(tmp_path / "a.log")
    run("ingest", file, vault="v", device="d", json=True)
    again = json.loads(run("ingest", file, vault="v", device="d", json=True))
    assert (again["lines"], again["duplicates"], again["events"]) == (2, 2, 0)
    assert Lease.objects.get().renewals == 0


def test_an_address_that_is_none_stops_nothing(tmp_path: Path) -> None:
    file = log(tmp_path / "a.log")
    file.write_text(file.read_text().replace("10.1.2.3", "@"))
    run("import_pods", pods(tmp_path / "pods.ndjson"), cluster="c", auth_mount="kubernetes", vault="v")
    run("ingest", file, vault="v", device="d")
    assert Lease.objects.get().certainty == Certainty.SERVICE_ACCOUNT


def test_the_examination_of_a_foreign_log_starts_no_polling(tmp_path: Path) -> None:
    run("ingest", log(tmp_path / "a.log"), vault="v", device="d")
    assert Vault.objects.get(name="v").retired


def test_kubectls_own_output_is_taken(tmp_path: Path) -> None:
    item = {
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "uid": "u-1",
            "creationTimestamp": "2026-11-20T09:00:00Z",
        },
        "spec": {"serviceAccountName": "web", "nodeName": "n"},
        "status": {"podIPs": [{"ip": "10.1.2.3"}], "startTime": "2026-11-20T09:00:01Z"},
    }
    (tmp_path / "pods.json").write_text(json.dumps({"kind": "List", "items": [item]}))
    result = json.loads(
        run("import_pods", tmp_path / "pods.json", cluster="c", auth_mount="kubernetes", vault="v", json=True)
    )
    assert (result["pods"], result["new"]) == (1, 1)


def test_kubectls_output_with_owners_names_the_workloads_whatever_comes_first(tmp_path: Path) -> None:
    def item(kind: str, name: str, owner: dict[str, Any] | None, **parts: Any) -> dict[str, Any]:
        metadata = {"name": name, "namespace": "shop", "uid": f"u-{name}", "creationTimestamp": "2026-11-20T09:00:00Z"}
        if owner:
            metadata["ownerReferences"] = [{**owner, "controller": True}]  # type: ignore[assignment]
        return {"kind": kind, "metadata": metadata, **parts}

    environment = [{"secretRef": {"name": "web-db"}}]
    running = {"podIPs": [{"ip": "10.1.2.3"}], "startTime": "2026-11-20T09:00:01Z", "phase": "Running"}
    owner = {"kind": "ReplicaSet", "name": "web-5b7", "uid": "u-web-5b7"}
    pod = item("Pod", "web-1", owner, spec={"serviceAccountName": "web", "containers": [{"envFrom": environment}]})
    pod["status"] = running
    pod["metadata"]["labels"] = {"app.kubernetes.io/name": "external-secrets"}
    deployment = {"kind": "Deployment", "name": "web", "uid": "u-web"}
    items = [pod, item("ReplicaSet", "web-5b7", deployment, spec={}), item("Service", "web", None)]
    (tmp_path / "pods.json").write_text(json.dumps({"kind": "List", "items": items}))
    run("import_pods", tmp_path / "pods.json", cluster="c", auth_mount="kubernetes", vault="v")
    known = Pod.objects.get()
    assert (known.owner_kind, known.owner_name) == ("ReplicaSet", "web-5b7")
    assert (known.workload_kind, known.workload_name) == ("Deployment", "web")
    assert (known.fetcher, known.secrets, known.phase) == (True, ["web-db"], "Running")
    # rows that tell less take nothing away
    rows = pods(tmp_path / "pods.ndjson").read_text().replace('"u-1"', '"u-web-1"')
    (tmp_path / "pods.ndjson").write_text(rows)
    run("import_pods", tmp_path / "pods.ndjson", cluster="c", auth_mount="kubernetes", vault="v")
    assert Pod.objects.get().workload_name == "web"


@pytest.mark.parametrize("finished", [None, "2026-11-20T09:30:00Z"])
def test_a_finished_pod_of_kubectls_output_has_no_address_afterwards(tmp_path: Path, finished: str | None) -> None:
    status: dict[str, Any] = {"podIPs": [{"ip": "10.1.2.3"}], "startTime": "2026-11-20T09:00:01Z", "phase": "Succeeded"}
    if finished:
        status["containerStatuses"] = [{"state": {"terminated": {"finishedAt": finished}}}]
    later = {"podIPs": [{"ip": "10.1.2.9"}], "startTime": "2026-11-20T11:00:00Z", "phase": "Running"}
    items = [
        {
            "metadata": {"name": name, "namespace": "shop", "uid": name, "creationTimestamp": "2026-11-20T09:00:00Z"},
            "spec": {"serviceAccountName": "web"},
            "status": state,
        }
        for name, state in (("job", status), ("web", later))
    ]
    (tmp_path / "pods.json").write_text(json.dumps({"items": items}))
    run("import_pods", tmp_path / "pods.json", cluster="c", auth_mount="kubernetes", vault="v")
    run("ingest", log(tmp_path / "a.log"), vault="v", device="d")
    assert (Lease.objects.get().certainty, Lease.objects.get().pod) == (Certainty.SERVICE_ACCOUNT, "")


@pytest.mark.parametrize("text", ["", "[]", '{"namespace":"x"}', "not json"])
def test_a_pod_file_that_cannot_be_used_says_why(tmp_path: Path, text: str) -> None:
    (tmp_path / "pods").write_text(text)
    with pytest.raises(CommandError, match=r"\w"):
        run("import_pods", tmp_path / "pods", cluster="c", auth_mount="kubernetes", vault="v")


def test_configure_applies_twice_and_retires_what_is_gone(world: World, settings: LazySettings) -> None:
    settings.CONFIG_FILE = world.folder / "leasehold.toml"
    settings.CONFIG_FILE.write_text(world.toml())
    assert "1 vaults, 2 streams, 1 clusters, 2 databases" in run("configure")
    run("configure")
    assert (Stream.objects.filter(retired=False).count(), AuthMount.objects.count()) == (2, 2)
    settings.CONFIG_FILE.write_text("")
    run("configure")
    assert (Stream.objects.filter(retired=False).count(), AuthMount.objects.count()) == (0, 0)
    assert Vault.objects.get(name="demo").retired


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vaults = 3", "Expected `array`"),
        ('[[vaults]]\nname = "a"', "missing required field"),
        ('[[vaults]]\nname="a"\naddress="x"\n[vaults.observe]\nmethod="token"\nsecret={env="T"}', "is no address"),
        ('[[vaults]]\nname="a"\naddress="http://v"\n[vaults.observe]\nmethod="token"\nsecret={}', "secret is named"),
        ('[[vaults]]\nname="a"\naddress="http://v"\n[vaults.observe]\nmethod="token"\nsecret="hvs.x"', "Expected"),
        ('[[vaults]]\nname="a"\naddress="http://v"\n[vaults.observe]\nmethod="kubernetes"\nsecret={env="T"}', "mount"),
        ('[[databases]]\nvault="x"\nmount="m"\nname="n"\nkind="postgresql"', "no vault is named"),
        ("spelled_wrong = 1", "unknown field"),
        ("= broken", "not valid TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_place_and_the_reason(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "leasehold.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path / "leasehold.toml")


def test_a_missing_configuration_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Copy leasehold"):
        load(tmp_path / "none.toml")


def test_the_example_configuration_is_a_good_one() -> None:
    load(Path(__file__).resolve().parent.parent / "leasehold.example.toml")


def test_an_export_whose_period_is_empty_is_refused() -> None:
    with pytest.raises(CommandError, match="before"):
        run("export", "accesses", "--from", "2026-11-02", "--to", "2026-11-01")


def test_sync_leases_of_an_unknown_vault_names_the_known_ones() -> None:
    with pytest.raises(CommandError, match="No vault is named"):
        run("sync_leases", vault="nobody")


def test_doctor_says_what_to_do_first_on_an_empty_installation() -> None:
    output = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("doctor", json=True, stdout=output)
    wrong = {finding["what"]: finding["fix"] for finding in json.loads(output.getvalue()) if not finding["ok"]}
    assert "manage.py configure" in wrong["configuration"]
    assert "celery -A dashboard worker" in wrong["workers"]
