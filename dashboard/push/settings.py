"""The settings of the push process: the site's, less all that serves people."""

import os
import secrets

# it signs nothing and queues nothing, so it is given neither the site's key nor the broker
os.environ["LEASEHOLD_SECRET_KEY"] = secrets.token_urlsafe(50)
os.environ["LEASEHOLD_BROKER_URL"] = "memory://"

from dashboard.settings import *  # noqa: F403
from dashboard.settings import DATABASES as SITE_DATABASES
from dashboard.settings import LOGGING as SITE_LOGGING

# Django's debug pages would show request headers, and a bearer token is one
DEBUG = False
ROOT_URLCONF = "dashboard.push.urls"
WSGI_APPLICATION = "dashboard.push.wsgi.application"
INSTALLED_APPS = ["leases", "audit"]
MIDDLEWARE = []
TEMPLATES = []
# the view logs what it refuses, by the stream's name; paths are the sender's words
LOGGING = {**SITE_LOGGING, "loggers": {**SITE_LOGGING["loggers"], "django.request": {"level": "ERROR"}}}  # type: ignore[dict-item]

_default = SITE_DATABASES["default"]
DATABASES = {
    "default": {
        **_default,
        "OPTIONS": {
            **_default["OPTIONS"],
            "application_name": "leasehold-push",
            # a shipper that is told to come again does so; one that waits holds a slot
            "options": f"{_default['OPTIONS']['options']} -c lock_timeout=2s",
        },
    }
}
