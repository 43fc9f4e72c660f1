"""What the site itself must remember: failed log-ins, so that guessing passwords is slow."""

from django.db import models


class FailedLogin(models.Model):
    """One wrong password. `who` is a keyed hash of user name and address: people type passwords into the wrong field."""

    who = models.TextField()
    at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["who", "at"], name="failed_login_by_who")]  # throttle.seconds_to_wait()

    def __str__(self) -> str:
        return f"{self.at:%FT%TZ}"
