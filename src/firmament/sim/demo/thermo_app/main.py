#!/usr/bin/env python3
"""Firmware of a small thermometer: an LED, a temperature sensor, and a page that says how it is.

Standard library only, nothing to install on the device. What this version can do stands in
`app.json` beside this file, so that one program plays every version of the product:

    {"version": "1.1", "led_hz": 1.0, "sensor_bus": "simulated"}

    python3 main.py --port 8101
    curl http://127.0.0.1:8101/health        200 {"status": "ok", ...} or 503 {"status": "failing", ...}

The update agent starts and stops it, and asks /health before it keeps a new version.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic  # noqa: TID251 - a device's program, not a part of the house
from typing import Any

HERE = Path(__file__).resolve().parent
MAX_CONFIGURATION_BYTES = 64 * 1024


class Led:
    """A light that blinks; on real hardware this would set a GPIO line."""

    def __init__(self, blinks_per_s: float) -> None:
        self.blinks_per_s = blinks_per_s

    def state(self, uptime_s: float) -> str:
        """Return ``on`` or ``off``, half of the time each."""
        return "on" if (uptime_s * self.blinks_per_s) % 1 < 0.5 else "off"  # noqa: PLR2004 - half of the time


class Sensor:
    """A temperature sensor: simulated, or a Linux hwmon file such as /sys/class/hwmon/hwmon0/temp1_input."""

    def __init__(self, bus: str) -> None:
        self.bus = bus

    def celsius(self, uptime_s: float) -> float:
        """Return the temperature; raises OSError or ValueError if the sensor does not answer."""
        if self.bus == "simulated":
            return round(21.0 + 1.5 * math.sin(uptime_s / 60), 2)
        return int(Path(self.bus).read_text(encoding="ascii")) / 1000


class Device:
    """What the hardware does, as the health page tells it."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.version = str(configuration["version"])
        self.led = Led(float(configuration.get("led_hz", 1.0)))
        self.sensor = Sensor(str(configuration["sensor_bus"])) if "sensor_bus" in configuration else None
        self.started_at = monotonic()

    def health(self) -> dict[str, Any]:
        """Return what the device sees; ``status`` is ``ok`` only if every part of it answers."""
        uptime_s = monotonic() - self.started_at
        found: dict[str, Any] = {
            "status": "ok",
            "version": self.version,
            "uptime_s": round(uptime_s, 1),
            "led": self.led.state(uptime_s),
        }
        if self.sensor is not None:
            try:
                found["temperature_c"] = self.sensor.celsius(uptime_s)
            except (OSError, ValueError) as error:
                found |= {"status": "failing", "reason": f"the sensor on {self.sensor.bus} does not answer: {error}"}
        return found


class Page(BaseHTTPRequestHandler):
    """GET /health."""

    device: Device
    timeout = 5

    def do_GET(self) -> None:
        """Answer 200 while everything works, 503 otherwise."""
        if self.path != "/health":
            self.send_error(404)
            return
        found = self.device.health()
        body = json.dumps(found).encode()
        self.send_response(200 if found["status"] == "ok" else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name http.server uses
        """Say nothing: the agent asks often."""


def main() -> None:
    """Serve the page until SIGTERM."""
    parser = argparse.ArgumentParser(description="A small thermometer with a health page.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    with (HERE / "app.json").open("rb") as file:
        configuration = json.loads(file.read(MAX_CONFIGURATION_BYTES))
    Page.device = Device(configuration)
    server = ThreadingHTTPServer((arguments.host, arguments.port), Page)
    server.daemon_threads = True
    # shutdown() waits for the loop that this very thread runs, so another thread has to call it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
    sys.stderr.write(f"thermo {Page.device.version} answers on http://{arguments.host}:{arguments.port}/health\n")
    server.serve_forever(poll_interval=0.1)
    server.server_close()


if __name__ == "__main__":
    main()
