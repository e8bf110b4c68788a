"""What Prometheus is told at /metrics: requests, the engine's load, tokens, times."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepaudio_jax.inference import Finished, TextDelta
from stepaudio_jax.serving.runner import Runner

CLIENT_GONE = 499
"""nginx's status for a client that left before its answer."""

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """One server's metrics, in a registry of its own.

    Attributes:
      audio_seconds: of sound handed to the engine.
      taken: requests that have a place.
    """

    def __init__(self, runner: Runner):
        self.registry = CollectorRegistry()
        named = {"namespace": "stepaudio", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **named)
        self.seconds = Histogram("request_seconds", "From request to end.", ["route"], buckets=SECONDS, **named)
        self.first_token = Histogram(
            "time_to_first_token_seconds", "From prompt to first token.", buckets=SECONDS, **named
        )
        self.inter_token = Histogram("inter_token_seconds", "Between tokens.", buckets=TOKEN_SECONDS, **named)
        queued = Histogram("queue_seconds", "From the queue to a row.", buckets=SECONDS, **named)
        runner.on_start = queued.observe
        self.taken = Gauge("requests_taken", "Requests from first byte to last of the answer.", **named)
        self.audio_seconds = Counter("audio_seconds", "Seconds of sound heard.", **named)
        self.registry.register(_Engine(runner))
        ProcessCollector(registry=self.registry)

    def tokens(self, event: TextDelta | Finished, now: float, started: float, last: dict[str, float]):
        """Takes the time of a request's tokens; `last` is when each had its latest."""
        before = last.get(event.request_id)
        if before is None:
            self.first_token.observe(now - started)
        elif isinstance(event, TextDelta):
            for _ in event.tokens:  # those of one burst arrive together
                self.inter_token.observe((now - before) / len(event.tokens))
        last[event.request_id] = now

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Measured:
    """Middleware that counts every answer by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, start = CLIENT_GONE, time.perf_counter()

        async def watched(message: Message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # unknown paths are one, lest anyone make up a million
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)


class _Engine(Collector):
    """The engine's own figures, read when asked for."""

    def __init__(self, runner: Runner):
        self.runner = runner

    def collect(self) -> Iterator[Metric]:
        stats = self.runner.stats
        gauges = {
            "requests_running": ("Requests in the engine's batch.", stats.running),
            "requests_waiting": ("Requests that wait for a row.", stats.waiting),
            "pages_used": ("Pages of the cache that requests hold.", stats.pages_used),
            "pages_cached": ("Pages of the cache that keep old prompts.", stats.pages_cached),
            "pages_free": ("Pages of the cache that hold nothing.", _free(stats)),
            "pages": ("Pages of the cache.", stats.pages_total),
        }
        counters = {
            "prompt_tokens": ("Tokens of prompts.", stats.prompt_tokens),
            "cached_prompt_tokens": ("Those of them that an earlier prompt had left.", stats.cached_prompt_tokens),
            "generated_tokens": ("Tokens written.", stats.generated_tokens),
            "sounds_encoded": ("Chunks of sound that were encoded.", stats.sounds_encoded),
            "sounds_found": ("Chunks of sound that had been already.", stats.sounds_found),
            "interruptions": ("Replies that gave up their pages for a while.", stats.interruptions),
            "engine_failures": ("Steps of the engine that raised.", self.runner.failures),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"stepaudio_{name}", text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"stepaudio_{name}", text, value=value)


def _free(stats) -> int:
    return stats.pages_total - stats.pages_used - stats.pages_cached
