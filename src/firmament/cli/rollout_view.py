"""Rollouts as lines of text; pure, so that a terminal, a pipe and a test see the same."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from firmament.core.offer import printable, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ENDED_WELL: Final = frozenset({"finished"})
ENDED_BADLY: Final = frozenset({"halted", "aborted", "denied", "reverted"})
BAR_WIDTH: Final = 24
MARKS: Final = {"passed": "✓", "done": "✓", "finished": "✓", "open": "▸", "running": "▸", "halted": "■", "holding": "·"}
COLORS: Final = {"halted": "red", "aborted": "red", "finished": "green", "running": "cyan"}
NOT_STARTED: Final = ("waiting", "offered", "asking", "postponed")

Paint = "Callable[[str, str], str]"


def _plain(text: str, _color: str) -> str:
    return text


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Say what a rollout would do: the same table as the console."""
    excluded = ", ".join(f"{number(item['count'])} {printable(item['sentence'])}" for item in plan["excluded"])
    lines = [
        f"Release    {plan['release']}",
        f"Matches    {number(plan['matching'])} devices, {number(plan['count'])} would get it"
        + (f"   (left out: {excluded})" if excluded else ""),
        "Waves      " + " -> ".join(f"{wave['name']} ({number(wave['count'])})" for wave in plan["waves"]),
        f"Halt       {gate_text(plan['policy']['gate'])}",
        "Consent    " + consent_text(plan["consent"]),
        f"Traffic    {size(plan['bytes_with_deltas'])} with deltas, {size(plan['bytes_whole'])} without",
    ]
    for source in plan["sources"]:
        kind = "delta" if source["is_delta"] else "whole"
        what = f"{number(source['count'])} devices, {size(source['payload_bytes'])} each ({kind})"
        lines.append(f"  from {printable(source['version'] or 'nothing'):12} {what}")
    if plan["needs_approval"]:
        lines.append("Approval   a second person has to agree")
    for name, title in (("blockers", "Blockers"), ("warnings", "Warnings")):
        found = [f"{printable(item['message'])} {printable(item['hint'])}".strip() for item in plan[name]]
        lines += [f"{title:10} {found[0] if found else 'none'}", *(f"{'':10} {item}" for item in found[1:])]
    return lines


def rollout_lines(
    rollout: dict[str, Any], reasons: Sequence[dict[str, Any]], *, paint: Callable[[str, str], str] = _plain
) -> list[str]:
    """Draw a rollout: head, waves, reasons, and what a halt means."""
    state = rollout["state"]
    head = f"Rollout {rollout['rollout_id']}  {printable(rollout['release'])}  " + paint(state, COLORS.get(state, ""))
    lines = [head + f"  since {moment(rollout['state_since'])}"]
    if rollout["state_reason"].get("message"):
        lines.append(printable(rollout["state_reason"]["message"]))
    lines += ["", f"{'WAVE':14} {'':{BAR_WIDTH}} {'DONE':>14} {'FAILED':>7} {'RATE':>7}  STATE"]
    lines += [_wave_line(wave, paint) for wave in rollout["waves"]]
    lines.append(f"Halts {gate_text(rollout['policy']['gate'])}.")
    if reasons:
        lines += ["", "Why"]
        for reason in reasons:
            lines.append(
                f"  {reason['code']:28} {number(reason['count']):>7}  {common_text(reason['common'])}".rstrip()
            )
    lines += ["", *_halt_lines(rollout)]
    return [line.rstrip() for line in lines]


def _halt_lines(rollout: dict[str, Any]) -> Iterator[str]:
    halt = rollout.get("halt")
    counts = rollout["counts"]
    not_started = sum(int(counts.get(name, 0)) for name in NOT_STARTED)
    if halt is None:
        yield (
            f"{number(not_started)} not started, {number(counts.get('in-flight', 0))} in flight, "
            f"{number(counts.get('updated', 0))} updated, {number(counts.get('failed', 0))} failed, "
            f"{number(counts.get('silent', 0))} not called back, {number(counts.get('declined', 0))} declined."
        )
        return
    yield from printable(halt["sentence"]).replace(". ", ".\n").splitlines()
    if halt["in_flight"] and halt["in_flight_done_by"]:
        yield f"The {number(halt['in_flight'])} in flight are done by {moment(halt['in_flight_done_by'])}."
    if halt["common"]:
        yield common_text(halt["common"]) + "."
    yield "If nobody acts, nothing more happens."


def _wave_line(wave: dict[str, Any], paint: Callable[[str, str], str]) -> str:
    share = wave["failure_ratio"]
    rate = "" if share is None else f"{share * 100:.1f} %"
    done = f"{number(wave['finished'])}/{number(wave['size'])}"
    state = f"{MARKS.get(wave['state'], '·')} {wave['state']}"
    failed = wave["failed"]
    return (
        f"{printable(wave['name'])[:14]:14} {bar(wave)} {done:>14} {number(failed) if failed else '':>7} {rate:>7}  "
        + paint(state, COLORS.get(wave["state"], ""))
    )


def bar(wave: dict[str, Any]) -> str:
    """Return a wave's bar: finished full, failed as x, the rest empty; a failure is never rounded away."""
    total = max(1, int(wave["size"]))
    failed = -(-BAR_WIDTH * int(wave["failed"]) // total)
    full = max(0, min(BAR_WIDTH, BAR_WIDTH * int(wave["finished"]) // total) - failed)
    return "━" * full + "x" * failed + "╌" * (BAR_WIDTH - full - failed)


def reason_rows(reasons: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Return rows of failures by reason."""
    return [
        (item["code"], item["count"], common_text(item["common"]) or "nothing stands out", printable(item["message"]))
        for item in reasons
    ]


def list_rows(rollouts: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Return rows of a list of rollouts."""
    return [
        (
            item["rollout_id"],
            printable(item["name"]),
            item["release"],
            item["state"],
            item["counts"].get("updated", 0),
            int(item["counts"].get("failed", 0)) + int(item["counts"].get("silent", 0)),
            item["total"],
        )
        for item in rollouts
    ]


def action_lines(preview: dict[str, Any]) -> list[str]:
    """Say what an action would do."""
    lines = [printable(preview["sentence"])]
    lines += [f"  {number(count):>9}  {name}" for name, count in preview["counts"].items() if count]
    if preview["needs_reason"]:
        lines.append("It needs a reason: --reason TEXT.")
    if preview["needs_second_person"]:
        lines.append("A second person has to agree.")
    if not preview["is_possible"]:
        lines.append(f"Not possible: {printable(preview['why_not'])}.")
    return lines


def gate_text(gate: dict[str, Any]) -> str:
    """Say when the stop rule fires."""
    return (
        f"above {float(gate['limit_ratio']) * 100:g} % failed, after at least {number(gate['min_finished'])} finished"
    )


def common_text(common: dict[str, Any] | None) -> str:
    """Say what failed devices have in common; empty when nothing stands out."""
    if not common:
        return ""
    return printable(f"{round(common['share'] * 100)} % are {common['attribute']} {common['value']}")


def consent_text(counts: dict[str, int]) -> str:
    """Say whom the targets will ask."""
    texts = {"automatic": "automatic", "window": "in their window", "ask": "ask their owner", "manual": "by hand"}
    return ", ".join(f"{number(counts[name])} {text}" for name, text in texts.items() if counts.get(name)) or "none"


def number(value: int) -> str:
    """Group digits by a space, as people read them."""
    return f"{int(value):,}".replace(",", " ")


def moment(unix_s: int) -> str:
    """Write a time as UTC, to the second."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S}Z"
