"""One pod's sidecar: the configuration of a real `bao agent`, as the agent injector would write it."""

import json
from dataclasses import dataclass
from pathlib import Path

from demo.workloads import Application


@dataclass(frozen=True, slots=True)
class Files:
    """A pod's file system, inside the demo's folder; the names are the usual ones in a container."""

    root: Path

    @property
    def credentials(self) -> Path:
        """What the agent's template renders."""
        return self.root / "vault/secrets/db-creds"

    @property
    def service_account_token(self) -> Path:
        """What the kubelet projects."""
        return self.root / "var/run/secrets/openbao/token"

    @property
    def vault_token(self) -> Path:
        """The agent's sink, where the pod's shutdown finds the token to revoke."""
        return self.root / "home/vault/.vault-token"

    @property
    def template(self) -> Path:
        """The template's source."""
        return self.root / "vault/config/db-creds.ctmpl"

    @property
    def config(self) -> Path:
        """The agent's configuration."""
        return self.root / "vault/config/agent.hcl"

    def make_folders(self) -> None:
        """The folders of the files that are written while the pod runs."""
        for file in (self.credentials, self.service_account_token, self.vault_token, self.config):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def prepare(files: Files, application: Application, *, vault_address: str) -> None:
    """Write the configuration and the template (https://openbao.org/docs/agent-and-proxy/agent)."""
    files.make_folders()
    files.template.write_text(
        f'{{{{ with secret "{application.credentials_path}" -}}}}\n'
        "username={{ .Data.username }}\npassword={{ .Data.password }}\nlease_id={{ .LeaseID }}\n"
        "{{- end }}\n"
    )
    token_key = "token_path" if application.method == "kubernetes" else "path"
    login = {token_key: str(files.service_account_token), "role": application.vault_role}
    if application.method == "jwt":
        login["remove_jwt_after_reading"] = "false"
    sink = _sink(files.vault_token) if application.revokes_on_shutdown else ""
    files.config.write_text(
        f"""vault {{
  address = {_quoted(vault_address)}
}}
auto_auth {{
  method {{
    type        = {_quoted(application.method)}
    mount_path  = {_quoted(f"auth/{application.auth_mount}")}
    min_backoff = "1s"
    max_backoff = "15s"
    config      = {{
{_lines(login)}
    }}
  }}
{sink}}}
template_config {{
  exit_on_retry_failure = false
}}
template {{
  source      = {_quoted(str(files.template))}
  destination = {_quoted(str(files.credentials))}
  perms       = "0600"
}}
"""
    )


def _sink(file: Path) -> str:
    return f'  sink {{\n    type   = "file"\n    config = {{ path = {_quoted(str(file))}, mode = 384 }}\n  }}\n'


def _lines(values: dict[str, str]) -> str:
    return "\n".join(f"      {name} = {_quoted(value)}" for name, value in values.items())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
