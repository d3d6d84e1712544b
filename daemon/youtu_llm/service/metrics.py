"""The Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from youtu_llm.postprocess import PunctuationStream
from youtu_llm.service.status import State, Status
from youtu_llm.service.thermal import ThermalMonitor

_FAST = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_SLOW = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        histogram = partial(Histogram, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        self.ttft = histogram("youtu_ttft_seconds", "Time to first token", buckets=_SLOW)
        self.inter_token = histogram(
            "youtu_inter_token_seconds", "Time between two tokens of a response", buckets=_FAST
        )
        self.queue = histogram("youtu_queue_seconds", "Time in the queue", buckets=_SLOW)
        self.cancel_to_free = histogram(
            "youtu_cancel_to_free_seconds",
            "Time from an abort to the release of the request's pages",
            buckets=_FAST,
        )
        self.requests = counter(
            "youtu_requests", "Finished requests by finish reason", ["finish_reason", "profile"]
        )
        self.refused = counter(
            "youtu_refused", "Requests rejected or failed by error code", ["code"]
        )
        self.first_word_missed = counter(
            "youtu_first_word_missed",
            "Responses that missed budget.first_word_ms (time to first token)",
            ["profile"],
        )
        self.prompt_tokens = counter("youtu_prompt_tokens", "Prompt tokens, cached ones included")
        self.cached_tokens = counter(
            "youtu_cached_tokens", "Prompt tokens served from cached prefix pages"
        )
        self.completion_tokens = counter("youtu_completion_tokens", "Tokens generated")
        self._live = gauge("youtu_live_requests", "Requests running or waiting")
        self._ready = gauge("youtu_ready", "1 if requests are accepted")
        self._restarts = gauge("youtu_engine_restarts", "Engine restarts after a failure")
        self._unpunctuated = gauge(
            "youtu_punctuation_failures", "Responses whose punctuation repair failed"
        )
        self._degraded = gauge("youtu_degraded", "Number of entries in degraded of /health")
        self._pages = gauge("youtu_pages", "KV cache pages of 256 tokens", ["kind"])
        self._memory = gauge("youtu_memory_bytes", "Engine memory in bytes", ["kind"])
        self._celsius = gauge("youtu_temperature_celsius", "Temperature by thermal zone", ["zone"])
        self._over_current = gauge(
            "youtu_over_current_events", "Over-current events by counter", ["counter"]
        )
        self._power_mode = gauge("youtu_power_mode_info", "1 for the current power mode", ["mode"])
        self._hot = gauge("youtu_hot", "1 while heat limits the engine to one request at a time")

    def render(self, status: Status, thermal: ThermalMonitor, num_live: int) -> bytes:
        """The Prometheus text format, with gauges as of now."""
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
        for by_label in (self._celsius, self._over_current, self._power_mode):
            by_label.clear()  # drop series without a current reading
        if thermal.reading.power_mode:
            self._power_mode.labels(thermal.reading.power_mode).set(1)
        for zone, celsius in thermal.reading.celsius.items():
            self._celsius.labels(zone).set(celsius)
        for counter, count in thermal.reading.over_current.items():
            self._over_current.labels(counter).set(count)
        self._hot.set(thermal.is_hot)
        return generate_latest(self.registry)
