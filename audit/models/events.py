"""Events: one request to one vault. Derived from the raw blocks."""

from django.db import models

from audit.models.streams import Device, Stream
from leases.models import Login, Vault


class Event(models.Model):
    """One request, its request and response lines merged, whichever came first."""

    vault = models.ForeignKey(Vault, models.CASCADE)
    request_id = models.TextField()
    at = models.DateTimeField()
    request_at = models.DateTimeField(null=True)
    response_at = models.DateTimeField(null=True)
    operation = models.TextField(blank=True)
    path = models.TextField(blank=True)
    mount_point = models.TextField(blank=True)
    mount_type = models.TextField(blank=True)
    namespace_path = models.TextField(blank=True)
    address = models.TextField(blank=True)
    display_name = models.TextField(blank=True)
    entity_id = models.TextField(blank=True)
    token_type = models.TextField(blank=True)
    policies = models.JSONField(default=list)
    metadata = models.JSONField(default=dict)
    lease_id = models.TextField(blank=True)
    error = models.TextField(blank=True)
    # made by this product's own tokens: set aside from lists and counts
    own = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["vault", "request_id"], name="event_is_one_request"),
            models.CheckConstraint(
                condition=models.Q(request_at__isnull=False) | models.Q(response_at__isnull=False),
                name="an_event_has_a_half",
            ),
        ]
        indexes = [
            models.Index(fields=["-at", "-id"], name="event_newest"),  # queries.events_page()
            models.Index(fields=["vault", "lease_id"], name="event_by_lease", condition=~models.Q(lease_id="")),
        ]

    def __str__(self) -> str:
        return f"{self.operation} {self.path}"


class Sighting(models.Model):
    """One stream's record of one event, with that device's HMACs and the place of its lines."""

    event = models.ForeignKey(Event, models.CASCADE, related_name="sightings")
    stream = models.ForeignKey(Stream, models.CASCADE)
    device = models.ForeignKey(Device, models.CASCADE)
    salt_epoch = models.PositiveIntegerField()
    request_block = models.BigIntegerField(null=True)
    response_block = models.BigIntegerField(null=True)
    # accessor of the token that made the request
    accessor = models.TextField(blank=True)
    # accessor of the token that the response created
    new_accessor = models.TextField(blank=True)
    # database user in the response of a credential read
    username = models.TextField(blank=True)
    # lease id or accessor in the request's data (revoke, renew, revoke-accessor)
    data_lease_id = models.TextField(blank=True)
    data_accessor = models.TextField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["event", "stream"], name="a_stream_sees_an_event_once")]
        indexes = [
            # ledger.link_leases(): which reads were made with this login's token
            models.Index(fields=["device", "salt_epoch", "accessor"], name="sighting_by_accessor"),
            # users.match(): which read issued this database user
            models.Index(
                fields=["device", "salt_epoch", "username"],
                name="sighting_by_username",
                condition=~models.Q(username=""),
            ),
            # ledger.take_revoke_by_body(): which lease has this hash
            models.Index(
                fields=["device", "salt_epoch", "data_lease_id"],
                name="sighting_by_lease_hash",
                condition=~models.Q(data_lease_id=""),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event_id} on {self.stream_id}"


class LoginKey(models.Model):
    """How a login's token shows in one salt epoch of one device."""

    device = models.ForeignKey(Device, models.CASCADE)
    salt_epoch = models.PositiveIntegerField()
    accessor = models.TextField()
    login = models.ForeignKey(Login, models.CASCADE, related_name="keys")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device", "salt_epoch", "accessor"], name="an_accessor_is_one_login")
        ]

    def __str__(self) -> str:
        return self.accessor
