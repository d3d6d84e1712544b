"""Temperature and power of the board, from sysfs (Documentation/ABI: thermal, hwmon)."""

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
    power_mode: str = ""  # of NVIDIA's nvpmodel; "": none

    def report(self) -> dict[str, Any]:
        return {
            "celsius": self.celsius,
            "over_current_events": self.over_current,
            **({"power_mode": self.power_mode} if self.power_mode else {}),
        }


class ThermalMonitor:
    """Reads the sensors every few seconds; missing sensors are left out."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.reading = Reading()
        self.is_hot = False

    async def watch(self) -> None:
        while True:
            self.reading = await asyncio.to_thread(self.read)
            await asyncio.sleep(INTERVAL_S)

    def check(self, max_celsius: int) -> bool:
        """Whether the board is too hot: above the limit, then until it has cooled by three degrees.
        Without a reading the last verdict stands."""
        hottest = max(self.reading.celsius.values(), default=None)
        if not max_celsius:
            self.is_hot = False
        elif hottest is not None:
            margin = HYSTERESIS_CELSIUS if self.is_hot else 0.0
            self.is_hot = hottest > max_celsius - margin
        return self.is_hot

    def read(self) -> Reading:
        """Blocks while the sensors respond."""
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
    with contextlib.suppress(OSError):  # a sleeping sensor fails with EAGAIN or ENODATA
        return file.read_text(errors="replace")[:64].strip()
    return ""


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None
