#!/usr/bin/env python
"""The command line of Leasehold: `manage.py help` lists what it can do."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"Leasehold cannot start: {error}")
    except OperationalError as error:
        sys.exit(f"Leasehold's own database: {str(error).splitlines()[0]}. `manage.py doctor` says more.")


if __name__ == "__main__":
    main()
