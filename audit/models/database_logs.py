"""The own logs of database servers, as they are followed: how far each is read, and what it told."""

from django.db import models

from leases.models import Database, DatabaseServer


class LogFormat(models.TextChoices):
    """The words of [[databases]] log.format, which are PostgreSQL's own."""

    JSON = "jsonlog"
    CSV = "csvlog"


class DatabaseLog(models.Model):
    """The log of one database server. Several [[databases]] on that server may name it: it is read once."""

    # one file, or what names its files: a glob, or the server's log_filename
    path = models.TextField()
    format = models.TextField(choices=LogFormat)
    databases = models.ManyToManyField(Database, related_name="logs")
    # whose log it is: the server that samples of its databases named; nothing is read before that is known
    server = models.ForeignKey(DatabaseServer, models.SET_NULL, null=True)
    retired = models.BooleanField(default=False)
    # of several files the one that is being read, and when it began
    file = models.TextField(blank=True)
    file_began = models.DateTimeField(null=True)
    # as of a stream: it is known by device and inode and by the SHA-256 of its first bytes
    file_inode = models.TextField(blank=True)
    file_start = models.TextField(blank=True)
    offset = models.BigIntegerField(default=0)
    read_at = models.DateTimeField(null=True)
    unread_bytes = models.BigIntegerField(default=0)
    # records of any kind, and those that are none
    lines = models.BigIntegerField(default=0)
    invalid = models.BigIntegerField(default=0)
    # of dynamic users: sessions that began, that ended, and log-ins that were refused
    connections = models.BigIntegerField(default=0)
    disconnections = models.BigIntegerField(default=0)
    rejected = models.BigIntegerField(default=0)
    first_line_at = models.DateTimeField(null=True)
    last_line_at = models.DateTimeField(null=True)
    # of the newest connection that it told, whoever's it was
    connected_at = models.DateTimeField(null=True)
    # since when nothing is missing from it; None while something is, or nobody knows
    complete_since = models.DateTimeField(null=True)
    # what was missing last, and when that was found
    hole = models.TextField(blank=True)
    hole_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["path", "format"], name="a_log_is_followed_once")]

    def __str__(self) -> str:
        return f"log {self.path}"


class ServerStart(models.Model):
    """When a server came up, as its log says: no session that began before went on."""

    log = models.ForeignKey(DatabaseLog, models.CASCADE, related_name="starts")
    at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["log", "at"], name="a_server_starts_once_at_a_time")]

    def __str__(self) -> str:
        return f"{self.log_id} at {self.at:%FT%TZ}"
