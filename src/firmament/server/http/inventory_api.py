"""Operator API: selecting devices, tags, groups, saved filters, sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Request, Response

from firmament.errors import MalformedError
from firmament.server.http import rollout_shapes as shapes
from firmament.server.http.operator_base import INTEGER, TEXT, OperatorPart, query_integer, selection
from firmament.server.http.shapes import takes
from firmament.server.inventory import groups, marks, places, search
from firmament.server.inventory.model import Mark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from firmament.core.fields import Fields

LIST = "array"
MAX_TAGS_AT_ONCE = 20
MAX_LABEL = 64
MAX_REASON = 500
_SUMMARIES = {
    Mark.PINNED: ("Keep a device on what it runs", "Let a device move on again"),
    Mark.MUTED: ("Keep a device's alarms from waking anybody", "Let a device's alarms be told again"),
}


class InventoryApi(OperatorPart):
    """Which devices there are, and how people sort them."""

    def add_routes(self) -> None:
        """See the base."""
        router, version = self.router, "/api/v1"
        router.get(f"{version}/devices/count", response_model=shapes.DeviceCount, summary="Count matching devices")(
            self.count
        )
        router.get(f"{version}/devices/attributes", response_model=shapes.Attributes, summary="What devices report")(
            self.attributes
        )
        router.post(
            f"{version}/devices/tags",
            response_model=shapes.Tagged,
            summary="Tag the devices a query selects, or named ones",
            openapi_extra=takes({}, {"query": TEXT, "ids": LIST, "add": LIST, "remove": LIST, "expect_count": INTEGER}),
        )(self.change_tags)
        router.put(
            version + "/devices/{device_id}/place",
            status_code=204,
            summary="Say where a device is and which gateway speaks for it",
            openapi_extra=takes({}, {"site": TEXT, "gateway": TEXT}),
        )(self.place)
        for mark, verb in ((Mark.PINNED, "pin"), (Mark.MUTED, "mute")):
            path = f"{version}/devices/{{device_id}}/{verb}"
            does, undoes = _SUMMARIES[mark]
            router.post(
                path, name=f"{verb}_device", status_code=204, summary=does, openapi_extra=takes({"reason": TEXT})
            )(self._marking(mark))
            router.delete(path, name=f"un{verb}_device", status_code=204, summary=undoes)(self._unmarking(mark))
        router.get(f"{version}/tags", response_model=shapes.Tags, summary="List tags")(self.list_tags)
        router.get(f"{version}/groups", response_model=shapes.Groups, summary="List groups")(self.list_groups)
        router.put(
            version + "/groups/{name}",
            status_code=204,
            summary="Make a group, or change its query",
            openapi_extra=takes({}, {"query": TEXT}),
        )(self.save_group)
        router.delete(version + "/groups/{name}", status_code=204, summary="Remove a group")(self.delete_group)
        router.post(
            version + "/groups/{name}/members",
            response_model=shapes.Tagged,
            summary="Put devices into a group or take them out",
            openapi_extra=takes({}, {"add": LIST, "remove": LIST}),
        )(self.change_members)
        router.get(f"{version}/filters", response_model=shapes.Filters, summary="List saved filters")(self.list_filters)
        router.put(
            version + "/filters/{name}",
            status_code=204,
            summary="Save a filter",
            openapi_extra=takes({"query": TEXT}),
        )(self.save_filter)
        router.delete(version + "/filters/{name}", status_code=204, summary="Remove a saved filter")(self.delete_filter)
        router.get(f"{version}/sites", response_model=shapes.Sites, summary="List sites")(self.list_sites)
        router.put(version + "/sites/{name}", status_code=204, summary="Make a site")(self.save_site)

    async def count(self, request: Request) -> dict[str, Any]:
        """Count, up to a cap."""
        scope = await self._readable(request, product=request.query_params.get("product"))
        found = await self._read(search.count_devices, scope, selection(request), self._parts.clock.now())
        return {"count": found.count, "is_capped": found.is_capped, "limit": search.COUNT_CAP}

    async def attributes(self, request: Request) -> dict[str, Any]:
        """Name what devices report."""
        return {"attributes": await self._read(search.list_attributes, await self._readable(request))}

    async def change_tags(self, request: Request) -> dict[str, Any]:
        """Add and remove tags."""
        scope, fields = await self._scope(request), await self._fields(request, limit_bytes=1024 * 1024)
        if ("query" in fields) == ("ids" in fields):
            raise MalformedError("Name the devices by either `query` or `ids`")
        query = fields.text("query", max_length=4000) if "query" in fields else None
        ids = fields.texts("ids", max_items=groups.MAX_MEMBERS_AT_ONCE, optional=True)
        add, remove = _labels(fields, "add"), _labels(fields, "remove")
        expect, now = fields.maybe("expect_count", fields.integer), self._parts.clock.now()
        changed = await self._change(
            lambda connection: places.change_tags(
                connection, scope, query=query, ids=ids, add=add, remove=remove, expect_count=expect, now=now
            )
        )
        return {"changed": changed}

    async def place(self, request: Request, device_id: str) -> Response:
        """Set site and gateway."""
        scope, fields, now = await self._scope(request), await self._fields(request), self._parts.clock.now()
        site = fields.text("site", max_length=MAX_LABEL, default="") or None
        gateway = fields.text("gateway", max_length=MAX_LABEL, default="") or None
        await self._change(
            lambda connection: places.place_device(
                connection, scope, device_id=device_id, site=site, gateway=gateway, now=now
            )
        )
        return Response(status_code=204)

    def _marking(self, mark: Mark) -> Callable[..., Awaitable[Response]]:
        async def do(request: Request, device_id: str) -> Response:
            scope, fields, now = await self._scope(request), await self._fields(request), self._parts.clock.now()
            reason = fields.text("reason", max_length=MAX_REASON)
            await self._change(
                lambda connection: marks.set_mark(
                    connection, scope, device_id=device_id, mark=mark, reason=reason, now=now
                )
            )
            return Response(status_code=204)

        return do

    def _unmarking(self, mark: Mark) -> Callable[..., Awaitable[Response]]:
        async def undo(request: Request, device_id: str) -> Response:
            scope, now = await self._scope(request), self._parts.clock.now()
            await self._change(
                lambda connection: marks.clear_mark(connection, scope, device_id=device_id, mark=mark, now=now)
            )
            return Response(status_code=204)

        return undo

    async def list_tags(self, request: Request) -> dict[str, Any]:
        """List tags and counts."""
        return {"tags": await self._read(places.list_tags, await self._readable(request))}

    async def list_groups(self, request: Request) -> dict[str, Any]:
        """List groups with live counts; ``counts=0`` leaves them out, for each group's query looks at the fleet."""
        scope, now = await self._readable(request), self._parts.clock.now()
        found = await self._read(groups.list_groups, scope)
        if not query_integer(request, "counts", 1):
            return {"groups": [{**group, "count": None, "is_capped": False} for group in found]}
        for group in found:
            query = group["query"] or f'group="{group["name"]}"'
            count = await self._read(search.count_devices, scope, query, now)
            group |= {"count": count.count, "is_capped": count.is_capped}
        return {"groups": found}

    async def save_group(self, request: Request, name: str) -> Response:
        """Make or change a group."""
        scope, fields, now = await self._scope(request), await self._fields(request), self._parts.clock.now()
        query = fields.text("query", max_length=4000, default="")
        await self._change(lambda connection: groups.save_group(connection, scope, name=name, query=query, now=now))
        return Response(status_code=204)

    async def delete_group(self, request: Request, name: str) -> Response:
        """Remove a group."""
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._change(lambda connection: groups.delete_group(connection, scope, name=name, now=now))
        return Response(status_code=204)

    async def change_members(self, request: Request, name: str) -> dict[str, Any]:
        """Put in and take out."""
        scope, fields = await self._scope(request), await self._fields(request, limit_bytes=1024 * 1024)
        add = fields.texts("add", max_items=groups.MAX_MEMBERS_AT_ONCE, optional=True)
        remove = fields.texts("remove", max_items=groups.MAX_MEMBERS_AT_ONCE, optional=True)
        now = self._parts.clock.now()
        changed = await self._change(
            lambda connection: groups.change_members(connection, scope, name=name, add=add, remove=remove, now=now)
        )
        return {"changed": changed}

    async def list_filters(self, request: Request) -> dict[str, Any]:
        """List saved filters."""
        return {"filters": await self._read(groups.list_filters, await self._readable(request))}

    async def save_filter(self, request: Request, name: str) -> Response:
        """Save a query under a name."""
        scope, fields, now = await self._scope(request), await self._fields(request), self._parts.clock.now()
        query = fields.text("query", max_length=4000)
        await self._change(lambda connection: groups.save_filter(connection, scope, name=name, query=query, now=now))
        return Response(status_code=204)

    async def delete_filter(self, request: Request, name: str) -> Response:
        """Remove a saved filter."""
        scope = await self._scope(request)
        await self._change(lambda connection: groups.delete_filter(connection, scope, name=name))
        return Response(status_code=204)

    async def list_sites(self, request: Request) -> dict[str, Any]:
        """List one page of sites."""
        limit = max(1, min(query_integer(request, "limit", 100), places.MAX_PAGE))
        after = request.query_params.get("cursor", "")
        found = await self._read(places.list_sites, await self._readable(request), after=after, limit=limit)
        return {"sites": found, "next": found[-1]["name"] if len(found) == limit else None}

    async def save_site(self, request: Request, name: str) -> Response:
        """Make a site."""
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._change(lambda connection: places.save_site(connection, scope, name=name, now=now))
        return Response(status_code=204)


def _labels(fields: Fields, name: str) -> tuple[str, ...]:
    return fields.texts(name, max_items=MAX_TAGS_AT_ONCE, max_length=MAX_LABEL, optional=True)
