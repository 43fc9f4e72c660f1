"""The one settings file. Everything that differs between installations comes from the environment (docs/configuration.md)."""

import warnings
from pathlib import Path
from typing import Any

from csp.constants import NONE, SELF

from dashboard import env
from leases.version import VERSION

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = env.text("LEASEHOLD_SECRET_KEY")
DEBUG = env.flag("LEASEHOLD_DEBUG")
ALLOWED_HOSTS = env.words("LEASEHOLD_ALLOWED_HOSTS", "localhost,127.0.0.1")
CSRF_TRUSTED_ORIGINS = env.words("LEASEHOLD_TRUSTED_ORIGINS")
CONFIG_FILE = Path(env.text("LEASEHOLD_CONFIG", "leasehold.toml"))

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_htmx",
    "csp",
    "leases",
    "audit",
    "dashboard",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    # what open pages ask for again and again, before anything that costs
    "dashboard.live.middleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # every page needs a log-in; the few that do not (log-in itself, health) say so in their view
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "dashboard.urls"
WSGI_APPLICATION = "dashboard.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": False,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "dashboard.context.page",
            ],
            "builtins": ["dashboard.templatetags.leasehold"],
        },
    }
]

# `default` is the application's role, which owns no table and cannot alter the append-only ones;
# `owner` is used by `migrate` alone and need not be set where only the application runs.
_CONNECTION: dict[str, Any] = {
    "ENGINE": "django.db.backends.postgresql",
    "CONN_MAX_AGE": 60,
    "CONN_HEALTH_CHECKS": True,
    "OPTIONS": {
        "connect_timeout": 5,
        "application_name": "leasehold",
        # jit costs more than it gives on these short queries
        "options": "-c jit=off -c TimeZone=UTC -c lock_timeout=10s",
    },
}
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        **_CONNECTION,
        **env.database("LEASEHOLD_DATABASE_URL"),
        "TEST": {"MIRROR": "owner"},
    },
}
if env.text("LEASEHOLD_OWNER_DATABASE_URL", ""):
    DATABASES["owner"] = {
        **_CONNECTION,
        **env.database("LEASEHOLD_OWNER_DATABASE_URL"),
        "CONN_MAX_AGE": 0,
    }
else:
    del DATABASES["default"]["TEST"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "overview"
LOGOUT_REDIRECT_URL = "login"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]
SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = True
CSRF_FAILURE_VIEW = "dashboard.views.errors.csrf_failure"

INSECURE_HTTP = env.flag("LEASEHOLD_INSECURE_HTTP")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not INSECURE_HTTP
SECURE_SSL_REDIRECT = not INSECURE_HTTP
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.flag("LEASEHOLD_BEHIND_PROXY") else None
SECURE_HSTS_SECONDS = 0 if INSECURE_HTTP else 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = not INSECURE_HTTP
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static"]
# where nobody ran collectstatic (the demo, a checkout) files are served as they lie in static/
WHITENOISE_USE_FINDERS = not STATIC_ROOT.exists()
if WHITENOISE_USE_FINDERS:
    warnings.filterwarnings("ignore", "No directory at", UserWarning)
WHITENOISE_AUTOREFRESH = DEBUG
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if STATIC_ROOT.exists()
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
USE_I18N = False

CELERY_BROKER_URL = env.text("LEASEHOLD_BROKER_URL")
# the broker only carries what PostgreSQL already knows: no results, nothing that a loss could lose
CELERY_TASK_IGNORE_RESULT = True
# A task that is lost with its worker is found by beat's next round, so nothing has to stay unacknowledged; what is
# unacknowledged when the broker goes makes kombu's redis transport end the worker instead of reconnecting.
CELERY_TASK_ACKS_LATE = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_DISABLE_PREFETCH = True
CELERY_TASK_TIME_LIMIT = 60
CELERY_TASK_SOFT_TIME_LIMIT = 45
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TIMEZONE = "UTC"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# for ever: a broker that is away for long is no reason to give up
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 120,
    "socket_timeout": 5,
    "socket_connect_timeout": 5,
}
CELERY_TASK_DEFAULT_QUEUE = "reports"
# `actions` is never behind the others; readers and watches hold their workers for a turn, so starting them is elsewhere
CELERY_TASK_ROUTES = {
    "audit.tasks.follow_stream": {"queue": "ingest"},
    "audit.tasks.follow_database_log": {"queue": "ingest"},
    "leases.tasks.watch_cluster": {"queue": "watch"},
    "leases.tasks.sample_database": {"queue": "watch"},
    "audit.tasks.attribute_open": {"queue": "watch"},
    "audit.tasks.match_database_users": {"queue": "watch"},
    "audit.tasks.match_left_over_users": {"queue": "watch"},
    "audit.tasks.tie_sessions": {"queue": "watch"},
    "audit.tasks.explain_revocations": {"queue": "watch"},
    "audit.tasks.follow_streams": {"queue": "leases"},
    "audit.tasks.follow_database_logs": {"queue": "leases"},
    "leases.tasks.watch_clusters": {"queue": "leases"},
    "leases.tasks.sample_databases": {"queue": "leases"},
    "leases.tasks.look_up_due_leases": {"queue": "leases"},
    "leases.tasks.reconcile_leases": {"queue": "leases"},
    "leases.tasks.check_vaults": {"queue": "leases"},
    "audit.tasks.check_salts": {"queue": "leases"},
    "audit.tasks.hash_what_was_typed": {"queue": "leases"},
    "audit.tasks.keep_house": {"queue": "reports"},
    "audit.tasks.sign_heads": {"queue": "reports"},
    "audit.tasks.check_polls": {"queue": "leases"},
    "audit.tasks.look_for_findings": {"queue": "leases"},
    "audit.tasks.send_notices": {"queue": "reports"},
    "audit.tasks.send_notices_to": {"queue": "reports"},
    "leases.tasks.work_on_job": {"queue": "actions"},
    "leases.tasks.carry_out_revocation": {"queue": "actions"},
    "leases.tasks.resume_stuck_revocations": {"queue": "actions"},
    "leases.tasks.look_at_identities": {"queue": "actions"},
    "leases.tasks.carry_out_containment": {"queue": "actions"},
    "leases.tasks.resume_stuck_containments": {"queue": "actions"},
}

# by which receivers of notices know us
USER_AGENT = f"Leasehold/{VERSION}"

# the push process (dashboard/push/): bytes of a body as it is sent, bytes of it unpacked, and bodies held at once
PUSH_BODY_BYTES = env.number("LEASEHOLD_PUSH_BODY_MB", 20) * 1024 * 1024
PUSH_LINES_BYTES = env.number("LEASEHOLD_PUSH_LINES_MB", 64) * 1024 * 1024
PUSH_AT_ONCE = env.number("LEASEHOLD_PUSH_AT_ONCE", 4)

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env.text("LEASEHOLD_LOG_LEVEL", "INFO").upper()},
    # these libraries write request addresses at INFO and DEBUG
    "loggers": {name: {"level": "WARNING"} for name in ("urllib3", "hvac", "kubernetes", "celery.app.trace")},
}
