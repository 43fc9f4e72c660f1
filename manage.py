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
    except BrokenPipeError:
        # whoever read the output (`… | head`) has seen enough; the interpreter must not flush into the closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OperationalError as error:
        sys.exit(f"Leasehold's own database: {str(error).splitlines()[0]}. `manage.py doctor` says more.")


if __name__ == "__main__":
    main()
