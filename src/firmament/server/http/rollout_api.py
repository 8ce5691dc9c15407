"""Operator API: rollouts, and why a device has or has not a release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import Request, Response

from firmament.errors import MalformedError
from firmament.server.http import rollout_shapes as shapes
from firmament.server.http.operator_base import INTEGER, OBJECT, TEXT, OperatorPart, query_integer
from firmament.server.http.shapes import takes
from firmament.server.rollouts import actions, facts, permitted, plan, reasons, service, store, view, why
from firmament.server.rollouts.model import Policy, decode_policy
from firmament.server.scope import Action

if TYPE_CHECKING:
    from firmament.core.fields import Fields
    from firmament.server.database.port import Connection
    from firmament.server.rollouts.store import RolloutRecord

LIST: Final = "array"
MAX_QUERY: Final = 4000
MAX_NOTE: Final = 2000
MAX_BODY_LENGTH_BYTES: Final = 256 * 1024
# A thousand named canaries are 40 KiB.
_POLICY: Final = dict.fromkeys(("gate", "caps", "old_stock"), OBJECT) | {
    "waves": LIST,
    "windows": LIST,
    **dict.fromkeys(("wait_for", "advance", "default_zone", "on_stop"), TEXT),
    **dict.fromkeys(
        (
            "hold_s",
            "retry_budget",
            "answer_s",
            "finish_s",
            "patience_s",
            "lifetime_s",
            "site_commit_s",
            "approval_above",
        ),
        INTEGER,
    ),
    "dynamic": "boolean",
}


class RolloutApi(OperatorPart):
    """Who gets a release, and how carefully."""

    def add_routes(self) -> None:
        """See the base."""
        router, base, one = self.router, "/api/v1/rollouts", "/api/v1/rollouts/{rollout_id}"
        router.post(
            f"{base}/plan",
            response_model=shapes.Plan,
            summary="Say what a rollout would do, and change nothing",
            openapi_extra=takes({"release": TEXT}, {"selector": TEXT, **_POLICY}),
        )(self.plan)
        router.post(
            base,
            response_model=shapes.Rollout,
            status_code=201,
            summary="Make a rollout and start it",
            openapi_extra=takes(
                {"release": TEXT, "name": TEXT},
                {
                    "selector": TEXT,
                    "note": TEXT,
                    "start_at": INTEGER,
                    "expect_count": INTEGER,
                    "draft": "boolean",
                    **_POLICY,
                },
            ),
        )(self.create)
        router.get(base, response_model=shapes.Rollouts, summary="List rollouts, newest first")(self.list_rollouts)
        router.get(one, response_model=shapes.Rollout, summary="Show a rollout")(self.get_rollout)
        router.get(f"{one}/reasons", response_model=shapes.FailureReasons, summary="Why devices failed")(self.reasons)
        router.get(f"{one}/targets", response_model=shapes.Targets, summary="List a rollout's devices")(self.targets)
        router.get(f"{one}/series", response_model=shapes.Series, summary="The failure rate over time")(self.series)
        router.get(
            one + "/actions/{action}", response_model=shapes.ActionPreview, summary="Say what an action would do"
        )(self.preview)
        for action, rule in permitted.RULES.items():
            router.post(
                f"{one}/{action}",
                response_model=shapes.Rollout,
                name=f"rollout_{action.replace('-', '_')}",
                summary=_SUMMARIES[action],
                openapi_extra=takes(
                    {"reason": TEXT} if rule.always_reason else {},
                    {"reason": TEXT, "exclude": TEXT, "expect_revision": INTEGER, "expect_count": INTEGER},
                ),
            )(self._acting(action))
        device = "/api/v1/devices/{device_id}"
        router.get(f"{device}/why", response_model=shapes.Why, summary="Why a device has it or not")(self.why)
        router.get(f"{device}/timeline", response_model=shapes.Timeline, summary="What happened to a device")(
            self.timeline
        )
        router.post(
            f"{device}/quarantine",
            status_code=204,
            summary="Keep rollouts away from a device",
            openapi_extra=takes({"reason": TEXT}),
        )(self.quarantine)
        router.delete(f"{device}/quarantine", status_code=204, summary="Take a device out of quarantine")(self.release)
        router.post(
            "/api/v1/devices/clear-failures",
            response_model=shapes.Tagged,
            summary="Let a release be offered again where it failed",
            openapi_extra=takes({"ids": LIST}, {"release": TEXT}),
        )(self.clear_failures)

    async def plan(self, request: Request) -> dict[str, Any]:
        """Plan."""
        scope, fields = await self._scope(request), await self._rollout_fields(request)
        release, selector, policy = _what(fields)
        now = self._parts.clock.now()
        return await self._scan(plan.make_plan, scope, release=release, selector=selector, policy=policy, now=now)

    async def create(self, request: Request) -> dict[str, Any]:
        """Create."""
        scope, fields = await self._scope(request), await self._rollout_fields(request)
        release, selector, policy = _what(fields)
        name = fields.text("name", max_length=120)
        note = fields.text("note", max_length=MAX_NOTE, default="")
        start_at, expect = fields.maybe("start_at", fields.integer), fields.maybe("expect_count", fields.integer)
        is_draft = fields.boolean("draft", default=False)
        now = self._parts.clock.now()
        scope.require(Action.START_ROLLOUT, product=release.partition("/")[0])
        # Every device is looked at before the transaction, which others wait for.
        reach = await self._scan(plan.find_reach, scope, release=release, selector=selector, now=now)

        def make(connection: Connection) -> dict[str, Any]:
            made = service.create(
                connection,
                scope,
                name=name,
                release=release,
                selector=selector,
                policy=policy,
                note=note,
                start_at=start_at,
                is_draft=is_draft,
                expect_count=expect,
                reach=reach,
                now=now,
            )
            return view.show_rollout(connection, scope, made)

        return await self._change(make)

    async def list_rollouts(self, request: Request) -> dict[str, Any]:
        """List."""
        product = request.query_params.get("product")
        scope = await self._readable(request, product=product)
        limit = max(1, min(query_integer(request, "limit", 50), store.MAX_PAGE))
        before, state = query_integer(request, "cursor", 0), request.query_params.get("state")

        def read(connection: Connection) -> dict[str, Any]:
            found = store.list_rollouts(connection, scope, state=state, product=product, before=before, limit=limit)
            return {
                "rollouts": [view.show_rollout(connection, scope, rollout) for rollout in found],
                "next": str(found[-1].row_id) if len(found) == limit else None,
            }

        return await self._parts.database.read(read)

    async def get_rollout(self, request: Request, rollout_id: str) -> dict[str, Any]:
        """Show."""
        scope = await self._readable(request)
        return await self._parts.database.read(
            lambda connection: view.show_rollout(connection, scope, store.get_rollout(connection, scope, rollout_id))
        )

    async def reasons(self, request: Request, rollout_id: str) -> dict[str, Any]:
        """Group failures."""
        scope = await self._readable(request)
        return await self._parts.database.read(
            lambda connection: {
                "reasons": reasons.list_reasons(connection, store.get_rollout(connection, scope, rollout_id))
            }
        )

    async def targets(self, request: Request, rollout_id: str) -> dict[str, Any]:
        """List targets."""
        scope, asked = await self._readable(request), request.query_params
        limit = max(1, min(query_integer(request, "limit", 100), view.MAX_PAGE))
        wave = query_integer(request, "wave", 0) or None
        after = query_integer(request, "cursor", 0)
        return await self._parts.database.read(
            lambda connection: view.list_targets(
                connection,
                store.get_rollout(connection, scope, rollout_id),
                status=asked.get("status"),
                reason=asked.get("reason"),
                wave=wave,
                after=after,
                limit=limit,
                newest=asked.get("order") == "updated",
            )
        )

    async def series(self, request: Request, rollout_id: str) -> dict[str, Any]:
        """Return points for the chart."""
        scope = await self._readable(request)
        return await self._parts.database.read(
            lambda connection: view.series(connection, store.get_rollout(connection, scope, rollout_id))
        )

    async def preview(self, request: Request, rollout_id: str, action: str) -> dict[str, Any]:
        """Say what an action would do."""
        exclude = request.query_params.get("exclude", "")[: MAX_QUERY + 1]
        now = self._parts.clock.now()
        return await self._read(
            permitted.preview, await self._readable(request), rollout_id, action, exclude=exclude, now=now
        )

    def _acting(self, action: str) -> Any:
        async def handle(request: Request, rollout_id: str) -> dict[str, Any]:
            scope, fields = await self._scope(request), await self._fields(request)
            asked = actions.Request(
                reason=fields.text("reason", max_length=actions.MAX_REASON, default=""),
                exclude=fields.text("exclude", max_length=MAX_QUERY, default=""),
                expect_revision=fields.maybe("expect_revision", fields.integer),
                expect_count=fields.maybe("expect_count", fields.integer),
            )
            now = self._parts.clock.now()

            def do(connection: Connection) -> dict[str, Any]:
                rollout: RolloutRecord = actions.act(connection, scope, rollout_id, action, asked, now)
                return view.show_rollout(connection, scope, rollout)

            shown = await self._change(do)
            await self._parts.database.read(self._parts.board.refresh)
            return shown

        return handle

    async def why(self, request: Request, device_id: str) -> dict[str, Any]:
        """Run every rule."""
        scope, now = await self._readable(request), self._parts.clock.now()
        release = request.query_params.get("release")
        question = await self._read(facts.ask_why, scope, device_id, release, now)
        return _why(question)

    async def timeline(self, request: Request, device_id: str) -> dict[str, Any]:
        """List what happened."""
        limit = max(1, min(query_integer(request, "limit", 50), 200))
        before = query_integer(request, "cursor", 0)
        return await self._read(service.timeline, await self._readable(request), device_id, before=before, limit=limit)

    async def quarantine(self, request: Request, device_id: str) -> Response:
        """Put into quarantine."""
        scope, fields, now = await self._scope(request), await self._fields(request), self._parts.clock.now()
        reason = fields.text("reason", max_length=actions.MAX_REASON)
        await self._change(
            lambda connection: service.quarantine(connection, scope, device_id=device_id, reason=reason, now=now)
        )
        return Response(status_code=204)

    async def release(self, request: Request, device_id: str) -> Response:
        """Take out of quarantine."""
        scope, now = await self._scope(request), self._parts.clock.now()
        await self._change(lambda connection: service.release_device(connection, scope, device_id=device_id, now=now))
        return Response(status_code=204)

    async def clear_failures(self, request: Request) -> dict[str, Any]:
        """Forget failures."""
        scope, fields = await self._scope(request), await self._fields(request, limit_bytes=MAX_BODY_LENGTH_BYTES)
        devices = fields.texts("ids", max_items=service.MAX_CLEARED, min_items=1)
        release = fields.text("release", max_length=200) if "release" in fields else None
        now = self._parts.clock.now()
        changed = await self._change(
            lambda connection: service.clear_failures(connection, scope, devices=devices, release=release, now=now)
        )
        return {"changed": changed}

    async def _rollout_fields(self, request: Request) -> Fields:
        return await self._fields(request, limit_bytes=MAX_BODY_LENGTH_BYTES)


def _what(fields: Fields) -> tuple[str, str, Policy]:
    release = fields.text("release", max_length=200)
    if "/" not in release:
        raise MalformedError("A release is named product/version", found=release)
    return release, fields.text("selector", max_length=MAX_QUERY, default=""), decode_policy(fields)


def _why(question: why.Question) -> dict[str, Any]:
    findings = why.judge(question)
    missing = next((item for item in findings if item.verdict is not why.Verdict.PASS), None)
    return {
        "device_id": question.device.device_id,
        "release": question.manifest.release_id,
        "rollout_id": question.rollout.rollout_id if question.rollout is not None else None,
        "rules": [
            {
                "rule": item.rule,
                "verdict": item.verdict.value,
                "sentence": item.sentence,
                "facts": item.facts,
                "hint": item.hint,
            }
            for item in findings
        ],
        "first_blocking": missing.rule if missing is not None else None,
        "sentence": missing.sentence
        if missing is not None
        else "Nothing stands against it; it starts at its next poll.",
    }


_NOTHING_MISSING: Final = "Nothing stands against it; it starts at its next poll."
_SUMMARIES: Final = {
    "start": "Start a draft",
    "approve": "Agree, as the second person",
    "deny": "Refuse, as the second person",
    "pause": "Let no new device start",
    "resume": "Go on",
    "next-wave": "Open the next wave now",
    "abort": "End a rollout",
    "revert": "Bring updated devices back",
    "retry-failed": "Offer it again to devices that failed",
    "acknowledge": "Say that you look after a stop",
}
