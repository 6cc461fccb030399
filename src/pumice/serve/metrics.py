"""What a server counts, for Prometheus. Labels have few values, and none comes from a request's text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        place: Any = {"registry": self.registry}
        self.requests = Counter("pumice_requests", "Requests answered.", ["path", "status"], **place)
        self.seconds = Histogram(
            "pumice_request_seconds", "From a request's head to its end.", ["path"], buckets=SECONDS, **place
        )
        self.first = Histogram(
            "pumice_first_token_seconds",
            "From a request to its first text.",
            ["model"],
            buckets=SECONDS,
            **place,
        )
        self.between = Histogram(
            "pumice_inter_token_seconds", "Between an answer's tokens, its mean.", ["model"], buckets=SECONDS, **place
        )
        self.tokens = Counter(
            "pumice_tokens",
            "Prompt tokens (visual and cached ones among them), and generated ones.",
            ["model", "kind"],
            **place,
        )
        self.working = Gauge("pumice_requests_at_work", "Requests that are being answered.", **place)
        self.bytes = Gauge("pumice_body_bytes", "Bytes of requests that are held.", **place)

    def watch(self, stats: Callable[[], dict[str, Any]], lost: Callable[[], int]) -> None:
        """Report engines' statistics (a dataclass a model) and the decode processes that were lost."""
        self.registry.register(_Watched(stats, lost))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Watched(Collector):
    """Reads numbers when they are asked for."""

    def __init__(self, stats: Callable[[], dict[str, Any]], lost: Callable[[], int]) -> None:
        self.stats, self.lost = stats, lost

    def collect(self) -> Iterator[Any]:
        families: dict[str, GaugeMetricFamily] = {}
        for model, stats in self.stats().items():
            for field in dataclasses.fields(stats):
                value = getattr(stats, field.name)
                if isinstance(value, (int, float)):
                    name = f"pumice_engine_{field.name}"
                    help_text = f"The engine's {field.name.replace('_', ' ')}."
                    families.setdefault(name, GaugeMetricFamily(name, help_text, labels=["model"]))
                    families[name].add_metric([model], value)
        yield from families.values()
        lost = CounterMetricFamily("pumice_decode_processes_lost", "Processes that ended while they read a file.")
        lost.add_metric([], self.lost())
        yield lost
