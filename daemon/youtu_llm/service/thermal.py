"""Heat and power of the board, as Linux tells them (Documentation/ABI: thermal, hwmon)."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERVAL_S = 5.0
HYSTERESIS_CELSIUS = 3.0
MAX_FILES = 64


@dataclass(frozen=True)
class Reading:
    celsius: dict[str, float] = field(default_factory=dict)  # by thermal zone
    over_current: dict[str, int] = field(default_factory=dict)  # events so far, by counter
    power_mode: str = ""  # as NVIDIA's nvpmodel names it; "": a board without modes

    @property
    def hottest(self) -> float | None:
        return max(self.celsius.values(), default=None)

    def report(self) -> dict[str, Any]:
        return {
            "celsius": self.celsius,
            "over_current_events": self.over_current,
            **({"power_mode": self.power_mode} if self.power_mode else {}),
        }


class ThermalMonitor:
    """Read every few seconds. What a board does not have is left out."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.reading = Reading()
        self.is_hot = False

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.reading = await loop.run_in_executor(None, self.read)
            await asyncio.sleep(INTERVAL_S)

    def check(self, max_celsius: int) -> bool:
        """Whether it is too hot: above the limit, and then until it has cooled by three degrees.
        A board that tells no temperature, for ever or for a moment, stays what it was."""
        hottest = self.reading.hottest
        if not max_celsius:
            self.is_hot = False
        elif hottest is not None:
            margin = HYSTERESIS_CELSIUS if self.is_hot else 0.0
            self.is_hot = hottest > max_celsius - margin
        return self.is_hot

    def read(self) -> Reading:
        """Blocks for as long as the sensors take."""
        celsius = {}
        for zone in self._files("sys/class/thermal", "thermal_zone*"):
            value, name = _number(zone / "temp"), _text(zone / "type")
            if value is not None:
                celsius[f"{zone.name}:{name}" if name in celsius else name or zone.name] = (
                    value / 1000
                )
        events = {}
        for file in self._files("sys/class/hwmon", "hwmon*/oc*_event_cnt"):
            count = _number(file)
            if count is not None:
                events[file.name.removesuffix("_event_cnt")] = count
        mode = _text(self._root / "var/lib/nvpmodel/status").removeprefix("pmode:")
        return Reading(celsius, events, mode)

    def _files(self, folder: str, pattern: str) -> list[Path]:
        return sorted((self._root / folder).glob(pattern))[:MAX_FILES]


def _text(file: Path) -> str:
    with contextlib.suppress(OSError):  # a sensor that sleeps says EAGAIN or ENODATA
        return file.read_text(errors="replace")[:64].strip()
    return ""


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None
