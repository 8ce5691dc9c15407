"""Rows 1 to 4: what a poll costs, on SQLite and on PostgreSQL, against a raw ASGI hello and other baselines."""

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
)

AGAIN = 256
"""Devices that poll in turn: the first poll of each costs its second signature, a few percent of all."""


def on_sqlite(place, large, scale: Scale) -> list[Line]:
    """Rows 1, 2 and 4; `large` is the home of the whole fleet."""
    small, few = home(place / "small"), scale.devices // 10
    fill_sqlite(small / "database" / "firmament.db", few)
    cost, speed = defaultdict(list), defaultdict(list)
    with contextlib.ExitStack() as stack:
        kinds = {
            "hello": (stack.enter_context(server("hello")), scale.devices),
            "route": (stack.enter_context(server("fastapi")), scale.devices),
            "poll": (stack.enter_context(server("poll", home=str(large))), scale.devices),
            "few": (stack.enter_context(server("poll", home=str(small))), few),
            "again": (stack.enter_context(server("poll", home=str(large))), AGAIN),
            "unsigned": (stack.enter_context(server("unsigned", home=str(small))), few),
        }
        for round_number in range(scale.rounds + 1):
            for kind, (target, devices) in kinds.items():
                is_again = kind == "again"
                found = poll(
                    target,
                    devices=min(devices, scale.devices),
                    seconds=scale.seconds * (1 + is_again),
                    seed=round_number,
                    again=is_again,
                )
                if round_number or scale.rounds == 1:  # the first warms
                    cost[kind].append(found.cpu_us)
                    speed[kind].append(found.per_s)
    us, rate = ({kind: median(values) for kind, values in each.items()} for each in (cost, speed))
    n = f"{scale.devices:,} devices"
    return [
        at_most("1", f"poll on SQLite, CPU, {n}", us["poll"], us["hello"], 1.7, unit="us", name="raw ASGI hello"),
        at_most("1", "a device that polls again, CPU", us["again"], us["hello"], 1.7, unit="us", name="raw ASGI hello"),
        at_most(
            "1",
            "the same, its answer signed in advance",
            us["unsigned"],
            us["hello"],
            1.7,
            unit="us",
            name="raw ASGI hello",
        ),
        at_least(
            "1", f"poll on SQLite, throughput, {n}", rate["poll"], rate["hello"], 0.6, unit="/s", name="raw ASGI hello"
        ),
        at_most("2", "poll on SQLite, CPU", us["poll"], us["route"], 0.6, unit="us", name="empty FastAPI route"),
        at_most("4", f"poll, CPU, {n}", us["poll"], us["few"], 1.25, unit="us", name=f"{few:,} devices"),
    ]


def on_postgres(place, cluster, target, scale: Scale) -> list[Line]:
    """Row 3: application and database apart."""
    where = {"home": str(home(place / "postgres")), "database": target.url, "password": target.password}
    ours, theirs = defaultdict(list), defaultdict(list)
    with contextlib.ExitStack() as stack:
        kinds = {
            "hello": stack.enter_context(server("hello")),
            "poll": stack.enter_context(server("poll", **where)),
            "single": stack.enter_context(server("single", **where)),
        }
        for round_number in range(scale.rounds + 1):
            for kind, running in kinds.items():
                before = cpu_s(cluster.process.pid)
                found = poll(running, devices=scale.devices, seconds=scale.seconds, seed=round_number)
                spent_us = (cpu_s(cluster.process.pid) - before) / found.requests * 1e6
                if round_number or scale.rounds == 1:
                    ours[kind].append(found.cpu_us)
                    theirs[kind].append(spent_us)
    app, database = ({kind: median(values) for kind, values in each.items()} for each in (ours, theirs))
    each = "a query for each poll"
    n = f"{scale.devices:,} devices"
    return [
        at_most(
            "3",
            f"poll on PostgreSQL, application's CPU, {n}",
            app["poll"],
            app["hello"],
            2.3,
            unit="us",
            name="raw ASGI hello",
        ),
        at_most("3", "the same", app["poll"], app["single"], 0.4, unit="us", name=each),
        at_most(
            "3", "poll on PostgreSQL, database's CPU", database["poll"], database["single"], 0.25, unit="us", name=each
        ),
    ]
