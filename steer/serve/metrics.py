"""What Prometheus may know of a server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server.

    Args:
        waiting: Gives how many answers wait for a row.
        running: How many are under way.
        loaded: How many vectors are loaded.
    """

    def __init__(
        self,
        waiting: Callable[[], float],
        running: Callable[[], float],
        loaded: Callable[[], float],
    ) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "steer_requests", "Requests answered", ("route", "status"), registry=own
        )
        self.prompt_tokens = Counter("steer_prompt_tokens", "Tokens read", registry=own)
        self.answer_tokens = Counter("steer_answer_tokens", "Tokens said", registry=own)
        self.steered = Counter(
            "steer_steered_requests", "Requests that named a vector", registry=own
        )
        self.first = Histogram(
            "steer_first_token_seconds", "Until the first token", buckets=SECONDS, registry=own
        )
        self.whole = Histogram(
            "steer_request_seconds", "Until the last token", buckets=SECONDS, registry=own
        )
        gauges = {
            "steer_waiting_answers": ("Answers that wait for a row", waiting),
            "steer_running_answers": ("Answers under way", running),
            "steer_loaded_vectors": ("Vectors loaded", loaded),
        }
        for name, (what, value) in gauges.items():
            Gauge(name, what, registry=own).set_function(value)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)
