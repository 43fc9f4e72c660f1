"""The push process: takes batches of audit lines from log shippers over HTTP, and serves nothing else.

`gunicorn -c python:dashboard.push.server dashboard.push.wsgi`. No sessions, no pages, no key of the site, no broker.
"""
