"""`youtu bench`: a running daemon, measured from the client side.

Requests go to `/v1/completions` with streaming, so any OpenAI-compatible server can be measured
beside it: with --against the two take turns, request by request, because machines drift. Every
prompt begins with words of its own, so that no server answers from a cached prefix.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psutil

from youtu_llm import peer
from youtu_llm.errors import ResourceError, YoutuError

TIMEOUT_S = 900.0
_WORDS = [
    "the",
    "river",
    "town",
    "stone",
    "light",
    "winter",
    "paper",
    "north",
    "small",
    "garden",
    "over",
    "under",
    "iron",
    "field",
]


class BenchError(YoutuError):
    """The server does not answer as the benchmark needs."""

    code = "bench_error"


@dataclass(frozen=True, slots=True)
class Load:
    """What each server is asked."""

    num_requests: int = 100
    prompt_tokens: int = 512
    new_tokens: int = 128
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One request, measured by its client. Seconds; `span_s` from the first token to the last."""

    ttft_s: float
    span_s: float
    total_s: float
    prompt_tokens: int
    new_tokens: int

    @property
    def decode_tokens_per_s(self) -> float:
        return (self.new_tokens - 1) / self.span_s if self.span_s > 0 else 0.0


@dataclass(slots=True)
class Report:
    """The samples of one server and what its processes used meanwhile."""

    url: str
    load: Load
    samples: list[Sample] = field(default_factory=list)
    wall_s: float = 0.0  # of this server's turns alone
    cpu_s: float = 0.0
    rss_bytes: int = 0  # the peak of all its processes together
    temperature_c: float | None = None

    def summary(self) -> dict[str, float]:
        ttft = sorted(1e3 * sample.ttft_s for sample in self.samples)
        decode = [sample.decode_tokens_per_s for sample in self.samples]
        tokens = sum(sample.new_tokens for sample in self.samples)
        result = {
            "prompt_tokens": statistics.median(sample.prompt_tokens for sample in self.samples),
            "new_tokens": statistics.median(sample.new_tokens for sample in self.samples),
            "ttft_ms_p50": statistics.median(ttft),
            "ttft_ms_p95": ttft[min(len(ttft) - 1, int(0.95 * len(ttft)))],
            "decode_tokens_per_s": statistics.median(decode),
            "total_tokens_per_s": tokens / self.wall_s,
            "cpu_percent": 100 * self.cpu_s / self.wall_s,
            "rss_gb": self.rss_bytes / 1e9,
        }
        if self.temperature_c is not None:
            result["temperature_c"] = self.temperature_c
        return {name: round(value, 3) for name, value in result.items()}


class Server:
    """One server under test: its connection, its processes."""

    def __init__(self, url: str, api_key: str = "") -> None:
        self.url = url
        parts = urlsplit(url)
        self._path = parts.path if parts.scheme == "unix" else None
        self._base = "http://youtu" if self._path else url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        connector = aiohttp.UnixConnector(self._path) if self._path else aiohttp.TCPConnector()
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self.session = aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)
        self._processes: list[psutil.Process] = []
        self._words_per_token = 1.0

    async def prepare(self, load: Load) -> None:
        """Warm up, and learn how many words make the wanted number of tokens."""
        words = min(load.prompt_tokens, 64)
        sample = await self.ask(_prompt(words), 4)
        self._words_per_token = words / sample.prompt_tokens
        self._processes = _processes_of(self._path, self.url)

    def prompt(self, num_tokens: int) -> str:
        return _prompt(max(1, round(num_tokens * self._words_per_token)))

    async def ask(self, prompt: str, new_tokens: int) -> Sample:
        """One streamed completion. Raises BenchError for anything but a complete answer."""
        try:
            return await self._ask(prompt, new_tokens)
        except aiohttp.ClientConnectorError as error:
            raise BenchError(f"nothing listens on {self.url}: start that server first") from error
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise BenchError(
                f"{self.url} gave no complete answer: {str(error) or 'too slow'}"
            ) from error

    async def _ask(self, prompt: str, new_tokens: int) -> Sample:
        body = {
            "model": "any",
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "stop": [],
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.perf_counter()
        first = last = 0.0
        usage: dict[str, int] = {}
        async with self.session.post(f"{self._base}/v1/completions", json=body) as response:
            if response.status != 200:
                raise BenchError(f"{self.url}: {response.status}: {await response.text()}")
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise BenchError(f"{self.url}: {chunk['error']}")
                if chunk.get("choices"):
                    last = time.perf_counter()
                    first = first or last
                usage = chunk.get("usage") or usage
        if not usage or not first:
            raise BenchError(f"{self.url} sent no usage; it must support stream_options")
        ended = time.perf_counter()
        return Sample(
            first - started,
            last - first,
            ended - started,
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._alive())

    def rss_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self._alive())

    def _alive(self) -> list[psutil.Process]:
        return [process for process in self._processes if process.is_running()]


async def run(urls: Sequence[str], load: Load, api_key: str = "") -> list[Report]:
    """Measure the servers alternately. The key goes to the first one only."""
    servers = [Server(url, api_key if i == 0 else "") for i, url in enumerate(urls)]
    reports = [Report(url, load) for url in urls]
    try:
        for server in servers:
            await server.prepare(load)
        for _ in range(-(-load.num_requests // load.concurrency)):
            for server, report in zip(servers, reports, strict=True):
                await _turn(server, report)
    finally:
        for server in servers:
            await server.session.close()
    return reports


async def _turn(server: Server, report: Report) -> None:
    load = report.load
    prompts = [server.prompt(load.prompt_tokens) for _ in range(load.concurrency)]
    cpu_s, started = server.cpu_s(), time.perf_counter()
    report.samples += await asyncio.gather(
        *(server.ask(prompt, load.new_tokens) for prompt in prompts)
    )
    report.wall_s += time.perf_counter() - started
    report.cpu_s += server.cpu_s() - cpu_s
    report.rss_bytes = max(report.rss_bytes, server.rss_bytes())
    readings = [r.current for rs in psutil.sensors_temperatures().values() for r in rs]
    if readings:
        report.temperature_c = max(readings)


def ratios(reports: Sequence[Report]) -> dict[str, float]:
    """The first server's figures over the second's."""
    ours, other = (report.summary() for report in reports)
    return {
        name: round(value / other[name], 3)
        for name, value in ours.items()
        if name not in ("prompt_tokens", "new_tokens", "temperature_c") and other.get(name)
    }


def as_table(reports: Sequence[Report]) -> str:
    """The summaries side by side, with the ratio when there are two."""
    columns = [report.summary() for report in reports]
    heads = [report.url for report in reports]
    if len(reports) == 2:
        columns.append(ratios(reports))
        heads.append("ratio")
    width = max(24, *(len(head) + 2 for head in heads))
    lines = [f"{'':<22}" + "".join(f"{head:>{width}}" for head in heads)]
    for name in columns[0]:
        cells = (
            f"{column[name]:>{width}g}" if name in column else " " * width for column in columns
        )
        lines.append(f"{name:<22}" + "".join(cells))
    return "\n".join(lines)


def as_json(reports: Sequence[Report]) -> str:
    whole = [
        {
            "url": report.url,
            "load": asdict(report.load),
            "summary": report.summary(),
            "samples": [asdict(sample) for sample in report.samples],
        }
        for report in reports
    ]
    return json.dumps({"reports": whole, "ratios": ratios(reports) if len(reports) == 2 else {}})


def plot(reports: Sequence[Report], path: Path) -> None:
    """Time to first token and decoding speed, request by request. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("--plot needs matplotlib: pip install 'youtu[bench]'") from None
    figure = Figure(figsize=(8, 6), layout="constrained")
    first, decode = figure.subplots(2, 1, sharex=True)
    for report in reports:
        first.plot([1e3 * s.ttft_s for s in report.samples], ".-", label=report.url)
        decode.plot([s.decode_tokens_per_s for s in report.samples], ".-", label=report.url)
    first.set_ylabel("time to first token, ms")
    decode.set_ylabel("decode, tokens/s")
    decode.set_xlabel("request")
    for axes in (first, decode):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    first.legend()
    figure.savefig(path)


def _prompt(num_words: int) -> str:
    """Words that no earlier prompt began with."""
    rng = random.Random(random.getrandbits(64))
    return " ".join(rng.choices(_WORDS, k=num_words))


def _processes_of(socket_path: str | None, url: str) -> list[psutil.Process]:
    """The server and its children, if it runs on this machine and may be looked at."""
    pid = _peer(socket_path) if socket_path else _listener(urlsplit(url).port or 80)
    if not pid:
        return []
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _peer(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return peer.of(client).pid


def _listener(port: int) -> int:
    for connection in psutil.net_connections("tcp"):
        address = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address and address.port == port:
            return connection.pid or 0
    return 0
