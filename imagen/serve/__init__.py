"""`imagen serve`: a page and an HTTP API over one cascade.

config.py      addresses, limits, keys
running.py     the process: engines, uvicorn, an orderly end
connection.py  connections that end
app.py         the ASGI application
guard.py       what every request passes first
access.py      keys, rates, hosts, origins
service.py     what all routes share
api.py         our own API
openai_api.py  OpenAI's
requests.py    the fields of a request, and the plans they make
pictures.py    pictures in and out
events.py      server-sent events, and waiting for the end
job.py         a request on its way, and its pictures
jobs.py        all of them, and what is kept of them
work.py        a picture as the engine sees it
engine.py      one device's thread, which batches the pictures of all requests
gather.py      their calls of a network, gathered
shares.py      who is next
errors.py      errors as JSON
metrics.py     for Prometheus
page/          the page: plain HTML, CSS and JavaScript

The packages that it needs come with the extra `serve`; this module imports none of them.
"""

from imagen.serve.config import Limits, ServeConfig

__all__ = ["Limits", "ServeConfig"]
