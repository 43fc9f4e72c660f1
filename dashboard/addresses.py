"""Addresses of pages by what the data names; empty where there is no such page, or a name cannot stand in an address."""

from django.urls import NoReverseMatch, reverse

from leases.models import Lease


def of_lease(lease: Lease) -> str:
    return reverse("leases-detail", args=[lease.pk])


def of_pod(cluster: str, uid: str) -> str:
    return _reverse("pods-detail", cluster, uid)


def of_account(cluster: str, namespace: str, name: str) -> str:
    return _reverse("workloads-detail", cluster, namespace, name)


def of_event(vault: str, request_id: str) -> str:
    return _reverse("events-detail", vault, request_id)


def _reverse(name: str, *parts: str) -> str:
    try:
        return reverse(name, args=parts) if all(parts) else ""
    except NoReverseMatch:
        # a name with a slash
        return ""
