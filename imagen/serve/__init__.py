"""`imagen serve`: a web page and an HTTP API for one cascade.

config.py      address, limits, keys
running.py     the process: engines, uvicorn, orderly shutdown
connection.py  timeouts of connections
app.py         the ASGI application
guard.py       checks before routing: host, origin, sizes, times
access.py      keys, rates, hosts, origins
service.py     the state that all routes share
bodies.py      checks before a body is parsed
states.py      the state of jobs and images as JSON
api.py         our own API
openai_api.py  OpenAI's image API
requests.py    fields of a request, and how they become requests of the cascade
pictures.py    decoding and encoding of images
events.py      server-sent events, and waiting for the end of a job
job.py         the state of a job and its images
jobs.py        all jobs, and the memory of finished images
task.py        one image in the engine
engine.py      one device's thread, which samples all requests together
scheduler.py   the order of images, and the next batch
batching.py    batches of network evaluations
fair_queue.py  fair shares of device time
hints.py       warnings of words that training never showed
errors.py      errors as JSON
metrics.py     metrics for Prometheus
page/          the page: plain HTML, CSS and JavaScript

Its dependencies come with the extra `serve`; this module imports none of them.
"""

from imagen.serve.config import Limits, ServeConfig

__all__ = ["Limits", "ServeConfig"]
