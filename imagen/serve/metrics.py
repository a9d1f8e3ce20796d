"""Metrics for Prometheus."""

from collections.abc import Sequence

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from imagen.system import resident_bytes

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
PICTURES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server. Each has its own registry, because tests run several servers in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, help: str, label: str, buckets: Sequence[float] = SECONDS) -> Histogram:
            return Histogram(name, help, [label], buckets=buckets, registry=registry)

        self.requests = Counter(
            "imagen_http_requests", "Responses by route and status", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = histogram("imagen_http_request_seconds", "Time to the last byte, by route", "route")
        self.pictures = Counter("imagen_pictures", "Requested images by final state", ["end"], registry=registry)
        self.job_seconds = histogram("imagen_job_seconds", "Time from acceptance to the last image", "kind")
        self.stage_seconds = histogram("imagen_stage_seconds", "Time of an image in a stage", "stage")
        self.batch = histogram("imagen_batch_pictures", "Images per network evaluation", "stage", PICTURES)
        self.waiting = Gauge("imagen_pictures_waiting", "Images in the queue", registry=registry)
        self.active = Gauge("imagen_pictures_active", "Images being sampled", registry=registry)
        self.stored = Gauge("imagen_kept_bytes", "Bytes of finished images in memory", registry=registry)
        self.texts = Gauge("imagen_texts_cached", "Prompts whose embeddings are in memory", registry=registry)
        self.memory = Gauge("imagen_memory_bytes", "Memory of the process and of its GPUs", ["of"], registry=registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self.memory.labels("process").set(resident_bytes())
        for index in range(torch.cuda.device_count()):
            self.memory.labels(f"cuda:{index}").set(torch.cuda.memory_allocated(index))
        return generate_latest(self.registry)
