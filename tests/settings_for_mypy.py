"""Settings with stand-in values, for the type checker alone: it reads models and connects to nothing."""

import os

for name, value in {
    "LEASEHOLD_SECRET_KEY": "for the type checker",
    "LEASEHOLD_DATABASE_URL": "postgresql://leasehold_app@127.0.0.1/leasehold",
    "LEASEHOLD_BROKER_URL": "redis://127.0.0.1/0",
}.items():
    os.environ.setdefault(name, value)

from dashboard.settings import *  # noqa: E402, F403
