"""What the workers do, called in turn by tests that decide when: a configured world, its streams read, its pods watched."""

from datetime import timedelta
from pathlib import Path

from django.db.models import F
from django.utils import timezone

from audit import attribute, configuration, follow
from audit.ingest import ingest, position_of
from audit.models import Stream
from leases import clients, lists, lookups, watch
from leases.configuration import load
from leases.models import Cluster, Lease, Policy, Vault, WatchPeriod
from tests.world import TestPod, World


def configure(world: World) -> None:
    """The world as `manage.py configure` knows it, with every stream read up to now and the watch begun."""
    file = world.folder / "leasehold.toml"
    file.write_text(world.toml())
    configuration.apply(load(file))
    for stream in Stream.objects.all():
        end = Path(stream.path).stat().st_size
        chunk = follow.read(Path(stream.path), follow.Position(offset=end))
        Stream.objects.filter(pk=stream.pk).update(
            file_inode=chunk.position.inode, file_start=chunk.position.start, offset=chunk.position.offset
        )
    watch.list_all(Cluster.objects.get(), clients.kube(Cluster.objects.get()))
    # what a pod does right after this shall not fall into the clock skew around the watch's begin
    WatchPeriod.objects.update(from_at=F("from_at") - timedelta(minutes=1))
    for mount in ("database",):
        lists.read_roles(Vault.objects.get(), mount, clients.observer(Vault.objects.get()))


def read_streams(*, only: str | None = None) -> None:
    for stream in Stream.objects.select_related("device__vault").order_by("id"):
        if only and stream.device.name != only:
            continue
        before = position_of(stream)
        while True:
            chunk = follow.read(Path(stream.path), before)
            if not chunk.lines:
                break
            ingest(stream.pk, chunk, expected=before, now=timezone.now())
            before = chunk.position


def catch_up() -> None:
    """What the workers do in a few seconds."""
    # past the clock skew after what was read just now
    window = int(Policy.current().clock_skew_seconds) + 1
    watch.follow(Cluster.objects.get(), seconds=0, on_change=lambda: None, window=window)
    attribute.attribute(attribute.open_leases(), now=timezone.now())


def issue(pod: TestPod) -> str:
    pod.log_in()
    lease_id = pod.read_credentials()["lease_id"]
    read_streams()
    return str(lease_id)


def look_up(lease_id: str) -> Lease:
    """The lease, after every lookup that is due."""
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    return Lease.objects.get(lease_id=lease_id)
