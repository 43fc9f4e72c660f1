"""Sessions on databases under dynamic users: proof of use, where a lease is proof of access. And the users themselves."""

from django.db import models
from django.db.models import F, Q

from leases.models.ledger import Lease
from leases.models.sources import Database


class DatabaseServer(models.Model):
    """One database server as it names itself. Several [[databases]] may live on it; behind one address there may be several."""

    # its kind, its own number where it has one, and the address that it answers at: stays over restarts
    identity = models.TextField(unique=True)
    # when it came up, by its own clock
    started_at = models.DateTimeField(null=True)
    # the newest sample that it answered, by its own clock
    sampled_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.identity


class DynamicUser(models.Model):
    """A user that Vault made on a server, from first to last sight. It stays: a session may outlive it."""

    server = models.ForeignKey(DatabaseServer, models.CASCADE, related_name="users")
    name = models.TextField()
    # the server's own number for it, where it has one: what is left of it in the sessions of a dropped role
    oid = models.BigIntegerField(null=True)
    valid_until = models.DateTimeField(null=True)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    gone_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["server", "name"], name="dynamic_user_is_one_name_on_its_server")
        ]
        indexes = [
            # users that are there now
            models.Index(fields=["server", "name"], name="dynamic_user_there", condition=Q(gone_at=None)),
            # audit.users: new ones, whose lease is not known yet
            models.Index(fields=["first_seen_at"], name="dynamic_user_new"),
            # whose number is this
            models.Index(fields=["server", "oid"], name="dynamic_user_by_oid"),
        ]

    def __str__(self) -> str:
        return self.name


class TiedBy(models.TextChoices):
    """How a database user is known to be a lease's. The last one is a guess, and is marked so wherever it is shown."""

    PLAIN = "plain name in the log"
    HASH = "audit hash"
    TIME_AND_NAME = "time and name"


class Place(models.TextChoices):
    """Where a session came from, against where its lease's holder was when it began."""

    HOLDER = "holder"
    NAT = "NAT"
    POOLER = "pooler"
    ELSEWHERE = "elsewhere"
    # the holder is not known well enough to say so
    NOT_JUDGED = "not judged"


class Ended(models.TextChoices):
    """How the end of a session is known."""

    LOGGED = "logged"
    # a later sample of the same server did not show it
    SAMPLED = "no longer seen"
    RESTARTED = "server restarted"


class Session(models.Model):
    """One connection to a database under a dynamic user, as samples and the server's own log tell of it."""

    server = models.ForeignKey(DatabaseServer, models.CASCADE, related_name="sessions")
    # the server's own name for it, the same in samples and log: PostgreSQL's session_id, MariaDB's start and connection id
    key = models.TextField()
    # the lease's, once that is known; else the one whose sample or log showed it
    database = models.ForeignKey(Database, models.SET_NULL, null=True, related_name="sessions", db_index=False)
    # of the database within the server
    database_name = models.TextField(blank=True)
    # empty only where the role was dropped before anybody saw its name
    database_user = models.TextField(blank=True)
    user_oid = models.BigIntegerField(null=True)
    # its user was dropped, and it went on
    user_vanished_at = models.DateTimeField(null=True)
    pid = models.BigIntegerField()
    started_at = models.DateTimeField()
    # the server says when it began; else that is the first sight of it
    start_is_known = models.BooleanField(default=True)
    # empty: a local socket
    address = models.TextField(blank=True)
    port = models.PositiveIntegerField(null=True)
    application = models.TextField(blank=True)
    state = models.TextField(blank=True)
    sampled = models.BooleanField(default=False)
    logged = models.BooleanField(default=False)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    end_known_by = models.TextField(choices=Ended, blank=True)
    lease = models.ForeignKey(Lease, models.SET_NULL, null=True, related_name="sessions", db_index=False)
    # empty: not looked at yet
    place = models.TextField(choices=Place, blank=True)
    place_reason = models.TextField(blank=True)
    # later evidence can still tell where it came from, or tell otherwise
    place_open = models.BooleanField(default=True, db_default=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["server", "key"], name="session_is_one_key_on_its_server"),
            models.CheckConstraint(condition=Q(sampled=True) | Q(logged=True), name="a_session_was_sampled_or_logged"),
            models.CheckConstraint(
                condition=Q(ended_at=None, end_known_by="") | Q(ended_at__isnull=False) & ~Q(end_known_by=""),
                name="an_ended_session_says_how_its_end_is_known",
            ),
            models.CheckConstraint(
                condition=Q(place="") | ~Q(place_reason=""), name="a_place_that_was_judged_has_a_reason"
            ),
        ]
        indexes = [
            # sessions of a lease, newest first; how many, the first and the last for exports
            models.Index(F("lease"), F("started_at").desc(), F("id").desc(), name="session_of_lease"),
            # sessions of a database, newest first
            models.Index(F("database"), F("started_at").desc(), F("id").desc(), name="session_of_database"),
            # session_queries.sessions_page(): open ones, those without a lease; watching(), open_by_database()
            models.Index(
                F("database"),
                F("started_at").desc(),
                F("id").desc(),
                name="session_open_of_database",
                condition=Q(ended_at=None),
            ),
            models.Index(
                F("database"),
                F("started_at").desc(),
                F("id").desc(),
                name="session_untied_of_database",
                condition=Q(lease=None),
            ),
            # exports of a period
            models.Index(fields=["started_at", "id"], name="session_started"),
            # what a sample may show to have ended. Without a time: each sample moves those of all open sessions, and what no index
            # holds is moved cheaply
            models.Index(fields=["server"], name="session_open", condition=Q(ended_at=None)),
            # what has no lease yet
            models.Index(fields=["database_user"], name="session_untied", condition=Q(lease=None)),
            # what has not been judged yet
            models.Index(fields=["id"], name="session_unjudged", condition=Q(place="")),
            # audit.sessions: what is to be tied or judged
            models.Index(fields=["id"], name="session_place_open", condition=Q(place_open=True)),
            # the finding
            models.Index(fields=["-started_at", "-id"], name="session_elsewhere", condition=Q(place="elsewhere")),
            # findings.session_facts: those that were seen lately
            models.Index(fields=["last_seen_at"], name="session_elsewhere_seen", condition=Q(place="elsewhere")),
        ]

    def __str__(self) -> str:
        return f"{self.database_user or 'a dropped user'} {self.key}"


class Sampling(models.Model):
    """How a database's sessions are sampled, and what that costs the server."""

    database = models.OneToOneField(Database, models.CASCADE, related_name="sampling")
    # which server answered last
    server = models.ForeignKey(DatabaseServer, models.SET_NULL, null=True)
    due_at = models.DateTimeField()
    # grows where a sample costs the server much
    interval_seconds = models.FloatField()
    sampled_at = models.DateTimeField(null=True)
    # when its users were listed last
    users_at = models.DateTimeField(null=True)
    samples = models.PositiveBigIntegerField(default=0)
    # sessions of dynamic users in the last sample
    sessions = models.PositiveIntegerField(default=0)
    # milliseconds on the server's side: of the last sample, and of all of them
    took_ms = models.FloatField(default=0)
    total_ms = models.FloatField(default=0)
    # of the server's databases the one that its monitoring account is in
    database_name = models.TextField(blank=True, default="", db_default="")
    # how far the server's clock is ahead of this product's; negative: behind
    clock_ahead_seconds = models.FloatField(default=0, db_default=0)

    def __str__(self) -> str:
        return f"sampling of {self.database}"


class AnsweringServer(models.Model):
    """A server that answered at a database's address, from its first to its last answer there without a long pause."""

    database = models.ForeignKey(Database, models.CASCADE, related_name="answering_servers", db_index=False)
    server = models.ForeignKey(DatabaseServer, models.CASCADE, related_name="answers_for")
    # by this product's clock
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        # sessions.servers_in_turn()
        constraints = [models.UniqueConstraint(fields=["database", "server"], name="a_server_answers_as_one_row")]

    def __str__(self) -> str:
        return f"{self.server_id} for {self.database_id}"


class MonitorUser(models.Model):
    """A dynamic user that Vault made for this product to monitor with. Its sessions are nobody's use of a credential."""

    database = models.ForeignKey(Database, models.CASCADE, related_name="monitor_users", db_index=False)
    name = models.TextField()
    read_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["database", "name"], name="monitor_user_is_there_once")]
        # sessions.take_sample()
        indexes = [models.Index(fields=["name"], name="monitor_user_by_name")]

    def __str__(self) -> str:
        return self.name


class SampledPeriod(models.Model):
    """A stretch of time in which a database was sampled at its interval, or its log was read without a hole: what it had is known."""

    database = models.ForeignKey(Database, models.CASCADE, related_name="sampled_periods")
    # by the log, so that sessions shorter than a sample are known too
    logged = models.BooleanField(default=False)
    from_at = models.DateTimeField()
    to_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(to_at__gte=F("from_at")), name="sampled_period_ends_after_its_start")
        ]
        # the periods that had not ended before that time
        indexes = [models.Index(fields=["database", "to_at"], name="sampled_period_by_end")]

    def __str__(self) -> str:
        return f"{self.from_at:%FT%TZ} to {self.to_at:%FT%TZ}"
