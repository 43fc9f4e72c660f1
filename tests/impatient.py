"""The push process's worker with short limits, so that a test need not wait a minute."""

from dashboard.push.worker import Worker


class Impatient(Worker):
    headers_within = 1.0
    body_within = 2.0
