"""Evidence packs."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "owner"])

def test_x(tmp_path: Path) -> None:
    factories.scene()
    from django.utils import timezone
    now = timezone.now()
    (tmp_path/"out").mkdir()
    call_command("make_signing_key", str(tmp_path / "key"))
    from leases.models import Policy
    Policy.objects.update_or_create(pk=1, defaults={"heads_key": {"file": str(tmp_path/"key")}})
    call_command("report", "--from", (now - timedelta(hours=20)).isoformat(), "--to", (now - timedelta(seconds=3)).isoformat(), "--output", tmp_path/"out")
    pack = next((tmp_path/"out").iterdir())
    import subprocess
    print(subprocess.run(["unzip", "-p", pack, "README.txt"], capture_output=True, text=True).stdout)
    print(subprocess.run(["unzip", "-v", pack], capture_output=True, text=True).stdout)
    print(subprocess.run(["unzip", "-p", pack, "coverage.csv"], capture_output=True, text=True).stdout[:3000])
    print(subprocess.run(["unzip", "-p", pack, "gaps.csv"], capture_output=True, text=True).stdout[:3000])
    print(subprocess.run(["unzip", "-p", pack, "manifest.json"], capture_output=True, text=True).stdout[:9000])
    call_command("verify", pack, "--database")
    assert 0
