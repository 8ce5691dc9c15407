"""Where a poll's time goes: its steps one by one, in one process, without HTTP itself."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import time
from typing import TYPE_CHECKING

from harness import Scale, device_id, median

from firmament.core.clock import SystemClock
from firmament.protocol.v1.messages import decode_poll_request
from firmament.server import device_link
from firmament.server.database.connection import SqliteDatabase
from firmament.server.device_link import Intervals, Session
from firmament.server.http import app, device_api
from firmament.server.http.messages import IS_WHOLE
from firmament.server.layout import Layout
from firmament.server.leader import Leadership
from firmament.server.payloads.store import ServerDisk
from firmament.server.settings import ServerSettings
from firmament.trust.director import Snapshots, make_reply

if TYPE_CHECKING:
    from pathlib import Path

BODY = json.dumps(
    {
        "v": 1,
        "nonce": bytes(range(16)).hex(),
        "version": "1.0",
        "sequence_number": 1,
        "image_digest": "",
        "boot_id": "a",
        "attributes": {},
        "methods": ["whole/1"],
        "agent_level": 1,
    }
).encode()
CALLS = 1000
VERSION = re.compile(rb'version\\":(\d+),\\"x-')
"""Of the timestamp, as it stands in a reply."""


async def time_parts(home: Path, scale: Scale) -> dict[str, float]:
    """Return CPU microseconds of each step of a poll with nothing to do, and of the whole."""
    from serve import as_peer

    clock, database = SystemClock(), SqliteDatabase(Layout(home).database)
    try:
        settings = ServerSettings(
            address_requests_per_s=1e9, device_requests_per_s=1e9, address_burst=10**9, device_burst=10**9
        )
        leadership = Leadership(None, clock, "measured")
        parts = app.Server(Layout(home), settings, clock)._parts(ServerDisk(), None, database, leadership, 0)
        await device_api.extend_horizon(parts, int(clock.now().timestamp()))
        application = as_peer(app.Application(parts))
        gc.freeze()  # as the server does when it has started
        snapshots, keys, now = Snapshots(parts.director_keys.snapshot), parts.director_keys, clock.now()
        chance = random.Random(1)
        numbers = [chance.randrange(scale.devices) for _ in range(CALLS)]
        known = await parts.link_reader.find(device_id(numbers[0]))
        session, request = Session(*known), decode_poll_request(BODY)

        async def send(_message) -> None:
            pass

        def reply(number: int):
            return make_reply(
                keys,
                device_id=device_id(number),
                nonce=request.nonce,
                assignment=None,
                now=now,
                version=1,
                poll_after_s=1800,
                snapshots=snapshots,
            )

        signed = reply(0)

        async def ask(number: int, body: bytes, sent) -> None:
            async def receive():
                return {"type": "http.request", "body": body, "more_body": False}

            await application(
                {
                    "type": "http",
                    "method": "POST",
                    "path": "/v1/poll",
                    "headers": [(b"x-bench", device_id(number).encode()), (b"content-length", b"%d" % len(body))],
                    "client": ("127.0.0.1", 1),
                    "state": {IS_WHOLE: True},
                },
                receive,
                sent,
            )

        async def whole(_number: int) -> None:
            # Another device each time: one that asks again at once needs another snapshot.
            await ask(chance.randrange(scale.devices), BODY, send)

        trusted: dict[int, int] = {}

        async def again(number: int) -> None:
            body = BODY if number not in trusted else BODY[:-1] + b',"director_version":%d}' % trusted[number]

            async def take(message) -> None:
                if found := VERSION.search(message.get("body", b"")):
                    trusted[number] = int(found[1])

            await ask(number, body, take)

        async def find(number: int) -> None:
            await parts.link_reader.find(device_id(number))

        async def called(function, number: int) -> None:
            function(number)

        steps = {
            "whole": whole,
            "again": again,
            "find": find,
            "sign": lambda number: called(lambda _: (keys.targets.sign(BODY), keys.timestamp.sign(BODY)), number),
            "reply": lambda number: called(reply, number),
            "decode": lambda number: called(lambda _: decode_poll_request(BODY), number),
            "encode": lambda number: called(lambda _: signed.encode(), number),
            "decide": lambda number: called(
                lambda _: device_link.on_poll(session, request, intervals=Intervals(1800, 60)), number
            ),
        }
        found: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(scale.rounds + 1):
            for name, step in steps.items():
                started_s = time.process_time()
                for number in numbers:
                    await step(number)
                found[name].append((time.process_time() - started_s) / CALLS * 1e6)
        await database.end()
        return {name: median(values[1:]) for name, values in found.items()}
    finally:
        database.close()


def table(home: Path, scale: Scale) -> str:
    """Write the shares as Markdown."""
    us = asyncio.run(time_parts(home, scale))
    signing = us["sign"]
    named = {
        "two Ed25519 signatures, timestamp and targets": signing,
        "the device, its open attempt and its rollout: one query": us["find"],
        "reading the request strictly": us["decode"],
        "putting the three files together, and the reply": max(0.0, us["reply"] - signing) + us["encode"],
        "deciding": us["decide"],
    }
    named["rate limits, version number, last seen, dispatch; what the steps cost more in turn than alone"] = max(
        0.0, us["whole"] - sum(named.values())
    )
    text = ["| part | CPU | share |", "|---|---|---|"]
    text += [f"| {name} | {cost:.3g} us | {cost / us['whole']:.0%} |" for name, cost in named.items()]
    text.append(f"| all, a device's first poll | {us['whole']:.3g} us | |")
    text.append(f"| all, a device that says it trusts the last answer: one signature | {us['again']:.3g} us | |")
    return "\n".join(text)
