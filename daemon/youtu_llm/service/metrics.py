"""What /metrics shows, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from youtu_llm.postprocess import PunctuationStream
from youtu_llm.service.status import State, Status
from youtu_llm.service.thermal import ThermalMonitor

_FAST = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_SLOW = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        histogram, counter = self._histogram, self._counter
        self.ttft = histogram("youtu_ttft_seconds", "From the request to its first token", _SLOW)
        self.inter_token = histogram(
            "youtu_inter_token_seconds", "Between two tokens of an answer", _FAST
        )
        self.queue = histogram("youtu_queue_seconds", "Wait before the first computation", _SLOW)
        self.cancel_to_free = histogram(
            "youtu_cancel_to_free_seconds", "From an abort to the engine's last word on it", _FAST
        )
        self.requests = counter(
            "youtu_requests", "Answers by how they ended", "finish_reason", "profile"
        )
        self.refused = counter("youtu_refused", "Requests answered by an error", "code")
        self.first_word_missed = counter(
            "youtu_first_word_missed", "Answers that missed budget.first_word_ms", "profile"
        )
        self.prompt_tokens = counter("youtu_prompt_tokens", "Tokens of prompts")
        self.cached_tokens = counter("youtu_cached_tokens", "Of these, taken from shared pages")
        self.completion_tokens = counter("youtu_completion_tokens", "Tokens generated")
        self._live = self._gauge("youtu_live_requests", "Requests taken and not yet answered")
        self._ready = self._gauge("youtu_ready", "1 when a request can be answered")
        self._restarts = self._gauge("youtu_engine_restarts", "Engines restarted after a fault")
        self._unpunctuated = self._gauge(
            "youtu_punctuation_failures", "Answers whose punctuation could not be repaired"
        )
        self._degraded = self._gauge("youtu_degraded", "Entries of degraded in /health")
        self._pages = self._gauge("youtu_pages", "Cache pages of 256 tokens", "kind")
        self._memory = self._gauge("youtu_memory_bytes", "Memory of the engine", "kind")
        self._celsius = self._gauge(
            "youtu_temperature_celsius", "Temperature by thermal zone", "zone"
        )
        self._over_current = self._gauge(
            "youtu_over_current_events", "Over-current events by counter", "counter"
        )
        self._power_mode = self._gauge("youtu_power_mode_info", "1 for the mode it is in", "mode")
        self._hot = self._gauge("youtu_hot", "1 while heat allows one answer at a time")

    def render(self, status: Status, thermal: ThermalMonitor, num_live: int) -> bytes:
        """The Prometheus text; gauges are read off `status` now."""
        self._live.set(num_live)
        self._ready.set(status.state is State.READY)
        self._restarts.set(status.restarts)
        self._degraded.set(len(status.degraded))
        self._unpunctuated.set(PunctuationStream.failures)
        pages, memory = status.pages, status.memory
        for kind in ("used", "free", "limit", "cached"):
            self._pages.labels(kind).set(getattr(pages, kind))
        for kind in ("weights", "cache", "workspace", "used", "total"):
            self._memory.labels(kind).set(getattr(memory, kind))
        for gauge in (self._celsius, self._over_current, self._power_mode):
            gauge.clear()  # drop series without a current reading
        if thermal.reading.power_mode:
            self._power_mode.labels(thermal.reading.power_mode).set(1)
        for zone, celsius in thermal.reading.celsius.items():
            self._celsius.labels(zone).set(celsius)
        for counter, count in thermal.reading.over_current.items():
            self._over_current.labels(counter).set(count)
        self._hot.set(thermal.is_hot)
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)
