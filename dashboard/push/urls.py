"""Every address of the push process. A device's path in Vault may hold slashes; no other name may."""

from django.urls import path

from dashboard.push import views

urlpatterns = [
    path("ingest/<str:vault>/<path:device>/<str:node>", views.ingest),
    path("healthz", views.healthz),
]

handler400 = views.bad_request
handler404 = views.not_found
handler500 = views.server_error
