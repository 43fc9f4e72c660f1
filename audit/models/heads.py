"""Signed documents about the heads of the chains: which there are, and how their delivery is doing."""

from django.db import models
from django.db.models import Q


class HeadsDocument(models.Model):
    """A signed document. Evidence is what was delivered outside: these rows only serve the next one and what still waits."""

    number = models.PositiveIntegerField(primary_key=True)
    at = models.DateTimeField()
    name = models.TextField()
    sha256 = models.TextField()
    # until it lies in every place
    document = models.TextField(blank=True)
    # places, as `deliver_to` names them, where it lies already
    delivered_to = models.JSONField(default=list)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(delivered_at=None) ^ Q(document=""), name="a_document_is_kept_until_it_is_delivered"
            )
        ]
        indexes = [
            # heads.waiting()
            models.Index(fields=["number"], condition=Q(delivered_at=None), name="document_that_waits")
        ]

    def __str__(self) -> str:
        return self.name


class Signing(models.Model):
    """How heads.sign_heads() is doing: one row, made by `configure` where heads are to be signed."""

    since = models.DateTimeField()
    tried_at = models.DateTimeField(null=True)
    # what kept a document from being signed or delivered
    cause = models.TextField(blank=True)
    fix = models.TextField(blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="there_is_one_signing")]

    def __str__(self) -> str:
        return "signing"
