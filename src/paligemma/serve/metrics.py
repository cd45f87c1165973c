"""What a server did, as Prometheus reads it; in a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from paligemma.serve.models import Models
from paligemma.serve.record import Record
from paligemma.serve.worker import Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHORT_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counts and times of requests.

    Args:
        worker: whose load is shown.
        models: whose caches are shown.
    """

    def __init__(self, worker: Worker, models: Models) -> None:
        self._registry = registry = CollectorRegistry()

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"paligemma_{name}_seconds", what, buckets=buckets, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"paligemma_{name}", what, registry=registry)

        self._requests = Counter(
            "paligemma_requests_total",
            "Requests by route and status; 499 where the client went away first.",
            ["route", "code"],
            registry=registry,
        )
        self._tokens = Counter(
            "paligemma_tokens_total", "Tokens of prompts and answers.", ["kind"], registry=registry
        )
        self._first = histogram("time_to_first_token", "From arrival to the first token.", _LONG_S)
        self._each = histogram("time_per_output_token", "Mean of an answer.", _SHORT_S)
        self._whole = histogram("request", "From arrival to the last byte, of answers.", _LONG_S)
        self._queue = histogram("queue", "Waiting for a place.", _LONG_S)
        self._decode = histogram("image_decode", "Reading the pictures of a request.", _SHORT_S)
        load = (
            ("requests_running", "Requests that are answered.", lambda: worker.load.running),
            ("requests_waiting", "Requests that wait for a place.", lambda: worker.load.waiting),
        )
        for name, what, value in load:
            gauge(name, what).set_function(value)
        free = Gauge(
            "paligemma_kv_cache_free_tokens",
            "Tokens that new requests may hold in the key-value cache of a model.",
            ["model"],
            registry=registry,
        )
        for model in models.specs:
            free.labels(model).set_function(partial(worker.num_free_tokens, model))
        ProcessCollector(registry=registry)  # memory, files and processor time, by usual names
        registry.register(_EncodedPictures(models))

    def saw(self, record: Record) -> None:
        """Count a request that has ended."""
        self._requests.labels(record.route, str(record.code)).inc()
        if record.decoded_s is not None:
            self._decode.observe(record.decoded_s)
        if record.model is None:
            return
        self._tokens.labels("prompt").inc(record.num_prompt_tokens)
        self._tokens.labels("completion").inc(record.num_tokens)
        self._whole.observe(record.took_s)
        if record.queued_s is not None:
            self._queue.observe(record.queued_s)
        if record.first_token is not None and record.last_token is not None:
            self._first.observe(record.first_token - record.arrived)
            if record.num_tokens > 1:
                took_s = record.last_token - record.first_token
                self._each.observe(took_s / (record.num_tokens - 1))

    def text(self) -> bytes:
        """All of it, in the text format."""
        return generate_latest(self._registry)


class _EncodedPictures(Collector):
    """The encoded pictures that each loaded model keeps; a model that is loaded again counts from
    0."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """The families, with a sample a model."""
        name = "paligemma_picture_cache"
        held = GaugeMetricFamily(
            f"{name}_bytes", "Encoded pictures that are kept.", labels=["model"]
        )
        bound = GaugeMetricFamily(f"{name}_max_bytes", "Bound of these.", labels=["model"])
        hits = CounterMetricFamily(f"{name}_hits", "Pictures that were kept.", labels=["model"])
        misses = CounterMetricFamily(
            f"{name}_misses", "Pictures that were not kept, and encoded.", labels=["model"]
        )
        for loaded in self._models.in_memory:
            cache = loaded.model.engine.pictures
            held.add_metric([loaded.name], cache.num_bytes)
            bound.add_metric([loaded.name], cache.max_bytes)
            hits.add_metric([loaded.name], cache.num_hits)
            misses.add_metric([loaded.name], cache.num_misses)
        yield from (held, bound, hits, misses)
