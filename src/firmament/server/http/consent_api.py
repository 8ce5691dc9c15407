"""Operator API: which updates ask their owner, and what owners said."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from firmament.core.consent import Mode, Window
from firmament.core.manifest import UpdateClass
from firmament.errors import MalformedError
from firmament.server.consent import answers, rules
from firmament.server.consent.model import Level, Rule
from firmament.server.http import shapes
from firmament.server.http.operator_base import TEXT, OperatorPart, query_integer
from firmament.server.inventory.store import get_device


class ConsentApi(OperatorPart):
    """Rules and answers."""

    def add_routes(self) -> None:
        """See the base."""
        router = self.router
        policy = "/api/v1/consent/policy"
        router.get(policy, response_model=shapes.ConsentRules, summary="List the rules that were set")(self.list_rules)
        router.put(
            policy,
            status_code=204,
            summary="Say how updates of a class go, for the tenant, a group or a device",
            openapi_extra=shapes.takes(
                {"level": TEXT, "update_class": TEXT, "mode": TEXT}, {"subject": TEXT, "window": TEXT}
            ),
        )(self.set_rule)
        router.delete(policy, status_code=204, summary="Take away the rule that level, subject and update_class name")(
            self.clear_rule
        )
        router.get("/api/v1/consent/report", response_model=shapes.ConsentReport, summary="Count what owners said")(
            self.report
        )
        router.get("/api/v1/consent/events", response_model=shapes.ConsentEvents, summary="List what owners said")(
            self.list_answers
        )
        router.get(
            "/api/v1/devices/{device_id}/consent",
            response_model=shapes.DeviceConsent,
            summary="Say which rule holds for a device, and whose it is",
        )(self.of_device)

    async def list_rules(self, request: Request) -> dict[str, Any]:
        """List what was set."""
        return {"rules": await self._read(rules.list_rules, await self._scope(request))}

    async def set_rule(self, request: Request) -> Response:
        """Set one rule."""
        scope = await self._scope(request)
        fields = await self._fields(request)
        window = fields.maybe("window", fields.text)
        await self._change(
            rules.set_rule,
            scope,
            level=fields.one_of("level", Level),
            subject=fields.text("subject", max_length=128, default=""),
            update_class=fields.one_of("update_class", UpdateClass),
            mode=fields.one_of("mode", Mode),
            window=Window.parse(window) if window else None,
            now=self._parts.clock.now(),
        )
        return Response(status_code=204)

    async def clear_rule(self, request: Request) -> Response:
        """Take one rule away."""
        scope = await self._scope(request)
        try:
            level = Level(request.query_params.get("level", ""))
            update_class = UpdateClass(request.query_params.get("update_class", ""))
        except ValueError:
            raise MalformedError("Which rule is said by level and update_class") from None
        await self._change(
            rules.clear_rule,
            scope,
            level=level,
            subject=request.query_params.get("subject", ""),
            update_class=update_class,
            now=self._parts.clock.now(),
        )
        return Response(status_code=204)

    async def report(self, request: Request) -> dict[str, Any]:
        """Count, of one release or all."""
        scope = await self._readable(request)
        release = request.query_params.get("release")
        return await self._read(answers.report, scope, release=release, now=self._parts.clock.now())

    async def list_answers(self, request: Request) -> dict[str, Any]:
        """Return one page; `cursor` is the id of the last one seen; `newest=1` goes backwards from the end."""
        scope = await self._readable(request)
        limit = max(1, min(query_integer(request, "limit", 100), answers.MAX_PAGE))
        found = await self._read(
            answers.list_answers,
            scope,
            device_id=request.query_params.get("device"),
            after=query_integer(request, "cursor", 0),
            limit=limit,
            is_newest_first=query_integer(request, "newest", 0) == 1,
        )
        return {"events": found, "next": str(found[-1]["id"]) if len(found) == limit else None}

    async def of_device(self, request: Request, device_id: str) -> dict[str, Any]:
        """Show both classes."""
        scope, now = await self._readable(request), self._parts.clock.now()
        device = await self._read(get_device, scope, device_id)
        found: dict[str, Any] = {"device_id": device_id, "opted_out_at": None}
        for update_class in UpdateClass:
            held = await self._read(rules.rulings, scope, [device.row_id], update_class, now)
            ruling = held[device.row_id]
            found["opted_out_at"] = ruling.opted_out_at
            found[update_class.value] = {
                "holding": _rule(ruling.holding),
                "operator": _rule(ruling.operator),
                "owner": _rule(ruling.owner) if ruling.owner is not None else None,
            }
        return found


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "mode": rule.mode.value,
        "window": str(rule.window) if rule.window is not None else None,
        "level": rule.level.value,
        "subject": rule.subject,
        "set_by": rule.set_by,
        "set_at": rule.set_at,
    }
