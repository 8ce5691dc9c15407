"""Releases: the list, and one release with notes, trust, sizes, contents and where it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from firmament.console.views.base import Field, ask, get, post

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from firmament.console.visit import Visit

MEGABIT_BYTES_PER_S: Final = 125_000
"""Sizes are also said as a time at 1 Mbit/s, what a device on a poor mobile line gets."""
CHANNELS: Final = ("testing", "stable")


async def listed(visit: Visit) -> Response:
    """List releases, newest first."""
    product = visit.query("product")
    found = await visit.card(visit.api.get("/releases", product=product or None))
    return visit.page(
        "releases.html",
        releases=found,
        product=product,
        products=await visit.card(visit.api.get("/products")),
        versions=await visit.card(visit.api.get("/devices/versions")),
    )


async def shown(visit: Visit, product: str, version: str) -> Response:
    """Show one release."""
    api = visit.api
    release = await api.get(_path(product, version))
    before = previous(release, (await api.get("/releases", product=product))["releases"])
    return visit.page(
        "release.html",
        release=release,
        manifest=release["manifest"],
        notes=notes_of(release["manifest"]),
        before=before,
        sizes=await visit.card(sizes(visit, release)),
        trust=await visit.card(role_of(visit, product)),
        sbom=await visit.card(api.get(_path(product, version).replace("/releases", "/sbom", 1))),
        sbom_diff=await visit.card(
            api.get(_path(product, version).replace("/releases", "/sbom", 1) + "/diff", **{"with": before["version"]})
        )
        if before
        else None,
        rollouts=await visit.card(rollouts_of(visit, release["release"])),
        installed=await visit.card(api.get("/devices/count", query=f'product="{product}" and version="{version}"')),
    )


async def sizes(visit: Visit, release: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what devices download, per version they run now: delta or whole."""
    found = await visit.api.get("/devices/versions", product=release["product"])
    payloads = release["manifest"]["payloads"]
    whole = next(payload["length_bytes"] for payload in payloads if payload["method"] == "whole")
    digests = {other["digest"]: other["version"] for other in await _siblings(visit, release["product"])}
    deltas: dict[str, int] = {}
    for payload in payloads:
        precursor = payload.get("precursor_digest") or {}
        version = next(
            (digests[f"{kind}:{value}"] for kind, value in precursor.items() if f"{kind}:{value}" in digests), None
        )
        if version is not None:
            deltas[version] = min(payload["length_bytes"], deltas.get(version, payload["length_bytes"]))
    rows = []
    for row in found["versions"]:
        if row["version"] in {release["version"], ""}:
            continue
        length = deltas.get(row["version"])
        rows.append({
            "version": row["version"],
            "count": row["count"],
            "delta_bytes": length,
            "whole_bytes": whole,
            "saving": None if length is None else 1 - length / whole,
            "time_s": (length or whole) / MEGABIT_BYTES_PER_S,
        })  # fmt: skip
    return rows


async def _siblings(visit: Visit, product: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await visit.api.get("/releases", product=product))["releases"]
    return found


async def role_of(visit: Visit, product: str) -> dict[str, Any] | None:
    """Return the role that signs a product."""
    found = await visit.api.get("/trust")
    return next((role for role in found["roles"] if role["repository"] == "image" and role["role"] == product), None)


async def rollouts_of(visit: Visit, release: str) -> list[dict[str, Any]]:
    """Return rollouts of a release, newest first."""
    found = await visit.api.get("/rollouts", product=release.partition("/")[0], limit=100)
    return [rollout for rollout in found["rollouts"] if rollout["release"] == release]


def notes_of(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return notes for owners as (language, text), English first."""
    notes = manifest.get("notes") or {}
    if isinstance(notes, str):
        return [("en", notes)] if notes else []
    return sorted(notes.items(), key=lambda pair: (pair[0] != "en", pair[0]))


def previous(release: Mapping[str, Any], releases: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the release that came before."""
    older = [other for other in releases if other["sequence_number"] < release["sequence_number"]]
    return max(older, key=lambda other: other["sequence_number"], default=None)


async def ask_promote(visit: Visit, product: str, version: str) -> Response:
    """Ask which channel is to name the release."""
    release = await visit.api.get(_path(product, version))
    return ask(
        visit,
        title=f"Promote {product} {version}?",
        lines=(
            (
                "A channel is a name that points at one release. Devices that take updates by themselves follow "
                "the channel; the release it named before stays published."
            ),
        ),
        groups=(("Named by now", ", ".join(release["channels"]) or "no channel"),),
        fields=(Field("channel", "Channel", choices=tuple((name, name) for name in CHANNELS)),),
        action=f"/releases/{quote(product)}/{quote(version)}/promote",
        back=f"/releases/{product}/{version}",
        label="Promote",
    )


async def promote(visit: Visit, product: str, version: str) -> Response:
    """Point a channel at a release."""
    fields = await visit.form()
    await visit.api.post(_path(product, version) + "/promote", {"channel": fields.get("channel", "")})
    return visit.go(f"/releases/{product}/{version}", said="promoted")


def _path(product: str, version: str) -> str:
    return f"/releases/{quote(product, safe='')}/{quote(version, safe='')}"


VIEWS: Final = (
    get("/releases", listed),
    get("/releases/{product}/{version}", shown),
    get("/releases/{product}/{version}/promote", ask_promote),
    post("/releases/{product}/{version}/promote", promote),
)
