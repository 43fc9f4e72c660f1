"""What people see: the Django project, every view, form, URL and access rule."""

from dashboard.celery import app as celery_app

__all__ = ["celery_app"]
