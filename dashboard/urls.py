"""Every address of the site."""

from django.urls import path

from dashboard.views import (
    actions,
    databases,
    errors,
    findings,
    leases,
    overview,
    pods,
    probes,
    readers,
    review,
    session,
    sources,
)

urlpatterns = [
    path("", overview.overview, name="overview"),
    path("leases", leases.index, name="leases"),
    path("leases.csv", leases.download, name="leases-csv"),
    path("leases/<int:pk>", leases.detail, name="leases-detail"),
    path("leases/<int:pk>/revoke", leases.revoke, name="leases-revoke"),
    path("databases", databases.index, name="databases"),
    path("databases.csv", databases.download, name="databases-csv"),
    path("databases/<int:pk>/sessions.csv", databases.download_sessions, name="databases-sessions-csv"),
    path("databases/<int:pk>", databases.detail, name="databases-detail"),
    path("pods/<str:cluster>/<path:uid>", pods.detail, name="pods-detail"),
    path("findings", findings.index, name="findings"),
    path("findings.csv", findings.download, name="findings-csv"),
    path("findings/<int:pk>", findings.detail, name="findings-detail"),
    path("findings/<int:pk>/close", findings.close, name="findings-close"),
    path("access", readers.index, name="access"),
    path("access.csv", readers.download, name="access-csv"),
    path("access-review", review.index, name="review"),
    path("access-review.csv", review.download, name="review-csv"),
    path("actions", actions.index, name="actions"),
    path("actions.csv", actions.download, name="actions-csv"),
    path("actions/<uuid:pk>", actions.receipt, name="actions-receipt"),
    path("sources", sources.index, name="sources"),
    path("sources/streams/<int:pk>/", sources.stream, name="sources-stream"),
    path("sources/streams/<int:pk>/rejected/<int:line>/", sources.rejected, name="sources-rejected"),
    path("login", session.log_in, name="login"),
    path("logout", session.log_out, name="logout"),
    path("healthz", probes.healthz, name="healthz"),
    path("readyz", probes.readyz, name="readyz"),
    path("metrics", probes.metrics, name="metrics"),
]

handler400 = errors.bad_request
handler403 = errors.forbidden
handler404 = errors.not_found
handler500 = errors.server_error
