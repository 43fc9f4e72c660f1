"""The entry point of the push process."""

import os

from django.core.wsgi import get_wsgi_application

# not setdefault: a shell that works on the site names the site's settings
os.environ["DJANGO_SETTINGS_MODULE"] = "dashboard.push.settings"

application = get_wsgi_application()
