"""Every address of the site."""

from django.urls import path

from dashboard.views import (
    actions,
    containments,
    databases,
    errors,
    events,
    findings,
    leases,
    overview,
    plans,
    pods,
    probes,
    readers,
    review,
    search,
    session,
    sources,
)

urlpatterns = [
    path("", overview.overview, name="overview"),
    path("leases", leases.index, name="leases"),
    path("leases/<int:pk>", leases.detail, name="leases-detail"),
    path("leases/<int:pk>/revoke", leases.revoke, name="leases-revoke"),
    path("databases", databases.index, name="databases"),
    path("databases/<int:pk>", databases.detail, name="databases-detail"),
    path("pods/<str:cluster>/<path:uid>", pods.detail, name="pods-detail"),
    path("findings", findings.index, name="findings"),
    path("findings/<int:pk>", findings.detail, name="findings-detail"),
    path("findings/<int:pk>/close", findings.close, name="findings-close"),
    path("search", search.search, name="search"),
    path("search/<slug:key>", search.results, name="search-found"),
    path("events", events.index, name="events"),
    path("events.csv", events.download, name="events-csv"),
    path("events/<str:vault>/<str:request_id>", events.detail, name="events-detail"),
    path("access", readers.index, name="access"),
    path("access.csv", readers.download, name="access-csv"),
    path("access-review", review.index, name="review"),
    path("access-review.csv", review.download, name="review-csv"),
    path("actions", actions.index, name="actions"),
    path("actions/<uuid:pk>", actions.receipt, name="actions-receipt"),
    path("actions/<uuid:pk>/receipt.txt", actions.as_text, name="actions-text"),
    path("actions/<uuid:pk>/leases/<int:item>", actions.item, name="actions-item"),
    path("actions/<uuid:pk>/stop", actions.stop, name="actions-stop"),
    path("actions/<uuid:pk>/retry", actions.retry, name="actions-retry"),
    path("actions/<uuid:pk>/approve", actions.approve, name="actions-approve"),
    path("actions/<uuid:pk>/refuse", actions.refuse, name="actions-refuse"),
    path("plans", plans.create, name="plans-create"),
    path("plans/new", plans.new, name="plans-new"),
    path("plans/<uuid:pk>", plans.detail, name="plans-detail"),
    path("containments", containments.index, name="containments"),
    path("containments/<int:pk>", containments.detail, name="containments-detail"),
    path("containments/<int:pk>/undo", containments.undo, name="containments-undo"),
    path("containments/<int:pk>/again", containments.again, name="containments-again"),
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
