"""The Celery application and its clock: `celery -A dashboard worker -Q QUEUE`, `celery -A dashboard beat`.

Every periodic entry starts work that finds for itself what is due, so a beat that is missed or doubled harms nothing.
"""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")

app = Celery("leasehold")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def _every(task: str, seconds: float) -> dict[str, object]:
    # an entry that could not start before the next one is due is dropped, so that a queue never fills while workers are away
    return {"task": task, "schedule": seconds, "options": {"expires": max(seconds, 2.0)}}


app.conf.beat_schedule = {
    "follow-streams": _every("audit.tasks.follow_streams", 1.0),
    "follow-database-logs": _every("audit.tasks.follow_database_logs", 1.0),
    "watch-clusters": _every("leases.tasks.watch_clusters", 1.0),
    "sample-databases": _every("leases.tasks.sample_databases", 1.0),
    "look-up-due-leases": _every("leases.tasks.look_up_due_leases", 1.0),
    "match-database-users": _every("audit.tasks.match_database_users", 2.0),
    "match-left-over-users": _every("audit.tasks.match_left_over_users", 60.0),
    "tie-sessions": _every("audit.tasks.tie_sessions", 2.0),
    "attribute-open": _every("audit.tasks.attribute_open", 1.0),
    "explain-revocations": _every("audit.tasks.explain_revocations", 5.0),
    "check-vaults": _every("leases.tasks.check_vaults", 5.0),
    "check-salts": _every("audit.tasks.check_salts", 60.0),
    "check-polls": _every("audit.tasks.check_polls", 10.0),
    "look-for-findings": _every("audit.tasks.look_for_findings", 60.0),
    "send-notices": _every("audit.tasks.send_notices", 2.0),
    # does something once an hour; asked often, because a clock that was started anew counts from its start
    "keep-house": _every("audit.tasks.keep_house", 60.0),
    # as above
    "sign-heads": _every("audit.tasks.sign_heads", 60.0),
    "reconcile-leases": _every("leases.tasks.reconcile_leases", 5.0),
    "resume-stuck-revocations": _every("leases.tasks.resume_stuck_revocations", 2.0),
    "resume-stuck-containments": _every("leases.tasks.resume_stuck_containments", 2.0),
}
