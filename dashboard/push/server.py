"""How gunicorn serves the push process: `gunicorn -c python:dashboard.push.server dashboard.push.wsgi --bind HOST:PORT`.

Settings: https://docs.gunicorn.org/en/stable/settings.html. The command line overrides each of them.
"""

bind = "127.0.0.1:8001"
worker_class = "dashboard.push.worker.Worker"
workers = 2
# more than LEASEHOLD_PUSH_AT_ONCE, so that one is free to say that there are too many
threads = 8
# a shipper keeps its connection between batches
keepalive = 30
worker_connections = 200
timeout = 60
graceful_timeout = 30
# a path and a handful of headers; a token is shorter than 100 characters
limit_request_line = 2048
limit_request_fields = 50
limit_request_field_size = 4096
# no access log: the views log what became of each batch, by the stream's name
accesslog = None
control_socket_disable = True
