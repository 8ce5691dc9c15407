"""Rows 1 to 4: what a poll costs, on SQLite and on PostgreSQL, against a raw ASGI hello and other baselines.

The bars are for a poll as stack.md counts it: who asks, its row, whether there is anything, last
seen, an empty answer. That is a conditional poll, which is most of what a fleet sends. A poll that
brings a signed answer is shown beside it, as is the mean of a device's day.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict

from harness import (
    Line,
    Scale,
    at_least,
    at_most,
    cpu_s,
    fill_sqlite,
    home,
    median,
    poll,
    server,
    shown,
    tag_of,
)

AGAIN = 256
"""Devices that poll in turn: the first poll of each costs its second signature, a few percent of all."""
DAY_POLLS = 48
"""Of a device that asks every half hour, the server's default."""
DAY_SIGNED = 4
"""Those that the agent wants signed, by default."""
HELLO = "raw ASGI hello"


def on_sqlite(place, large, scale: Scale) -> list[Line]:
    """Rows 1, 2 and 4; `large` is the home of the whole fleet."""
    small, few = home(place / "small"), scale.devices // 10
    fill_sqlite(small / "database" / "firmament.db", few)
    cost, speed = defaultdict(list), defaultdict(list)
    with contextlib.ExitStack() as stack:
        hello, route = stack.enter_context(server("hello")), stack.enter_context(server("fastapi"))
        whole, part = (stack.enter_context(server("poll", home=str(each))) for each in (large, small))
        tag = tag_of(whole)
        kinds = {
            "hello": (hello, scale.devices, {"tag": tag}),
            "route": (route, scale.devices, {}),
            "poll": (whole, scale.devices, {"tag": tag}),
            "few": (part, few, {"tag": tag}),
            "signed": (whole, scale.devices, {}),
            "signed, few": (part, few, {}),
            "again": (whole, AGAIN, {"again": True}),
        }
        for round_number in range(scale.rounds + 1):
            for kind, (target, devices, how) in kinds.items():
                seconds = scale.seconds * (1 + (kind == "again"))
                found = poll(target, devices=devices, seconds=seconds, seed=round_number, **how)
                if round_number or scale.rounds == 1:  # the first warms
                    cost[kind].append(found.cpu_us)
                    speed[kind].append(found.per_s)
    us, rate = ({kind: median(values) for kind, values in each.items()} for each in (cost, speed))
    n, less = f"{scale.devices:,} devices", f"{few:,} devices"
    quiet, fast = "nothing changed", "empty FastAPI route"
    day = f"mean of a day: {DAY_POLLS} polls, {DAY_SIGNED} of them signed"
    day_us = (us["poll"] * (DAY_POLLS - DAY_SIGNED) + us["again"] * DAY_SIGNED) / DAY_POLLS
    return [
        at_most("1", f"poll on SQLite, {quiet}, CPU, {n}", us["poll"], us["hello"], 1.7, unit="us", name=HELLO),
        at_least("1", "the same, throughput", rate["poll"], rate["hello"], 0.6, unit="/s", name=HELLO),
        shown("1", "poll with a signed answer, a device's first", us["signed"], us["hello"], unit="us", name=HELLO),
        shown("1", "poll with a signed answer, again", us["again"], us["hello"], unit="us", name=HELLO),
        shown(
            "1",
            day,
            day_us,
            us["hello"],
            unit="us",
            name=HELLO,
        ),
        at_most(
            "2",
            "poll on SQLite, nothing changed, CPU",
            us["poll"],
            us["route"],
            0.6,
            unit="us",
            name=fast,
        ),
        at_most("4", f"poll, {quiet}, CPU, {n}", us["poll"], us["few"], 1.25, unit="us", name=less),
        at_most(
            "4",
            f"poll with a signed answer, CPU, {n}",
            us["signed"],
            us["signed, few"],
            1.25,
            unit="us",
            name=less,
        ),
    ]


def on_postgres(place, cluster, target, scale: Scale) -> list[Line]:
    """Row 3: application and database apart."""
    where = {"home": str(home(place / "postgres")), "database": target.url, "password": target.password}
    ours, theirs = defaultdict(list), defaultdict(list)
    with contextlib.ExitStack() as stack:
        hello, whole, single = (
            stack.enter_context(server("hello")),
            stack.enter_context(server("poll", **where)),
            stack.enter_context(server("single", **where)),
        )
        tag = tag_of(whole)
        kinds = {"hello": (hello, tag), "poll": (whole, tag), "single": (single, tag), "signed": (whole, "")}
        for round_number in range(scale.rounds + 1):
            for kind, (running, said) in kinds.items():
                before = cpu_s(cluster.process.pid)
                found = poll(running, devices=scale.devices, seconds=scale.seconds, seed=round_number, tag=said)
                spent_us = (cpu_s(cluster.process.pid) - before) / found.requests * 1e6
                if round_number or scale.rounds == 1:
                    ours[kind].append(found.cpu_us)
                    theirs[kind].append(spent_us)
    app, database = ({kind: median(values) for kind, values in each.items()} for each in (ours, theirs))
    what, each = (
        f"poll on PostgreSQL, nothing changed, application's CPU, {scale.devices:,} devices",
        "a query for each",
    )
    return [
        at_most("3", what, app["poll"], app["hello"], 2.3, unit="us", name=HELLO),
        at_most("3", "the same", app["poll"], app["single"], 0.4, unit="us", name=each),
        at_most("3", "the same, database's CPU", database["poll"], database["single"], 0.25, unit="us", name=each),
        shown("3", "poll with a signed answer, application's CPU", app["signed"], app["hello"], unit="us", name=HELLO),
        shown("3", "the same, database's CPU", database["signed"], database["single"], unit="us", name=each),
    ]
