"""Counters in the format of Prometheus: requests by path and status, batches, tokens, the queue."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

POWERS_OF_TWO = [2**power for power in range(12)]
SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60]


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter("text2token_requests", "Requests answered.", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "text2token_request_seconds", "Time to answer.", ["path"], buckets=SECONDS, registry=registry
        )
        self._texts = Histogram("text2token_batch_texts", "Texts in a batch.", buckets=POWERS_OF_TWO, registry=registry)
        self._batch_seconds = Histogram(
            "text2token_batch_seconds", "Time to embed a batch.", buckets=SECONDS, registry=registry
        )
        self._tokens = Counter("text2token_tokens", "Tokens embedded.", registry=registry)
        self._waiting = Gauge("text2token_queue_texts", "Texts that wait to be embedded.", registry=registry)

    def count_waiting(self, waiting: Callable[[], float]) -> None:
        """Call `waiting` for the number of texts in the queue whenever the page is read."""
        self._waiting.set_function(waiting)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Count an embedded batch."""
        self._texts.observe(texts)
        self._tokens.inc(tokens)
        self._batch_seconds.observe(seconds)

    def page(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)
