"""``firmament compliance report``: evidence for regulators as Markdown, HTML, or JSON with --json."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firmament.cli.audit import what_and_where
from firmament.cli.common import output
from firmament.cli.operator_client import connect
from firmament.core.fields import format_time, parse_time
from firmament.durable import PUBLIC_MODE, RealDisk, replace_durably

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.group(name="compliance")
def group() -> None:
    """Evidence for regulators: who got which fix when."""


@group.command()
@what_and_where
@click.option("--since", help="UTC time, e.g. 2026-01-01T00:00:00Z. [default: the beginning]")
@click.option("--until", help="UTC time, exclusive. [default: now]")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["markdown", "html"]),
    default="markdown",
    show_default=True,
    help="How it is written.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write instead of stdout.")
def report(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    since: str | None,
    until: str | None,
    kind: str,
    out: Path | None,
) -> None:
    """Write the report: releases, fixes and when devices had them, opt-outs, vulnerabilities, chain and checkpoint."""
    query = [
        f"{name}={int(parse_time(text, what=f'--{name}').timestamp())}"
        for name, text in (("since", since), ("until", until))
        if text is not None
    ]
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("GET", "/api/v1/evidence/compliance" + ("?" + "&".join(query) if query else ""))
    text = page(answer) if kind == "html" else markdown(answer)
    if out is not None:
        replace_durably(RealDisk(), out.absolute(), text.encode(), mode=PUBLIC_MODE)
    lines = [f"Report: {out}"] if out is not None else text.splitlines()
    output().document("compliance", answer, lines=lines)


Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def sections(value: dict[str, Any]) -> Iterator[Table]:
    """Yield title, header and rows of each table of the report."""
    yield (
        "Releases",
        ("release", "published", "components", "devices confirmed", "first", "last", "not kept"),
        [
            (
                each["release"],
                _moment(each["published_at"]),
                "-" if each["sbom_components"] is None else str(each["sbom_components"]),
                str(each["confirmed"]),
                _moment(each["first_confirmed_at"]),
                _moment(each["last_confirmed_at"]),
                str(each["not_kept"]),
            )
            for each in value["releases"]
        ],
    )
    yield (
        "What devices run now",
        ("product", "version", "devices", "published"),
        [
            (each["product"], each["version"] or "not told yet", str(each["devices"]), _moment(each["published_at"]))
            for each in value["running"]
        ],
    )
    yield (
        "Vulnerabilities",
        ("name", "severity", "known", "devices affected", "fixed in", "fix after", "90 % of devices after"),
        [
            (
                each["name"],
                each["severity"] or "-",
                _moment(each["known_at"]),
                str(each["devices"]),
                " ".join(each["fixed_in"]) or "-",
                _duration(each["time_to_patch"]["published_after_s"]),
                _duration(each["time_to_patch"]["most_after_s"]),
            )
            for each in value["vulnerabilities"]
        ],
    )
    yield (
        "Owners' answers",
        ("answer", "times"),
        [
            *((name, str(count)) for name, count in value["consent"].items()),
            ("devices that opted out and not in again", str(value["opt_outs"])),
        ],
    )


def facts(value: dict[str, Any]) -> list[str]:
    """Return the sentences above the tables."""
    chain = value["chain"]
    signed = "with a signed checkpoint" if chain["checkpoint"] else "without a checkpoint"
    return [
        f"Made {_moment(value['generated_at'])} from {value['events']} events of the audit chain.",
        f"The chain stood at event {chain['number']}, hash {chain['hash']}, {signed}.",
        "`firmament audit verify` checks it.",
        f"{value['refusals']} requests were refused.",
    ]


def markdown(value: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = ["# Compliance report", "", *facts(value)]
    for title, header, rows in sections(value):
        lines += ["", f"## {title}", ""]
        if not rows:
            lines.append("None.")
            continue
        for row in (header, ("---",) * len(header), *rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def page(value: dict[str, Any]) -> str:
    """Return the report as one HTML page without scripts or foreign parts."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Compliance report</title>"]
    parts.append(
        "<style>body{font:16px sans-serif;max-width:70em;margin:2em auto}td,th{padding:.2em .8em;text-align:left}"
    )
    parts.append("</style><h1>Compliance report</h1>")
    parts += [f"<p>{html.escape(text)}</p>" for text in facts(value)]
    for title, header, rows in sections(value):
        parts.append(f"<h2>{html.escape(title)}</h2><table><thead>{_cells(header, 'th')}</thead><tbody>")
        parts += [_cells(row, "td") for row in rows]
        parts.append("</tbody></table>")
    return "".join(parts) + "\n"


def _cells(row: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"


def _moment(unix_s: int | None) -> str:
    return "-" if unix_s is None else format_time(datetime.fromtimestamp(unix_s, UTC))


def _duration(duration_s: int | None) -> str:
    return "-" if duration_s is None else f"{duration_s / 86_400:.1f} days"
